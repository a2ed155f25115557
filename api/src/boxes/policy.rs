//! Conversion of the policy that an owner requested into the one that the network enforces.

use crate::domain::{BoxSettings, NetworkPolicy};
use crate::refusal::Refusal;
use icebox_net::policy::{BoxPolicy, PolicyText};

/// The policy as the network enforces it, or its error.
pub fn check_policy(policy: &NetworkPolicy) -> Result<BoxPolicy, Refusal> {
    let text = PolicyText {
        mode: &policy.mode,
        allowed_domains: policy.allowed_domains.as_deref().unwrap_or_default(),
        allowed_cidrs: policy.allowed_cidrs.as_deref().unwrap_or_default(),
        denied_cidrs: policy.denied_cidrs.as_deref().unwrap_or_default(),
    };
    BoxPolicy::check(text).map_err(|wrong| Refusal::Invalid(format!("network_policy.{wrong}")))
}

/// The policy in force. A record without a policy, or with an unreadable one, allows nothing.
#[must_use]
pub fn policy_in_force(settings: &BoxSettings) -> BoxPolicy {
    settings.network_policy.as_ref().and_then(|policy| check_policy(policy).ok()).unwrap_or(BoxPolicy::DenyAll)
}
