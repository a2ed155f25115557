//! What a daemon is and has.

use icebox_rootfs::{Backing, DeviceReport};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::storage::{DevicesAnswer, backing_words};
use crate::boxes::ReadyCount;

/// Answer of `GET /v1/info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InfoAnswer {
    /// Version of Icebox.
    pub version: String,
    /// What new disks lie on, as in `GET /v1/storage`.
    pub backing: String,
    /// Why disks are copies; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The block devices for disks, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<DevicesAnswer>,
    /// Boxes that are started before a client asks for them, by entry of the configuration.
    pub ready: Vec<ReadyAnswer>,
}

/// The ready boxes of one entry of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadyAnswer {
    /// The runtime; absent for the base image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The size class.
    pub size: String,
    /// The number that is kept.
    pub wanted: u32,
    /// The number now.
    pub ready: u32,
}

impl InfoAnswer {
    /// The answer for these.
    #[must_use]
    pub fn new(backing: &Backing, devices: Option<DeviceReport>, ready: Vec<ReadyCount>) -> Self {
        let (backing, reason) = backing_words(backing, devices.as_ref());
        let shown = |one: ReadyCount| ReadyAnswer {
            runtime: one.runtime,
            size: one.size.as_str().to_owned(),
            wanted: one.wanted,
            ready: one.held,
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            backing: backing.to_owned(),
            reason: reason.map(str::to_owned),
            devices: devices.map(DevicesAnswer::from),
            ready: ready.into_iter().map(shown).collect(),
        }
    }
}
