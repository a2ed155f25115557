//! The one error of this crate: which step, on what subject, and the cause beneath it.
//!
//! `Display` names step and subject only; the cause is the `source()`, so a printer that walks the chain repeats
//! nothing. Callers that must choose an answer (an HTTP status, a retry) ask [`Error::kind`].

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitStatus;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Opening a data directory for this process alone.
    OpenStore,
    /// Opening the pool of a data directory.
    OpenPool,
    /// Making a pool.
    MakePool,
    /// Adjusting a pool to the space around it.
    BalancePool,
    /// Opening the block devices that disks lie on.
    OpenDevices,
    /// Calling the program that hands out block devices.
    CallProgram,
    /// Taking a block device for a disk.
    TakeDevice,
    /// Overwriting a block device that was a disk.
    WipeDevice,
    /// Reading what a block device contains.
    ProbeDevice,
    /// Checking the id of a volume.
    CheckId,
    /// Checking the size asked for.
    CheckSize,
    /// Making the formatted template of one size.
    MakeTemplate,
    /// Checking a template against the checksum taken when it was made.
    VerifyTemplate,
    /// Cloning a template into a new volume.
    CloneVolume,
    /// Finding or listing volumes.
    FindVolume,
    /// Reading how much a volume occupies.
    MeasureVolume,
    /// Making a volume durable.
    SyncVolume,
    /// Removing a volume.
    RemoveVolume,
    /// Waiting for the one attachment that a volume may have.
    LockVolume,
    /// Attaching a volume to a loop device.
    AttachLoop,
    /// Checking the file system of a volume.
    CheckVolume,
    /// Growing a volume.
    GrowVolume,
    /// Writing out what is dirty in the file system of an attached volume.
    FlushVolume,
    /// Copying the content of a volume.
    CopyVolume,
    /// Putting a copy in the place of a volume.
    ReplaceVolume,
    /// Changing the size of the file system in a copy.
    ResizeCopy,
    /// Finding or listing snapshots.
    FindSnapshot,
    /// Making a snapshot durable and putting it under its final name.
    PublishSnapshot,
    /// Comparing the content of a snapshot with its digest.
    VerifySnapshot,
    /// Removing a snapshot.
    RemoveSnapshot,
    /// Finding the machine's package mirror.
    FindMirror,
    /// Finding or reading a base image.
    FindImage,
    /// Waiting for another build in the same image directory.
    LockImages,
    /// Removing the leftovers of an interrupted build.
    SweepImages,
    /// Running debootstrap.
    Debootstrap,
    /// Changing a fresh base image into ours.
    FinishImage,
    /// Making a base image durable and putting it under its final name.
    PublishImage,
    /// Making the layer with our own tools.
    ToolsLayer,
    /// Reading the name of an image.
    ReadReference,
    /// Reading an archive or a layout with images.
    ReadArchive,
    /// Unpacking a layer.
    UnpackLayer,
    /// Entering an image into the store.
    StoreImage,
    /// Removing an image or a name from the store.
    RemoveImage,
    /// Writing an image out of the store.
    ExportImage,
    /// Making the layer that turns an image into the root of a box.
    AdaptImage,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::OpenStore => "open the data directory",
            Step::OpenPool => "open the pool of volumes",
            Step::MakePool => "make the pool of volumes",
            Step::BalancePool => "adjust the pool of volumes to the disk",
            Step::OpenDevices => "open the block devices of disks",
            Step::CallProgram => "call the program that hands out devices",
            Step::TakeDevice => "take a block device",
            Step::WipeDevice => "wipe the block device",
            Step::ProbeDevice => "find what is on the device",
            Step::CheckId => "check the volume id",
            Step::CheckSize => "check the volume size",
            Step::MakeTemplate => "make the volume template",
            Step::VerifyTemplate => "verify the volume template",
            Step::CloneVolume => "clone the volume template",
            Step::FindVolume => "find the volume",
            Step::MeasureVolume => "measure the volume",
            Step::SyncVolume => "make the volume durable",
            Step::RemoveVolume => "remove the volume",
            Step::LockVolume => "lock the volume",
            Step::AttachLoop => "attach a loop device to the volume",
            Step::CheckVolume => "check the file system of the volume",
            Step::GrowVolume => "grow the volume",
            Step::FlushVolume => "flush the file system of the volume",
            Step::CopyVolume => "copy the content of the volume",
            Step::ReplaceVolume => "replace the volume",
            Step::ResizeCopy => "change the size of the copied file system",
            Step::FindSnapshot => "find the snapshot",
            Step::PublishSnapshot => "keep the snapshot",
            Step::VerifySnapshot => "verify the snapshot",
            Step::RemoveSnapshot => "remove the snapshot",
            Step::FindMirror => "find the package mirror of this machine",
            Step::FindImage => "find the base image",
            Step::LockImages => "lock the image directory",
            Step::SweepImages => "remove an interrupted image build",
            Step::Debootstrap => "run debootstrap",
            Step::FinishImage => "finish the base image",
            Step::PublishImage => "publish the base image",
            Step::ToolsLayer => "make the tools layer",
            Step::ReadReference => "read the image reference",
            Step::ReadArchive => "read the image",
            Step::UnpackLayer => "unpack the layer",
            Step::StoreImage => "store the image",
            Step::RemoveImage => "remove the image",
            Step::ExportImage => "export the image",
            Step::AdaptImage => "prepare the image for boxes",
        })
    }
}

/// Why a step failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// XFS has shut the pool down.
    PoolDown,
    /// A system call failed.
    Io(io::Error),
    /// A program that this crate ran failed.
    Tool {
        /// The program.
        program: String,
        /// Its exit status.
        status: ExitStatus,
        /// The end of its output.
        output_tail: String,
    },
    /// A file of ours could not be read as JSON.
    Json(serde_json::Error),
    /// The value is not acceptable; the text names the acceptable values.
    Invalid(&'static str),
    /// Another process holds the data directory.
    StoreLocked {
        /// Its process id as it wrote it into the lock file.
        pid: Option<u32>,
    },
    /// Another process holds the file of the pool, and no loop device has it.
    PoolHeld,
    /// A block device has content that is not ours.
    Foreign {
        /// What is on it.
        found: String,
    },
    /// No block device is free for a disk.
    NoDevice {
        /// The size of the disk; unknown if the operator's program refuses.
        gib: Option<u32>,
    },
    /// The block device of a disk cannot become as large.
    FixedSize {
        /// Its size.
        bytes: u64,
    },
    /// The volume is attached already.
    InUse,
    /// The kernel has no free loop device.
    NoLoopDevice,
    /// A volume of that name exists.
    Exists,
    /// The checksum differs from the one taken when the file was made.
    Corrupt,
    /// The machine lacks a requirement; the text names it and how to get it.
    Missing(&'static str),
    /// The volume was written to while it was copied, again and again.
    Written,
    /// What the file system holds does not fit the size asked for.
    TooSmall,
    /// What was handed in is not acceptable; the text says what and why.
    Refused(String),
    /// No such thing; the text names it.
    NotFound(String),
    /// The image is in use; the text says by what.
    ImageInUse(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Io(error) => error.fmt(f),
            Cause::Json(error) => error.fmt(f),
            Cause::Tool { program, status, output_tail } => {
                write!(f, "{program} ended with {status}")?;
                if !output_tail.is_empty() {
                    write!(f, ": {}", output_tail.trim_end())?;
                }
                Ok(())
            }
            Cause::Invalid(what) | Cause::Missing(what) => f.write_str(what),
            Cause::Refused(what) | Cause::NotFound(what) | Cause::ImageInUse(what) => f.write_str(what),
            Cause::StoreLocked { pid } => {
                f.write_str("another iceboxd ")?;
                if let Some(pid) = pid {
                    write!(f, "(pid {pid}) ")?;
                }
                f.write_str("uses this data directory; stop it, or give this one a --data-dir of its own")
            }
            Cause::PoolDown => f.write_str(
                "the file system of the pool has shut down after an I/O error; find out why (dmesg), stop iceboxd and all boxes, and \
                 start iceboxd again",
            ),
            Cause::PoolHeld => f.write_str("a process that is not iceboxd keeps the file locked; end it"),
            Cause::Foreign { found } => {
                write!(f, "it has {found}, which is not Icebox's; empty it (wipefs -a), or allow formatting by `force`")
            }
            Cause::NoDevice { gib } => {
                f.write_str("this host has no free block device for ")?;
                match gib {
                    Some(gib) => write!(f, "a disk of {gib} GiB")?,
                    None => f.write_str("the disk")?,
                }
                f.write_str("; delete boxes, or ask the operator for more devices")
            }
            Cause::FixedSize { bytes } => write!(
                f,
                "the device of the disk has {:.1} GiB and cannot grow; fork the box or make a snapshot, and start a larger box from it",
                *bytes as f64 / f64::from(1 << 30)
            ),
            Cause::InUse => f.write_str("it is still attached to a loop device; a box that uses it must end first"),
            Cause::NoLoopDevice => {
                f.write_str("no loop device is free; delete boxes, or raise the kernel's max_loop (and load the loop module)")
            }
            Cause::Exists => f.write_str("it exists already"),
            Cause::Corrupt => f.write_str(
                "its content is not what was written when it was made; find out why, then remove it (a template is made again)",
            ),
            Cause::Written => f.write_str("it was written to while it was copied"),
            Cause::TooSmall => f.write_str("the files in it do not fit into the size asked for"),
        }
    }
}

impl std::error::Error for Cause {}

/// The classes of failure that a caller may distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file system of the pool has shut down; it is usable again after a restart of everything that has it.
    PoolDown,
    /// An argument is not acceptable.
    InvalidInput,
    /// No such volume, template or image.
    NotFound,
    /// The volume exists already.
    AlreadyExists,
    /// The host's file system is full or over its quota.
    NoSpace,
    /// No loop device is free; later it may be.
    NoLoopDevice,
    /// No block device is free; later it may be.
    NoDevice,
    /// The block device of a disk cannot grow.
    FixedSize,
    /// The volume is attached already.
    InUse,
    /// Another process holds the data directory.
    Locked,
    /// Content changed that must not change.
    Corrupt,
    /// Something the machine must have is missing.
    Missing,
    /// The size asked for does not hold what is there.
    TooSmall,
    /// Anything else.
    Internal,
}

/// A failed step, its subject (a path or an id) and its cause.
#[derive(Debug)]
pub struct Error {
    step: Step,
    subject: String,
    cause: Cause,
}

impl Error {
    pub(crate) fn new(step: Step, subject: impl Into<String>, cause: Cause) -> Self {
        Error { step, subject: subject.into(), cause }
    }

    /// The step that failed.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The path or id it failed on.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Why it failed.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        match &self.cause {
            Cause::Io(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
                _ => ErrorKind::Internal,
            },
            Cause::Tool { .. } | Cause::Json(_) | Cause::Written => ErrorKind::Internal,
            Cause::TooSmall => ErrorKind::TooSmall,
            Cause::Invalid(_) | Cause::Refused(_) => ErrorKind::InvalidInput,
            Cause::NotFound(_) => ErrorKind::NotFound,
            Cause::StoreLocked { .. } => ErrorKind::Locked,
            Cause::InUse | Cause::PoolHeld | Cause::ImageInUse(_) => ErrorKind::InUse,
            Cause::Foreign { .. } => ErrorKind::AlreadyExists,
            Cause::NoDevice { .. } => ErrorKind::NoDevice,
            Cause::FixedSize { .. } => ErrorKind::FixedSize,
            Cause::NoLoopDevice => ErrorKind::NoLoopDevice,
            Cause::PoolDown => ErrorKind::PoolDown,
            Cause::Exists => ErrorKind::AlreadyExists,
            Cause::Corrupt => ErrorKind::Corrupt,
            Cause::Missing(_) => ErrorKind::Missing,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.subject)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Turns the result of a system call into ours by naming the step and the path.
pub(crate) trait At<T> {
    fn at(self, step: Step, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step, path: &Path) -> Result<T> {
        self.map_err(|error| Error::new(step, path.display().to_string(), Cause::Io(error.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn display_does_not_repeat_the_source() {
        let error = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOSPC))
            .at(Step::CloneVolume, Path::new("/data/volumes/a.img"))
            .unwrap_err();
        assert_eq!(error.to_string(), "clone the volume template: /data/volumes/a.img");
        assert!(error.source().unwrap().to_string().contains("No space left"));
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn a_locked_store_says_what_to_do() {
        let text = Cause::StoreLocked { pid: Some(7) }.to_string();
        assert!(text.contains("pid 7") && text.contains("--data-dir"), "{text}");
    }
}
