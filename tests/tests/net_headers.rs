//! `attach_headers`: headers that a box's requests get on their way out, and that no process in the box ever sees.

use std::net::Ipv4Addr;

use icebox_tests::net::World;
use icebox_tests::net::dns::Answer;
use icebox_tests::{Daemon, TestBox};
use serde_json::{Value, json};

const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const SECRET: &str = "Bearer s3cr3t-7f2c9a51-never-in-a-box";
const HEADER: &str = "authorization";

fn start() -> (World, Daemon, TestBox) {
    let world = World::new();
    for name in
        ["api.test", "deep.wild.test", "plain.test", "bad.untrusted.test", "old.expired.test", "x.misnamed.test"]
    {
        world.dns.set(name, Answer::of(&[SITE]));
    }
    let daemon = world.daemon();
    let made = daemon.api().create(&json!({ "attach_headers": {
        "api.test": { "Authorization": SECRET, "X-More": "one" },
        "*.wild.test": { "Authorization": SECRET },
        "*.untrusted.test": { "Authorization": SECRET },
        "*.expired.test": { "Authorization": SECRET },
        "*.misnamed.test": { "Authorization": SECRET },
    } }));
    (world, daemon, made)
}

/// The values of the header in the last request for a host.
fn last(world: &World, host: &str) -> Vec<String> {
    let visits = world.web.visits_of(host);
    let visit = visits.last().unwrap_or_else(|| panic!("no request reached {host}"));
    visit.request.headers.iter().filter(|(n, _)| n == HEADER).map(|(_, v)| v.clone()).collect()
}

#[test]
fn every_usual_client_gets_the_headers_and_trusts_the_proxy() {
    let (world, _daemon, made) = start();
    let requests = "import urllib.request\nprint(urllib.request.urlopen('https://api.test/python').read().decode())";
    let node = "fetch('https://api.test/node').then(r => r.text()).then(console.log)";
    for (client, argv) in [
        ("curl", vec!["curl", "-sS", "--fail", "https://api.test/curl"]),
        ("python", vec!["python3", "-c", requests]),
        ("node", vec!["node", "-e", node]),
        ("git", vec!["git", "ls-remote", "https://api.test/git"]),
    ] {
        let before = world.web.visits_of("api.test").len();
        let result = made.exec(&argv);
        // There is no repository, only a server that answers.
        assert!(result.code == 0 || client == "git", "{client}: {result:?}");
        assert!(world.web.visits_of("api.test").len() > before, "{client} did not come through: {result:?}");
        assert_eq!(last(&world, "api.test"), [SECRET], "{client}");
    }
    // What the client itself says under this name is replaced, in upper and lower case.
    made.out("curl -sS --fail -H 'AUTHORIZATION: mine' https://api.test/");
    assert_eq!(last(&world, "api.test"), [SECRET]);
    made.out("curl -sS --fail https://deep.wild.test/");
    assert_eq!(last(&world, "deep.wild.test"), [SECRET]);
}

#[test]
fn other_hosts_and_ports_pass_untouched() {
    let (world, _daemon, made) = start();
    // Its certificate is the server's own, which a box does not trust.
    assert_eq!(made.exec(&["curl", "-sS", "https://plain.test/"]).code, 60);
    made.out("curl -sSk --fail https://plain.test/");
    assert!(last(&world, "plain.test").is_empty());
    made.out("curl -sSk --fail https://api.test:8443/");
    assert!(last(&world, "api.test").is_empty());
    made.out("curl -sS --fail http://api.test/");
    assert!(last(&world, "api.test").is_empty());
}

#[test]
fn the_secret_is_not_told_to_a_server_that_is_not_the_one() {
    let (world, _daemon, made) = start();
    for host in ["bad.untrusted.test", "old.expired.test", "x.misnamed.test"] {
        let result = made.exec(&["curl", "-sSk", "-o", "/dev/null", "-w", "%{http_code}", &format!("https://{host}/")]);
        assert!(result.code != 0 || result.stdout.starts_with('5'), "{host}: {result:?}");
        assert!(world.web.visits_of(host).is_empty(), "{host} was told");
    }
    // Name and header differ: the certificate is for one, the request for another.
    made.sh("curl -sSk -H 'Host: plain.test' https://api.test/");
    for visit in world.web.visits_of("plain.test") {
        assert!(visit.request.header(HEADER).is_none(), "another host got the secret");
    }
}

#[test]
fn bodies_stream_both_ways_and_upgrades_pass() {
    let (world, _daemon, made) = start();
    assert_eq!(made.out("curl -sS --fail https://api.test/bytes/6000000 | wc -c"), "6000000");
    assert_eq!(made.out("curl -sS --fail https://api.test/chunks/500 | tail -1"), "line 499");
    let sums = made.out(
        "head -c 2000000 /dev/urandom > up; sha256sum < up; curl -sS --fail --data-binary @up https://api.test/echo | sha256sum",
    );
    let (sent, back) = sums.split_once('\n').expect("two lines");
    assert_eq!(sent, back);
    // More than one request on a connection.
    assert_eq!(made.out("curl -sS --fail https://api.test/a https://api.test/b https://api.test/c | wc -l"), "3");
    let upgrade = "import socket, ssl\nc = ssl.create_default_context()\ns = c.wrap_socket(socket.create_connection(('api.test', 443), 20), server_hostname='api.test')\ns.sendall(b'GET /upgrade HTTP/1.1\\r\\nHost: api.test\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n')\nhead = b''\nwhile b'\\r\\n\\r\\n' not in head: head += s.recv(1)\nassert b' 101 ' in head, head\nfor n in range(50):\n  m = bytes([n]) * 1000\n  s.sendall(m)\n  got = b''\n  while len(got) < 1000: got += s.recv(1000 - len(got))\n  assert got == m\nprint('echoed')";
    assert_eq!(made.python_out(upgrade), "echoed");
    assert_eq!(last(&world, "api.test"), [SECRET]);
}

#[test]
fn the_value_is_nowhere_a_box_or_a_reader_could_look() {
    let (world, daemon, made) = start();
    made.out("curl -sS --fail https://api.test/");
    assert_eq!(last(&world, "api.test"), [SECRET]);
    let bare = SECRET.trim_start_matches("Bearer ");
    // In the box: environments, memory of no process, files, what `/headers` of its own requests cannot tell.
    let found = made.sh(&format!(
        "sudo grep -rlI 's3cr3t-7f2c' /etc /run /tmp /workspace /usr/local /root /proc/*/environ /proc/*/cmdline 2>/dev/null | grep -v \"/proc/$$/\"; env | grep -c '{}'",
        &bare[..12]
    ));
    let files: Vec<&str> = found.stdout.lines().filter(|l| l.starts_with('/') && !l.contains("/proc/")).collect();
    assert!(files.is_empty(), "{found:?}");
    assert!(found.stdout.trim_end().ends_with('0'), "{found:?}");
    let mut answers = vec![made.data().to_string(), daemon.api().list().iter().map(Value::to_string).collect()];
    answers.push(daemon.api().get(&format!("/v1/boxes/{}/net", made.id)).text());
    answers.push(made.get("/logs").text().replace("sudo grep", ""));
    answers.push(daemon.log());
    for answer in answers {
        assert!(!answer.contains(bare), "the value is in {answer}");
    }
    for file in icebox_tests::machine::tree(&daemon.data_dir()) {
        let path = daemon.data_dir().join(&file);
        if path.is_file() && file.to_string_lossy().starts_with("icebox.db") {
            let bytes = std::fs::read(&path).expect("the database");
            assert!(!bytes.windows(bare.len()).any(|w| w == bare.as_bytes()), "the value is in {}", path.display());
        }
    }
}

#[test]
fn headers_outlive_iceboxd() {
    let (world, mut daemon, made) = start();
    daemon.kill9();
    daemon.start_again();
    let made = TestBox { api: daemon.api(), id: made.id };
    made.out("curl -sS --fail https://api.test/");
    assert_eq!(last(&world, "api.test"), [SECRET]);
}

#[test]
fn headers_of_the_account_go_with_new_boxes_and_a_boxs_own_win() {
    let (world, daemon, old) = start();
    let general = json!({ "api.test": { "Authorization": "general" }, "plain.test": { "Authorization": "general" } });
    assert_eq!(daemon.api().call("PUT", "/v1/account/attach-headers", Some(&general)).ok(), json!({}));
    let own = json!({ "attach_headers": { "api.test": { "Authorization": SECRET } } });
    let (made, plain) = (daemon.api().create(&own), daemon.api().create(&json!({})));
    for (one, api) in [(&made, SECRET), (&plain, "general")] {
        one.out("curl -sS --fail https://api.test/ && curl -sS --fail https://plain.test/");
        assert_eq!((last(&world, "api.test"), last(&world, "plain.test")), (vec![api.into()], vec!["general".into()]));
    }
    assert_eq!(old.exec(&["curl", "-sS", "https://plain.test/"]).code, 60, "boxes that are there keep what they have");
    daemon.api().call("PUT", "/v1/account/attach-headers", Some(&json!({}))).ok();
    let without = daemon.api().create(&json!({}));
    assert_eq!(
        without.exec(&["curl", "-sS", "https://api.test/"]).code,
        60,
        "no headers are attached, so TLS ends at the untrusted server"
    );
}

#[test]
fn what_makes_no_sense_is_refused_without_repeating_the_value() {
    let world = World::new();
    let daemon = world.daemon();
    for bad in [
        json!({ "UPPER.test": { "A": SECRET } }),
        json!({ "a b": { "A": SECRET } }),
        json!({ "*": { "A": SECRET } }),
        json!({ "api.test": { "A b": SECRET } }),
        json!({ "api.test": { "A": format!("{SECRET}\r\nX: y") } }),
        json!({ "api.test": { "A": 7 } }),
        json!({ "api.test": SECRET }),
    ] {
        let text = daemon.api().post("/v2/box", &json!({ "attach_headers": bad })).error(400);
        assert!(!text.contains("s3cr3t"), "{text}");
    }
}
