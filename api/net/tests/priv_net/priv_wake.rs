//! What wakes a box that sleeps, and what counts as activity.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use icebox_net::firewall::Policy;
use icebox_net::nflog::Event;
use rustix::net::sockopt;

use crate::packet::Recorder;
use crate::world::{DEADLINE, SITE, TestBox, World, echo, original, udp};

/// Long enough for what was sent to be told.
const SHORT: Duration = Duration::from_millis(300);

/// Both ends of a connection from the box to a server on the internet.
fn connection(world: &World, b: &TestBox, port: u16) -> (TcpStream, TcpStream) {
    let listen = || Ok(TcpListener::bind((SITE, port)).expect("listen"));
    let listener = world.internet.run(listen).expect("a thread there");
    let here = b.connect(SITE, port).expect("connect");
    let (there, _) = listener.accept().expect("accept");
    (here, there)
}

fn traffic(world: &World, b: &TestBox) -> u64 {
    world.wait(world.side().traffic(vec![b.pair]))[&b.address()]
}

fn arrived(b: &TestBox) -> Option<Event> {
    Some(Event::Arrived { guest: b.address() })
}

/// Until no packet is on its way any more.
fn settle(world: &mut World) {
    world.seen();
    while world.event(SHORT).is_some() {}
}

#[test]
fn priv_data_for_a_sleeping_box_is_told_and_not_held_back() {
    let mut world = World::new();
    let (b, awake) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let (mut here, mut there) = connection(&world, &b, 7001);
    let (_here, mut others) = connection(&world, &awake, 7002);
    there.write_all(b"a").expect("send");
    others.write_all(b"a").expect("send");
    settle(&mut world);
    world.wait(world.side().set_frozen(b.pair, true));
    assert_eq!(world.event(SHORT), None, "told although nothing arrives");
    others.write_all(b"b").expect("send");
    assert_eq!(world.event(SHORT), None, "told of a box that is awake");
    there.write_all(b"b").expect("send");
    assert_eq!(world.event(DEADLINE), arrived(&b));
    let mut both = [0; 2];
    here.read_exact(&mut both).expect("nothing is held back");
    assert_eq!(&both, b"ab");
    world.wait(world.side().set_frozen(b.pair, false));
    settle(&mut world);
    there.write_all(b"c").expect("send");
    assert_eq!(world.event(SHORT), None, "told although it is awake again");
    // The end of a connection wakes as well, and a datagram.
    world.wait(world.side().set_frozen(b.pair, true));
    drop(there);
    assert_eq!(world.event(DEADLINE), arrived(&b), "the end of a connection");
    world.wait(world.side().set_frozen(b.pair, false));
    let (ask, answer) = (udp(&b.namespace, b.address(), 7777), udp(&world.internet, SITE, 7003));
    ask.send_to(b"ask", (SITE, 7003)).expect("send");
    world.seen();
    let (_, from) = answer.recv_from(&mut [0; 8]).expect("asked");
    world.wait(world.side().set_frozen(b.pair, true));
    answer.send_to(b"answer", from).expect("answer");
    assert_eq!(world.event(DEADLINE), arrived(&b), "a datagram");
}

#[test]
fn priv_what_a_proxy_sends_to_a_sleeping_box_is_told() {
    let mut world = World::new();
    let b = world.add_box(Policy::Custom { allowed: vec![], denied: vec![] });
    let mut stream = b.connect(SITE, 443).expect("connect");
    original(&mut stream).expect("the proxy");
    settle(&mut world);
    world.wait(world.side().set_frozen(b.pair, true));
    echo(&mut stream).expect("echo");
    assert_eq!(world.event(DEADLINE), arrived(&b));
}

/// The kernel keeps it: a daemon that starts after a crash gets the events too.
#[test]
fn priv_a_sleeping_box_is_watched_over_after_a_restart() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let (_here, mut there) = connection(&world, &b, 7001);
    world.wait(world.side().set_frozen(b.pair, true));
    world.die();
    world.start();
    there.write_all(b"a").expect("send");
    assert_eq!(world.event(DEADLINE), arrived(&b));
}

/// Packets that the box's end has seen from the internet and that carry nothing.
fn probes(recorder: &Recorder) -> usize {
    let is_empty = |bytes: &[u8]| bytes.len() == 20 + usize::from(bytes[32] >> 4) * 4;
    recorder.seen().iter().filter(|s| s.source == SITE && is_empty(&s.bytes)).count()
}

#[test]
fn priv_probes_of_a_silent_connection_neither_wake_nor_count() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let (here, mut there) = connection(&world, &b, 7001);
    settle(&mut world);
    let recorder = Recorder::new(&b.namespace);
    world.wait(world.side().set_frozen(b.pair, true));
    let before = traffic(&world, &b);
    for end in [&here, &there] {
        sockopt::set_tcp_keepidle(end, Duration::from_secs(1)).expect("keep alive");
        sockopt::set_tcp_keepintvl(end, Duration::from_secs(1)).expect("keep alive");
        sockopt::set_socket_keepalive(end, true).expect("keep alive");
    }
    let (begun, mut seen) = (Instant::now(), 0);
    // A probe and an answer to one's own, twice.
    while seen < 4 {
        assert!(begun.elapsed() < DEADLINE, "no probes: {seen}");
        seen += probes(&recorder);
        assert_eq!(world.event(Duration::from_millis(20)), None, "a probe wakes");
    }
    assert_eq!(traffic(&world, &b), before, "a probe counts as activity");
    there.write_all(b"data").expect("send");
    assert_eq!(world.event(DEADLINE), arrived(&b), "data does not wake after probes");
    assert!(traffic(&world, &b) > before, "data does not count");
}

#[test]
fn priv_activity_is_told_for_all_boxes_at_once() {
    let mut world = World::new();
    let boxes = [world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll), world.add_box(Policy::DenyAll)];
    echo(&mut boxes[0].connect(SITE, 80).expect("connect")).expect("echo");
    let pairs = boxes.iter().map(|b| b.pair).collect();
    let all = world.wait(world.side().traffic(pairs));
    assert_eq!(all.len(), 3);
    assert!(all[&boxes[0].address()] > 0);
    assert!(boxes[2].connect(SITE, 80).is_err());
    assert_eq!((all[&boxes[1].address()], traffic(&world, &boxes[2])), (0, 0), "what is refused is no activity");
}

/// Some of many are asked for one by one, more of them by a look at all.
#[test]
fn priv_activity_is_told_for_the_boxes_that_are_asked_for() {
    const MANY: usize = 200;
    let mut world = World::new();
    let boxes: Vec<TestBox> = (0..MANY).map(|_| world.add_box(Policy::AllowAll)).collect();
    echo(&mut boxes[7].connect(SITE, 80).expect("connect")).expect("echo");
    let unknown = world.new_box().pair;
    for some in [1, 40, MANY] {
        let mut asked: Vec<_> = boxes.iter().take(some.max(8)).map(|b| b.pair).collect();
        asked.push(unknown);
        let told = world.wait(world.side().traffic(asked.clone()));
        asked.pop();
        asked.sort_unstable();
        assert_eq!(told.keys().copied().collect::<Vec<_>>(), asked.iter().map(|p| p.guest()).collect::<Vec<_>>());
        for b in boxes.iter().take(some.max(8)) {
            assert_eq!(told[&b.address()] > 0, b.pair == boxes[7].pair, "{}", b.address());
        }
    }
}
