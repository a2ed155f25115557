//! The cgroup hierarchies of this machine, and the controllers of each.
//!
//! Probed once, from `/proc/self/mountinfo` and the kernel's own answers, never from well-known paths. The roots are
//! held open, so a later change of the mount table cannot lead us elsewhere. Makes and changes nothing.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::controller::{Controller, controllers_of, same};
use super::error::{Error, ErrorKind, Result};
use super::file::{Dir, read_all};
use super::parse::{Mount, mountinfo};

const MOUNTINFO: &str = "/proc/self/mountinfo";
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;
const CGROUP_SUPER_MAGIC: rustix::fs::FsWord = 0x0027_e0eb;

/// The cgroup layout of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Only cgroup v2.
    Unified,
    /// cgroup v2 for freezing, killing and accounting; one or more controllers in v1 hierarchies.
    Hybrid,
    /// Only v1. Nothing can be frozen, killed as one, or entered by clone3 here.
    Legacy,
}

/// The hierarchy that holds a controller's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// In the v2 tree.
    V2,
    /// In the v1 hierarchy mounted here.
    V1(PathBuf),
    /// Nowhere.
    None,
}

/// The hierarchies of this machine.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    unified: Option<Dir>,
    v2_controllers: Vec<Controller>,
    v1: Vec<V1Mount>,
}

/// One v1 hierarchy: one mount, one or several controllers.
#[derive(Debug)]
pub(super) struct V1Mount {
    pub(super) controllers: Vec<Controller>,
    pub(super) root: Dir,
}

impl Hierarchy {
    /// Detects the machine's hierarchies.
    ///
    /// # Errors
    /// `NotFound` when no cgroup file system is mounted; or the mount table cannot be read.
    pub fn probe() -> Result<Self> {
        let text = std::fs::File::open(MOUNTINFO)
            .map_err(|e| rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))
            .and_then(|f| read_all(f.as_fd()))
            .map_err(|e| Error::errno("read", MOUNTINFO, e))?;
        Self::from_mounts(&mountinfo(&text))
    }

    /// Those of this machine, detected once in the life of the process and of those that it forks.
    ///
    /// # Errors
    /// As [`Hierarchy::probe`]; the next call tries again.
    pub fn of_machine() -> Result<&'static Self> {
        static PROBED: OnceLock<Hierarchy> = OnceLock::new();
        if let Some(known) = PROBED.get() {
            return Ok(known);
        }
        let probed = Self::probe()?;
        Ok(PROBED.get_or_init(|| probed))
    }

    fn from_mounts(mounts: &[Mount]) -> Result<Self> {
        let mut unified = None;
        let mut v1: Vec<V1Mount> = Vec::new();
        for mount in mounts {
            match mount.fs_type.as_str() {
                // The first one counts: /sys/fs/cgroup comes before mounts made for containers.
                "cgroup2" if unified.is_none() => unified = open_checked(mount, CGROUP2_SUPER_MAGIC),
                "cgroup" => {
                    let found = mount.super_options.split(',').filter_map(Controller::from_name);
                    let controllers: Vec<_> = found.filter(|c| !v1.iter().any(|m| m.controllers.contains(c))).collect();
                    if controllers.is_empty() {
                        continue; // `name=systemd`, or a second mount of a hierarchy we have
                    }
                    if let Some(root) = open_checked(mount, CGROUP_SUPER_MAGIC) {
                        v1.push(V1Mount { controllers, root });
                    }
                }
                _ => {}
            }
        }
        if unified.is_none() && v1.is_empty() {
            return Err(Error::new("probe", MOUNTINFO, ErrorKind::NotFound).detail("no cgroup hierarchy is mounted"));
        }
        let v2_controllers = match &unified {
            Some(root) => controllers_of(&root.read("cgroup.controllers")?),
            None => Vec::new(),
        };
        Ok(Self { inner: Arc::new(Inner { unified, v2_controllers, v1 }) })
    }

    /// The cgroup layout.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match (&self.inner.unified, self.inner.v1.is_empty()) {
            (Some(_), true) => Layout::Unified,
            (Some(_), false) => Layout::Hybrid,
            (None, _) => Layout::Legacy,
        }
    }

    /// The hierarchy that holds the files of `c`. Accounting and freezing are v2's wherever v2 is mounted.
    #[must_use]
    pub fn backend(&self, c: Controller) -> Backend {
        if self.inner.unified.is_some() && matches!(c, Controller::Cpuacct | Controller::Freezer | Controller::Core) {
            return Backend::V2;
        }
        if let Some((_, mount)) = self.v1_mount(c) {
            return Backend::V1(mount.root.path().to_path_buf());
        }
        match c {
            Controller::Devices if self.inner.unified.is_some() => Backend::V2,
            _ if self.inner.v2_controllers.iter().any(|x| same(*x, c)) => Backend::V2,
            _ => Backend::None,
        }
    }

    pub(super) fn unified(&self) -> Option<&Dir> {
        self.inner.unified.as_ref()
    }

    pub(super) fn v1_mounts(&self) -> &[V1Mount] {
        &self.inner.v1
    }

    pub(super) fn v1_mount(&self, c: Controller) -> Option<(usize, &V1Mount)> {
        self.inner.v1.iter().enumerate().find(|(_, m)| m.controllers.iter().any(|x| same(*x, c)))
    }
}

/// Opens a mount point unless something else is mounted over it by now.
fn open_checked(mount: &Mount, magic: rustix::fs::FsWord) -> Option<Dir> {
    let dir = Dir::root(&mount.mount_point).ok()?;
    let stat = rustix::fs::fstatfs(dir.fd()).ok()?;
    (stat.f_type == magic).then_some(dir)
}
