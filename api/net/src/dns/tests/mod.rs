//! Tests the proxy against an upstream of the test, on the loopback of the test process: no privileges, no namespaces.

mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use self::upstream::{Upstream, name};
use super::*;
use crate::address::Pair;
use crate::denial::Denial;
use crate::firewall::Pin;
use crate::policy::{BoxPolicy, PolicyText};
use crate::table::BoxNet;
use futures::future::BoxFuture;

/// Not reached in a passing test.
const DEADLINE: Duration = Duration::from_secs(20);
/// The address of the test's box, from which the tests connect.
const GUEST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Records pins, and the events until then.
#[derive(Default)]
struct Recorder {
    pins: Mutex<Vec<Pin>>,
    fails: AtomicBool,
    calls: AtomicUsize,
    gate: tokio::sync::Mutex<()>,
    /// A policy that takes effect at the moment of a pin.
    changes_to: Mutex<Option<BoxPolicy>>,
}

impl Pinner for Arc<Recorder> {
    fn pin(&self, box_: &Arc<BoxNet>, under: &Arc<BoxPolicy>, pins: Vec<Pin>) -> BoxFuture<'static, Result<(), Error>> {
        let (recorder, box_, under) = (Self::clone(self), Arc::clone(box_), Arc::clone(under));
        Box::pin(async move {
            recorder.calls.fetch_add(1, Ordering::SeqCst);
            let _open = recorder.gate.lock().await;
            if let Some(policy) = recorder.changes_to.lock().unwrap().take() {
                box_.set_policy(policy);
            }
            if recorder.fails.load(Ordering::SeqCst) || !Arc::ptr_eq(&under, &box_.policy()) {
                return Err(Error::new("pin", "", crate::error::Cause::Exhausted("place")));
            }
            recorder.pins.lock().unwrap().extend(pins);
            Ok(())
        })
    }
}

struct World {
    upstream: Arc<Upstream>,
    recorder: Arc<Recorder>,
    denials: Arc<Mutex<Vec<Denial>>>,
    box_: Arc<BoxNet>,
    table: Arc<NetTable>,
    proxy: DnsProxy,
    socket: UdpSocket,
}

fn policy(mode: &str, domains: &[&str]) -> BoxPolicy {
    let list = |texts: &[&str]| -> Vec<String> {
        let given = if mode == "custom" { texts } else { &[] };
        given.iter().map(|&text| text.to_owned()).collect()
    };
    let text = PolicyText {
        mode,
        allowed_domains: &list(domains),
        allowed_cidrs: &list(&["198.51.100.9/32"]),
        denied_cidrs: &list(&["198.51.100.66/32"]),
    };
    BoxPolicy::check(text).unwrap_or_else(|_| panic!("{mode}"))
}

impl World {
    async fn new(mode: &str, domains: &[&str]) -> Self {
        let (upstream, address) = Upstream::start().await;
        Self::with(upstream, vec![address], policy(mode, domains)).await
    }

    async fn with(upstream: Arc<Upstream>, upstreams: Vec<SocketAddr>, policy: BoxPolicy) -> Self {
        let table = Arc::new(NetTable::default());
        let box_ = Arc::new(BoxNet::new("calm-otter-1", "account", Pair::of(GUEST), policy, None));
        table.insert(Arc::clone(&box_));
        let recorder = Arc::new(Recorder::default());
        let denials: Arc<Mutex<Vec<Denial>>> = Arc::default();
        let told = Arc::clone(&denials);
        let config = DnsConfig {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            upstreams,
            resolv_conf: "/dev/null".into(),
            pool: "203.0.113.0/24".parse().expect("pool"),
        };
        let on_denial: OnDenial = Arc::new(move |_, denial| told.lock().unwrap().push(denial));
        let pinner: Arc<dyn Pinner> = Arc::new(Arc::clone(&recorder));
        let proxy = DnsProxy::start_at(config, Place::Here, Arc::clone(&table), pinner, on_denial).await;
        let proxy = proxy.unwrap_or_else(|e| panic!("{}", e.chain()));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        socket.connect(proxy.listening()).await.expect("connect");
        Self { upstream, recorder, denials, box_, table, proxy, socket }
    }

    async fn send(&self, text: &str, kind: RecordType) {
        self.socket.send(&written(text, kind)).await.expect("send");
    }

    async fn receive(&self) -> Message {
        let mut buffer = [0; 4096];
        let received = tokio::time::timeout(DEADLINE, self.socket.recv(&mut buffer)).await;
        Message::from_vec(&buffer[..received.expect("an answer in time").expect("receive")]).expect("a message")
    }

    async fn ask(&self, text: &str, kind: RecordType) -> Message {
        self.send(text, kind).await;
        let message = self.receive().await;
        assert_eq!(message.queries[0].name().to_ascii(), text, "the question is repeated");
        assert!(message.additionals.is_empty());
        message
    }

    async fn lookup(&self, text: &str) -> (ResponseCode, Vec<[u8; 4]>) {
        let message = self.ask(text, RecordType::A).await;
        (message.response_code, message.answers.iter().filter_map(resolved::address).map(|a| a.octets()).collect())
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.upstream.asked.lock().unwrap())
    }

    fn denied(&self) -> Vec<(String, Option<String>, Option<[u8; 4]>)> {
        let taken = std::mem::take(&mut *self.denials.lock().unwrap());
        assert!(taken.iter().all(|d| d.protocol == "dns" && d.port.is_none()));
        taken.into_iter().map(|d| (d.rule, d.name, d.address.map(|a| a.octets()))).collect()
    }

    fn pins(&self) -> Vec<([u8; 4], u64)> {
        let taken = std::mem::take(&mut *self.recorder.pins.lock().unwrap());
        taken.into_iter().map(|pin| (pin.address.octets(), pin.time.as_secs())).collect()
    }
}

fn written(text: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1400).set_version(0);
    message.set_edns(edns);
    message.to_vec().expect("bytes")
}

const OK: ResponseCode = ResponseCode::NoError;

#[tokio::test]
async fn custom_answers_what_is_allowed_and_pins_it() {
    let world = World::new("custom", &["a.example", "*.example"]).await;
    assert_eq!(world.lookup("A.Example.").await, (OK, vec![[198, 51, 100, 1]]));
    assert_eq!(world.pins(), [([198, 51, 100, 1], 360)], "capped, and pinned for longer than it is answered for");
    assert!(world.box_.names.stands_for("a.example", [198, 51, 100, 1].into()));
    let message = world.ask("www.example.", RecordType::A).await;
    let kinds: Vec<_> = message.answers.iter().map(|r| (r.record_type(), r.ttl)).collect();
    assert_eq!(kinds, [(RecordType::CNAME, 20), (RecordType::A, 20)], "its alias need not be allowed");
    assert_eq!(world.pins(), [([198, 51, 100, 2], 80)]);
    assert!(world.box_.names.stands_for("www.example", [198, 51, 100, 2].into()));
    assert!(!world.box_.names.stands_for("cdn.other", [198, 51, 100, 2].into()));
    assert_eq!(world.asked(), ["a.example. A", "www.example. A"]);
    // From the cache: no upstream question, but another pin.
    let (code, found) = world.lookup("a.example.").await;
    assert_eq!((code, found, world.pins().len(), world.asked().len()), (OK, vec![[198, 51, 100, 1]], 1, 0));
    assert_eq!(world.proxy.counters().cache_hits, 1);
    assert_eq!(world.denied(), []);
}

#[tokio::test]
async fn custom_refuses_what_is_not_allowed_and_asks_no_server() {
    let world = World::new("custom", &["a.example"]).await;
    for (text, kind) in [
        ("b.example.", RecordType::A),
        ("a.example.evil.", RecordType::A),
        ("secret.a.example.", RecordType::TXT),
        ("a\\.example.", RecordType::A),
        ("b.example.", RecordType::AAAA),
        ("b.example.", RecordType::HTTPS),
        ("1.100.51.198.in-addr.arpa.", RecordType::PTR),
    ] {
        let message = world.ask(text, kind).await;
        assert_eq!((message.response_code, message.answers.len()), (ResponseCode::Refused, 0), "{text} {kind}");
        let denied = world.denied();
        assert!(denied.len() == 1 && denied[0].0 == "not in allowed_domains" && denied[0].1.is_some(), "{denied:?}");
    }
    assert_eq!((world.asked().len(), world.pins().len()), (0, 0));
    // The policy allows the network of one address; the box was answered with the other.
    assert_eq!(world.ask("9.100.51.198.in-addr.arpa.", RecordType::PTR).await.answers.len(), 1);
    world.lookup("a.example.").await;
    assert_eq!(world.ask("1.100.51.198.in-addr.arpa.", RecordType::PTR).await.answers.len(), 1);
}

#[tokio::test]
async fn other_types_pass_for_allowed_names_and_some_for_none() {
    for mode in ["custom", "allow-all"] {
        let world = World::new(mode, &["*.example"]).await;
        let mail = world.ask("a.example.", RecordType::MX).await;
        assert_eq!((mail.response_code, mail.answers.len()), (OK, 1));
        assert_eq!(world.asked().len(), 1);
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
            let message = world.ask("a.example.", kind).await;
            assert_eq!((message.response_code, message.answers.len()), (OK, 0), "{kind}");
        }
        for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::Unknown(200)] {
            let message = world.ask("a.example.", kind).await;
            assert_eq!(message.response_code, ResponseCode::Refused, "{kind}");
        }
        assert_eq!(world.lookup("none.example.").await.0, ResponseCode::NXDomain);
        assert_eq!(world.lookup("fails.example.").await.0, ResponseCode::ServFail);
        assert_eq!(world.pins(), []);
    }
}

#[tokio::test]
async fn deny_all_refuses_everything() {
    let world = World::new("deny-all", &[]).await;
    for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::HTTPS] {
        assert_eq!(world.ask("a.example.", kind).await.response_code, ResponseCode::Refused);
        assert_eq!(world.denied(), [("deny-all".to_owned(), Some("a.example".to_owned()), None)]);
    }
    assert_eq!((world.asked().len(), world.proxy.counters().refused), (0, 4));
}

#[tokio::test]
async fn closed_networks_are_in_no_answer() {
    let closed = |text: &str, address| ("answer in a closed network".to_owned(), Some(text.to_owned()), Some(address));
    for mode in ["custom", "allow-all"] {
        let world = World::new(mode, &["*.example"]).await;
        // An alias alone would reveal that the name exists.
        let inside = world.ask("inside.example.", RecordType::A).await;
        assert_eq!((inside.response_code, inside.answers.len()), (OK, 0));
        assert!(inside.edns.expect("EDNS").option(15.into()).is_some(), "it says why");
        assert_eq!(world.denied(), [closed("inside.example", [169, 254, 169, 254])]);
        assert_eq!(world.lookup("pool.example.").await, (OK, vec![]));
        assert_eq!(world.denied(), [closed("pool.example", [203, 0, 113, 7])]);
        let (code, mut left) = world.lookup("mixed.example.").await;
        assert_eq!(world.denied(), [closed("mixed.example", [10, 0, 0, 1])]);
        left.retain(|address| *address != [198, 51, 100, 66] || mode == "custom");
        assert_eq!((code, left), (OK, vec![[198, 51, 100, 3]]));
        assert!(world.pins().iter().all(|(address, _)| *address == [198, 51, 100, 3]));
        assert!(!world.box_.names.stands_for("mixed.example", [10, 0, 0, 1].into()));
        let reverse = world.ask("1.0.88.10.in-addr.arpa.", RecordType::PTR).await;
        assert_eq!((reverse.response_code, world.denied().len()), (ResponseCode::NXDomain, 0));
        let found = world.proxy.addresses("mixed.example").await.expect("addresses");
        assert_eq!(found, [[198, 51, 100, 3].into(), Ipv4Addr::from([198, 51, 100, 66])]);
        assert!(world.proxy.addresses("fails.example").await.is_err());
    }
    let world = World::new("custom", &["*.example"]).await;
    assert_eq!(world.lookup("denied.example.").await, (OK, vec![]));
    assert_eq!(world.denied()[0].0, "denied_cidrs");
    assert_eq!(world.pins(), []);
}

#[tokio::test]
async fn names_of_the_box_itself_are_known_here() {
    let world = World::new("custom", &[]).await;
    for (text, want) in
        [("localhost.", [127, 0, 0, 1]), ("x.LocalHost.", [127, 0, 0, 1]), ("calm-otter-1.", GUEST.octets())]
    {
        assert_eq!(world.lookup(text).await, (OK, vec![want]), "{text}");
        assert_eq!(world.ask(text, RecordType::AAAA).await.answers.len(), 0);
    }
    assert_eq!(world.lookup("x.invalid.").await.0, ResponseCode::NXDomain);
    assert_eq!((world.asked().len(), world.pins().len(), world.denied().len()), (0, 0, 0));
}

#[tokio::test]
async fn no_answer_before_its_pin_and_none_without() {
    let world = World::new("custom", &["*.example"]).await;
    let gate = world.recorder.gate.lock().await;
    world.send("a.example.", RecordType::A).await;
    let begun = tokio::time::Instant::now();
    while world.recorder.calls.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < DEADLINE, "no address was pinned");
        tokio::task::yield_now().await;
    }
    // A later question is answered while this one waits for its pin.
    world.send("b.invalid.", RecordType::A).await;
    assert_eq!(world.receive().await.response_code, ResponseCode::NXDomain);
    assert!(world.socket.try_recv(&mut [0; 512]).is_err(), "answered before it is pinned");
    drop(gate);
    assert_eq!(world.receive().await.answers.len(), 1);
    assert_eq!(world.pins().len(), 1);
    world.recorder.fails.store(true, Ordering::SeqCst);
    assert_eq!(world.lookup("a.example.").await, (ResponseCode::ServFail, vec![]));
    assert_eq!(world.proxy.counters().pin_failures, 1);
}

#[tokio::test]
async fn a_policy_that_changes_meanwhile_decides() {
    let world = World::new("custom", &["a.example"]).await;
    let other = policy("custom", &["b.example"]);
    *world.recorder.changes_to.lock().unwrap() = Some(other);
    assert_eq!(world.lookup("a.example.").await.0, ResponseCode::Refused);
    assert_eq!(world.pins(), []);
    // If the new policy allows the name too, the question is decided once more.
    world.box_.set_policy(policy("custom", &["*.example"]));
    *world.recorder.changes_to.lock().unwrap() = Some(policy("custom", &["a.example", "b.example"]));
    assert_eq!(world.lookup("a.example.").await, (OK, vec![[198, 51, 100, 1]]));
    assert_eq!(world.pins().len(), 1);
}

#[tokio::test]
async fn forgeries_do_not_count_and_long_answers_come_by_tcp() {
    let world = World::new("allow-all", &[]).await;
    world.upstream.forges.store(true, Ordering::Relaxed);
    assert_eq!(world.lookup("a.example.").await, (OK, vec![[198, 51, 100, 1]]));
    world.upstream.forges.store(false, Ordering::Relaxed);
    let cut = world.ask("many.example.", RecordType::TXT).await;
    assert!(cut.truncation && cut.answers.is_empty());
    let mut stream = TcpStream::connect(world.proxy.listening()).await.expect("connect");
    for _ in 0..2 {
        let (bytes, whole) = ask_by_tcp(&mut stream, "many.example.", RecordType::TXT).await;
        assert!(bytes > 4000 && !whole.truncation && whole.answers.len() == 1);
    }
    assert_eq!(world.asked().len(), 3, "by UDP, by TCP, and then from memory");
}

#[tokio::test]
async fn hundreds_of_addresses_are_given_and_pinned_in_any_case_of_the_name() {
    let world = World::new("custom", &["Many.Pool.EXAMPLE."]).await;
    let cut = world.ask("many.pool.example.", RecordType::A).await;
    assert!(cut.truncation, "a part is never told as the whole");
    let mut stream = TcpStream::connect(world.proxy.listening()).await.expect("connect");
    for _ in 0..2 {
        let (_, whole) = ask_by_tcp(&mut stream, "MANY.pool.example.", RecordType::A).await;
        assert!(!whole.truncation);
        // One of the 240 is denied by the policy of these tests.
        assert_eq!(whole.answers.len(), 239);
    }
    assert_eq!(world.asked().len(), 2, "by UDP, by TCP, and then from memory");
}

/// One question and its answer on a connection; the answer's length in bytes comes with it.
async fn ask_by_tcp(stream: &mut TcpStream, name: &str, kind: RecordType) -> (usize, Message) {
    let question = written(name, kind);
    stream.write_u16(question.len() as u16).await.expect("length");
    stream.write_all(&question).await.expect("question");
    let mut bytes = vec![0; stream.read_u16().await.expect("length").into()];
    stream.read_exact(&mut bytes).await.expect("answer");
    (bytes.len(), Message::from_vec(&bytes).expect("a message"))
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_fails() {
    let (upstream, good) = Upstream::start().await;
    // A port without a listener: the refusal comes at once.
    let dead = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind").local_addr().expect("address");
    let world = World::with(upstream, vec![dead, good], policy("allow-all", &[])).await;
    assert_eq!(world.lookup("a.example.").await.0, OK);
    assert_eq!(world.lookup("www.example.").await.0, OK);
    let counters = world.proxy.counters();
    assert_eq!((counters.upstream_failures, counters.upstream_questions), (1, 2), "the good one comes first then");
}

#[tokio::test]
async fn who_asks_the_same_at_once_asks_once() {
    let world = World::new("allow-all", &[]).await;
    let held = world.upstream.held.lock().await;
    for _ in 0..20 {
        world.send("a.example.", RecordType::A).await;
    }
    // An answer that needs no upstream arrives after all questions were received.
    world.send("x.invalid.", RecordType::A).await;
    assert_eq!(world.receive().await.response_code, ResponseCode::NXDomain);
    drop(held);
    for _ in 0..20 {
        assert_eq!(world.receive().await.answers.len(), 1);
    }
    assert_eq!(world.asked().len(), 1);
}

#[tokio::test]
async fn strangers_and_floods_are_dropped() {
    let world = World::new("allow-all", &[]).await;
    for _ in 0..1000 {
        world.send("localhost.", RecordType::A).await;
    }
    let begun = tokio::time::Instant::now();
    while world.proxy.counters().questions + world.proxy.counters().dropped < 1000 {
        assert!(begun.elapsed() < DEADLINE, "{:?}", world.proxy.counters());
        tokio::task::yield_now().await;
    }
    assert!(world.proxy.counters().dropped > 300);
    assert_eq!(world.denied(), [("too many questions".to_owned(), None, None)], "told once");
    world.table.remove(world.box_.pair);
    let before = world.proxy.counters();
    world.send("localhost.", RecordType::A).await;
    let mut stream = TcpStream::connect(world.proxy.listening()).await.expect("connect");
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed at once");
    while world.proxy.counters().strangers < before.strangers + 2 {
        assert!(begun.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    assert_eq!(world.proxy.counters().questions, before.questions);
}

#[tokio::test]
async fn nonsense_gets_little_or_nothing() {
    let world = World::new("allow-all", &[]).await;
    let mut other_class = Message::new(77, MessageType::Query, OpCode::Query);
    let mut query = Query::query(name("version.bind."), RecordType::TXT);
    query.set_query_class(DNSClass::CH);
    other_class.add_query(query);
    world.socket.send(&other_class.to_vec().expect("bytes")).await.expect("send");
    assert_eq!(world.receive().await.response_code, ResponseCode::Refused);
    // Ignored messages get no answer: the next answer is to the next question.
    for bytes in [&b""[..], b"\0\x01\x80\0\0\x01\0\0\0\0\0\0", &[0xff; 600]] {
        world.socket.send(bytes).await.expect("send");
    }
    world.socket.send(b"\0\x09\x01\0\0\x02\0\0\0\0\0\0").await.expect("send");
    let message = world.receive().await;
    assert_eq!((message.id, message.response_code), (9, ResponseCode::FormErr));
    let mut stream = TcpStream::connect(world.proxy.listening()).await.expect("connect");
    stream.write_all(&[0xff; 70]).await.expect("send");
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "a frame that is too long ends it");
    assert_eq!((world.asked().len(), world.proxy.counters().malformed), (0, 5));
}
