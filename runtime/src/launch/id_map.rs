//! The id maps of a new user namespace.

use std::fs;

use rustix::process::Pid;

use super::sync::{Sync, ToChild};
use crate::{
    Result, Step,
    error::OnStep as _,
    plan::{IdMap, Plan},
};

/// Writes the maps of the first process and tells it. Returns its user namespace, if the plan makes one.
pub(super) fn write(plan: &Plan, pid: Pid, sync: &Sync) -> Result<Option<fs::File>> {
    let Some(maps) = &plan.id_maps else { return Ok(None) };
    let pid = pid.as_raw_pid();
    for (name, lines) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let path = format!("/proc/{pid}/{name}");
        fs::write(&path, map_text(lines)).on(Step::IdMaps, path)?;
    }
    sync.send(&ToChild::Mapped, None).on(Step::IdMaps, "telling the first process")?;
    let path = format!("/proc/{pid}/ns/user");
    fs::File::open(&path).on(Step::IdMaps, path).map(Some)
}

fn map_text(lines: &[IdMap]) -> String {
    lines.iter().map(|l| format!("{} {} {}\n", l.inside, l.outside, l.count)).collect()
}

#[cfg(test)]
mod tests {
    use super::map_text;
    use crate::plan::IdMap;

    #[test]
    fn maps_are_written_as_the_kernel_reads_them() {
        assert_eq!(map_text(&[IdMap { inside: 0, outside: 524_288, count: 65_536 }]), "0 524288 65536\n");
    }
}
