//! Ways out of a box that must be closed. Each is tried inside of boxes with all three policies; what counts is what
//! arrived outside, not what the box was told. `net_world` shows that each way works and is seen where nothing forbids it,
//! and here the ways that are not always closed must work under `allow-all`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use icebox_tests::net::ways::{ALLOWED, PROGRAM, Place, SHARED, VIA, WAYS, Way, custom, task};
use icebox_tests::net::{HOST, RESOLVER, World, connect};
use icebox_tests::{Daemon, TestBox};
use serde_json::{Value, json};

/// How long one way may wait for an answer. Long enough where answers are expected, shorter where none may come. All ways
/// wait side by side, on slow machines too.
const TRY_S: f64 = 6.0;
const VAIN_TRY_S: f64 = 3.0;
/// The number of connections is not limited here: a limit would look like a closed port.
const NO_LIMITS: &str = "[network.limits]\nconnections_max = 0\nnew_connections_per_second_max = 0";

fn place(made: &TestBox) -> Place {
    let net = made.api.get(&format!("/v1/boxes/{}/net", made.id)).ok();
    let address = |key: &str| -> Ipv4Addr {
        net[key].as_str().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("no {key} in {net}"))
    };
    Place { me: address("address"), gateway: address("gateway"), dns: address("gateway") }
}

/// Tries all ways in a box, as its user and as root. What each told.
fn try_all(made: &TestBox, as_root: bool, timeout_s: f64) -> BTreeMap<String, String> {
    made.write("ways.py", PROGRAM);
    let task = task(place(made), timeout_s, &[]);
    let argv = ["sudo", "python3", "ways.py", &task];
    let result = made.exec(&argv[usize::from(!as_root)..]);
    assert_eq!(result.code, 0, "{result:?}");
    let outcomes: BTreeMap<String, String> = serde_json::from_str(&result.stdout).expect("JSON");
    assert_eq!(outcomes.len(), WAYS.len(), "a way was not tried");
    outcomes
}

fn made_with(daemon: &Daemon, policy: &Value) -> TestBox {
    daemon.api().create(&json!({ "network_policy": policy }))
}

/// What of the ways was seen, against what may be.
fn wrong(
    world: &World,
    before: &icebox_tests::net::ways::Seen,
    outcomes: &BTreeMap<String, String>,
    may: impl Fn(&Way) -> bool,
) -> Vec<String> {
    let tell = |way: &Way| {
        let seen = world.seen_of(way, before, true);
        let verdict = match (seen > 0, may(way)) {
            (true, false) => "GOT OUT",
            (false, true) => "did not work",
            _ => return None,
        };
        Some(format!("{verdict}: {} ({seen} seen; it was told {})", way.name, outcomes[way.name]))
    };
    WAYS.iter().filter_map(tell).collect()
}

fn nothing_gets_out(policy: &Value, may_be_reached: &[Ipv4Addr]) {
    let world = World::new();
    world.name_ways();
    let daemon = world.daemon_with("", NO_LIMITS);
    let made = made_with(&daemon, policy);
    for as_root in [false, true] {
        world.name_ways();
        let before = world.seen();
        let outcomes = try_all(&made, as_root, VAIN_TRY_S);
        // What was sent before has arrived by now: this goes the same way, later.
        connect(&world.host, ALLOWED, 22).expect("the world answers");
        let wrong = wrong(&world, &before, &outcomes, |_| false);
        assert!(wrong.is_empty(), "root: {as_root}\n{}", wrong.join("\n"));
        let allowed: BTreeSet<IpAddr> = may_be_reached.iter().map(|a| (*a).into()).collect();
        let beyond: Vec<_> = world.reached(&before).into_iter().filter(|a| !allowed.contains(a)).collect();
        assert!(beyond.is_empty(), "root: {as_root}: packets came to {beyond:?}; {outcomes:#?}");
    }
}

#[test]
fn no_way_leads_out_under_deny_all() {
    // The last one is the packet that this test sends by itself.
    nothing_gets_out(&json!({ "mode": "deny-all" }), &[ALLOWED]);
}

#[test]
fn no_way_leads_around_a_custom_policy() {
    // The second address of a name that has a private one, too, may be dialled.
    let neighbour = Ipv4Addr::new(198, 51, 100, 232);
    nothing_gets_out(&custom(), &[RESOLVER, ALLOWED, SHARED, VIA, neighbour]);
}

#[test]
fn what_is_always_closed_is_closed_under_allow_all_and_all_else_is_open() {
    let world = World::new();
    world.name_ways();
    let daemon = world.daemon_with("", NO_LIMITS);
    let made = made_with(&daemon, &json!({ "mode": "allow-all" }));
    for as_root in [false, true] {
        world.name_ways();
        let before = world.seen();
        let outcomes = try_all(&made, as_root, TRY_S);
        connect(&world.host, ALLOWED, 22).expect("the world answers");
        let wrong = wrong(&world, &before, &outcomes, |way| !way.always);
        assert!(wrong.is_empty(), "root: {as_root}\n{}", wrong.join("\n"));
    }
}

/// Tries every TCP port of an address; tells which ones were taken, and for how many nothing came back at all.
const SCAN: &str = r#"
import errno, json, socket, sys
open_, silent = [], 0
for port in range(1, 65536):
    s = socket.socket()
    s.settimeout(0.5)
    result = s.connect_ex((sys.argv[1], port))
    s.close()
    if result == 0: open_.append(port)
    elif result in (errno.EAGAIN, errno.ETIMEDOUT):
        silent += 1
        if silent > 20: break
print(json.dumps({"open": open_, "silent": silent, "last": port}))
"#;

#[test]
fn of_all_ports_of_the_host_only_dns_is_open_to_a_box() {
    let world = World::new();
    let daemon = world.daemon_with("", NO_LIMITS);
    let made = made_with(&daemon, &json!({ "mode": "allow-all" }));
    made.write("scan.py", SCAN);
    let gateway = place(&made).gateway;
    for (address, golden) in [(gateway, vec![53]), (HOST, vec![])] {
        let result: Value = serde_json::from_str(&made.out(&format!("python3 scan.py {address}"))).expect("JSON");
        assert_eq!(result["last"], 65_535, "the scan of {address} met silence: {result}");
        assert_eq!(result["open"], json!(golden), "{address}");
    }
    assert_eq!(world.host_sink.hits(), [], "a server on the host was reached");
    // The same ports are there for the host's neighbours: the scan would have found them.
    for port in icebox_tests::net::HOST_PORTS {
        connect(&world.internet, HOST, port).unwrap_or_else(|e| panic!("port {port}: {e}"));
    }
}
