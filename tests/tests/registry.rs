//! Pull and push with a real registry, and with skopeo and podman at its other side.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use icebox_tests::daemon::{Daemon, scratch_dir, unique};
use icebox_tests::machine::require_root;
use icebox_tests::registry::{PASSWORD, Registry, USER};
use serde_json::{Value, json};

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    fn new() -> Self {
        require_root();
        let dir = scratch_dir().join(unique("registry"));
        fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

/// `icebox`, as the operator.
fn icebox(daemon: &Daemon, args: &[&str]) -> Output {
    daemon.icebox_as_operator(args).stdin(Stdio::null()).output().expect("icebox starts")
}

fn ok(daemon: &Daemon, args: &[&str]) -> String {
    let output = icebox(daemon, args);
    assert!(output.status.success(), "{args:?}: {}\n{}", String::from_utf8_lossy(&output.stderr), daemon.log_tail());
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

fn refused(daemon: &Daemon, args: &[&str]) -> String {
    let output = icebox(daemon, args);
    assert!(!output.status.success(), "{args:?} is no error: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).expect("text")
}

fn skopeo(args: &[&str]) -> String {
    run(Command::new("skopeo").arg("--insecure-policy").args(args))
}

/// An image that buildah has made of busybox, as an OCI layout with the tag `made`.
fn made_by_buildah(scratch: &Scratch) -> String {
    let root = scratch.at("root");
    for dir in ["bin", "etc"] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox");
    for applet in ["sh", "cat", "id", "env", "true"] {
        symlink("busybox", root.join("bin").join(applet)).expect("an applet");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("written");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("written");
    let storage = scratch.at("buildah");
    let buildah = |args: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        run(command.args(["--storage-driver", "vfs"]).args(args))
    };
    let container = buildah(&["from", "scratch"]);
    buildah(&["copy", "-q", &container, root.to_str().expect("a path"), "/"]);
    buildah(&["config", "--env", "GREETING=from the registry", &container]);
    let layout = format!("oci:{}:made", scratch.at("layout").display());
    buildah(&["commit", "-q", &container, &layout]);
    layout
}

fn image_id(image: &str) -> String {
    let config = skopeo(&["inspect", "--tls-verify=false", "--config", "--raw", image]);
    use sha2::Digest as _;
    format!("sha256:{:x}", sha2::Sha256::digest(config.as_bytes()))
}

fn shown(daemon: &Daemon, name: &str) -> Value {
    serde_json::from_str(&ok(daemon, &["image", "show", name])).expect("JSON")
}

#[test]
fn what_skopeo_pushes_is_pulled_and_what_is_pushed_is_read_by_skopeo_and_podman() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch.at("registry"));
    let layout = made_by_buildah(&scratch);
    let name = |name: &str| format!("{}/{name}", registry.host());
    let url = |of: &str| format!("docker://{}", name(of));
    let of_all = ["team/oci:1", "team/second:1", "team/docker:1"];
    for (to, form) in of_all.into_iter().zip(["oci", "oci", "v2s2"]) {
        skopeo(&["copy", "-q", "--dest-tls-verify=false", "--format", form, &layout, &url(to)]);
    }
    let daemon = Daemon::start_with("").with_own_images();
    let mut diff_ids = Vec::new();
    for of in of_all {
        assert_eq!(ok(&daemon, &["image", "pull", &name(of)]), name(of));
        let image = shown(&daemon, &name(of));
        assert_eq!(image["id"], image_id(&url(of)), "{of}");
        assert_eq!(image["source"], name(of));
        diff_ids.push(image["diff_ids"].clone());
    }
    assert!(diff_ids.iter().all(|ids| *ids == diff_ids[0]), "{diff_ids:?}");
    // The layer is the same for all: it came once.
    let layers: BTreeSet<String> = of_all
        .iter()
        .map(|of| {
            let raw = skopeo(&["inspect", "--tls-verify=false", "--raw", &url(of)]);
            let manifest: Value = serde_json::from_str(&raw).expect("JSON");
            format!("/blobs/{}", manifest["layers"][0]["digest"].as_str().expect("a digest"))
        })
        .collect();
    let log = registry.log();
    let fetched = log.lines().filter(|line| {
        let ours = line.contains("http.request.method=GET") && line.contains("http.request.useragent=icebox/");
        ours && line.contains("response completed") && layers.iter().any(|layer| line.contains(layer))
    });
    assert_eq!(fetched.count(), 1, "{layers:?}");

    let api = daemon.api();
    let made = api.create(&json!({ "runtime": name("team/second:1") }));
    assert_eq!(made.out("echo $GREETING; id -un"), "from the registry\nboxuser");
    made.delete();

    // Back again, under another name.
    let pushed = ok(&daemon, &["image", "push", &name("team/oci:1"), &name("pushed/app:2")]);
    let digest = pushed.strip_prefix(&format!("{}@", name("pushed/app:2"))).expect(&pushed);
    let raw: Value =
        serde_json::from_str(&skopeo(&["inspect", "--tls-verify=false", &url("pushed/app:2")])).expect("JSON");
    assert_eq!(raw["Digest"], digest);
    assert_eq!(image_id(&url("pushed/app:2")), shown(&daemon, &name("team/oci:1"))["id"]);
    let copied = scratch.at("copied.tar");
    skopeo(&[
        "copy",
        "-q",
        "--src-tls-verify=false",
        &url("pushed/app:2"),
        &format!("oci-archive:{}:x/y:3", copied.display()),
    ]);
    assert_eq!(ok(&daemon, &["image", "import", copied.to_str().expect("a path")]), "x/y:3");
    assert_eq!(shown(&daemon, "x/y:3")["id"], shown(&daemon, &name("team/oci:1"))["id"]);
    let storage = scratch.at("podman");
    // podman wants a short path here.
    let runroot = tempfile::tempdir().expect("a directory");
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(runroot.path());
        run(command.args(["--storage-driver", "vfs"]).args(args))
    };
    let id = podman(&["pull", "-q", "--tls-verify=false", &name("pushed/app:2")]);
    assert_eq!(format!("sha256:{id}"), shown(&daemon, &name("team/oci:1"))["id"].as_str().expect("an id"));
    // A second time nothing is sent.
    let posts = || registry.log().matches("http.request.method=POST").count();
    let before = posts();
    ok(&daemon, &["image", "tag", &name("team/oci:1"), &name("pushed/app:3")]);
    ok(&daemon, &["image", "push", &name("pushed/app:3")]);
    assert_eq!(posts(), before);

    // What is wrong is told.
    let text = refused(&daemon, &["image", "pull", &name("team/none:1")]);
    assert!(text.contains("404") && text.contains("team/none"), "{text}");
    let text = refused(&daemon, &["image", "push", "x/y:4", &name("x:1")]);
    assert!(text.contains("no such image"), "{text}");
    let id = shown(&daemon, "x/y:3")["id"].as_str().expect("an id").to_owned();
    let text = refused(&daemon, &["image", "push", &id]);
    assert!(text.contains("say under which name"), "{text}");
    let text = refused(&daemon, &["image", "pull", "127.0.0.1:1/x:1"]);
    assert!(text.contains("127.0.0.1:1 cannot be reached"), "{text}");
    let text = refused(&daemon, &["image", "pull", "../x"]);
    assert!(text.contains("../x"), "{text}");
}

#[test]
fn a_mirror_with_tls_and_a_password_stands_for_a_registry() {
    let scratch = Scratch::new();
    let closed = Registry::start_closed(&scratch.at("closed"));
    let layout = made_by_buildah(&scratch);
    let authority = closed.authority();
    let target = format!("docker://{}/cache/team/app:1", closed.host());
    let credentials = format!("{USER}:{PASSWORD}");
    let authority_dir = authority.to_str().expect("a path");
    skopeo(&["copy", "-q", "--dest-cert-dir", authority_dir, "--dest-creds", &credentials, &layout, &target]);

    let auth = scratch.at("auth.json");
    let login = |password: &str| {
        let basic = run(Command::new("sh").args(["-c", &format!("printf %s {USER}:{password} | base64")]));
        fs::write(&auth, json!({"auths": {closed.host(): {"auth": basic}}}).to_string()).expect("written");
    };
    login(PASSWORD);
    let config = |authority: &Path| {
        format!(
            "[registry]\nauth_file = \"{}\"\nca_file = \"{}\"\n[registry.mirrors]\n\"registry.invalid\" = [\"{}/cache\"]\n",
            auth.display(),
            authority.display(),
            closed.host()
        )
    };
    let mut daemon = Daemon::start_with(&config(&authority.join("ca.crt"))).with_own_images();
    let name = "registry.invalid/team/app:1";
    assert_eq!(ok(&daemon, &["image", "pull", name]), name);
    let made = daemon.api().create(&json!({ "runtime": name }));
    assert_eq!(made.out("echo $GREETING"), "from the registry");
    made.delete();
    let direct = format!("{}/pushed:1", closed.host());
    ok(&daemon, &["image", "push", name, &direct]);
    ok(&daemon, &["image", "rm", name]);

    // The file is read each time.
    login("wrong");
    let text = refused(&daemon, &["image", "pull", &direct]);
    assert!(text.contains("does not allow it") && !text.contains("wrong"), "{text}");
    login(PASSWORD);
    ok(&daemon, &["image", "pull", &direct]);

    // Another authority does not vouch for it.
    let other = Registry::start_closed(&scratch.at("other"));
    daemon.stop();
    daemon.configure(&config(&other.authority().join("ca.crt")));
    daemon.start_again();
    let text = refused(&daemon, &["image", "pull", &direct]);
    assert!(text.contains("is not trusted") && text.contains("ca_file"), "{text}");
    let log = daemon.log();
    assert!(!log.contains(PASSWORD) && !log.contains("bWU6"), "a password is in the log: {log}");
}

#[test]
fn a_pull_over_a_bad_line_goes_on_where_it_broke() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch.at("registry"));
    let layout = made_by_buildah(&scratch);
    skopeo(&["copy", "-q", "--dest-tls-verify=false", &layout, &format!("docker://{}/app:1", registry.host())]);
    let line = registry.behind_a_bad_line(200_000, 2);
    let daemon = Daemon::start_with("").with_own_images();
    let name = format!("{}/app:1", line.host());
    assert_eq!(ok(&daemon, &["image", "pull", &name]), name);
    assert_eq!(line.cuts_left(), 0, "no connection was cut");
    let partial = registry.log().matches("http.response.status=206").count();
    assert_eq!(partial, 2, "{}", registry.log());
}
