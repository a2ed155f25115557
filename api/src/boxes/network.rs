//! The network of a box during its life.
//!
//! Owns: when a box gets its addresses, is connected and disconnected. A box has its addresses from its creation to its
//! deletion; it is connected while it has processes, frozen or not.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock, Weak};

use super::{Boxes, Entry, Inner, NewBox, check_policy};
use crate::db::{AGENT_API_KEY, GITHUB_TOKEN, HEADERS};
use crate::domain::{BoxRecord, NetworkPolicy};
use crate::error::Error;
use crate::events::Fact;
use crate::refusal::Refusal;
use icebox_net::address::Pair;
use icebox_net::headers::HeaderRules;
use icebox_net::nflog::{Events, Refused};
use icebox_net::policy::BoxPolicy;
use icebox_net::{Network, OnRefusal, Report, Rights};

/// File in the run directory of a sleeping box: the bytes on its network when it fell asleep.
const TRAFFIC_FILE: &str = "traffic";

/// Id under which an account's headers are sealed. No box has such an id.
fn of_account(id: &str) -> String {
    format!("account/{id}")
}

/// Publishes the refusals of boxes' networks. The network starts before the table of boxes: until [`Denials::belong_to`]
/// is called no box is connected, and none is refused anything.
#[derive(Debug, Clone, Default)]
pub struct Denials(Arc<OnceLock<Weak<Inner>>>);

impl Denials {
    /// The callback of the network.
    #[must_use]
    pub fn callback(&self) -> OnRefusal {
        let of = self.clone();
        Box::new(move |id, text| {
            let Some(inner) = of.0.get().and_then(Weak::upgrade) else { return };
            let boxes = Boxes { inner };
            if let Some(entry) = boxes.entry(id) {
                boxes.publish(&entry, Fact::Denied { text });
            }
        })
    }

    /// Sets the boxes that the ids of refusals mean.
    pub fn belong_to(&self, boxes: &Boxes) {
        // Called once, by the start of the daemon.
        let _ = self.0.set(Arc::downgrade(&boxes.inner));
    }
}

impl Boxes {
    /// True if boxes have a network here.
    #[must_use]
    pub fn has_network(&self) -> bool {
        self.inner.network.is_some()
    }

    /// Addresses for a new box; none where boxes have no network.
    pub(super) fn assign_addresses(&self, id: &str) -> Result<Option<Pair>, Error> {
        Ok(self.inner.network.as_ref().map(|network| network.assign(id)).transpose()?)
    }

    /// The addresses in the record of a box, if they are still available.
    pub(super) fn claim_addresses(&self, record: &BoxRecord) -> Option<Pair> {
        let network = self.inner.network.as_ref()?;
        match network.claim(&record.id, record.address?) {
            Ok(pair) => Some(pair),
            Err(error) => {
                let reason = error.chain();
                tracing::warn!(
                    box_id = record.id,
                    reason,
                    "a box cannot keep its address; it gets another when it starts"
                );
                None
            }
        }
    }

    /// The addresses of a box that is about to restart.
    pub(super) fn addresses_for_restart(&self, entry: &Arc<Entry>) -> Result<Option<Pair>, Error> {
        let pair = self.assign_addresses(&entry.id)?;
        entry.change_view(|view| view.pair = pair);
        Ok(pair)
    }

    /// Connects a box that has just started.
    pub(super) async fn connect(&self, id: &str, pair: Option<Pair>, pid: i32, rights: Rights) -> Result<(), Refusal> {
        let (Some(network), Some(pair)) = (&self.inner.network, pair) else { return Ok(()) };
        Ok(network.attach(id, pair, pid, rights).await?)
    }

    /// Connects a box that has outlived the daemon. If that fails, the box runs without a network. Returns true if
    /// packets arrived for it while it slept and no daemon was running: the box must be woken.
    pub(crate) async fn reconnect(&self, entry: &Arc<Entry>) -> bool {
        let view = entry.view();
        let (Some(pair), Some(init)) = (view.pair, view.incarnation) else { return false };
        if let Err(refusal) = self.connect(&entry.id, Some(pair), init.pid, entry.rights()).await {
            let reason = refusal.chain();
            tracing::error!(box_id = entry.id, reason, "a box cannot be connected; it goes on without a network");
            self.publish(entry, Fact::NetworkLost { reason });
            return false;
        }
        entry.frozen() && self.watch_again(entry).await
    }

    /// The headers of a box, sealed for its record.
    pub(super) fn seal_headers(&self, entry: &Entry) -> Result<Option<Vec<u8>>, Error> {
        let (Some(network), Some(headers)) = (&self.inner.network, entry.view().headers) else { return Ok(None) };
        Ok(Some(network.seal_headers(&entry.id, &headers)?))
    }

    /// The secrets of a new box, sealed for its record. A box without a network cannot use them and keeps none.
    pub(super) fn seal_secrets(&self, id: &str, wanted: &NewBox) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
        let Some(network) = &self.inner.network else { return Ok(Vec::new()) };
        let secrets = [(GITHUB_TOKEN, &wanted.github_token), (AGENT_API_KEY, &wanted.agent_api_key)];
        let given = secrets.into_iter().filter_map(|(kind, secret)| Some((kind, secret.as_ref()?)));
        given
            .map(|(kind, secret)| Ok((kind, network.seal_secret(&format!("{kind}/{id}"), secret.0.as_bytes())?)))
            .collect()
    }

    /// The headers of a box, from its record.
    pub(super) async fn open_headers(&self, id: &str) -> Result<Option<Arc<HeaderRules>>, Error> {
        let Some(network) = &self.inner.network else { return Ok(None) };
        let sealed = self.inner.db.sealed_secret(id, HEADERS).await?;
        Ok(sealed.map(|sealed| network.open_headers(id, &sealed).map(Arc::new)).transpose()?)
    }

    /// The headers that an account gives to its new boxes, from the database.
    pub(crate) fn open_account_headers(
        &self,
        account: &str,
        sealed: Option<&[u8]>,
    ) -> Result<Option<HeaderRules>, Error> {
        let Some(network) = &self.inner.network else { return Ok(None) };
        Ok(sealed.map(|sealed| network.open_headers(&of_account(account), sealed)).transpose()?)
    }

    /// Sets them, for boxes that are created from now on.
    pub async fn set_account_headers(&self, account: &str, headers: Option<HeaderRules>) -> Result<(), Error> {
        let seal = |network: &Network| {
            headers.as_ref().map(|headers| network.seal_headers(&of_account(account), headers)).transpose()
        };
        let sealed = self.inner.network.as_ref().map(seal).transpose()?.flatten();
        self.inner.db.set_account_headers(account, sealed).await
    }

    /// The certificate that a box with headers must trust.
    #[must_use]
    pub fn certificate_for(&self, entry: &Entry) -> Option<String> {
        entry.view().headers.and(self.inner.network.as_ref()).map(icebox_net::Network::certificate_pem)
    }

    /// Enables waking by packets for this box. Must precede its freeze.
    pub(super) async fn watch_arrivals(&self, entry: &Entry) -> Result<(), Error> {
        match (&self.inner.network, entry.view().pair) {
            (Some(network), Some(pair)) if network.find(&entry.id).is_some() => {
                Ok(network.set_frozen(pair, true).await?)
            }
            _ => Ok(()),
        }
    }

    /// Records the byte counters at the time the box fell asleep, for a later daemon. Stored in the run directory: the
    /// record need not outlive the box's processes.
    pub(super) async fn note_traffic(&self, entry: &Arc<Entry>) {
        self.look_at_traffic(entry).await;
        if let Some(bytes) = entry.activity.traffic() {
            let path = self.run_dir(&entry.id).join(TRAFFIC_FILE);
            if let Err(cause) = std::fs::write(&path, bytes.to_string()) {
                tracing::warn!(path = %path.display(), %cause, "cannot note the traffic of a box");
            }
        }
    }

    /// Enables waking for a box that has slept since before this daemon started. Returns true if packets arrived
    /// meanwhile, for which no event was sent.
    async fn watch_again(&self, entry: &Arc<Entry>) -> bool {
        if let Err(error) = self.watch_arrivals(entry).await {
            tracing::error!(box_id = entry.id, error = error.chain(), "packets will not wake a box");
        }
        let noted = std::fs::read_to_string(self.run_dir(&entry.id).join(TRAFFIC_FILE)).ok();
        let Some(noted) = noted.and_then(|text| text.parse::<u64>().ok()) else { return false };
        self.look_at_traffic(entry).await;
        entry.activity.traffic().is_some_and(|bytes| bytes != noted)
    }

    /// The opposite of [`Boxes::watch_arrivals`], for a box that is awake.
    pub(super) async fn end_watch_of_arrivals(&self, entry: &Entry) {
        let (Some(network), Some(pair)) = (&self.inner.network, entry.view().pair) else { return };
        if network.find(&entry.id).is_none() {
            return;
        }
        if let Err(error) = network.set_frozen(pair, false).await {
            // Its packets cause useless events until it sleeps the next time.
            tracing::warn!(box_id = entry.id, error = error.chain(), "cannot end the watch over a box's network");
        }
    }

    /// True if there was traffic on the network of the box since the last check.
    pub(super) async fn look_at_traffic(&self, entry: &Arc<Entry>) -> bool {
        self.look_at_traffic_of(std::slice::from_ref(entry)).await > 0
    }

    /// Records the traffic of these boxes; returns how many of them had any.
    pub(super) async fn look_at_traffic_of(&self, entries: &[Arc<Entry>]) -> usize {
        let Some(network) = &self.inner.network else { return 0 };
        let pairs = entries.iter().filter_map(|entry| entry.pair()).collect();
        let counted = match network.traffic(pairs).await {
            Ok(counted) => counted,
            Err(error) => {
                tracing::warn!(error = error.chain(), "cannot read the traffic of boxes");
                return 0;
            }
        };
        let saw = |entry: &&Arc<Entry>| {
            let bytes = entry.pair().and_then(|pair| counted.get(&pair.guest()));
            bytes.is_some_and(|bytes| entry.activity.saw_traffic(*bytes))
        };
        entries.iter().filter(saw).count()
    }

    /// Disconnects a box without processes.
    pub(super) async fn disconnect(&self, id: &str) {
        let Some(network) = &self.inner.network else { return };
        if let Err(error) = network.detach(id).await {
            // Its link ended with its processes; the remains are closed now and swept at the next start.
            tracing::error!(box_id = id, error = error.chain(), "something of a box's network is left");
        }
    }

    /// The events of the network. Only the first caller gets them.
    pub(crate) fn network_events(&self) -> Option<Events> {
        self.inner.network.as_ref().and_then(Network::events)
    }

    /// Records packets that the firewall has refused.
    pub(crate) fn note_network_refusal(&self, refused: &Refused) {
        if let Some(network) = &self.inner.network {
            network.note_refusal(refused);
        }
    }

    /// The box that is connected at this address.
    pub(crate) fn box_at(&self, guest: Ipv4Addr) -> Option<Arc<Entry>> {
        self.inner.network.as_ref()?.box_at(guest).and_then(|id| self.entry(&id))
    }

    /// Disconnects a box that is being deleted, and releases its addresses.
    pub(super) async fn give_up_network(&self, id: &str) -> Result<(), Error> {
        let Some(network) = &self.inner.network else { return Ok(()) };
        network.detach(id).await?;
        network.release(id);
        Ok(())
    }

    /// Removes the leftover links of deleted boxes before the daemon stops.
    pub(super) async fn close_network(&self) {
        let Some(network) = &self.inner.network else { return };
        if let Err(error) = network.close().await {
            tracing::error!(error = error.chain(), "a link of a box that is no more stays until the next start");
        }
    }

    /// Removes the network remains of boxes that no longer exist.
    pub(crate) async fn sweep_network(&self) {
        let Some(network) = &self.inner.network else { return };
        let kept = self.all().into_iter().filter(|entry| entry.alive()).map(|entry| entry.id.clone()).collect();
        if let Err(error) = network.sweep(kept).await {
            tracing::error!(error = error.chain(), "cannot look for leftovers of boxes' networks");
        }
    }

    /// Changes the policy: on disk first, then in force. On return it is in force.
    pub async fn change_policy(
        &self,
        entry: &Arc<Entry>,
        account_idle: Option<u64>,
        asked: NetworkPolicy,
    ) -> Result<(), Refusal> {
        let policy = check_policy(&asked)?;
        self.check_policy_possible(&policy)?;
        // A start in progress would continue with the old policy.
        let _life = entry.lock_life().await;
        let mode = asked.mode.clone();
        self.change_settings(entry, account_idle, |settings| settings.network_policy = Some(asked)).await?;
        if let Some(network) = &self.inner.network {
            network.set_policy(&entry.id, policy).await?;
        }
        self.publish(entry, Fact::PolicyChanged { mode });
        Ok(())
    }

    /// Updates the counters of the network; with `each`, also those of single boxes.
    pub async fn count_networks(&self, each: bool) -> Result<(), Error> {
        let Some(network) = &self.inner.network else { return Ok(()) };
        let metrics = &self.inner.metrics;
        metrics.set_proxies(&network.dns_counters(), &network.egress_counters());
        metrics.set_box_networks(&if each { network.all_counters().await? } else { Vec::new() });
        Ok(())
    }

    /// The network state of a box; none if the box is not connected.
    pub async fn network_of(&self, entry: &Arc<Entry>) -> Result<Option<Report>, Error> {
        let Some(network) = &self.inner.network else { return Ok(None) };
        Ok(network.report(&entry.id).await?)
    }

    /// Refuses a policy that a host without a network for boxes cannot enforce.
    pub fn check_policy_possible(&self, policy: &BoxPolicy) -> Result<(), Refusal> {
        if self.has_network() || *policy == BoxPolicy::DenyAll {
            return Ok(());
        }
        let text = "boxes of this Icebox have a loopback interface only (its configuration says `[network] enabled = \
                    false`): the one network_policy it can keep is deny-all";
        Err(Refusal::Invalid(text.into()))
    }
}
