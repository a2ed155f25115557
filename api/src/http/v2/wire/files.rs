//! Files of a box.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET …/files/read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileContent {
    /// Text, or base64 if that was requested.
    pub content: String,
}

/// Body of `POST …/files/write`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteFile {
    /// Destination; parents are created.
    pub path: String,
    /// Text, or base64 with `encoding: "base64"`.
    pub content: String,
    /// `base64`, or absent for text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileEntry {
    /// Last part of the path.
    pub name: String,
    /// Absolute path.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// A folder.
    pub is_dir: bool,
    /// Time of the last change, RFC 3339.
    pub mod_time: String,
}

/// Answer of `GET …/files/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileList {
    /// The entries, one level.
    pub files: Vec<FileEntry>,
}

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Any other kind.
    Other,
}

/// Answer of `GET …/files/stat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileStat {
    /// Kind of the file.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change, RFC 3339.
    pub mod_time: String,
    /// Inode number.
    pub inode: u64,
    /// Changes whenever inode, time or size change.
    pub version: String,
}

/// Body of `POST …/files/mkdir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MakeDir {
    /// The folder.
    pub path: String,
    /// Make parents too, and accept an existing folder.
    #[serde(default)]
    pub parents: Option<bool>,
}

/// Body of `POST …/files/rename`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenameFile {
    /// The old path.
    pub from: String,
    /// The new path.
    pub to: String,
}

/// Body of `POST …/files/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemoveFile {
    /// The path.
    pub path: String,
    /// Needed for folders.
    #[serde(default)]
    pub recursive: Option<bool>,
}
