//! The children of a cgroup that have no children: found, sized, read and removed through their parent's descriptors.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::controller::Controller;
use super::error::{Error, ErrorKind, Result};
use super::file::Dir;
use super::gauges::unreadable;
use super::hierarchy::Backend;
use super::parse::keyed;
use super::tree::{existing, wanted};
use super::{Cgroup, V1Dir, v1};

/// The extended attribute that holds a note. Processes in a user namespace cannot write it: that takes CAP_SYS_ADMIN on the host.
const NOTE: &str = "trusted.icebox";
/// The longest note.
const NOTE_BYTES_MAX: usize = 64;

/// Writes a note on a cgroup, by a descriptor of its v2 directory. It lasts as long as the cgroup.
///
/// # Errors
/// Those of fsetxattr(2): the kernel or the rights of this process may not allow it.
pub fn set_leaf_note(directory: BorrowedFd<'_>, text: &str) -> Result<()> {
    if text.len() > NOTE_BYTES_MAX {
        return Err(Error::invalid("write the note", text, "it is too long"));
    }
    rustix::fs::fsetxattr(directory, NOTE, text.as_bytes(), XattrFlags::empty())
        .map_err(|e| Error::errno("write the note", text, e))
}

/// What a child has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeafUsage {
    /// CPU time in µs.
    pub cpu_usec: u64,
    /// Most memory in use at one time; `None` where the kernel does not report it.
    pub memory_peak: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

fn note_on(dir: &Dir) -> Result<Option<String>> {
    let mut text = [0_u8; NOTE_BYTES_MAX];
    match rustix::fs::fgetxattr(dir.fd(), NOTE, &mut text[..]) {
        Ok(length) => Ok(std::str::from_utf8(text.get(..length).unwrap_or_default()).ok().map(str::to_owned)),
        // Without extended attributes nothing has a note.
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(None),
        Err(e) => Err(Error::errno("read the note on", dir.path(), e)),
    }
}

impl Cgroup {
    /// Removes the child `name` if it has no processes, and says whether it is gone. On v1 it is looked for in the
    /// hierarchies of the controllers in `v1`. The kernel decides in one call per hierarchy; nothing is opened and nothing
    /// is waited for. The v2 directory goes last: as long as it is there, [`Cgroup::leaves`] lists the child.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn remove_empty_leaf(&self, name: &str, v1: &[Controller]) -> Result<bool> {
        let mounts = wanted(&self.hierarchy, v1);
        let on_v1 = self.v1.iter().filter(|d| mounts.contains(&d.mount)).map(|d| &d.dir);
        for dir in on_v1.chain(&self.unified) {
            match dir.rmdir(name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::BUSY | Errno::NOTEMPTY) => return Ok(false),
                Err(e) => return Err(Error::errno("remove", dir.path().join(name), e)),
            }
        }
        Ok(true)
    }

    /// The child `name` in the one v1 hierarchy that has the controller `c`, and in no other tree; made if it is not
    /// there. `None` where `c` is not on v1, or this cgroup was not opened with it.
    ///
    /// # Errors
    /// Those of the system calls; `Invalid` for a name that is a path.
    pub fn v1_child(&self, name: &str, c: Controller) -> Result<Option<Self>> {
        let path = self.path.join(name)?;
        let Some((mount, _)) = self.hierarchy.v1_mount(c) else { return Ok(None) };
        let Some(parent) = self.v1.iter().find(|d| d.mount == mount) else { return Ok(None) };
        let dir = match existing(&parent.dir, name)? {
            Some(dir) => dir,
            None => parent.dir.make(name)?.0,
        };
        let v1 = vec![V1Dir { mount, dir }];
        Ok(Some(Self { hierarchy: self.hierarchy.clone(), path, unified: None, v1, refused: Vec::new() }))
    }

    /// Opens the child `name` if it exists, in v1 wherever this cgroup is open and has such a child.
    ///
    /// # Errors
    /// Those of the system calls; `Invalid` for a name that is a path.
    pub fn open_leaf(&self, name: &str) -> Result<Option<Self>> {
        let path = self.path.join(name)?;
        let unified = match &self.unified {
            Some(dir) => match existing(dir, name)? {
                None => return Ok(None),
                found => found,
            },
            None => None,
        };
        let mut v1 = Vec::new();
        for d in &self.v1 {
            if let Some(dir) = existing(&d.dir, name)? {
                v1.push(V1Dir { mount: d.mount, dir });
            }
        }
        if unified.is_none() && v1.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { hierarchy: self.hierarchy.clone(), path, unified, v1, refused: self.refused.clone() }))
    }

    /// The names of the children.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn leaves(&self) -> Result<Vec<String>> {
        let mut names = self.main()?.children()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Its memory limit as the kernel spells it. `None` where memory is not controlled.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn memory_max(&self) -> Result<Option<String>> {
        let Some((dir, file)) = self.memory_max_file() else { return Ok(None) };
        if dir.has(file) { dir.read(file).map(|text| Some(text.trim().to_owned())) } else { Ok(None) }
    }

    /// Sets up a cgroup for processes below the one with the limits. `max` is the parent's memory limit and is copied
    /// here: it applies anyway, but many programs read only the limit of their own cgroup, and would take "none" for
    /// the whole machine. v1 charges the buffers of sockets to the cgroups above only where their limit is written.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn account_memory_as(&self, max: Option<&str>) -> Result<()> {
        if let (Some((dir, file)), Some(max)) = (self.memory_max_file(), max) {
            dir.write(file, max)?;
        }
        match self.v1_dir(Controller::Memory) {
            // A kernel without such accounting has no such file.
            Some(dir) => match dir.write(v1::SOCKETS, "-1") {
                Err(error) if error.is(Errno::NOENT) => Ok(()),
                written => written,
            },
            None => Ok(()),
        }
    }

    /// The note on the child `name`: see [`set_leaf_note`]. `None` without one, or without such a child.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn leaf_note(&self, name: &str) -> Result<Option<String>> {
        existing(self.main()?, name)?.map_or(Ok(None), |leaf| note_on(&leaf))
    }

    /// The note on this cgroup itself.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn note(&self) -> Result<Option<String>> {
        note_on(self.main()?)
    }

    fn memory_max_file(&self) -> Option<(&Dir, &'static str)> {
        let v1 = self.v1_dir(Controller::Memory).map(|dir| (dir, v1::LIMIT));
        let is_v2 = self.hierarchy.backend(Controller::Memory) == Backend::V2;
        v1.or_else(|| self.unified.as_ref().filter(|_| is_v2).map(|dir| (dir, "memory.max")))
    }

    /// Reads what the child `name` has used, without opening its directory. `None` if it does not exist. Where memory is
    /// not controlled, its figures are 0.
    ///
    /// # Errors
    /// `Unsupported` on a legacy layout, else those of the system calls.
    pub fn leaf_usage(&self, name: &str) -> Result<Option<LeafUsage>> {
        let dir = self.v2("read")?;
        let file = format!("{name}/cpu.stat");
        let cpu_usec = match dir.read(&file) {
            Ok(text) => keyed(&text, "usage_usec").ok_or_else(|| unreadable(dir.path().join(file)))?,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((memory, peak, events)) = self.leaf_memory_files() else {
            return Ok(Some(LeafUsage { cpu_usec, ..LeafUsage::default() }));
        };
        let read = |file: &str| memory.read(&format!("{name}/{file}")).ok();
        let memory_peak = read(peak).and_then(|text| text.trim().parse().ok());
        let oom_kills = read(events).and_then(|text| keyed(&text, "oom_kill")).unwrap_or(0);
        Ok(Some(LeafUsage { cpu_usec, memory_peak, oom_kills }))
    }

    /// Processes in the child `name` that the kernel has killed for want of memory since the child was made: one file,
    /// without opening its directory. `None` if it does not exist, or memory is not controlled there.
    ///
    /// # Errors
    /// Those of the system calls.
    pub fn leaf_oom_kills(&self, name: &str) -> Result<Option<u64>> {
        let Some((dir, _, events)) = self.leaf_memory_files() else { return Ok(None) };
        match dir.read(&format!("{name}/{events}")) {
            Ok(text) => Ok(Some(keyed(&text, "oom_kill").unwrap_or(0))),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The directory whose children have the memory controller, and the files of the peak and of the kills in each.
    fn leaf_memory_files(&self) -> Option<(&Dir, &'static str, &'static str)> {
        let on_v1 = self.v1_dir(Controller::Memory);
        let on_v2 = || self.unified.as_ref().filter(|_| self.backend(Controller::Memory) == Backend::V2);
        on_v1
            .map(|dir| (dir, "memory.max_usage_in_bytes", "memory.oom_control"))
            .or_else(|| on_v2().map(|dir| (dir, "memory.peak", "memory.events")))
    }
}
