//! Making, opening, listing and entering cgroups.

use std::ops::Deref;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, OFlags, Uid};
use rustix::io::Errno;

use super::controller::{Controller, controllers_of, same};
use super::error::{Error, ErrorKind, Result};
use super::file::Dir;
use super::hierarchy::{Backend, Hierarchy};
use super::procs::procs_below;
use super::{Cgroup, CgroupPath, Refusal, V1Dir};

/// Handed down on v2 by every ancestor when a cgroup is made. The others cost time and memory in every cgroup and are
/// handed down when a limit asks for them.
const ALWAYS: [Controller; 3] = [Controller::Cpu, Controller::Memory, Controller::Pids];

impl Cgroup {
    /// [`Manager::create`](super::Manager::create) by this process.
    ///
    /// On v2 the ancestors are told to hand down cpu, memory and pids; what they will not hand down shows as
    /// `Unenforced` in [`Cgroup::apply`].
    pub(super) fn create(h: &Hierarchy, path: &CgroupPath, v1: &[Controller]) -> Result<Self> {
        let refused = enable(h, path, &ALWAYS)?;
        let mut made = Made::new(h, path.clone(), refused);
        let (parents, name) = path.split_last();
        let built = (|| {
            for mount in wanted(h, v1) {
                let parent = make_parents(&h.v1_mounts()[mount].root, parents, |d| init_v1(h, mount, d))?;
                made.add_v1(mount, Parent::Opened(parent), name)?;
            }
            if let Some(root) = h.unified() {
                let parent = make_parents(root, parents, |_| Ok(()))?;
                made.add_unified(Parent::Opened(parent), name)?;
            }
            made.cgroup.check_unused(&made.taken_over, Parentage::Any)
        })();
        made.finish(built)
    }

    /// [`Manager::open`](super::Manager::open) by this process.
    pub(super) fn open(h: &Hierarchy, path: &CgroupPath, v1: &[Controller]) -> Result<Option<Self>> {
        let unified = match h.unified() {
            Some(root) => match existing(root, path.as_str())? {
                None => return Ok(None),
                found => found,
            },
            None => None,
        };
        let mut dirs = Vec::new();
        for mount in wanted(h, v1) {
            if let Some(dir) = existing(&h.v1_mounts()[mount].root, path.as_str())? {
                dirs.push(V1Dir { mount, dir });
            }
        }
        if unified.is_none() && dirs.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { hierarchy: h.clone(), path: path.clone(), unified, v1: dirs, refused: Vec::new() }))
    }

    /// Makes the child `name`, in v1 only for the controllers in `v1`, which this cgroup must have been made or opened
    /// with. On v2 its controllers are those that [`Cgroup::enable_leaf_controllers`] enabled before.
    ///
    /// # Errors
    /// As [`Cgroup::create`]; `NotFound` when this cgroup has been removed meanwhile.
    pub fn leaf(&self, name: &str, v1: &[Controller]) -> Result<Self> {
        self.make_leaf(name, v1, Parentage::Known)
    }

    /// As [`Cgroup::leaf`], for a caller that has just seen that this cgroup is not frozen.
    ///
    /// # Errors
    /// As [`Cgroup::leaf`].
    pub fn leaf_of_thawed(&self, name: &str, v1: &[Controller]) -> Result<Self> {
        self.make_leaf(name, v1, Parentage::Thawed)
    }

    fn make_leaf(&self, name: &str, v1: &[Controller], parentage: Parentage) -> Result<Self> {
        let h = &self.hierarchy;
        let mut made = Made::new(h, self.path.join(name)?, self.refused.clone());
        let built = (|| {
            for mount in wanted(h, v1) {
                let Some(parent) = self.v1.iter().find(|d| d.mount == mount) else {
                    let missing = h.v1_mounts()[mount].controllers[0];
                    let why = format!("the parent was not opened with the v1 controller {missing}");
                    return Err(Error::invalid("create", made.cgroup.path.as_str(), why));
                };
                made.add_v1(mount, Parent::Held(&parent.dir), name)?;
            }
            if let Some(parent) = &self.unified {
                made.add_unified(Parent::Held(parent), name)?;
            }
            // A directory that was made by this call has no processes.
            if parentage == Parentage::Thawed && made.all_fresh() {
                return Ok(());
            }
            made.cgroup.check_unused(&made.taken_over, parentage)
        })();
        made.finish(built)
    }

    /// v2: hands cpu, memory and pids down to the children, as far as they are here. To be called before this cgroup
    /// has processes: from then on v2 allows processes in its leaves only. Nothing to do without such a controller.
    ///
    /// # Errors
    /// `Busy` when this cgroup has processes.
    pub fn enable_leaf_controllers(&self) -> Result<()> {
        let Some(dir) = &self.unified else {
            return Ok(());
        };
        let wanted = self.leaf_controllers()?;
        if !wanted.is_empty() && has_own_processes(dir)? {
            return Err(Error::new("enable controllers", dir.path(), ErrorKind::Busy).detail("it has processes"));
        }
        wanted.into_iter().try_for_each(|c| dir.write("cgroup.subtree_control", &format!("+{c}")))
    }

    /// v2: the controllers that [`Cgroup::enable_leaf_controllers`] hands down.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn leaf_controllers(&self) -> Result<Vec<Controller>> {
        let Some(dir) = &self.unified else { return Ok(Vec::new()) };
        let available = controllers_of(&dir.read("cgroup.controllers")?);
        Ok(ALWAYS.into_iter().filter(|c| available.contains(c)).collect())
    }

    /// The v2 directory, for clone3's `CLONE_INTO_CGROUP`.
    #[must_use]
    pub fn unified_fd(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(Dir::fd)
    }

    /// Gives the descriptor of [`Cgroup::unified_fd`] away, and closes the others.
    ///
    /// # Errors
    /// `Unsupported` on a legacy layout.
    pub fn into_unified_fd(self) -> Result<OwnedFd> {
        let missing =
            || Error::new("use", self.path.as_str(), ErrorKind::Unsupported).detail("cgroup v2 is not mounted");
        self.unified.map(Dir::into_fd).ok_or_else(missing)
    }

    /// Where the controller `c` is on this machine.
    #[must_use]
    pub fn backend(&self, c: Controller) -> Backend {
        self.hierarchy.backend(c)
    }

    /// Moves the calling THREAD into the v1 hierarchies, so the caller must have only one. The v2 tree is not joined:
    /// that is clone3's work.
    ///
    /// `tasks` with "0" is free of the RCU grace period (about 12 ms) that writing `cgroup.procs` waits for.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn join_self(&self) -> Result<()> {
        self.v1.iter().try_for_each(|d| d.dir.write("tasks", "0"))
    }

    /// The v1 `tasks` files open for writing: a process that writes "0" to each joins as with [`Cgroup::join_self`].
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn v1_tasks_fds(&self) -> Result<Vec<OwnedFd>> {
        let open = |d: &V1Dir| {
            let subject = d.dir.path().join("tasks");
            d.dir.open("tasks", OFlags::WRONLY).map_err(|e| Error::errno("open", subject, e))
        };
        self.v1.iter().map(open).collect()
    }

    /// A descriptor of the directory in the v1 hierarchy of `c`; `None` if this cgroup is not open there.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn v1_directory(&self, c: Controller) -> Result<Option<OwnedFd>> {
        let Some(dir) = self.v1_dir(c) else { return Ok(None) };
        let copy = rustix::io::fcntl_dupfd_cloexec(dir.fd(), 0);
        copy.map(Some).map_err(|e| Error::errno("open", dir.path(), e))
    }

    /// v2: lets a process of this user and group put its children here by `CLONE_INTO_CGROUP`. The kernel also asks
    /// for write access to `cgroup.procs` of the nearest common ancestor of where that process is and where the child
    /// goes: call this on that one too.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn allow_joins_from(&self, uid: u32, gid: u32) -> Result<()> {
        let Some(dir) = &self.unified else {
            return Ok(());
        };
        // A new process is asked for this file only (`cgroup_css_set_fork`); `cgroup.threads` is for moving threads.
        let file = "cgroup.procs";
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(dir.fd(), file, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Error::errno("chown", dir.path().join(file), e))
    }

    /// v2: lets a process of this user kill this cgroup as a whole. Linux before 5.14 has no such file; that is fine.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn allow_kill_from(&self, uid: u32) -> Result<()> {
        let Some(dir) = &self.unified else {
            return Ok(());
        };
        let file = "cgroup.kill";
        match rustix::fs::chownat(dir.fd(), file, Some(Uid::from_raw(uid)), None, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::errno("chown", dir.path().join(file), e)),
        }
    }

    /// Its directory in each v1 hierarchy that it is open in, with the controllers of the hierarchy.
    pub fn v1_directories(&self) -> impl Iterator<Item = (&[Controller], BorrowedFd<'_>)> {
        let mounts = self.hierarchy.v1_mounts();
        self.v1.iter().map(|d| (mounts[d.mount].controllers.as_slice(), d.dir.fd()))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The main directory: v2's, on a legacy layout that of the first v1 hierarchy.
    pub(super) fn main(&self) -> Result<&Dir> {
        let first = self.unified.as_ref().or_else(|| self.v1.first().map(|d| &d.dir));
        first.ok_or_else(|| Error::new("use", self.path.as_str(), ErrorKind::NotFound))
    }

    /// This cgroup in the v1 hierarchy of `c`, if it is open there.
    pub(super) fn v1_dir(&self, c: Controller) -> Option<&Dir> {
        let mounts = self.hierarchy.v1_mounts();
        let has = |d: &&V1Dir| mounts[d.mount].controllers.iter().any(|x| same(*x, c));
        self.v1.iter().find(has).map(|d| &d.dir)
    }

    fn check_unused(&self, taken_over: &[usize], parentage: Parentage) -> Result<()> {
        if let Some(dir) = &self.unified {
            // A new child of a frozen cgroup is born frozen, so this tells about the ancestors too.
            let events = self.events()?;
            if events.populated {
                return Err(Error::new("create", dir.path(), ErrorKind::Busy).detail("it has processes"));
            }
            if events.frozen {
                return Err(Error::new("create", dir.path(), ErrorKind::Frozen));
            }
            if parentage == Parentage::Any && dir.read("cgroup.type")?.trim() == "domain invalid" {
                let why = "below a threaded cgroup: no process can join it";
                return Err(Error::new("create", dir.path(), ErrorKind::Unsupported).detail(why));
            }
        }
        for d in self.v1.iter().filter(|d| taken_over.contains(&d.mount)) {
            if !procs_below(&d.dir)?.is_empty() {
                return Err(Error::new("create", d.dir.path(), ErrorKind::Busy).detail("it has processes"));
            }
        }
        Ok(())
    }
}

/// The known types of the cgroups above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parentage {
    /// Nothing: one of them may be threaded.
    Any,
    /// They are domains: the parent was made by [`Cgroup::create`].
    Known,
    /// And none of them is frozen.
    Thawed,
}

/// The parent of a new directory.
enum Parent<'a> {
    Opened(Dir),
    Held(&'a Dir),
}

impl Deref for Parent<'_> {
    type Target = Dir;

    fn deref(&self) -> &Dir {
        match self {
            Parent::Opened(dir) => dir,
            Parent::Held(dir) => dir,
        }
    }
}

/// A cgroup being made, and the directories to remove if that fails half-way.
struct Made<'a> {
    cgroup: Cgroup,
    fresh: Vec<(Parent<'a>, String)>,
    taken_over: Vec<usize>,
}

impl<'a> Made<'a> {
    fn new(h: &Hierarchy, path: CgroupPath, refused: Vec<Refusal>) -> Self {
        let cgroup = Cgroup { hierarchy: h.clone(), path, unified: None, v1: Vec::new(), refused };
        Self { cgroup, fresh: Vec::new(), taken_over: Vec::new() }
    }

    fn add_unified(&mut self, parent: Parent<'a>, name: &str) -> Result<()> {
        let (dir, fresh) = parent.make(name)?;
        if fresh {
            self.fresh.push((parent, name.to_owned()));
        }
        self.cgroup.unified = Some(dir);
        Ok(())
    }

    fn add_v1(&mut self, mount: usize, parent: Parent<'a>, name: &str) -> Result<()> {
        let (dir, fresh) = parent.make(name)?;
        if fresh {
            self.fresh.push((parent, name.to_owned()));
        } else {
            self.taken_over.push(mount);
        }
        init_v1(&self.cgroup.hierarchy, mount, &dir)?;
        self.cgroup.v1.push(V1Dir { mount, dir });
        Ok(())
    }

    /// True if each of its directories was made by this call.
    fn all_fresh(&self) -> bool {
        self.fresh.len() == self.cgroup.v1.len() + usize::from(self.cgroup.unified.is_some())
    }

    fn finish(self, built: Result<()>) -> Result<Cgroup> {
        match built {
            Ok(()) if self.cgroup.unified.is_none() && self.cgroup.v1.is_empty() => {
                let why = "no v2 tree and no v1 controller asked for";
                Err(Error::invalid("create", self.cgroup.path.as_str(), why))
            }
            Ok(()) => Ok(self.cgroup),
            Err(error) => {
                for (parent, name) in &self.fresh {
                    // Best effort: the first error is the one to report.
                    let _ = parent.rmdir(name);
                }
                Err(error)
            }
        }
    }
}

/// The v1 mounts that the wanted controllers are in, each once.
pub(super) fn wanted(h: &Hierarchy, v1: &[Controller]) -> Vec<usize> {
    let mut mounts: Vec<usize> = v1.iter().filter_map(|c| h.v1_mount(*c).map(|(i, _)| i)).collect();
    mounts.sort_unstable();
    mounts.dedup();
    mounts
}

pub(super) fn existing(parent: &Dir, relative: &str) -> Result<Option<Dir>> {
    match parent.below(relative) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(Error::errno("open", parent.path().join(relative), e)),
    }
}

fn reopen(dir: &Dir) -> Result<Dir> {
    dir.below("").map_err(|e| Error::errno("open", dir.path(), e))
}

/// mkdir -p, with `init` run on every directory on the way.
fn make_parents(root: &Dir, parents: &str, init: impl Fn(&Dir) -> Result<()>) -> Result<Dir> {
    let mut dir = reopen(root)?;
    for part in parents.split('/').filter(|p| !p.is_empty()) {
        dir = dir.make(part)?.0;
        init(&dir)?;
    }
    Ok(dir)
}

/// A v1 cpuset is born empty, and nothing can join it before it has CPUs and memory nodes: take the parent's. The
/// parent is initialised before, as the walk comes down from the root.
fn init_v1(h: &Hierarchy, mount: usize, dir: &Dir) -> Result<()> {
    if !h.v1_mounts()[mount].controllers.contains(&Controller::Cpuset) {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if dir.read(file)?.trim().is_empty() {
            // The directory is not the root of its hierarchy, so `..` stays in it.
            let inherited = dir.read(&format!("../{file}"))?;
            dir.write(file, inherited.trim())?;
        }
    }
    Ok(())
}

/// v2: makes every ancestor of `path` that exists, or comes to exist here, hand down these controllers.
///
/// A refusal (say, by the rule that a cgroup with processes cannot have controllers for its children) is no error yet:
/// there may be no limit that needs it.
pub(super) fn enable(h: &Hierarchy, path: &CgroupPath, controllers: &[Controller]) -> Result<Vec<Refusal>> {
    let mut refused: Vec<Refusal> = Vec::new();
    let Some(root) = h.unified() else {
        return Ok(refused);
    };
    let here = controllers_of(&root.read("cgroup.controllers")?);
    let mut pending: Vec<Controller> = controllers.iter().copied().filter(|c| here.contains(c)).collect();
    if pending.is_empty() {
        return Ok(refused);
    }
    let mut dir = reopen(root)?;
    let mut parts = path.parts().peekable();
    while let Some(part) = parts.next() {
        let enabled = controllers_of(&dir.read("cgroup.subtree_control")?);
        let mut missing: Vec<Controller> = pending.iter().copied().filter(|c| !enabled.contains(c)).collect();
        if !missing.is_empty() {
            let busy = has_own_processes(&dir)?.then_some(Errno::BUSY);
            missing.retain(|c| match busy.map_or_else(|| hand_down(&dir, *c), Err) {
                Ok(()) => false,
                Err(errno) => {
                    refused.push(Refusal { controller: *c, ancestor: dir.path().to_path_buf(), errno });
                    true
                }
            });
            pending.retain(|c| !missing.contains(c));
        }
        // The last part is the cgroup itself: not ours to make here.
        if pending.is_empty() || parts.peek().is_none() {
            break;
        }
        dir = dir.make(part)?.0;
    }
    Ok(refused)
}

fn hand_down(dir: &Dir, c: Controller) -> std::result::Result<(), Errno> {
    let written = dir.write("cgroup.subtree_control", &format!("+{c}"));
    written.map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

/// Has this cgroup processes of its own, which v2 forbids together with controllers for its children? The kernel says
/// so by EBUSY for memory and io only. Handing down cpu or pids it takes for the wish to go threaded: it makes every
/// child "domain invalid", and nothing can ever join those. The root of the whole tree, which has no type, may.
fn has_own_processes(dir: &Dir) -> Result<bool> {
    Ok(dir.has("cgroup.type") && !dir.read("cgroup.procs")?.is_empty())
}
