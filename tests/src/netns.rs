//! Network namespaces of a test's own. They have no name and no mount: they exist as long as they are held, and
//! nothing is left when the test process has ended, however it did.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
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

    /// The namespace of a process; none if the process has ended. A process may end between any two calls, so it is
    /// opened at once, and what it was is learnt from the open file only.
    #[must_use]
    pub fn of_process(pid: i32) -> Option<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let gone = |e: &io::Error| match e.raw_os_error() {
            // No such process, or a process that has given up its namespaces on its way out.
            Some(libc::ENOENT | libc::ESRCH) => true,
            // It was reaped after its name was found.
            Some(libc::EACCES) => !Path::new("/proc").join(pid.to_string()).exists(),
            _ => false,
        };
        match File::open(&path) {
            Ok(file) => Some(Self { file: Arc::new(file) }),
            Err(e) if gone(&e) => None,
            Err(e) => panic!("open {path}: {e}"),
        }
    }

    /// What tells this namespace from others while it is held: device and inode of its file.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        let about = self.file.metadata().expect("the attributes of the namespace");
        (about.dev(), about.ino())
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Processes that end while they are looked at: each look finds a namespace or nothing, and never fails.
    #[test]
    fn a_process_that_ends_has_no_namespace() {
        let own = Netns::of_process(i32::try_from(std::process::id()).expect("a pid")).expect("this process runs");
        for _ in 0..200 {
            let mut child = Command::new("/bin/true").stdout(Stdio::null()).spawn().expect("start a process");
            let pid = i32::try_from(child.id()).expect("a pid");
            let looking = thread::spawn(move || {
                while let Some(found) = Netns::of_process(pid) {
                    assert_eq!(found.identity(), own_identity());
                }
            });
            child.wait().expect("wait for the process");
            looking.join().expect("no look failed");
            assert!(Netns::of_process(pid).is_none(), "it has ended");
        }
        assert_eq!(own.identity(), own_identity());
    }

    fn own_identity() -> (u64, u64) {
        let about = std::fs::metadata("/proc/self/ns/net").expect("our namespace");
        (about.dev(), about.ino())
    }
}
