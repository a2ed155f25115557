//! File operations inside a box, as its user.
//!
//! Each runs in a child of the init that has the user's ids, so the kernel checks every permission; nothing here opens
//! a path. Leaves out: relative paths and normalisation (the API's); the init refuses what is not absolute.

use std::time::Duration;

use bytes::Bytes;

use super::BoxHandle;
use super::conn::{Connection, RESPONSE_MS_MAX, unexpected};
use crate::error::{Error, ErrorKind};
use crate::protocol::{Answer, DATA_BYTES_MAX, Entry, FileEntry, FileStat, FrameType, Operation, decode};

/// Time limit for the removal of a large tree.
const REMOVE_MS_MAX: u64 = 600_000;
/// Longest listing. The init cuts earlier; this is the guard against a hostile one.
const LIST_ENTRIES_MAX: usize = 262_144;

/// A file being read.
#[derive(Debug)]
pub struct FileReader {
    /// The file's size when it was opened.
    pub size: u64,
    connection: Connection,
    over: bool,
}

/// A file being written. Nothing is visible before [`finish`](FileWriter::finish); dropping it cancels the write.
#[derive(Debug)]
pub struct FileWriter {
    connection: Connection,
}

impl FileReader {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The file could not be read on, or the init is gone.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.over {
            return Ok(None);
        }
        let Some(frame) = self.connection.next_frame().await? else {
            return Err(Error::new(ErrorKind::Gone, "read file data", "closed"));
        };
        match frame.kind {
            FrameType::Data => Ok(Some(Bytes::from(frame.payload))),
            FrameType::End => {
                self.over = true;
                Ok(None)
            }
            FrameType::Response => {
                self.over = true;
                Err(refusal(&frame.payload))
            }
            _ => Err(unexpected(&frame)),
        }
    }
}

fn refusal(payload: &[u8]) -> Error {
    use crate::protocol::{Envelope, WireError};
    match decode::<Envelope<Result<Answer, WireError>>>(payload) {
        Ok(Envelope { m: Err(wire), .. }) => Error::from(wire),
        Ok(_) => Error::new(ErrorKind::Internal, "unexpected answer from init", ""),
        Err(e) => e,
    }
}

impl FileWriter {
    /// Adds bytes.
    ///
    /// # Errors
    /// The file could not be written (then the cause is the init's), or the init is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(DATA_BYTES_MAX) {
            if let Err(lost) = self.connection.sender.send(FrameType::Data, piece).await {
                // The worker reports the cause before it closes; that is more precise than a broken connection.
                return Err(match self.connection.answer().await {
                    Err(told) if told.kind() != ErrorKind::Gone => told,
                    _ => lost,
                });
            }
        }
        Ok(())
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// As [`write`](FileWriter::write).
    pub async fn finish(mut self) -> Result<(), Error> {
        let sent = self.connection.sender.send(FrameType::End, &[]).await;
        match (self.connection.answer().await, sent) {
            (Ok(_), _) => Ok(()),
            (Err(told), Ok(())) => Err(told),
            (Err(told), Err(_)) if told.kind() != ErrorKind::Gone => Err(told),
            (Err(_), Err(lost)) => Err(lost),
        }
    }
}

fn is_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && !text.contains(['/', '\0'])
}

impl BoxHandle {
    /// Opens a regular file for reading, or a range (offset, length) of it.
    ///
    /// # Errors
    /// As the kernel tells the box's user; `InvalidInput` for what is not a regular file.
    pub async fn file_read(&self, path: &str, range: Option<(u64, u64)>) -> Result<FileReader, Error> {
        let path = path.to_owned();
        let (connection, answer) = self.open_operation(Operation::FileRead { path, range }).await?;
        match answer {
            Answer::File { size } => Ok(FileReader { size, connection, over: false }),
            _ => Err(super::wrong_answer()),
        }
    }

    /// Begins to write a file; parents are created, an existing file keeps its mode, a final symbolic link is followed.
    ///
    /// # Errors
    /// As the kernel tells the box's user.
    pub async fn file_write(&self, path: &str) -> Result<FileWriter, Error> {
        let path = path.to_owned();
        let (connection, _) = self.open_operation(Operation::FileWrite { path }).await?;
        Ok(FileWriter { connection })
    }

    /// The entries of a directory by name, or the one entry of a file.
    ///
    /// # Errors
    /// As the kernel tells the box's user; `TooLarge` beyond the init's limit of entries.
    pub async fn file_list(&self, path: &str) -> Result<Vec<FileEntry>, Error> {
        let path = path.to_owned();
        let (mut connection, _) = self.open_operation(Operation::FileList { path }).await?;
        let mut all = Vec::new();
        while let Some(entry) = super::next_item(&mut connection).await? {
            match entry {
                // Clients make local files of these names: a hostile init must not send them elsewhere.
                Entry::Files(files) if files.iter().all(|f| is_name(&f.name)) => all.extend(files),
                Entry::Files(_) => return Err(super::wrong_answer()),
                Entry::Run(_) => return Err(super::wrong_answer()),
            }
            if all.len() > LIST_ENTRIES_MAX {
                return Err(Error::new(ErrorKind::TooLarge, "list directory", all.len()));
            }
        }
        Ok(all)
    }

    /// Describes a file; `follow` looks through a final symbolic link.
    ///
    /// # Errors
    /// As the kernel tells the box's user.
    pub async fn file_stat(&self, path: &str, follow: bool) -> Result<FileStat, Error> {
        let path = path.to_owned();
        match self.open_operation(Operation::FileStat { path, follow }).await?.1 {
            Answer::Stat(stat) => Ok(stat),
            _ => Err(super::wrong_answer()),
        }
    }

    /// Makes a directory, with `parents` as `mkdir -p`.
    ///
    /// # Errors
    /// As the kernel tells the box's user.
    pub async fn file_mkdir(&self, path: &str, parents: bool) -> Result<(), Error> {
        let path = path.to_owned();
        self.open_operation(Operation::FileMkdir { path, parents }).await.map(drop)
    }

    /// Renames a file or directory; an existing file at `to` is replaced.
    ///
    /// # Errors
    /// As the kernel tells the box's user.
    pub async fn file_rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.open_operation(Operation::FileRename { from, to }).await.map(drop)
    }

    /// Removes a file, with `recursive` a directory and everything in it.
    ///
    /// # Errors
    /// As the kernel tells the box's user; `IsADirectory` for a directory without `recursive`.
    pub async fn file_remove(&self, path: &str, recursive: bool) -> Result<(), Error> {
        let path = path.to_owned();
        let operation = Operation::FileRemove { path, recursive };
        let deadline = Duration::from_millis(REMOVE_MS_MAX);
        self.request(operation, &[], deadline).await.map(drop)
    }

    async fn open_operation(&self, operation: Operation) -> Result<(Connection, Answer), Error> {
        let deadline = Duration::from_millis(RESPONSE_MS_MAX);
        self.request(operation, &[], deadline).await
    }
}
