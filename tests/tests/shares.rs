//! What all accounts need is shared: one account, one address or one box does not take all of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use icebox_tests::daemon::OTHER_KEY;
use icebox_tests::visit::Url;
use icebox_tests::{Api, Daemon, PATIENCE, TestBox, wait_until};
use serde_json::json;

const CONFIG: &str = "
requests_max = 16
requests_per_account_max = 4
connections_max = 24
connections_per_account_max = 12
body_timeout_seconds = 10
passed_bytes_per_second_max = 65536
";

fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.url().trim_start_matches("http://")).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

/// A request whose body is announced and never ends.
fn endless(daemon: &Daemon) -> TcpStream {
    let mut stream = connect(daemon);
    let key = daemon.key();
    let head = format!("POST /v2/box HTTP/1.1\r\nHost: localhost\r\nX-Box-Api-Key: {key}\r\nContent-Length: 9\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("send");
    stream
}

/// The status of an answer.
fn status(stream: &mut impl Read) -> u16 {
    let mut head = [0_u8; 12];
    stream.read_exact(&mut head).expect("an answer");
    String::from_utf8_lossy(&head[9..]).parse().expect("a status")
}

#[test]
fn one_account_or_address_leaves_the_others_their_share() {
    let mut daemon = Daemon::start_with(CONFIG);
    let other = daemon.other_account();
    other.get("/v2/box").ok();
    let api = daemon.api();
    let made = api.create_default();

    // Bodies that never end: the account has its share of them, others are served, and each has a deadline.
    let mut bodies: Vec<TcpStream> = (0..4).map(|_| endless(&daemon)).collect();
    wait_until(PATIENCE, "the account to have used up its share", || {
        let is_used_up = api.get("/v2/box").status == 429;
        // The question itself has a place for a moment, and may have taken that of a body: another takes it back.
        if !is_used_up && bodies.len() < 8 {
            bodies.push(endless(&daemon));
        }
        is_used_up
    });
    other.get("/v2/box").ok();
    let ends: Vec<u16> = bodies.iter_mut().map(status).collect();
    assert!(ends.iter().filter(|status| **status == 408).count() >= 4, "{ends:?}");
    assert!(ends.iter().all(|status| [408, 429].contains(status)), "{ends:?}");
    wait_until(PATIENCE, "the account to be served again", || api.get("/v2/box").status == 200);

    // Streams keep connections in use: no more than the share of the account.
    let streams: Vec<_> = std::iter::from_fn(|| {
        let body = json!({ "command": ["sleep", "1000"] }).to_string();
        let request = api.build("POST", &made.path("/exec-stream")).body(body);
        let response = request.send().expect("an answer");
        assert!([200, 429].contains(&response.status().as_u16()), "{}", response.status());
        (response.status() == 200).then_some(response)
    })
    .collect();
    assert!((1..=12).contains(&streams.len()), "{} streams", streams.len());
    other.get("/v2/box").ok();

    // Connections that say nothing: the quietest make room.
    let silent: Vec<TcpStream> = (0..60).map(|_| connect(&daemon)).collect();
    assert_eq!(Api::new(daemon.url(), None).get("/healthz").status, 200);
    Api::new(daemon.url(), Some(OTHER_KEY)).get("/v2/box").ok();
    // And the operator has a way in that clients do not share.
    let mut operator = UnixStream::connect(daemon.run_dir().join("operator.sock")).expect("connect");
    operator.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("send");
    assert_eq!(status(&mut operator), 200);
    drop((silent, streams));
    let asked = || made.post("/exec", &json!({ "command": ["true"] })).status;
    wait_until(PATIENCE, "the account's connections to be closed", || asked() == 200);

    // Output is passed on at the rate of the box, and counted.
    let begun = std::time::Instant::now();
    made.out("head -c 200000 /dev/zero | tr '\\0' x");
    assert!(begun.elapsed().as_secs() >= 1, "200000 bytes passed in {:?} at 65536 a second", begun.elapsed());
    let passed = |made: &TestBox| {
        let metrics = api.get("/metrics").text();
        let name = format!("icebox_box_passed_bytes_total{{box_id=\"{}\"}} ", made.id);
        let counted = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok());
        counted.unwrap_or_else(|| panic!("{name} is not told: {metrics}"))
    };
    assert!(passed(&made) >= 200_000, "{}", passed(&made));

    // And so is what a public URL passes on.
    made.out("mkdir www && head -c 200000 /dev/zero > www/large");
    made.out("setsid python3 -m http.server 8000 --bind 127.0.0.1 --directory www >/dev/null 2>&1 &");
    made.out("until curl -s -o /dev/null http://127.0.0.1:8000/; do sleep 0.05; done");
    let url = Url::open(&made, 8000, &json!({}));
    let begun = std::time::Instant::now();
    assert_eq!(url.get("/large").body.len(), 200_000);
    assert!(begun.elapsed().as_secs() >= 1, "200000 bytes passed in {:?} at 65536 a second", begun.elapsed());
    assert!(passed(&made) >= 400_000, "{}", passed(&made));

    // Open files: as many as the host lets iceboxd give, at most 524288.
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    assert_eq!(made.out("ulimit -Hn"), hard.min(524_288).to_string());

    // Terminals: a box has its own number of them.
    let terminals =
        "import os\nn = 0\ntry:\n  while n < 1000:\n    os.openpty(); n += 1\nexcept OSError: pass\nprint(n)";
    assert_eq!(made.python_out(terminals), "64");
    // Processes: all boxes together leave a part of the kernel's numbers to the host.
    let pids_max = daemon.cgroups().controller_dir("pids", daemon.cgroup_root()).join("pids.max");
    let pids_max = std::fs::read_to_string(pids_max).expect("a limit of all boxes");
    let pid_max: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max").expect("pid_max").trim().parse().expect("n");
    assert_eq!(pids_max.trim().parse::<u64>().expect("a limit"), pid_max / 4 * 3);

    // Host uids: a daemon that stops without boxes leaves none in its name.
    made.delete();
    daemon.stop();
    let mine = daemon.data_dir().display().to_string();
    for lock in std::fs::read_dir("/run/icebox-uid").expect("the registry").map(|found| found.expect("an entry").path())
    {
        assert_ne!(std::fs::read_to_string(&lock).unwrap_or_default(), mine, "{} is still reserved", lock.display());
    }
}
