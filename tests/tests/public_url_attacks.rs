//! Public URLs under attack: hosts that are no host, requests that are two, boxes that answer nonsense.

use std::time::Duration;

use icebox_tests::visit::{Url, Visitor, serve};
use icebox_tests::{Daemon, TestBox};
use serde_json::json;

const PORT: u16 = 8080;

fn served(daemon: &Daemon) -> (TestBox, Url) {
    let made = daemon.api().create_default();
    serve(&made, PORT);
    let url = Url::open(&made, PORT, &json!({}));
    (made, url)
}

/// Sends bytes and reads the statuses of everything that is answered, until the other side ends the connection or has
/// nothing more to say.
fn statuses(url: &Url, bytes: &str) -> Vec<u16> {
    let mut visitor = Visitor::new(&url.address);
    visitor.try_send(bytes);
    let mut found = Vec::new();
    while !visitor.is_closed() {
        found.push(visitor.answer("GET").status);
        if visitor.is_silent(Duration::from_millis(300)) {
            break;
        }
    }
    found
}

fn seen(url: &Url) -> u64 {
    url.get("/seen").text().parse().expect("a number")
}

#[test]
fn hosts_that_only_resemble_one_reach_nothing() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    let before = seen(&url);
    let id = &made.id;
    let ask =
        |host: &str| statuses(&url, &format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
    // No name below the domain reaches the API.
    for host in [
        format!("{id}-8081.localhost"),
        format!("{id}-0.localhost"),
        format!("{id}-22.localhost"),
        format!("{id}-08080.localhost"),
        format!("{id}-65536.localhost"),
        format!("{id}-4294975376.localhost"),
        format!("{id}.localhost"),
        format!("x.{id}-8080.localhost"),
        format!("x-{id}-8080.localhost"),
        "no-such-box-1-8080.localhost".into(),
        "127.0.0.1-8080.localhost".into(),
        "2130706433-8080.localhost".into(),
        "169.254.169.254-80.localhost".into(),
        "0x7f000001-8080.localhost".into(),
        "healthz.localhost".into(),
        "-8080.localhost".into(),
    ] {
        assert_eq!(ask(&host), [404], "{host}");
    }
    // Nothing else than that is a box.
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "localhost",
    ] {
        assert_eq!(ask(host), [200], "{host} is the API");
    }
    assert_eq!(ask(&format!("{id}-8080.localhost.evil.example")), [200], "the API");
    for host in [
        &format!("{id}-8080.localhost, a"),
        &format!("{id}-8080.localhost/x"),
        &format!("a@{id}-8080.localhost"),
        "a b",
        "",
    ] {
        assert_eq!(ask(host), [400], "{host:?}");
    }
    assert_eq!(seen(&url), before + 1, "none of it has reached the box");
    // These do reach it: other spellings of the same.
    let name = format!("{id}-8080.localhost");
    for host in [name.to_uppercase(), format!("{name}."), format!("{name}:1"), format!("{name}.:65535")] {
        assert_eq!(ask(&host), [200], "{host}");
    }
}

#[test]
fn a_request_names_one_host() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    let before = seen(&url);
    let name = format!("{}-8080.localhost", made.id);
    for (request, wanted) in [
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: {name}\r\nHost: {name}\r\nConnection: close\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"), 400),
        (format!("GET http://127.0.0.1/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"), 400),
        (format!("GET http://{name}/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"), 400),
        (format!("GET http://169.254.169.254/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"), 400),
        (format!("CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"), 400),
        (format!("CONNECT {name}:80 HTTP/1.1\r\nHost: {name}:80\r\nConnection: close\r\n\r\n"), 400),
    ] {
        assert_eq!(statuses(&url, &request), [wanted], "{request:?}");
    }
    assert_eq!(seen(&url), before + 1, "none of it has reached the box");
    let absolute = format!("GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    assert_eq!(statuses(&url, &absolute), [200]);
}

#[test]
fn the_api_is_not_reached_by_the_name_of_a_box_nor_a_box_by_its_key() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    let key = format!("X-Box-Api-Key: {}\r\n", daemon.key());
    for path in ["/v2/box", "/healthz", "/metrics", "/openapi.json", &format!("/preview/{}-{PORT}/x", made.id)] {
        let told = url.ask("GET", path, &key);
        assert_eq!(told.json()["path"], path, "the box answers, not the API");
        assert_eq!(told.told("x-box-api-key"), None);
    }
}

#[test]
fn the_path_form_has_an_opaque_origin() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    let by_path = Url { host: "127.0.0.1".into(), ..url.clone() };
    let path = url.made["path"].as_str().expect("a path");
    assert_eq!(path, format!("/preview/{}-{PORT}/", made.id));
    let told = by_path.get(&format!("{path}a/../b?c"));
    assert_eq!(told.json()["path"], "/a/../b?c");
    assert_eq!(told.told("x-forwarded-prefix").as_deref(), Some(path.trim_end_matches('/')));
    assert!(
        told.header("content-security-policy")
            .is_some_and(|policy| policy.starts_with("sandbox") && !policy.contains("same-origin"))
    );
    let cookie = by_path.get(&format!(
        "{path}raw?{}",
        "SFRUUC8xLjEgMjAwIFgNClNldC1Db29raWU6IGE9YjsgUGF0aD0vDQpDb250ZW50LUxlbmd0aDogMA0KDQo="
    ));
    assert_eq!(cookie.header("set-cookie"), Some(format!("a=b; Path={path}").as_str()), "{cookie:?}");
    let bare = by_path.get(&format!("{}?x", path.trim_end_matches('/')));
    assert_eq!((bare.status, bare.header("location")), (308, Some(format!("{path}?x").as_str())));
    for path in ["/preview/", "/preview/x-1/", "/preview/127.0.0.1-80/", "/preview//", "/preview/../v2/box"] {
        assert_eq!(by_path.get(path).status, 404, "{path}");
    }
    let off = Daemon::start_with("[public_urls]\npath_form = false\n");
    let (made, url) = served(&off);
    assert!(url.made.get("path").is_none());
    assert_eq!(Url { host: "127.0.0.1".into(), ..url }.get(&format!("/preview/{}-{PORT}/", made.id)).status, 404);
}

/// Each of these is two requests to a server that parses it wrongly. The second one must never be seen by the box, and
/// what contradicts itself is refused.
#[test]
fn a_request_is_one_request() {
    let daemon = Daemon::start();
    let (_made, url) = served(&daemon);
    let host = url.host.clone();
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let size = smuggled.len();
    let chunked = format!("{size:x}\r\n{smuggled}\r\n0\r\n\r\n");
    let post = format!("POST /x HTTP/1.1\r\nHost: {host}\r\n");
    let refused = [
        ("two CL", format!("{post}Content-Length: 0\r\nContent-Length: {size}\r\n\r\n{smuggled}")),
        ("CL list", format!("{post}Content-Length: 0, {size}\r\n\r\n{smuggled}")),
        ("CL sign", format!("{post}Content-Length: +{size}\r\n\r\n{smuggled}")),
        ("CL hex", format!("{post}Content-Length: 0x10\r\n\r\n{smuggled}")),
        ("CL negative", format!("{post}Content-Length: -1\r\n\r\n{smuggled}")),
        ("CL empty", format!("{post}Content-Length: \r\n\r\n{smuggled}")),
        ("CL huge", format!("{post}Content-Length: 99999999999999999999999\r\n\r\n{smuggled}")),
        ("TE xchunked", format!("{post}Transfer-Encoding: xchunked\r\n\r\n{chunked}")),
        ("TE identity", format!("{post}Transfer-Encoding: identity\r\n\r\n{smuggled}")),
        ("TE not last", format!("{post}Transfer-Encoding: chunked, gzip\r\n\r\n{chunked}")),
        ("TE in 1.0", format!("POST /x HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}")),
        ("TE folded", format!("{post}Transfer-Encoding:\r\n chunked\r\n\r\n{chunked}")),
        ("TE with a blank before the colon", format!("{post}Transfer-Encoding : chunked\r\n\r\n{chunked}")),
        ("TE with a control", format!("{post}Transfer-Encoding: \u{b}chunked\r\n\r\n{chunked}")),
        ("a folded header", format!("{post}X-A: 1\r\n b\r\nContent-Length: 0\r\n\r\n")),
        ("a first header that is folded", format!("POST /x HTTP/1.1\r\n X: 1\r\nHost: {host}\r\n\r\n")),
        ("a header without a colon", format!("{post}Content-Length\r\n\r\n{smuggled}")),
        ("a null", format!("{post}X-A: a\0b\r\n\r\n")),
        ("a bare return", format!("{post}X-A: a\rX-B: b\r\n\r\n")),
        ("a bad chunk size", format!("{post}Transfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n{smuggled}")),
        (
            "a huge chunk size",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabcde\r\n0\r\n\r\n{smuggled}"),
        ),
        ("no version", format!("POST /x\r\nHost: {host}\r\n\r\n{smuggled}")),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("two blanks", format!("POST /x y HTTP/1.1\r\nHost: {host}\r\n\r\n{smuggled}")),
    ];
    let before = seen(&url);
    let mut reached = 0;
    for (name, request) in &refused {
        let found = statuses(&url, request);
        assert!(found.len() <= 1 && found.iter().all(|status| (400..600).contains(status)), "{name}: {found:?}");
        // A body that turns out wrong half way may have begun to reach the box.
        reached += u64::from(name.contains("chunk size"));
    }
    let after = seen(&url);
    assert!(after <= before + 1 + reached, "{} requests have reached the box", after - before - 1);
    // What can be read in one way only is one request for the box too; in it, everything is said once.
    for (name, request) in [
        ("equal CLs", format!("{post}Content-Length: {size}\r\nContent-Length: {size}\r\n\r\n{smuggled}")),
        ("CL and TE", format!("{post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}")),
        ("TE and CL", format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{chunked}")),
        ("a body for GET", format!("GET /x HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size}\r\n\r\n{smuggled}")),
        ("bare line feeds", format!("POST /x HTTP/1.1\nHost: {host}\nContent-Length: {size}\n\n{smuggled}")),
        ("a named length", format!("{post}Connection: content-length\r\nContent-Length: {size}\r\n\r\n{smuggled}")),
    ] {
        let before = seen(&url);
        let found = statuses(&url, &request);
        assert!(found == [200] || found == [400], "{name}: {found:?}");
        let reached = u64::from(found == [200]);
        assert_eq!(seen(&url), before + 1 + reached, "{name} was more than one request");
    }
    // The chunks count, the length is not passed on, and nothing can follow on that connection.
    let mut visitor = Visitor::new(&url.address);
    visitor.send(&format!("{post}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"));
    let told = visitor.answer("POST");
    assert_eq!((told.json()["size"].as_u64(), told.told("content-length")), (Some(size as u64), None));
    assert_eq!(told.header("connection"), Some("close"));
    assert!(visitor.is_closed());
}

#[test]
fn an_upgrade_to_http_2_is_not_offered_to_the_box() {
    let daemon = Daemon::start();
    let (_made, url) = served(&daemon);
    let headers = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    let told = url.ask("GET", "/", headers);
    assert_eq!((told.told("upgrade"), told.told("http2-settings"), told.told("connection")), (None, None, None));
}

/// What a hostile box answers harms its visitors and itself only.
#[test]
fn a_box_that_answers_nonsense_is_a_bad_gateway() {
    let daemon = Daemon::start();
    let (_made, url) = served(&daemon);
    for (name, answer) in [
        ("nothing", ""),
        ("no HTTP", "aGVsbG8gd29ybGQNCg0K"),
        ("half a head", "SFRUUC8xLjEgMjAwIFgNClg6"),
        ("two lengths", "SFRUUC8xLjEgMjAwIFgNCkNvbnRlbnQtTGVuZ3RoOiAxDQpDb250ZW50LUxlbmd0aDogMg0KDQpheg=="),
    ] {
        assert_eq!(url.get(&format!("/raw?{answer}")).status, 502, "{name}");
    }
    assert_eq!(url.get("/endless").status, 502, "a head without an end");
    assert_eq!(url.get("/switch").status, 502, "a change of protocol that the client did not ask for");
    // Interim answers: "102 X", a few or too many, and "200 X" after them.
    let (interim, last) = ("SFRUUC8xLjEgMTAyIFgNCg0K", "SFRUUC8xLjEgMjAwIFgNCkNvbnRlbnQtTGVuZ3RoOiAwDQoNCg==");
    let after = |count: usize| format!("/raw?{}{last}", interim.repeat(count));
    assert_eq!(url.get(&after(5)).status, 200, "a few interim answers");
    assert_eq!(url.get(&after(40)).status, 502, "an answer that does not come");
    // A body that ends early is not passed off as whole.
    let mut visitor = Visitor::new(&url.address);
    let short = "SFRUUC8xLjEgMjAwIFgNCkNvbnRlbnQtTGVuZ3RoOiAxMA0KDQpzaG9ydA==";
    visitor.send(&format!("GET /raw?{short} HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
    assert_eq!(visitor.head().header("content-length"), Some("10"));
    assert_eq!(visitor.exactly(5), b"short");
    assert!(visitor.is_closed());
    assert_eq!(url.get("/").status, 200);
}

#[test]
fn connections_have_a_limit_per_box_and_the_api_stays_open() {
    let daemon = Daemon::start_with("[public_urls]\nconnections_per_box_max = 3\n");
    let (made, url) = served(&daemon);
    let mut held: Vec<Visitor> = (0..3)
        .map(|_| {
            let mut visitor = Visitor::new(&url.address);
            visitor.send(&format!("GET /sse HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
            assert_eq!(visitor.head().status, 200);
            visitor
        })
        .collect();
    let full = url.get("/");
    assert_eq!((full.status, full.header("retry-after").is_some()), (503, true));
    assert_eq!(made.status(), "idle");
    held.pop();
    icebox_tests::wait_until(Duration::from_secs(20), "room for one more", || url.get("/").status == 200);
}

/// Clients that take their time for a head hold a connection for a while, and delay no other client.
#[test]
fn clients_that_do_not_come_to_the_point_are_sent_away() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    made.pause();
    let mut slow: Vec<Visitor> = (0..300).map(|_| Visitor::new(&url.address)).collect();
    for (number, visitor) in slow.iter_mut().enumerate() {
        match number % 3 {
            0 => {}
            1 => visitor.send("G"),
            _ => visitor.send(&format!("GET / HTTP/1.1\r\nHost: {}\r\nX-Slow: ", url.host)),
        }
    }
    assert_eq!(daemon.api().get("/healthz").status, 200);
    assert_eq!(made.status(), "paused", "half a request wakes nothing");
    assert_eq!(url.get("/").status, 200);
    // They dribble on, which does not give them more time.
    for visitor in &mut slow {
        visitor.try_send("x");
    }
    for visitor in &mut slow {
        assert!(visitor.is_closed() || visitor.answer("GET").status == 408);
    }
}
