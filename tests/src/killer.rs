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
    /// Whether there were as many as asked for. If not, the process was killed when all was done.
    pub is_within: bool,
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
    watched(pid, at, watch_all, is_step, work)
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
    watched(pid, at, watch_all, |tid| is_step(tid) && is_called(tid, names), work)
}

fn watched(
    pid: i32,
    at: u32,
    watch_all: impl FnOnce() + Send,
    is_counted: impl Fn(Pid) -> bool + Send,
    work: impl FnOnce(),
) -> Killed {
    let process = Pid::from_raw(pid);
    let is_killed = AtomicBool::new(false);
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let is_killed = &is_killed;
        let watching = scope.spawn(move || {
            watch_all();
            ready.send(()).expect("somebody waits");
            count(at, is_counted, || {
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
        let steps = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Killed { steps, is_within: steps >= at }
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

/// Counts steps until all threads that are watched have ended. The kill comes from here, or from elsewhere.
fn count(at: u32, is_counted: impl Fn(Pid) -> bool, kill: impl Fn()) -> u32 {
    let mut steps = 0;
    loop {
        // Only what this thread watches: others wait for other children.
        let (tid, signal) = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::PtraceSyscall(tid)) => {
                if steps < at && is_counted(tid) {
                    steps += 1;
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
            Err(Errno::ECHILD) => return steps,
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

/// Whether the thread, which has stopped at a system call, is about to take a step.
fn is_step(tid: Pid) -> bool {
    if !ptrace::syscall_info(tid).is_ok_and(|info| info.op == ENTRY) {
        return false;
    }
    // The number of the call and its arguments. Nothing is there of one that was killed meanwhile.
    let call = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let mut words = call.split(' ');
    let Some(number) = words.next().and_then(|word| word.parse::<i64>().ok()) else { return false };
    let mut file = || {
        let number = words.next()?.strip_prefix("0x")?;
        fs::read_link(format!("/proc/{tid}/fd/{}", i32::from_str_radix(number, 16).ok()?)).ok()
    };
    match number {
        libc::SYS_sendto | libc::SYS_sendmsg => true,
        libc::SYS_write => file().is_some_and(|path| path.starts_with(SETTINGS)),
        _ => false,
    }
}
