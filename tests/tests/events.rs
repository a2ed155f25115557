//! The stream of events, `GET /v1/events`: order and fields, accounts, resuming, readers that are too slow.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use icebox_tests::daemon::binary;
use icebox_tests::{Api, Daemon, PATIENCE, TestBox};
use serde_json::{Value, json};

/// Longer than any test: the client's own limit counts from the start of the request.
const STREAM_SECONDS: u64 = 3600;

/// A record of the stream.
#[derive(Debug, Clone)]
struct Record {
    name: String,
    id: Option<String>,
    data: Value,
}

/// A reader of the stream.
struct Stream {
    lines: Box<dyn BufRead>,
    /// The id that the stream last gave.
    last: String,
}

impl Stream {
    /// Opens a stream; on return, the subscription is in force.
    fn open(api: &Api, query: &str, after: Option<&str>) -> Self {
        let mut request = api.build("GET", &format!("/v1/events{query}"));
        request = request.timeout(Duration::from_secs(STREAM_SECONDS));
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after);
        }
        let response = request.send().expect("the head of the stream");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self::new(response)
    }

    fn new(reader: impl Read + 'static) -> Self {
        let mut stream = Self { lines: Box::new(BufReader::new(reader)), last: String::new() };
        let start = stream.raw().expect("a first record");
        assert!(start.data.is_null() && start.id.is_some(), "{start:?}");
        stream
    }

    /// The next record, comments included; none at the end. Heartbeats end the wait for a line.
    fn raw(&mut self) -> Option<Record> {
        let mut record = Record { name: String::new(), id: None, data: Value::Null };
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).expect("a line") == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("event", name)) => record.name = name.to_owned(),
                Some(("id", id)) => record.id = Some(id.to_owned()),
                Some(("data", data)) => record.data = serde_json::from_str(data).expect("JSON"),
                _ if line == "\n" => break,
                _ => {}
            }
        }
        if let Some(id) = &record.id {
            self.last.clone_from(id);
        }
        Some(record)
    }

    fn next(&mut self) -> Record {
        let end = Instant::now() + PATIENCE;
        loop {
            let record = self.raw().expect("the stream goes on");
            if !record.data.is_null() {
                return record;
            }
            assert!(Instant::now() < end, "no event");
        }
    }

    /// The next record, which must have this name; its data.
    fn expect(&mut self, name: &str) -> Value {
        let record = self.next();
        assert_eq!(record.name, name, "{record:?}");
        record.data
    }
}

fn idle(made: &TestBox, seconds: u64) {
    let path = format!("/v1/boxes/{}/idle", made.id);
    made.api.call("PUT", &path, Some(&json!({ "idle_seconds": seconds }))).ok();
}

#[test]
fn the_life_of_a_box_is_told_in_order() {
    let daemon = Daemon::start();
    let mut stream = Stream::open(&daemon.api(), "", None);
    let made = daemon.api().create_default();
    let created = stream.expect("box.created");
    assert_eq!(created["type"], "box.created");
    assert_eq!(created["box_id"], made.id.as_str());
    assert_eq!(created["account_id"], made.data()["customer_id"]);
    assert!(created["data"]["took_ms"].as_f64().is_some_and(|took| took > 0.0), "{created}");
    assert!(created["at_ms"].as_i64().is_some_and(|at| at > 1_600_000_000_000), "{created}");

    made.sh("exit 3");
    let started = stream.expect("run.started");
    assert_eq!(started["data"]["command"], "sh -c exit 3");
    let ended = stream.expect("run.ended");
    assert_eq!(ended["data"]["run_id"], started["data"]["run_id"]);
    assert_eq!((&ended["data"]["exit_code"], &ended["data"]["status"]), (&json!(3), &json!("failed")));
    assert!(ended["data"]["cpu_ns"].as_u64().is_some_and(|cpu| cpu > 0), "{ended}");
    assert!(ended["data"]["signal"].is_null(), "{ended}");
    assert_eq!(made.exec(&["no-such-program"]).code, 127);
    stream.expect("run.started");
    assert_eq!(stream.expect("run.ended")["data"]["exit_code"], 127);
    made.sh("kill -9 $$");
    stream.expect("run.started");
    assert_eq!(stream.expect("run.ended")["data"]["signal"], 9);

    made.pause();
    stream.expect("box.paused");
    let metered = stream.expect("ledger.metered");
    assert_eq!(metered["data"]["reason"], "freeze");
    assert_eq!(metered["data"]["cpu_usec"], made.billed_usec());
    made.resume();
    assert!(stream.expect("box.thawed")["data"]["took_ms"].is_f64());
    idle(&made, 1);
    assert_eq!(stream.expect("box.frozen")["data"]["idle_seconds"], 1);
    stream.expect("ledger.metered");
    idle(&made, 3600);

    // Less than any box has, so that the test need not take so much of the machine.
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    let limit = if cgroups.v1.contains_key("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    let limit = cgroups.controller_dir("memory", &cgroup).join(limit);
    std::fs::write(limit, (192 << 20).to_string()).expect("a smaller limit");
    let hog = made.python("keep=[]\nwhile True: keep.append(bytearray(16 << 20))");
    assert_eq!(hog.code, 137, "{hog:?}");
    stream.expect("box.thawed");
    let started = stream.expect("run.started");
    let oom = stream.expect("box.out_of_memory");
    assert_eq!(oom["data"]["run_id"], started["data"]["run_id"]);
    assert!(oom["data"]["processes"].as_u64().is_some_and(|count| count > 0), "{oom}");
    let ended = stream.expect("run.ended");
    assert_eq!(ended["data"]["oom_kills"], oom["data"]["processes"]);
    // The run's cgroup is gone, and its count with it where v1 has the memory controller; `top` still tells of it.
    assert_eq!(made.api.get(&format!("/v1/boxes/{}/top", made.id)).ok()["oom_kills"], oom["data"]["processes"]);

    std::fs::write(cgroups.unified.join(cgroup).join("cgroup.kill"), "1").expect("kill the box");
    assert_eq!(stream.expect("box.stopped")["data"]["cause"], "init_killed");
    stream.expect("ledger.metered");
    made.resume();
    stream.expect("box.started");
    made.delete();
    assert_eq!(stream.expect("ledger.metered")["data"]["reason"], "delete");
    let deleted = stream.expect("box.deleted");
    assert_eq!(deleted["box_id"], made.id.as_str());
}

/// Takes memory without end once a line comes through the pipe.
const ARMED_HOG: &str = "mkfifo /tmp/PIPE; (read line </tmp/PIPE; exec python3 -c 'keep=[]
while True: keep.append(bytearray(16 << 20))') </dev/null >/dev/null 2>&1 & true";

#[test]
fn a_background_process_that_runs_out_of_memory_is_told_once() {
    let mut daemon = Daemon::start();
    let made = daemon.api().create_default();
    let (cgroups, cgroup) = (daemon.cgroups(), daemon.cgroup(&made));
    let limit = if cgroups.v1.contains_key("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    let limit = cgroups.controller_dir("memory", &cgroup).join(limit);
    std::fs::write(limit, (192 << 20).to_string()).expect("a smaller limit");
    let mut stream = Stream::open(&daemon.api(), "?type=box.out_of_memory", None);
    let arm = |pipe: &str| {
        let ended = made.sh(&ARMED_HOG.replace("PIPE", pipe));
        assert_eq!(ended.code, 0, "{ended:?}");
        let runs = made.runs();
        let run = runs.iter().find(|run| run["prompt"].as_str().is_some_and(|text| text.contains(pipe)));
        run.expect("the run that has left it")["id"].clone()
    };
    let (first, second) = (arm("first"), arm("second"));
    let killed = |told: Value, run: &Value| {
        let data = &told["data"];
        assert_eq!((&data["run_id"], &data["background"]), (run, &json!(true)), "{told}");
        assert!(data["processes"].as_u64().is_some_and(|count| count > 0), "{told}");
        assert!(data["command"].as_str().is_some_and(|command| command.contains("mkfifo")), "{told}");
    };
    made.out("echo >/tmp/first");
    killed(stream.expect("box.out_of_memory"), &first);
    let logs = daemon.api().get(&made.path("/logs")).text();
    assert!(logs.contains("the kernel killed") && logs.contains("background process"), "{logs}");

    daemon.kill9();
    daemon.start_again();
    let made = TestBox { api: daemon.api(), ..made };
    let mut stream = Stream::open(&daemon.api(), "?type=box.out_of_memory", None);
    made.out("echo >/tmp/second");
    // Not the first one again.
    killed(stream.expect("box.out_of_memory"), &second);
}

#[test]
fn an_account_sees_its_own_events_and_the_operator_all() {
    let daemon = Daemon::start();
    let (api, other) = (daemon.api(), daemon.other_account());
    let mut operator = {
        let mut socket = UnixStream::connect(daemon.run_dir().join("operator.sock")).expect("connect");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        socket
            .write_all(b"GET /v1/events?type=box.created,box.deleted HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .expect("send");
        let mut reader = BufReader::new(socket);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(reader.read_line(&mut line).expect("the head") > 0);
        }
        Stream::new(reader)
    };
    let mut mine = Stream::open(&api, "?type=box", None);
    let made = api.create(&json!({ "name": "mine" }));
    let of_other = other.create_default();
    let mut of_box = Stream::open(&api, "?box=mine&type=run.ended,network", None);
    of_other.out("true");
    of_other.delete();
    let second = api.create_default();
    second.out("true");
    made.out("true");
    let policy = json!({ "mode": "deny-all" });
    api.call("PUT", &made.path("/config/network-policy"), Some(&policy)).ok();
    made.delete();
    for id in [&made.id, &second.id, &made.id] {
        let record = mine.next();
        assert_eq!(record.data["box_id"], id.as_str(), "{record:?}");
    }
    for name in ["run.ended", "network.policy_changed"] {
        assert_eq!(of_box.expect(name)["box_id"], made.id.as_str());
    }
    let told: Vec<(String, Value)> = (0..5)
        .map(|_| {
            let record = operator.next();
            (record.name, record.data["box_id"].clone())
        })
        .collect();
    let wanted = [
        ("box.created", &made.id),
        ("box.created", &of_other.id),
        ("box.deleted", &of_other.id),
        ("box.created", &second.id),
        ("box.deleted", &made.id),
    ]
    .map(|(name, id)| (name.to_owned(), json!(id)));
    assert_eq!(told, wanted);

    // A deleted box is known as long as its events are; those of another account are not.
    api.get(&format!("/v1/events?box={}", of_other.id)).error(404);
    assert!(api.get("/v1/events?type=box.burnt").error(400).contains("box.frozen"));
    api.with_key(None).get("/v1/events").error(401);
    drop(Stream::open(&api, &format!("?box={}", made.id), None));
}

#[test]
fn a_reader_resumes_where_it_was_and_learns_what_it_has_lost() {
    let mut daemon = Daemon::start_with("events_kept = 8\n");
    let made = daemon.api().create_default();
    let start = Stream::open(&daemon.api(), "", None).last;
    made.out("echo one");
    let mut again = Stream::open(&daemon.api(), "", Some(&start));
    assert_eq!(again.expect("run.started")["data"]["command"], "sh -c echo one");
    let seen = again.last.clone();
    drop(again);
    let mut again = Stream::open(&daemon.api(), "", Some(&seen));
    again.expect("run.ended");
    for _ in 0..5 {
        made.out("true");
    }
    let mut late = Stream::open(&daemon.api(), "", Some(&seen));
    let lost = late.expect("lost");
    assert_eq!(lost["up_to"], late.last.as_str());
    for name in ["run.started", "run.ended"].into_iter().cycle().take(8) {
        late.expect(name);
    }
    // The numbers of an earlier daemon mean nothing to this one, and an orderly stop ends streams at once.
    let before = late.last.clone();
    daemon.stop();
    assert!(late.expect("end")["reason"].as_str().is_some_and(|reason| reason.contains("stops")));
    assert!(late.raw().is_none());
    daemon.start_again();
    Stream::open(&daemon.api(), "", Some(&before)).expect("lost");
}

#[test]
fn a_reader_that_does_not_read_is_told_so_and_holds_up_nothing() {
    let daemon = Daemon::start_with("events_kept = 8\n");
    let made = daemon.api().create_default();
    // Over the operator's socket, for which the kernel holds little: 208 KiB, where TCP holds megabytes.
    let mut slow = UnixStream::connect(daemon.run_dir().join("operator.sock")).expect("connect");
    slow.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let request = format!("GET /v1/events HTTP/1.0\r\nHost: localhost\r\nX-Box-Api-Key: {}\r\n\r\n", daemon.key());
    slow.write_all(request.as_bytes()).expect("send");
    let mut head = [0_u8; 12];
    slow.read_exact(&mut head).expect("the head");
    assert_eq!(&head[9..], b"200");
    // Two events of 4 KiB each, until neither the kernel nor the daemon holds more for this reader.
    let long = format!(": {}", "x".repeat(4000));
    for _ in 0..100 {
        made.out(&long);
    }
    let mut rest = String::new();
    slow.read_to_string(&mut rest).expect("the rest and the end");
    let last = rest.trim_end().lines().last().unwrap_or_default();
    // On a machine so slow that the commands take longer than the reader's time, its connection is closed.
    let is_cut = daemon.log().contains("a reader of events is cut");
    assert!(last.contains("too slow") || is_cut, "{last}");
}

#[test]
fn the_command_line_shows_events() {
    let daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "name": "told" }));
    let start = Stream::open(&daemon.api(), "", None).last;
    made.out("echo shown");
    let icebox = |more: &[&str]| {
        let mut command = Command::new(binary("icebox"));
        command.arg("--run-dir").arg(daemon.run_dir()).args(["events", "told", "--after", &start]).args(more);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("icebox");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        child.kill().and_then(|()| child.wait()).expect("its end");
        line
    };
    let line = icebox(&["--type", "run.ended"]);
    assert!(line.contains(&made.id) && line.contains("run.ended") && line.contains("exit_code=0"), "{line}");
    let line = icebox(&["--type", "run", "--json"]);
    let event: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&event["type"], &event["data"]["command"]), (&json!("run.started"), &json!("sh -c echo shown")));
}
