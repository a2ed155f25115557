//! What an owner says about the network of a box is what holds: at once, for what is open, after restarts, and told.

use std::net::Ipv4Addr;

use icebox_tests::net::dns::Answer;
use icebox_tests::net::{DEADLINE, World};
use icebox_tests::{TestBox, wait_until};
use serde_json::{Value, json};

const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
const SHARED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 30);
const DENIED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

fn names(world: &World) {
    for (name, address) in [
        ("site.test", SITE),
        ("other.test", OTHER),
        ("a.suffix.test", SITE),
        ("b.a.suffix.test", SITE),
        ("suffix.test", OTHER),
        ("one.shared.test", SHARED),
        ("two.shared.test", SHARED),
        ("denied.test", DENIED),
    ] {
        world.dns.set(name, Answer::of(&[address]));
    }
}

fn set(made: &TestBox, policy: &Value) {
    made.api.call("PUT", &made.path("/config/network-policy"), Some(policy)).ok();
}

fn net(made: &TestBox) -> Value {
    made.api.get(&format!("/v1/boxes/{}/net", made.id)).ok()
}

fn open() -> Value {
    json!({ "mode": "allow-all" })
}

fn closed() -> Value {
    json!({ "mode": "deny-all" })
}

fn only(domains: &[&str]) -> Value {
    json!({ "mode": "custom", "allowed_domains": domains })
}

/// The HTTP status of a URL, or curl's exit code as a negative number.
fn curl(made: &TestBox, url: &str) -> i64 {
    let result = made.exec(&["curl", "-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", url]);
    if result.code == 0 { result.stdout.trim().parse().expect("a status") } else { -result.code }
}

/// Connects to a port, says a word, and holds the connection; tells `LOST` when it breaks. Only who sends learns that:
/// its system asks each second whether the other side is there.
const HOLD: &str = r#"
import socket, sys, os
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
s.settimeout(None)
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
s.sendall(b"hello\n")
print("CONNECTED", s.recv(5), flush=True)
while True:
    try:
        data = s.recv(100)
    except OSError as e:
        print("LOST", e, flush=True); break
    if not data:
        print("END", flush=True); break
    print("GOT", data, flush=True)
    try:
        s.sendall(data)
    except OSError as e:
        print("LOST", e, flush=True); break
"#;

#[test]
fn a_changed_policy_holds_when_it_is_answered() {
    let world = World::new();
    names(&world);
    let daemon = world.daemon();
    let made = daemon.api().create(&json!({ "network_policy": open() }));
    assert_eq!(curl(&made, &format!("http://{SITE}/")), 200);
    for _ in 0..3 {
        set(&made, &closed());
        let before = world.capture.to(SITE);
        assert!(curl(&made, &format!("http://{SITE}/")) < 0, "reached although closed");
        assert_eq!(world.capture.to(SITE), before, "a packet left a closed box");
        assert_eq!(made.data()["network_policy"], closed());
        set(&made, &open());
        assert_eq!(curl(&made, &format!("http://{SITE}/")), 200, "not reached although open");
        assert_eq!(made.data()["network_policy"], open());
    }
}

#[test]
fn an_open_connection_is_cut_when_it_is_no_longer_allowed() {
    let world = World::new();
    names(&world);
    let listener = world.listen(7000);
    let daemon = world.daemon();
    let made = daemon.api().create(&json!({ "network_policy": open() }));
    made.write("hold.py", HOLD);
    let mut cut = made.stream(&["python3", "hold.py", &SITE.to_string(), "7000"]);
    let (mut server, _) = listener.accept().expect("a connection");
    server.set_read_timeout(Some(DEADLINE)).expect("timeout");
    std::io::Write::write_all(&mut server, b"hello").expect("greet");
    icebox_tests::api::read_until(&mut cut, "CONNECTED");
    // Still allowed under another policy: it goes on.
    set(&made, &json!({ "mode": "custom", "allowed_cidrs": [format!("{SITE}/32")] }));
    std::io::Write::write_all(&mut server, b"again").expect("send");
    icebox_tests::api::read_until(&mut cut, "GOT b'again'");
    set(&made, &closed());
    // The next packet in either direction ends it for its sender.
    let _ = std::io::Write::write_all(&mut server, b"secret");
    let text = made_lost(&mut cut, &mut server);
    assert!(!text.contains("secret"), "{text}");
}

/// Waits until the box has lost the connection; the server goes on talking, as servers do.
fn made_lost(stream: &mut reqwest::blocking::Response, server: &mut std::net::TcpStream) -> String {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    // The server's words are refused to the server; the box learns of it by what its own system sends.
    let _ = std::io::Write::write_all(server, b"more");
    while !seen.contains("LOST") && !seen.contains("END") {
        let length = std::io::Read::read(stream, &mut buffer).expect("the run's output");
        assert!(length > 0, "the run ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    seen
}

#[test]
fn names_and_networks_are_what_they_say() {
    let world = World::new();
    names(&world);
    let daemon = world.daemon();
    let policy = json!({
        "mode": "custom",
        "allowed_domains": ["site.test", "*.suffix.test", "one.shared.test", "denied.test"],
        "allowed_cidrs": ["198.51.100.128/25"],
        "denied_cidrs": [format!("{DENIED}/32"), "198.51.100.200/32"],
    });
    let made = daemon.api().create(&json!({ "network_policy": policy }));
    assert_eq!(made.data()["network_policy"], policy);
    for url in [
        "http://site.test/",
        "https://site.test/",
        "https://a.suffix.test/",
        "https://b.a.suffix.test/",
        "http://a.suffix.test/",
        "https://one.shared.test/",
        "http://site.test:8080/",
        "https://SITE.test/",
        "http://198.51.100.130/",
        "https://198.51.100.131/",
        "http://198.51.100.132:8080/",
    ] {
        assert_eq!(curl(&made, url), 200, "{url}");
    }
    for url in [
        "http://other.test/",
        "https://other.test/",
        "https://suffix.test/",
        "http://198.51.100.200/",
        "https://denied.test/",
        "http://198.51.100.99/",
    ] {
        let code = curl(&made, url);
        assert!(code < 0 || code == 403, "{url}: {code}");
    }
    // A neighbour at an allowed address, by curl's own means. Refused inside of TLS, with empty output.
    let refused = made.exec(&[
        "curl",
        "-sk",
        "-m",
        "10",
        "--resolve",
        "two.shared.test:443:198.51.100.30",
        "https://two.shared.test/",
    ]);
    assert_eq!((refused.code, refused.stdout.as_str()), (35, ""), "{refused:?}");
    assert!(world.web.visits_of("two.shared.test").is_empty());
    assert_eq!(world.capture.to(OTHER), 0);
    assert_eq!(world.capture.to(DENIED), 0);
}

/// Says what fails a TLS handshake with an address, for a name or for none.
const HANDSHAKE: &str = r#"
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for _ in range(int(sys.argv[3])):
    try:
        stream = socket.create_connection((sys.argv[1], 443), 10)
        context.wrap_socket(stream, server_hostname=sys.argv[2] or None)
        print("connected")
    except ssl.SSLError as e:
        print("TLS", e.reason)
    except OSError as e:
        print("broken", e)
"#;
/// The alert must arrive before the end of the connection, each time.
const HANDSHAKES: usize = 20;

/// What reaches the egress proxy is refused inside TLS, so that a client says so and not that the connection broke.
#[test]
fn https_that_is_refused_fails_inside_tls() {
    let world = World::new();
    names(&world);
    let daemon = world.daemon();
    let policy =
        json!({ "mode": "custom", "allowed_domains": ["one.shared.test"], "denied_cidrs": [format!("{DENIED}/32")] });
    let made = daemon.api().create(&json!({ "network_policy": policy }));
    made.write("handshake.py", HANDSHAKE);
    let (shared, resolved) = (SHARED.to_string(), format!("two.shared.test:443:{SHARED}"));
    let by_address = format!("https://{SHARED}/");
    for (name, url, reason) in [
        // A neighbour of an allowed name, and an address without a name.
        ("two.shared.test", "https://two.shared.test/", "access denied"),
        ("", &by_address, "unrecognized name"),
    ] {
        let refused = made.exec(&["curl", "-skS", "-m", "10", "--resolve", &resolved, url]);
        assert_eq!((refused.code, refused.stdout.as_str()), (35, ""), "{refused:?}");
        assert!(refused.stderr.contains(reason), "{refused:?}");
        let refused = made.exec(&["python3", "handshake.py", &shared, name, &HANDSHAKES.to_string()]);
        let reason = reason.to_uppercase().replace(' ', "_");
        let alerts = refused.stdout.lines().filter(|line| line.starts_with("TLS ") && line.contains(&reason));
        assert_eq!(alerts.count(), HANDSHAKES, "{refused:?}");
    }
    // Earlier refusals, as in docs/network.md: a name by the name server (6), an address by the firewall (7).
    assert_eq!(curl(&made, "https://other.test/"), -6);
    assert_eq!(curl(&made, &format!("https://{DENIED}/")), -7);
    set(&made, &closed());
    assert_eq!(curl(&made, &by_address), -7);
    assert_eq!((world.capture.to(SHARED), world.capture.to(DENIED)), (0, 0));
}

#[test]
fn the_name_server_of_a_box_tells_what_is_allowed_only() {
    let world = World::new();
    names(&world);
    world.dns.set("site.test", Answer { aaaa: vec!["2001:db8::5".parse().expect("address")], ..Answer::of(&[SITE]) });
    let long: Vec<Ipv4Addr> = (1..=60).map(|n| Ipv4Addr::new(198, 51, 100, n)).collect();
    world.dns.set("long.suffix.test", Answer { truncated: true, ..Answer::of(&long) });
    world.dns.set("alias.suffix.test", Answer { chain: vec!["elsewhere.test".into()], ..Answer::of(&[SITE]) });
    let daemon = world.daemon();
    let made = daemon.api().create(&json!({ "network_policy": only(&["site.test", "*.suffix.test"]) }));
    let look =
        |name: &str| made.sh(&format!("getent ahosts {name} | cut -d' ' -f1 | sort -u")).stdout.trim().to_owned();
    assert_eq!(look("site.test"), SITE.to_string(), "no IPv6, since there is none");
    assert_eq!(look("alias.suffix.test"), SITE.to_string());
    assert_eq!(look("long.suffix.test").lines().count(), 60);
    assert_eq!(look("other.test"), "");
    assert_eq!(world.dns.asked("other.test"), 0, "what is not allowed is not asked");
    assert!(made.out("cat /etc/resolv.conf").contains(net(&made)["gateway"].as_str().expect("gateway")));
    // An alias of an allowed name may be reached, but its target is not allowed by itself.
    assert_eq!(curl(&made, "https://alias.suffix.test/"), 200);
    assert!(curl(&made, "https://elsewhere.test/") < 0);
    set(&made, &closed());
    assert_eq!(look("site.test"), "");
    set(&made, &open());
    assert_eq!(look("other.test"), OTHER.to_string());
}

#[test]
fn what_was_refused_is_told() {
    let world = World::new();
    names(&world);
    let daemon = world.daemon();
    let made = daemon.api().create(&json!({ "network_policy": only(&["site.test", "one.shared.test"]) }));
    let tries: [(&str, &[(&str, &str)]); 4] = [
        ("curl -sk -m 5 https://other.test/", &[("protocol", "dns"), ("name", "other.test")]),
        ("curl -s -m 5 http://10.1.2.3:9999/", &[("protocol", "tcp"), ("address", "10.1.2.3")]),
        (
            "curl -sk -m 5 https://one.shared.test/; curl -sk -m 5 --resolve two.shared.test:443:198.51.100.30 https://two.shared.test/",
            &[("protocol", "tls"), ("name", "two.shared.test")],
        ),
        ("curl -s -m 5 http://198.51.100.77:9999/", &[("protocol", "tcp"), ("address", "198.51.100.77")]),
    ];
    for (line, wanted) in tries {
        made.sh(line);
        let is_told = || {
            let told = net(&made);
            let list = told["denials"].as_array().expect("denials");
            list.iter().any(|d| {
                wanted.iter().all(|(key, value)| d[*key] == *value) && d["rule"].as_str().is_some_and(|r| !r.is_empty())
            })
        };
        wait_until(DEADLINE, &format!("{wanted:?} to be told"), is_told);
    }
    wait_until(DEADLINE, "the log to tell of it", || {
        let log = made.get("/logs").ok().to_string();
        log.contains("other.test") && log.contains("10.1.2.3")
    });
    assert!(net(&made)["refused"]["packets"].as_u64() > Some(0), "{}", net(&made));
}

#[test]
fn a_policy_outlives_iceboxd_and_the_processes_of_a_box() {
    let world = World::new();
    names(&world);
    let mut daemon = world.daemon();
    let policy = only(&["site.test"]);
    let made = daemon.api().create(&json!({ "network_policy": policy }));
    assert_eq!(curl(&made, "https://site.test/"), 200);
    for kill in [true, false] {
        if kill {
            daemon.kill9()
        } else {
            daemon.stop()
        }
        daemon.start_again();
        let made = TestBox { api: daemon.api(), id: made.id.clone() };
        assert_eq!(made.data()["network_policy"], policy);
        let before = world.capture.to(OTHER);
        assert!(curl(&made, &format!("http://{OTHER}/")) <= 0 || curl(&made, &format!("http://{OTHER}/")) == 403);
        assert_eq!(world.capture.to(OTHER), before);
        assert_eq!(curl(&made, "https://site.test/"), 200, "kill: {kill}");
    }
}

#[test]
fn boxes_are_apart_from_each_other() {
    let world = World::new();
    names(&world);
    let daemon = world.daemon();
    let api = daemon.api();
    let (a, b) = (api.create(&json!({ "network_policy": open() })), api.create(&json!({ "network_policy": closed() })));
    assert_eq!(curl(&a, "https://site.test/"), 200);
    assert!(curl(&b, "https://site.test/") < 0, "each has its own policy");
    let (address, gateway) = (net(&b)["address"].clone(), net(&b)["gateway"].clone());
    let (address, gateway) = (address.as_str().expect("address"), gateway.as_str().expect("gateway"));
    b.out("(python3 -m http.server 8000 >/dev/null 2>seen.txt &)");
    wait_until(DEADLINE, "the server", || b.sh(&format!("curl -sf -m 2 http://{address}:8000/")).code == 0);
    let own = b.out("grep -c GET seen.txt");
    for url in [format!("http://{address}:8000/"), format!("http://{gateway}:8000/"), format!("http://{gateway}:8080/")]
    {
        assert!(curl(&a, &url) < 0, "{url}");
    }
    assert!(a.python(&format!("import socket\ns=socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(2)\ns.connect(('{address}', 8000))\ns.send(b'x')\ns.recv(1)")).code != 0);
    assert_eq!(b.out("grep -c GET seen.txt"), own, "a box was reached by another");
    // The own server is reached by the own address, and by loopback.
    assert_eq!(curl(&b, "http://127.0.0.1:8000/"), 200);
}
