//! Sockets that belong to a network namespace other than that of the process.
//!
//! A socket belongs to the namespace of the thread that creates it, for ever. One thread enters namespace after
//! namespace and creates sockets; their users may be in any other. The thread never blocks there: the caller connects
//! and listens. Between two sockets the thread returns to its own namespace: a namespace lives as long as a thread is
//! in it, and that of a box must end with the box.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, UdpSocket};

use super::namespace::{Namespace, Worker};
use crate::error::Error;

/// Creates sockets in namespaces.
#[derive(Debug)]
pub struct Sockets {
    worker: Worker<Namespace>,
}

impl Sockets {
    /// Starts the thread.
    pub async fn start() -> Result<Self, Error> {
        let home = Namespace::own()?;
        let worker = Worker::start("sockets", home.clone(), || Ok(home)).await?;
        Ok(Self { worker })
    }

    /// A TCP socket, not bound and not connected.
    pub async fn tcp(&self, namespace: &Namespace, for_address: SocketAddr) -> Result<TcpSocket, Error> {
        let socket = self.make(namespace, for_address, SocketType::STREAM).await?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    /// A UDP socket bound to `address`.
    pub async fn udp(&self, namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket, Error> {
        let failed = |cause: std::io::Error| Error::new("bind", address.to_string(), cause);
        let socket = self.make(namespace, address, SocketType::DGRAM).await?;
        rustix::net::bind(&socket, &address).map_err(|cause| failed(cause.into()))?;
        UdpSocket::from_std(socket.into()).map_err(failed)
    }

    async fn make(&self, namespace: &Namespace, address: SocketAddr, kind: SocketType) -> Result<OwnedFd, Error> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let namespace = namespace.clone();
        let work = move |home: &mut Namespace| {
            namespace.enter()?;
            let made = socket_with(family, kind, flags, None);
            home.enter()?;
            made.map_err(|cause| Error::new("make a socket for", address.to_string(), cause))
        };
        self.worker.call(work).await
    }
}
