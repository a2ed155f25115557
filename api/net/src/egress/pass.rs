//! How a connection of a box is passed on, and for how long.
//!
//! Invariants: under every policy, nothing goes to a closed address or to one of the host's own. An open connection is
//! checked again at every policy change; if it is no longer allowed, both sides are reset. A connection that began with a
//! ClientHello and is refused gets an alert, which arrives before the connection ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::connection::{CONNECT_TIME, Connection, PORT_HTTPS, SAY_TIME};
use super::hello::{Hello, Look, RECORDS_BYTES_MAX, look};
use super::http::{self, Gate};
use super::wire::{Socket, Wire, splice};
use crate::firewall::closed;
use crate::policy::BoxPolicy;

/// Time for a refused box to read the refusal.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// The rule that refuses TLS whose real name is hidden. Browsers send such a ClientHello in every handshake, so the
/// text names the remedy.
const ENCRYPTED_HELLO: &str = "encrypted ClientHello: turn it off in the browser, in Chromium by the policy \
                               EncryptedClientHelloEnabled=false, in Firefox by security.tls.ech.grease_probability=0";
const RECORD_HANDSHAKE: u8 = 22;
const RECORD_ALERT: u8 = 21;
/// TLS 1.2, in which all versions write an alert before the keys are known.
const VERSION: [u8; 2] = [3, 3];
const FATAL: u8 = 2;

/// The TLS alerts that we send (RFC 8446, 6.2).
#[derive(Clone, Copy)]
enum Alert {
    AccessDenied = 49,
    DecodeError = 50,
    UnrecognizedName = 112,
}

impl Alert {
    /// The record: kind, version, length, level, alert.
    fn record(self) -> [u8; 7] {
        [RECORD_ALERT, VERSION[0], VERSION[1], 0, 2, FATAL, self as u8]
    }
}

/// Passes the connection on until it ends.
pub(super) async fn run(connection: &Arc<Connection>, stream: TcpStream) -> io::Result<()> {
    // Subscribed before the first policy check, so no change is missed.
    let changes = connection.box_.policy_changes();
    let socket = Socket::new(stream)?;
    let must_end = tokio::select! {
        biased;
        () = connection.box_.gone().cancelled() => true,
        () = connection.shared.ended.cancelled() => true,
        () = forbidden(connection, changes) => true,
        done = pass(connection, &socket) => {
            if done.is_err() {
                connection.cut(&socket);
            }
            return done;
        }
    };
    if must_end {
        connection.shared.counts.cut.fetch_add(1, Ordering::Relaxed);
        connection.cut(&socket);
    }
    Ok(())
}

/// Returns when a policy change forbids the open connection.
async fn forbidden(connection: &Connection, mut changes: watch::Receiver<Arc<BoxPolicy>>) {
    while changes.changed().await.is_ok() {
        let policy = Arc::clone(&changes.borrow_and_update());
        if !connection.may_go_on(&policy) {
            return;
        }
    }
    std::future::pending().await
}

async fn pass(connection: &Arc<Connection>, socket: &Arc<Socket>) -> io::Result<()> {
    let address = *connection.to.ip();
    let policy = connection.box_.policy();
    let rule = match &*policy {
        _ if closed(connection.shared.config.pool, address) => Some("closed network"),
        _ if connection.shared.way.is_own(address) => Some("the host itself"),
        BoxPolicy::DenyAll => Some("deny-all"),
        policy if policy.denies(address) => Some("denied_cidrs"),
        _ => None,
    };
    if let Some(rule) = rule {
        return refuse(connection, socket, rule).await;
    }
    if policy.allows_address(address) {
        connection.allow(None, false);
        return pass_any(connection, socket).await;
    }
    let mut said = Vec::new();
    let until = Instant::now() + SAY_TIME;
    if timeout_at(until, socket.read(&mut said, RECORDS_BYTES_MAX)).await.is_ok_and(|r| r.is_ok_and(|n| n > 0)) {
        if connection.to.port() == PORT_HTTPS || said.first() == Some(&RECORD_HANDSHAKE) {
            return pass_named(connection, socket, said, until).await;
        }
        let wire = Wire::new(Arc::clone(socket), said.into());
        return http::serve(connection, wire, Gate::Checked, None).await;
    }
    connection.deny("nothing told what it is for", "tcp", None);
    socket.cut();
    Ok(())
}

/// Refuses a connection by its address. The firewall mostly does so before; what arrives here came while the policy
/// changed. A program that begins with TLS learns it inside TLS, as for a name.
async fn refuse(connection: &Connection, socket: &Socket, rule: &str) -> io::Result<()> {
    let mut said = Vec::new();
    let seen = match connection.to.port() {
        PORT_HTTPS => hello(socket, &mut said, Instant::now() + SAY_TIME).await.unwrap_or(Look::NotTls),
        _ => Look::NotTls,
    };
    match seen {
        Look::Hello(Hello { name, .. }) => {
            connection.deny(rule, "tls", name.as_deref());
            end_with(socket, Alert::AccessDenied).await
        }
        _ => {
            connection.deny(rule, "tcp", None);
            socket.cut();
            Ok(())
        }
    }
}

/// Passes any protocol. The content is inspected only where headers may have to be added.
async fn pass_any(connection: &Arc<Connection>, socket: &Arc<Socket>) -> io::Result<()> {
    let server = connection.connect().await?;
    let Some(rules) = connection.box_.headers.as_ref().filter(|_| connection.to.port() == PORT_HTTPS) else {
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
                connection.allow(Some(&name), false);
                attach(connection, socket, said.into(), &name, Some(server)).await
            }
            name => {
                connection.allow(name.as_deref(), false);
                splice(socket, &server, &said).await
            }
        },
        _ => splice(socket, &server, &said).await,
    }
}

/// Passes only TLS for an allowed name.
async fn pass_named(
    connection: &Arc<Connection>,
    socket: &Arc<Socket>,
    mut said: Vec<u8>,
    until: Instant,
) -> io::Result<()> {
    let refused = match hello(socket, &mut said, until).await? {
        Look::Hello(hello) => match hello.name {
            None => Err((Alert::UnrecognizedName, "TLS without a server name", None)),
            // The inner name may be another server's; only the key's owner can see it.
            Some(name) if hello.hides_another && !connection.may_hide_another(&name) => {
                Err((Alert::AccessDenied, ENCRYPTED_HELLO, Some(name)))
            }
            Some(name) => match connection.vouch(&name).await {
                Ok(()) => Ok(name),
                Err(rule) => Err((Alert::AccessDenied, rule, Some(name))),
            },
        },
        Look::Bad(why) => {
            tracing::debug!(why, to = %connection.to, "a ClientHello of a box is refused");
            Err((Alert::DecodeError, "not a right ClientHello", None))
        }
        Look::More | Look::NotTls => {
            connection.deny("not TLS", "tls", None);
            socket.cut();
            return Ok(());
        }
    };
    let name = match refused {
        Ok(name) => name,
        Err((alert, rule, name)) => {
            connection.deny(rule, "tls", name.as_deref());
            return end_with(socket, alert).await;
        }
    };
    if connection.adds_headers(&name) {
        connection.allow(Some(&name), true);
        return attach(connection, socket, said.into(), &name, None).await;
    }
    connection.allow(Some(&name), true);
    let server = connection.connect().await?;
    splice(socket, &server, &said).await
}

/// Answers for the server, and adds headers to the requests.
async fn attach(
    connection: &Arc<Connection>,
    socket: &Arc<Socket>,
    said: Bytes,
    name: &str,
    server: Option<Arc<Socket>>,
) -> io::Result<()> {
    let config = connection.shared.authority.answer_for(name).map_err(|e| io::Error::other(e.chain()))?;
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
    http::serve(connection, tls, Gate::Attached(name.to_owned()), server).await
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

/// Refuses TLS inside TLS.
async fn end_with(socket: &Socket, alert: Alert) -> io::Result<()> {
    farewell(socket, &alert.record()).await
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
