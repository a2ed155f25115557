//! The proxy against servers of the test, with names and own addresses that the test makes up.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::destination::Destination;
use super::rules::ForwardRules;
use super::serve::{CONNECTIONS_MAX, Proxy, accept};
use super::uplink::Uplink;
use crate::cidr::Cidr;
use crate::denial::Denial;
use crate::policy::{BoxPolicy, DomainPattern, PolicyText};

const OWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const WEB: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// All addresses lead to one server of the test.
struct MadeUp {
    names: BTreeMap<&'static str, Vec<Ipv4Addr>>,
    server: SocketAddr,
    connected: Mutex<Vec<SocketAddrV4>>,
}

impl Uplink for MadeUp {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<Ipv4Addr>>> {
        let found = self.names.get(name).cloned().ok_or_else(|| io::Error::other("no such name"));
        Box::pin(async move { found })
    }

    fn is_own(&self, address: Ipv4Addr) -> bool {
        address == OWN
    }

    fn connect(&self, to: SocketAddrV4) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.connected.lock().expect("a lock").push(to);
        Box::pin(TcpStream::connect(self.server))
    }
}

struct World {
    proxy: SocketAddr,
    uplink: Arc<MadeUp>,
    refused: Arc<Mutex<Vec<Denial>>>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

/// Sends back, as the body of its answer, what it got up to the end of the head and of a body of the stated length.
async fn origin(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut got = Vec::new();
            let mut piece = [0; 4096];
            loop {
                let Ok(count @ 1..) = stream.read(&mut piece).await else { return };
                got.extend_from_slice(&piece[..count]);
                let text = String::from_utf8_lossy(&got).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length =
                    head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                if body.len() < length.unwrap_or(0) {
                    continue;
                }
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nX-Hop: 1\r\nConnection: X-Hop\r\nContent-Length: {}\r\n\r\n",
                    got.len()
                );
                if stream.write_all(answer.as_bytes()).await.is_err() || stream.write_all(&got).await.is_err() {
                    return;
                }
                got.clear();
            }
        });
    }
}

async fn world(rules: ForwardRules) -> World {
    let local = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (server, proxy) = (local().await.expect("a port"), local().await.expect("a port"));
    let names = BTreeMap::from([
        ("web.test", vec![WEB]),
        ("mirror.corp.test", vec![PRIVATE]),
        ("both.test", vec![PRIVATE, WEB]),
        ("self.test", vec![OWN]),
        ("six.test", vec![]),
    ]);
    let server_address = server.local_addr().expect("an address");
    let uplink = Arc::new(MadeUp { names, server: server_address, connected: Mutex::default() });
    let refused = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&refused);
    let on_refusal = Arc::new(move |denial| list.lock().expect("a lock").push(denial));
    let address = proxy.local_addr().expect("an address");
    let served = Arc::new(Proxy { rules, on_refusal, uplink: Arc::clone(&uplink) as Arc<dyn Uplink> });
    let tasks = [tokio::spawn(origin(server)), tokio::spawn(accept(proxy, served))].map(AbortOnDropHandle::new);
    World { proxy: address, uplink, refused, _tasks: tasks }
}

fn rules(policy: BoxPolicy) -> ForwardRules {
    let private_hosts = vec![DomainPattern::parse("*.corp.test").expect("a pattern")];
    ForwardRules { policy, pool: Cidr::known(10, 213, 0, 0, 16), private_hosts }
}

fn custom(domains: &[&str], allowed: &[&str], denied: &[&str]) -> BoxPolicy {
    let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let (domains, allowed, denied) = (owned(domains), owned(allowed), owned(denied));
    let text = PolicyText { mode: "custom", allowed_domains: &domains, allowed_cidrs: &allowed, denied_cidrs: &denied };
    BoxPolicy::check(text).expect("a policy")
}

/// Sends `said` and reads until `enough` says so, or the end.
async fn talk(stream: &mut TcpStream, said: &str, enough: impl Fn(&str) -> bool) -> String {
    stream.write_all(said.as_bytes()).await.expect("sent");
    let mut got = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&got).into_owned();
        if enough(&text) {
            return text;
        }
        let count = stream.read(&mut piece).await.expect("read");
        if count == 0 {
            return text;
        }
        got.extend_from_slice(&piece[..count]);
    }
}

impl World {
    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.proxy).await.expect("the proxy");
        let request = format!("{request}Connection: close\r\n\r\n");
        talk(&mut stream, &request, |_| false).await
    }

    /// The rules that have refused since the last call.
    fn rules(&self) -> Vec<String> {
        std::mem::take(&mut *self.refused.lock().expect("a lock")).into_iter().map(|denial| denial.rule).collect()
    }
}

#[tokio::test]
async fn a_request_with_an_absolute_uri_reaches_the_server_as_one_for_its_path() {
    let world = world(rules(BoxPolicy::AllowAll)).await;
    let request = "GET http://web.test/a?b=c HTTP/1.1\r\nHost: other.test\r\nProxy-Authorization: Basic eA==\r\n\
                   Proxy-Connection: keep-alive\r\nX-Mine: 1\r\n";
    let answer = world.ask(request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let (_, seen) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("Host: web.test\r\n") && seen.contains("X-Mine: 1"), "the URI tells the host: {seen}");
    assert!(!seen.to_lowercase().contains("proxy-"), "{seen}");
    assert!(!answer.contains("X-Hop"), "{answer}");
    assert_eq!(*world.uplink.connected.lock().expect("a lock"), [SocketAddrV4::new(WEB, 80)]);
    let mut stream = TcpStream::connect(world.proxy).await.expect("the proxy");
    let post = "POST http://web.test:8080/p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    let answer = talk(&mut stream, post, |text| text.ends_with("\r\n\r\nhello")).await;
    assert!(answer.contains("POST /p HTTP/1.1\r\nHost: web.test:8080\r\n"), "{answer}");
}

#[tokio::test]
async fn a_tunnel_passes_bytes_unread_and_ends_with_either_side() {
    let world = world(rules(BoxPolicy::AllowAll)).await;
    let mut stream = TcpStream::connect(world.proxy).await.expect("the proxy");
    let connect = "CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\n\r\n";
    let opened = talk(&mut stream, connect, |text| text.ends_with("\r\n\r\n")).await;
    assert!(opened.starts_with("HTTP/1.1 200"), "{opened}");
    let said = "GET / HTTP/1.1\r\nConnection: X-Hop\r\n\r\n";
    let answer = talk(&mut stream, said, |text| text.ends_with(said)).await;
    assert!(answer.contains("X-Hop: 1"), "nothing is taken out: {answer}");
    stream.shutdown().await.expect("the end");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("the server's end");
    assert_eq!(*world.uplink.connected.lock().expect("a lock"), [SocketAddrV4::new(WEB, 443)]);
}

#[tokio::test]
async fn every_destination_is_judged_by_the_address_that_is_connected_to() {
    let get = |host: &str| format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\n");
    let world_of = |policy: BoxPolicy| world(rules(policy));
    let open = world_of(BoxPolicy::AllowAll).await;
    for (host, rule) in [
        ("127.0.0.1", "closed network"),
        ("169.254.169.254", "closed network"),
        ("10.213.0.7:8080", "closed network"),
        ("self.test", "the host itself"),
        ("203.0.113.1", "the host itself"),
        ("web.test:25", "port 25"),
    ] {
        let answer = open.ask(&get(host)).await;
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains(rule), "{host}: {answer}");
        assert_eq!(open.rules(), [rule], "{host}");
    }
    assert!(open.uplink.connected.lock().expect("a lock").is_empty(), "nothing was connected to");
    for (host, to) in [("both.test", WEB), ("mirror.corp.test", PRIVATE), ("203.0.113.2", WEB)] {
        assert!(open.ask(&get(host)).await.starts_with("HTTP/1.1 200"), "{host}");
        assert_eq!(open.uplink.connected.lock().expect("a lock").pop(), Some(SocketAddrV4::new(to, 80)), "{host}");
    }
    for (host, word) in [("gone.test", "no such name"), ("six.test", "no IPv4 address")] {
        let answer = open.ask(&get(host)).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains(word), "{answer}");
    }
    let shut = world_of(BoxPolicy::DenyAll).await;
    assert!(shut.ask(&get("web.test")).await.contains("deny-all"));
    let some = world_of(custom(&["web.test"], &["203.0.113.9"], &["203.0.113.2/31"])).await;
    for (host, rule) in
        [("web.test", "denied_cidrs"), ("both.test", "not allowed (custom)"), ("203.0.113.77", "not allowed (custom)")]
    {
        let answer = some.ask(&get(host)).await;
        let rules = some.rules();
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
        assert!(rules == [rule] || (host == "both.test" && rules.len() == 1), "{host}: {rules:?}");
    }
    assert!(some.ask(&get("203.0.113.9")).await.starts_with("HTTP/1.1 200"));
    let named = world_of(custom(&["web.test"], &[], &[])).await;
    assert!(named.ask(&get("web.test")).await.starts_with("HTTP/1.1 200"));
    assert!(named.ask(&get("both.test")).await.starts_with("HTTP/1.1 403"));
    assert_eq!(named.rules(), ["not in allowed_domains"]);
}

#[tokio::test]
async fn what_is_no_request_for_a_proxy_is_refused_with_a_reason() {
    let world = world(rules(BoxPolicy::AllowAll)).await;
    for (line, word) in [
        ("GET / HTTP/1.1", "absolute URI"),
        ("GET https://web.test/ HTTP/1.1", "CONNECT"),
        ("GET ftp://web.test/ HTTP/1.1", "CONNECT"),
        ("GET http://user@web.test/ HTTP/1.1", "user name"),
        ("GET http://[::1]/ HTTP/1.1", "IPv4"),
        ("CONNECT web.test HTTP/1.1", "with a port"),
        ("CONNECT web.test:0 HTTP/1.1", "with a port"),
    ] {
        let answer = world.ask(&format!("{line}\r\nHost: web.test\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{line}: {answer}");
        assert!(answer.contains(word) || answer.ends_with("\r\n\r\n"), "{line}: {answer}");
    }
    assert!(world.uplink.connected.lock().expect("a lock").is_empty());
}

#[tokio::test]
async fn as_many_connections_as_there_are_slots_and_no_more_are_served_at_once() {
    let world = world(rules(BoxPolicy::AllowAll)).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(world.proxy).await.expect("the proxy");
        let connect = "CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\n\r\n";
        assert!(talk(&mut stream, connect, |text| text.ends_with("\r\n\r\n")).await.contains("200"));
        open.push(stream);
    }
    let mut late = TcpStream::connect(world.proxy).await.expect("the kernel's queue");
    late.write_all(b"GET http://web.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
    assert!(late.try_read(&mut [0; 1]).is_err(), "it waits");
    drop(open.pop());
    let mut answer = String::new();
    late.read_to_string(&mut answer).await.expect("an answer when a slot is free");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn destinations_are_read() {
    let read = |text: &str, port| Destination::read(text, port).map(|found| found.to_string());
    assert_eq!(read("Web.TEST.", Some(80)).as_deref(), Some("web.test:80"));
    assert_eq!(read("192.0.2.1:8080", None).as_deref(), Some("192.0.2.1:8080"));
    for bad in [
        "",
        ":80",
        "a b:1",
        "web.test:",
        "web.test:x",
        "web.test:65536",
        "[::1]:80",
        "::1",
        "0x7f.1:80",
        "2130706433:80",
    ] {
        assert_eq!(read(bad, Some(80)), None, "{bad}");
    }
    assert_eq!(read("web.test", None), None);
}
