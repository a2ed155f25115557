//! A forward proxy for one box: programs in the box send their HTTP requests to it (`http_proxy`), and it connects from
//! the daemon's own network.
//!
//! It listens on the box's loopback, through a socket that is made in the box's network namespace. So only the box
//! reaches it, no rule of the firewall is needed, and it works for a box whose link leads nowhere: builds of images
//! fetch packages through it also on a machine whose network boxes do not use.
//!
//! Owns: the protocol of a forward proxy (CONNECT, and requests with an absolute URI) and the judgement of each
//! destination. Invariants: the destination is what the proxy itself has resolved, and it is allowed by the box's policy,
//! under every policy no closed network and no address of this machine, unless the operator has named the host. A port
//! for mail is closed.
//!
//! Leaves out: the transparent proxies ([`egress`](crate::egress)), TLS (it passes unread), and caching.

mod destination;
mod rules;
mod serve;
#[cfg(test)]
mod tests;
mod uplink;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use crate::error::Error;
use crate::namespace::Namespace;
use crate::sockets::Sockets;
pub use rules::{ForwardRules, OnForwardRefusal};
use uplink::HostUplink;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// A running proxy. It ends, with its connections, when it is dropped; so does its hold on the box's namespace.
#[derive(Debug)]
pub struct Forward {
    port: u16,
    _task: AbortOnDropHandle<()>,
}

impl Forward {
    /// Starts a proxy on a free port of the loopback of `namespace`.
    ///
    /// # Errors
    /// Those of the system calls.
    pub async fn start(
        sockets: &Sockets,
        namespace: &Namespace,
        rules: ForwardRules,
        on_refusal: OnForwardRefusal,
    ) -> Result<Self, Error> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let failed = |cause: std::io::Error| Error::new("listen for the programs of a box on", any.to_string(), cause);
        let socket = sockets.tcp(namespace, any).await?;
        socket.bind(any).map_err(failed)?;
        let listener = socket.listen(BACKLOG).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let proxy = Arc::new(serve::Proxy { rules, on_refusal, uplink: Arc::new(HostUplink::new()?) });
        Ok(Self { port, _task: AbortOnDropHandle::new(tokio::spawn(serve::accept(listener, proxy))) })
    }

    /// Its port on the box's loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, as seen by the programs of the box.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
