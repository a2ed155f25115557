//! Views of the cgroup file systems, because not every runtime accepts every layout.
//!
//! crun refuses the hybrid layout when cgroup2 has controllers of its own. A view is a thread with its own mount namespace;
//! what it starts is started in that namespace. All candidates are started by such a thread, so that none has an advantage.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::context::failed;
use crate::error::Result;

/// Which cgroup hierarchies a candidate sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As the machine has them.
    Machine,
    /// Without cgroup2 where v1 is mounted beside it.
    WithoutV2,
}

/// One command, and where its measurement goes.
struct Job {
    argv: Vec<String>,
    answer: Sender<Result<Ran, String>>,
}

/// A command that has ended.
#[derive(Debug, Clone)]
pub(super) struct Ran {
    /// From before the start until it was reaped.
    pub(super) wall: Duration,
    /// Exit code 0.
    pub(super) success: bool,
    /// Its exit code or signal, in words.
    pub(super) status: String,
}

/// A thread in a mount namespace.
#[derive(Debug, Clone)]
pub(super) struct View {
    jobs: Sender<Job>,
}

impl View {
    pub(super) fn new(kind: Kind) -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (ready, made) = channel();
        std::thread::Builder::new()
            .name("view".into())
            .spawn(move || {
                let entered = enter(kind);
                let go_on = entered.is_ok();
                let _ = ready.send(entered);
                if go_on {
                    serve(&todo);
                }
            })
            .map_err(|e| failed("start", "a thread", e))?;
        match made.recv() {
            Ok(Ok(())) => Ok(Self { jobs }),
            Ok(Err(reason)) => Err(failed("make", "a view of the cgroups", reason)),
            Err(_) => Err(failed("make", "a view of the cgroups", "its thread ended")),
        }
    }

    /// Runs a command to its end, without input; its output goes nowhere.
    pub(super) fn run(&self, argv: &[String]) -> Result<Ran> {
        let (answer, result) = channel();
        let name = argv.join(" ");
        let job = Job { argv: argv.to_vec(), answer };
        self.jobs.send(job).map_err(|_| failed("run", &name, "the view has ended"))?;
        let ran = result.recv().map_err(|_| failed("run", &name, "the view has ended"))?;
        ran.map_err(|reason| failed("run", &name, reason))
    }

    /// As [`View::run`], but a failure of the command is an error.
    pub(super) fn must(&self, argv: &[String]) -> Result<Duration> {
        let ran = self.run(argv)?;
        if ran.success { Ok(ran.wall) } else { Err(failed("run", argv.join(" "), ran.status)) }
    }
}

/// Gives the calling thread a mount namespace of its own, as `kind` says.
fn enter(kind: Kind) -> Result<(), String> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).map_err(|e| format!("unshare: {e}"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|e| format!("make / private: {e}"))?;
    if kind == Kind::WithoutV2 {
        for point in hybrid_points() {
            umount2(&point, MntFlags::MNT_DETACH).map_err(|e| format!("unmount {}: {e}", point.display()))?;
        }
    }
    Ok(())
}

/// Mount points of cgroup2 on a machine that has v1 hierarchies too.
pub(super) fn hybrid_points() -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let points = |kind: &str| -> Vec<PathBuf> {
        let lines = text.lines().filter(|l| l.contains(&format!(" - {kind} ")));
        lines.filter_map(|l| l.split(' ').nth(4).map(PathBuf::from)).collect()
    };
    if points("cgroup").is_empty() { Vec::new() } else { points("cgroup2") }
}

fn serve(todo: &Receiver<Job>) {
    while let Ok(job) = todo.recv() {
        let _ = job.answer.send(measure(&job.argv));
    }
}

fn measure(argv: &[String]) -> Result<Ran, String> {
    let (program, args) = argv.split_first().ok_or("an empty command")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().map_err(|e| format!("start {program}: {e}"))?;
    Ok(Ran { wall: start.elapsed(), success: status.success(), status: status.to_string() })
}
