//! Connections that are allowed by name.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::hello::tests::{extension, message, names, records};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const MALFORMED: [u8; 7] = [21, 3, 3, 0, 2, 2, 50];
const DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
const UNNAMED: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

async fn world() -> World {
    let world = World::new(custom(&["good.example", "*.later.example"]), None).await;
    world.box_.names.answered("good.example", &[SITE], HOUR);
    world.box_.names.answered("bad.example", &[SITE], HOUR);
    world
}

fn hello_for(name: &str) -> Vec<u8> {
    records(&message(&[names(&[(0, name)])]), 16_000)
}

#[tokio::test]
async fn tls_for_an_allowed_name_passes_untouched() {
    let world = world().await;
    world.serve_echo(SITE, 443).await;
    for (name, size) in [("good.example", 16_000), ("GOOD.example", 7), ("x.later.example", 1)] {
        let mut stream = world.dial(SITE, 443).await;
        let hello = records(&message(&[names(&[(0, name)])]), size);
        for part in hello.chunks(11) {
            stream.write_all(part).await.expect("write");
            tokio::task::yield_now().await;
        }
        let mut back = vec![0; hello.len()];
        stream.read_exact(&mut back).await.expect("echo");
        assert_eq!(back, hello, "{name} in records of {size}");
        stream.write_all(b"more").await.expect("write");
        stream.shutdown().await.expect("half close");
        assert_eq!(rest(&mut stream).await, (b"more".to_vec(), None));
    }
    assert!(world.rules().is_empty(), "{:?}", world.rules());
}

#[tokio::test]
async fn tls_for_anything_else_ends_with_an_alert_and_reaches_no_server() {
    let world = world().await;
    world.serve_echo(SITE, 443).await;
    world.serve_echo(OTHER, 443).await;
    let one = |list: &[Vec<u8>]| records(&message(list), 16_000);
    let good = || names(&[(0, "good.example")]);
    for (address, hello, alert) in [
        (SITE, hello_for("bad.example"), &DENIED),
        (SITE, hello_for("sub.good.example"), &DENIED),
        (SITE, hello_for("later.example"), &DENIED),
        // Allowed, but not resolvable to this address.
        (OTHER, hello_for("good.example"), &DENIED),
        (OTHER, hello_for("x.later.example"), &DENIED),
        (SITE, one(&[]), &UNNAMED),
        (SITE, one(&[good(), extension(0xfe0d, b"inner")]), &DENIED),
        (SITE, one(&[names(&[(0, "good.example"), (0, "bad.example")])]), &MALFORMED),
        (SITE, one(&[good(), names(&[(0, "bad.example")])]), &MALFORMED),
        (SITE, hello_for("good.example."), &MALFORMED),
        (SITE, hello_for("198.51.100.1"), &MALFORMED),
    ] {
        let mut stream = world.dial(address, 443).await;
        stream.write_all(&hello).await.expect("write");
        assert_eq!(rest(&mut stream).await, (alert.to_vec(), None));
    }
    for port in [443, 80] {
        let mut stream = world.dial(SITE, port).await;
        let other = if port == 443 {
            b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n".to_vec()
        } else {
            hello_for("bad.example")
        };
        stream.write_all(&other).await.expect("write");
        assert!(rest(&mut stream).await.0.len() <= 7, "another protocol than the port's");
    }
    assert!(world.connected().is_empty(), "{:?}", world.connected());
    assert_eq!(world.rules().len(), 13, "{:?}", world.rules());
    assert_eq!(world.egress.counters().refused, 13);
}

/// Browsers' ClientHellos pass if the operator sets `ech_allowed`.
#[tokio::test]
async fn an_encrypted_hello_passes_by_its_outer_name_only_if_that_is_configured() {
    for ech_allowed in [false, true] {
        let choose = |config: &mut EgressConfig| config.ech_allowed = ech_allowed;
        let world = World::with_config(custom(&["good.example"]), None, choose).await;
        world.box_.names.answered("good.example", &[SITE], HOUR);
        world.box_.names.answered("bad.example", &[SITE], HOUR);
        world.serve_echo(SITE, 443).await;
        let hello = |name| records(&message(&[names(&[(0, name)]), extension(0xfe0d, b"inner")]), 16_000);
        let mut stream = world.dial(SITE, 443).await;
        stream.write_all(&hello("good.example")).await.expect("write");
        if ech_allowed {
            let mut back = vec![0; hello("good.example").len()];
            stream.read_exact(&mut back).await.expect("echo");
            assert_eq!(back, hello("good.example"));
            assert!(world.rules().is_empty());
        } else {
            assert_eq!(rest(&mut stream).await, (DENIED.to_vec(), None));
            let told = world.rules().concat();
            assert!(told.contains("EncryptedClientHelloEnabled") && told.contains("grease_probability"), "{told}");
        }
        let mut stream = world.dial(SITE, 443).await;
        stream.write_all(&hello("bad.example")).await.expect("write");
        assert_eq!(rest(&mut stream).await, (DENIED.to_vec(), None), "the outer name is not allowed");
    }
}

#[tokio::test]
async fn closed_addresses_stay_closed_under_every_policy() {
    let near = [[10, 0, 0, 1], [127, 0, 0, 1], [169, 254, 169, 254], [10, 88, 0, 9], [203, 0, 113, 2]];
    let networks = || vec!["0.0.0.0/0".parse().expect("network")];
    for policy in [
        BoxPolicy::AllowAll,
        BoxPolicy::DenyAll,
        custom(&["good.example"]),
        BoxPolicy::Custom { domains: vec![], allowed: networks(), denied: vec![] },
    ] {
        let world = World::new(policy, None).await;
        for address in near.map(Ipv4Addr::from) {
            world.box_.names.answered("good.example", &[address], HOUR);
            world.serve_echo(address, 443).await;
            let mut stream = world.dial(address, 443).await;
            stream.write_all(&hello_for("good.example")).await.expect("write");
            assert_eq!(rest(&mut stream).await, (DENIED.to_vec(), None), "{address} is refused inside TLS");
            // What is not TLS is reset.
            for (port, said) in [(443, &b"GET / HTTP/1.1\r\n"[..]), (80, b"GET / HTTP/1.1\r\n")] {
                let mut stream = world.dial(address, port).await;
                let _ = stream.write_all(said).await;
                assert_eq!(rest(&mut stream).await, (vec![], Some(io::ErrorKind::ConnectionReset)), "{address}:{port}");
            }
        }
        assert!(world.connected().is_empty() && world.rules().len() == 3 * near.len(), "{:?}", world.rules());
    }
    let denied = BoxPolicy::Custom {
        domains: vec![DomainPattern::parse("good.example").expect("pattern")],
        allowed: networks(),
        denied: vec!["198.51.100.0/31".parse().expect("network")],
    };
    let world = World::new(denied, None).await;
    world.box_.names.answered("good.example", &[SITE], HOUR);
    let mut stream = world.dial(SITE, 443).await;
    stream.write_all(&hello_for("good.example")).await.expect("write");
    assert_eq!(rest(&mut stream).await, (DENIED.to_vec(), None));
    assert_eq!(world.rules(), ["denied_cidrs"]);
}

#[tokio::test]
async fn a_policy_that_changes_cuts_what_it_forbids_and_nothing_else() {
    let world = world().await;
    world.serve_echo(SITE, 443).await;
    let mut streams = Vec::new();
    for name in ["good.example", "x.later.example"] {
        let mut stream = world.dial(SITE, 443).await;
        stream.write_all(&hello_for(name)).await.expect("write");
        let mut back = vec![0; hello_for(name).len()];
        stream.read_exact(&mut back).await.expect("echo");
        streams.push(stream);
    }
    assert_eq!(world.egress.counters().open, 2);
    world.box_.set_policy(custom(&["good.example"]));
    assert_eq!(rest(&mut streams[1]).await.1, Some(io::ErrorKind::ConnectionReset));
    streams[0].write_all(b"still").await.expect("write");
    let mut back = [0; 5];
    streams[0].read_exact(&mut back).await.expect("echo");
    world.box_.set_policy(BoxPolicy::AllowAll);
    streams[0].write_all(b"again").await.expect("write");
    streams[0].read_exact(&mut back).await.expect("echo");
    world.box_.set_policy(BoxPolicy::DenyAll);
    assert_eq!(rest(&mut streams[0]).await.1, Some(io::ErrorKind::ConnectionReset));
    assert_eq!(world.egress.counters().cut, 2);
}

#[tokio::test]
async fn a_box_and_an_account_have_so_many_connections_and_no_more() {
    type Limit = fn(&mut SlotLimits);
    let limits: [(Limit, &str); 3] = [
        (|slots| slots.per_box = 2, "connection limit of the proxy for a box"),
        (|slots| slots.per_account = 2, "connection limit of the proxy for an account"),
        (|slots| slots.all = 2, "connection limit of the proxy"),
    ];
    for (limit, rule) in limits {
        let world = World::with_config(custom(&["good.example"]), None, |config| limit(&mut config.slots)).await;
        let (first, _second) = (world.dial(SITE, 443).await, world.dial(SITE, 443).await);
        while world.egress.counters().open < 2 {
            tokio::task::yield_now().await;
        }
        let mut third = world.dial(SITE, 443).await;
        assert_eq!(rest(&mut third).await.1, Some(io::ErrorKind::ConnectionReset));
        assert_eq!(world.rules(), [rule]);
        drop(first);
        while world.egress.counters().open > 1 {
            tokio::task::yield_now().await;
        }
    }
}

async fn with_http() -> World {
    let world = world().await;
    world.box_.names.answered("also.later.example", &[SITE], HOUR);
    world
        .serve_http(80, None, |request| async move {
            let shown = format!("{} {} {:?}|", request.method(), request.uri(), request.headers().get("host"));
            let body = request.into_body().collect().await.expect("body").to_bytes();
            let text = [shown.as_bytes(), &body, b"\n"].concat();
            hyper::Response::new(Full::from(text).map_err(|never| match never {}).boxed())
        })
        .await;
    world
}

#[tokio::test]
async fn every_request_is_checked() {
    let world = with_http().await;
    let mut stream = world.dial(SITE, 80).await;
    let three = b"GET /1 HTTP/1.1\r\nHost: Good.example\r\n\r\n\
        GET http://also.later.example/2?x HTTP/1.1\r\nHost: also.later.example\r\n\r\n\
        GET /3 HTTP/1.1\r\nHost: bad.example\r\n\r\n\
        GET /4 HTTP/1.1\r\nHost: good.example\r\n\r\n";
    let text = ask(&mut stream, three).await;
    assert!(text.contains("GET /1 Some(\"Good.example\")|") && text.contains("GET /2?x Some(\"also"), "{text}");
    assert!(text.contains("403 Forbidden") && text.contains("may not reach bad.example: not in allowed_domains"));
    assert!(!text.contains("/4"), "after a refusal: {text}");
    assert_eq!(world.connected().len(), 1);
    assert_eq!((world.rules().len(), world.egress.counters().requests), (1, 2));
}

#[tokio::test]
async fn what_is_not_one_clear_request_does_not_pass() {
    let world = with_http().await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\r\nHost: good.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\r\nHost: bad.example\r\n\r\n",
        "GET http://bad.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        "GET http://good.example/ HTTP/1.1\r\nHost: bad.example\r\n\r\n",
        "GET http://x@good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example:8080\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example@bad.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example, bad.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\r\n bad.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : good.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\rX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 198.51.100.1\r\n\r\n",
        "CONNECT bad.example:443 HTTP/1.1\r\nHost: bad.example:443\r\n\r\n",
        "CONNECT good.example:80 HTTP/1.1\r\nHost: good.example:80\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: +1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: good.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "hello\r\n\r\n",
    ] {
        let mut stream = world.dial(SITE, 80).await;
        stream.write_all(request.as_bytes()).await.expect("write");
        let text = String::from_utf8_lossy(&rest(&mut stream).await.0).into_owned();
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.0 4"),
            "{request:?}: {text}"
        );
    }
    assert!(world.connected().is_empty(), "{:?}", world.connected());
}

#[tokio::test]
async fn a_length_told_twice_does_not_make_two_requests_of_one() {
    let world = with_http().await;
    let inner = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: bad.example\r\n\r\n";
    for heads in [
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", inner.len()),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", inner.len()),
    ] {
        let mut stream = world.dial(SITE, 80).await;
        let request = format!("POST /first HTTP/1.1\r\nHost: good.example\r\n{heads}\r\n{inner}");
        let text = ask(&mut stream, request.as_bytes()).await;
        // The length is ignored, the chunks count, and later bytes are not read.
        assert!(
            text.contains("POST /first Some(\"good.example\")|\n") && text.matches("HTTP/1.1").count() == 1,
            "{text}"
        );
    }
    assert_eq!((world.connected().len(), world.egress.counters().requests), (2, 2));
}

/// What a box or a server says of its own connection does not reach the other.
#[tokio::test]
async fn what_concerns_one_connection_stays_on_it() {
    const OF_ONE_HOP: &str = "Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nProxy-Authorization: Basic eA==\r\n\
                              Proxy-Connection: close\r\nTE: gzip\r\nTrailer: X-After\r\nUpgrade: h2c\r\n\
                              HTTP2-Settings: AAA\r\nX-Hop: 1\r\nConnection: close, X-Hop\r\nX-Other: 2\r\n";
    let world = world().await;
    let listener = world.serve(SITE, 80).await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("request"));
        }
        let answer = format!("HTTP/1.1 200 OK\r\n{OF_ONE_HOP}Content-Length: 2\r\n\r\nok");
        stream.write_all(answer.as_bytes()).await.expect("write");
        String::from_utf8(head).expect("text")
    });
    let mut stream = world.dial(SITE, 80).await;
    let request = format!("GET / HTTP/1.1\r\nHost: good.example\r\n{OF_ONE_HOP}\r\n");
    let answer = ask(&mut stream, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    for head in [server.await.expect("server"), answer] {
        // The library may say of its own connection that it closes.
        let names: Vec<String> =
            head.lines().filter_map(|line| Some(line.split_once(':')?.0.to_ascii_lowercase())).collect();
        assert!(names.contains(&"x-other".to_owned()), "{head}");
        let known = ["host", "x-other", "content-length", "date", "connection"];
        assert!(names.iter().all(|name| known.contains(&name.as_str())) && !head.contains("X-Hop"), "{head}");
    }
}
