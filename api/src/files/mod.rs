//! What is done with the files of a box beyond a single operation. The operations themselves are the shim's.

mod upload;

pub use upload::{FILE_BYTES_MAX, Upload};
