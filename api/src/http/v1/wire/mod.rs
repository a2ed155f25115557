//! The wire types of `/v1/…`: bills, reasons why a box is awake, resource usage, the network of a box, events, images, and
//! runtimes.
//!
//! Owns the JSON shapes and their conversions from the types of the layers below. Only `http` uses them.

mod events;
mod images;
mod net;
mod runs;
mod runtimes;
mod storage;
mod usage;
mod volumes;

pub use events::*;
pub use images::*;
pub use net::*;
pub use runs::*;
pub use runtimes::*;
pub use storage::*;
pub use usage::*;
pub use volumes::*;
