//! A closed world of network namespaces: one plays the host, one the internet. `iceboxd` runs the host side of its boxes'
//! networking in the first; all that leaves a box and the host arrives in the second, to any address, and is
//! answered and counted there. Nothing is connected to the machine's own network, and nothing has a name or a mount: the
//! world ends with the process.
//!
//! The internet answers for every IPv4 address, private ones and metadata services included: what must not be reached
//! would be reached if it were not kept back, and is seen.
//!
//! Leaves out: what a test expects.

pub mod capture;
pub mod dns;
pub mod http;
pub mod links;
pub mod outside;
pub mod pki;
pub mod plain;
pub mod sink;
pub mod ways;
pub mod web;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use crate::daemon::{Daemon, scratch_dir, unique};
use crate::netns::Netns;

use self::capture::Capture;
use self::dns::Dns;
use self::pki::Authority;
use self::sink::Sink;
use self::web::Web;

/// Never reached when all is well; long, since the machine may be an emulated one.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// The host's address on its uplink; what boxes send comes from here.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The host's next hop.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The resolver that the host uses.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
/// Resolvers of others, which answer as well.
pub const OTHER_RESOLVERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(9, 9, 9, 9)];
/// Ports on which the host itself listens, on all its addresses.
pub const HOST_PORTS: [u16; 5] = [22, 80, 443, 5432, 8080];
/// Ports of the internet on which a sink listens.
pub const SINK_PORTS: [u16; 5] = [22, 25, 853, 5353, 9999];
/// The addresses of boxes.
pub const POOL: &str = "10.88.0.0/16";

/// The world. It has to live longer than what runs in it: declare it first.
#[derive(Debug)]
pub struct World {
    /// Plays the host.
    pub host: Netns,
    /// Plays the internet.
    pub internet: Netns,
    /// The CA that signs the certificates of the internet's servers.
    pub authority: Authority,
    /// Name servers.
    pub dns: Dns,
    /// Web servers of all names, on ports 80 and 8080, and with TLS on 443 and 8443.
    pub web: Web,
    /// All other addresses and ports that are connected to.
    pub sink: Sink,
    /// What is connected to on the host.
    pub host_sink: Sink,
    /// All packets that came to the internet.
    pub capture: Capture,
    dir: PathBuf,
}

impl World {
    /// Makes a world.
    #[must_use]
    pub fn new() -> Self {
        crate::machine::require_root();
        let (host, internet) = (Netns::new(), Netns::new());
        links::connect(&host, &internet);
        let dir = scratch_dir().join(unique("net-world"));
        fs::create_dir_all(&dir).expect("make the world's directory");
        let authority = Authority::new("Icebox test world");
        fs::write(dir.join("ca.pem"), authority.pem()).expect("write the authority's certificate");
        let capture = Capture::start(&internet);
        let dns = Dns::start(&internet, [RESOLVER].into_iter().chain(OTHER_RESOLVERS));
        let web = Web::start(&internet, &authority);
        let sink = Sink::start(&internet, &SINK_PORTS);
        let host_sink = Sink::start(&host, &HOST_PORTS);
        Self { host, internet, authority, dns, web, sink, host_sink, capture, dir }
    }

    /// The certificate of the authority, as a file.
    #[must_use]
    pub fn authority_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A configuration of `iceboxd`: `more` is put in the section `[network]`, or after it if it has headings.
    #[must_use]
    pub fn config(&self, more: &str) -> String {
        format!(
            "[network]\npool = \"{POOL}\"\nresolvers = [\"{RESOLVER}:53\"]\nextra_roots = \"{}\"\n{more}\n",
            self.authority_file().display()
        )
    }

    /// An `iceboxd` whose host side is here.
    #[must_use]
    pub fn daemon(&self) -> Daemon {
        self.daemon_with("", "")
    }

    /// The same, with `head` before the section `[network]` of its configuration and `more` in it.
    #[must_use]
    pub fn daemon_with(&self, head: &str, more: &str) -> Daemon {
        Daemon::start_in(self.host.clone(), &format!("{head}\n{}", self.config(more)))
    }

    /// A listening socket in the internet, on all its addresses.
    #[must_use]
    pub fn listen(&self, port: u16) -> TcpListener {
        listen(&self.internet, port)
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A listening socket in `namespace`, on all its addresses.
#[must_use]
pub fn listen(namespace: &Netns, port: u16) -> TcpListener {
    namespace
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap_or_else(|e| panic!("listen on {port}: {e}")))
}

/// A connection that begins in `namespace`.
pub fn connect(namespace: &Netns, address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let to = SocketAddr::from((address, port));
    let stream = namespace.run(|| TcpStream::connect_timeout(&to, DEADLINE))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// A UDP socket in `namespace`.
#[must_use]
pub fn udp(namespace: &Netns, address: IpAddr, port: u16) -> UdpSocket {
    let socket =
        namespace.run(|| UdpSocket::bind((address, port)).unwrap_or_else(|e| panic!("bind {address}:{port}: {e}")));
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket
}
