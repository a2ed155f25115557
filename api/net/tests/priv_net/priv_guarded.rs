//! What others do to the table of boxes: refused where the kernel can guard it (Linux 6.9), repaired where it cannot.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use icebox_net::firewall::{Pin, Policy};

use crate::packet::{Packet, UDP};
use crate::world::{DEADLINE, HOST_PORT, PLAIN_PORT, SITE, SITE_2, SITE_3, TestBox, World, connect, echo};

/// What others do.
const WAYS: [&[&str]; 4] = [
    &["flush", "ruleset"],
    &["delete", "table", "inet", "icebox"],
    &["flush", "chain", "inet", "icebox", "from_box"],
    &["insert", "rule", "inet", "icebox", "to_host", "accept"],
];
/// A server on the internet that no box may reach.
const CLOSED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// What is sent to him.
const LEAK: &str = "leak ";

/// Whether this kernel knows tables that have an owner and outlive him. Told by its version, not by the code under test.
fn kernel_guards() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(9))
}

/// True if the table has an owner.
fn is_owned(world: &World) -> bool {
    let text = world.nft(&["-j", "list", "table", "inet", "icebox"]);
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let table = all["nftables"].as_array().expect("a list").iter().find_map(|o| o.get("table")).expect("the table");
    table["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "owner"))
}

/// A box that sends to a closed address all the time, at most every [`Flood::PACE`].
struct Flood {
    is_ended: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Flood {
    const PACE: Duration = Duration::from_micros(50);

    fn of(b: &TestBox) -> Self {
        let bind = || Ok(UdpSocket::bind((b.address(), 0)).expect("bind"));
        let socket = b.namespace.run(bind).expect("a thread there");
        let is_ended = Arc::new(AtomicBool::new(false));
        let (ended, begun) = (Arc::clone(&is_ended), Instant::now());
        let send = move || {
            let mut sent = 0;
            while !ended.load(Ordering::Acquire) {
                // The sender of a refused packet gets the error with its next one, which is not sent then.
                let text = format!("{LEAK}{:012}", begun.elapsed().as_nanos());
                sent += u64::from(socket.send_to(text.as_bytes(), (CLOSED, 9)).is_ok());
                thread::sleep(Self::PACE);
            }
            sent
        };
        Self { is_ended, thread: thread::spawn(send) }
    }

    /// When the packets that arrived were sent, and how many were sent at all.
    fn end(self, world: &mut World) -> (Vec<Duration>, u64) {
        self.is_ended.store(true, Ordering::Release);
        let sent = self.thread.join().expect("it does not fail");
        (arrived(world), sent)
    }
}

/// When the packets of a flood that arrived since the last time were sent.
fn arrived(world: &mut World) -> Vec<Duration> {
    let time = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes.get(28..)?).into_owned();
        Some(Duration::from_nanos(text.strip_prefix(LEAK)?.parse().ok()?))
    };
    world.seen().iter().filter_map(|seen| time(&seen.bytes)).collect()
}

#[test]
fn priv_nft_what_others_do_to_a_guarded_table_is_refused() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    assert_eq!(is_owned(&world), kernel_guards(), "guarded");
    if !kernel_guards() {
        // The tests below are for these.
        return world.start_unguarded();
    }
    let rules = world.rules();
    let mut stream = b.connect(SITE, 80).expect("connect");
    let before = world.wait(world.side().counters(b.pair)).sent.packets;
    let flood = Flood::of(&b);
    for way in WAYS {
        match world.try_nft(way) {
            Ok(_) => assert_eq!(way[0], "flush", "{way:?} was done"),
            Err(said) => assert!(said.contains("not permitted"), "{way:?}: {said}"),
        }
        assert_eq!(world.rules(), rules, "after {way:?}");
        echo(&mut stream).expect("echo");
        assert!(b.connect(b.pair.host(), HOST_PORT).is_err(), "the host after {way:?}");
    }
    let (leaked, sent) = flood.end(&mut world);
    assert!(leaked.is_empty() && sent > 0, "{} of {sent} packets passed", leaked.len());
    let after = world.wait(world.side().counters(b.pair)).sent.packets;
    assert!(after > before, "the table was put in anew");
}

/// Between two daemons the table has no owner: it holds, and any process may change it. The next one owns it again.
#[test]
fn priv_nft_a_table_without_a_daemon_holds_and_is_owned_by_the_next() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let mut stream = b.connect(SITE, 80).expect("connect");
    let flood = Flood::of(&b);
    for _ in 0..3 {
        let before = world.wait(world.side().counters(b.pair)).sent.packets;
        world.die();
        assert!(!is_owned(&world), "a process that has ended owns the table");
        echo(&mut stream).expect("while no daemon runs");
        world.start();
        assert_eq!(is_owned(&world), kernel_guards(), "guarded");
        echo(&mut stream).expect("after the restart");
        assert!(world.wait(world.side().counters(b.pair)).sent.packets > before, "the table is another");
        // Its owner can change it.
        world.wait(world.side().set_policy(b.pair, Policy::DenyAll, Vec::new()));
        assert!(b.connect(SITE, 80).is_err());
        world.wait(world.side().set_policy(b.pair, Policy::AllowAll, Vec::new()));
        stream = b.connect(SITE, 80).expect("connect");
    }
    let (leaked, sent) = flood.end(&mut world);
    assert!(leaked.is_empty() && sent > 0, "{} of {sent} packets passed", leaked.len());
    // What docs/network.md says of that time.
    world.die();
    world.nft(&["flush", "ruleset"]);
    assert_eq!(world.nft(&["list", "tables"]), "");
    world.start();
    Packet::new(UDP, b.address(), SITE, "not-let-in.").send(&b.namespace).expect("send");
    assert!(!world.seen().iter().any(|s| s.has("not-let-in.")), "a box that was not let in");
    assert_eq!(is_owned(&world), kernel_guards(), "guarded");
}

/// Flags of a table that is there cannot be changed: it is replaced by one with them, and nothing passes meanwhile.
#[test]
fn priv_nft_a_table_of_before_becomes_guarded_with_its_boxes() {
    let mut world = World::new();
    world.start_unguarded();
    let b = world.add_box(Policy::AllowAll);
    assert!(!is_owned(&world));
    let mut stream = b.connect(SITE, 80).expect("connect");
    let flood = Flood::of(&b);
    for is_guarded in [true, false, true] {
        let before = world.wait(world.side().counters(b.pair)).sent.packets;
        world.die();
        if is_guarded {
            world.start()
        } else {
            world.start_unguarded()
        }
        assert_eq!(is_owned(&world), is_guarded && kernel_guards());
        echo(&mut stream).expect("echo");
        assert!(world.wait(world.side().counters(b.pair)).sent.packets > before, "its counters were lost");
    }
    let (leaked, sent) = flood.end(&mut world);
    assert!(leaked.is_empty() && sent > 0, "{} of {sent} packets passed", leaked.len());
}

/// How long boxes are open where the kernel cannot guard the table. It says what it has measured.
#[test]
fn priv_nft_a_flushed_ruleset_is_put_back_within_moments() {
    const ROUNDS: u32 = 5;
    let mut world = World::new();
    world.start_unguarded();
    let b = world.add_box(Policy::AllowAll);
    for boxes in [1, 50] {
        let _others: Vec<TestBox> = (1..boxes).map(|_| world.add_box(Policy::AllowAll)).collect();
        let rules = world.rules();
        let (mut spans, mut packets) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let flood = Flood::of(&b);
            world.nft(&["flush", "ruleset"]);
            let begun = Instant::now();
            while world.rules() != rules {
                assert!(begun.elapsed() < DEADLINE, "not put back");
                // All of this shares a processor with what is measured.
                thread::sleep(Duration::from_millis(20));
            }
            let (leaked, _) = flood.end(&mut world);
            let span = leaked.first().zip(leaked.last()).map_or(Duration::ZERO, |(first, last)| *last - *first);
            spans.push(span + Flood::PACE);
            packets.push(leaked.len());
        }
        spans.sort_unstable();
        packets.sort_unstable();
        let (middle, last) = (ROUNDS as usize / 2, ROUNDS as usize - 1);
        println!(
            "open after a flush with {boxes} boxes: median {:?}, longest {:?}; packets: median {}, most {}",
            spans[middle], spans[last], packets[middle], packets[last]
        );
        assert!(arrived(&mut world).is_empty(), "packets pass although the table is back");
    }
}

#[test]
fn priv_nft_a_removed_table_is_put_back_with_its_boxes() {
    let mut world = World::new();
    world.start_unguarded();
    let network = || vec!["198.51.100.0/24".parse().expect("network")];
    let b = world.add_box(Policy::Custom { allowed: network(), denied: vec![] });
    let denied = world.add_box(Policy::DenyAll);
    world.wait(world.side().pin(b.pair, vec![Pin { address: SITE_3, time: Duration::from_secs(60) }]));
    let before = world.rules();
    for way in WAYS {
        world.nft(way);
        let begun = Instant::now();
        while world.rules() != before {
            assert!(begun.elapsed() < DEADLINE, "not put back after {way:?}");
        }
        echo(&mut b.connect(SITE, PLAIN_PORT).expect("allowed")).expect("echo");
        echo(&mut b.connect(SITE_3, PLAIN_PORT).expect("pinned")).expect("echo");
        assert!(b.connect([192, 168, 1, 1].into(), 80).is_err(), "a closed network after {way:?}");
        assert!(b.connect(b.pair.host(), HOST_PORT).is_err(), "the host after {way:?}");
        assert!(denied.connect(SITE, PLAIN_PORT).is_err(), "denied after {way:?}");
        assert!(connect(&world.host, SITE, 80).is_ok());
    }
    // The next program that changes it finds it again.
    world.wait(world.side().set_policy(denied.pair, Policy::AllowAll, Vec::new()));
    let packet = Packet::new(UDP, denied.address(), SITE_2, "after-all.");
    packet.send(&denied.namespace).expect("send");
    assert!(world.seen().iter().any(|s| s.has("after-all.")));
}

/// A change of a box before the removal was noticed does not fail for it.
#[test]
fn priv_nft_a_change_just_after_a_removal_is_done() {
    let mut world = World::new();
    world.start_unguarded();
    let b = world.add_box(Policy::DenyAll);
    for _ in 0..10 {
        world.nft(&["flush", "ruleset"]);
        world.wait(world.side().set_policy(b.pair, Policy::AllowAll, Vec::new()));
        echo(&mut b.connect(SITE, 80).expect("connect")).expect("echo");
        world.wait(world.side().set_policy(b.pair, Policy::DenyAll, Vec::new()));
        assert!(b.connect(SITE, 80).is_err());
    }
}
