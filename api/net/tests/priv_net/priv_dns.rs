//! Names, from a question in a box to a connection: the DNS proxy, the firewall and an upstream, each in its namespace.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use icebox_net::HostConfig;
use icebox_net::denial::Denial;
use icebox_net::dns::{DnsConfig, DnsProxy};
use icebox_net::firewall::{Limits, ProxyPorts};
use icebox_net::policy::{BoxPolicy, PolicyText};
use icebox_net::sockets::Sockets;
use icebox_net::table::{BoxNet, NetTable};

use crate::world::{DEADLINE, EGRESS_PORT, SITE, SITE_2, SITE_3, TestBox, World, echo, udp};

/// Another than where the world's own proxies listen.
const DNS_PORT: u16 = 30_053;
/// Where the upstream listens: boxes could not reach it there if they tried.
const UPSTREAM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 5300);
/// This port has no rule, so a pin alone opens it.
const PORT: u16 = crate::world::PLAIN_PORT;

/// What the upstream knows.
fn answers(name: &str) -> Vec<Ipv4Addr> {
    match name {
        "a.example." => vec![SITE],
        "b.example." => vec![SITE_2],
        "inside.example." => vec![[169, 254, 169, 254].into(), [10, 88, 0, 3].into()],
        _ => Vec::new(),
    }
}

/// An upstream in the playing internet, at an address of a private network: it is the operator's.
fn upstream(world: &World) -> Arc<Mutex<Vec<String>>> {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let bind = || Ok(UdpSocket::bind(UPSTREAM).expect("bind"));
    let (socket, noted) = (world.internet.run(bind).expect("a thread there"), Arc::clone(&asked));
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..length]).expect("a question");
            let query = question.queries[0].clone();
            noted.lock().expect("list").push(query.name().to_ascii());
            let mut response = Message::new(question.id, MessageType::Response, OpCode::Query);
            let record = |a| Record::from_rdata(query.name().clone(), 120, RData::A(A(a)));
            if query.query_type() == RecordType::A {
                response.answers = answers(&query.name().to_ascii()).into_iter().map(record).collect();
            }
            response.add_query(query);
            socket.send_to(&response.to_vec().expect("bytes"), peer).expect("send");
        }
    });
    asked
}

struct Names {
    world: World,
    table: Arc<NetTable>,
    proxy: DnsProxy,
    asked: Arc<Mutex<Vec<String>>>,
    denials: Arc<Mutex<Vec<(String, Denial)>>>,
}

fn policy(mode: &str, domains: &[&str]) -> BoxPolicy {
    let domains: Vec<String> = if mode == "custom" { domains } else { &[] }.iter().map(|&t| t.to_owned()).collect();
    let text = PolicyText { mode, allowed_domains: &domains, allowed_cidrs: &[], denied_cidrs: &[] };
    BoxPolicy::check(text).unwrap_or_else(|_| panic!("{mode}"))
}

impl Names {
    fn new() -> Self {
        let mut world = World::new();
        let ports = ProxyPorts { dns: DNS_PORT, egress: EGRESS_PORT };
        world.start_with(HostConfig { ports, ..World::config() });
        let asked = upstream(&world);
        let table: Arc<NetTable> = Arc::default();
        let denials: Arc<Mutex<Vec<(String, Denial)>>> = Arc::default();
        let config = DnsConfig {
            listen: (Ipv4Addr::UNSPECIFIED, DNS_PORT).into(),
            upstreams: vec![UPSTREAM],
            resolv_conf: "/dev/null".into(),
            pool: World::config().pool,
        };
        let told = Arc::clone(&denials);
        let on_denial = Arc::new(move |b: &BoxNet, denial| told.lock().expect("list").push((b.id.clone(), denial)));
        let (host, side, boxes) = (world.host.clone(), Arc::clone(world.side()), Arc::clone(&table));
        let proxy = world.wait(async move {
            let sockets = Arc::new(Sockets::start().await?);
            DnsProxy::start(config, host, sockets, boxes, Arc::new(side), on_denial).await
        });
        Self { world, table, proxy, asked, denials }
    }

    fn add(&mut self, policy: BoxPolicy) -> (TestBox, Arc<BoxNet>) {
        let b = self.world.new_box();
        let net = Arc::new(BoxNet::new(&b.id, "account", b.pair, policy, None));
        self.world.attach(&b, net.policy().of_firewall(), Limits::default());
        self.table.insert(Arc::clone(&net));
        (b, net)
    }

    /// As a change of the policy is made: first for names, then in the firewall.
    fn set_policy(&self, net: &BoxNet, policy: BoxPolicy) {
        net.set_policy(policy);
        let policy = net.policy();
        let pins = net.names.pins(|name| policy.allows_name(name));
        self.world.wait(self.world.side().set_policy(net.pair, policy.of_firewall(), pins));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("list"))
    }
}

/// Sends a question from a box to the server at the given address.
fn lookup(b: &TestBox, server: Ipv4Addr, name: &str) -> (ResponseCode, Vec<Ipv4Addr>) {
    let socket = udp(&b.namespace, b.address(), 0);
    socket.set_nonblocking(false).expect("blocking");
    socket.set_read_timeout(Some(DEADLINE)).expect("timeout");
    let mut question = Message::new(77, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(Name::from_ascii(name).expect(name), RecordType::A));
    socket.send_to(&question.to_vec().expect("bytes"), (server, 53)).expect("send");
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).expect("an answer");
    assert_eq!(from, (server, 53).into(), "the answer comes from where the question went");
    let answer = Message::from_vec(&buffer[..length]).expect("a message");
    let address = |record: &Record| match record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    (answer.response_code, answer.answers.iter().filter_map(address).collect())
}

fn reaches(b: &TestBox, address: Ipv4Addr) -> bool {
    match b.connect(address, PORT) {
        Ok(mut stream) => echo(&mut stream).is_ok(),
        Err(e) => e.kind() != ErrorKind::ConnectionRefused && panic!("{address}: {e}"),
    }
}

#[test]
fn priv_a_name_opens_its_addresses_for_the_box_that_asked() {
    let mut names = Names::new();
    let (b, net) = names.add(policy("custom", &["a.example"]));
    let (other, _) = names.add(policy("custom", &["a.example"]));
    assert!(!reaches(&b, SITE), "before it has asked");
    // At the gateway, and wherever else it looks for a resolver. The moment the answer is there, the way is open.
    for server in [b.pair.host(), SITE_3] {
        assert_eq!(lookup(&b, server, "a.example."), (ResponseCode::NoError, vec![SITE]));
        assert!(reaches(&b, SITE) && !reaches(&other, SITE) && !reaches(&b, SITE_2));
    }
    assert_eq!(names.asked(), ["a.example."], "asked once");
    assert_eq!(lookup(&b, b.pair.host(), "b.example.").0, ResponseCode::Refused);
    assert!(names.asked().is_empty() && !reaches(&b, SITE_2));
    let (id, denial) = names.denials.lock().expect("list").pop().expect("a denial");
    assert_eq!(
        (id, denial.rule.as_str(), denial.name.as_deref()),
        (b.id.clone(), "not in allowed_domains", Some("b.example"))
    );
    let mut open = b.connect(SITE, PORT).expect("connect");
    echo(&mut open).expect("echo");
    // The new policy keeps what it allows, too; the next one does not.
    names.set_policy(&net, policy("custom", &["a.example", "b.example"]));
    echo(&mut open).expect("it goes on");
    assert_eq!(lookup(&b, b.pair.host(), "b.example.").1, [SITE_2]);
    assert!(reaches(&b, SITE_2) && reaches(&b, SITE));
    names.set_policy(&net, policy("custom", &["b.example"]));
    assert!(echo(&mut open).is_err(), "what the name has opened is closed");
    assert!(reaches(&b, SITE_2) && !reaches(&b, SITE));
    assert_eq!(names.proxy.counters().strangers, 0);
}

#[test]
fn priv_closed_networks_stay_closed_to_names_that_resolve_to_them() {
    let mut names = Names::new();
    for (mode, domains) in [("custom", &["*.example"][..]), ("allow-all", &[])] {
        let (b, _) = names.add(policy(mode, domains));
        assert_eq!(lookup(&b, b.pair.host(), "inside.example."), (ResponseCode::NoError, vec![]));
        let denials = std::mem::take(&mut *names.denials.lock().expect("list"));
        assert!(denials.iter().any(|(id, d)| *id == b.id && d.rule == "answer in a closed network"), "{denials:?}");
        assert!(!reaches(&b, [169, 254, 169, 254].into()));
    }
    let (b, _) = names.add(policy("deny-all", &[]));
    names.asked();
    assert_eq!(lookup(&b, b.pair.host(), "a.example.").0, ResponseCode::Refused);
    assert!(names.asked().is_empty());
}

#[test]
fn priv_the_c_library_of_a_box_finds_names() {
    let mut names = Names::new();
    let (b, _) = names.add(policy("custom", &["a.example"]));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {}\n", b.pair.host())).expect("write");
    let getent = |name: &str| {
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec getent ahostsv4 \"$1\"";
        let run = || {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", script]).arg(&file).arg(name).stdin(Stdio::null());
            Ok(command.output())
        };
        let output = b.namespace.run(run).expect("a thread there").expect("unshare and getent");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (found, text) = getent("a.example");
    assert!(found && text.starts_with(&SITE.to_string()), "{text}");
    assert!(!getent("b.example").0);
    assert_eq!(names.asked(), ["a.example."]);
}
