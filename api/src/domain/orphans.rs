//! What is left on the host without an owner.

/// Kinds of leftovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OrphanKind {
    /// A loop device with a disk that no box has.
    LoopDevice,
    /// A cgroup of no box, with all processes in it.
    Cgroup,
    /// A run directory of no box.
    RunDirectory,
    /// The disk of no box.
    Disk,
    /// A volume of files without a record.
    Volume,
    /// A snapshot file without a record.
    Snapshot,
    /// An unfinished copy or template.
    UnfinishedDisk,
    /// A box of a build that has ended.
    BuildBox,
    /// Files of a build that has ended.
    BuildFiles,
    /// An unfinished import of an image.
    UnfinishedImage,
    /// A layer that no image has.
    Layer,
    /// The layer between a removed image and its boxes.
    AdaptedLayer,
    /// Images that a data directory uses which is gone.
    Pins,
    /// Host uids reserved for a box that could not be made or removed.
    UidRange,
    /// Host uids of a data directory that is gone.
    UidBlock,
}

impl OrphanKind {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoopDevice => "loop device",
            Self::Cgroup => "cgroup",
            Self::RunDirectory => "run directory",
            Self::Disk => "disk",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::UnfinishedDisk => "unfinished disk",
            Self::BuildBox => "box of a build",
            Self::BuildFiles => "files of a build",
            Self::UnfinishedImage => "unfinished image",
            Self::Layer => "layer",
            Self::AdaptedLayer => "adapted layer",
            Self::Pins => "pins",
            Self::UidRange => "uid range",
            Self::UidBlock => "uid block",
        }
    }
}

/// Something without an owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Orphan {
    /// What it is.
    pub kind: OrphanKind,
    /// Its id, or its path.
    pub name: String,
    /// Bytes that it occupies, where they are known.
    pub bytes: Option<u64>,
}
