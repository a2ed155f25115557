//! The connections that a box may make, as requested by its owner and stored.
//!
//! Leaves out: the meaning and the validity of the entries (`net::policy`).

use serde::{Deserialize, Serialize};

/// A network policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Everything but the addresses that no box may reach.
    #[must_use]
    pub fn allow_all() -> Self {
        Self { mode: "allow-all".into(), ..Self::deny_all() }
    }

    /// No connections.
    #[must_use]
    pub fn deny_all() -> Self {
        Self { mode: "deny-all".into(), allowed_domains: None, allowed_cidrs: None, denied_cidrs: None }
    }
}
