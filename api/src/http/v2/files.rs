//! Endpoints 37 to 39 and 41 to 45: files, as the box's user sees them.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::stream;
use icebox_shim::handle::{EntryKind, FileReader};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::boxes::Awake;
use crate::clock::rfc3339;
use crate::files::FILE_BYTES_MAX;
use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json, Query, done, parse_json, read_body};
use crate::http::v2::wire::{
    Empty, ErrorBody, FileContent, FileEntry, FileKind, FileList, FileStat, MakeDir, RemoveFile, RenameFile, WriteFile,
};
use crate::refusal::Refusal;
use crate::runs::{resolve_folder, resolve_path};

/// Largest result of a ranged read.
const RANGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Largest file that is read into one JSON answer; larger ones use download.
const READ_BYTES_MAX: u64 = 100 * 1024 * 1024;
/// Longest body of a write: 100 MiB of content, base64 and JSON around it.
const WRITE_BODY_BYTES_MAX: usize = 140 * 1024 * 1024;

/// Query of a read.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ReadQuery {
    /// Absolute path.
    path: String,
    /// `base64`, or absent for text.
    encoding: Option<String>,
    /// First byte of a range.
    offset: Option<u64>,
    /// Length of a range; its presence selects a ranged read.
    length: Option<u64>,
}

/// Reads a file, or a range of it.
#[utoipa::path(get, path = "/v2/box/{id}/files/read", tag = "files", params(("id" = String, Path), ReadQuery), responses((status = 200, body = FileContent), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn read(
    State(app): State<App>,
    found: TheBox,
    Query(query): Query<ReadQuery>,
) -> Answer<FileContent> {
    let path = resolve_path(&query.path)?;
    let range = range_of(&query)?;
    let awake = found.awake(&app).await?;
    let mut reader = awake.entry.handle().file_read(&path, range).await?;
    let expected = range.map_or(reader.size, |(_, length)| length.min(reader.size));
    if expected > READ_BYTES_MAX {
        return Err(Refusal::TooLarge(format!("the file is larger than {READ_BYTES_MAX} bytes; use files/download")));
    }
    let _memory = app.memory(usize::try_from(expected).unwrap_or(usize::MAX)).await;
    let bytes = read_whole(&mut reader).await?;
    let content = match query.encoding.as_deref() {
        Some("base64") => BASE64.encode(&bytes),
        _ => String::from_utf8(bytes).unwrap_or_else(|bytes| String::from_utf8_lossy(bytes.as_bytes()).into_owned()),
    };
    Ok(axum::Json(FileContent { content }))
}

fn range_of(query: &ReadQuery) -> Result<Option<(u64, u64)>, Refusal> {
    match query.length {
        None => Ok(None),
        Some(length) if length > RANGE_BYTES_MAX => {
            Err(Refusal::Invalid(format!("length must be at most {RANGE_BYTES_MAX}")))
        }
        Some(length) => Ok(Some((query.offset.unwrap_or(0), length))),
    }
}

/// The file may grow while it is read: the read stops at the limit.
async fn read_whole(reader: &mut FileReader) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await? {
        if bytes.len() as u64 + piece.len() as u64 > READ_BYTES_MAX {
            return Err(Refusal::TooLarge(format!("the file is larger than {READ_BYTES_MAX} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Writes a file; parent folders are created. No reader sees a half-written file.
#[utoipa::path(post, path = "/v2/box/{id}/files/write", tag = "files", params(("id" = String, Path)), request_body = WriteFile, responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn write(State(app): State<App>, found: TheBox, request: Request) -> Answer<Empty> {
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(WRITE_BODY_BYTES_MAX);
    if announced > WRITE_BODY_BYTES_MAX {
        return Err(Refusal::TooLarge(format!("a file must have at most {FILE_BYTES_MAX} bytes")));
    }
    let _memory = app.memory(announced).await;
    let body = read_body(request.into_body(), WRITE_BODY_BYTES_MAX).await?;
    let body: WriteFile = parse_json(&body)?;
    let path = resolve_path(&body.path)?;
    let bytes = match body.encoding.as_deref() {
        Some("base64") => {
            BASE64.decode(body.content).map_err(|_| Refusal::Invalid("content is not valid base64".into()))?
        }
        None | Some("" | "utf8" | "utf-8") => body.content.into_bytes(),
        Some(_) => return Err(Refusal::Invalid("encoding must be base64 or absent".into())),
    };
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Refusal::TooLarge(format!("a file must have at most {FILE_BYTES_MAX} bytes")));
    }
    let awake = found.awake(&app).await?;
    let mut file = awake.entry.handle().file_write(&path).await?;
    file.write(&bytes).await?;
    file.finish().await?;
    done()
}

/// Query with a folder, or with a file under the name `folder`.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct FolderQuery {
    /// Absolute, or relative to `/workspace/home`.
    folder: Option<String>,
}

/// Lists one level of a folder, or the one entry of a file.
#[utoipa::path(get, path = "/v2/box/{id}/files/list", tag = "files", params(("id" = String, Path), FolderQuery), responses((status = 200, body = FileList), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn list(
    State(app): State<App>,
    found: TheBox,
    Query(query): Query<FolderQuery>,
) -> Answer<FileList> {
    let path = resolve_folder(query.folder.as_deref())?;
    let awake = found.awake(&app).await?;
    let entries = awake.entry.handle().file_list(&path).await?;
    let files = entries.into_iter().map(to_wire).collect();
    Ok(axum::Json(FileList { files }))
}

/// Separators in a name are replaced, since one of the clients joins the name to a path: the box may be hostile.
fn to_wire(entry: icebox_shim::handle::FileEntry) -> FileEntry {
    let (seconds, nanos) = entry.modified;
    FileEntry {
        name: entry.name.replace(['/', '\0'], "_"),
        path: entry.path,
        size: entry.size,
        is_dir: entry.is_dir,
        mod_time: rfc3339(seconds, nanos),
    }
}

/// Sends a file as it is. The parameter is called `folder`, and names a file.
#[utoipa::path(get, path = "/v2/box/{id}/files/download", tag = "files", params(("id" = String, Path), FolderQuery), responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn download(
    State(app): State<App>,
    found: TheBox,
    Query(query): Query<FolderQuery>,
) -> Result<Response, Refusal> {
    let path = query.folder.as_deref().filter(|path| !path.is_empty());
    let path = resolve_path(path.ok_or_else(|| Refusal::Invalid("folder must name a file".into()))?)?;
    let awake = found.awake(&app).await?;
    let reader = awake.entry.handle().file_read(&path, None).await?;
    let size = reader.size;
    // The box stays awake as long as the body lives.
    let pieces = stream::try_unfold((reader, awake, size), next_piece);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

type Sending = (FileReader, Awake, u64);

/// The announced length is kept: a file that grows is cut there, one that shrinks breaks the connection.
async fn next_piece((mut reader, awake, left): Sending) -> Result<Option<(bytes::Bytes, Sending)>, std::io::Error> {
    if left == 0 {
        return Ok(None);
    }
    let piece = reader.next().await.map_err(std::io::Error::other)?;
    let mut piece = piece.ok_or_else(|| std::io::Error::other("the file has become shorter"))?;
    piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
    let left = left - piece.len() as u64;
    awake.entry.passed.pass(piece.len()).await;
    Ok(Some((piece, (reader, awake, left))))
}

/// Query of a description.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct StatQuery {
    /// Absolute path.
    path: String,
    /// Follow a final symbolic link.
    follow: Option<bool>,
}

/// Describes a file.
#[utoipa::path(get, path = "/v2/box/{id}/files/stat", tag = "files", params(("id" = String, Path), StatQuery), responses((status = 200, body = FileStat), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn stat(
    State(app): State<App>,
    found: TheBox,
    Query(query): Query<StatQuery>,
) -> Answer<FileStat> {
    let path = resolve_path(&query.path)?;
    let awake = found.awake(&app).await?;
    let stat = awake.entry.handle().file_stat(&path, query.follow.unwrap_or(false)).await?;
    let (seconds, nanos) = stat.modified;
    Ok(axum::Json(FileStat {
        kind: match stat.kind {
            EntryKind::File => FileKind::File,
            EntryKind::Directory => FileKind::Directory,
            EntryKind::Symlink => FileKind::Symlink,
            EntryKind::Other => FileKind::Other,
        },
        size: stat.size,
        mod_time: rfc3339(seconds, nanos),
        inode: stat.inode,
        version: format!("{:x}-{seconds:x}.{nanos:x}-{:x}", stat.inode, stat.size),
    }))
}

/// Makes a folder.
#[utoipa::path(post, path = "/v2/box/{id}/files/mkdir", tag = "files", params(("id" = String, Path)), request_body = MakeDir, responses((status = 200, body = Empty), (status = 409, body = ErrorBody)))]
pub(in crate::http) async fn mkdir(State(app): State<App>, found: TheBox, Json(body): Json<MakeDir>) -> Answer<Empty> {
    let path = resolve_path(&body.path)?;
    let awake = found.awake(&app).await?;
    awake.entry.handle().file_mkdir(&path, body.parents.unwrap_or(false)).await?;
    done()
}

/// Renames a file or folder.
#[utoipa::path(post, path = "/v2/box/{id}/files/rename", tag = "files", params(("id" = String, Path)), request_body = RenameFile, responses((status = 200, body = Empty), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn rename(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<RenameFile>,
) -> Answer<Empty> {
    let (from, to) = (resolve_path(&body.from)?, resolve_path(&body.to)?);
    let awake = found.awake(&app).await?;
    awake.entry.handle().file_rename(&from, &to).await?;
    done()
}

/// Removes a file, or a folder with all that is in it.
#[utoipa::path(post, path = "/v2/box/{id}/files/remove", tag = "files", params(("id" = String, Path)), request_body = RemoveFile, responses((status = 200, body = Empty), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn remove(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<RemoveFile>,
) -> Answer<Empty> {
    let path = resolve_path(&body.path)?;
    let awake = found.awake(&app).await?;
    awake.entry.handle().file_remove(&path, body.recursive.unwrap_or(false)).await?;
    done()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(offset: Option<u64>, length: Option<u64>) -> ReadQuery {
        ReadQuery { path: "/x".into(), encoding: None, offset, length }
    }

    #[test]
    fn only_a_length_asks_for_a_range() {
        assert_eq!(range_of(&query(None, None)).expect("whole"), None);
        assert_eq!(range_of(&query(Some(5), None)).expect("whole"), None);
        assert_eq!(range_of(&query(Some(5), Some(0))).expect("nothing"), Some((5, 0)));
        assert_eq!(range_of(&query(None, Some(9))).expect("a range"), Some((0, 9)));
        assert!(range_of(&query(None, Some(RANGE_BYTES_MAX + 1))).is_err());
    }

    #[test]
    fn names_of_a_hostile_box_hold_no_separator() {
        let entry = icebox_shim::handle::FileEntry {
            name: "../../etc/passwd".into(),
            path: "/x".into(),
            size: 1,
            is_dir: false,
            modified: (0, 0),
        };
        let wire = to_wire(entry);
        assert_eq!((wire.name.as_str(), wire.mod_time.as_str()), (".._.._etc_passwd", "1970-01-01T00:00:00Z"));
    }
}
