//! An init outside a box: a child of the test, root of the machine, no namespaces, no cgroups of its own.
#![allow(dead_code, unreachable_pub)]

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use icebox_shim::handle::{BoxHandle, ExecRequest, Exit, ExitStatus, Run, RunEvent};

/// Time limit of every wait; only a hang exceeds it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Init {
    pub dir: tempfile::TempDir,
    pub handle: BoxHandle,
    child: Child,
    next_run: std::sync::atomic::AtomicU64,
}

/// An inheritable descriptor must not reach the children of tests that run beside this one.
static SPAWN: Mutex<()> = Mutex::new(());

impl Init {
    pub fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test starts programs as other users: run it as root");
        let dir = tempfile::Builder::new().prefix("icebox-init-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        std::os::unix::fs::chown(&work, Some(1000), Some(1000)).unwrap();
        let guard = SPAWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let listener = UnixListener::bind(dir.path().join("ctl.sock")).unwrap();
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&listener.as_fd());
        let child = Command::new(env!("CARGO_BIN_EXE_icebox-init"))
            .args(["--test-not-pid1", "--ctl-fd", &number.to_string(), "--test-sudo-socket"])
            .arg(dir.path().join("sudo.sock"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        drop(listener);
        drop(guard);
        let handle = BoxHandle::open_without_cgroup(dir.path());
        Self { dir, handle, child, next_run: 1.into() }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// A folder that the box's user owns.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn path(&self, name: &str) -> String {
        self.work().join(name).to_str().unwrap().to_owned()
    }

    pub fn request(&self, argv: &[&str]) -> ExecRequest {
        ExecRequest {
            run: self.next_run.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            cwd: "/".to_owned(),
            env: Vec::new(),
            user: None,
            stdin: false,
            tty: None,
            kill_on_disconnect: false,
            timeout_ms: None,
            label: "label".to_owned(),
        }
    }

    pub fn shell(&self, script: &str) -> ExecRequest {
        self.request(&["/bin/sh", "-c", script])
    }

    pub async fn run(&self, script: &str) -> Output {
        self.finish(self.shell(script)).await
    }

    pub async fn finish(&self, request: ExecRequest) -> Output {
        let run = self.handle.exec(request).await.unwrap_or_else(|e| panic!("{}", e.report()));
        collect(run).await
    }

    /// Memory of the init process alone, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let line = text.lines().find(|l| l.starts_with("Rss:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Children of the init, with their states.
    pub fn children(&self) -> Vec<(i32, char)> {
        processes()
            .into_iter()
            .filter(|(_, parent, _)| *parent == self.pid())
            .map(|(pid, _, state)| (pid, state))
            .collect()
    }
}

impl Drop for Init {
    /// Kills all processes of a test: first the descendants (which the init would inherit), then the init.
    fn drop(&mut self) {
        let mut family = vec![self.pid()];
        let mut next = 0;
        let all = processes();
        while let Some(parent) = family.get(next).copied() {
            next += 1;
            family.extend(all.iter().filter(|(_, p, _)| *p == parent).map(|(pid, _, _)| *pid));
        }
        let _ = self.child.kill();
        for pid in family.into_iter().skip(1) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

/// pid, parent, state of every process.
fn processes() -> Vec<(i32, i32, char)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next().unwrap().chars().next().unwrap();
        let parent = fields.next().unwrap().parse().unwrap();
        all.push((pid, parent, state));
    }
    all
}

#[derive(Debug, Default)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub dropped: u64,
    pub exit: Option<Exit>,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    pub fn code(&self) -> i32 {
        self.exit.expect("no exit").code()
    }

    pub fn status(&self) -> ExitStatus {
        self.exit.expect("no exit").status
    }

    /// Takes an event; true for the last one.
    pub fn take(&mut self, event: RunEvent) -> bool {
        match event {
            RunEvent::Stdout(bytes) => self.stdout.extend_from_slice(&bytes),
            RunEvent::Stderr(bytes) => self.stderr.extend_from_slice(&bytes),
            RunEvent::Dropped(bytes) => self.dropped += bytes,
            RunEvent::Exit(exit) => {
                assert!(self.exit.replace(exit).is_none(), "a second exit");
                return true;
            }
        }
        false
    }
}

/// Collects all events of a run, to its end.
pub async fn collect(run: Run) -> Output {
    let (mut events, _input) = run.split();
    let mut output = Output::default();
    let reading = async {
        while let Some(event) = events.next().await.unwrap_or_else(|e| panic!("{}", e.report())) {
            output.take(event);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the run hangs");
    assert!(output.exit.is_some(), "no exit");
    output
}

/// Polls until a condition holds.
pub async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !so() {
        assert!(std::time::Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}
