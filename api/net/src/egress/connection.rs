//! One connection of a box: whether it is allowed, and its connection to the server.
//!
//! Owns: the decision by name and address, and what it was based on, which is asked for again at every policy change.
//!
//! Leaves out: how it is passed on ([`pass`](super::pass), [`http`](super::http)).

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::timeout;

use super::shared::Shared;
use super::wire::Socket;
use crate::denial::Denial;
use crate::policy::BoxPolicy;
use crate::table::BoxNet;

/// Time for a box to send its ClientHello or first request.
pub(super) const SAY_TIME: Duration = Duration::from_secs(10);
/// Time for connecting to a server, and for a TLS handshake.
pub(super) const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Time for resolving a name.
const NAME_TIME: Duration = Duration::from_secs(5);
pub(super) const PORT_HTTPS: u16 = 443;

/// The reason why the connection is allowed.
#[derive(Default)]
struct Claim {
    /// True once it has been allowed.
    is_allowed: bool,
    name: Option<String>,
    /// True if the name was found to stand for the address.
    is_vouched: bool,
}

pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) box_: Arc<BoxNet>,
    pub(super) to: SocketAddrV4,
    claim: Mutex<Claim>,
    /// The connection to the server.
    server: Mutex<Weak<Socket>>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, box_: Arc<BoxNet>, to: SocketAddrV4) -> Self {
        Self { shared, box_, to, claim: Mutex::default(), server: Mutex::default() }
    }

    fn claim(&self) -> MutexGuard<'_, Claim> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the connection as allowed, for this reason.
    pub(super) fn allow(&self, name: Option<&str>, is_vouched: bool) {
        *self.claim() = Claim { is_allowed: true, name: name.map(str::to_owned), is_vouched };
    }

    /// Records a refusal.
    pub(super) fn deny(&self, rule: &str, protocol: &str, name: Option<&str>) {
        let denial = Denial {
            rule: rule.to_owned(),
            protocol: protocol.to_owned(),
            address: Some(*self.to.ip()),
            port: Some(self.to.port()),
            name: name.map(str::to_owned),
        };
        self.shared.denied(&self.box_, denial);
    }

    /// Resets both sides.
    pub(super) fn cut(&self, socket: &Socket) {
        socket.cut();
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        server.inspect(|server| server.cut());
    }

    /// True if the open connection is still allowed.
    pub(super) fn may_go_on(&self, policy: &BoxPolicy) -> bool {
        let claim = self.claim();
        let address = *self.to.ip();
        let by_name =
            |name: &String| policy.allows_name(name) && (claim.is_vouched || self.box_.names.stands_for(name, address));
        // An undecided connection will be judged by the policy at that time.
        !claim.is_allowed
            || policy.allows_address(address)
            || (!policy.denies(address) && claim.name.as_ref().is_some_and(by_name))
    }

    /// True if TLS for `name` ends here, so that headers can be added.
    pub(super) fn adds_headers(&self, name: &str) -> bool {
        self.to.port() == PORT_HTTPS && self.box_.headers.as_ref().is_some_and(|rules| rules.of(name).is_some())
    }

    /// True if a ClientHello for `name` may contain an encrypted one. It is harmless where TLS ends here: we lack its
    /// key, so the visible name counts, and each request is checked against it.
    pub(super) fn may_hide_another(&self, name: &str) -> bool {
        self.shared.config.ech_allowed || self.adds_headers(name)
    }

    /// Checks that a name in its normal form may be reached at this address; otherwise returns the refusing rule.
    pub(super) async fn vouch(&self, name: &str) -> Result<(), &'static str> {
        let address = *self.to.ip();
        if !self.box_.policy().allows_name(name) {
            return Err("not in allowed_domains");
        }
        let known = self.box_.names.stands_for(name, address);
        if !known {
            let found = timeout(NAME_TIME, self.shared.names.addresses(name)).await.unwrap_or_default();
            if !found.contains(&address) {
                return Err("the address is not one of this name");
            }
        }
        // Read again: the policy may have changed meanwhile.
        let policy = self.box_.policy();
        match (policy.denies(address), policy.allows_name(name)) {
            (true, _) => Err("denied_cidrs"),
            (_, false) => Err("not in allowed_domains"),
            _ => Ok(()),
        }
    }

    /// Connects to the address that the box wanted.
    pub(super) async fn connect(&self) -> io::Result<Arc<Socket>> {
        let connected = timeout(CONNECT_TIME, self.shared.way.connect(self.to)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let server = connected.and_then(Socket::new).inspect_err(|_| {
            self.shared.counts.failed.fetch_add(1, Ordering::Relaxed);
        })?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&server);
        Ok(server)
    }
}
