//! The wire types of `/v1/…`: bills, reasons why a box is awake, resource usage, the network of a box, events, images, their
//! builds, and runtimes.
//!
//! Owns the JSON shapes and their conversions from the types of the layers below. Only `http` uses them.

mod builds;
mod doctor;
mod events;
mod images;
mod info;
mod net;
mod runs;
mod runtimes;
mod storage;
mod usage;
mod volumes;

pub use builds::*;
pub use doctor::*;
pub use events::*;
pub use images::*;
pub use info::*;
pub use net::*;
pub use runs::*;
pub use runtimes::*;
pub use storage::*;
pub use usage::*;
pub use volumes::*;
