//! What the first process does between `clone3` and becoming the program. [`set_up`] is the table of contents; each step is
//! a file.

use std::{
    fs,
    os::fd::{OwnedFd, RawFd},
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{fs::Mode, process::umask};

use super::{
    cgroup::{Leaf, Made},
    cgroup_views::Views,
    clocks, dev, devices,
    inherit::Inherit,
    masks::Masks,
    mounts, names,
    process::{self, Entry},
    root, session,
    sync::{Sync, ToChild, ToParent},
    terminal,
};
use crate::{
    Result, Step,
    error::OnStep as _,
    plan::{Namespace, Namespaces, Plan},
    process::{exit_now, join_tasks},
};

/// What the first process gets from the caller, beside the plan.
pub(super) struct ChildArgs {
    pub(super) sync: Sync,
    /// `tasks` files of the v1 hierarchies still to be joined.
    pub(super) tasks: Vec<OwnedFd>,
    /// Namespaces to join, in order, with their flag.
    joins: Vec<(OwnedFd, CloneFlags)>,
    /// Make the cgroup namespace here, since the cgroup was entered by this process itself.
    own_cgroup_namespace: bool,
    /// The cgroup hierarchies as the container sees them, if they could be made before the clone.
    cgroup_views: Views,
    /// Descriptors for the program.
    fds: Vec<(OwnedFd, RawFd)>,
    /// Where `start` connects.
    start_socket: Option<OwnedFd>,
}

impl ChildArgs {
    /// Opens what the first process needs and could not open itself.
    pub(super) fn pack(
        plan: &Plan,
        inherit: Inherit,
        sync: Sync,
        cgroup: &Made,
        leaf: Option<&mut Leaf>,
    ) -> Result<Self> {
        Ok(Self {
            sync,
            tasks: cgroup.tasks()?,
            joins: open_joins(&plan.namespaces)?,
            own_cgroup_namespace: plan.namespaces.cgroup.is_new() && leaf.is_none(),
            cgroup_views: leaf.map(|leaf| std::mem::take(&mut leaf.views)).unwrap_or_default(),
            fds: inherit.fds,
            start_socket: inherit.start_socket,
        })
    }
}

/// Runs the set-up and the program. Never returns.
pub(super) fn run(plan: &Plan, mut args: ChildArgs) -> ! {
    match set_up(plan, &mut args) {
        Ok(()) => {
            let entry = Entry { make_cwd: true, fds: args.fds, start_socket: args.start_socket };
            process::become_program(&plan.process, args.sync, entry)
        }
        Err(error) => {
            // There is no other place to report it to.
            let _ = args.sync.send(&ToParent::Failed(error), None);
            exit_now(1)
        }
    }
}

fn set_up(plan: &Plan, args: &mut ChildArgs) -> Result<()> {
    // First, before anything of the container's can see this process.
    session::hide(Step::Clone)?;
    join_tasks(&args.tasks).on(Step::JoinCgroup, "tasks of a v1 hierarchy")?;
    join_namespaces(args)?;
    wait_for_id_maps(plan, &args.sync)?;
    clocks::from_zero(plan)?;

    // The host's mounts are still in sight, and so are the rights to open them.
    root::everything_private()?;
    let mount_point = root::open_mount_point(&plan.root)?;
    let directory = root::open_directory(&plan.root)?;
    let mut sources = mounts::open_sources(&plan.mounts, args.cgroup_views.take_whole())?;
    let nodes = dev::open_host_nodes(plan)?;

    if plan.namespaces.user != Namespace::Host {
        session::become_root_inside()?;
    }
    umask(Mode::empty());
    session::start()?;

    let mut masks = Masks::make(&plan.masked_paths, &mounts::texts(&plan.mounts), &args.cgroup_views, &mount_point)?;
    mounts::add_texts(&plan.mounts, &mut sources, &mut masks);
    args.fds.extend(masks.take_kept());
    names::loopback_up(&plan.namespaces.net)?;
    names::set(plan)?;

    let rootfs = root::enter(&plan.root, &args.sync, &mount_point, directory)?;
    devices::receive(&plan.mounts, &mut sources, &args.sync)?;
    let views = std::mem::take(&mut args.cgroup_views);
    let read_only_later = mounts::attach_all(&rootfs, &plan.mounts, sources, views, masks.take_cgroup_layout())?;
    dev::fill(&rootfs, &plan.dev, nodes)?;
    terminal::hand_over(&rootfs, &plan.process, &args.sync)?;
    mounts::finish_read_only(&read_only_later)?;
    mounts::make_paths_read_only(&rootfs, &plan.readonly_paths)?;
    masks.cover_all(&rootfs, &plan.masked_paths)?;
    root::finish_read_only(&rootfs, &plan.root)?;
    // The hooks createContainer belong here: everything is mounted, the old root is still there. The hooks startContainer
    // belong into `process`, after the wait for `start`.
    root::pivot(&rootfs)
}

/// Opens the namespaces to join; the user namespace first, since it gives the rights to join the others.
fn open_joins(namespaces: &Namespaces) -> Result<Vec<(OwnedFd, CloneFlags)>> {
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

/// Joins the namespaces that exist, and makes the cgroup namespace if that is left to this process.
fn join_namespaces(args: &ChildArgs) -> Result<()> {
    for (fd, kind) in &args.joins {
        setns(fd, *kind).on(Step::Join, format!("{kind:?}"))?;
    }
    if args.own_cgroup_namespace {
        unshare(CloneFlags::CLONE_NEWCGROUP).on(Step::JoinCgroup, "cgroup namespace")?;
    }
    Ok(())
}

fn wait_for_id_maps(plan: &Plan, sync: &Sync) -> Result<()> {
    if plan.id_maps.is_some() {
        sync.expect(&ToChild::Mapped, Step::IdMaps)?;
    }
    Ok(())
}
