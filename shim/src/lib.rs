//! The resident init of a container, the launcher that starts it, and the handle that the API uses.
//!
//! Owns: the control protocol ([`protocol`]), the resident init ([`init`]), the launcher's both ends ([`launch`] and
//! [`launcher`]), the asynchronous client ([`handle`]) and the translation of a box into the runtime's words
//! (`translate`, the only file where both vocabularies meet).
//!
//! Leaves out: namespaces, mounts and cgroup files (the runtime's), records, idle rules and HTTP (the API's).

mod control_path;
pub mod error;
#[cfg(feature = "handle")]
pub mod handle;
pub mod init;
pub mod launch;
pub mod launcher;
pub mod names;
mod processors;
#[cfg(feature = "handle")]
pub mod procfiles;
pub mod protocol;
pub mod sudo;
#[allow(unsafe_code)]
mod sys;
mod translate;

pub use error::{Error, ErrorKind, ExecFailure};
