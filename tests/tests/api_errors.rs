//! Requests that are wrong: every one gets an error with a text, none changes anything, none makes iceboxd fall.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use icebox_tests::api::encode;
use icebox_tests::{Api, Daemon, PATIENCE, machine, wait_until};
use serde_json::{Value, json};

fn with_id(path: &str, id: &str) -> String {
    path.replace("{b}", &format!("/v2/box/{id}"))
}

fn call(api: &Api, method: &str, path: &str, body: &Value) -> icebox_tests::Reply {
    api.call(method, path, (!body.is_null()).then_some(body))
}

#[test]
fn hostile_ids_find_nothing_and_make_nothing() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    let before = machine::tree(&daemon.data_dir()).len();
    let long = "a".repeat(4000);
    let ids = [
        "..",
        "../..",
        "../../etc/passwd",
        "%2e%2e",
        "a\0b",
        "a b",
        "ü",
        "𝄞",
        ".",
        "-",
        "a/b",
        "a%2fb",
        "'; drop table boxes; --",
        "*",
        "NULL",
        "-1",
        "{}",
        "$(id)",
        "`id`",
        "\u{202e}",
        "con",
        &long,
    ];
    let gone = [400, 404, 414];
    for id in ids {
        let reply = api.call("DELETE", "/v2/box", Some(&json!({ "ids": [id] })));
        assert!(reply.status < 500, "{id:?}: {}", reply.text());
        // The client itself resolves a part that is dots, and then asks for something else: those are sent raw below.
        if id.chars().all(|c| c == '.') {
            continue;
        }
        for tail in ["", "/status", "/runs", "/files/list", "/logs"] {
            let reply = api.get(&format!("/v2/box/{}{tail}", encode(id)));
            assert!(gone.contains(&reply.status), "{id:?}{tail}: {} {}", reply.status, reply.text());
            reply.error_text();
        }
        let exec = format!("/v2/box/{}/exec", encode(id));
        for reply in [
            api.delete(&format!("/v2/box/{}", encode(id))),
            api.post(&exec, &json!({ "command": ["true"] })),
            api.get(&format!("/v1/boxes/{}/usage", encode(id))),
        ] {
            assert!(gone.contains(&reply.status), "{id:?}: {}: {}", reply.what, reply.status);
        }
    }
    for path in
        ["/v2/box/..", "/v2/box/../../v1/usage", "/v2/box/%2e%2e/status", "/v2/box/./status", "/v1/boxes/../usage"]
    {
        let head = raw_get(&daemon, path);
        assert!(head.starts_with("HTTP/1.1 404") || head.starts_with("HTTP/1.1 400"), "{path}: {head}");
    }
    assert_eq!(api.list().len(), 1);
    assert_eq!(machine::tree(&daemon.data_dir()).len(), before);
    assert_eq!(made.out("echo untouched"), "untouched");
}

/// A GET whose path is sent as it is; the status line of the answer.
fn raw_get(daemon: &Daemon, path: &str) -> String {
    let mut stream = TcpStream::connect(daemon.url().trim_start_matches("http://")).expect("connect");
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-box-api-key: {}\r\nconnection: close\r\n\r\n", daemon.key());
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn names_are_checked_and_unique() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create(&json!({ "name": "my-box" }));
    let error = api.post("/v2/box", &json!({ "name": "my-box" }));
    assert!([400, 409].contains(&error.status), "{} {}", error.status, error.text());
    for name in ["settings", "snapshots", "from-snapshot", "a/b", "a b", "..", "?x", "#", "a%41", &"n".repeat(300)] {
        let reply = api.post("/v2/box", &json!({ "name": name }));
        assert_eq!(reply.status, 400, "{name}: {}", reply.text());
    }
    // A name must not be able to stand for the id of another box.
    let reply = api.post("/v2/box", &json!({ "name": made.id }));
    assert!(reply.status >= 400, "a name that is another box's id was taken: {}", reply.text());
    assert_eq!(api.list().len(), 1);
    made.delete();
    api.create(&json!({ "name": "my-box" }));
}

#[test]
fn bad_bodies_are_400_with_a_text() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    let deep = "[".repeat(100_000);
    let raw = [
        "",
        "{",
        "null",
        "[]",
        "\"x\"",
        "{\"command\":}",
        "{\"command\":[1]}",
        "{\"command\":\"ls\"}",
        "{\"command\":[]}",
        "{\"command\":[\"\"]}",
        "{\"command\":[\"a\\u0000b\"]}",
        "{\"command\":[\"true\"],\"folder\":7}",
        "\u{feff}{}",
        deep.as_str(),
        "{\"a\":1e999}",
    ];
    for body in raw {
        for tail in ["/exec", "/exec-stream"] {
            let request =
                api.build("POST", &made.path(tail)).header("content-type", "application/json").body(body.to_owned());
            let reply = api.send(&format!("{tail} {:.40}", body), request);
            assert!([400, 413, 422].contains(&reply.status), "{:.60}: {} {}", body, reply.status, reply.text());
            reply.error_text();
        }
    }
    let bad = [
        ("POST", "/v2/box", json!({ "size": "huge" })),
        ("POST", "/v2/box", json!({ "labels": ["way too long for a label, and with blanks"] })),
        ("POST", "/v2/box", json!({ "labels": ["a", "b", "c", "d", "e", "f"] })),
        ("POST", "/v2/box", json!({ "env_vars": { "LD_PRELOAD": "/tmp/x.so" } })),
        ("POST", "/v2/box", json!({ "env_vars": { "A=B": "x" } })),
        ("POST", "/v2/box", json!({ "runtime": "cobol" })),
        ("POST", "/v2/box", json!({ "idle_seconds": -1 })),
        ("POST", "/v2/box", json!({ "network_policy": { "mode": "sometimes" } })),
        ("DELETE", "/v2/box", json!({})),
        ("DELETE", "/v2/box", json!({ "ids": [] })),
        ("DELETE", "/v2/box", json!({ "ids": "all" })),
        ("POST", "{b}/code", json!({ "code": "1", "language": "cobol" })),
        ("POST", "{b}/code", json!({ "language": "js" })),
        ("POST", "{b}/files/write", json!({ "path": "/workspace/home/x" })),
        ("POST", "{b}/files/write", json!({ "path": "/workspace/home/x", "content": "!!!", "encoding": "base64" })),
        ("POST", "{b}/files/write", json!({ "path": "", "content": "x" })),
        ("POST", "{b}/files/write", json!({ "path": "/workspace/home/a\u{0}b", "content": "x" })),
        ("GET", "{b}/files/read", Value::Null),
        ("GET", "{b}/files/read?path=/etc/hosts&length=99999999999&offset=0", Value::Null),
        ("GET", "{b}/files/read?path=/etc/hosts&length=-1&offset=0", Value::Null),
        ("POST", "{b}/config/labels", json!({ "label": "no blanks" })),
    ];
    for (method, path, body) in bad {
        let reply = call(&api, method, &with_id(path, &made.id), &body);
        assert_eq!(reply.status, 400, "{method} {path} {body}: {}", reply.text());
        reply.error_text();
    }
    assert_eq!(api.list().len(), 1);
    // No words of the parser or the operating system.
    for (tail, body, said) in [
        ("/exec", "{}", "command is missing"),
        ("/exec", "{\"command\":\"ls\"}", "command must be a list"),
        ("/exec", "{\"command\":[1]}", "command[0] must be a string"),
        ("/exec", "{", "the body is not valid JSON"),
        (
            "/code",
            "{\"code\":\"1\",\"language\":\"cobol\"}",
            "language must be one of js, ts, python; 'cobol' is none of them",
        ),
        ("/exec", "{\"command\":[\"true\"],\"folder\":\"/nowhere\"}", "folder '/nowhere': No such file or directory"),
        ("/files/mkdir", "{\"path\":\"/proc/x\"}", ""),
        ("/files/remove", "{\"path\":\"/nowhere\"}", ""),
    ] {
        let request = api.build("POST", &made.path(tail)).header("content-type", "application/json");
        let text = api.send(tail, request.body(body.to_owned())).error_text();
        assert!(text.contains(said), "{tail} {body}: {text}");
        assert!(!["os error", "at line", "missing field"].iter().any(|word| text.contains(word)), "{body}: {text}");
    }
    assert_eq!(made.get("/files/read").error(400), "path is missing");
    let form = "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nx\r\n--b--\r\n";
    let request = api.build("POST", &made.path("/files/upload"));
    let request = request.header("content-type", "multipart/form-data; boundary=b").body(form);
    assert!(api.send("a wrong field", request).error(400).contains("'file'"));
    made.out("true");
    let keys: Vec<String> = made.get("/runs").ok()["runs"][0].as_object().expect("a run").keys().cloned().collect();
    let known = "box_id completed_at compute_cost_usd cost_usd cpu_ns created_at customer_id duration_ms id input_tokens \
                 output_tokens prompt status type";
    let mut keys = keys;
    keys.sort();
    assert_eq!(keys.join(" "), known);
    early_errors_keep_the_connection(&daemon);
}

/// An answer that comes before the body was read must not spoil the connection for the next request.
fn early_errors_keep_the_connection(daemon: &Daemon) {
    let mut stream = TcpStream::connect(daemon.url().trim_start_matches("http://")).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let body = vec![b'x'; 4 << 20];
    let head = |key: &str, length: usize| {
        format!("POST /v2/box HTTP/1.1\r\nhost: x\r\nx-box-api-key: {key}\r\ncontent-length: {length}\r\n\r\n")
    };
    // A wrong key, and a body that is too large: the second answer comes on the same connection.
    for (key, wanted) in [("box_wrong", "HTTP/1.1 401"), (daemon.key(), "HTTP/1.1 413"), ("box_wrong", "HTTP/1.1 401")]
    {
        stream.write_all(head(key, body.len()).as_bytes()).expect("send the head");
        stream.write_all(&body).expect("send the body");
        let answer = icebox_tests::api::read_until(&mut stream, "\"}");
        assert!(answer.starts_with(wanted), "{answer}");
    }
    // More than is read for nothing: the answer arrives whole although the client still sends.
    stream.write_all(head("box_wrong", 1 << 30).as_bytes()).expect("send the head");
    let mut sending = stream.try_clone().expect("dup");
    let sender = std::thread::spawn(move || while sending.write_all(&[b'x'; 65536]).is_ok() {});
    let answer = icebox_tests::api::read_until(&mut stream, "\"}");
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("connection: close"), "{answer}");
    stream.shutdown(std::net::Shutdown::Both).expect("close");
    sender.join().expect("the sender ends");
}

#[test]
fn what_is_not_there_yet_says_so() {
    let daemon = Daemon::start();
    let api = daemon.api();
    for body in [json!({ "browser": true }), json!({ "skills": ["a/b/c"] })] {
        let reply = api.post("/v2/box", &body);
        assert!([400, 501].contains(&reply.status), "{body}: {} {}", reply.status, reply.text());
        assert!(reply.error_text().contains("not"), "{body}: {}", reply.text());
    }
    assert!(api.list().is_empty());
    let made = api.create(&json!({ "agent": "claude-code", "model": "anthropic/x", "github_token": "ghp_secret" }));
    let data = made.data();
    assert_eq!((&data["agent"], &data["model"]), (&json!("claude-code"), &json!("anthropic/x")));
    assert!(!data.to_string().contains("ghp_secret"), "{data}");
    // Kept, and sealed: nothing in the data directory reads like it.
    let database = rusqlite::Connection::open(daemon.data_dir().join("icebox.db")).expect("the database");
    let kind = "SELECT COUNT(*) FROM box_secrets WHERE box_id = ?1 AND kind = 'github_token'";
    assert_eq!(database.query_row(kind, [&made.id], |row| row.get(0)), Ok(1));
    for file in std::fs::read_dir(daemon.data_dir()).expect("the data directory").flatten() {
        // The pool has the disks of boxes, and is as large as the disk around it.
        let is_read = file.path().is_file() && file.file_name() != "pool.xfs";
        let text = if is_read { std::fs::read(file.path()).expect("readable") } else { Vec::new() };
        assert!(!text.windows(10).any(|part| part == b"ghp_secret"), "{}", file.path().display());
    }
    made.post("/run", &json!({ "prompt": "x" })).error(501);
}

#[test]
fn null_means_absent() {
    let daemon = Daemon::start();
    let made = daemon
        .api()
        .create(&json!({ "name": null, "labels": null, "size": null, "env_vars": null, "network_policy": null }));
    assert_eq!(made.post("/exec", &json!({ "command": ["true"], "folder": null })).ok()["exit_code"], 0);
}

#[test]
fn wrong_methods_and_paths_are_errors_in_the_one_shape() {
    let daemon = Daemon::start();
    let api = daemon.api();
    let made = api.create_default();
    for (method, path) in [
        ("PUT", "/v2/box"),
        ("PATCH", "{b}"),
        ("GET", "{b}/exec"),
        ("DELETE", "{b}/status"),
        ("POST", "{b}/files/read"),
    ] {
        let reply = api.call(method, &with_id(path, &made.id), None);
        assert!([404, 405].contains(&reply.status), "{method} {path}: {}", reply.status);
        reply.error_text();
    }
    for path in ["/", "/v2", "/v3/box", "/v2/boxes", "/v2/box//", "//", "/.env", "/v1", "/v1/boxes"] {
        let reply = api.get(path);
        assert!([200, 400, 404].contains(&reply.status), "{path}: {}", reply.status);
    }
    // A doubled slash after a base URL with a trailing slash means the same path.
    assert_eq!(api.get(&format!("//v2/box/{}", made.id)).ok()["id"], made.id.as_str());
}

#[test]
fn a_failed_command_is_not_an_error() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    assert_eq!(made.exec(&["false"]).code, 1);
    assert_eq!(made.exec(&["sh", "-c", "exit 255"]).code, 255);
    assert_eq!(made.exec(&["sh", "-c", "kill -SEGV $$"]).code, 139);
    let missing = made.post("/exec", &json!({ "command": ["/no/such/program"] }));
    if missing.status == 200 {
        assert_eq!(missing.json()["exit_code"], 127);
    } else {
        missing.error(400);
    }
    let nowhere = made.post("/exec", &json!({ "command": ["true"], "folder": "/no/such/folder" }));
    assert!(nowhere.status == 400 || nowhere.status == 404 || nowhere.json()["exit_code"] != 0, "{}", nowhere.text());
    let text = made.exec(&["ls", "/x y", "$HOME", "*"]);
    assert!(text.stderr.contains("/x y") && text.stderr.contains("$HOME"), "argv went through a shell: {text:?}");
    assert_eq!(made.exec(&["printf", "%s|", "a b", "", "c'd", "\n"]).stdout, "a b||c'd|\n|");
}

#[test]
fn a_session_gives_all_output_then_its_code_and_leaves_nothing_behind() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let wanted: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    for round in 0..10 {
        // Input that the command never reads is under way when it ends.
        let mut child = daemon.icebox(&["exec", "-T", &made.id, "--", "seq", "1", "200000"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start icebox");
        let mut stdin = child.stdin.take().expect("a pipe");
        let writer = std::thread::spawn(move || while stdin.write_all(&[b'y'; 4096]).is_ok() {});
        let done = child.wait_with_output().expect("icebox ends");
        assert!(done.status.success(), "round {round}: {}", done.status);
        assert!(done.stdout == wanted.as_bytes(), "round {round}: {} bytes of {}", done.stdout.len(), wanted.len());
        writer.join().expect("the writer ends");
    }
    for (argv, code, text) in [
        (&["nosuch"][..], 127, "nosuch: command not found"),
        (&["/etc/passwd"], 126, "/etc/passwd"),
        (&["/etc"], 126, "/etc"),
        (&["sh", "-c", "kill -TERM $$"], 143, ""),
        (&["sh", "-c", "sleep 3004 & exit 3"], 3, ""),
    ] {
        let args: Vec<&str> = ["exec", "-n", "-T", &made.id, "--"].iter().chain(argv).copied().collect();
        let done = daemon.icebox(&args).output().expect("icebox ends");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{argv:?}: {said}");
        assert!(said.contains(text), "{argv:?}: {said}");
    }
    wait_until(PATIENCE, "the session's background to end", || made.sh("ps -eo args | grep '[s]leep 3004'").code == 1);
    let done = daemon.icebox(&["exec", "-n", "-T", "no-such-box-1", "--", "true"]).output().expect("icebox ends");
    assert_eq!(done.status.code(), Some(125));
}

#[test]
fn files_of_every_kind_are_read_or_refused_but_never_hang() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.out("mkfifo fifo; ln -s /etc/shadow shadow; ln -s loop loop; mkdir dir; ln -s /proc/1/root escape; truncate -s 200G sparse 2>/dev/null || truncate -s 4G sparse");
    made.out("printf 'with\\nnewline' > \"$(printf 'na\\nme')\"; printf x > 'ümlaut 𝄞'");
    for (path, statuses) in [
        ("fifo", &[400, 403][..]),
        ("shadow", &[403]),
        ("loop", &[400, 403, 404]),
        ("dir", &[400]),
        ("missing", &[404]),
        ("fifo/x", &[400, 404]),
        ("escape/etc/shadow", &[400, 403, 404]),
        ("sparse", &[400, 413]),
        ("/proc/1/environ", &[400, 403]),
    ] {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/workspace/home/{path}") };
        let start = std::time::Instant::now();
        let reply = made.get(&format!("/files/read?path={}", encode(&path)));
        assert!(statuses.contains(&reply.status), "{path}: {} {:.200}", reply.status, reply.text());
        assert!(start.elapsed() < PATIENCE, "{path} took {:?}", start.elapsed());
    }
    // A kernel that has this file has it masked by an empty one.
    let memory = made.get("/files/read?path=/proc/kcore");
    assert!(memory.status == 404 || memory.json()["content"] == "", "{} {:.200}", memory.status, memory.text());
    assert_eq!(made.read("/workspace/home/na\nme"), "with\nnewline");
    assert_eq!(made.read("/workspace/home/ümlaut 𝄞"), "x");
    let listed = made.get("/files/list").ok();
    let names: Vec<&str> =
        listed["files"].as_array().expect("files").iter().map(|f| f["name"].as_str().expect("name")).collect();
    assert!(names.contains(&"na\nme") && names.contains(&"ümlaut 𝄞"), "{names:?}");
    let one = made.get("/files/list?folder=/workspace/home/%C3%BCmlaut%20%F0%9D%84%9E").ok();
    assert_eq!(one["files"].as_array().map(Vec::len), Some(1), "a file lists itself: {one}");
    let write = |path: &str| made.post("/files/write", &json!({ "path": path, "content": "x" }));
    assert!(write("/workspace/home/dir").status >= 400);
    assert!(write("/etc/passwd").status >= 400);
    assert!(write("/proc/sys/kernel/core_pattern").status >= 400);
    assert_eq!(made.out("cat /etc/passwd | grep -c boxuser"), "1");
    // A write replaces the link's target or the link, but nothing outside of what boxuser may write.
    assert!(write("/workspace/home/shadow").status != 500);
    assert!(made.out("sudo -n cat /etc/shadow").contains("root:"), "the target of a link was overwritten");
}

#[test]
fn requests_that_are_no_http_end_without_harm() {
    let daemon = Daemon::start();
    let address = daemon.url().trim_start_matches("http://").to_owned();
    let before = machine::fd_count(daemon.pid());
    let huge = format!("GET /v2/box HTTP/1.1\r\nhost: x\r\nx-filler: {}\r\n\r\n", "y".repeat(1 << 20));
    let raw: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"POST /v2/box HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v2/box HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        huge.as_bytes(),
    ];
    for bytes in raw {
        let mut stream = TcpStream::connect(&address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let head = String::from_utf8_lossy(&answer[..answer.len().min(20)]).into_owned();
        assert!(!head.contains(" 200 ") && !head.contains(" 5"), "{:.40}: {head}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(daemon.api().get("/healthz").status, 200);
    icebox_tests::wait_until(PATIENCE, "the connections to be closed", || {
        machine::fd_count(daemon.pid()) <= before + 8
    });
}

#[test]
fn the_key_and_the_environment_are_not_in_logs_answers_or_files() {
    let daemon = Daemon::start();
    let made = daemon.api().create(&json!({ "env_vars": { "TOKEN": "planted-env-secret" }, "name": "secretive" }));
    assert_eq!(made.out("echo $TOKEN"), "planted-env-secret");
    let answers = [
        made.data().to_string(),
        made.get("/logs").text(),
        daemon.api().get("/v2/box").text(),
        daemon.api().get("/metrics").text(),
    ];
    for answer in &answers {
        assert!(!answer.contains("planted-env-secret") && !answer.contains(daemon.key()), "{answer}");
    }
    assert!(!daemon.log().contains("planted-env-secret") && !daemon.log().contains(daemon.key()), "{}", daemon.log());
    for file in ["icebox.db", "icebox.db-wal"] {
        let bytes = std::fs::read(daemon.data_dir().join(file)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&bytes).contains(daemon.key()), "the key is stored in the clear in {file}");
    }
    for pid in daemon.cgroups().procs(&daemon.cgroup(&made)) {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&command).contains("planted-env-secret"));
    }
}

#[test]
fn documents_of_the_server_are_there() {
    let daemon = Daemon::start();
    let api = daemon.api().with_key(None);
    let made = daemon.api().create_default();
    made.out("true");
    let openapi = api.get("/openapi.json");
    let document = if openapi.status == 401 { daemon.api().get("/openapi.json").ok() } else { openapi.ok() };
    let paths = document["paths"].as_object().unwrap_or_else(|| panic!("no paths: {document}"));
    for path in ["/v2/box", "/v2/box/{id}", "/v2/box/{id}/exec", "/v2/box/{id}/files/read"] {
        let found = paths.keys().any(|p| p.replace("{box_id}", "{id}").replace("{id_or_name}", "{id}") == path);
        assert!(found, "{path} is not in the OpenAPI document: {:?}", paths.keys());
    }
    let metrics = api.get("/metrics");
    let metrics = if metrics.status == 401 { daemon.api().get("/metrics") } else { metrics };
    assert_eq!(metrics.status, 200);
    assert!(metrics.text().lines().any(|l| l.starts_with("# TYPE ")), "{}", metrics.text());
}
