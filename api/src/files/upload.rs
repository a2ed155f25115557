//! Uploads: many files into a box, in the order of their paths.
//!
//! Owns the pairing of paths and files and its limits. Leaves out: the request format.

use std::collections::VecDeque;

use icebox_shim::handle::FileWriter;

use crate::boxes::Awake;
use crate::refusal::Refusal;
use crate::runs::resolve_path;

/// Largest file that is written by one request.
pub const FILE_BYTES_MAX: usize = 100 * 1024 * 1024;
/// Most files of one upload.
const FILES_MAX: usize = 1000;

/// An upload in progress.
#[derive(Debug)]
pub struct Upload<'a> {
    awake: &'a Awake,
    paths: VecDeque<String>,
    files: usize,
}

impl<'a> Upload<'a> {
    /// An upload into a box that is awake.
    #[must_use]
    pub fn new(awake: &'a Awake) -> Self {
        Self { awake, paths: VecDeque::new(), files: 0 }
    }

    /// Adds the destination of the next file without a path.
    pub fn add_path(&mut self, path: Vec<u8>) -> Result<(), Refusal> {
        let path = String::from_utf8(path).map_err(|_| Refusal::Invalid("a path must be UTF-8".into()))?;
        self.paths.push_back(resolve_path(&path)?);
        if self.paths.len() > FILES_MAX {
            return Err(too_many());
        }
        Ok(())
    }

    /// Begins the next file. It exists once its writer is finished; a dropped writer leaves no file.
    pub async fn next_file(&mut self) -> Result<FileWriter, Refusal> {
        self.files += 1;
        if self.files > FILES_MAX {
            return Err(too_many());
        }
        let path = self.paths.pop_front().ok_or_else(|| {
            Refusal::Invalid("each part `files` must come after the field `paths` that belongs to it".into())
        })?;
        self.awake.entry.handle().file_write(&path).await.map_err(Refusal::from)
    }

    /// Ends the upload: every path must have had its file.
    pub fn finish(self) -> Result<(), Refusal> {
        if self.paths.is_empty() {
            return Ok(());
        }
        Err(Refusal::Invalid("there are more `paths` than `files`".into()))
    }
}

fn too_many() -> Refusal {
    Refusal::Invalid(format!("one upload has at most {FILES_MAX} files"))
}
