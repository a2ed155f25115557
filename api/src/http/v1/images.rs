//! Images of this host. Every account may see them and create boxes on them; only the operator, by the operator's socket,
//! changes them: they are shared by all accounts, and a path of the host is read with the rights of the daemon.

use std::io::Write as _;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use icebox_rootfs::images::{ArchiveKind, Pruned};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::pieces::{PIECES_MAX, Pieces};
use super::wire::{ImageDetails, ImageFacts, ImageName, ImageProgress, ImagesRemoved};
use crate::error::Error;
use crate::http::App;
use crate::http::auth::{Caller, KEY_HEADER};
use crate::http::reply::{Answer, Json, Query, done, status_of};
use crate::http::system::Peer;
use crate::http::v2::wire::{Empty, ErrorBody};
use crate::images::{Images, Listed, Report, Source};
use crate::refusal::Refusal;

/// The operator of this host.
#[derive(Debug)]
pub(in crate::http) struct Operator;

impl FromRequestParts<App> for Operator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        if is_operator(parts) {
            return Ok(Self);
        }
        Caller::from_request_parts(parts, app).await?;
        let text = "images are changed by the operator of the host only, over the operator's socket (operator.sock in the run \
                    directory); `icebox image` as root on the host uses it";
        Err(Refusal::Forbidden(text.into()))
    }
}

/// Any account, or the operator.
#[derive(Debug)]
pub(in crate::http) struct Reader {
    operator: bool,
}

impl Reader {
    /// It may see the paths of this host.
    pub(super) fn is_operator(&self) -> bool {
        self.operator
    }
}

impl FromRequestParts<App> for Reader {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let operator = is_operator(parts);
        if !operator {
            Caller::from_request_parts(parts, app).await?;
        }
        Ok(Self { operator })
    }
}

fn is_operator(parts: &Parts) -> bool {
    parts.extensions.get::<Peer>().is_some_and(|peer| peer.operator) && !parts.headers.contains_key(KEY_HEADER)
}

/// Query of an import.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ImportQuery {
    /// The name that the image gets; without it, the names in the archive count.
    name: Option<String>,
    /// A path of the host, or `debootstrap:SUITE`; without it, the body is the archive.
    source: Option<String>,
    /// Name of the archive in the body, for people.
    file: Option<String>,
    /// `images` (an OCI layout or `docker save` archive) or `rootfs`; without it, the content decides.
    kind: Option<String>,
}

/// Query of a pull.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct PullQuery {
    /// The image, as `[REGISTRY/]NAME[:TAG][@DIGEST]`.
    name: String,
}

/// Query of a push.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct PushQuery {
    /// Where it goes, as `[REGISTRY/]NAME[:TAG]`; without it, to the name in the path.
    name: Option<String>,
}

/// Query of a removal of what is unused.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct PruneQuery {
    /// Images with names too.
    #[serde(default)]
    all: bool,
}

/// The images of this host, by age.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, body = [ImageFacts]), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn list(State(app): State<App>, reader: Reader) -> Answer<Vec<ImageFacts>> {
    let listed = app.images.list().await?;
    Ok(axum::Json(listed.into_iter().map(|listed| ImageFacts::of(listed, reader.operator)).collect()))
}

/// An image by name or id, with its configuration. A slash in a name is written `%2F`.
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images", params(("image" = String, Path)), responses((status = 200, body = ImageDetails), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn show(
    State(app): State<App>,
    reader: Reader,
    Path(image): Path<String>,
) -> Answer<ImageDetails> {
    let (listed, warnings) = app.images.show(image).await?;
    Ok(axum::Json(ImageDetails {
        diff_ids: listed.image.diff_ids.clone(),
        config: serde_json::from_str(&listed.image.config).unwrap_or_default(),
        warnings,
        facts: ImageFacts::of(listed, reader.operator),
    }))
}

/// Takes a name from an image that has others, or removes the image and the layers that no other has. An image that a box
/// uses stays. For the operator.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images", params(("image" = String, Path)), responses((status = 200, body = ImagesRemoved), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(in crate::http) async fn remove(
    State(app): State<App>,
    _operator: Operator,
    Path(image): Path<String>,
) -> Answer<ImagesRemoved> {
    removed(app.images.remove(image).await?)
}

/// Removes images without a name that no box uses, and layers that no image has. For the operator.
#[utoipa::path(post, path = "/v1/images/prune", tag = "images", params(PruneQuery), responses((status = 200, body = ImagesRemoved), (status = 403, body = ErrorBody)))]
pub(in crate::http) async fn prune(
    State(app): State<App>,
    _operator: Operator,
    Query(query): Query<PruneQuery>,
) -> Answer<ImagesRemoved> {
    removed(app.images.prune(query.all).await?)
}

/// Gives an image another name; the name leaves the image that had it. For the operator.
#[utoipa::path(post, path = "/v1/images/{image}/tag", tag = "images", params(("image" = String, Path)), request_body = ImageName, responses((status = 200, body = Empty), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn tag(
    State(app): State<App>,
    _operator: Operator,
    Path(image): Path<String>,
    Json(body): Json<ImageName>,
) -> Answer<Empty> {
    app.images.tag(image, body.name).await?;
    done()
}

fn removed(pruned: Pruned) -> Answer<ImagesRemoved> {
    let Pruned { untagged, images, layers, bytes } = pruned;
    Ok(axum::Json(ImagesRemoved { untagged, removed: images, layers, bytes }))
}

/// Imports images: from an archive in the body (an OCI layout, what `docker save` writes, or the tar of a root file system,
/// compressed or not), from a path of the host, or from debootstrap. Answers with lines of JSON. For the operator.
#[utoipa::path(post, path = "/v1/images/import", tag = "images", params(ImportQuery), request_body(content_type = "application/x-tar"), responses((status = 200, body = ImageProgress, content_type = "application/x-ndjson"), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn import(
    State(app): State<App>,
    _operator: Operator,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Result<Response, Refusal> {
    let name = query.name.as_deref().map(Images::reference).transpose()?;
    let kind = match query.kind.as_deref() {
        None | Some("") => ArchiveKind::Any,
        Some("images") => ArchiveKind::Images,
        Some("rootfs") => ArchiveKind::RootFs,
        Some(_) => return Err(Refusal::Invalid("kind must be images or rootfs".into())),
    };
    let source = match query.source {
        Some(source) => Source::Named(source),
        None => Source::Archive(received(&app, body).await?, query.file.unwrap_or_else(|| "the archive".to_owned())),
    };
    Ok(lines(app.images.import(source, name, kind)))
}

/// Pulls an image from its registry, or from a mirror of it. Answers with lines of JSON. The pull ends when the client
/// disconnects. For the operator.
#[utoipa::path(post, path = "/v1/images/pull", tag = "images", params(PullQuery), responses((status = 200, body = ImageProgress, content_type = "application/x-ndjson"), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
pub(in crate::http) async fn pull(
    State(app): State<App>,
    _operator: Operator,
    Query(query): Query<PullQuery>,
) -> Result<Response, Refusal> {
    Ok(lines(app.images.pull(Images::reference(&query.name)?)))
}

/// Pushes an image to a registry. Answers with lines of JSON. The push ends when the client disconnects. For the operator.
#[utoipa::path(post, path = "/v1/images/{image}/push", tag = "images", params(("image" = String, Path), PushQuery), responses((status = 200, body = ImageProgress, content_type = "application/x-ndjson"), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
pub(in crate::http) async fn push(
    State(app): State<App>,
    _operator: Operator,
    Path(image): Path<String>,
    Query(query): Query<PushQuery>,
) -> Result<Response, Refusal> {
    let name = query.name.as_deref().map(Images::reference).transpose()?;
    Ok(lines(app.images.push(image, name)))
}

/// The body of an import has no limit but the disk.
pub(in crate::http) fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::disable()
}

/// Writes the body to a file without a name, in the directory of images.
async fn received(app: &App, body: Body) -> Result<std::fs::File, Refusal> {
    let dir = app.images.dir().await?;
    let failed = |cause: std::io::Error| Refusal::from(Error::new("receive the archive", "", cause));
    let mut file = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::OpenOptionsExt as _;
        std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(dir)
    })
    .await
    .map_err(|_| failed(std::io::Error::other("the thread ended")))?
    .map_err(failed)?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| Refusal::Invalid("the body ends before its announced length".into()))?;
        let written = tokio::task::spawn_blocking(move || file.write_all(&piece).map(|()| file));
        file = written.await.map_err(|_| failed(std::io::Error::other("the thread ended")))?.map_err(failed)?;
    }
    Ok(file)
}

/// The reports of a work as lines of JSON.
fn lines(reports: mpsc::Receiver<Report>) -> Response {
    let records = futures::stream::unfold(reports, |mut reports| async move {
        let report = reports.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line(report)), reports))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(records)).into_response()
}

fn line(report: Report) -> Bytes {
    let record = match report {
        Report::Work(text) => ImageProgress::Work { text },
        Report::Layer(progress) => ImageProgress::Layer {
            layer: progress.layer,
            layers: progress.layers,
            done: progress.done,
            total: progress.total,
            known: progress.known,
        },
        Report::Transfer(progress) => ImageProgress::Transfer {
            layer: progress.layer,
            layers: progress.layers,
            done: progress.done,
            total: progress.total,
            known: progress.known,
        },
        Report::Pushed { name, digest, changed } => ImageProgress::Pushed { name, digest, changed },
        Report::Image(image) => {
            ImageProgress::Image { image: ImageFacts::of(Listed { image: *image, boxes: 0 }, true) }
        }
        Report::Ended(Ok(())) => ImageProgress::Done,
        Report::Ended(Err(refusal)) => {
            if let Refusal::Failed(cause) = &refusal {
                tracing::error!(error = cause.chain(), "an image could not be handled");
            }
            ImageProgress::Error { status: status_of(&refusal).as_u16(), error: refusal.to_string() }
        }
    };
    let mut line = serde_json::to_vec(&record).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// The image as an OCI layout in a tar archive. For the operator.
#[utoipa::path(get, path = "/v1/images/{image}/export", tag = "images", params(("image" = String, Path)), responses((status = 200, content_type = "application/x-tar"), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn export(
    State(app): State<App>,
    _operator: Operator,
    Path(image): Path<String>,
) -> Result<Response, Refusal> {
    // Found before the answer begins: after that, an error can only cut it off.
    let (found, _) = app.images.show(image.clone()).await?;
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let name = if found.image.names.is_empty() { found.image.id } else { image };
    let images = app.images.clone();
    tokio::spawn(async move {
        let output = std::io::BufWriter::with_capacity(256 * 1024, Pieces(sender.clone()));
        if let Err(refusal) = images.export(name, output).await {
            tracing::error!(reason = refusal.chain(), "an image could not be exported");
            let _ = sender.send(Err(std::io::Error::other("the export failed"))).await;
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(pieces);
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(stream)).into_response())
}
