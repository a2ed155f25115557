//! What the first process does between `clone3` and `execve`. [`run`] is the table of contents; each step is a file.

use std::os::fd::{OwnedFd, RawFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{fs::Mode, process::umask};

use super::{
    cgroup_views::Views,
    dev,
    inside::{Inside, reopen_dir},
    masks::Masks,
    mounts, names,
    process::{self, Entry},
    root, session,
    sync::{Down, Sync, Up},
    terminal,
};
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{MountSource, Namespace, Plan, RootSource},
    process::{exit_now, join_tasks},
};

/// Everything the first process brings along from its maker.
pub(super) struct Luggage {
    pub(super) sync: Sync,
    /// `tasks` files of the v1 hierarchies still to be joined.
    pub(super) tasks: Vec<OwnedFd>,
    /// Namespaces to join, in order, with their flag.
    pub(super) joins: Vec<(OwnedFd, CloneFlags)>,
    /// Make the cgroup namespace here, since the cgroup was entered by this process itself.
    pub(super) own_cgroup_namespace: bool,
    /// The cgroup hierarchies as the container sees them, if its maker has made the namespace.
    pub(super) cgroup_views: Views,
    /// Descriptors for the program.
    pub(super) fds: Vec<(OwnedFd, RawFd)>,
    /// Where `start` knocks.
    pub(super) start_socket: Option<OwnedFd>,
}

/// Runs the set-up and the program. Never returns.
pub(super) fn run(plan: &Plan, luggage: Luggage) -> ! {
    let Luggage { sync, tasks, joins, own_cgroup_namespace, cgroup_views, fds, start_socket } = luggage;
    match set_up(plan, &sync, &tasks, &joins, own_cgroup_namespace, cgroup_views) {
        Ok(()) => process::become_program(&plan.process, sync, Entry { make_cwd: true, fds, start_socket }),
        Err(error) => {
            let _ = sync.send(&Up::Failed(error), None);
            exit_now(1)
        }
    }
}

fn set_up(
    plan: &Plan,
    sync: &Sync,
    tasks: &[OwnedFd],
    joins: &[(OwnedFd, CloneFlags)],
    own_cgroup_namespace: bool,
    mut cgroup_views: Views,
) -> Result<()> {
    // Before anything of the container's can be seen.
    session::hide(Step::Clone)?;
    join_tasks(tasks).on(Step::JoinCgroup, "tasks of a v1 hierarchy")?;
    join_namespaces(joins)?;
    if own_cgroup_namespace {
        unshare(CloneFlags::CLONE_NEWCGROUP).on(Step::JoinCgroup, "cgroup namespace")?;
    }
    let mapped = plan.id_maps.is_some();
    if mapped {
        expect(sync, &Down::Mapped, Step::IdMaps)?;
    }

    root::everything_private()?;
    let in_user_namespace = plan.namespaces.user != Namespace::Host;
    let spare = root::open_mount_point(&plan.root)?;
    let directory = root::open_directory(&plan.root)?;
    let whole = if cgroup_views.is_hybrid() { None } else { cgroup_views.unified.take() };
    let mut sources = mounts::open_sources(&plan.mounts, whole)?;
    let nodes = if in_user_namespace {
        dev::open_host_nodes(&plan.dev)?
    } else {
        plan.dev.nodes.iter().map(|_| None).collect()
    };
    if in_user_namespace {
        session::become_root_inside()?;
    }
    umask(Mode::empty());
    session::start()?;

    let mut masks = Masks::make(&plan.masked_paths, &mounts::texts(&plan.mounts), &spare)?;
    for (mount, source) in plan.mounts.iter().zip(&mut sources) {
        if matches!(mount.source, MountSource::Text(_)) {
            *source = masks.take_text();
        }
    }
    if plan.namespaces.net.is_new() {
        names::loopback_up()?;
    }
    names::set(plan)?;

    let inside = enter_root(plan, sync, &spare, directory)?;
    let hybrid = Some(cgroup_views).filter(Views::is_hybrid);
    let read_only_later = mounts::attach_all(&inside, &plan.mounts, sources, hybrid)?;
    dev::fill(&inside, &plan.dev, nodes)?;
    if let Some(size) = plan.process.terminal {
        let master = terminal::open_inside(&inside, size, plan.process.uid)?;
        sync.send(&Up::Terminal, Some(&master)).on(Step::Terminal, "handing over the terminal")?;
    }
    mounts::finish_read_only(&read_only_later)?;
    for path in &plan.readonly_paths {
        mounts::make_readonly(&inside, path)?;
    }
    for path in &plan.masked_paths {
        masks.cover(&inside, path)?;
    }
    if plan.root.readonly {
        root::make_readonly(&inside)?;
    }
    root::pivot(&inside)
}

fn join_namespaces(joins: &[(OwnedFd, CloneFlags)]) -> Result<()> {
    for (fd, kind) in joins {
        setns(fd, *kind).on(Step::Join, format!("{kind:?}"))?;
    }
    Ok(())
}

fn expect(sync: &Sync, wanted: &Down, step: Step) -> Result<Option<OwnedFd>> {
    match sync.receive::<Down>().on(step, "the caller's message")? {
        Some((message, fd)) if message == *wanted => Ok(fd),
        Some((other, _)) => Err(Error::invalid(step, "sync", format!("{other:?} came, {wanted:?} was due"))),
        None => Err(Error::invalid(step, "sync", "the caller went away")),
    }
}

/// Attaches the root at its mount point and opens it.
fn enter_root(plan: &Plan, sync: &Sync, spare: &OwnedFd, directory: Option<OwnedFd>) -> Result<Inside> {
    let subject = root::mount_point(&plan.root).display();
    let detached = match (&plan.root.source, directory) {
        (RootSource::Directory(_), Some(tree)) => tree,
        (RootSource::Directory(_), None) => {
            return Err(Error::invalid(Step::Root, &subject, "the directory was not opened"));
        }
        (RootSource::Overlay(_), _) => expect(sync, &Down::Root, Step::Root)?
            .ok_or_else(|| Error::invalid(Step::Root, &subject, "the root did not arrive"))?,
    };
    root::attach_at(&detached, spare).on(Step::Root, &subject)?;
    reopen_dir(&detached).map(Inside::new).on(Step::Root, &subject)
}
