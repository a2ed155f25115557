//! Endpoint 40: uploads.

use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};

use crate::files::{FILE_BYTES_MAX, Upload};
use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, done, read_body};
use crate::http::v2::wire::{Empty, ErrorBody};
use crate::refusal::Refusal;

/// Longest upload: 100 MiB of files, and the multipart overhead.
const UPLOAD_BYTES_MAX: usize = FILE_BYTES_MAX + 1024 * 1024;
/// Longest path.
const PATH_BYTES_MAX: usize = 4096;

/// Uploads files: fields `paths` (absolute destination) and parts `files`, paired by order; one client sends all paths
/// first, another path and file in turn. The file name of a part is ignored.
#[utoipa::path(post, path = "/v2/box/{id}/files/upload", tag = "files", params(("id" = String, Path)), request_body(content_type = "multipart/form-data", description = "Pairs of `paths` and `files`"), responses((status = 200, body = Empty), (status = 400, body = ErrorBody), (status = 413, body = ErrorBody)))]
pub(in crate::http) async fn upload(State(app): State<App>, found: TheBox, request: Request) -> Answer<Empty> {
    let is_form = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/form-data"));
    if !is_form {
        return empty_form(request.into_body()).await;
    }
    let form = Multipart::from_request(request, &app).await;
    let mut form = form.map_err(|_| Refusal::Invalid("the Content-Type of a form must name its boundary".into()))?;
    let awake = found.awake(&app).await?;
    let mut upload = Upload::new(&awake);
    while let Some(field) = form.next_field().await.map_err(|cause| refuse(&cause))? {
        match field.name() {
            Some("paths") => upload.add_path(read_path(field).await?)?,
            Some("files") => write_file(&mut upload, field).await?,
            other => {
                let name: String = other.unwrap_or_default().chars().take(40).collect();
                let text = format!("the form has a field '{name}'; an upload has `paths` and `files` only");
                return Err(Refusal::Invalid(text));
            }
        }
    }
    upload.finish()?;
    done()
}

/// The limit that replaces the framework's own for this route.
pub(in crate::http) fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(UPLOAD_BYTES_MAX)
}

/// A client without files sends an empty form of another type.
async fn empty_form(body: Body) -> Answer<Empty> {
    match read_body(body, PATH_BYTES_MAX).await {
        Ok(bytes) if bytes.is_empty() => done(),
        _ => Err(Refusal::Invalid("an upload must be multipart/form-data".into())),
    }
}

async fn read_path(mut field: Field<'_>) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(|cause| refuse(&cause))? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > PATH_BYTES_MAX {
            return Err(Refusal::Invalid(format!("a path must have at most {PATH_BYTES_MAX} bytes")));
        }
    }
    Ok(bytes)
}

/// Streams a part into its file. An aborted upload leaves no file.
async fn write_file(upload: &mut Upload<'_>, mut field: Field<'_>) -> Result<(), Refusal> {
    let mut file = upload.next_file().await?;
    while let Some(piece) = field.chunk().await.map_err(|cause| refuse(&cause))? {
        file.write(&piece).await?;
    }
    file.finish().await.map_err(Refusal::from)
}

fn refuse(cause: &MultipartError) -> Refusal {
    if cause.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Refusal::TooLarge(format!("an upload must have at most {FILE_BYTES_MAX} bytes"));
    }
    Refusal::Invalid("the form cannot be read: it is cut short, or its boundaries are wrong".into())
}
