//! What a policy changes, and when; limits.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use icebox_net::firewall::{Limits, Pin, Policy};

use crate::packet::{Packet, UDP};
use crate::world::{DEADLINE, PLAIN_PORT, SITE, SITE_2, SITE_3, TestBox, World, echo, udp};

fn custom(allowed: &[&str], denied: &[&str]) -> Policy {
    let networks = |list: &[&str]| list.iter().map(|t| t.parse().expect("network")).collect();
    Policy::Custom { allowed: networks(allowed), denied: networks(denied) }
}

fn pin(address: Ipv4Addr, milliseconds: u64) -> Pin {
    Pin { address, time: Duration::from_millis(milliseconds) }
}

fn open(b: &TestBox, address: Ipv4Addr) -> TcpStream {
    let mut stream = b.connect(address, PLAIN_PORT).unwrap_or_else(|e| panic!("connect to {address}: {e}"));
    echo(&mut stream).expect("echo");
    stream
}

/// Refused at once, not left to wait.
fn is_refused(b: &TestBox, address: Ipv4Addr, port: u16) -> bool {
    match b.connect(address, port) {
        Ok(_) => false,
        Err(e) => e.kind() == ErrorKind::ConnectionRefused || panic!("{address}:{port}: {e}"),
    }
}

/// Cut by the firewall: a reset at the next packet.
fn is_cut(stream: &mut TcpStream) -> bool {
    match echo(stream) {
        Ok(()) => false,
        Err(e) => matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) || panic!("{e}"),
    }
}

#[test]
fn priv_deny_all_refuses_at_once_and_cuts_what_was_open() {
    let mut world = World::new();
    let (b, other) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let (mut stream, mut others) = (open(&b, SITE), open(&other, SITE));
    let begun = Instant::now();
    world.wait(world.side().set_policy(b.pair, Policy::DenyAll, Vec::new()));
    let took = begun.elapsed();
    assert!(is_cut(&mut stream), "an open connection goes on");
    assert!(is_refused(&b, SITE, PLAIN_PORT) && is_refused(&b, SITE_2, PLAIN_PORT));
    let packet = Packet::new(UDP, b.address(), SITE, "denied.");
    packet.send(&b.namespace).expect("send");
    assert!(!world.seen().iter().any(|s| s.has("denied.")));
    echo(&mut others).expect("another box's connection is not touched");
    assert!(took < Duration::from_millis(100), "the change took {took:?}");
    world.wait(world.side().set_policy(b.pair, Policy::AllowAll, Vec::new()));
    open(&b, SITE);
}

/// What comes back is stopped, too, not only what goes out: the box is silent here.
#[test]
fn priv_deny_all_stops_what_is_on_its_way_back() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let there = udp(&world.internet, SITE, 7);
    let here = udp(&b.namespace, b.address(), 7777);
    here.send_to(b"ask", (SITE, 7)).expect("send");
    world.seen();
    let mut buffer = [0; 16];
    let (_, from) = there.recv_from(&mut buffer).expect("asked");
    let answer = |text: &[u8]| {
        let send = || Ok(there.send_to(text, from).expect("answer"));
        world.internet.run(send).expect("a thread there");
    };
    answer(b"one");
    let before = world.wait(world.side().counters(b.pair)).received.packets;
    assert_eq!(before, 1, "answers do not come through at all");
    world.wait(world.side().set_policy(b.pair, Policy::DenyAll, Vec::new()));
    answer(b"two");
    let after = world.wait(world.side().counters(b.pair)).received.packets;
    assert_eq!(before, after, "an answer came through");
    let mut all = Vec::new();
    while let Ok(length) = here.recv(&mut buffer) {
        all.push(buffer[..length].to_vec());
    }
    assert!(!all.contains(&b"two".to_vec()), "an answer came through");
}

#[test]
fn priv_custom_lets_through_what_is_allowed_and_not_denied() {
    let mut world = World::new();
    let b = world.add_box(custom(&["198.51.100.0/24", "10.0.0.0/8"], &["198.51.100.9/32"]));
    open(&b, SITE);
    assert!(is_refused(&b, SITE_2, PLAIN_PORT), "denied loses against allowed");
    assert!(is_refused(&b, SITE_3, PLAIN_PORT), "not allowed, yet reached");
    assert!(
        is_refused(&b, [10, 0, 0, 1].into(), PLAIN_PORT),
        "a private address was reached because the policy names it"
    );
    assert!(is_refused(&b, SITE, 853), "another resolver was reached");
    let ask = Packet { port: 53, ..Packet::new(UDP, b.address(), SITE, "a-tunnel.") };
    ask.send(&b.namespace).expect("send");
    assert!(!world.seen().iter().any(|s| s.has("a-tunnel.")), "DNS to another resolver passed");
    // A denied address stays denied when a name stands for it.
    world.wait(world.side().pin(b.pair, vec![pin(SITE_2, 60_000)]));
    assert!(is_refused(&b, SITE_2, PLAIN_PORT), "denied loses against a pin");
    let counters = world.wait(world.side().counters(b.pair));
    assert!(counters.refused.packets >= 5, "{counters:?}");
}

#[test]
fn priv_a_pin_ends_but_not_the_connection_it_allowed() {
    let mut world = World::new();
    let (b, other) = (world.add_box(custom(&[], &[])), world.add_box(custom(&[], &[])));
    assert!(is_refused(&b, SITE, PLAIN_PORT));
    world.wait(world.side().pin(b.pair, vec![pin(SITE, 1_500), pin(SITE_2, 60_000)]));
    let mut stream = open(&b, SITE);
    assert!(is_refused(&other, SITE, PLAIN_PORT), "a pin counts for another box");
    let begun = Instant::now();
    while b.connect(SITE, PLAIN_PORT).is_ok() {
        assert!(begun.elapsed() < DEADLINE, "the pin does not end");
        std::thread::yield_now();
    }
    echo(&mut stream).expect("an open connection ends with the pin");
    // A longer time counts, a shorter one does not.
    world.wait(world.side().pin(b.pair, vec![pin(SITE, 60_000), pin(SITE_2, 1)]));
    open(&b, SITE);
    open(&b, SITE_2);
}

#[test]
fn priv_a_changed_custom_policy_cuts_what_it_no_longer_allows() {
    let mut world = World::new();
    let b = world.add_box(custom(&["192.0.2.0/24"], &[]));
    world.wait(world.side().pin(b.pair, vec![pin(SITE, 60_000), pin(SITE_2, 60_000)]));
    let (mut one, mut two, mut three) = (open(&b, SITE), open(&b, SITE_2), open(&b, SITE_3));
    // The name of SITE is still allowed; SITE_2's is not; SITE_3 has become denied.
    let policy = custom(&["192.0.2.0/24"], &["192.0.2.8/32"]);
    world.wait(world.side().set_policy(b.pair, policy, vec![pin(SITE, 60_000)]));
    assert!(is_cut(&mut two), "a name's connection outlives the name");
    assert!(is_cut(&mut three), "a denied connection goes on");
    echo(&mut one).expect("what is still allowed is cut");
    assert!(is_refused(&b, SITE_2, PLAIN_PORT) && is_refused(&b, SITE_3, PLAIN_PORT));
    // The same again without pins.
    world.wait(world.side().set_policy(b.pair, custom(&[], &[]), Vec::new()));
    assert!(is_cut(&mut one), "a pin outlives its policy");
}

#[test]
fn priv_a_box_has_so_many_connections_and_no_more() {
    let mut world = World::new();
    world.start_limited(5);
    let (b, other) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let mut streams: Vec<TcpStream> = (0..5).map(|_| open(&b, SITE)).collect();
    assert!(is_refused(&b, SITE, PLAIN_PORT), "a sixth connection");
    streams.iter_mut().for_each(|s| echo(s).expect("the five go on"));
    let more: Vec<TcpStream> = (0..5).map(|_| open(&other, SITE)).collect();
    assert_eq!(more.len(), 5, "another box has its own five");
    assert!(is_refused(&other, SITE, PLAIN_PORT), "and no more");
    // A daemon with another configuration.
    world.start_limited(100);
    open(&b, SITE);
}

#[test]
fn priv_a_box_begins_so_many_connections_per_second_and_no_more() {
    const PER_SECOND: u32 = 10;
    const SENT: u16 = 500;
    let mut world = World::new();
    let b = world.new_box();
    world.attach(&b, Policy::AllowAll, Limits { new_per_second_max: Some(PER_SECOND), ..Limits::default() });
    world.seen();
    let begun = Instant::now();
    for port in 1000..1000 + SENT {
        Packet { port, ..Packet::new(UDP, b.address(), SITE, "many.") }.send(&b.namespace).expect("send");
    }
    let seconds = begun.elapsed().as_secs_f64();
    let passed = world.seen().iter().filter(|s| s.has("many.")).count();
    // One second's worth at once, then so many each second.
    let most = f64::from(PER_SECOND) * (seconds + 1.0) + 1.0;
    assert!(passed >= PER_SECOND as usize && (passed as f64) <= most, "{passed} passed in {seconds} s");
    assert!((passed as f64) < f64::from(SENT) || seconds > 40.0, "nothing was held back");
}
