//! Runtimes that are built from Boxfiles: when a box asks for one, ahead of it, and when that fails. The Boxfiles stand on a
//! small image, so that this needs no network.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;

use icebox_tests::daemon::{Daemon, scratch_dir, unique};
use icebox_tests::runtimes::{facts, state};
use serde_json::json;

/// A runtime that no two builds make alike.
const TINY: &str = "FROM mini:1\nRUN cat /proc/sys/kernel/random/uuid > /made\n";

/// An `iceboxd` with images of its own, a small one among them, and a folder for the Boxfiles that its configuration names.
struct World {
    daemon: Daemon,
    dir: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl World {
    fn new(runtimes: &[&str], more: &str) -> Self {
        let dir = scratch_dir().join(unique("runtimes"));
        fs::create_dir_all(&dir).expect("a directory");
        let line = |name: &&str| format!("{name} = {{ boxfile = \"{}\" }}\n", dir.join(name).display());
        let lines: String = runtimes.iter().map(line).collect();
        let daemon = Daemon::start_with(&format!("[runtimes]\n{lines}\n{more}")).with_own_images();
        let root = dir.join("root");
        for path in ["bin", "etc"] {
            fs::create_dir_all(root.join(path)).expect("a directory");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox");
        for applet in ["sh", "cat", "echo", "wget"] {
            symlink("busybox", root.join("bin").join(applet)).expect("an applet");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("written");
        let world = Self { daemon, dir };
        let root = root.display().to_string();
        world.ok(&["image", "import", &root, "--name", "mini:1"]);
        world
    }

    fn put(&self, name: &str, boxfile: &str) {
        fs::write(self.dir.join(name), boxfile).expect("a Boxfile");
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.daemon.icebox_as_operator(args).output().expect("icebox ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}\n{}", self.daemon.log_tail());
        String::from_utf8(output.stdout).expect("text")
    }

    fn builds_begun(&self) -> usize {
        self.daemon.log().matches("which is built first").count()
    }
}

#[test]
fn boxes_that_ask_for_a_runtime_share_its_build() {
    let world = World::new(&["tiny"], "");
    world.put("tiny", TINY);
    let daemon = &world.daemon;
    assert_eq!(state(daemon, "tiny"), "built_on_create");

    // What would be refused anyhow has nothing built.
    let refused = daemon.api().post("/v2/box", &json!({ "runtime": "tiny", "name": "../x" }));
    refused.error(400);
    assert_eq!((state(daemon, "tiny").as_str(), world.builds_begun()), ("built_on_create", 0));

    let (together, api) = (Barrier::new(3), daemon.api());
    let ask = || {
        together.wait();
        api.create(&json!({ "runtime": "tiny" })).out("cat /made")
    };
    let made: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a box")).collect()
    });
    assert!(!made[0].is_empty() && made.iter().all(|each| *each == made[0]), "{made:?}");
    assert_eq!((state(daemon, "tiny").as_str(), world.builds_begun()), ("ready", 1));
    assert!(daemon.log().contains("step 1/1: RUN cat"), "{}", daemon.log_tail());
    // No box of a build is left.
    assert_eq!(daemon.api().list().len(), 3);

    // Another Boxfile: boxes get the image that is there, until the operator builds it.
    world.put("tiny", &format!("{TINY}RUN echo new > /new\n"));
    assert_eq!(state(daemon, "tiny"), "outdated");
    let old = api.create(&json!({ "runtime": "tiny" }));
    assert_eq!(old.out("cat /made; test -e /new || echo old"), format!("{}\nold", made[0]));
    world.ok(&["image", "build", "--runtime", "tiny"]);
    assert_eq!(state(daemon, "tiny"), "ready");
    let new = api.create(&json!({ "runtime": "tiny" }));
    // The first step is that of the build before.
    assert_eq!(new.out("cat /made /new"), format!("{}\nnew", made[0]));
    let listed = world.ok(&["image", "runtimes"]);
    let line = listed.lines().find(|line| line.starts_with("tiny ")).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("ready") && line.contains("localhost/icebox-tiny:latest"), "{listed}");
}

#[test]
fn a_build_that_fails_fails_the_creation_with_the_line() {
    let world = World::new(&["broken", "absent"], "");
    world.put("broken", "FROM mini:1\nRUN echo first\nRUN echo why it fails >&2; exit 7\n");
    let (daemon, api) = (&world.daemon, world.daemon.api());
    for _ in 0..2 {
        let text = api.post("/v2/box", &json!({ "runtime": "broken" })).error(503);
        for wanted in ["the runtime 'broken' could not be built", "broken:3: ", "exit code 7", "why it fails"] {
            assert!(text.contains(wanted), "{text}");
        }
    }
    // It was not tried again.
    assert_eq!(world.builds_begun(), 1);
    assert!(api.list().is_empty());
    let known = facts(daemon, "broken");
    assert!(known["text"].as_str().is_some_and(|text| text.contains("why it fails")), "{known}");

    let text = api.post("/v2/box", &json!({ "runtime": "absent" })).error(503);
    assert!(text.contains("the Boxfile of the runtime 'absent' cannot be read"), "{text}");
    assert_eq!(state(daemon, "absent"), "missing");
    let boxfile = world.dir.join("absent").display().to_string();
    assert!(!text.contains(&boxfile) && !facts(daemon, "absent").to_string().contains(&boxfile), "{text}");
    assert!(world.ok(&["image", "runtimes", "--json"]).contains(&boxfile));

    // Another Boxfile is another attempt.
    world.put("broken", TINY);
    assert!(!api.create(&json!({ "runtime": "broken" })).out("cat /made").is_empty());
}

/// A web server on the machine's own loopback, with one word. Its port.
fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
                line.clear();
            }
            // A client that has gone is seen by the test.
            let _ = reader.get_mut().write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nfound");
        }
    });
    port
}

#[test]
fn a_build_uses_the_daemons_network_where_boxes_have_none() {
    let more = "[network]\nenabled = false\n[build]\nprivate_hosts = [\"localhost\"]\n";
    let world = World::new(&["fetching"], more);
    world.put("fetching", &format!("FROM mini:1\nRUN wget -q -O /made http://localhost:{}/\n", web_server()));
    let made = world.daemon.api().create(&json!({ "runtime": "fetching" }));
    assert_eq!(made.out("cat /made"), "found");
    // The box itself has no way there.
    assert_ne!(made.sh(&format!("wget -q -O - http://localhost:{}/", web_server())).code, 0);
    world.ok(&["image", "build", "--no-cache", "--runtime", "fetching"]);
}

#[test]
fn what_is_not_built_here_says_what_to_do() {
    let world = World::new(&[], "[build]\non_create = \"off\"\n");
    let (daemon, api) = (&world.daemon, world.daemon.api());
    for (runtime, wanted) in [
        ("golang", "`icebox image build --runtime golang`"),
        ("node-alpine", "`icebox image import ARCHIVE --name node-alpine`"),
        ("node-alpine", "`node-alpine = \"IMAGE\"` in [runtimes]"),
        ("other", "`icebox image pull other`"),
    ] {
        let text = api.post("/v2/box", &json!({ "runtime": runtime })).error(400);
        assert!(text.contains(wanted), "{runtime}: {text}");
    }
    assert_eq!((state(daemon, "golang").as_str(), state(daemon, "node").as_str()), ("missing", "base"));
    let output = daemon.icebox_as_operator(&["image", "build", "--runtime", "cobol"]).output().expect("icebox ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("golang, node, python, ruby, rust"), "{said}");
}
