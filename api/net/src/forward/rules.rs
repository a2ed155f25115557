//! What a proxy is given: the rules of its box, and the callback for refusals.

use std::sync::Arc;

use crate::cidr::Cidr;
use crate::denial::Denial;
use crate::policy::{BoxPolicy, DomainPattern};

/// What a box may reach through its proxy.
#[derive(Debug, Clone)]
pub struct ForwardRules {
    /// The box's policy.
    pub policy: BoxPolicy,
    /// The pool of box addresses, which is closed.
    pub pool: Cidr,
    /// Hosts that may have an address in a closed network: the operator's own mirrors.
    pub private_hosts: Vec<DomainPattern>,
}

/// A callback for refusals.
pub type OnForwardRefusal = Arc<dyn Fn(Denial) + Send + Sync>;
