//! Boxes as archives.

use std::io::{self, Read};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::pieces::{PIECES_MAX, Pieces};
use crate::http::App;
use crate::http::auth::Caller;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Query};
use crate::http::v2::boxes::describe;
use crate::http::v2::wire::{BoxData, ErrorBody};
use crate::refusal::Refusal;

/// The box as an archive: a tar with `box.json` (its settings, and the image that it stands on) and `changes/`, what it has
/// changed in the image, with whiteouts as in a layer of an image. It is the disk of one moment; a sleeping box is not woken.
/// Secrets are not in it, but the variables of its environment are.
#[utoipa::path(get, path = "/v1/boxes/{id}/export", tag = "v1", params(("id" = String, Path)), responses((status = 200, content_type = "application/x-tar", description = "The archive"), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 429, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn export(State(app): State<App>, found: TheBox) -> Result<Response, Refusal> {
    let export = app.boxes.export(&found.entry).await?;
    let bytes = export.bytes;
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let id = found.entry.id.clone();
    tokio::task::spawn_blocking(move || {
        let output = io::BufWriter::with_capacity(256 * 1024, Pieces(sender.clone()));
        if let Err(cause) = export.write(output)
            // The client has gone.
            && cause.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::error!(box_id = id, %cause, "a box could not be exported");
            let _ = sender.blocking_send(Err(io::Error::other("the export failed")));
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        // So that an archive which is cut off is not taken for a whole one.
        (header::CONTENT_LENGTH, bytes.to_string()),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(pieces))).into_response())
}

/// Query of an import.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ImportQuery {
    /// The name of the new box; it has none otherwise.
    name: Option<String>,
}

/// Creates a box from an archive of one, which may be compressed with gzip or zstd. The body is unpacked as it comes. The
/// image that the box stands on must be on this host: 409 names it otherwise. An archive that is refused or cut off leaves
/// nothing.
#[utoipa::path(post, path = "/v1/boxes/import", tag = "v1", params(ImportQuery), request_body(content_type = "application/x-tar"), responses((status = 200, body = BoxData), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody), (status = 429, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn import(
    State(app): State<App>,
    Caller(account): Caller,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Answer<BoxData> {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let archive = Archive { pieces, piece: Bytes::new(), ended: false };
    let importing = app.lifecycle.import(&account, archive, query.name);
    tokio::pin!(importing);
    let entry = tokio::select! {
        // A refusal need not wait for the rest of the body.
        done = &mut importing => done?,
        () = feed(body, sender) => importing.await?,
    };
    Ok(axum::Json(describe(&entry)))
}

/// The body has no limit but the disk that the archive asks for.
pub(in crate::http) fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::disable()
}

/// Hands a body to the thread that reads it. An empty piece says that it has come to its end.
async fn feed(body: Body, to: mpsc::Sender<io::Result<Bytes>>) {
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = match piece {
            Ok(piece) if piece.is_empty() => continue,
            Ok(piece) => Ok(piece),
            Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let failed = piece.is_err();
        if to.send(piece).await.is_err() || failed {
            return;
        }
    }
    let _ = to.send(Ok(Bytes::new())).await;
}

/// A body, as a thread reads it.
struct Archive {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
    ended: bool,
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && !self.ended {
            // Without an end the client has gone.
            self.piece = self.pieces.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)??;
            self.ended = self.piece.is_empty();
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(body: Body) -> io::Result<Vec<u8>> {
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            Archive { pieces, piece: Bytes::new(), ended: false }.read_to_end(&mut text).map(|_| text)
        });
        feed(body, sender).await;
        reading.await.expect("the thread")
    }

    #[tokio::test]
    async fn a_body_that_is_cut_off_has_no_end() {
        assert_eq!(read(Body::from("a body")).await.expect("whole"), b"a body");
        let cut = futures::stream::iter([Ok(Bytes::from_static(b"a")), Err(io::Error::other("gone"))]);
        assert_eq!(read(Body::from_stream(cut)).await.expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
        let (sender, pieces) = mpsc::channel(1);
        drop(sender);
        let gone = Archive { pieces, piece: Bytes::new(), ended: false };
        let read = tokio::task::spawn_blocking(move || { gone }.read(&mut [0; 9])).await.expect("the thread");
        assert_eq!(read.expect_err("gone").kind(), io::ErrorKind::UnexpectedEof);
    }
}
