//! Public URLs and the sleep of boxes: connections that outlive it, bytes that end it, silence that does not hinder it.

use std::time::Duration;

use icebox_tests::visit::{Socket, Url, Visitor, serve};
use icebox_tests::wait::let_pass;
use icebox_tests::{Daemon, TestBox, wait_until};
use serde_json::json;

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(30);

fn served(daemon: &Daemon) -> (TestBox, Url) {
    let made = daemon.api().create_default();
    serve(&made, PORT);
    let url = Url::open(&made, PORT, &json!({}));
    (made, url)
}

fn idle_seconds(made: &TestBox, seconds: u64) {
    let body = json!({ "idle_seconds": seconds });
    made.api.call("PUT", &format!("/v1/boxes/{}/idle", made.id), Some(&body)).ok();
}

fn until_asleep(made: &TestBox) {
    wait_until(DEADLINE, "the box to fall asleep", || made.status() == "paused");
}

fn events(url: &Url) -> Visitor {
    let mut visitor = Visitor::new(&url.address);
    visitor.send(&format!("GET /sse HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
    assert_eq!(visitor.head().header("content-type"), Some("text/event-stream"));
    assert_eq!(visitor.chunk(), b"data: hello\n\n");
    visitor
}

/// Fifty sockets over thirty rounds: none is dropped, none loses a byte, each round begins in a box that sleeps.
#[test]
fn websockets_outlive_many_sleeps() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    let mut sockets: Vec<Socket> = (0..50).map(|_| url.websocket("")).collect();
    for round in 0..30_usize {
        made.pause();
        assert_eq!(made.status(), "paused");
        // All of them at once: the first byte wakes it for all.
        for (number, socket) in sockets.iter_mut().enumerate() {
            socket.send(&message(round, number));
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            assert!(socket.receive() == message(round, number), "round {round}, socket {number}");
        }
        assert_eq!(made.status(), "idle");
    }
}

fn message(round: usize, number: usize) -> Vec<u8> {
    format!("{round}/{number} ").repeat(1 + (round * 50 + number) % 700).into_bytes()
}

#[test]
fn an_open_connection_that_is_silent_keeps_nothing_awake() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    let mut socket = url.websocket("");
    socket.echo(b"x");
    let mut stream = events(&url);
    // An idle connection before its next request.
    let mut kept = Visitor::new(&url.address);
    kept.send(&format!("GET /kept HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
    assert_eq!(kept.answer("GET").status, 200);
    // And one whose request is not whole, and never will be.
    let mut halting = Visitor::new(&url.address);
    halting.send(&format!("POST /halting HTTP/1.1\r\nHost: {}\r\nContent-Length: 10\r\n\r\nhalf", url.host));
    idle_seconds(&made, 1);
    for _ in 0..3 {
        until_asleep(&made);
        assert!(stream.is_silent(Duration::from_millis(200)));
        assert_eq!(made.status(), "paused");
        // A byte of a client ends the sleep, and what it has caused comes out of every connection.
        assert_eq!(url.get("/emit?event").text(), "1");
        assert_eq!(stream.chunk(), b"data: event\n\n");
        until_asleep(&made);
        socket.echo(b"through");
    }
    halting.send("halves");
    assert_eq!(halting.answer("POST").json()["size"], 10);
}

#[test]
fn traffic_and_requests_in_progress_keep_a_box_awake() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    idle_seconds(&made, 1);
    // A request that the box works on, however long.
    assert_eq!(url.get("/slow?4").text(), "slow");
    // Bytes in either direction. The rule looks at CPU as well: what is asked here is that it never sleeps in between.
    let mut socket = url.websocket("");
    for _ in 0..12 {
        let_pass(Duration::from_millis(300));
        assert_ne!(made.status(), "paused", "a box that is spoken to fell asleep");
        socket.echo(b"x");
    }
    until_asleep(&made);
}

#[test]
fn a_download_goes_on_when_its_client_does() {
    const BYTES: usize = 64 << 20;
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    idle_seconds(&made, 1);
    let mut visitor = Visitor::new(&url.address);
    visitor.send(&format!("GET /download?{BYTES} HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
    assert_eq!(visitor.head().status, 200);
    // The client reads nothing: the box fills the buffers on the way and falls asleep in the middle of a write.
    until_asleep(&made);
    assert_eq!(visitor.exactly(BYTES).len(), BYTES);
}

#[test]
fn a_pause_wins_over_what_goes_on_and_loses_to_what_comes() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    let mut sockets: Vec<Socket> = (0..5).map(|_| url.websocket("")).collect();
    let mut stream = events(&url);
    let begun = std::time::Instant::now();
    made.pause();
    assert!(begun.elapsed() < Duration::from_secs(2), "open connections are not waited for: {:?}", begun.elapsed());
    assert_eq!(made.status(), "paused");
    assert!(stream.is_silent(Duration::from_millis(300)));
    assert_eq!(made.status(), "paused");
    sockets[3].echo(b"x");
    assert_eq!(made.status(), "idle");
    // Bytes and pauses at once. A pause may catch the program before it has read them, as it catches commands; then they
    // wait for the wake, and are not lost.
    for round in 0..60_u32 {
        std::thread::scope(|scope| {
            scope.spawn(|| made.pause());
            sockets[0].send(&round.to_be_bytes());
        });
        if sockets[0].visitor().is_silent(Duration::from_millis(250)) {
            made.resume();
        }
        assert_eq!(sockets[0].receive(), round.to_be_bytes());
    }
}

#[test]
fn requests_and_sleeps_in_any_order_lose_nothing() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..60 {
                    assert_eq!(url.get("/x").status, 200);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..60 {
                made.pause();
            }
        });
    });
}
