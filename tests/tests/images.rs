//! Boxes on images: import, side by side with the base image, what an image adds to a box, and removal.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use icebox_tests::daemon::{Daemon, scratch_dir, unique};
use icebox_tests::machine::require_root;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An `iceboxd` with an image directory of its own: the base image is a link to that of all tests.
struct World {
    daemon: Daemon,
    images: PathBuf,
    scratch: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        self.daemon.stop();
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

impl World {
    fn new(config: &str) -> Self {
        require_root();
        let scratch = scratch_dir().join(unique("images"));
        fs::create_dir_all(&scratch).expect("a directory");
        let daemon = Daemon::start_with(config).with_own_images();
        let images = daemon.images();
        Self { daemon, images, scratch }
    }

    fn icebox(&self, args: &[&str]) -> Output {
        // As the operator: without a key and an address.
        let mut command = Command::new(icebox_tests::daemon::binary("icebox"));
        command.args(args).arg("--run-dir").arg(self.daemon.run_dir()).stdin(Stdio::null());
        command.env_remove("UPSTASH_BOX_API_KEY").env_remove("UPSTASH_BOX_BASE_URL");
        command.output().expect("icebox starts")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.icebox(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.icebox(args);
        assert!(!output.status.success(), "{args:?} is no error: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).expect("text")
    }
}

/// A root file system of busybox: no bash, an own user with the box's number, programs at an own place.
fn busybox_root(dir: &Path) {
    for path in ["bin", "etc", "opt/own/bin", "var/home"] {
        fs::create_dir_all(dir.join(path)).expect("a directory");
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).expect("busybox");
    for applet in ["sh", "ls", "cat", "id", "env", "stat", "readlink", "sleep", "grep", "true", "mkdir", "test"] {
        symlink("busybox", dir.join("bin").join(applet)).expect("an applet");
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n")
        .expect("written");
    fs::write(dir.join("etc/group"), "root:x:0:\nnode:x:1000:\n").expect("written");
    fs::write(dir.join("opt/own/bin/hello"), "#!/bin/sh\necho hello from the image\n").expect("written");
    // A link in place of a directory that Icebox adds to.
    symlink("var/home", dir.join("home")).expect("a link");
    let run = Command::new("chmod").arg("-R").args(["u+rwX,go+rX"]).arg(dir).status().expect("chmod");
    assert!(run.success());
    assert!(Command::new("chmod").arg("755").arg(dir.join("opt/own/bin/hello")).status().expect("chmod").success());
}

fn tar_of(dir: &Path) -> Vec<u8> {
    let output =
        Command::new("tar").args(["--format=pax", "-C"]).arg(dir).args(["-cf", "-", "."]).output().expect("tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What `docker save` writes for an image of these layers.
fn docker_archive(scratch: &Path, name: &str, layers: &[Vec<u8>]) -> PathBuf {
    let dir = scratch.join(unique("archive"));
    fs::create_dir_all(&dir).expect("a directory");
    let sha = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {
            "Env": ["PATH=/opt/own/bin:/usr/local/bin:/bin", "GREETING=from the image", "HOME=/root"],
            "User": "node", "WorkingDir": "/srv", "Entrypoint": ["/bin/false"],
        },
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| format!("sha256:{}", sha(layer))).collect::<Vec<_>>()},
    })
    .to_string();
    for layer in layers {
        fs::write(dir.join(format!("{}.tar", sha(layer))), layer).expect("written");
    }
    let config_name = format!("{}.json", sha(config.as_bytes()));
    fs::write(dir.join(&config_name), &config).expect("written");
    let files: Vec<String> = layers.iter().map(|layer| format!("{}.tar", sha(layer))).collect();
    fs::write(
        dir.join("manifest.json"),
        json!([{"Config": config_name, "RepoTags": [name], "Layers": files}]).to_string(),
    )
    .expect("written");
    let path = scratch.join(format!("{}.tar", unique("saved")));
    fs::write(&path, tar_of(&dir)).expect("written");
    path
}

/// An archive with an image of busybox, named `mini:1`.
fn mini(scratch: &Path) -> PathBuf {
    let root = scratch.join(unique("root"));
    busybox_root(&root);
    docker_archive(scratch, "mini:1", &[tar_of(&root)])
}

fn in_use(images: &Value) -> u64 {
    images["boxes"].as_u64().expect("a number of boxes")
}

#[test]
fn a_box_stands_on_an_imported_image() {
    let mut world = World::new("[runtimes]\nsmall = \"mini:1\"\ngone = \"gone:1\"\n");
    let archive = mini(&world.scratch);
    assert_eq!(world.ok(&["image", "import", archive.to_str().expect("a path")]), "mini:1");
    let listed = world.ok(&["image", "ls"]);
    assert!(listed.contains("mini:1") && listed.contains("bookworm-"), "{listed}");

    let api = world.daemon.api();
    let made = api.create(&json!({ "name": "mini", "runtime": "mini:1", "env_vars": {"OWN": "x"} }));
    assert_eq!(made.data()["runtime"], "mini:1");
    // The box's user and its home are the same on every image; the number's other name stays behind.
    assert_eq!(made.out("id -un"), "boxuser");
    assert_eq!(made.out("id -u node"), "1000");
    assert_eq!(
        made.out("pwd; echo $HOME; readlink /home/boxuser; stat -c %u:%a /workspace/home"),
        "/workspace/home\n/workspace/home\n/workspace/home\n1000:755"
    );
    // The image's variables are below the box's own, and its PATH is the one that programs are looked for in.
    assert_eq!(made.out("echo $GREETING; echo $OWN; hello"), "from the image\nx\nhello from the image");
    let exec = api.post(&made.path("/exec"), &json!({ "command": ["hello"] })).ok();
    assert_eq!(exec["output"].as_str().map(str::trim_end), Some("hello from the image"), "{exec}");
    assert_eq!(made.out("sudo -n id -u"), "0");
    assert_eq!(made.out("cat /etc/hostname"), made.id);
    assert_eq!(made.exec(&["bash", "-c", "true"]).code, 127);
    made.write("note.txt", "kept");

    // Side by side with the base image, which the names of the public API mean.
    let base = api.create(&json!({ "runtime": "node" }));
    assert_eq!(base.out("test -e /bin/busybox || echo debian"), "debian");
    let small = api.create(&json!({ "runtime": "small" }));
    assert_eq!(small.out("hello"), "hello from the image");

    // A later daemon finds the same.
    world.daemon.kill9();
    world.daemon.start_again();
    let api = world.daemon.api();
    let images = api.get("/v1/images").ok();
    let found = images.as_array().expect("a list").iter().find(|image| image["names"][0] == "docker.io/library/mini:1");
    assert_eq!(in_use(found.expect("the image")), 2, "{images}");
    for restart in [false, true] {
        if restart {
            world.ok(&["restart", "mini"]);
        }
        let command = json!({ "command": ["sh", "-c", "hello; cat note.txt"] });
        let exec = api.post(&made.path("/exec"), &command).ok();
        assert_eq!(exec["output"].as_str().map(str::trim_end), Some("hello from the image\nkept"), "{exec}");
    }

    // In use it stays, whoever asks.
    for args in [["image", "rm", "mini:1"], ["image", "rm", found.expect("the image")["id"].as_str().expect("an id")]] {
        let text = world.refused(&args);
        assert!(text.contains("boxes use it"), "{text}");
    }
    assert_eq!(world.ok(&["image", "prune", "--all"]), "");
    for gone in [&made, &small] {
        api.delete(&gone.path("")).ok();
    }
    let removed = world.ok(&["image", "rm", "mini:1"]);
    assert!(removed.contains("mini:1") && removed.contains("sha256:"), "{removed}");
    assert_eq!(fs::read_dir(world.images.join("layers")).expect("a directory").count(), 0);

    // What is not there is refused with the way to get it.
    for (runtime, advice) in [("mini:1", "image pull mini:1"), ("small", "image pull mini:1"), ("gone", "gone:1")] {
        let text = api.post("/v2/box", &json!({ "runtime": runtime })).error(400);
        assert!(text.contains(advice), "{text}");
    }
    let text = api.post("/v2/box", &json!({ "runtime": "../etc" })).error(400);
    assert!(text.contains("no name of an image"), "{text}");
    api.delete(&base.path("")).ok();
}

#[test]
fn only_the_operator_changes_images() {
    let world = World::new("");
    let api = world.daemon.api();
    let archive = mini(&world.scratch);
    for (method, path) in [
        ("POST", "/v1/images/import?source=/etc"),
        ("POST", "/v1/images/pull?name=mini%3A1"),
        ("POST", "/v1/images/mini%3A1/push"),
        ("POST", "/v1/images/prune"),
        ("DELETE", "/v1/images/mini%3A1"),
        ("POST", "/v1/images/mini%3A1/tag"),
        ("GET", "/v1/images/mini%3A1/export"),
    ] {
        let text = api.call(method, path, Some(&json!({}))).error(403);
        assert!(text.contains("operator"), "{text}");
        api.with_key(None).call(method, path, None).error(401);
    }
    api.with_key(None).get("/v1/images").error(401);

    // The archive in the body.
    let mut upload = Command::new(icebox_tests::daemon::binary("icebox"));
    upload.args(["image", "import", "-", "--name", "team/up:2", "--run-dir"]).arg(world.daemon.run_dir());
    let uploaded = upload.stdin(fs::File::open(&archive).expect("the archive")).output().expect("icebox starts");
    assert!(uploaded.status.success(), "{}", String::from_utf8_lossy(&uploaded.stderr));
    assert_eq!(String::from_utf8_lossy(&uploaded.stdout).trim_end(), "team/up:2");
    // An account sees it, and not where it came from.
    let shown = api.get("/v1/images/team%2Fup%3A2").ok();
    assert_eq!(shown["config"]["config"]["WorkingDir"], "/srv");
    assert!(shown["source"].is_null(), "{shown}");
    api.get("/v1/images/never%2Fwas").error(404);
    assert!(world.ok(&["image", "show", "team/up:2"]).contains("standard input"));

    // Out and in again.
    let out = world.scratch.join("out.tar");
    let out = out.to_str().expect("a path");
    world.ok(&["image", "export", "team/up:2", out]);
    world.ok(&["image", "tag", "team/up:2", "other:3"]);
    assert_eq!(world.ok(&["image", "rm", "team/up:2"]), "team/up:2");
    world.ok(&["image", "rm", "other:3"]);
    assert_eq!(world.ok(&["image", "import", out]), "team/up:2");
    assert_eq!(api.get("/v1/images/team%2Fup%3A2").ok()["id"], shown["id"]);

    // What is no image is refused, and leaves nothing.
    let hostile = world.scratch.join("hostile.tar");
    fs::write(&hostile, "This is no archive. ".repeat(100)).expect("written");
    let text = world.refused(&["image", "import", hostile.to_str().expect("a path")]);
    assert!(text.contains("hostile.tar") && text.contains("checksum"), "{text}");
    let text = world.refused(&["image", "import", "debootstrap:../x"]);
    assert!(text.contains("a suite is named like"), "{text}");
    assert_eq!(fs::read_dir(world.images.join("layers")).expect("a directory").count(), 1);
}

#[test]
fn an_image_of_many_layers_and_one_that_no_box_can_use() {
    let world = World::new("");
    let api = world.daemon.api();
    let root = world.scratch.join("root");
    busybox_root(&root);
    let mut layers = vec![tar_of(&root)];
    for number in 1..100 {
        let dir = world.scratch.join(format!("layer-{number}"));
        fs::create_dir_all(dir.join("etc/numbers")).expect("a directory");
        fs::write(dir.join(format!("etc/numbers/{number}")), "x").expect("written");
        fs::write(dir.join("etc/last"), number.to_string()).expect("written");
        layers.push(tar_of(&dir));
    }
    let archive = docker_archive(&world.scratch, "many:1", &layers);
    world.ok(&["image", "import", archive.to_str().expect("a path")]);
    let made = api.create(&json!({ "runtime": "many:1" }));
    assert_eq!(made.out("cat /etc/last; echo; ls /etc/numbers | grep -c ."), "99\n99");
    assert_eq!(made.out("sudo -n sh -c 'echo own > /etc/numbers/50'; cat /etc/numbers/50"), "own");
    made.delete();

    let bare = world.scratch.join("bare");
    fs::create_dir_all(bare.join("srv")).expect("a directory");
    world.ok(&["image", "import", bare.to_str().expect("a path"), "--name", "bare"]);
    let text = api.post("/v2/box", &json!({ "runtime": "bare" })).error(400);
    assert!(text.contains("it has no /bin/sh"), "{text}");
    world.ok(&["image", "rm", "bare"]);
}
