//! OCI process: arguments, identity, limits, capabilities.

use std::path::PathBuf;

use oci_spec::runtime::{Capabilities, Linux, PosixRlimitType, Spec};

use super::prepass::{CONFIG_BYTES_MAX, parse_process};
use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{CapabilitySets, Executable, Process, Rlimit},
    seccomp,
};

const ARGUMENT_BYTES_MAX: usize = 2 * 1024 * 1024;

pub(super) fn from_oci(process: &oci_spec::runtime::Process, linux: &Linux) -> Result<Process> {
    let args = process.args().clone().unwrap_or_default();
    let env = process.env().clone().unwrap_or_default();
    check(&args, &env, process.cwd())?;
    let user = process.user();
    // To setresuid(2) the last id means "leave it as it is".
    let groups = user.additional_gids().clone().unwrap_or_default();
    if [user.uid(), user.gid()].iter().chain(&groups).any(|id| *id == u32::MAX) {
        return Err(Error::invalid(Step::Bundle, "process.user", "4294967295 is no id"));
    }
    let size = process.console_size().map_or((0, 0), |size| (clamp(size.height()), clamp(size.width())));
    Ok(Process {
        executable: Executable::Search,
        args,
        env,
        cwd: process.cwd().clone(),
        uid: user.uid(),
        gid: user.gid(),
        groups,
        umask: user.umask(),
        rlimits: process.rlimits().as_deref().unwrap_or_default().iter().map(rlimit).collect(),
        capabilities: capabilities(process),
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        seccomp: filter(linux)?,
        terminal: process.terminal().unwrap_or(false).then_some(size),
    })
}

fn clamp(size: u64) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}

fn check(args: &[String], env: &[String], cwd: &std::path::Path) -> Result<()> {
    if args.is_empty() {
        return Err(Error::invalid(Step::Bundle, "process.args", "the argument vector is empty"));
    }
    if !cwd.is_absolute() {
        return Err(Error::invalid(Step::Bundle, format!("process.cwd {}", cwd.display()), "not an absolute path"));
    }
    if let Some(entry) = env.iter().find(|entry| !entry.contains('=')) {
        return Err(Error::invalid(Step::Bundle, format!("process.env {entry:?}"), "not of the form KEY=value"));
    }
    if args.iter().chain(env).map(String::len).sum::<usize>() > ARGUMENT_BYTES_MAX {
        let text = format!("arguments and environment hold more than {ARGUMENT_BYTES_MAX} bytes");
        return Err(Error::invalid(Step::Bundle, "process", text));
    }
    Ok(())
}

fn rlimit(limit: &oci_spec::runtime::PosixRlimit) -> Rlimit {
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    Rlimit { resource, soft: limit.soft(), hard: limit.hard() }
}

/// The sets as masks. An absent object or set is empty.
fn capabilities(process: &oci_spec::runtime::Process) -> CapabilitySets {
    let Some(sets) = process.capabilities() else { return CapabilitySets::default() };
    CapabilitySets {
        bounding: mask(sets.bounding().as_ref()),
        effective: mask(sets.effective().as_ref()),
        permitted: mask(sets.permitted().as_ref()),
        inheritable: mask(sets.inheritable().as_ref()),
        ambient: mask(sets.ambient().as_ref()),
    }
}

fn mask(set: Option<&Capabilities>) -> u64 {
    set.into_iter().flatten().filter_map(|capability| number(&capability.to_string())).fold(0, |mask, n| mask | 1 << n)
}

/// The number of a capability name, with or without `CAP_`.
fn number(name: &str) -> Option<u8> {
    let full = if name.starts_with("CAP_") { name.to_owned() } else { format!("CAP_{name}") };
    full.parse::<caps::Capability>().ok().map(|capability| capability.index())
}

fn filter(linux: &Linux) -> Result<Option<seccomp::Program>> {
    let Some(profile) = linux.seccomp() else { return Ok(None) };
    let failed = |error: seccomp::Error| Error::invalid(Step::Seccomp, "linux.seccomp", crate::error::chain(&error));
    let rules = super::seccomp::from_oci(profile).map_err(failed)?;
    seccomp::compile(&rules).map(Some).map_err(failed)
}

/// The parts of a container's process that `exec` may change.
#[derive(Debug, Default)]
pub(crate) struct ExecOverrides {
    /// A file with an OCI process object.
    pub(crate) file: Option<PathBuf>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) groups: Vec<u32>,
    pub(crate) terminal: bool,
    pub(crate) capabilities: Vec<String>,
    pub(crate) no_new_privs: bool,
}

/// The process of an `exec`.
#[derive(Debug)]
pub(crate) struct ForExec {
    pub(crate) process: Process,
    pub(crate) oom_score_adj: Option<i32>,
    /// Ignored values, such as unknown capabilities.
    pub(crate) warnings: Vec<String>,
}

/// The process of an `exec` in a container of this configuration: the object of a file or else the container's own, then what the command line changes. The
/// system call filter is always the container's. Without capabilities, limits or an OOM score in the file, the
/// container's hold, as with runc.
pub(crate) fn for_exec(spec: &Spec, overrides: ExecOverrides) -> Result<ForExec> {
    let linux = spec.linux().as_ref().ok_or_else(|| Error::invalid(Step::Bundle, "linux", "missing"))?;
    let own = spec.process().as_ref().ok_or_else(|| Error::invalid(Step::Bundle, "process", "missing"))?;
    let (mut process, oom_score_adj, warnings) = match &overrides.file {
        Some(path) => {
            let (mut given, warnings) = read_file(path)?;
            if given.capabilities().is_none() {
                given.set_capabilities(own.capabilities().clone());
            }
            if given.rlimits().as_ref().is_none_or(Vec::is_empty) {
                given.set_rlimits(own.rlimits().clone());
            }
            if !overrides.args.is_empty() {
                given.set_args(Some(overrides.args));
            }
            let score = given.oom_score_adj().or(own.oom_score_adj());
            (from_oci(&given, linux)?, score, warnings)
        }
        None => {
            let mut process = from_oci(own, linux)?;
            process.args = overrides.args;
            // Only the caller of `exec` can ask for a terminal.
            process.terminal = None;
            (process, own.oom_score_adj(), Vec::new())
        }
    };
    for entry in overrides.env {
        let key = entry.split('=').next().unwrap_or_default().to_owned();
        process.env.retain(|old| old.split('=').next() != Some(key.as_str()));
        process.env.push(entry);
    }
    if let Some(cwd) = overrides.cwd {
        process.cwd = cwd;
    }
    if let Some((uid, gid)) = overrides.user {
        (process.uid, process.gid) = (uid, gid);
    }
    process.groups.extend(overrides.groups);
    if overrides.terminal && process.terminal.is_none() {
        process.terminal = Some((0, 0));
    }
    process.no_new_privs |= overrides.no_new_privs;
    for name in overrides.capabilities {
        let n = number(&name)
            .ok_or_else(|| Error::invalid(Step::Credentials, format!("--cap {name}"), "no such capability"))?;
        let sets = &mut process.capabilities;
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            *set |= 1 << n;
        }
    }
    check(&process.args, &process.env, &process.cwd)?;
    Ok(ForExec { process, oom_score_adj, warnings })
}

fn read_file(path: &std::path::Path) -> Result<(oci_spec::runtime::Process, Vec<String>)> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).on(Step::Bundle, path.display())?;
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).on(Step::Bundle, path.display())?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        let cause = format!("larger than {} bytes", CONFIG_BYTES_MAX);
        return Err(Error::invalid(Step::Bundle, path.display(), cause));
    }
    parse_process(&bytes, &path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn capability_names_have_numbers() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("SYS_ADMIN"), Some(21));
        assert_eq!(number("CAP_NONE_SUCH"), None);
    }
}
