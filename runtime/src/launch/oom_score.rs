//! The OOM score adjustment of a process.

use std::{fs, io};

use rustix::process::Pid;

use crate::{Result, Step, error::OnStep as _, plan::Plan};

/// Sets the plan's score, if it has one.
pub(super) fn set_for(plan: &Plan, pid: Pid, warnings: &mut Vec<String>) -> Result<()> {
    plan.oom_score_adj.map_or(Ok(()), |score| set_oom_score(pid, score, warnings))
}

/// Sets a score. Without the right to lower it, it stays, and a warning says so.
pub(crate) fn set_oom_score(pid: Pid, score: i32, warnings: &mut Vec<String>) -> Result<()> {
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_pid());
    match fs::write(&path, score.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            warnings.push(format!("oom_score_adj {score}: lowering it takes CAP_SYS_RESOURCE, which is missing here"));
            Ok(())
        }
        other => other.on(Step::Rlimits, path),
    }
}
