//! Forward proxies: programs of a box reach the network through the daemon's own, under the box's policy.

use std::sync::Arc;

use icebox_net::denial::{Denial, Denials};
use icebox_net::forward::{Forward, ForwardRules};
use icebox_net::namespace::Namespace;
use icebox_net::sockets::Sockets;

use super::{Boxes, Entry};
use crate::clock;
use crate::error::{Cause, Error};
use crate::events::Fact;
use crate::refusal::Refusal;

impl Boxes {
    /// Starts a forward proxy on the loopback of a running box. It ends when it is dropped, which must be before the box's
    /// end: its socket keeps the box's network namespace.
    pub(crate) async fn forward(&self, entry: &Arc<Entry>) -> Result<Forward, Refusal> {
        let network = &self.inner.config.network;
        let rules = ForwardRules {
            policy: super::policy_in_force(&entry.settings()),
            pool: network.pool,
            private_hosts: self.inner.config.build.private_hosts.clone(),
        };
        let ended = || Error::new("start a proxy for", &entry.id, Cause::Invalid("the box has no processes"));
        let pid = entry.view().incarnation.and_then(|init| u32::try_from(init.pid).ok()).ok_or_else(ended)?;
        let namespace = Namespace::of_process(pid).map_err(Error::from)?;
        if !entry.alive() {
            return Err(ended().into());
        }
        let sockets = self.inner.sockets.get_or_try_init(Sockets::start).await.map_err(Error::from)?;
        let (boxes, of, without_network) = (self.clone(), Arc::clone(entry), Denials::default());
        let refused = Arc::new(move |denial: Denial| {
            let (text, now) = (denial.to_string(), clock::unix_ms());
            let listed = boxes.inner.network.as_ref().and_then(|network| network.find(&of.id));
            let is_news = match listed {
                Some((_, net)) => net.denials.record(denial, now),
                None => without_network.record(denial, now),
            };
            if is_news {
                boxes.publish(&of, Fact::Denied { text });
            }
        });
        Ok(Forward::start(sockets, &namespace, rules, refused).await.map_err(Error::from)?)
    }
}
