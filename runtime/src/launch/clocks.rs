//! A time namespace whose clocks begin at zero (time_namespaces(7)).
//!
//! The kernel then counts `/proc/uptime`, `btime` of `/proc/stat`, sysinfo(2) and the start times of processes from the
//! container's start, so all of them agree. The namespace belongs to the container's user namespace: setting its
//! offsets takes no capability on the host.

use std::{fs, io};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
};
use rustix::time::{ClockId, clock_gettime};

use crate::{Result, Step, error::OnStep as _, plan::Plan};

const OFFSETS: &str = "/proc/self/timens_offsets";
const NAMESPACE: &str = "/proc/self/ns/time_for_children";

/// Makes the namespace and enters it, if the plan says so. A kernel without time namespaces (before Linux 5.6) keeps the
/// host's clocks. The process must be in its user namespace with all capabilities there, and still have the host's `/proc`.
pub(super) fn from_zero(plan: &Plan) -> Result<()> {
    if !plan.clocks_from_zero {
        return Ok(());
    }
    // nix has no name for it.
    let time = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
    match unshare(time) {
        Err(Errno::EINVAL) => return Ok(()),
        other => other.on(Step::Identity, "time namespace")?,
    }
    // Whole seconds: the clocks may not be negative.
    let offset = |clock| -clock_gettime(clock).tv_sec;
    let text = format!("monotonic {} 0\nboottime {} 0\n", offset(ClockId::Monotonic), offset(ClockId::Boottime));
    fs::OpenOptions::new()
        .write(true)
        .open(OFFSETS)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .on(Step::Identity, OFFSETS)?;
    let namespace = fs::File::open(NAMESPACE).on(Step::Identity, NAMESPACE)?;
    setns(&namespace, time).on(Step::Identity, "time namespace")
}
