//! Connections that the kernel tracks.

use std::net::Ipv4Addr;
use std::time::Duration;

use icebox_net::firewall::{Limits, Pin, Policy};

use crate::world::{DNS_PORT, PLAIN_PORT, SITE, SITE_2, SITE_3, TestBox, World, echo, namespace, original, udp};

#[test]
fn priv_connections_of_a_box_are_listed() {
    let mut world = World::new();
    let (b, other) =
        (world.add_box(Policy::Custom { allowed: vec![], denied: vec![] }), world.add_box(Policy::AllowAll));
    crate::world::write_sysctl(&world.host, "net/netfilter/nf_conntrack_acct", "1");
    world.wait(world.side().pin(b.pair, vec![Pin { address: SITE, time: Duration::from_secs(60) }]));
    assert_eq!(world.wait(world.side().connections(b.pair)).count, 0);
    let mut direct = b.connect(SITE, PLAIN_PORT).expect("connect");
    echo(&mut direct).expect("echo");
    let mut proxied = b.connect(SITE_2, 443).expect("connect");
    original(&mut proxied).expect("the proxy");
    let _others = other.connect(SITE_3, 80).expect("connect");
    let all = world.wait(world.side().connections(b.pair));
    let mut list: Vec<_> =
        all.listed.iter().map(|c| (c.protocol, c.destination, c.port, c.state, c.is_proxied)).collect();
    list.sort();
    assert_eq!(all.count, 2);
    assert_eq!(list, [(6, SITE, Some(PLAIN_PORT), "established", false), (6, SITE_2, Some(443), "established", true)]);
    assert!(all.listed.iter().all(|c| c.bytes.is_some_and(|(sent, received)| sent > 40 && received > 40)), "{all:?}");
    assert_eq!(world.wait(world.side().connections(other.pair)).count, 1);
}

/// The next box at the same address does not go on with what the last one has begun.
#[test]
fn priv_connections_of_a_box_that_is_gone_are_forgotten() {
    let mut world = World::new();
    let (b, other) = (world.add_box(Policy::AllowAll), world.add_box(Policy::AllowAll));
    let there = udp(&world.internet, SITE, 7001);
    udp(&b.namespace, b.address(), 7777).send_to(b"ask", (SITE, 7001)).expect("send");
    let (_stream, mut others) = (b.connect(SITE, 80).expect("connect"), other.connect(SITE, 80).expect("connect"));
    world.seen();
    let (_, asked) = there.recv_from(&mut [0; 8]).expect("asked");
    assert_eq!(world.wait(world.side().connections(b.pair)).count, 2);
    world.wait(world.side().detach(&b.id, b.pair));
    let next = TestBox { id: "the-next".into(), pair: b.pair, namespace: namespace() };
    world.attach(&next, Policy::AllowAll, Limits::default());
    assert_eq!(world.wait(world.side().connections(next.pair)).count, 0);
    let before = world.wait(world.side().counters(next.pair)).received.packets;
    there.send_to(b"a late answer", asked).expect("answer");
    world.seen();
    assert_eq!(world.wait(world.side().counters(next.pair)).received.packets, before, "it got another's answer");
    echo(&mut others).expect("another box's connection was forgotten");
}

/// A resolver that asks from the same port all the time is asked again where it goes when the policy changes.
#[test]
fn priv_questions_for_names_go_to_the_proxy_as_soon_as_the_policy_says_so() {
    let mut world = World::new();
    let b = world.add_box(Policy::AllowAll);
    let proxy = udp(&world.host, Ipv4Addr::UNSPECIFIED, DNS_PORT);
    let ask = udp(&b.namespace, b.address(), 7777);
    ask.send_to(b"directly", (SITE, 53)).expect("send");
    assert!(world.seen().iter().any(|s| s.has("directly")));
    world.wait(world.side().set_policy(b.pair, Policy::Custom { allowed: vec![], denied: vec![] }, Vec::new()));
    ask.send_to(b"by the proxy", (SITE, 53)).expect("send");
    assert!(!world.seen().iter().any(|s| s.has("by the proxy")));
    assert!(proxy.recv(&mut [0; 64]).is_ok(), "the proxy was not asked");
}
