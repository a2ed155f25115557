//! The world of namespaces itself, without `iceboxd`: everything that a box must not reach can be reached in it, and is
//! seen. Without this, a test that finds nothing would say nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use icebox_tests::net::plain::{ADDRESS, GATEWAY, python};
use icebox_tests::net::sink::Sink;
use icebox_tests::net::ways::{EGRESS_PORT, PROGRAM, Place, WAYS, task};
use icebox_tests::net::{RESOLVER, World, connect};
use icebox_tests::wait_until;

/// How long one way may wait for an answer.
const TRY_S: f64 = 5.0;

#[test]
fn every_way_out_works_where_nothing_forbids_it() {
    let world = World::new();
    world.name_ways();
    let plain = world.plain();
    // In the place of the proxy. The rest of the host's ports are there.
    let proxy = Sink::start(&world.host, &[EGRESS_PORT]);
    let before = world.seen();
    let place = Place { me: ADDRESS, gateway: GATEWAY, dns: RESOLVER };
    let program = format!("import sys\nsys.argv = ['ways', {:?}]\n{PROGRAM}", task(place, TRY_S, &[]));
    let output = python(&plain, &program);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let outcomes: BTreeMap<String, String> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(outcomes.len(), WAYS.len());
    world.host_sink.add(proxy.hits());
    let unseen: Vec<_> = WAYS.iter().filter(|way| world.seen_of(way, &before, false) == 0).collect();
    let shown: Vec<_> = unseen.iter().map(|w| format!("{}: {}", w.name, outcomes[w.name])).collect();
    assert!(shown.is_empty(), "not seen:\n{}", shown.join("\n"));
}

#[test]
fn the_internet_answers_for_every_address() {
    let world = World::new();
    for address in [[192, 0, 2, 1], [10, 20, 30, 40], [169, 254, 169, 254], [8, 8, 8, 8]] {
        let address = Ipv4Addr::from(address);
        connect(&world.host, address, 22).unwrap_or_else(|e| panic!("{address}: {e}"));
        assert!(world.capture.to(address) > 0, "{address} was not seen");
    }
    wait_until(icebox_tests::net::DEADLINE, "the connections to be noted", || world.sink.hits().len() >= 4);
    // The links are in the world only: the machine's own namespace has none of these links.
    assert!(!icebox_tests::machine::links().contains(icebox_tests::net::links::UPLINK));
}
