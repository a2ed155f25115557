//! Boxes and their configuration: create, describe, name, label.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain;

/// Size of a box. Fixed when it is created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BoxSize {
    /// 2 cores, 4 GiB of memory, 5 GiB of disk.
    #[default]
    Small,
    /// 4 cores, 8 GiB of memory, 10 GiB of disk.
    Medium,
    /// 8 cores, 16 GiB of memory, 20 GiB of disk.
    Large,
}

/// Status of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BoxStatus {
    /// In creation.
    Creating,
    /// Ready, without work.
    Idle,
    /// Work is in progress.
    Running,
    /// Asleep: costs no CPU; the next request wakes it.
    Paused,
    /// Without processes; the next request restarts it on its disk.
    Stopped,
    /// It cannot be used; its logs have the reason.
    Error,
    /// In deletion.
    Deleted,
}

/// The connections that a box may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkPolicy {
    /// `allow-all`, `deny-all` or `custom`.
    pub mode: String,
    /// Domains that may be reached (`custom`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_domains: Option<Vec<String>>,
    /// Address ranges that may be reached (`custom`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_cidrs: Option<Vec<String>>,
    /// Address ranges that may not be reached (`custom`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_cidrs: Option<Vec<String>>,
}

impl NetworkPolicy {
    /// No connections.
    #[must_use]
    pub fn deny_all() -> Self {
        domain::NetworkPolicy::deny_all().into()
    }
}

/// A box as the clients see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BoxData {
    /// Two words and a number, unique for ever.
    pub id: String,
    /// The name given by its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Current status.
    pub status: BoxStatus,
    /// Size class.
    pub size: BoxSize,
    /// The runtime that was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Labels, for filtering.
    pub labels: Vec<String>,
    /// Skills of the agent; always empty in this version.
    pub enabled_skills: Vec<String>,
    /// True if it never falls asleep when idle.
    pub keep_alive: bool,
    /// The connections it may make.
    pub network_policy: NetworkPolicy,
    /// The account it belongs to.
    pub customer_id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds of the last change of its configuration.
    pub updated_at: i64,
    /// Unix seconds of the last work.
    pub last_activity_at: i64,
    /// CPU time billed so far.
    pub total_cpu_ns: u64,
    /// Cost of that CPU time.
    pub total_compute_cost_usd: f64,
    /// Harness of its agent, if one was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Model of its agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// True if it is deleted at the end of its lifetime.
    pub ephemeral: bool,
    /// Unix seconds at which an ephemeral box is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    /// Seconds without work after which it falls asleep (our extension).
    pub idle_seconds: u64,
    /// Its owner keeps it awake (our extension); absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// A request to keep a box awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Kept {
    /// Unix milliseconds of its end; absent if it lasts until it is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

impl From<domain::Keep> for Kept {
    fn from(keep: domain::Keep) -> Self {
        Self { until_ms: keep.until_ms }
    }
}

/// A volume of a box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BoxVolume {
    /// Name of the volume.
    pub name: String,
    /// Absolute path in the box.
    pub path: String,
    /// The box can only read it.
    #[serde(default)]
    pub read_only: bool,
}

impl From<BoxVolume> for domain::VolumeRequest {
    fn from(BoxVolume { name, path, read_only }: BoxVolume) -> Self {
        Self { name, path, read_only }
    }
}

impl From<domain::VolumeUse> for BoxVolume {
    fn from(domain::VolumeUse { name, path, read_only, .. }: domain::VolumeUse) -> Self {
        Self { name, path, read_only }
    }
}

/// Body of `POST /v2/box`. Every key is optional.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CreateBox {
    /// A name, unique in the account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// At most five labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Size class, `small` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<BoxSize>,
    /// Never put it to sleep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<bool>,
    /// A shell command that runs in the background at each start of the box.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_command: Option<String>,
    /// `node` or `python`: both are in the one base image of this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Environment of every command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// Author name for git.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_user_name: Option<String>,
    /// Author address for git.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_user_email: Option<String>,
    /// Connections the box may make. Default: `allow-all` if boxes of this server have a network, else `deny-all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
    /// Delete the box automatically after `ttl` seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
    /// Life of an ephemeral box in seconds; 3 days at most and by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Seconds without work until it sleeps (our extension).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// Volumes of `/v1/volumes` that it has beside its disk, for life (our extension).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<BoxVolume>>,
    /// Model of the agent. It is kept and shown; this version runs no agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Harness of the agent. It is kept and shown; this version runs no agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Key of the agent's provider. It is kept sealed and never shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_api_key: Option<String>,
    /// Token for git's servers. It is kept sealed and never shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub github_token: Option<String>,
    /// Program of the agent, for the harness `custom`: `command`, `args`, `protocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub custom_runner: Option<serde_json::Value>,
    /// Not available in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub browser: Option<serde_json::Value>,
    /// Headers that are added to the box's outgoing HTTPS requests, by domain: `{"api.example.com": {"Authorization":
    /// "…"}}`. The box never sees them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub attach_headers: Option<serde_json::Value>,
    /// Not available in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub skills: Option<serde_json::Value>,
    /// Not available in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub mcp_servers: Option<serde_json::Value>,
}

/// Body of `DELETE /v2/box`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeleteBoxes {
    /// The boxes to delete; empty or missing is an error, never "all".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
}

/// Answer of `GET …/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusAnswer {
    /// Status of the box.
    pub status: BoxStatus,
}

/// Body and answer of `…/startup`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Startup {
    /// The shell command; empty if there is none.
    #[serde(default)]
    pub init_command: Option<String>,
}

/// Body of `POST …/config/labels`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddLabel {
    /// The label to add.
    pub label: String,
}

/// Answer of the label endpoints: the whole new set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Labels {
    /// All labels of the box.
    pub labels: Vec<String>,
}

/// Body of `PUT …/git-config` and `PUT …/config/git`; absent fields keep their value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GitConfigChange {
    /// New author name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_user_name: Option<String>,
    /// New author address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git_user_email: Option<String>,
}

/// The values in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitConfig {
    /// Author name.
    pub git_user_name: String,
    /// Author address.
    pub git_user_email: String,
}

/// Body of `PUT /v2/box/settings/env`, and its answer with masked values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnvVars {
    /// Name and value.
    #[serde(default)]
    pub env_vars: BTreeMap<String, String>,
}

/// Body of `PUT /v2/box/settings/env/{key}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnvValue {
    /// The value.
    pub value: String,
}

impl From<domain::BoxSize> for BoxSize {
    fn from(size: domain::BoxSize) -> Self {
        match size {
            domain::BoxSize::Small => Self::Small,
            domain::BoxSize::Medium => Self::Medium,
            domain::BoxSize::Large => Self::Large,
        }
    }
}

impl From<BoxSize> for domain::BoxSize {
    fn from(size: BoxSize) -> Self {
        match size {
            BoxSize::Small => Self::Small,
            BoxSize::Medium => Self::Medium,
            BoxSize::Large => Self::Large,
        }
    }
}

impl From<domain::BoxStatus> for BoxStatus {
    fn from(status: domain::BoxStatus) -> Self {
        match status {
            domain::BoxStatus::Creating => Self::Creating,
            domain::BoxStatus::Idle => Self::Idle,
            domain::BoxStatus::Running => Self::Running,
            domain::BoxStatus::Paused => Self::Paused,
            domain::BoxStatus::Stopped => Self::Stopped,
            domain::BoxStatus::Error => Self::Error,
            domain::BoxStatus::Deleted => Self::Deleted,
        }
    }
}

impl From<domain::NetworkPolicy> for NetworkPolicy {
    fn from(policy: domain::NetworkPolicy) -> Self {
        let domain::NetworkPolicy { mode, allowed_domains, allowed_cidrs, denied_cidrs } = policy;
        Self { mode, allowed_domains, allowed_cidrs, denied_cidrs }
    }
}

impl From<NetworkPolicy> for domain::NetworkPolicy {
    fn from(policy: NetworkPolicy) -> Self {
        let NetworkPolicy { mode, allowed_domains, allowed_cidrs, denied_cidrs } = policy;
        Self { mode, allowed_domains, allowed_cidrs, denied_cidrs }
    }
}

impl From<domain::GitIdentity> for GitConfig {
    fn from(identity: domain::GitIdentity) -> Self {
        Self { git_user_name: identity.name, git_user_email: identity.email }
    }
}
