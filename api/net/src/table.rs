//! The boxes with a network, by address. The proxies use it to identify a peer.
//!
//! Owns: the only mapping from a peer's address to a box. The firewall drops packets whose source is not the box's own
//! address, so an address on an interface with the prefix identifies the box.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::address::Pair;
use super::denial::{Denial, Denials};
use super::headers::HeaderRules;
use super::names::Names;
use super::policy::BoxPolicy;

/// Receives a refusal by a proxy or the firewall.
pub type OnDenial = Arc<dyn Fn(&BoxNet, Denial) + Send + Sync>;

/// A box, as its network sees it.
#[derive(Debug)]
pub struct BoxNet {
    /// Its id.
    pub id: String,
    /// The account that it belongs to; boxes of one account share what is limited for accounts.
    pub account: Arc<str>,
    /// Its addresses.
    pub pair: Pair,
    /// Its latest refusals.
    pub denials: Denials,
    /// The names that it has resolved, with their addresses.
    pub names: Names,
    /// Headers added to its outgoing requests; constant for the life of this entry.
    pub headers: Option<Arc<HeaderRules>>,
    policy: watch::Sender<Arc<BoxPolicy>>,
    gone: tokio_util::sync::CancellationToken,
}

impl BoxNet {
    /// A box without questions and refusals.
    #[must_use]
    pub fn new(id: &str, account: &str, pair: Pair, policy: BoxPolicy, headers: Option<Arc<HeaderRules>>) -> Self {
        Self {
            id: id.to_owned(),
            account: account.into(),
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

    /// Notifies of every policy change: a proxy then checks its connections again.
    #[must_use]
    pub(crate) fn policy_changes(&self) -> watch::Receiver<Arc<BoxPolicy>> {
        self.policy.subscribe()
    }

    /// Cancelled when the box has lost its network: proxies then stop their work for it.
    #[must_use]
    pub fn gone(&self) -> &tokio_util::sync::CancellationToken {
        &self.gone
    }

    /// Puts a policy in force for names; the firewall's follows.
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

    /// Adds a box with a network. A box that had its address is removed.
    pub fn insert(&self, box_: Arc<BoxNet>) {
        let mut boxes = self.boxes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = boxes.insert(box_.pair.guest(), box_) {
            old.gone.cancel();
        }
    }

    /// Removes a box that has no network any more.
    pub fn remove(&self, pair: Pair) {
        if let Some(old) = self.boxes.write().unwrap_or_else(PoisonError::into_inner).remove(&pair.guest()) {
            old.gone.cancel();
        }
    }
}
