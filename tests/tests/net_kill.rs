//! `kill -9` of `iceboxd` while it works on the network of boxes: nothing gets out that may not, nothing is left behind, and
//! the next start repairs.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use icebox_tests::net::{World, links};
use icebox_tests::wait::let_pass;
use icebox_tests::{Daemon, TestBox, wait_until};
use serde_json::{Value, json};

/// Whom nobody may reach.
const CANARY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);
/// Whom open boxes may reach.
const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Moments at which `iceboxd` is killed, from the beginning of an operation on.
const MOMENTS: u32 = 12;
const STEP: Duration = Duration::from_millis(4);
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

/// Does something that is killed in its midst, at each of the moments.
fn killed_at_each_moment(what: impl Fn(&Daemon, &TestBox) + Sync) {
    let world = World::new();
    let mut daemon = world.daemon();
    let made = daemon.api().create(&knocking());
    // It knocks: the firewall has something to refuse.
    let refused = |daemon: &Daemon| {
        let net = daemon.api().get(&format!("/v1/boxes/{}/net", made.id)).ok();
        net["refused"]["packets"].as_u64().unwrap_or(0)
    };
    wait_until(SETTLE, "the box to knock", || refused(&daemon) > 0);
    for moment in 0..MOMENTS {
        let here = TestBox { api: daemon.api(), id: made.id.clone() };
        thread::scope(|scope| {
            let doing = scope.spawn(|| what(&daemon, &here));
            let_pass(moment * STEP);
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid()), nix::sys::signal::Signal::SIGKILL)
                .expect("kill");
            let _ = doing.join();
        });
        daemon.reap();
        assert_eq!(world.capture.to(CANARY), 0, "killed at moment {moment}: the canary was reached");
        daemon.start_again();
        assert_eq!(world.capture.to(CANARY), 0, "restart after moment {moment}: the canary was reached");
    }
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
}

fn call(api: &icebox_tests::Api, method: &str, path: &str, body: &Value) {
    // The connection breaks when the other side dies.
    let _ =
        api.try_send(path, api.build(method, path).header("content-type", "application/json").body(body.to_string()));
}

#[test]
fn a_kill_within_a_create_opens_nothing() {
    killed_at_each_moment(|daemon, _| call(&daemon.api(), "POST", "/v2/box", &knocking()));
}

#[test]
fn a_kill_within_a_change_of_policy_opens_nothing() {
    killed_at_each_moment(|_, made| {
        for mode in ["deny-all", "custom", "deny-all", "custom"] {
            call(&made.api, "PUT", &made.path("/config/network-policy"), &json!({ "mode": mode }));
        }
    });
}

#[test]
fn a_kill_within_a_delete_opens_nothing() {
    killed_at_each_moment(|daemon, _| {
        let api = daemon.api();
        let request =
            api.build("POST", "/v2/box").header("content-type", "application/json").body(knocking().to_string());
        let Ok(reply) = api.try_send("create", request) else { return };
        let id = reply.json()["id"].as_str().unwrap_or_default().to_owned();
        call(&api, "DELETE", &format!("/v2/box/{id}"), &Value::Null);
    });
}

#[test]
fn a_kill_within_freezing_and_waking_opens_nothing() {
    killed_at_each_moment(|_, made| {
        for verb in ["pause", "resume", "pause", "resume"] {
            call(&made.api, "POST", &made.path(&format!("/{verb}")), &json!({}));
        }
    });
}
