//! Boxes: their settings, their record, and their status.
//!
//! A record holds facts only. The kernel tells whether a box runs, sleeps or is dead.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::policy::NetworkPolicy;
use super::size::BoxSize;
use super::volumes::VolumeUse;

/// Identity of commits when the owner sets none: the one in the system-wide git configuration of the base image, which
/// users of the public clients expect.
const GIT_NAME_DEFAULT: &str = "Upstash Box";
const GIT_EMAIL_DEFAULT: &str = "box@upstash.com";

/// Status of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BoxStatus {
    /// In creation.
    Creating,
    /// Ready, without work.
    Idle,
    /// Work is in progress.
    Running,
    /// Asleep: costs no CPU; the next request wakes it.
    Paused,
    /// It has no processes: its init has ended, or the host was rebooted. The next request restarts it on its disk.
    Stopped,
    /// It cannot be used; its logs have the reason.
    Error,
    /// In deletion.
    Deleted,
}

impl BoxStatus {
    /// Its name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Error => "error",
            Self::Deleted => "deleted",
        }
    }
}

/// The settings requested by the owner. Stored as JSON: a new key needs a default, so that old records stay readable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BoxSettings {
    /// Size class.
    pub size: BoxSize,
    /// Size of its disk, if it has grown beyond that of the class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<u32>,
    /// True if it never sleeps.
    pub keep_alive: bool,
    /// True if it is deleted at the end of its lifetime.
    pub ephemeral: bool,
    /// Requested runtime.
    pub runtime: Option<String>,
    /// Command run at each start.
    pub init_command: Option<String>,
    /// Environment of every command: the account's at creation, overlaid by the box's own.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub labels: Vec<String>,
    /// Author name for git.
    pub git_user_name: Option<String>,
    /// Author address for git.
    pub git_user_email: Option<String>,
    /// Idle time of its own.
    pub idle_seconds: Option<u64>,
    /// The agent's harness. It is kept and shown; this version runs no agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The agent's model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The agent's program (`command`, `args`, `protocol`), for the harness `custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_runner: Option<serde_json::Value>,
    /// The owner's request to keep it awake, perhaps over by now: see [`BoxSettings::kept`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// Its disk is copied before each command, so that the command can be taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    /// The box that it was forked from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<String>,
    /// Volumes that it has beside its disk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeUse>,
    /// True if a step of a build runs in it. It ends with the build, and is removed at the start of the daemon.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub build: bool,
    /// Network policy. A record from before boxes had a network has none: the box may reach nothing.
    pub network_policy: Option<NetworkPolicy>,
}

/// How far a box can be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// Commands that can be taken back one after the other.
    pub steps: u32,
    /// Age up to which a command can be taken back.
    pub max_age_seconds: u64,
}

/// The disk of a box before a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoPoint {
    /// Id.
    pub id: String,
    /// The command that came after it.
    pub command: String,
    /// Unix milliseconds.
    pub taken_ms: i64,
    /// Bytes that it occupies.
    pub size_bytes: u64,
    /// Inode of its file.
    pub inode: u64,
    /// Bytes of its file.
    pub length: u64,
    /// Change time of its file: seconds, nanoseconds.
    pub changed: (i64, i64),
    /// Signature of [`UndoPoint::signed_text`].
    pub signature: Vec<u8>,
}

impl UndoPoint {
    /// All that the use of a point depends on.
    #[must_use]
    pub fn signed_text(&self, box_id: &str) -> Vec<u8> {
        let facts = (box_id, &self.id, &self.command, self.taken_ms, self.inode, self.length, self.changed);
        // Strings and integers can always be written as JSON.
        serde_json::to_vec(&facts).unwrap_or_default()
    }
}

/// A request to keep a box awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Unix milliseconds of its end; `None` until the owner ends it.
    pub until_ms: Option<i64>,
}

impl BoxSettings {
    /// Size of its disk.
    #[must_use]
    pub fn disk_gib(&self) -> u32 {
        self.disk_gib.unwrap_or(self.size.disk_gib())
    }

    /// The request to keep it awake that is in force at this time.
    #[must_use]
    pub fn kept(&self, now_ms: i64) -> Option<Keep> {
        self.keep.filter(|keep| keep.until_ms.is_none_or(|until_ms| now_ms < until_ms))
    }

    /// The requested policy; without one, nothing is allowed.
    #[must_use]
    pub fn shown_policy(&self) -> NetworkPolicy {
        self.network_policy.clone().unwrap_or_else(NetworkPolicy::deny_all)
    }

    /// The identity of commits that is in force.
    #[must_use]
    pub fn git_identity(&self) -> GitIdentity {
        GitIdentity {
            name: self.git_user_name.clone().unwrap_or_else(|| GIT_NAME_DEFAULT.to_owned()),
            email: self.git_user_email.clone().unwrap_or_else(|| GIT_EMAIL_DEFAULT.to_owned()),
        }
    }
}

/// Author of commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitIdentity {
    /// Name.
    pub name: String,
    /// Mail address.
    pub email: String,
}

/// State of a record. A box in creation has no record yet, only a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoxState {
    /// Usable.
    Ready,
    /// Its deletion has begun and will be finished.
    Deleting,
}

/// The process that is PID 1 of a box, and the cgroup it lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incarnation {
    /// Process id on the host.
    pub pid: i32,
    /// Its start time: with the pid and the boot id, unique for ever.
    pub start_time_ticks: u64,
    /// Boot of the kernel.
    pub boot_id: String,
    /// Inode of the cgroup: the generation of the CPU counter.
    pub cgroup_inode: u64,
}

/// A record.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxRecord {
    /// Id.
    pub id: String,
    /// Account it belongs to.
    pub account_id: String,
    /// Name, unique in the account.
    pub name: Option<String>,
    /// State of the record.
    pub state: BoxState,
    /// The requested settings.
    pub settings: BoxSettings,
    /// Id of its base image. A record from before boxes had one has none: it gets the daemon's at its next start.
    pub image: Option<String>,
    /// First of its 65536 host uids.
    pub uid_base: u32,
    /// Its address, if it has ever had a network.
    pub address: Option<Ipv4Addr>,
    /// The last process that was its PID 1.
    pub incarnation: Option<Incarnation>,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Unix milliseconds.
    pub updated_ms: i64,
    /// Unix milliseconds at which an ephemeral box is deleted.
    pub expires_ms: Option<i64>,
}

/// An id and a uid range reserved for a box in creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The id.
    pub box_id: String,
    /// First host uid.
    pub uid_base: u32,
}

/// The data of a deleted box that the bill needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedBox {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keep_ends_by_itself_and_is_stored() {
        let until = |until_ms| BoxSettings { keep: Some(Keep { until_ms }), ..BoxSettings::default() };
        assert_eq!(BoxSettings::default().kept(0), None);
        assert!(until(None).kept(i64::MAX).is_some());
        assert!(until(Some(100)).kept(99).is_some() && until(Some(100)).kept(100).is_none());
        let stored = serde_json::to_string(&until(Some(100))).expect("written");
        assert_eq!(serde_json::from_str::<BoxSettings>(&stored).expect("readable"), until(Some(100)));
    }

    /// The form in existing databases: it must stay readable, and is written the same way.
    #[test]
    fn settings_keep_their_stored_form() {
        let stored = r#"{"size":"medium","keep_alive":true,"ephemeral":false,"runtime":"node","init_command":"x","env":{"A":"1"},"labels":["l"],"git_user_name":null,"git_user_email":null,"idle_seconds":5,"network_policy":{"mode":"custom","allowed_domains":["a.b"]}}"#;
        let settings: BoxSettings = serde_json::from_str(stored).expect("readable");
        assert_eq!((settings.size, settings.idle_seconds), (BoxSize::Medium, Some(5)));
        assert_eq!(settings.shown_policy().allowed_domains.as_deref(), Some(&["a.b".to_owned()][..]));
        assert_eq!(serde_json::to_string(&settings).expect("written"), stored);
        let oldest: BoxSettings = serde_json::from_str("{}").expect("readable");
        assert_eq!((&oldest, oldest.shown_policy()), (&BoxSettings::default(), NetworkPolicy::deny_all()));
    }
}
