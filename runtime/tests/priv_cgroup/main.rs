//! Cgroups against the kernel of this machine. Needs root. Every test works in a cgroup of its own, which is removed
//! with all that is in it, also after a panic.

mod priv_life;
mod priv_limits;
mod priv_memory;
mod priv_tree;

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use icebox_runtime::cgroup::{
    Access, Backend, Cgroup, CgroupPath, Controller, DeviceKind, DeviceRule, ErrorKind, Hierarchy, Layout, Limits,
    Manager, Unenforced,
};
use rustix::fs::{Mode, OFlags};

/// A passing test never reaches it; long, since the machine may be emulated.
const DEADLINE: Duration = Duration::from_secs(60);
const MIB: i64 = 1 << 20;
const SLEEPER: &str = "exec sleep 1000";
const SPINNER: &str = "while :; do :; done";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A cgroup for one test, and the processes started in it.
struct Top {
    h: Hierarchy,
    cgroup: Cgroup,
    children: Vec<Child>,
}

impl Top {
    fn new(v1: &[Controller]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes cgroups");
        let h = Hierarchy::probe().expect("probe");
        let name = format!("icebox-test.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = CgroupPath::new(name).expect("path");
        let cgroup = Manager::Cgroupfs.create(&h, &path, v1).expect("create");
        Self { h, cgroup, children: Vec::new() }
    }

    fn path(&self, name: &str) -> CgroupPath {
        self.cgroup.path().join(name).expect("path")
    }

    /// Starts a shell, puts it into `cgroup` in v2 and in the given v1 hierarchies, and only then lets it run.
    fn spawn(&mut self, cgroup: &Cgroup, v1: &[Controller], script: &str) -> usize {
        let script = format!("read go; {script}");
        let mut child = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().expect("spawn");
        let pid = child.id().to_string();
        let mut stdin = child.stdin.take().expect("stdin");
        self.children.push(child);
        for c in v1 {
            if let Some(file) = self.v1_file(cgroup, *c, "cgroup.procs") {
                std::fs::write(file, &pid).expect("join v1");
            }
        }
        write_unified(cgroup, "cgroup.procs", &pid);
        stdin.write_all(b"go\n").expect("go");
        self.children.len() - 1
    }

    fn v1_file(&self, cgroup: &Cgroup, c: Controller, file: &str) -> Option<PathBuf> {
        match self.h.backend(c) {
            Backend::V1(mount) => Some(mount.join(cgroup.path().as_str()).join(file)),
            _ => None,
        }
    }

    /// The content of a v1 or v2 control file, by where the controller is.
    fn read(&self, c: Controller, v1: &str, v2: &str) -> String {
        let text = match self.v1_file(&self.cgroup, c, v1) {
            Some(file) => std::fs::read_to_string(file).expect("read v1"),
            None => read_unified(&self.cgroup, v2),
        };
        text.trim().to_owned()
    }

    fn wait(&mut self, child: usize) -> std::process::ExitStatus {
        let mut status = None;
        eventually("the child exits", || {
            status = self.children[child].try_wait().expect("wait");
            status.is_some()
        });
        status.expect("exited")
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.cgroup.kill();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let removed = self.cgroup.remove(DEADLINE);
        if !std::thread::panicking() {
            removed.expect("remove");
            assert!(Manager::Cgroupfs.open(&self.h, self.cgroup.path(), &[]).expect("open").is_none());
        }
    }
}

fn unified_file(cgroup: &Cgroup, file: &str, flags: OFlags) -> std::fs::File {
    let dir = cgroup.unified_fd().expect("these tests need cgroup v2 mounted");
    rustix::fs::openat(dir, file, flags | OFlags::CLOEXEC, Mode::empty()).expect(file).into()
}

fn write_unified(cgroup: &Cgroup, file: &str, value: &str) {
    unified_file(cgroup, file, OFlags::WRONLY).write_all(value.as_bytes()).expect(file);
}

fn read_unified(cgroup: &Cgroup, file: &str) -> String {
    std::io::read_to_string(unified_file(cgroup, file, OFlags::RDONLY)).expect(file)
}

/// Polls until `done` or a deadline.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

fn limits_of(top: &Top, limits: &Limits) {
    let warnings = top.cgroup.apply(limits, Unenforced::Refuse).expect("apply");
    assert_eq!(warnings, []);
}

/// Says that a test has nothing to prove on this machine's layout; the other layout's machines run it.
fn not_here(why: &str) {
    eprintln!("nothing to test with this cgroup layout: {why}");
}
