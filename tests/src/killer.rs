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

use std::fs;
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
/// to happen; otherwise after `work`. When this returns, the process is dead, and not reaped.
pub fn kill_at(pid: i32, thread_name: &str, at: u32, work: impl FnOnce()) -> Killed {
    let process = Pid::from_raw(pid);
    let tids = threads(pid, thread_name);
    assert!(!tids.is_empty(), "{pid} has no thread {thread_name:?}");
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let watching = scope.spawn(move || {
            for tid in &tids {
                watch(*tid);
            }
            ready.send(()).expect("somebody waits");
            count(process, at)
        });
        // If it panicked, that is told below.
        let steps = if is_ready.recv().is_ok() {
            work();
            kill(process, Signal::SIGKILL).expect("kill");
            watching.join()
        } else {
            watching.join()
        };
        let steps = steps.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Killed { steps, is_within: steps >= at }
    })
}

/// The threads of a process that are called so.
fn threads(pid: i32, name: &str) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads of the process");
    let is_called =
        |tid: &i32| fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).is_ok_and(|n| n.trim() == name);
    let tids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok());
    tids.filter(is_called).map(Pid::from_raw).collect()
}

/// From now on the thread stops at each system call, and so do the threads that it starts. With this thread dies its
/// process.
fn watch(tid: Pid) {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(tid, options).expect("trace the thread");
    ptrace::interrupt(tid).expect("stop the thread");
    waitpid(tid, Some(WaitPidFlag::__WALL)).expect("the thread stops");
    ptrace::syscall(tid, None).expect("let the thread go on");
}

/// Counts steps until all threads that are watched have ended. The kill comes from here, or from elsewhere.
fn count(process: Pid, at: u32) -> u32 {
    let mut steps = 0;
    loop {
        // Only what this thread watches: others wait for other children.
        let (tid, signal) = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::PtraceSyscall(tid)) => {
                steps += u32::from(steps < at && is_step(tid));
                if steps == at {
                    // It has not begun, and will not.
                    kill(process, Signal::SIGKILL).expect("kill");
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
