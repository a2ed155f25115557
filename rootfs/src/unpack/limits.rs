//! Bounds of an archive.

/// Bounds of one layer. Beyond them it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive, and of all its files as they are on disk (a sparse file counts whole).
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of a path.
    pub path_bytes: usize,
    /// Depth of a path.
    pub depth: usize,
    /// Bytes of one extended header.
    pub header_bytes: u64,
    /// The archive may be at most this many times as large as its compressed form …
    pub ratio: u64,
    /// … once it has this many bytes.
    pub ratio_from: u64,
    /// Bytes that must stay free on the file system.
    pub free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 128 << 30,
            entries: 1_000_000,
            path_bytes: 4096,
            depth: 128,
            header_bytes: 1 << 20,
            ratio: 100,
            ratio_from: 64 << 20,
            free_bytes: 512 << 20,
        }
    }
}
