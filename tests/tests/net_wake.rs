//! A frozen box keeps its connections: what arrives for it wakes it and is not lost, and silence lets it sleep.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use icebox_tests::api::read_until;
use icebox_tests::net::{DEADLINE, World};
use icebox_tests::wait::let_pass;
use icebox_tests::{Daemon, TestBox, wait_until};
use serde_json::json;

const SITE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const PORT: u16 = 7000;
/// Rounds of freezing and waking.
const ROUNDS: usize = 10;
/// Longer than the interval at which activity is looked for, and than the idle time of the boxes here.
const WINDOW: Duration = Duration::from_secs(4);

/// Connects, then sends back each line that arrives.
const ECHO: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
s.settimeout(None)
s.sendall(b"ready\n")
for line in s.makefile("rb"):
    s.sendall(line)
"#;

struct Connected {
    world: World,
    daemon: Daemon,
    made: TestBox,
    server: TcpStream,
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (server, _) = listener.accept().expect("a connection from the box");
    server.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    server.set_nodelay(true).expect("no delay");
    server
}

/// A box with a background process that has a connection to a server of the internet.
fn connected(options: &serde_json::Value) -> Connected {
    let world = World::new();
    let listener = world.listen(PORT);
    let daemon = world.daemon();
    let made = daemon.api().create(options);
    made.write("echo.py", ECHO);
    made.out(&format!("(python3 echo.py {SITE} {PORT} >/dev/null 2>&1 &)"));
    let mut server = accept(&listener);
    line(&mut server, "ready\n");
    Connected { world, daemon, made, server }
}

fn line(server: &mut TcpStream, wanted: &str) {
    let mut bytes = vec![0; wanted.len()];
    server.read_exact(&mut bytes).unwrap_or_else(|e| panic!("waiting for {wanted:?}: {e}"));
    assert_eq!(String::from_utf8_lossy(&bytes), wanted);
}

impl Connected {
    fn is_frozen(&self) -> bool {
        self.daemon.cgroups().event(&self.daemon.cgroup(&self.made), "frozen") == Some(1)
    }

    fn wait_asleep(&self) {
        wait_until(6 * DEADLINE, "the box to fall asleep", || self.made.status() == "paused");
        assert!(self.is_frozen());
    }
}

#[test]
fn data_wakes_a_frozen_box_and_nothing_is_lost() {
    let mut c = connected(&json!({}));
    for round in 0..ROUNDS {
        c.made.pause();
        assert!(c.is_frozen());
        let text = format!("round {round} {}\n", "x".repeat(round * 700));
        c.server.write_all(text.as_bytes()).expect("send");
        line(&mut c.server, &text);
        assert!(!c.is_frozen(), "it answered, so it runs");
    }
    assert!(c.world.capture.to(SITE) > 0);
}

#[test]
fn a_keep_alive_probe_alone_does_not_wake() {
    let mut c = connected(&json!({}));
    // The server asks every second whether its peer is there; the kernel of the box answers.
    let probing = probe_each_second(&c.server);
    probing.expect("keep-alive");
    c.made.pause();
    let before = c.world.capture.to(SITE);
    wait_until(DEADLINE, "probes to be answered by the kernel", || c.world.capture.to(SITE) >= before + 2);
    assert!(c.is_frozen(), "a probe woke the box");
    assert_eq!(c.made.status(), "paused");
    c.server.write_all(b"now\n").expect("send");
    line(&mut c.server, "now\n");
}

/// Turns on probes each second.
fn probe_each_second(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))
}

#[test]
fn the_end_of_a_connection_wakes() {
    let c = connected(&json!({}));
    c.made.pause();
    c.server.shutdown(std::net::Shutdown::Both).expect("shut down");
    wait_until(DEADLINE, "the box to wake", || !c.is_frozen());
    wait_until(DEADLINE, "its process to end", || c.made.sh("pgrep -f '[e]cho.py'").code != 0);
}

#[test]
fn a_silent_connection_lets_a_box_sleep_and_traffic_keeps_it_awake() {
    let mut c = connected(&json!({ "idle_seconds": 1 }));
    // Silence: it falls asleep with the connection open, and it is still open afterwards.
    c.wait_asleep();
    let mut stop = std::time::Instant::now() + WINDOW;
    let mut count = 0;
    while std::time::Instant::now() < stop {
        let text = format!("tick {count}\n");
        c.server.write_all(text.as_bytes()).expect("send");
        line(&mut c.server, &text);
        if count > 0 {
            assert!(!c.is_frozen(), "a box with traffic fell asleep");
        }
        count += 1;
        let_pass(Duration::from_millis(200));
    }
    let why = c.daemon.api().get(&format!("/v1/boxes/{}/why", c.made.id)).ok();
    assert!(why["awake_because"].to_string().contains("network"), "{why}");
    c.wait_asleep();
    stop = std::time::Instant::now() + Duration::from_millis(500);
    while std::time::Instant::now() < stop {
        assert!(c.is_frozen(), "silence woke the box");
        let_pass(Duration::from_millis(50));
    }
    c.server.write_all(b"last\n").expect("send");
    line(&mut c.server, "last\n");
}

#[test]
fn an_answer_that_comes_late_wakes_the_one_who_waits() {
    let world = World::new();
    let listener = world.listen(PORT);
    let daemon = world.daemon();
    let made = daemon.api().create(&json!({}));
    let mut stream = made.stream(&["curl", "-sS", &format!("http://{SITE}:{PORT}/")]);
    let mut server = accept(&listener);
    let mut request = [0; 4096];
    let length = server.read(&mut request).expect("a request");
    assert!(length > 0);
    made.pause();
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlate\n").expect("answer");
    read_until(&mut stream, "late");
}

#[test]
fn what_arrives_while_iceboxd_is_away_wakes_when_it_is_back() {
    let mut c = connected(&json!({}));
    c.made.pause();
    c.daemon.kill9();
    c.server.write_all(b"while iceboxd was down\n").expect("send");
    c.daemon.start_again();
    line(&mut c.server, "while iceboxd was down\n");
}
