//! The keys of `config.json`, each with what icerun does about it: one table, in the shape of the file, of every key in
//! config.md and config-linux.md of the OCI runtime specification 1.3.
//!
//! [`keep`] goes through a configuration with the table and leaves only keys that icerun carries out. Every other key of
//! the specification is refused by its path, unless its value changes nothing. A key that the specification does not
//! know is left out with a warning: "Runtimes MAY log unknown properties but MUST otherwise ignore them" (config.md,
//! "Extensibility"). `icerun features` prints from the same table.

use std::fmt;

use serde_json::Value;

use crate::{Error, Result, Step};

/// A key and what icerun does about it.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) rule: Rule,
}

pub(super) enum Rule {
    /// Carried out, with everything below it.
    Done,
    /// An object, or a list of objects, whose keys have their own rules.
    Keys(&'static [Key]),
    /// Not carried out, and so refused.
    Refused {
        /// The feature, in the plural.
        what: &'static str,
        /// What the caller can do.
        instead: &'static str,
        /// True for a value that changes nothing.
        harmless: fn(&Value) -> bool,
    },
    /// Without effect on Linux, for this reason.
    Ignored(&'static str),
}

use Rule::{Done, Keys};

const fn key(name: &'static str, rule: Rule) -> Key {
    Key { name, rule }
}

const fn done(name: &'static str) -> Key {
    key(name, Done)
}

const fn refused(name: &'static str, what: &'static str, instead: &'static str) -> Key {
    key(name, Rule::Refused { what, instead, harmless: is_empty })
}

const fn refused_unless(
    name: &'static str,
    harmless: fn(&Value) -> bool,
    what: &'static str,
    instead: &'static str,
) -> Key {
    key(name, Rule::Refused { what, instead, harmless })
}

/// The top level. The sections of other platforms are left out as runc leaves them out: a configuration may have
/// sections for several platforms, such as `windows` and `linux` for a Linux container on Windows.
pub(super) const CONFIG: &[Key] = &[
    done("ociVersion"),
    key("root", Keys(&[done("path"), done("readonly")])),
    key("mounts", Keys(MOUNT)),
    key("process", Keys(PROCESS)),
    done("hostname"),
    done("domainname"),
    key("hooks", Keys(HOOKS)),
    done("annotations"),
    key("linux", Keys(LINUX)),
    key("windows", Rule::Ignored(OTHER_PLATFORM)),
    key("solaris", Rule::Ignored(OTHER_PLATFORM)),
    key("vm", Rule::Ignored("icerun makes no virtual machines")),
    key("zos", Rule::Ignored(OTHER_PLATFORM)),
    key("freebsd", Rule::Ignored(OTHER_PLATFORM)),
];

const OTHER_PLATFORM: &str = "it is for another platform";

pub(super) const HOOKS: &[Key] = &[
    refused("prestart", "hooks", NO_HOOKS),
    refused("createRuntime", "hooks", NO_HOOKS),
    refused("createContainer", "hooks", NO_HOOKS),
    refused("startContainer", "hooks", NO_HOOKS),
    refused("poststart", "hooks", NO_HOOKS),
    refused("poststop", "hooks", NO_HOOKS),
];

const NO_HOOKS: &str = "remove them, and run their programs around create, start and delete";

const MOUNT: &[Key] = &[
    done("destination"),
    done("type"),
    done("source"),
    done("options"),
    refused("uidMappings", "idmapped mounts", NO_ID_MAPS),
    refused("gidMappings", "idmapped mounts", NO_ID_MAPS),
];

const NO_ID_MAPS: &str = "remove uidMappings and gidMappings of the mount, and give the files the ids of the container";

pub(super) const PROCESS: &[Key] = &[
    done("terminal"),
    key("consoleSize", Keys(&[done("height"), done("width")])),
    key("user", Keys(&[done("uid"), done("gid"), done("umask"), done("additionalGids"), windows("username")])),
    done("args"),
    windows("commandLine"),
    done("env"),
    done("cwd"),
    key(
        "capabilities",
        Keys(&[done("bounding"), done("effective"), done("inheritable"), done("permitted"), done("ambient")]),
    ),
    key("rlimits", Keys(&[done("type"), done("soft"), done("hard")])),
    done("noNewPrivileges"),
    refused("apparmorProfile", "AppArmor profiles", "remove it, and restrict the process by linux.seccomp"),
    done("oomScoreAdj"),
    refused("scheduler", "scheduling policies", "remove it, and use linux.resources.cpu"),
    refused("selinuxLabel", "SELinux labels", "remove it, and restrict the process by linux.seccomp"),
    refused("ioPriority", "I/O priorities", "remove it, and use linux.resources.blockIO.weight"),
    refused("execCPUAffinity", "CPU affinities of exec", "remove it, and use linux.resources.cpu.cpus"),
];

const fn windows(name: &'static str) -> Key {
    key(name, Rule::Ignored("it is for Windows"))
}

pub(super) const LINUX: &[Key] = &[
    key("namespaces", Keys(&[done("type"), done("path")])),
    key("uidMappings", Keys(ID_MAP)),
    key("gidMappings", Keys(ID_MAP)),
    refused_unless("timeOffsets", is_all_zero, "time namespaces", "remove it, and the namespace of the type `time`"),
    key(
        "devices",
        Keys(&[done("type"), done("path"), done("major"), done("minor"), done("fileMode"), done("uid"), done("gid")]),
    ),
    refused("netDevices", "network devices", "remove it, and move the links into a network namespace to join"),
    done("cgroupsPath"),
    key("resources", Keys(RESOURCES)),
    refused("intelRdt", "Intel RDT groups", "remove it, and put the process into a resctrl group after create"),
    refused("memoryPolicy", "memory policies", "remove it, and use linux.resources.cpu.mems"),
    done("sysctl"),
    key("seccomp", Keys(SECCOMP)),
    refused_unless(
        "rootfsPropagation",
        is_private,
        "root file systems that share mounts with the host",
        "remove it, or give `private`: mounts of the host do not appear in the container",
    ),
    done("maskedPaths"),
    done("readonlyPaths"),
    refused("mountLabel", "SELinux labels", "remove it"),
    refused_unless("personality", is_native, "personalities", "remove it, and run the program under setarch(8)"),
];

const ID_MAP: &[Key] = &[done("containerID"), done("hostID"), done("size")];

pub(super) const RESOURCES: &[Key] = &[
    done("unified"),
    key("devices", Keys(&[done("allow"), done("type"), done("major"), done("minor"), done("access")])),
    key("pids", Keys(&[done("limit")])),
    key("blockIO", Keys(BLOCK_IO)),
    key("cpu", Keys(CPU)),
    key("hugepageLimits", Keys(&[done("pageSize"), done("limit")])),
    key("memory", Keys(MEMORY)),
    refused_unless("network", is_all_zero, "network classes and priorities", "remove it, and use tc(8) on the link"),
    refused("rdma", "RDMA limits", "remove it"),
];

const BLOCK_IO: &[Key] = &[
    done("weight"),
    refused_unless("leafWeight", is_zero, "leaf weights", "remove it: no kernel since 5.0 has it"),
    refused("weightDevice", "I/O weights per device", "use blockIO.weight, or limits per device (throttle…Device)"),
    key("throttleReadBpsDevice", Keys(THROTTLE)),
    key("throttleWriteBpsDevice", Keys(THROTTLE)),
    key("throttleReadIOPSDevice", Keys(THROTTLE)),
    key("throttleWriteIOPSDevice", Keys(THROTTLE)),
];

const THROTTLE: &[Key] = &[done("major"), done("minor"), done("rate")];

const CPU: &[Key] = &[
    done("shares"),
    done("quota"),
    done("burst"),
    done("period"),
    refused_unless("realtimeRuntime", is_zero, "realtime limits", "remove it"),
    refused_unless("realtimePeriod", is_zero, "realtime limits", "remove it"),
    done("cpus"),
    done("mems"),
    done("idle"),
];

const MEMORY: &[Key] = &[
    done("limit"),
    done("reservation"),
    done("swap"),
    refused_unless("kernel", is_no_limit, "limits of kernel memory alone", "remove it: it is part of memory.limit"),
    refused_unless("kernelTCP", is_no_limit, "limits of TCP memory alone", "remove it: it is part of memory.limit"),
    // 0 is a value here: it keeps the kernel from swapping.
    refused_unless("swappiness", Value::is_null, "swappiness values", "remove it, and use memory.swap"),
    refused("disableOOMKiller", "containers without an OOM killer", "remove it: cgroup v2 always has one"),
    refused_unless(
        "useHierarchy",
        |value| matches!(value, Value::Null | Value::Bool(true)),
        "cgroups that do not count what is below them",
        "remove it: the kernel always counts the whole tree",
    ),
    // Nothing to check: the cgroup of a new container has no usage.
    done("checkBeforeUpdate"),
];

const SECCOMP: &[Key] = &[
    done("defaultAction"),
    done("defaultErrnoRet"),
    done("architectures"),
    done("flags"),
    refused("listenerPath", "seccomp listeners", NO_LISTENER),
    refused("listenerMetadata", "seccomp listeners", NO_LISTENER),
    key("syscalls", Keys(&[done("names"), done("action"), done("errnoRet"), key("args", Keys(SECCOMP_ARG))])),
];

const NO_LISTENER: &str = "remove it, and use another action than SCMP_ACT_NOTIFY";

const SECCOMP_ARG: &[Key] = &[done("index"), done("value"), done("valueTwo"), done("op")];

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn is_zero(value: &Value) -> bool {
    value.is_null() || value.as_f64() == Some(0.0)
}

fn is_no_limit(value: &Value) -> bool {
    value.is_null() || value.as_i64().is_some_and(|bytes| bytes <= 0)
}

fn is_all_zero(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.values().all(is_all_zero),
        other => is_empty(other) || is_zero(other),
    }
}

fn is_private(value: &Value) -> bool {
    is_empty(value) || matches!(value.as_str(), Some("private" | "rprivate"))
}

/// `LINUX` without flags is what a process has anyway.
fn is_native(value: &Value) -> bool {
    let Some(map) = value.as_object() else { return value.is_null() };
    map.iter().all(|(key, value)| is_empty(value) || key == "domain" && value == "LINUX")
}

/// True if the key at this path, such as `linux.resources.rdma`, is carried out, at least in part.
pub(super) fn is_carried_out(path: &str) -> bool {
    let mut keys = CONFIG;
    for name in path.split('.') {
        match keys.iter().find(|key| key.name == name).map(|key| &key.rule) {
            Some(Done) => return true,
            Some(Keys(below)) => keys = below,
            _ => return false,
        }
    }
    true
}

/// A place in the configuration, for messages: `mounts[2].gidMappings`.
#[derive(Clone, Copy)]
enum At<'a> {
    Top(&'a str),
    Key(&'a At<'a>, &'a str),
    Item(&'a At<'a>, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top(name) => f.write_str(name),
            Self::Key(Self::Top(""), name) => f.write_str(name),
            Self::Key(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Removes every key that is not carried out, below `top`: the name of the object, or nothing for a whole
/// configuration. Adds to `warnings` what is ignored. Refuses a key of the specification that is not carried out.
pub(super) fn keep(value: &mut Value, keys: &[Key], top: &str, warnings: &mut Vec<String>) -> Result<()> {
    keep_below(value, keys, At::Top(top), warnings)
}

fn keep_below(value: &mut Value, keys: &[Key], at: At<'_>, warnings: &mut Vec<String>) -> Result<()> {
    match value {
        Value::Array(list) => {
            for (index, item) in list.iter_mut().enumerate() {
                keep_below(item, keys, At::Item(&at, index), warnings)?;
            }
            Ok(())
        }
        Value::Object(map) => {
            let mut result = Ok(());
            map.retain(|name, value| {
                // A failure ends the walk; the value is dropped then.
                result.is_err()
                    || keep_one(name, value, keys, At::Key(&at, name), warnings).unwrap_or_else(|error| {
                        result = Err(error);
                        false
                    })
            });
            result
        }
        // The typed reader says what is expected here.
        _ => Ok(()),
    }
}

/// True if the key stays.
fn keep_one(name: &str, value: &mut Value, keys: &[Key], at: At<'_>, warnings: &mut Vec<String>) -> Result<bool> {
    match keys.iter().find(|key| key.name == name).map(|key| &key.rule) {
        Some(Done) => Ok(true),
        Some(Keys(below)) => keep_below(value, below, at, warnings).map(|()| true),
        Some(Rule::Refused { harmless, .. }) if harmless(value) => Ok(false),
        Some(Rule::Refused { what, instead, .. }) => {
            Err(Error::unsupported(Step::Bundle, at, format!("{what} are not supported; {instead}")))
        }
        Some(Rule::Ignored(reason)) => {
            if !is_empty(value) {
                warnings.push(format!("{at} is ignored: {reason}"));
            }
            Ok(false)
        }
        None => {
            warnings.push(format!("{at} is ignored: the OCI runtime specification has no such key"));
            Ok(false)
        }
    }
}

#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;
