//! Files of any length: one request writes one file.

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use futures::StreamExt as _;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Query, done};
use crate::http::v2::wire::{Empty, ErrorBody};
use crate::refusal::Refusal;
use crate::runs::resolve_path;

/// Query of a write.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct FileTarget {
    /// Absolute, or relative to `/workspace/home`.
    path: String,
}

/// Writes the body as a file; its folders are made. The public upload ends at 100 MiB, and this one at the box's disk: the
/// body is never held in memory. The file appears whole, or not at all.
#[utoipa::path(put, path = "/v1/boxes/{id}/files", tag = "v1", params(("id" = String, Path), FileTarget), request_body(content_type = "application/octet-stream"), responses((status = 200, body = Empty), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn write(
    State(app): State<App>,
    found: TheBox,
    Query(target): Query<FileTarget>,
    body: Body,
) -> Answer<Empty> {
    let path = resolve_path(&target.path)?;
    let awake = found.awake(&app).await?;
    let mut file = awake.entry.handle().file_write(&path).await?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        file.write(&piece.map_err(|_| Refusal::Invalid("the body ends before its announced length".into()))?).await?;
    }
    file.finish().await?;
    done()
}

/// The body has no limit but the box's disk.
pub(in crate::http) fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::disable()
}
