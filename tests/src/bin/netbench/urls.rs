//! Public URLs: what the proxy adds, what waking adds, and connections that are held while their box sleeps and wakes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use icebox_tests::net::{DEADLINE, World};
use icebox_tests::netns::Netns;
use icebox_tests::{Daemon, TestBox, wait_until};
use serde_json::json;

use crate::places::namespace;
use crate::{Case, Mark, report};

const PORT: u16 = 8000;
const SOCKETS: usize = 50;
const FREEZES: usize = 30;
const MESSAGE_BYTES: usize = 1000;
/// Marks of the project.
const WAKE_P50_MS: f64 = 2.0;
const WAKE_P99_MS: f64 = 10.0;
/// Answers each request with two bytes; after an upgrade it echoes.
const SERVER: &str = r#"
import asyncio
async def serve(r, w):
    try:
        while True:
            head = await r.readuntil(b"\r\n\r\n")
            if b"upgrade: websocket" in head.lower():
                w.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
                while True:
                    data = await r.read(65536)
                    if not data: return
                    w.write(data)
            w.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except asyncio.IncompleteReadError:
        pass
    finally:
        w.close()
async def main():
    s = await asyncio.start_server(serve, "0.0.0.0", 8000, limit=1 << 20)
    async with s: await s.serve_forever()
asyncio.run(main())
"#;

struct Site<'a> {
    daemon: &'a Daemon,
    made: TestBox,
    address: String,
    host: String,
}

impl Site<'_> {
    fn is_frozen(&self) -> bool {
        self.daemon.cgroups().event(&self.daemon.cgroup(&self.made), "frozen") == Some(1)
    }

    fn pause(&self) {
        self.made.pause();
        assert!(self.is_frozen(), "it does not sleep");
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("connect to iceboxd");
        stream.set_nodelay(true).expect("no delay");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream
    }

    fn by_url(&self) -> f64 {
        let begun = Instant::now();
        ask(&mut self.connect(), &self.host);
        begun.elapsed().as_secs_f64() * 1e3
    }
}

fn direct(place: &Netns) -> f64 {
    place.run(|| {
        let begun = Instant::now();
        ask(&mut TcpStream::connect(("127.0.0.1", PORT)).expect("connect"), "box");
        begun.elapsed().as_secs_f64() * 1e3
    })
}

fn ask(stream: &mut TcpStream, host: &str) {
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).expect("send");
    let text = until(stream, b"ok");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

fn until(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.ends_with(end) {
        let length = stream.read(&mut buffer).expect("an answer");
        assert!(length > 0, "the connection ended: {}", String::from_utf8_lossy(&seen));
        seen.extend(&buffer[..length]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

pub(crate) fn measure(rounds: usize) {
    let world = World::new();
    let daemon = world.daemon();
    let made = daemon.api().create(&json!({}));
    made.write("server.py", SERVER);
    made.out("(python3 server.py >/dev/null 2>&1 &)");
    wait_until(DEADLINE, "the server", || made.sh("curl -s http://127.0.0.1:8000/").stdout == "ok");
    let url = made.post("/preview", &json!({ "port": PORT })).ok();
    let url = url["host_url"].as_str().expect("a URL").trim_end_matches('/').to_owned();
    let host = url.split("//").nth(1).expect("a host").to_owned();
    let port = host.rsplit(':').next().expect("a port");
    let site = Site { daemon: &daemon, made: made.clone(), address: format!("127.0.0.1:{port}"), host: host.clone() };
    let place = namespace(&daemon, &made);
    let mut cases = [
        Case::new("direct", "a connection within the box's namespace"),
        Case::new("by URL, running", ""),
        Case::new("by URL, frozen", ""),
    ];
    for _ in 0..rounds * 10 {
        site.made.resume();
        cases[0].samples.push(direct(&place));
        cases[1].samples.push(site.by_url());
        site.pause();
        cases[2].samples.push(site.by_url());
        assert!(!site.is_frozen());
    }
    let added = |percent| cases[2].percentile(percent) - cases[1].percentile(percent);
    let marks = [
        Mark { text: "what waking adds at p50, ms", reached: added(50), wanted: WAKE_P50_MS },
        Mark { text: "what waking adds at p99, ms", reached: added(99), wanted: WAKE_P99_MS },
    ];
    report("a request by a public URL, on a new connection", "ms", Some("direct"), &cases, &marks, &[]);
    hold(&site);
}

/// Open sockets, over rounds of sleeping and waking.
fn hold(site: &Site<'_>) {
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        site.host
    );
    site.made.resume();
    let open = |_| {
        let mut stream = site.connect();
        stream.write_all(upgrade.as_bytes()).expect("send");
        let head = until(&mut stream, b"\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        stream
    };
    let mut sockets: Vec<TcpStream> = (0..SOCKETS).map(open).collect();
    let mut case = Case::new("all answers of a round", "from asleep until each socket has its answer");
    let mut lost = 0;
    for round in 0..FREEZES {
        site.pause();
        let begun = Instant::now();
        let message = |n: usize| vec![u8::try_from((round * 7 + n) % 256).expect("a byte"); MESSAGE_BYTES];
        for (n, socket) in sockets.iter_mut().enumerate() {
            socket.write_all(&message(n)).expect("send");
        }
        for (n, socket) in sockets.iter_mut().enumerate() {
            let mut back = vec![0; MESSAGE_BYTES];
            let is_whole = socket.read_exact(&mut back).is_ok() && back == message(n);
            lost += usize::from(!is_whole);
        }
        case.samples.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let marks = [Mark { text: "answers that were lost or changed", reached: lost as f64, wanted: 0.0 }];
    let title = format!("{SOCKETS} WebSockets held over {FREEZES} rounds of freezing and waking");
    report(&title, "ms", None, &[case], &marks, &[]);
}
