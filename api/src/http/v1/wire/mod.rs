//! The wire types of `/v1/…`: bills, reasons why a box is awake, resource usage, and the network of a box.
//!
//! Owns the JSON shapes and their conversions from the types of the layers below. Only `http` uses them.

mod net;
mod runs;
mod usage;

pub use net::*;
pub use runs::*;
pub use usage::*;
