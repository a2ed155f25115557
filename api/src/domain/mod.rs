//! The terms of Icebox: boxes, runs, sizes, policies and log lines, as plain data with pure rules.
//!
//! Every layer above uses these types. They do not depend on HTTP, the database or the kernel. Some of them are stored
//! as JSON (the settings of a box), so their serialised form is part of the database: a new key needs a default, and no
//! key is renamed.
//!
//! Leaves out: the JSON of the API (`http::v1::wire`, `http::v2::wire`), which converts from and to these types.

mod boxes;
mod language;
mod logs;
mod policy;
mod runs;
pub mod runtimes;
mod schedules;
mod size;
mod snapshots;
mod volumes;

pub use boxes::{
    BoxRecord, BoxSettings, BoxState, BoxStatus, DeletedBox, GitIdentity, Incarnation, Keep, Reservation, Undo,
    UndoPoint,
};
pub use language::{Code, Language};
pub use logs::{LogEntry, LogLevel, LogSource};
pub use policy::NetworkPolicy;
pub use runs::RunState;
pub use schedules::{KeepRules, Schedule};
pub use size::BoxSize;
pub use snapshots::{Snapshot, SnapshotStatus};
pub use volumes::{Stored, VOLUMES_PER_BOX_MAX, Volume, VolumeRequest, VolumeState, VolumeUse, check_volumes};
