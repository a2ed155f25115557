//! A world of network namespaces: one plays the host, one the internet, and each box is one. Nothing in it is connected
//! to the machine's own network, and it ends with the process.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use icebox_net::address::Pair;
use icebox_net::error::Error;
use icebox_net::firewall::{Limits, Policy, ProxyPorts};
use icebox_net::link::host_name;
use icebox_net::namespace::Namespace;
use icebox_net::nflog::{Event, Events};
use icebox_net::{Attachment, HostConfig, HostSide};
use nix::sched::{CloneFlags, CpuSet};
use nix::unistd::Pid;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::{AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::Runtime;

use crate::packet::{Packet, Recorder, Seen, UDP};

/// Never reached when all is well; long, since the machine may be an emulated one.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// The host's address on its uplink; what boxes send comes from here.
pub(crate) const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A host behind this host that is no box.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Public addresses of the internet.
pub(crate) const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const SITE_2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(crate) const SITE_3: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 8);
/// Where the internet's servers listen.
pub(crate) const PORTS: [u16; 6] = [25, 53, 80, 443, 853, PLAIN_PORT];
/// One without a rule.
pub(crate) const PLAIN_PORT: u16 = 8000;
/// Where the host's proxies listen.
pub(crate) const DNS_PORT: u16 = 21_053;
pub(crate) const EGRESS_PORT: u16 = 21_080;
/// Another port of the host.
pub(crate) const HOST_PORT: u16 = 8080;
/// Smaller than usual, to see that links take it.
pub(crate) const MTU: u32 = 1400;

/// The addresses that the internet has, beside the router's: public ones and those that boxes must not reach.
pub(crate) const INTERNET: [[u8; 4]; 14] = [
    SITE.octets(),
    SITE_2.octets(),
    SITE_3.octets(),
    [10, 0, 0, 1],
    [10, 88, 200, 1],
    [172, 16, 0, 1],
    [172, 31, 255, 254],
    [192, 168, 1, 1],
    [100, 64, 0, 1],
    [100, 127, 255, 254],
    [169, 254, 169, 254],
    [192, 0, 0, 8],
    [198, 18, 0, 1],
    [198, 19, 255, 254],
];

/// This thread, and all that it will start, stays on the processor it runs on.
fn stay_on_one_processor() {
    let mut one = CpuSet::new();
    one.set(nix::sched::sched_getcpu().expect("a processor")).expect("its number");
    nix::sched::sched_setaffinity(Pid::from_raw(0), &one).expect("stay there");
}

/// What listens in a world does so until the process ends, and holds its namespace: many worlds need many descriptors.
fn allow_many_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const MANY: u64 = 16_384;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let more = |now: Option<u64>| now.map(|now| now.max(MANY));
    setrlimit(Resource::Nofile, Rlimit { current: more(current), maximum: more(maximum) }).expect("more descriptors");
}

/// A namespace of its own, made by a thread that ends.
pub(crate) fn namespace() -> Namespace {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes network namespaces");
    let make = || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
        Namespace::own().expect("own namespace")
    };
    thread::spawn(make).join().expect("a namespace")
}

/// Does something with netlink in `namespace`.
pub(crate) fn netlink<F: Future<Output = Result<(), rtnetlink::Error>>>(
    namespace: &Namespace,
    work: impl FnOnce(Handle) -> F + Send,
) {
    let run = || -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("runtime");
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
            tokio::spawn(connection);
            work(handle).await.expect("netlink request");
        });
        Ok(())
    };
    namespace.run(run).expect("work in the namespace");
}

async fn index_of(handle: &Handle, name: &str) -> u32 {
    use futures::TryStreamExt as _;
    let found = handle.link().get().match_name(name).execute().try_next().await;
    found.expect("find link").expect("the link").header.index
}

/// Waits until the kernel has noticed that an end of a pair is connected; until then it drops what that end should send.
fn wait_until_up(namespace: &Namespace, name: &'static str) {
    use futures::TryStreamExt as _;
    use rtnetlink::packet_route::link::{LinkAttribute, State};
    netlink(namespace, move |handle| async move {
        let begun = Instant::now();
        loop {
            let link = handle.link().get().match_name(name).execute().try_next().await?.expect("the link");
            if link.attributes.iter().any(|a| matches!(a, LinkAttribute::OperState(State::Up))) {
                return Ok(());
            }
            assert!(begun.elapsed() < DEADLINE, "{name} does not come up");
            thread::yield_now();
        }
    });
}

async fn address(handle: &Handle, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), rtnetlink::Error> {
    let message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix).build();
    let mut request = handle.address().add(index, IpAddr::V4(address), prefix);
    *request.message_mut() = message;
    request.execute().await
}

async fn up(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let index = index_of(handle, name).await;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    Ok(index)
}

pub(crate) struct TestBox {
    pub(crate) id: String,
    pub(crate) pair: Pair,
    pub(crate) namespace: Namespace,
}

impl TestBox {
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.pair.guest()
    }

    /// The name of the host's end of its link.
    pub(crate) fn interface(&self) -> String {
        host_name(&self.id)
    }

    pub(crate) fn connect(&self, address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
        connect(&self.namespace, address, port)
    }
}

/// A connection from `namespace`; refused or silent, it is an error.
pub(crate) fn connect(namespace: &Namespace, address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let to = SocketAddr::from((address, port));
    let stream = namespace.run(|| Ok(TcpStream::connect_timeout(&to, DEADLINE))).expect("a thread there")?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Sends a word and waits for it to come back.
pub(crate) fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"hello")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"hello");
    Ok(())
}

/// Asks a proxy where the connection was meant to go.
pub(crate) fn original(stream: &mut TcpStream) -> std::io::Result<SocketAddr> {
    let mut line = String::new();
    let mut one = [0];
    loop {
        stream.read_exact(&mut one)?;
        match one[0] {
            b'\n' => return Ok(line.parse().expect("an address")),
            byte => line.push(byte.into()),
        }
    }
}

/// A proxy that tells where each connection was meant to go, then echoes.
fn proxy(namespace: &Namespace, port: u16) {
    listen(namespace, port, |stream| {
        let meant = rustix::net::sockopt::ip_original_dst(&*stream);
        let text = meant.map_or_else(|e| format!("{e}\n"), |address| format!("{address}\n"));
        let _ = stream.write_all(text.as_bytes());
    });
}

/// Echoes what each connection sends, until the process ends.
pub(crate) fn serve(namespace: &Namespace, port: u16) {
    listen(namespace, port, |_| {});
}

fn listen(namespace: &Namespace, port: u16, greet: fn(&mut TcpStream)) {
    let listen = || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("listen"));
    let listener = namespace.run(listen).expect("a thread there");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                greet(&mut stream);
                let mut reader = stream.try_clone().expect("clone");
                let _ = std::io::copy(&mut reader, &mut stream);
            });
        }
    });
}

pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) host: Namespace,
    pub(crate) internet: Namespace,
    pub(crate) recorder: Recorder,
    side: Option<Arc<HostSide>>,
    events: Option<Events>,
    boxes: u32,
    fences: u32,
}

impl World {
    pub(crate) fn new() -> Self {
        stay_on_one_processor();
        allow_many_descriptors();
        let (host, internet) = (namespace(), namespace());
        // A new namespace may begin with the settings of the machine's.
        write_sysctl(&host, "net/ipv4/ip_forward", "0");
        write_sysctl(&internet, "net/ipv4/ip_forward", "0");
        let there = internet.raw_fd();
        netlink(&host, move |handle| async move {
            let wan = LinkMessageBuilder::<LinkUnspec>::new().name("wan0").mtu(MTU).setns_by_fd(there).build();
            let link = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name("up0").mtu(MTU);
            handle.link().add(link.set_info_data(InfoData::Veth(InfoVeth::Peer(wan))).build()).execute().await?;
            up(&handle, "lo").await?;
            let index = up(&handle, "up0").await?;
            address(&handle, index, UPLINK, 24).await
        });
        netlink(&internet, |handle| async move {
            up(&handle, "lo").await?;
            let index = up(&handle, "wan0").await?;
            address(&handle, index, ROUTER, 24).await?;
            for octets in INTERNET {
                address(&handle, index, octets.into(), 32).await?;
            }
            Ok(())
        });
        wait_until_up(&host, "up0");
        netlink(&host, |handle| async move {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(ROUTER).build();
            handle.route().add(route).execute().await
        });
        PORTS.iter().for_each(|port| serve(&internet, *port));
        serve(&host, HOST_PORT);
        [DNS_PORT, EGRESS_PORT].iter().for_each(|port| proxy(&host, *port));
        let runtime = Runtime::new().expect("runtime");
        let recorder = Recorder::new(&internet);
        let mut world = Self { runtime, host, internet, recorder, side: None, events: None, boxes: 0, fences: 0 };
        world.start();
        world
    }

    /// A peer behind another interface of the host, not a box; the internet sends packets for it to the host.
    pub(crate) fn add_stranger(&self) -> Namespace {
        let stranger = namespace();
        let there = stranger.raw_fd();
        netlink(&self.host, move |handle| async move {
            let peer = LinkMessageBuilder::<LinkUnspec>::new().name("eth0").setns_by_fd(there).build();
            let link = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name("other0");
            handle.link().add(link.set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build()).execute().await?;
            let index = up(&handle, "other0").await?;
            address(&handle, index, [192, 168, 77, 1].into(), 24).await
        });
        netlink(&stranger, |handle| async move {
            let index = up(&handle, "eth0").await?;
            address(&handle, index, STRANGER, 24).await
        });
        wait_until_up(&self.host, "other0");
        self.internet_routes([192, 168, 77, 0].into());
        stranger
    }

    /// The internet sends packets for a /24 of ours to the host.
    pub(crate) fn internet_routes(&self, network: Ipv4Addr) {
        netlink(&self.internet, move |handle| async move {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(network, 24).gateway(UPLINK);
            handle.route().add(route.build()).execute().await
        });
    }

    pub(crate) fn config() -> HostConfig {
        let pool = "10.88.0.0/16".parse().expect("pool");
        let ports = ProxyPorts { dns: DNS_PORT, egress: EGRESS_PORT };
        HostConfig { pool, smtp_allowed: false, ports, connections_max: None, guarded: true }
    }

    /// A host side that lets each box have so many connections, now and at every [`World::start`] that names it again.
    pub(crate) fn start_limited(&mut self, connections_max: u32) {
        self.start_with(HostConfig { connections_max: Some(connections_max), ..Self::config() });
    }

    /// A host side whose table others can change, as on kernels that cannot guard it.
    pub(crate) fn start_unguarded(&mut self) {
        self.start_with(HostConfig { guarded: false, ..Self::config() });
    }

    /// Begins the host's side, as a daemon that starts does.
    pub(crate) fn start(&mut self) {
        self.start_with(Self::config());
    }

    pub(crate) fn start_with(&mut self, config: HostConfig) {
        self.side = None;
        let begun = Instant::now();
        // The one before has ended, but its thread holds the namespace until it has noticed.
        let side = loop {
            match self.runtime.block_on(HostSide::start(self.host.clone(), config.clone())) {
                Err(e) if e.to_string().contains("another iceboxd") && begun.elapsed() < DEADLINE => {
                    thread::yield_now()
                }
                other => break other.unwrap_or_else(|e| panic!("{}", e.chain())),
            }
        };
        self.events = side.events();
        self.side = Some(Arc::new(side));
    }

    /// Ends the host's side, as a daemon that dies does: nothing is cleaned up. When this returns, its sockets are closed:
    /// the last is the one that claims the namespace.
    pub(crate) fn die(&mut self) {
        self.side = None;
        let begun = Instant::now();
        let sockets = || Ok(std::fs::read_to_string("/proc/thread-self/net/unix").expect("sockets"));
        while self.host.run(sockets).expect("a thread there").contains("@icebox/host-side") {
            assert!(begun.elapsed() < DEADLINE, "the host's side does not end");
            thread::yield_now();
        }
    }

    pub(crate) fn side(&self) -> &Arc<HostSide> {
        self.side.as_ref().expect("the host's side runs")
    }

    pub(crate) fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> T {
        self.runtime.block_on(work).unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    /// The next event within `wait`.
    pub(crate) fn event(&mut self, wait: Duration) -> Option<Event> {
        let events = self.events.as_mut().expect("the host's side runs");
        let next = async { tokio::time::timeout(wait, events.next()).await };
        self.runtime.block_on(next).ok().map(|event| event.expect("the host's side runs"))
    }

    /// A box that is not connected yet.
    pub(crate) fn new_box(&mut self) -> TestBox {
        self.boxes += 1;
        let first = Ipv4Addr::new(10, 88, 0, 0).to_bits();
        let pair = Pair::of((first + 2 * self.boxes).into());
        TestBox { id: format!("box-{}", self.boxes), pair, namespace: namespace() }
    }

    pub(crate) fn attach(&self, b: &TestBox, policy: Policy, limits: Limits) {
        let (id, namespace) = (b.id.clone(), b.namespace.clone());
        let attachment = Attachment { id, pair: b.pair, namespace, policy, limits, intercept_tls: false };
        self.wait(self.side().attach(attachment));
    }

    pub(crate) fn add_box(&mut self, policy: Policy) -> TestBox {
        let b = self.new_box();
        self.attach(&b, policy, Limits::default());
        b
    }

    /// All that the internet saw since the last time. What was sent before has arrived by now, or never will.
    ///
    /// For that, something that passes is sent from the host and waited for. All of this is one processor's work, whose
    /// queue of packets is served in order; so after each fence, every packet that was in the queue has made its next
    /// step. The longest way is: ask for the gateway's Ethernet address, the answer, the packet itself; the same on the
    /// other side of the host.
    pub(crate) fn seen(&mut self) -> Vec<Seen> {
        const STEPS: u32 = 8;
        let mut all = Vec::new();
        for _ in 0..STEPS {
            self.fences += 1;
            let text = format!("fence-{}.", self.fences);
            Packet::new(UDP, UPLINK, SITE, &text).send(&self.host).expect("send the fence");
            let begun = Instant::now();
            while !all.iter().any(|s: &Seen| s.has(&text)) {
                assert!(begun.elapsed() < DEADLINE, "the fence did not arrive");
                all.extend(self.recorder.seen());
                thread::yield_now();
            }
        }
        all
    }

    /// `nft` in the host's namespace: what the kernel has, reported independently of the code under test.
    pub(crate) fn nft(&self, arguments: &[&str]) -> String {
        self.try_nft(arguments).unwrap_or_else(|said| panic!("nft {arguments:?}: {said}"))
    }

    /// The same, and what it says if it fails.
    pub(crate) fn try_nft(&self, arguments: &[&str]) -> Result<String, String> {
        let run = || Ok(Command::new("nft").args(arguments).stdin(Stdio::null()).output());
        let output = self.host.run(run).expect("a thread there").expect("these tests need nft");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// The number of rules on the host, in all tables.
    pub(crate) fn rules(&self) -> usize {
        let text = self.nft(&["-j", "list", "ruleset"]);
        let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        all["nftables"].as_array().expect("a list").iter().filter(|o| o.get("rule").is_some()).count()
    }
}

pub(crate) fn write_sysctl(namespace: &Namespace, name: &str, value: &str) {
    let path = format!("/proc/sys/{name}");
    let write = || Ok(std::fs::write(&path, value));
    namespace.run(write).expect("a thread there").unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// A UDP socket in `namespace` that does not wait.
pub(crate) fn udp(namespace: &Namespace, address: Ipv4Addr, port: u16) -> UdpSocket {
    let bind = || Ok(UdpSocket::bind((address, port)).expect("bind"));
    let socket = namespace.run(bind).expect("a thread there");
    socket.set_nonblocking(true).expect("nonblocking");
    socket
}

/// Whether nothing has arrived.
pub(crate) fn is_silent(socket: &UdpSocket) -> bool {
    matches!(socket.recv(&mut [0; 64]), Err(e) if e.kind() == ErrorKind::WouldBlock)
}
