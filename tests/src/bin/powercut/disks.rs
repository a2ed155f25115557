//! What lies around: disks, temporary files, loop devices, cgroups, run directories. Everything belongs to a box.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use icebox_tests::wait::try_until;
use icebox_tests::{Daemon, machine, pool};

use crate::check::Look;

/// How long iceboxd may take to make and remove what it works on after its start. Only a hang meets it.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// How long the kernel may take to unmount the disks of boxes whose processes have ended.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(30);

fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Compares what there is with the boxes that there are. What is being made or removed now (a template after the start,
/// the disk of a box that is deleted) is soon in order; what a cut has left is not.
pub(crate) fn look(daemon: &Daemon, look: &mut Look) {
    let mut found = Vec::new();
    let settled = try_until(SETTLE_DEADLINE, || {
        found = complaints(daemon);
        found.is_empty()
    });
    look.fact(settled, || found.join(", "));
}

/// What belongs to no box, and what a box lacks.
fn complaints(daemon: &Daemon) -> Vec<String> {
    let mut complaints = Vec::new();
    let ids: BTreeSet<String> =
        daemon.api().list().iter().filter_map(|data| data["id"].as_str().map(str::to_owned)).collect();
    let data = daemon.data_dir();
    let expected: BTreeSet<String> = ids.iter().map(|id| format!("{id}.img")).collect();
    let found = names(&pool::volumes_of(daemon.pid(), &data));
    complaints.extend(found.difference(&expected).map(|name| format!("the disk {name} belongs to no box")));
    complaints.extend(expected.difference(&found).map(|name| format!("a box has no disk {name}")));
    let pool = pool::root_of(daemon.pid(), &data);
    for path in machine::tree(&data).into_iter().chain(pool.iter().flat_map(|root| machine::tree(root))) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(".tmp") || name.ends_with(".tmp") || name.ends_with(".new") {
            complaints.push(format!("{} is left in the data directory", path.display()));
        }
    }
    let run_directories = names(&daemon.run_dir().join("boxes"));
    complaints
        .extend(run_directories.difference(&ids).map(|name| format!("the run directory {name} belongs to no box")));
    let root = daemon.cgroup_root();
    for dir in daemon.cgroups().below(root) {
        // <mount>/<root>/<id>/…: the part after the root is the box.
        let mut parts = dir.iter().skip_while(|part| *part != root).skip(1);
        if parts.next().is_some_and(|part| !ids.contains(part.to_string_lossy().as_ref())) {
            complaints.push(format!("{} belongs to no box", dir.display()));
        }
    }
    for (device, file) in pool::loops_below(&data) {
        let name = Path::new(&file).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !expected.contains(&name) {
            complaints.push(format!("{device} is attached to {file}, which is no box's disk"));
        }
    }
    complaints
}

/// Stops everything, politely this time, and has every disk of a box looked at by its file system's own checker.
pub(crate) fn look_at_rest(mut daemon: Daemon) {
    let mut look = Look::default();
    daemon.stop();
    daemon.cgroups().destroy(daemon.cgroup_root());
    let data = daemon.data_dir();
    let unmounted = try_until(UNMOUNT_DEADLINE, || pool::loops_below(&data).is_empty());
    look.fact(unmounted, || format!("still attached: {:?}", pool::loops_below(&data)));
    let detached = try_until(UNMOUNT_DEADLINE, || pool::device_of(&data).is_none());
    look.fact(detached, || "the pool is still attached".to_owned());
    let opened = pool::Opened::of(&data);
    for name in names(&opened.volumes()) {
        let checked = Command::new("e2fsck").arg("-fn").arg(opened.volumes().join(&name)).output();
        let checked = checked.expect("run e2fsck");
        look.fact(checked.status.success(), || format!("e2fsck finds {name} damaged: {checked:?}"));
    }
    drop(opened);
    // The disk itself is looked at by the host's script, after this program: the files of the data directory stay.
    std::mem::forget(daemon);
}
