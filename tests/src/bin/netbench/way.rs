//! A packet's way out and back: latency, new connections, throughput; against no rules at all and against Docker's.

use icebox_tests::net::World;
use serde_json::json;

use crate::places::{docker_like, fresh, namespace, once, open, receive, serve};
use crate::{Case, report};

/// Exchanges of one candidate before the next one's turn.
const BLOCK: usize = 50;
const FRESH_BLOCK: usize = 10;
const BYTES: u64 = 64 << 20;

pub(crate) fn measure(rounds: usize) {
    let bare = World::new();
    let plain = bare.plain();
    let (docker, bridged) = docker_like();
    let world = World::new();
    let daemon = world.daemon_with("", "[network.limits]\nconnections_max = 0\nnew_connections_per_second_max = 0");
    for w in [&bare, &docker, &world] {
        serve(w);
    }
    let boxed = |policy| {
        let made = daemon.api().create(&json!({ "network_policy": policy, "keep_alive": true }));
        namespace(&daemon, &made)
    };
    let open_box = boxed(json!({ "mode": "allow-all" }));
    let custom_box = boxed(json!({ "mode": "custom", "allowed_cidrs": ["198.51.100.0/24"] }));
    let places = [
        ("plain veth", "no rules, no translation of addresses", &plain),
        ("bridge as Docker's", "no Docker here: a bridge with the rules that Docker makes", &bridged),
        ("box, allow-all", "", &open_box),
        ("box, custom", "its address is in allowed_cidrs", &custom_box),
    ];
    let cases = || -> Vec<Case> { places.iter().map(|(name, note, _)| Case::new(*name, note)).collect() };
    let (mut kept, mut new, mut rate) = (cases(), cases(), cases());
    let mut streams: Vec<_> = places.iter().map(|(.., place)| open(place)).collect();
    for _ in 0..rounds {
        for (index, (.., place)) in places.iter().enumerate() {
            kept[index].samples.extend((0..BLOCK).map(|_| once(&mut streams[index])));
            new[index].samples.extend((0..FRESH_BLOCK).map(|_| fresh(place)));
        }
    }
    for _ in 0..rounds.div_ceil(4) {
        for (index, (.., place)) in places.iter().enumerate() {
            rate[index].samples.push(receive(place, BYTES));
        }
    }
    report("a byte there and back on an open connection", "µs", Some("plain veth"), &kept, &[], &[]);
    report("a new connection, a byte there and back", "µs", Some("plain veth"), &new, &[], &[]);
    report("received by one connection (more is better)", "MB/s", Some("plain veth"), &rate, &[], &[]);
}
