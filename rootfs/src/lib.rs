//! Root file systems and block volumes of boxes.
//!
//! Owns: volume images (one sparse ext4 image per box, cloned from a formatted template), their loop devices, the pool
//! they lie in, copies of volumes at one point in time, the read-only layers below a box (the Debian base image and the
//! tools layer), and the store of images with its unpacker.
//! Invariants: an id never becomes more than one path component; a volume is attached at most once at a time; what is
//! found under its final name is complete; bytes that a tenant supplied are never mounted.
//! Leaves out: mounting anything but the pool (the box's launcher does it in its own mount namespace), namespaces of any kind, and every
//! decision about who gets a volume and when it is durable.

mod block;
mod check;
mod clone;
mod data;
mod device;
mod digest;
mod error;
mod files;
mod fit;
mod grow;
mod id;
pub mod image;
pub mod images;
mod loops;
mod mount;
pub mod oci;
mod orphans;
pub mod pack;
mod pool;
pub mod portable;
mod snapshot;
mod source;
mod sparse;
mod store;
#[allow(unsafe_code)]
mod sys;
mod template;
mod tool;
mod undo;
pub mod unpack;
mod usage;
mod verified;
mod volume;
mod workspace;

pub use block::{BlockSettings, BlockSource, DeviceReport, Refused};
pub use check::{Check, Checked};
pub use clone::CloneMethod;
pub use data::AttachedData;
pub use error::{Cause, Error, ErrorKind, Result, Step};
pub use grow::Grown;
pub use id::VOLUME_ID_BYTES_MAX;
pub use loops::Attached;
pub use orphans::{Stray, StrayKind};
pub use pool::{Backing, Bytes, PoolSettings};
pub use snapshot::{Content, Copy, Kept, Replacement};
pub use source::Source;
pub use store::{Store, VOLUME_SIZE_GIB_MAX};
pub use template::DATA_DIRECTORY;
pub use undo::{Point, PointState};
pub use usage::{Taken, Usage};
pub use volume::Volume;
