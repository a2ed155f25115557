//! Bundles for `icerun`, made as a person makes them: `runc spec` and a busybox root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::daemon::{bin_dir, binary, scratch_dir, unique};
use crate::machine::{Cgroups, require_root};

/// Programs that the busybox root offers.
const APPLETS: [&str; 28] = [
    "sh", "true", "false", "sleep", "cat", "ls", "echo", "ps", "id", "kill", "mkdir", "rm", "touch", "env", "stat",
    "mount", "umount", "head", "yes", "dd", "test", "hostname", "grep", "readlink", "seq", "wc", "printf", "date",
];

/// A bundle directory with a state directory beside it. Removed on drop, and with it the containers and their cgroups.
#[derive(Debug)]
pub struct Bundle {
    home: PathBuf,
    cgroup: String,
}

/// What a command printed, as text.
#[derive(Debug)]
pub struct Ran {
    /// Exit code, -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// The output of a command that succeeded, trimmed.
    pub fn ok(&self) -> String {
        assert!(self.code == 0, "exit {}: {}{}", self.code, self.stdout, self.stderr);
        self.stdout.trim().to_owned()
    }

    /// The error text of a command that failed: one line or more on standard error, no panic text.
    pub fn failed(&self) -> String {
        assert!(self.code != 0, "should have failed, but printed: {}", self.stdout);
        assert!(!self.stderr.trim().is_empty(), "exit {} without a word on stderr", self.code);
        assert!(!self.stderr.contains("panicked"), "a panic instead of an error: {}", self.stderr);
        self.stderr.clone()
    }
}

/// What `runc spec` writes, asked for once: runc takes a second to start where the processor is software.
fn spec_of_runc(dir: &Path) -> &'static str {
    static SPEC: OnceLock<String> = OnceLock::new();
    SPEC.get_or_init(|| {
        let made = Command::new("runc").arg("spec").current_dir(dir).output();
        let made = made.expect("runc is installed (cargo xtask test installs it)");
        assert!(made.status.success(), "runc spec: {made:?}");
        fs::read_to_string(dir.join("config.json")).expect("read config.json")
    })
}

impl Bundle {
    /// Makes a bundle by `runc spec`, without a terminal, that runs `args`.
    pub fn new(args: &[&str]) -> Self {
        require_root();
        let name = unique("icebox-oci");
        let home = scratch_dir().join(&name);
        let bundle = Self { home, cgroup: name };
        busybox_root(&bundle.dir().join("rootfs"));
        fs::write(bundle.dir().join("config.json"), spec_of_runc(&bundle.dir())).expect("write config.json");
        bundle.edit(|spec| {
            spec["process"]["terminal"] = json!(false);
            spec["process"]["args"] = json!(args);
            spec["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.cgroup));
        });
        bundle
    }

    /// The bundle directory.
    pub fn dir(&self) -> PathBuf {
        self.home.join("bundle")
    }

    /// The state directory of `icerun`.
    pub fn state_dir(&self) -> PathBuf {
        self.home.join("state")
    }

    /// The cgroup of the container, relative to the mount points.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// What `icerun state` says of a container.
    pub fn state(&self, id: &str) -> Value {
        let text = self.icerun(&["state", id]).ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("state is not JSON ({e}): {text}"))
    }

    /// Changes `config.json`.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let path = self.dir().join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path).expect("read config.json")).expect("JSON");
        change(&mut spec);
        fs::write(&path, spec.to_string()).expect("write config.json");
    }

    /// `icerun --root <state> ARGS`, to its end, output collected.
    pub fn icerun(&self, args: &[&str]) -> Ran {
        self.icerun_command(args).output().expect("start icerun").into()
    }

    /// As [`Bundle::icerun`], but the output goes to a file: a container that stays alive keeps its standard output
    /// open, and a pipe would not end.
    pub fn icerun_detached(&self, args: &[&str]) -> Ran {
        let out = self.home.join(unique("out"));
        let err = self.home.join(unique("err"));
        let mut command = self.icerun_command(args);
        command.stdin(std::process::Stdio::null());
        command.stdout(fs::File::create(&out).expect("create")).stderr(fs::File::create(&err).expect("create"));
        let status = command.status().expect("start icerun");
        Ran {
            code: status.code().unwrap_or(-1),
            stdout: fs::read_to_string(out).expect("read"),
            stderr: fs::read_to_string(err).expect("read"),
        }
    }

    /// The command line of `icerun`, not started.
    pub fn icerun_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("icerun"));
        command.arg("--root").arg(self.state_dir()).args(args).current_dir(self.dir());
        command
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if !bin_dir().join("icerun").is_file() {
            return;
        }
        let listed = self.icerun(&["list", "--quiet"]);
        for id in listed.stdout.split_whitespace() {
            let _ = self.icerun(&["delete", "--force", id]);
        }
        Cgroups::probe().destroy(&self.cgroup);
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// Fills a directory with a static busybox and the folders a container needs.
pub fn busybox_root(root: &Path) {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "home"] {
        fs::create_dir_all(root.join(dir)).expect("make the root");
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|p| Path::new(p).is_file());
    let busybox = busybox.expect("busybox-static is installed (cargo xtask test installs it)");
    fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("write passwd");
    fs::write(root.join("etc/group"), "root:x:0:\n").expect("write group");
}
