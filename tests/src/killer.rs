//! Kills a process exactly between two of its steps with the network.
//!
//! A step is a netlink message that is sent, or a setting below `/proc/sys` that is written, by one thread of the process
//! and the threads which that one starts. They are counted together, in the order in which they happen; when the one asked
//! for is about to happen, the process is killed instead, and the kernel does not do it any more.
//!
//! `strace` can do nearly that, but counts for each thread by itself: what a short-lived thread does in the namespace of a
//! box would not be reached.
//!
//! Leaves out: what the process is doing, and what is true afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `PTRACE_SYSCALL_INFO_ENTRY`
const ENTRY: u8 = 1;
const SETTINGS: &str = "/proc/sys/";

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Killed {
    /// Steps that were begun, that of the kill among them.
    pub steps: u32,
    /// How many of them were settings below `/proc/sys`.
    pub settings: u32,
    /// Whether there were as many as asked for. If not, the process was killed when all was done.
    pub is_within: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A message is sent.
    Message,
    /// A setting below `/proc/sys` is written.
    Setting,
}

/// Has `work` done while the threads of `pid` that have this name are watched, and kills it when their step `at` is about
/// to happen; otherwise after `work`. When this returns, the process is dead.
pub fn kill_at(pid: i32, thread_name: &str, at: u32, work: impl FnOnce()) -> Killed {
    let watch_all = || {
        let mut tids = threads(pid);
        // A thread that the one has just started still has its name, and may be gone before it is watched.
        tids.retain(|tid| is_called(*tid, &[thread_name]) && watch(*tid));
        assert!(!tids.is_empty(), "{pid} has no thread {thread_name:?}");
    };
    watched(pid, at, watch_all, step, work)
}

/// The same for a process that has just begun: all of its threads are watched, and the steps of those that have one of
/// these names are counted.
pub fn kill_at_start(pid: i32, names: &[&str], at: u32, work: impl FnOnce()) -> Killed {
    let watch_all = || {
        let mut seen = BTreeSet::new();
        // Those that a watched thread starts are watched already; so this ends.
        while let Some(tid) = threads(pid).into_iter().find(|tid| !seen.contains(tid)) {
            seen.insert(tid);
            watch(tid);
        }
    };
    watched(pid, at, watch_all, |tid| step(tid).filter(|_| is_called(tid, names)), work)
}

fn watched(
    pid: i32,
    at: u32,
    watch_all: impl FnOnce() + Send,
    counted: impl Fn(Pid) -> Option<Step> + Send,
    work: impl FnOnce(),
) -> Killed {
    let process = Pid::from_raw(pid);
    let is_killed = AtomicBool::new(false);
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let is_killed = &is_killed;
        let watching = scope.spawn(move || {
            watch_all();
            ready.send(()).expect("the receiver waits");
            count(at, counted, || {
                is_killed.store(true, Ordering::Release);
                kill(process, Signal::SIGKILL).expect("kill");
            })
        });
        // If it panicked, that is told below.
        if is_ready.recv().is_ok() {
            work();
            // Its number may be another's when it is dead, and its first thread reaped here.
            if !is_killed.load(Ordering::Acquire) {
                kill(process, Signal::SIGKILL).expect("kill");
            }
        }
        let (steps, settings) = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Killed { steps, settings, is_within: steps >= at }
    })
}

/// The threads of a process; none if it is gone.
fn threads(pid: i32) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).map(Pid::from_raw).collect()
}

fn is_called(tid: Pid, names: &[&str]) -> bool {
    fs::read_to_string(format!("/proc/{tid}/comm")).is_ok_and(|name| names.contains(&name.trim()))
}

/// From now on the thread stops at each system call, and so do the threads that it starts. With this thread dies its
/// process. False for a thread that is gone, or watched.
fn watch(tid: Pid) -> bool {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    match ptrace::seize(tid, options) {
        Err(Errno::ESRCH | Errno::EPERM) => return false,
        other => other.expect("trace the thread"),
    }
    // It may end at any moment; then it is reaped here, and is not watched.
    match ptrace::interrupt(tid) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("stop {tid}: {e}"),
    }
    match waitpid(tid, Some(WaitPidFlag::__WALL)) {
        Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => return false,
        other => other.expect("the thread stops"),
    };
    match ptrace::syscall(tid, None) {
        Ok(()) => true,
        Err(Errno::ESRCH) => false,
        Err(e) => panic!("let {tid} go on: {e}"),
    }
}

/// Counts steps, and settings among them, until all threads that are watched have ended. The kill comes from here, or
/// from elsewhere.
fn count(at: u32, counted: impl Fn(Pid) -> Option<Step>, kill: impl Fn()) -> (u32, u32) {
    let (mut steps, mut settings) = (0, 0);
    loop {
        // Only what this thread watches: others wait for other children.
        let (tid, signal) = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::PtraceSyscall(tid)) => {
                if steps < at
                    && let Some(step) = counted(tid)
                {
                    steps += 1;
                    settings += u32::from(step == Step::Setting);
                    if steps == at {
                        // It has not begun, and will not.
                        kill();
                    }
                }
                (tid, None)
            }
            Ok(WaitStatus::Stopped(tid, signal)) => (tid, Some(signal)),
            Ok(WaitStatus::PtraceEvent(tid, ..)) => (tid, None),
            Ok(_) => continue,
            Err(Errno::ECHILD) => return (steps, settings),
            Err(Errno::EINTR) => continue,
            Err(e) => panic!("wait for the threads: {e}"),
        };
        match ptrace::syscall(tid, signal) {
            // Killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => panic!("let {tid} go on: {e}"),
        }
    }
}

/// The step that the thread, which has stopped at a system call, is about to take; none if the call is no step.
fn step(tid: Pid) -> Option<Step> {
    if !ptrace::syscall_info(tid).is_ok_and(|info| info.op == ENTRY) {
        return None;
    }
    // The number of the call and its arguments. Nothing is there of one that was killed meanwhile.
    let call = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let mut words = call.split(' ');
    let number = words.next()?.parse::<i64>().ok()?;
    let mut file = || {
        let number = words.next()?.strip_prefix("0x")?;
        fs::read_link(format!("/proc/{tid}/fd/{}", i32::from_str_radix(number, 16).ok()?)).ok()
    };
    match number {
        libc::SYS_sendto | libc::SYS_sendmsg => Some(Step::Message),
        libc::SYS_write => file().filter(|path| path.starts_with(SETTINGS)).map(|_| Step::Setting),
        _ => None,
    }
}
