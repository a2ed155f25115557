//! One connection of a box: whether it is allowed, how it is passed on, and for how long.
//!
//! Invariants: whatever the policy, nothing goes to a closed address or to one of the host's own. An open connection is
//! checked again at every policy change; if it is no longer allowed, both sides are reset.

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::hello::{Look, RECORDS_BYTES_MAX, look};
use super::http::{self, Gate};
use super::wire::{Meter, Socket, Wire, splice};
use super::{EgressConnection, Shared};
use crate::denial::Denial;
use crate::firewall::closed;
use crate::policy::BoxPolicy;
use crate::table::BoxNet;

/// Time for a box to send its ClientHello or first request.
pub(super) const SAY_TIME: Duration = Duration::from_secs(10);
/// Time for connecting to a server, and for a TLS handshake.
pub(super) const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Time for resolving a name.
const NAME_TIME: Duration = Duration::from_secs(5);
/// Time for a refused box to read the refusal.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
const PORT_HTTPS: u16 = 443;
/// The rule that refuses TLS whose real name is hidden. Browsers send such a ClientHello in every handshake, so the
/// text names the remedy.
const ENCRYPTED_HELLO: &str = "encrypted ClientHello: turn it off in the browser, in Chromium by the policy \
                               EncryptedClientHelloEnabled=false, in Firefox by security.tls.ech.grease_probability=0";
const RECORD_HANDSHAKE: u8 = 22;

/// The TLS alerts that we send (RFC 8446, 6.2).
#[derive(Clone, Copy)]
enum Alert {
    AccessDenied = 49,
    DecodeError = 50,
    UnrecognizedName = 112,
}

/// The reason why the connection is allowed.
#[derive(Default)]
struct Claim {
    /// True once it has been allowed.
    is_allowed: bool,
    name: Option<String>,
    /// True if the name was found to stand for the address.
    is_vouched: bool,
    kind: &'static str,
}

pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) box_: Arc<BoxNet>,
    pub(super) to: SocketAddrV4,
    claim: Mutex<Claim>,
    /// The connection to the server.
    server: Mutex<Weak<Socket>>,
    since_ms: i64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter for Connection {
    fn received(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        (self.shared.on_activity)(&self.box_);
    }

    fn sent(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        (self.shared.on_activity)(&self.box_);
    }
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, box_: Arc<BoxNet>, to: SocketAddrV4) -> Self {
        let claim = Mutex::new(Claim { kind: "tcp", ..Claim::default() });
        let since_ms = crate::clock::unix_ms();
        let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { shared, box_, to, claim, server: Mutex::default(), since_ms, sent, received }
    }

    pub(super) fn is_of(&self, id: &str) -> bool {
        self.box_.id == id
    }

    pub(super) fn told(&self) -> EgressConnection {
        let claim = self.claim();
        EgressConnection {
            address: self.to,
            name: claim.name.clone(),
            kind: claim.kind,
            since_ms: self.since_ms,
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }

    fn claim(&self) -> MutexGuard<'_, Claim> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the connection as allowed, for this reason.
    pub(super) fn allow(&self, kind: &'static str, name: Option<&str>, is_vouched: bool) {
        *self.claim() = Claim { is_allowed: true, name: name.map(str::to_owned), is_vouched, kind };
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

    /// Passes the connection on until it ends.
    pub(super) async fn run(self: &Arc<Self>, stream: TcpStream) -> io::Result<()> {
        // Subscribed before the first policy check, so no change is missed.
        let changes = self.box_.policy_changes();
        let socket = Socket::new(stream, Some(Arc::clone(self) as Arc<dyn Meter>))?;
        let must_end = tokio::select! {
            biased;
            () = self.box_.gone().cancelled() => true,
            () = self.shared.ended.cancelled() => true,
            () = self.forbidden(changes) => true,
            done = self.pass(&socket) => {
                if done.is_err() {
                    self.cut(&socket);
                }
                return done;
            }
        };
        if must_end {
            self.shared.counts.cut.fetch_add(1, Ordering::Relaxed);
            self.cut(&socket);
        }
        Ok(())
    }

    fn cut(&self, socket: &Socket) {
        socket.cut();
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        server.inspect(|server| server.cut());
    }

    /// Returns when a policy change forbids the open connection.
    async fn forbidden(&self, mut changes: watch::Receiver<Arc<BoxPolicy>>) {
        while changes.changed().await.is_ok() {
            let policy = Arc::clone(&changes.borrow_and_update());
            if !self.may_go_on(&policy) {
                return;
            }
        }
        std::future::pending().await
    }

    fn may_go_on(&self, policy: &BoxPolicy) -> bool {
        let claim = self.claim();
        let address = *self.to.ip();
        let by_name =
            |name: &String| policy.allows_name(name) && (claim.is_vouched || self.box_.names.stands_for(name, address));
        // An undecided connection will be judged by the policy at that time.
        !claim.is_allowed
            || policy.allows_address(address)
            || (!policy.denies(address) && claim.name.as_ref().is_some_and(by_name))
    }

    async fn pass(self: &Arc<Self>, socket: &Arc<Socket>) -> io::Result<()> {
        let address = *self.to.ip();
        let policy = self.box_.policy();
        let rule = match &*policy {
            _ if closed(self.shared.config.pool, address) => Some("closed network"),
            _ if self.shared.way.is_own(address) => Some("the host itself"),
            BoxPolicy::DenyAll => Some("deny-all"),
            policy if policy.denies(address) => Some("denied_cidrs"),
            _ => None,
        };
        if let Some(rule) = rule {
            self.deny(rule, "tcp", None);
            socket.cut();
            return Ok(());
        }
        if policy.allows_address(address) {
            self.allow("tcp", None, false);
            return self.pass_any(socket).await;
        }
        let mut said = Vec::new();
        let until = Instant::now() + SAY_TIME;
        if timeout_at(until, socket.read(&mut said, RECORDS_BYTES_MAX)).await.is_ok_and(|r| r.is_ok_and(|n| n > 0)) {
            if self.to.port() == PORT_HTTPS || said.first() == Some(&RECORD_HANDSHAKE) {
                return self.pass_named(socket, said, until).await;
            }
            let wire = Wire::new(Arc::clone(socket), said.into());
            return http::serve(self, wire, Gate::Checked, None).await;
        }
        self.deny("nothing told what it is for", "tcp", None);
        socket.cut();
        Ok(())
    }

    /// Passes any protocol. The content is inspected only where headers may have to be added.
    async fn pass_any(self: &Arc<Self>, socket: &Arc<Socket>) -> io::Result<()> {
        let server = self.connect().await?;
        let Some(rules) = self.box_.headers.as_ref().filter(|_| self.to.port() == PORT_HTTPS) else {
            return splice(socket, &server, &[]).await;
        };
        // A server that speaks first does not speak TLS.
        let is_box_first = tokio::select! {
            biased;
            r = socket.readable() => r.map(|()| true),
            r = server.readable() => r.map(|()| false),
        };
        if !is_box_first? {
            return splice(socket, &server, &[]).await;
        }
        let mut said = Vec::new();
        let seen = hello(socket, &mut said, Instant::now() + SAY_TIME).await?;
        match seen {
            Look::Hello(hello) => match hello.name {
                Some(name) if rules.of(&name).is_some() => {
                    self.allow("headers", Some(&name), false);
                    self.attach(socket, said.into(), &name, Some(server)).await
                }
                name => {
                    self.allow("tls", name.as_deref(), false);
                    splice(socket, &server, &said).await
                }
            },
            _ => splice(socket, &server, &said).await,
        }
    }

    /// Passes only TLS for an allowed name.
    async fn pass_named(self: &Arc<Self>, socket: &Arc<Socket>, mut said: Vec<u8>, until: Instant) -> io::Result<()> {
        let refused = match hello(socket, &mut said, until).await? {
            Look::Hello(hello) => match hello.name {
                None => Err((Alert::UnrecognizedName, "TLS without a server name", None)),
                // The inner name may be another server's; only the key's owner can see it.
                Some(name) if hello.hides_another && !self.may_hide_another(&name) => {
                    Err((Alert::AccessDenied, ENCRYPTED_HELLO, Some(name)))
                }
                Some(name) => match self.vouch(&name).await {
                    Ok(()) => Ok(name),
                    Err(rule) => Err((Alert::AccessDenied, rule, Some(name))),
                },
            },
            Look::Bad(why) => {
                tracing::debug!(why, to = %self.to, "a ClientHello of a box is refused");
                Err((Alert::DecodeError, "not a right ClientHello", None))
            }
            Look::More | Look::NotTls => {
                self.deny("not TLS", "tls", None);
                socket.cut();
                return Ok(());
            }
        };
        let name = match refused {
            Ok(name) => name,
            Err((alert, rule, name)) => {
                self.deny(rule, "tls", name.as_deref());
                return farewell(socket, &[21, 3, 3, 0, 2, 2, alert as u8]).await;
            }
        };
        if self.adds_headers(&name) {
            self.allow("headers", Some(&name), true);
            return self.attach(socket, said.into(), &name, None).await;
        }
        self.allow("tls", Some(&name), true);
        let server = self.connect().await?;
        splice(socket, &server, &said).await
    }

    /// True if TLS for `name` ends here, so that headers can be added.
    fn adds_headers(&self, name: &str) -> bool {
        self.to.port() == PORT_HTTPS && self.box_.headers.as_ref().is_some_and(|rules| rules.of(name).is_some())
    }

    /// True if a ClientHello for `name` may contain an encrypted one. It is harmless where TLS ends here: we lack its
    /// key, so the visible name counts, and each request is checked against it.
    fn may_hide_another(&self, name: &str) -> bool {
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
        let server = connected.and_then(|stream| Socket::new(stream, None)).inspect_err(|_| {
            self.shared.counts.failed.fetch_add(1, Ordering::Relaxed);
        })?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&server);
        Ok(server)
    }

    /// Answers for the server, and adds headers to the requests.
    async fn attach(
        self: &Arc<Self>,
        socket: &Arc<Socket>,
        said: Bytes,
        name: &str,
        server: Option<Arc<Socket>>,
    ) -> io::Result<()> {
        let config = self.shared.authority.answer_for(name).map_err(|e| io::Error::other(e.chain()))?;
        let wire = Wire::new(Arc::clone(socket), said);
        let tls = timeout(CONNECT_TIME, TlsAcceptor::from(config).accept(wire)).await;
        let tls = tls.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let tls = match tls {
            Ok(tls) => tls,
            Err(error) => {
                // The box already got its alert.
                tracing::debug!(%error, name, "a box does not take the certificate, or speaks another TLS");
                return farewell(socket, &[]).await;
            }
        };
        http::serve(self, tls, Gate::Attached(name.to_owned()), server).await
    }
}

/// Reads until the box's protocol is known.
async fn hello(socket: &Socket, said: &mut Vec<u8>, until: Instant) -> io::Result<Look> {
    loop {
        let seen = look(said);
        if seen != Look::More {
            return Ok(seen);
        }
        let space = (RECORDS_BYTES_MAX + 1).saturating_sub(said.len());
        match timeout_at(until, socket.read(said, space)).await {
            Err(_) | Ok(Ok(0)) => return Ok(Look::More),
            Ok(read) => read?,
        };
    }
}

/// Sends a last message so that it arrives: closing with unread data would send a reset, which would overtake it.
async fn farewell(socket: &Socket, word: &[u8]) -> io::Result<()> {
    let until = Instant::now() + FAREWELL_TIME;
    let _ = timeout_at(until, socket.write_all(word)).await;
    socket.finish()?;
    let mut rest = Vec::new();
    while timeout_at(until, socket.read(&mut rest, 4096)).await.is_ok_and(|r| r.is_ok_and(|n| n > 0)) {
        rest.clear();
    }
    Ok(())
}
