//! `kill -9` of `iceboxd` between any two steps that it takes with the network of a box: nothing gets out that may not,
//! nothing is left behind, and the next start repairs.
//!
//! The steps are not known here. Each operation is killed before its first, its second, and so on, until it has no more.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use icebox_tests::killer::{Killed, kill_at, kill_at_start};
use icebox_tests::net::{World, links};
use icebox_tests::netns::Netns;
use icebox_tests::{Api, Daemon, TestBox, machine, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};

/// An address that no box may reach.
const CANARY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// Whom open boxes may reach.
const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The thread of `iceboxd` that works on the network of boxes.
const THREAD: &str = "network";
/// An operation with more steps has no end.
const STEPS_MAX: u32 = 150;
const SETTLE: Duration = icebox_tests::wait::PATIENCE;
/// Tries to reach the canary by TCP, UDP and ping, without end; not so fast that it meets the limit of new connections.
const KNOCK: &str = r#"
import socket, sys, time
while True:
    time.sleep(0.005)
    for kind, proto in ((socket.SOCK_STREAM, 0), (socket.SOCK_DGRAM, 0), (socket.SOCK_DGRAM, socket.IPPROTO_ICMP)):
        try:
            s = socket.socket(socket.AF_INET, kind, proto)
            s.setblocking(False)
            s.connect((sys.argv[1], 80))
            s.send(b"\x08\x00\xf7\xfd\x00\x01\x00\x01")
        except OSError:
            pass
        finally:
            s.close()
"#;

fn knocking() -> Value {
    json!({
        "network_policy": { "mode": "custom", "allowed_cidrs": [format!("{SITE}/32")] },
        "init_command": format!("(python3 -c '{KNOCK}' {CANARY} >/dev/null 2>&1 &)"),
    })
}

fn nft(world: &World) -> String {
    let run = || std::process::Command::new("nft").args(["list", "table", "inet", "icebox"]).output();
    let output = world.host.run(run).expect("these tests need nft");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What there is of boxes in the host's namespace: links, and addresses of the pool in the firewall.
fn remains(world: &World) -> Vec<String> {
    let mut all: Vec<String> = links::names(&world.host).into_iter().filter(|n| n.starts_with("ice-")).collect();
    let text = nft(world);
    all.extend(text.split([' ', ',', '\n', '"']).filter(|w| w.starts_with("ice-") && w.len() > 5).map(str::to_owned));
    all
}

/// The network namespaces of all boxes of which there is a process, whole or half-made. Processes end meanwhile: the
/// knocking program's children, and boxes that are being deleted.
fn namespaces(daemon: &Daemon) -> Vec<Netns> {
    let found = daemon.cgroups().procs(daemon.cgroup_root()).into_iter().filter_map(Netns::of_process);
    let distinct: BTreeMap<_, _> = found.map(|namespace| (namespace.identity(), namespace)).collect();
    distinct.into_values().collect()
}

/// Tries to reach the canary from every box, also from those in which nothing runs yet.
fn knock(daemon: &Daemon) -> usize {
    let to = SocketAddr::from((CANARY, 80));
    let knock = || {
        // Without an address or a route there is an error, which is as good as a refusal.
        let _ = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"hello", to));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).expect("a socket");
        let _ = rustix::net::connect(&socket, &to);
    };
    let all = namespaces(daemon);
    all.iter().for_each(|namespace| namespace.run(knock));
    all.len()
}

/// Does something that is killed before each of its steps, and when it is done. There have to be `steps_min` at least.
/// Returns what was counted in the whole of it.
fn killed_between_steps<T: Sync>(
    steps_min: u32,
    prepare: impl Fn(&Api) -> T,
    what: impl Fn(&Daemon, &TestBox, &T),
) -> Killed {
    each_step(steps_min, |daemon, here, step| {
        let prepared = prepare(&here.api);
        kill_at(daemon.pid(), THREAD, step, || what(daemon, here, &prepared))
    })
}

/// Has `iceboxd` killed at each step, until one is not within the operation. Returns what was counted then.
fn each_step(steps_min: u32, kill: impl Fn(&mut Daemon, &TestBox, u32) -> Killed) -> Killed {
    let world = World::new();
    let mut daemon = world.daemon();
    let made = daemon.api().create(&knocking());
    // It knocks: the firewall has something to refuse.
    let refused = |daemon: &Daemon| {
        let net = daemon.api().get(&format!("/v1/boxes/{}/net", made.id)).ok();
        net["refused"]["packets"].as_u64().unwrap_or(0)
    };
    wait_until(SETTLE, "the box to knock", || refused(&daemon) > 0);
    let mut steps = 0;
    let whole = loop {
        steps += 1;
        assert!(steps < STEPS_MAX, "the operation has no end");
        let here = TestBox { api: daemon.api(), id: made.id.clone() };
        let killed = kill(&mut daemon, &here, steps);
        daemon.reap();
        assert!(knock(&daemon) > 0, "there are no boxes");
        assert_eq!(world.capture.to(CANARY), 0, "killed at step {steps}: the canary was reached\n{}", nft(&world));
        daemon.start_again();
        knock(&daemon);
        assert_eq!(world.capture.to(CANARY), 0, "restart after step {steps}: the canary was reached\n{}", nft(&world));
        if !killed.is_within {
            break killed;
        }
    };
    println!("{} steps", steps - 1);
    assert!(steps > steps_min, "killed before {} steps only, where at least {steps_min} are known", steps - 1);
    // Repaired: what may be reached is, what may not is not.
    let made = TestBox { api: daemon.api(), id: made.id };
    made.api.call("PUT", &made.path("/config/network-policy"), Some(&knocking()["network_policy"])).ok();
    let reached = made.sh(&format!("curl -s -o /dev/null -w '%{{http_code}}' -m 20 http://{SITE}:8080/"));
    assert_eq!(reached.stdout, "200", "{reached:?} {}\n{}", made.data(), nft(&world));
    assert_eq!(world.capture.to(CANARY), 0);
    for data in daemon.api().list() {
        daemon.api().delete(&format!("/v2/box/{}", data["id"].as_str().expect("id"))).ok();
    }
    let is_clean = icebox_tests::wait::try_until(SETTLE, || remains(&world).is_empty());
    assert!(is_clean, "left behind: {:?} in\n{}", remains(&world), nft(&world));
    assert_eq!(world.capture.to(CANARY), 0);
    assert_eq!(made.api.get(&made.path("")).status, 404);
    whole
}

fn call(api: &Api, method: &str, path: &str, body: &Value) {
    // The connection breaks when the other side dies.
    let _ =
        api.try_send(path, api.build(method, path).header("content-type", "application/json").body(body.to_string()));
}

/// Link and settings of both its ends, addresses, routes, and the firewall. What is sent by one system call the kernel does as
/// a whole: a process is not killed within. These are 5 for the link and one for the firewall; a look at the traffic may come
/// between.
#[test]
fn a_kill_within_a_create_opens_nothing() {
    let create = |daemon: &Daemon, _: &TestBox, (): &()| call(&daemon.api(), "POST", "/v2/box", &knocking());
    let whole = killed_between_steps(6, |_| (), create);
    // The kernel finds each file below `/proc/sys/net` among those of all boxes.
    assert_eq!(whole.settings, 1, "files below /proc/sys that are written for a link: IPv6 of the host's end");
}

/// The firewall, and connections that are forgotten.
#[test]
fn a_kill_within_a_change_of_policy_opens_nothing() {
    killed_between_steps(
        4,
        |_| (),
        |_, made, ()| {
            for mode in ["deny-all", "custom"] {
                call(&made.api, "PUT", &made.path("/config/network-policy"), &json!({ "mode": mode }));
            }
        },
    );
}

/// The firewall; then what is left to be looked after, which an orderly end does at once.
#[test]
fn a_kill_within_a_delete_and_an_orderly_end_opens_nothing() {
    killed_between_steps(
        2,
        |api| api.create(&knocking()).id,
        |daemon, made, id| {
            call(&made.api, "DELETE", &format!("/v2/box/{id}"), &Value::Null);
            let pid = daemon.pid();
            kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is not reaped yet");
            wait_until(SETTLE, "iceboxd to end", || machine::process_state(pid) == Some('Z'));
        },
    );
}

/// The set of boxes whose packets are told of, and their counters.
#[test]
fn a_kill_within_freezing_and_waking_opens_nothing() {
    killed_between_steps(
        2,
        |_| (),
        |_, made, ()| {
            for verb in ["pause", "resume"] {
                call(&made.api, "POST", &made.path(&format!("/{verb}")), &json!({}));
            }
        },
    );
}

/// The firewall's table, forwarding, the links of boxes that are there, and what is left of others.
#[test]
fn a_kill_within_a_start_opens_nothing() {
    each_step(10, |daemon, here, step| {
        // Something to do for the start: a box whose deletion it has to finish.
        let half_gone = here.api.create(&knocking()).id;
        kill_at(daemon.pid(), THREAD, 1, || call(&here.api, "DELETE", &format!("/v2/box/{half_gone}"), &Value::Null));
        daemon.reap();
        let facts = daemon.run_dir().join("iceboxd.json");
        let pid = i32::try_from(daemon.spawn()).expect("a pid");
        kill_at_start(pid, &[THREAD, "netns"], step, || {
            wait_until(SETTLE, "iceboxd to serve or to die", || {
                let told = std::fs::read(&facts).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
                told.is_some_and(|told| told["pid"] == pid)
                    || machine::process_state(pid).is_none_or(|state| state == 'Z')
            });
        })
    });
}
