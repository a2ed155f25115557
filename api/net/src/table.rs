//! The boxes that have a network, by their address: what the proxies ask when something arrives from one.
//!
//! Owns: the one place where a peer's address becomes a box. The firewall lets nothing pass whose source is not the box's
//! own address, so an address on an interface of the prefix is as good as a name.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::address::Pair;
use super::denial::{Denial, Denials};
use super::headers::HeaderRules;
use super::names::Names;
use super::policy::BoxPolicy;

/// Takes a refusal by one of the proxies or the firewall.
pub type OnDenial = Arc<dyn Fn(&BoxNet, Denial) + Send + Sync>;

/// A box as its network sees it.
#[derive(Debug)]
pub struct BoxNet {
    /// Its id.
    pub id: String,
    /// Its addresses.
    pub pair: Pair,
    /// What it was refused lately.
    pub denials: Denials,
    /// What the names it has asked for stand for.
    pub names: Names,
    /// Headers that its requests get on their way out; fixed when it was made.
    pub headers: Option<Arc<HeaderRules>>,
    policy: watch::Sender<Arc<BoxPolicy>>,
    gone: tokio_util::sync::CancellationToken,
}

impl BoxNet {
    /// A box with nothing asked and nothing refused yet.
    #[must_use]
    pub fn new(id: &str, pair: Pair, policy: BoxPolicy, headers: Option<Arc<HeaderRules>>) -> Self {
        Self {
            id: id.to_owned(),
            pair,
            denials: Denials::default(),
            names: Names::default(),
            headers,
            policy: watch::Sender::new(Arc::new(policy)),
            gone: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Arc<BoxPolicy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Tells of every change of the policy: who passes something on for the box looks again whether he may.
    #[must_use]
    pub fn policy_changes(&self) -> watch::Receiver<Arc<BoxPolicy>> {
        self.policy.subscribe()
    }

    /// Cancelled when the box has lost its network: whoever passes something on for it stops.
    #[must_use]
    pub fn gone(&self) -> &tokio_util::sync::CancellationToken {
        &self.gone
    }

    /// Puts a policy in force for names; the firewall's comes after it.
    pub fn set_policy(&self, policy: BoxPolicy) {
        self.policy.send_replace(Arc::new(policy));
    }
}

/// All boxes with a network.
#[derive(Debug, Default)]
pub struct NetTable {
    boxes: RwLock<HashMap<Ipv4Addr, Arc<BoxNet>>>,
}

impl NetTable {
    /// The box that has this address.
    #[must_use]
    pub fn at(&self, address: Ipv4Addr) -> Option<Arc<BoxNet>> {
        self.boxes.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    /// Every box.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<BoxNet>> {
        self.boxes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A box has a network; one that had its address has none any more.
    pub fn insert(&self, box_: Arc<BoxNet>) {
        let mut boxes = self.boxes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = boxes.insert(box_.pair.guest(), box_) {
            old.gone.cancel();
        }
    }

    /// A box has no network any more.
    pub fn remove(&self, pair: Pair) {
        if let Some(old) = self.boxes.write().unwrap_or_else(PoisonError::into_inner).remove(&pair.guest()) {
            old.gone.cancel();
        }
    }
}
