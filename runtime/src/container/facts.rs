//! What is recorded about a container.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The facts recorded at create. They never change afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) pid: i32,
    /// Clock ticks since boot; with `boot_id` it tells this process from a later one of the same number.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
    /// Seconds since 1970, when it was created.
    pub(crate) created: u64,
    pub(crate) cgroup: String,
    /// The v1 controllers that were used.
    pub(crate) controllers: Vec<String>,
    pub(crate) annotations: BTreeMap<String, String>,
}
