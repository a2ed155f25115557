//! Public URLs: who is let in, what happens to the box, what goes through, and that nothing but the box is reached.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use icebox_tests::visit::{Answer, Url, Visitor, serve, serve_at};
use icebox_tests::{Daemon, TestBox, wait_until};
use serde_json::{Value, json};

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(20);

fn served(daemon: &Daemon, options: &Value) -> (TestBox, Url) {
    let made = daemon.api().create_default();
    serve(&made, PORT);
    let url = Url::open(&made, PORT, options);
    (made, url)
}

fn previews(made: &TestBox) -> Vec<Value> {
    made.get("/preview").ok()["previews"].as_array().expect("a list").clone()
}

fn base64(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let table = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let sextet = (bits >> (18 - 6 * index)) as usize & 63;
            let _ = write!(out, "{}", if index <= chunk.len() { table[sextet] as char } else { '=' });
        }
    }
    out
}

fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", base64(&format!("{user}:{password}")))
}

#[test]
fn urls_are_made_listed_replaced_and_removed() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon, &json!({}));
    let (host, port) = url.host.split_once(':').expect("a port");
    assert_eq!(host, format!("{}-{PORT}.localhost", made.id));
    assert!(url.address.ends_with(&format!(":{port}")), "{url:?}");
    assert_eq!(url.made["port"], PORT);
    for secret in ["token", "username", "password"] {
        assert!(url.made.get(secret).is_none(), "{}", url.made);
    }
    assert_eq!(url.get("/hello?a=b").told("host"), Some(url.host.clone()));
    let other = Url::open(&made, 80, &json!({ "bearer_token": true, "basic_auth": null }));
    let listed = previews(&made);
    assert_eq!(listed.len(), 2);
    assert_eq!(
        (&listed[0]["port"], &listed[0]["bearer_token"], &listed[0]["basic_auth"]),
        (&json!(80), &json!(true), &json!(false))
    );
    assert_eq!(listed[1]["id"], format!("{}-{PORT}", made.id));
    assert_eq!(listed[1]["url"], url.made["url"]);
    assert!(listed[1]["created_at"].as_i64().is_some_and(|at| at > 1_600_000_000 && at < 100_000_000_000));
    assert!(!listed.iter().any(|item| item.to_string().contains(other.made["token"].as_str().expect("a token"))));
    // Replaced: the old credentials die at once, in memory and on disk.
    let again = Url::open(&made, 80, &json!({ "bearer_token": true }));
    assert_ne!(again.made["token"], other.made["token"]);
    assert_eq!(again.ask("GET", "/", &other.bearer()).status, 401);
    assert_eq!(again.ask("GET", "/", &again.bearer()).status, 502);
    made.api.delete(&made.path("/preview/80")).ok();
    made.api.delete(&made.path("/preview/80")).ok();
    assert_eq!(again.ask("GET", "/", &again.bearer()).status, 404);
    assert_eq!(previews(&made).len(), 1);
    for port in [json!(0), json!(65536), json!(-1), json!(null), json!("80"), json!(1.5)] {
        made.post("/preview", &json!({ "port": port })).error(400);
    }
    made.post("/preview", &json!({})).error(400);
    made.api.delete(&made.path("/preview/0")).error(400);
    made.api.delete(&made.path("/preview/x")).error(400);
    let ephemeral = made.api.create(&json!({ "ephemeral": true }));
    ephemeral.post("/preview", &json!({ "port": 80 })).error(400);
}

#[test]
fn credentials_open_it_and_nothing_else_does() {
    let daemon = Daemon::start();
    let (made, open) = served(&daemon, &json!({}));
    assert_eq!(
        open.ask("GET", "/", "Authorization: Bearer mine\r\n").told("authorization"),
        Some("Bearer mine".into())
    );
    for (bearer, with_basic) in [(true, false), (false, true), (true, true)] {
        let url = Url::open(&made, PORT, &json!({ "bearer_token": bearer, "basic_auth": with_basic }));
        let text = |name: &str| url.made[name].as_str().unwrap_or_default().to_owned();
        let (token, password) = (text("token"), text("password"));
        assert_eq!((token.is_empty(), password.is_empty()), (!bearer, !with_basic), "{}", url.made);
        assert_eq!(text("username"), if with_basic { "user" } else { "" });
        let refused = url.get("/");
        assert_eq!(refused.status, 401);
        let offered = refused.headers.iter().filter(|(name, _)| name == "www-authenticate").count();
        assert_eq!(offered, usize::from(bearer) + usize::from(with_basic));
        let right = [(bearer, format!("Authorization: Bearer {token}\r\n")), (with_basic, basic("user", &password))];
        for (asked_for, header) in &right {
            let answer = url.ask("GET", "/", header);
            assert_eq!(answer.status, if *asked_for { 200 } else { 401 }, "{header}");
            if *asked_for {
                assert_eq!(answer.told("authorization"), None, "what opens the URL is not for the box");
            }
        }
        let header = right.iter().find(|(asked_for, _)| *asked_for).map(|(_, header)| header.clone()).expect("one");
        for wrong in [
            "Authorization: Bearer x\r\n".to_owned(),
            "Authorization: Bearer \r\n".to_owned(),
            basic("user", ""),
            basic("root", &password),
            format!("X-Box-Api-Key: {}\r\n", daemon.key()),
            format!("{header}{header}"),
        ] {
            assert_eq!(url.ask("GET", "/", &wrong).status, 401, "{wrong}");
        }
    }
    let secrets = daemon.log();
    assert!(!secrets.contains("Bearer"), "credentials in the log");
}

#[test]
fn who_may_not_enter_wakes_nothing_and_who_may_wakes_the_box() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon, &json!({ "bearer_token": true }));
    made.pause();
    for headers in ["", "Authorization: Bearer wrong\r\n"] {
        assert_eq!(url.ask("GET", "/", headers).status, 401);
    }
    let unknown = Url { host: url.host.replace("8080", "8081"), ..url.clone() };
    assert_eq!(unknown.get("/").status, 404);
    assert_eq!(made.status(), "paused");
    let listed = previews(&made);
    assert_eq!((listed.len(), made.status().as_str()), (1, "paused"), "listing wakes nothing");
    assert_eq!(url.ask("GET", "/", &url.bearer()).status, 200);
    assert_eq!(made.status(), "idle");
    made.pause();
    let again = Url::open(&made, PORT, &json!({}));
    assert_eq!(made.status(), "idle", "making a URL wakes the box");
    assert_eq!(again.get("/").status, 200);
    // Pausing waits for no request: this one ends with a file that is made after the pause, and is answered then.
    let mut slow = Visitor::new(&again.address);
    slow.send(&format!("GET /until?/tmp/go HTTP/1.1\r\nHost: {}\r\n\r\n", again.host));
    wait_until(DEADLINE, "the request to be in progress", || {
        why(&made).contains("1 public URL request is in progress")
    });
    made.pause();
    made.write("/tmp/go", "");
    assert_eq!(slow.answer("GET").text(), "until");
}

fn why(made: &TestBox) -> String {
    made.api.get(&format!("/v1/boxes/{}/why", made.id)).ok().to_string()
}

#[test]
fn a_port_is_waited_for_after_a_wake_and_not_otherwise() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let url = Url::open(&made, PORT, &json!({}));
    let answer = url.get("/");
    assert_eq!(answer.status, 502, "not 503, which comes after a wait: {answer:?}");
    assert!(answer.text().contains("8080") && answer.header("retry-after").is_none());
    // A server that comes up some time after the wake.
    made.write("/tmp/late.sh", "sleep 2; exec python3 -m http.server 8080 --bind 127.0.0.1 --directory /tmp/www");
    made.out("mkdir -p /tmp/www; echo late >/tmp/www/index.html; setsid sh /tmp/late.sh >/dev/null 2>&1 & echo");
    made.pause();
    let answer = url.get("/index.html");
    assert_eq!((answer.status, answer.text().as_str()), (200, "late\n"));
    made.out("pkill -f '[h]ttp.server'; true");
    made.pause();
    let begun = Instant::now();
    let page = url.ask("GET", "/", "Accept: text/html,*/*\r\n");
    assert!(begun.elapsed() > Duration::from_secs(28), "{:?}", begun.elapsed());
    assert_eq!((page.status, page.header("retry-after")), (503, Some("5")), "{page:?}");
    assert!(page.text().contains("http-equiv=\"refresh\""), "{page:?}");
    assert_eq!(made.status(), "idle");
    assert_eq!(url.get("/").status, 502, "by now it runs for long");
}

#[test]
fn heads_bodies_and_trailers_go_through() {
    let daemon = Daemon::start();
    let (_made, url) = served(&daemon, &json!({}));
    let told = url.ask(
        "GET",
        "/a/../b//c?x=%2F",
        "X-Mine: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Box-Api-Key: k\r\n",
    );
    assert_eq!(told.json()["path"], "/a/../b//c?x=%2F");
    assert_eq!(told.told("x-mine"), Some("1".into()));
    assert_eq!(told.told("x-hop"), None);
    assert_eq!(told.told("x-box-api-key"), None);
    assert_eq!(told.told("x-forwarded-for"), Some("127.0.0.1".into()));
    assert_eq!(told.told("x-forwarded-proto"), Some("http".into()));
    assert_eq!(told.told("x-forwarded-host"), Some(url.host.clone()));
    assert_eq!((told.header("x-told"), told.header("x-hop")), (Some("yes"), None));
    for method in ["HEAD", "OPTIONS", "PUT", "DELETE", "PROPFIND"] {
        let answer = url.ask(method, "/", "");
        assert_eq!(answer.status, 200, "{method}");
        assert!(method == "HEAD" || answer.json()["method"] == method, "{answer:?}");
    }
    assert_eq!(url.ask("POST", "/", "Content-Length: 0\r\n").json()["size"], 0);
    // An upload in chunks, the first of which asks whether it is wanted.
    let mut visitor = Visitor::new(&url.address);
    visitor.send(&format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        url.host
    ));
    assert_eq!(visitor.any_head().status, 100);
    visitor.send("3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n");
    assert_eq!(visitor.answer("POST").json()["size"], 5);
    // A GET with a body is rare, but its body is its own.
    let mut visitor = Visitor::new(&url.address);
    visitor.send(&format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        url.host
    ));
    assert_eq!(visitor.answer("GET").json()["size"], 3);
    let early = url.ask("POST", "/early", "Content-Length: 1000000\r\nExpect: 100-continue\r\n");
    assert_eq!(early.status, 413, "an answer may come before the body");
    let trailers = url.ask("GET", "/trailers", "TE: trailers\r\n");
    assert_eq!((trailers.text().as_str(), trailers.header("x-after")), ("abc", Some("yes")));
    // Several requests on one connection.
    let mut visitor = Visitor::new(&url.address);
    for round in 0..3 {
        visitor.send(&format!("GET /{round} HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
        assert_eq!(visitor.answer("GET").json()["path"], format!("/{round}"));
    }
    let mut old = Visitor::new(&url.address);
    old.send(&format!("GET / HTTP/1.0\r\nHost: {}\r\n\r\n", url.host));
    assert_eq!(old.answer("GET").status, 200);
}

#[test]
fn large_bodies_stream_both_ways() {
    const BYTES: usize = 100 << 20;
    let daemon = Daemon::start();
    let (_made, url) = served(&daemon, &json!({}));
    let before = icebox_tests::machine::rss_kb(daemon.pid());
    let mut visitor = Visitor::new(&url.address);
    visitor.send(&format!("PUT / HTTP/1.1\r\nHost: {}\r\nContent-Length: {BYTES}\r\n\r\n", url.host));
    let piece = vec![b'u'; 1 << 20];
    for _ in 0..BYTES / piece.len() {
        visitor.send_bytes(&piece);
    }
    assert_eq!(visitor.answer("PUT").json()["size"], BYTES);
    visitor.send(&format!("GET /download?{BYTES} HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
    assert_eq!(visitor.head().header("content-length"), Some(BYTES.to_string().as_str()));
    for _ in 0..BYTES / piece.len() {
        assert!(visitor.exactly(piece.len()).iter().all(|byte| *byte == b'd'));
    }
    let after = icebox_tests::machine::rss_kb(daemon.pid());
    assert!(after < before + 32 * 1024, "200 MB went through, and memory went from {before} to {after} KiB");
}

#[test]
fn the_servers_of_a_box_are_found_on_both_loopbacks() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    serve_at(&made, 3000, "0.0.0.0");
    assert_eq!(Url::open(&made, 3000, &json!({})).get("/").status, 200);
    if made.sh("test -e /proc/sys/net/ipv6 && python3 -c 'import socket; socket.socket(socket.AF_INET6).bind((\"::1\", 1999))'").code == 0 {
        serve_at(&made, 3001, "::1");
        assert_eq!(Url::open(&made, 3001, &json!({})).get("/").status, 200);
    }
}

#[test]
fn a_url_lives_as_long_as_its_box() {
    let mut daemon = Daemon::start();
    let (made, url) = served(&daemon, &json!({ "bearer_token": true }));
    let bearer = url.bearer();
    daemon.kill9();
    daemon.start_again();
    let address = daemon.url().trim_start_matches("http://").to_owned();
    let at = |url: &Url| Url { address: address.clone(), ..url.clone() };
    let url = at(&url);
    let made = TestBox { api: daemon.api(), ..made };
    assert_eq!(url.get("/").status, 401);
    assert_eq!(url.ask("GET", "/", &bearer).status, 200, "the box goes on without iceboxd");
    // A box that has died is started again on its disk, with its init command.
    made.api.call("PUT", &made.path("/startup"), Some(&json!({ "init_command": "python3 /tmp/server.py 8080" }))).ok();
    made.out("cp /tmp/server.py /workspace/home/server.py");
    made.api
        .call(
            "PUT",
            &made.path("/startup"),
            Some(&json!({ "init_command": "exec python3 /workspace/home/server.py 8080" })),
        )
        .ok();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.init_pid(&made)), nix::sys::signal::Signal::SIGKILL)
        .expect("kill");
    wait_until(DEADLINE, "the box to be dead", || made.status() == "stopped");
    assert_eq!(url.ask("GET", "/", &bearer).status, 200);
    // With the box everything goes, what is open too.
    let mut socket = url.websocket(&bearer);
    socket.echo(b"x");
    let mut events = Visitor::new(&url.address);
    events.send(&format!("GET /sse HTTP/1.1\r\nHost: {}\r\n{bearer}\r\n", url.host));
    assert_eq!(events.head().status, 200);
    let _ = events.chunk();
    made.delete();
    assert!(socket.visitor().is_closed());
    // A body without a length ends where its sender ends.
    assert!(events.is_closed() || events.chunk().is_empty());
    assert_eq!(url.ask("GET", "/", &bearer).status, 404);
    let other = daemon.api().create_default();
    serve(&other, PORT);
    assert_eq!(url.ask("GET", "/", &bearer).status, 404, "a new box, perhaps at the same address, is another one");
    let unknown: Answer = Url { host: url.host.replace(&made.id, &other.id), ..url.clone() }.ask("GET", "/", &bearer);
    assert_eq!((unknown.status, unknown.body), (404, url.ask("GET", "/", "").body));
}

#[test]
fn what_is_open_ends_with_its_url() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon, &json!({}));
    let open = || {
        let mut socket = url.websocket("");
        socket.echo(b"x");
        let mut waiting = Visitor::new(&url.address);
        waiting.send(&format!("GET /slow?100 HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
        wait_until(DEADLINE, "the request to be in progress", || why(&made).contains("public URL request is in"));
        (socket, waiting)
    };
    let (mut socket, mut waiting) = open();
    Url::open(&made, PORT, &json!({}));
    assert!(socket.visitor().is_closed());
    assert_eq!(waiting.answer("GET").status, 404);
    let (mut socket, mut waiting) = open();
    made.api.delete(&made.path(&format!("/preview/{PORT}"))).ok();
    assert!(socket.visitor().is_closed());
    assert_eq!(waiting.answer("GET").status, 404);
    // And the other way round: a client that goes leaves nothing behind in the box.
    wait_until(DEADLINE, "the requests to be over", || !why(&made).contains("public URL request"));
    Url::open(&made, PORT, &json!({}));
    let mut leaving = Visitor::new(&url.address);
    leaving.send(&format!("GET /never HTTP/1.1\r\nHost: {}\r\n\r\n", url.host));
    wait_until(DEADLINE, "the request to reach the box", || made.sh("test -e /tmp/came").code == 0);
    assert!(why(&made).contains("public URL request is in progress"));
    drop(leaving);
    wait_until(DEADLINE, "the request to be over", || !why(&made).contains("public URL request"));
    wait_until(DEADLINE, "the box to hear that its client has gone", || made.sh("test -e /tmp/gone").code == 0);
}

/// The listener that an operator opens to the world: TLS, boxes only, a certificate that is replaced while it runs.
#[test]
fn a_listener_of_its_own_speaks_tls_and_serves_boxes_only() {
    let dir = icebox_tests::daemon::scratch_dir().join(icebox_tests::daemon::unique("tls"));
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = |name: &str| dir.join(name).display().to_string();
    let certify = |name: &str| {
        let subject = format!("/CN={name}");
        let (key, certificate) = (path("new.key"), path("new.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args([
                "-subj",
                &subject,
                "-addext",
                "subjectAltName=DNS:*.p.example",
                "-keyout",
                &key,
                "-out",
                &certificate,
            ])
            .output()
            .expect("openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::rename(key, path("key.pem")).expect("rename");
        std::fs::rename(certificate, path("cert.pem")).expect("rename");
    };
    certify("first");
    let daemon = Daemon::start_with(&format!(
        "[public_urls]\ndomain = \"p.example\"\nport = 443\nlisten = \"127.0.0.1:0\"\ntls_certificate = {:?}\ntls_key = {:?}\n",
        path("cert.pem"),
        path("key.pem")
    ));
    let made = daemon.api().create_default();
    serve(&made, PORT);
    let url = Url::open(&made, PORT, &json!({}));
    let host = format!("{}-{PORT}.p.example", made.id);
    assert_eq!(url.made["url"], format!("https://{host}/"));
    let log = daemon.log();
    let address = log.split("serving public URLs address=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let address = address.unwrap_or_else(|| panic!("no listener in {log}"));
    let ask = |host: &str, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", address, "-servername", host])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl");
        let mut input = client.stdin.take().expect("its input");
        input.write_all(request.as_bytes()).expect("send");
        let told = client.wait_with_output().expect("its end");
        drop(input);
        (String::from_utf8_lossy(&told.stdout).into_owned(), String::from_utf8_lossy(&told.stderr).into_owned())
    };
    let (answer, session) = ask(&host, "/x");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[\"x-forwarded-proto\", \"https\"]"), "{answer}");
    assert!(session.contains("CN = first"), "{session}");
    for (host, path) in [("127.0.0.1", "/v2/box"), ("localhost", "/healthz"), ("x.p.example", "/")] {
        let (answer, _) = ask(host, path);
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("error"), "{host}: {answer}");
    }
    certify("second");
    wait_until(DEADLINE, "the new certificate", || ask(&host, "/x").1.contains("CN = second"));
    std::fs::write(path("key.pem"), "no key").expect("write");
    wait_until(DEADLINE, "the bad key to be noticed", || daemon.log().contains("stays in use"));
    assert!(ask(&host, "/x").0.starts_with("HTTP/1.1 200"), "the old certificate stays");
    std::fs::remove_dir_all(&dir).expect("clean up");
}

#[test]
fn connections_leave_nothing_behind() {
    let daemon = Daemon::start();
    let (made, url) = served(&daemon, &json!({}));
    assert_eq!(url.get("/").status, 200);
    let files = || icebox_tests::machine::fd_count(daemon.pid());
    let before = files();
    for _ in 0..300 {
        assert_eq!(url.get("/").status, 200);
    }
    let mut open: Vec<_> = (0..40).map(|_| url.websocket("")).collect();
    open.iter_mut().for_each(|socket| socket.echo(b"x"));
    assert!(files() >= before + 70, "{} and {before}", files());
    drop(open);
    wait_until(DEADLINE, "the files of connections to be closed", || files() <= before);
    let mut open: Vec<_> = (0..40).map(|_| url.websocket("")).collect();
    // No thread of ours stays in the namespace of a box, which would outlive it.
    let namespace = |path: &std::path::Path| std::fs::read_link(path.join("ns/net")).expect("a namespace");
    let of_process = |pid: i32| std::path::PathBuf::from(format!("/proc/{pid}"));
    let of_box = namespace(&of_process(daemon.init_pid(&made)));
    let threads = std::fs::read_dir(of_process(daemon.pid()).join("task")).expect("threads").flatten();
    let staying = threads.map(|thread| thread.path()).filter(|thread| namespace(thread) == of_box);
    let names: Vec<_> = staying.map(|thread| std::fs::read_to_string(thread.join("comm"))).collect();
    assert!(names.is_empty(), "threads in the namespace of the box: {names:?}");
    made.delete();
    assert!(open.iter_mut().all(|socket| socket.visitor().is_closed()));
    wait_until(DEADLINE, "the files of the box to be closed", || files() <= before);
}
