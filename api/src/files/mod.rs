//! Operations on the files of a box that consist of several steps. The shim has the single operations.

mod upload;

pub use upload::{FILE_BYTES_MAX, Upload};
