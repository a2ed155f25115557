//! Whether a packet and a policy cost more when there are many boxes. The boxes are real ones, each with a policy.

use std::time::Instant;

use icebox_tests::net::World;
use serde_json::json;

use crate::places::{fresh, namespace, once, open, serve};
use crate::{Case, report};

const SIZES: [usize; 3] = [10, 100, 500];
const EXCHANGES: usize = 50;

pub(crate) fn measure(rounds: usize) {
    let world = World::new();
    serve(&world);
    let daemon = world.daemon_with("", "[network.limits]\nconnections_max = 0\nnew_connections_per_second_max = 0");
    let api = daemon.api();
    let policy = |n: usize| {
        json!({ "mode": "custom", "allowed_domains": [format!("a{n}.test")],
                "allowed_cidrs": ["198.51.100.0/24", format!("192.0.2.{}/32", n % 256)] })
    };
    let first = api.create(&json!({ "network_policy": policy(0), "keep_alive": true }));
    let place = namespace(&daemon, &first);
    let mut stream = open(&place);
    let (mut kept, mut new, mut change, mut count) = (Vec::new(), Vec::new(), Vec::new(), 1);
    for size in SIZES {
        while count < size {
            api.create(&json!({ "network_policy": policy(count) }));
            count += 1;
        }
        let name = format!("{size} boxes");
        let (mut a, mut b, mut c) = (Case::new(&name, ""), Case::new(&name, ""), Case::new(&name, ""));
        for round in 0..rounds {
            a.samples.extend((0..EXCHANGES).map(|_| once(&mut stream)));
            b.samples.extend((0..EXCHANGES / 5).map(|_| fresh(&place)));
            let begun = Instant::now();
            api.call("PUT", &first.path("/config/network-policy"), Some(&policy(round % 7))).ok();
            c.samples.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        kept.push(a);
        new.push(b);
        change.push(c);
    }
    let base = Some("10 boxes");
    let note = ["real boxes, each with a custom policy; not interleaved, since boxes only become more".to_owned()];
    report("a byte there and back, with many boxes beside", "µs", base, &kept, &[], &note);
    report("a new connection, with many boxes beside", "µs", base, &new, &[], &note);
    report("a changed policy until it is answered", "ms", base, &change, &[], &note);
}
