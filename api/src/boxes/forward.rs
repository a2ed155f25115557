//! The ways of a build's boxes to the network: forward proxies, by which their programs use the daemon's own network under
//! the box's policy, and the fetching of files as one of their programs would.

use std::sync::Arc;

use icebox_net::denial::{Denial, Denials};
use icebox_net::fetch::{Fetcher, Way};
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
        let namespace = namespace(entry)?;
        let sockets = self.sockets().await?;
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
        Ok(Forward::start(&sockets, &namespace, rules, refused).await.map_err(Error::from)?)
    }

    /// Fetches files as the programs of a running box do: through its network, or through its forward proxy. It must be dropped
    /// before the box's end, as the proxy.
    pub(crate) async fn fetcher(&self, entry: &Arc<Entry>, forward: Option<&Forward>) -> Result<Fetcher, Refusal> {
        let way = match (forward, entry.view().pair) {
            (Some(forward), _) => Way::Proxy(forward.port()),
            (None, Some(pair)) => Way::Network(pair.host()),
            (None, None) => return Err(Refusal::Invalid("boxes have no network here".into())),
        };
        let (namespace, sockets) = (namespace(entry)?, self.sockets().await?);
        let roots = self.inner.config.network.extra_roots.as_deref();
        Ok(Fetcher::new(sockets, namespace, way, roots).map_err(Error::from)?)
    }

    async fn sockets(&self) -> Result<Arc<Sockets>, Refusal> {
        let start = || async { Sockets::start().await.map(Arc::new) };
        Ok(Arc::clone(self.inner.sockets.get_or_try_init(start).await.map_err(Error::from)?))
    }
}

/// The network namespace of a running box.
fn namespace(entry: &Arc<Entry>) -> Result<Namespace, Refusal> {
    let ended = || Error::new("find the network of", &entry.id, Cause::Invalid("the box has no processes"));
    let pid = entry.view().incarnation.and_then(|init| u32::try_from(init.pid).ok()).ok_or_else(ended)?;
    let namespace = Namespace::of_process(pid).map_err(Error::from)?;
    if entry.alive() { Ok(namespace) } else { Err(ended().into()) }
}
