//! Network namespaces of a test's own. They have no name and no mount: they exist as long as they are held, and
//! nothing is left when the test process has ended, however it did.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace.
#[derive(Debug, Clone)]
pub struct Netns {
    file: Arc<File>,
}

impl Netns {
    /// A new one, with nothing but a loopback interface that is down.
    #[must_use]
    pub fn new() -> Self {
        // The namespace of a dedicated thread: the machine's own is never left by the test itself.
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
            File::open("/proc/thread-self/ns/net").expect("open the namespace")
        };
        let file = thread::spawn(make).join().expect("the thread that makes a namespace");
        Self { file: Arc::new(file) }
    }

    /// One that is there already, by a path of its own (`/proc/PID/ns/net`).
    #[must_use]
    pub fn open(path: &str) -> Self {
        Self { file: Arc::new(File::open(path).unwrap_or_else(|e| panic!("open {path}: {e}"))) }
    }

    /// A path by which another process can open it while this one lives.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Its descriptor, for netlink.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Does `work` there, on a thread of its own.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let enter_and_work = || {
            setns(&*self.file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            work()
        };
        thread::scope(|scope| scope.spawn(enter_and_work).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}
