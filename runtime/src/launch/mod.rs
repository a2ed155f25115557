//! Carries a [`Plan`] out.
//!
//! ```text
//!  caller (single-threaded)                    first process
//!  create cgroup, apply limits
//!  own mount namespace (overlay only)
//!  clone3(namespaces, INTO_CGROUP, PIDFD) ───▶ join v1 cgroups, cgroup namespace
//!  write uid_map, gid_map ────── Mapped ─────▶ open host paths, become root inside
//!  build overlay ─────────────── Root ───────▶ mounts, /dev, masks, pivot, limits, capabilities
//!                 ◀───── Terminal, Warning ──
//!                 ◀──────── Waiting ─────────  (create) wait for start
//!                                              system call filter, execve
//!  end of file = the program runs ◀──────────  (close-on-exec)
//! ```
//!
//! With a leaf cgroup two short processes stand between the two. A new cgroup namespace takes the cgroup of the process
//! that unshares it as its root (cgroup_namespaces(7)), so the first, the scout, does that in the container's own cgroup
//! and ends. Only then are controllers handed down to the leaf: on v2 no process can be in a cgroup that does this, and
//! doing it before the leaf has processes spares moving them. The second, the maker, starts in the leaf, joins that
//! namespace, and makes the first process; `CLONE_PARENT` makes it the caller's child all the same.

mod cgroup_views;
mod child;
mod dev;
mod inside;
mod masks;
mod mount_parts;
mod mounts;
mod names;
mod owner;
pub(crate) mod process;
mod root;
pub(crate) mod session;
pub(crate) mod sync;
pub(crate) mod terminal;

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd, RawFd},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::wait::waitpid,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use self::{
    cgroup_views::Views,
    child::Luggage,
    sync::{Down, Sync, Up},
};
use crate::{
    Error, Kind, Result, Step,
    cgroup::{Cgroup, Hierarchy},
    error::OnStep as _,
    identity,
    plan::{CgroupPlan, IdMap, Namespace, Namespaces, Plan, RootSource},
    process::{Cloned, clone3, exit_now, join_tasks},
};

const CGROUP_REMOVE_DEADLINE: Duration = Duration::from_secs(2);

/// What goes with a plan but is not data.
#[derive(Debug, Default)]
pub struct Inherit {
    /// Descriptors for the program and the numbers they get. Standard input, output and error are the caller's own
    /// unless given here.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// A listening `SOCK_SEQPACKET` socket for a plan with `wait_for_start`.
    pub start_socket: Option<OwnedFd>,
}

/// A container's first process.
#[derive(Debug)]
pub struct Child {
    /// Its pid in the caller's pid namespace.
    pub pid: i32,
    /// Its pidfd.
    pub pidfd: OwnedFd,
    /// Its start time in clock ticks since boot (proc_pid_stat(5), field 22); with the boot id it names the process
    /// for ever.
    pub start_time: u64,
    /// What was degraded.
    pub warnings: Vec<String>,
    /// The host's side of the terminal, if the plan has one.
    pub terminal: Option<OwnedFd>,
    /// The cgroup, if the plan has one.
    pub cgroup: Option<Cgroup>,
}

/// Makes the container. The caller must be single-threaded and one-shot: its mount namespace may change.
///
/// # Errors
/// The failed step with its subject. Nothing is left behind: the process is dead and the cgroup is gone.
pub fn launch(plan: &Plan, inherit: Inherit) -> Result<Child> {
    check(plan)?;
    let mut warnings = Vec::new();
    let cgroup = plan.cgroup.as_ref().map(|c| make_cgroup(c, &mut warnings)).transpose()?;
    match launch_in(plan, inherit, cgroup.as_ref(), &mut warnings) {
        Ok((pid, pidfd, terminal)) => {
            let (_, start_time) = identity::state_and_start(pid.as_raw_pid())
                .ok_or(std::io::ErrorKind::NotFound)
                .on(Step::Clone, format!("pid {}", pid.as_raw_pid()))?;
            Ok(Child { pid: pid.as_raw_pid(), pidfd, start_time, warnings, terminal, cgroup })
        }
        Err(error) => {
            if let Some(cgroup) = cgroup {
                // The first error is the one worth telling.
                let _ = cgroup.kill();
                let _ = cgroup.remove(CGROUP_REMOVE_DEADLINE);
            }
            Err(error)
        }
    }
}

fn check(plan: &Plan) -> Result<()> {
    if !plan.namespaces.mount.is_new() {
        return Err(Error::unsupported(Step::Mounts, "mount namespace", "a container needs one of its own"));
    }
    if plan.namespaces.user.is_new() != plan.id_maps.is_some() {
        return Err(Error::invalid(Step::IdMaps, "id maps", "a new user namespace and id maps go together"));
    }
    if let Some(maps) = &plan.id_maps
        && [&maps.uids, &maps.gids].iter().any(|m| !m.iter().any(|line| line.inside == 0 && line.count > 0))
    {
        return Err(Error::invalid(Step::IdMaps, "id maps", "id 0 must be mapped, it owns what is made"));
    }
    Ok(())
}

fn make_cgroup(plan: &CgroupPlan, warnings: &mut Vec<String>) -> Result<Cgroup> {
    let failed = |error: crate::cgroup::Error| {
        let kind = match error.kind {
            crate::cgroup::ErrorKind::Unenforced(_) => Kind::Unenforced,
            crate::cgroup::ErrorKind::Invalid => Kind::Invalid,
            _ => Kind::Os,
        };
        Error::of(kind, Step::Cgroup, plan.path.as_str(), crate::error::chain(&error))
    };
    let hierarchy = Hierarchy::probe().map_err(failed)?;
    let cgroup = Cgroup::create(&hierarchy, &plan.path, &plan.limits.controllers()).map_err(failed)?;
    let set = || -> std::result::Result<Vec<crate::cgroup::Warning>, crate::cgroup::Error> {
        if let Some((uid, gid)) = plan.joins_from {
            cgroup.allow_joins_from(uid, gid)?;
        }
        cgroup.apply(&plan.limits, plan.unenforced)
    };
    match set() {
        Ok(list) => warnings.extend(list.iter().map(ToString::to_string)),
        Err(error) => {
            let _ = cgroup.remove(CGROUP_REMOVE_DEADLINE);
            return Err(failed(error));
        }
    }
    Ok(cgroup)
}

fn launch_in(
    plan: &Plan,
    inherit: Inherit,
    cgroup: Option<&Cgroup>,
    warnings: &mut Vec<String>,
) -> Result<(Pid, OwnedFd, Option<OwnedFd>)> {
    let overlay = match &plan.root.source {
        RootSource::Overlay(overlay) => Some(overlay),
        RootSource::Directory(_) => None,
    };
    if overlay.is_some() {
        root::own_mount_namespace()?;
    }
    let leaf = match (cgroup, plan.cgroup.as_ref().and_then(|c| c.leaf.as_deref())) {
        (Some(cgroup), Some(name)) => Some(make_leaf(cgroup, name, plan.namespaces.cgroup.is_new())?),
        _ => None,
    };
    give_streams(plan, &inherit)?;
    let (mine, theirs) = Sync::pair().on(Step::Clone, "socket pair")?;
    let luggage = pack(plan, inherit, cgroup, leaf.is_some(), theirs)?;
    let (pid, pidfd) = clone_first(plan, luggage, cgroup, leaf.as_ref(), &mine)?;
    let guard = KillGuard(Some((pid, pidfd)));

    let mut user_namespace = None;
    if let Some(maps) = &plan.id_maps {
        write_maps(pid, maps)?;
        mine.send(&Down::Mapped, None).on(Step::IdMaps, "telling the first process")?;
        let path = format!("/proc/{}/ns/user", pid.as_raw_pid());
        user_namespace = Some(fs::File::open(&path).on(Step::IdMaps, path)?);
    }
    if let Some(score) = plan.oom_score_adj {
        set_oom_score(pid, score, warnings)?;
    }
    if let Some(overlay) = overlay {
        let mapping = user_namespace.as_ref().zip(plan.id_maps.as_ref()).map(|(fd, maps)| root::Mapping {
            user_namespace: fd.as_fd(),
            uid: owner::outside_root(&maps.uids),
            gid: owner::outside_root(&maps.gids),
        });
        match root::build_overlay(overlay, mapping.as_ref()) {
            Ok(fd) => mine.send(&Down::Root, Some(&fd)).on(Step::Root, "handing over the root")?,
            Err(error) => return Err(earlier_failure(&mine).unwrap_or(error)),
        }
    }
    let terminal = listen(&mine, plan.wait_for_start, warnings)?;
    let (pid, pidfd) = guard.keep();
    Ok((pid, pidfd, terminal))
}

/// If the first process failed by itself while the caller was busy, its error is the one to tell.
fn earlier_failure(sync: &Sync) -> Option<Error> {
    let mut poll = [rustix::event::PollFd::new(sync, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut poll, Some(&now)).ok()? == 0 {
        return None;
    }
    match sync.receive::<Up>() {
        Ok(Some((Up::Failed(error), _))) => Some(error),
        _ => None,
    }
}

fn pack(plan: &Plan, inherit: Inherit, cgroup: Option<&Cgroup>, hop: bool, sync: Sync) -> Result<Luggage> {
    let tasks = match cgroup {
        Some(cgroup) => cgroup
            .v1_tasks_fds()
            .map_err(|error| Error::of(Kind::Os, Step::JoinCgroup, "v1 hierarchies", crate::error::chain(&error)))?,
        None => Vec::new(),
    };
    Ok(Luggage {
        sync,
        tasks,
        joins: joins(&plan.namespaces)?,
        own_cgroup_namespace: plan.namespaces.cgroup.is_new() && !hop,
        cgroup_views: Views::default(),
        fds: inherit.fds,
        start_socket: inherit.start_socket,
    })
}

/// Opens the namespaces to join; the user namespace first, since it gives the rights to join the others.
fn joins(namespaces: &Namespaces) -> Result<Vec<(OwnedFd, CloneFlags)>> {
    let mut list = Vec::new();
    for (namespace, flag) in [
        (&namespaces.user, CloneFlags::CLONE_NEWUSER),
        (&namespaces.net, CloneFlags::CLONE_NEWNET),
        (&namespaces.ipc, CloneFlags::CLONE_NEWIPC),
        (&namespaces.uts, CloneFlags::CLONE_NEWUTS),
        (&namespaces.cgroup, CloneFlags::CLONE_NEWCGROUP),
    ] {
        if let Namespace::Join(path) = namespace {
            let file = fs::File::open(path).on(Step::Join, path.display())?;
            list.push((file.into(), flag));
        }
    }
    if let Namespace::Join(path) = &namespaces.pid {
        // A pid namespace is joined by the children of the one that asks (setns(2)); the caller is one-shot.
        let file = fs::File::open(path).on(Step::Join, path.display())?;
        setns(&file, CloneFlags::CLONE_NEWPID).on(Step::Join, path.display())?;
    }
    Ok(list)
}

/// Flags of the new namespaces, without the cgroup namespace: that one takes its root from the cgroup its maker is in,
/// so it is made once the maker is where it should be.
fn new_namespace_flags(namespaces: &Namespaces) -> u64 {
    let mut flags = 0;
    for (namespace, flag) in [
        (&namespaces.user, libc::CLONE_NEWUSER),
        (&namespaces.mount, libc::CLONE_NEWNS),
        (&namespaces.pid, libc::CLONE_NEWPID),
        (&namespaces.net, libc::CLONE_NEWNET),
        (&namespaces.ipc, libc::CLONE_NEWIPC),
        (&namespaces.uts, libc::CLONE_NEWUTS),
    ] {
        if namespace.is_new() {
            flags |= flag as u64;
        }
    }
    flags
}

/// The cgroup that the first process starts in.
struct Leaf {
    cgroup: Cgroup,
    /// A new cgroup namespace with the container's cgroup as its root.
    namespace: Option<OwnedFd>,
    /// The controllers of each v1 hierarchy that the container's cgroup is in.
    v1: Vec<Vec<crate::cgroup::Controller>>,
}

fn make_leaf(cgroup: &Cgroup, name: &str, own_namespace: bool) -> Result<Leaf> {
    let failed = |error: crate::cgroup::Error| Error::of(Kind::Os, Step::Cgroup, name, crate::error::chain(&error));
    let namespace = if own_namespace { Some(cgroup_namespace(cgroup)?) } else { None };
    cgroup.enable_leaf_controllers().map_err(failed)?;
    Ok(Leaf { cgroup: cgroup.leaf(name, &[]).map_err(failed)?, namespace, v1: cgroup.v1_hierarchies() })
}

/// Makes a cgroup namespace whose root is `cgroup`, by a short process in it.
fn cgroup_namespace(cgroup: &Cgroup) -> Result<OwnedFd> {
    let (mine, theirs) = Sync::pair().on(Step::Clone, "socket pair")?;
    match clone3(0, cgroup.unified_fd()).on(Step::Clone, "clone3(2) of the scout")? {
        Cloned::Child => {
            let made = scout(cgroup);
            let sent = theirs.send(&made.as_ref().map(|_| ()), made.as_ref().ok());
            exit_now(i32::from(sent.is_err()))
        }
        Cloned::Parent(scout, _) => {
            drop(theirs);
            let reply = mine.receive::<std::result::Result<(), Error>>().on(Step::Clone, "the scout's reply")?;
            // Until it is reaped it still counts as a process in the cgroup.
            let end = waitpid(nix::unistd::Pid::from_raw(scout.as_raw_pid()), None).on(Step::Clone, "the scout")?;
            match reply {
                Some((Ok(()), Some(namespace))) => Ok(namespace),
                Some((Err(error), _)) => Err(error),
                // The end tells who ended it: itself, or a signal.
                _ => Err(Error::invalid(Step::Clone, "scout", format!("it ended without a word: {end:?}"))),
            }
        }
    }
}

fn scout(cgroup: &Cgroup) -> Result<OwnedFd> {
    // The namespace has a root in every hierarchy.
    cgroup.join_self().map_err(|e| Error::of(Kind::Os, Step::JoinCgroup, "v1 hierarchies", crate::error::chain(&e)))?;
    unshare(CloneFlags::CLONE_NEWCGROUP).on(Step::JoinCgroup, "cgroup namespace")?;
    let path = "/proc/self/ns/cgroup";
    Ok(fs::File::open(path).on(Step::JoinCgroup, path)?.into())
}

/// Makes the first process, through a maker in its leaf if it has one.
fn clone_first(
    plan: &Plan,
    luggage: Luggage,
    cgroup: Option<&Cgroup>,
    leaf: Option<&Leaf>,
    mine: &Sync,
) -> Result<(Pid, OwnedFd)> {
    let Some(leaf) = leaf else {
        let whole = cgroup.and_then(Cgroup::unified_fd);
        let flags = new_namespace_flags(&plan.namespaces);
        return match owner::clone3(plan.id_maps.as_ref(), flags, whole).on(Step::Clone, "clone3(2)")? {
            Cloned::Child => child::run(plan, luggage),
            Cloned::Parent(pid, pidfd) => Ok((pid, pidfd)),
        };
    };
    match clone3(0, leaf.cgroup.unified_fd()).on(Step::Clone, "clone3(2) of the maker")? {
        Cloned::Child => make_from_within(plan, luggage, leaf),
        Cloned::Parent(maker, _) => {
            drop(luggage);
            child_of(mine, maker, Step::Clone, "maker")
        }
    }
}

/// The process that a helper has made with `CLONE_PARENT` and named by its pid, and a pidfd of it; reaps the helper.
pub(crate) fn child_of(sync: &Sync, helper: Pid, step: Step, who: &str) -> Result<(Pid, OwnedFd)> {
    let reply = sync.receive::<std::result::Result<i32, Error>>().on(step, who)?;
    waitpid(nix::unistd::Pid::from_raw(helper.as_raw_pid()), None).on(step, who)?;
    let pid = match reply {
        Some((Ok(pid), _)) => pid,
        Some((Err(error), _)) => return Err(error),
        None => return Err(Error::invalid(step, who, "it ended without a word")),
    };
    let pid = Pid::from_raw(pid).ok_or_else(|| Error::invalid(step, who, "bad pid"))?;
    // The process is our child and not reaped yet, so the number cannot have been reused.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).on(step, "pidfd_open(2)")?;
    Ok((pid, pidfd))
}

fn make_from_within(plan: &Plan, mut luggage: Luggage, leaf: &Leaf) -> ! {
    let mut clone = || -> Result<Cloned> {
        join_tasks(&luggage.tasks).on(Step::JoinCgroup, "tasks of a v1 hierarchy")?;
        if let Some(namespace) = &leaf.namespace {
            setns(namespace, CloneFlags::CLONE_NEWCGROUP).on(Step::JoinCgroup, "cgroup namespace")?;
            luggage.cgroup_views = Views::make(&plan.mounts, &leaf.v1)?;
        }
        let flags = new_namespace_flags(&plan.namespaces) | libc::CLONE_PARENT as u64;
        owner::clone3(plan.id_maps.as_ref(), flags, None).on(Step::Clone, "clone3(2)")
    };
    let reply: std::result::Result<i32, Error> = match clone() {
        Ok(Cloned::Child) => {
            luggage.tasks.clear();
            child::run(plan, luggage)
        }
        Ok(Cloned::Parent(pid, _)) => Ok(pid.as_raw_pid()),
        Err(error) => Err(error),
    };
    let code = i32::from(luggage.sync.send(&reply, None).is_err());
    exit_now(code)
}

fn write_maps(pid: Pid, maps: &crate::plan::IdMaps) -> Result<()> {
    for (name, lines) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let path = format!("/proc/{}/{name}", pid.as_raw_pid());
        fs::write(&path, map_text(lines)).on(Step::IdMaps, path)?;
    }
    Ok(())
}

fn map_text(lines: &[IdMap]) -> String {
    lines.iter().map(|l| format!("{} {} {}\n", l.inside, l.outside, l.count)).collect()
}

pub(crate) fn set_oom_score(pid: Pid, score: i32, warnings: &mut Vec<String>) -> Result<()> {
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_pid());
    match fs::write(&path, score.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            warnings.push(format!("oom_score_adj {score}: lowering it takes CAP_SYS_RESOURCE, which is missing here"));
            Ok(())
        }
        other => other.on(Step::Rlimits, path),
    }
}

/// Gives the pipes that the program gets as standard streams to its user. The caller does it: pipes of the host have
/// no owner in a new user namespace, so nothing inside may change them.
fn give_streams(plan: &Plan, inherit: &Inherit) -> Result<()> {
    if plan.process.terminal.is_some() || matches!(plan.namespaces.user, Namespace::Join(_)) {
        return Ok(());
    }
    let uid = plan.process.uid;
    let host_uid = match &plan.id_maps {
        Some(maps) => maps.uids.iter().find_map(|line| {
            let offset = uid.checked_sub(line.inside).filter(|offset| *offset < line.count)?;
            line.outside.checked_add(offset)
        }),
        None => Some(uid),
    };
    // An id that is not mapped is refused later, by setresuid(2).
    let Some(host_uid) = host_uid else { return Ok(()) };
    for (number, own) in (0..).zip([rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]) {
        let given = inherit.fds.iter().find(|(_, target)| *target == number).map(|(fd, _)| fd.as_fd());
        crate::stdio::give_pipe_to_user(given.unwrap_or(own), host_uid)
            .on(Step::Credentials, format!("owner of descriptor {number}"))?;
    }
    Ok(())
}

/// Hears the first process out: until it waits for `start`, or until `execve` has closed its end.
pub(crate) fn listen(sync: &Sync, wait_for_start: bool, warnings: &mut Vec<String>) -> Result<Option<OwnedFd>> {
    let mut terminal = None;
    loop {
        match sync.receive::<Up>().on(Step::Exec, "the first process")? {
            Some((Up::Failed(error), _)) => return Err(error),
            Some((Up::Warning(text), _)) => warnings.push(text),
            Some((Up::Terminal, fd)) => terminal = fd,
            Some((Up::Waiting, _)) if wait_for_start => return Ok(terminal),
            Some((Up::Waiting, _)) => {}
            None if wait_for_start => {
                return Err(Error::invalid(Step::Start, "first process", "it ended before it was ready to start"));
            }
            None => return Ok(terminal),
        }
    }
}

/// Kills and reaps the half-made process unless it is kept.
struct KillGuard(Option<(Pid, OwnedFd)>);

impl KillGuard {
    fn keep(mut self) -> (Pid, OwnedFd) {
        self.0.take().expect("the guard holds the process until it is kept")
    }
}

impl Drop for KillGuard {
    fn drop(&mut self) {
        if let Some((pid, pidfd)) = self.0.take() {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = waitpid(nix::unistd::Pid::from_raw(pid.as_raw_pid()), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{map_text, new_namespace_flags};
    use crate::plan::{IdMap, Namespace, Namespaces};

    #[test]
    fn flags_name_new_namespaces_only() {
        let namespaces = Namespaces { net: Namespace::New, pid: Namespace::Join("/x".into()), ..Namespaces::default() };
        assert_eq!(new_namespace_flags(&namespaces), libc::CLONE_NEWNET as u64);
    }

    #[test]
    fn maps_are_written_as_the_kernel_reads_them() {
        assert_eq!(map_text(&[IdMap { inside: 0, outside: 524_288, count: 65_536 }]), "0 524288 65536\n");
    }
}
