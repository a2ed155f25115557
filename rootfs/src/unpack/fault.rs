//! Why an archive could not be unpacked.

use std::io;

/// A failure while an archive is read or laid out. The caller adds the archive's name.
#[derive(Debug)]
pub(crate) struct Fault {
    /// The entry that was being handled, as it is written in the archive.
    pub(crate) entry: Option<String>,
    pub(crate) reason: Reason,
}

#[derive(Debug)]
pub(crate) enum Reason {
    /// The archive is not acceptable.
    Refused(String),
    /// This machine failed: its disk is full, or the like.
    Io(io::Error),
}

impl Fault {
    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self { entry: None, reason: Reason::Refused(reason.into()) }
    }

    /// Names the entry, unless a deeper call has.
    pub(crate) fn in_entry(mut self, path: &[u8]) -> Self {
        self.entry.get_or_insert_with(|| shown(path));
        self
    }

    /// A failure to read the archive: what it contains is to blame for some of them.
    pub(crate) fn reading(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::refused("the archive is truncated"),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Self::refused(error.to_string()),
            _ => Self { entry: None, reason: Reason::Io(error) },
        }
    }
}

/// Longest name that an error shows.
const SHOWN_BYTES_MAX: usize = 256;

/// A name out of an archive, for people.
pub(super) fn shown(name: &[u8]) -> String {
    match name.get(..SHOWN_BYTES_MAX) {
        Some(start) if start.len() < name.len() => format!("{}…", start.escape_ascii()),
        _ => name.escape_ascii().to_string(),
    }
}

/// A failed system call on the tree that is being filled.
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self { entry: None, reason: Reason::Io(error) }
    }
}

impl From<rustix::io::Errno> for Fault {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Ends a function with a refusal.
macro_rules! refuse {
    ($($text:tt)*) => { return Err(crate::unpack::fault::Fault::refused(format!($($text)*))) };
}
pub(crate) use refuse;
