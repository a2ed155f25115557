//! Network namespaces, and threads that work in them.
//!
//! Owns: naming and opening namespaces. Only dedicated threads ever enter one. A thread's namespace is invisible to the
//! code that runs on it, so an async worker that had entered one would run unrelated tasks there; a dedicated thread
//! stays in its namespace to its end, but for a visit of another to open something there ([`Namespace::visit`]).
//!
//! Leaves out: the work done in them.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::CloneFlags;
use rustix::process::{Pid, PidfdFlags};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Cause, Error};

/// The directory of `ip netns add NAME`.
const NAMED_DIR: &str = "/run/netns";
/// File system type of namespaces (`NSFS_MAGIC`).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Most queued jobs of a worker.
const JOBS_MAX: usize = 1024;

/// An open network namespace. The descriptor keeps it alive.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
    /// For messages only.
    name: String,
}

impl Namespace {
    /// The namespace of the calling thread.
    pub fn own() -> Result<Self, Error> {
        Self::open_path(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a namespace whose loopback interface is down. It ends with its last user.
    pub(super) fn make() -> Result<Self, Error> {
        let make = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|e| Error::new("make", "a network namespace", e))?;
            Self::own()
        };
        let thread = thread::Builder::new().name("netns".into()).spawn(make);
        let thread = thread.map_err(|e| Error::new("start thread for", "a network namespace", e))?;
        thread.join().unwrap_or_else(|_| Err(Error::new("make", "a network namespace", Cause::WorkerEnded)))
    }

    /// Opens the namespace that `--netns` names: a path (with a slash), or a name as `ip netns` uses it.
    pub fn open(path_or_name: &str) -> Result<Self, Error> {
        if path_or_name.contains('/') {
            return Self::open_path(Path::new(path_or_name));
        }
        if path_or_name.is_empty() || path_or_name.starts_with('.') {
            let cause = Cause::Invalid("a network namespace is a path or a name that `ip netns` lists");
            return Err(Error::new("open network namespace", path_or_name, cause));
        }
        Self::open_path(&Path::new(NAMED_DIR).join(path_or_name))
    }

    /// Opens the namespace of a process. The process may end at any time and its pid be reused. So a pidfd holds it:
    /// only if it still runs after the namespace was opened, the namespace was its own.
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        let failed = |cause: Cause| Error::new("open network namespace of process", pid.to_string(), cause);
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or_else(|| failed(Cause::Invalid("there is no such process")))?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let namespace = Self::open_path(&PathBuf::from(format!("/proc/{pid}/ns/net")))?;
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut poll, Some(&at_once)).map_err(|e| failed(e.into()))? > 0 {
            return Err(failed(Cause::Invalid("the process has ended")));
        }
        Ok(namespace)
    }

    fn open_path(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let failed = |cause: Cause| Error::new("open network namespace", name.clone(), cause);
        let file = File::open(path).map_err(|e| failed(e.into()))?;
        let kind = rustix::fs::fstatfs(&file).map_err(|e| failed(e.into()))?;
        if kind.f_type as i64 != NSFS_MAGIC {
            return Err(failed(Cause::Invalid("this is not a namespace")));
        }
        Ok(Self { file: Arc::new(file), name })
    }

    /// Its descriptor, for a netlink attribute.
    #[must_use]
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// True if both are the same namespace.
    pub fn is(&self, other: &Self) -> Result<bool, Error> {
        let id = |n: &Self| {
            let stat = rustix::fs::fstat(&n.file).map_err(|e| Error::new("compare namespace", n.name.clone(), e))?;
            Ok::<_, Error>((stat.st_dev, stat.st_ino))
        };
        Ok(id(self)? == id(other)?)
    }

    /// Moves the calling thread into the namespace. Only for threads that are made for it and end with it.
    pub(super) fn enter(&self) -> Result<(), Error> {
        nix::sched::setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::new("enter network namespace", self.name.clone(), e))
    }

    /// Does `work` in another namespace on this thread, whose own namespace is `self`. Only for threads that are made for
    /// `self` and end with it, and for work that opens something and returns: a thread per box is dear.
    pub(super) fn visit<R>(&self, other: &Self, work: impl FnOnce() -> R) -> Result<R, Error> {
        other.enter()?;
        let done = work();
        // A thread that stayed in the namespace of a box would act on the box's side from then on.
        self.enter().unwrap_or_else(|error| panic!("this thread cannot return to its namespace: {}", error.chain()));
        Ok(done)
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> Result<R, Error> + Send) -> Result<R, Error> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                self.enter()?;
                work()
            });
            let thread = thread.map_err(|e| Error::new("start thread for", self.name.clone(), e))?;
            thread.join().unwrap_or_else(|_| Err(Error::new("work in", self.name.clone(), Cause::WorkerEnded)))
        })
    }
}

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A job, and the receiver of its result.
fn answered<S: 'static, R: Send + 'static>(
    work: impl FnOnce(&mut S) -> R + Send + 'static,
) -> (Job<S>, oneshot::Receiver<R>) {
    let (answer, is_done) = oneshot::channel();
    let job = move |state: &mut S| {
        let _ = answer.send(work(state));
    };
    (Box::new(job), is_done)
}

/// A thread that has entered a namespace and runs jobs there one after the other, with its own state. It ends when the
/// worker is dropped and all jobs are done.
#[derive(Debug)]
pub(crate) struct Worker<S> {
    jobs: mpsc::Sender<Job<S>>,
    name: &'static str,
}

/// A handle that queues jobs while the worker exists.
#[derive(Debug)]
pub(super) struct Remote<S> {
    jobs: mpsc::WeakSender<Job<S>>,
}

impl<S: 'static> Remote<S> {
    /// Queues `work`. False if the worker has ended or its queue is full.
    pub(super) fn post(&self, work: impl FnOnce(&mut S) + Send + 'static) -> bool {
        self.jobs.upgrade().is_some_and(|jobs| jobs.try_send(Box::new(work)).is_ok())
    }

    /// Queues `work`, and waits for it. `None` if the worker has ended.
    pub(super) async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> Result<R, Error> + Send + 'static,
    ) -> Option<Result<R, Error>> {
        let (job, is_done) = answered(work);
        self.jobs.upgrade()?.send(job).await.ok()?;
        is_done.await.ok()
    }
}

impl<S: 'static> Worker<S> {
    /// Starts the thread `name`, and returns when `start` has made its state there.
    pub(crate) async fn start(
        name: &'static str,
        namespace: Namespace,
        start: impl FnOnce() -> Result<S, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (jobs, mut queue) = mpsc::channel::<Job<S>>(JOBS_MAX);
        let (ready, is_ready) = oneshot::channel();
        let body = move || {
            let mut state = match namespace.enter().and_then(|()| start()) {
                Ok(state) => {
                    let _ = ready.send(Ok(()));
                    state
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            while let Some(job) = queue.blocking_recv() {
                job(&mut state);
            }
        };
        thread::Builder::new().name(name.into()).spawn(body).map_err(|e| Error::new("start thread", name, e))?;
        is_ready.await.map_err(|_| Error::new("start", name, Cause::WorkerEnded))??;
        Ok(Self { jobs, name })
    }

    /// A handle that does not keep the worker alive.
    pub(super) fn remote(&self) -> Remote<S> {
        Remote { jobs: self.jobs.downgrade() }
    }

    /// Queues `work`, and waits for it. Queued work completes even if the caller goes away.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Error> {
        let ended = || Error::new("ask", self.name, Cause::WorkerEnded);
        let (job, is_done) = answered(work);
        self.jobs.send(job).await.map_err(|_| ended())?;
        is_done.await.map_err(|_| ended())?
    }
}
