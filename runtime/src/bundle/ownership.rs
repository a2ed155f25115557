//! The namespaces that fields of `config.json` change, and the check that the container has such a namespace for
//! itself.
//!
//! A container that shares a namespace with its caller must not change it: `hostname` without a uts namespace would
//! rename the host. [`FIELDS`] lists every field that changes something outside the files of the container. A field
//! that acts on a shared namespace is refused by name. Bringing the loopback link up is no field: the launch does it
//! only in a network namespace that it has made itself.

use std::{fs, os::unix::fs::MetadataExt as _};

use oci_spec::runtime::{Linux, Spec};

use crate::{
    Error, Result, Step,
    error::OnStep as _,
    plan::{Namespace, Namespaces, sysctl_path},
};

/// The object a field acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ActsOn {
    User,
    Mount,
    Net,
    Ipc,
    Uts,
    /// The container's first process, which sets it for itself.
    Process,
    /// The container's own cgroup: [`crate::cgroup::Manager::create`] takes none that has processes.
    Cgroup,
}

/// A field of `config.json`.
pub(super) struct Field {
    /// Its name, as in error messages.
    pub(super) name: &'static str,
    pub(super) acts_on: ActsOn,
    /// True if the configuration sets it.
    given: fn(&Spec) -> bool,
}

/// Every field that changes a namespace, a process or a cgroup. `linux.sysctl` is in [`SYSCTLS`].
pub(super) const FIELDS: [Field; 15] = [
    Field { name: "root", acts_on: ActsOn::Mount, given: |spec| spec.root().is_some() },
    Field { name: "mounts", acts_on: ActsOn::Mount, given: |spec| filled(spec.mounts()) },
    Field { name: "hostname", acts_on: ActsOn::Uts, given: |spec| named(spec.hostname()) },
    Field { name: "domainname", acts_on: ActsOn::Uts, given: |spec| named(spec.domainname()) },
    Field { name: "linux.uidMappings", acts_on: ActsOn::User, given: |spec| linux(spec, |l| filled(l.uid_mappings())) },
    Field { name: "linux.gidMappings", acts_on: ActsOn::User, given: |spec| linux(spec, |l| filled(l.gid_mappings())) },
    Field { name: "linux.devices", acts_on: ActsOn::Mount, given: |spec| linux(spec, |l| filled(l.devices())) },
    Field {
        name: "linux.maskedPaths",
        acts_on: ActsOn::Mount,
        given: |spec| linux(spec, |l| filled(l.masked_paths())),
    },
    Field {
        name: "linux.readonlyPaths",
        acts_on: ActsOn::Mount,
        given: |spec| linux(spec, |l| filled(l.readonly_paths())),
    },
    Field {
        name: "linux.rootfsPropagation",
        acts_on: ActsOn::Mount,
        given: |spec| linux(spec, |l| named(l.rootfs_propagation())),
    },
    Field {
        name: "process.rlimits",
        acts_on: ActsOn::Process,
        given: |spec| spec.process().as_ref().is_some_and(|p| filled(p.rlimits())),
    },
    Field {
        name: "process.oomScoreAdj",
        acts_on: ActsOn::Process,
        given: |spec| spec.process().as_ref().is_some_and(|p| p.oom_score_adj().is_some()),
    },
    Field {
        name: "process.user.umask",
        acts_on: ActsOn::Process,
        given: |spec| spec.process().as_ref().is_some_and(|p| p.user().umask().is_some()),
    },
    Field {
        name: "linux.cgroupsPath",
        acts_on: ActsOn::Cgroup,
        given: |spec| linux(spec, |l| l.cgroups_path().is_some()),
    },
    Field { name: "linux.resources", acts_on: ActsOn::Cgroup, given: |spec| linux(spec, |l| l.resources().is_some()) },
];

/// Kernel parameters that belong to a namespace: a path below `/proc/sys`, with everything below it if it ends with a
/// slash. All others belong to the host. `kernel/hostname` is left out on purpose: the field `hostname` sets it.
pub(super) const SYSCTLS: [(&str, ActsOn); 12] = [
    ("net/", ActsOn::Net),
    ("fs/mqueue/", ActsOn::Ipc),
    ("kernel/msgmax", ActsOn::Ipc),
    ("kernel/msgmnb", ActsOn::Ipc),
    ("kernel/msgmni", ActsOn::Ipc),
    ("kernel/sem", ActsOn::Ipc),
    ("kernel/shmall", ActsOn::Ipc),
    ("kernel/shmmax", ActsOn::Ipc),
    ("kernel/shmmni", ActsOn::Ipc),
    ("kernel/shm_rmid_forced", ActsOn::Ipc),
    ("kernel/domainname", ActsOn::Uts),
    ("user/", ActsOn::User),
];

fn filled<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn named(text: &Option<String>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

fn linux(spec: &Spec, given: impl Fn(&Linux) -> bool) -> bool {
    spec.linux().as_ref().is_some_and(given)
}

/// Refuses the first field that would change a namespace which the container shares.
pub(super) fn check(spec: &Spec, namespaces: &Namespaces) -> Result<()> {
    for field in FIELDS.iter().filter(|field| (field.given)(spec)) {
        if !private(namespaces, field.acts_on)? {
            return Err(shared(field.name, field.name, field.acts_on));
        }
    }
    let sysctls = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    for key in sysctls.into_iter().flat_map(|map| map.keys()) {
        check_sysctl(key, namespaces)?;
    }
    Ok(())
}

fn check_sysctl(key: &str, namespaces: &Namespaces) -> Result<()> {
    let subject = format!("linux.sysctl {key}");
    let path =
        sysctl_path(key).ok_or_else(|| Error::invalid(Step::Names, &subject, "not the name of a kernel parameter"))?;
    let owner = SYSCTLS.iter().find(|(prefix, _)| path == *prefix || prefix.ends_with('/') && path.starts_with(prefix));
    let Some((_, acts_on)) = owner else {
        let cause = "it belongs to no namespace: setting it would change the host";
        return Err(Error::invalid(Step::Names, subject, cause));
    };
    if private(namespaces, *acts_on)? { Ok(()) } else { Err(shared(&subject, key, *acts_on)) }
}

fn shared(subject: &str, field: &str, acts_on: ActsOn) -> Error {
    let name = match acts_on {
        ActsOn::User => "user",
        ActsOn::Mount => "mount",
        ActsOn::Net => "network",
        ActsOn::Ipc => "IPC",
        ActsOn::Uts => "UTS",
        ActsOn::Process | ActsOn::Cgroup => "",
    };
    // The text up to the colon is runc's, which its callers know.
    let cause = format!("unable to set {field} without a private {name} namespace: it would change the host");
    Error::invalid(Step::Bundle, subject, cause)
}

/// True if a change of that object stays in the container.
fn private(namespaces: &Namespaces, acts_on: ActsOn) -> Result<bool> {
    match acts_on {
        ActsOn::User => not_the_callers("user", &namespaces.user),
        ActsOn::Mount => not_the_callers("mnt", &namespaces.mount),
        ActsOn::Net => not_the_callers("net", &namespaces.net),
        ActsOn::Ipc => not_the_callers("ipc", &namespaces.ipc),
        ActsOn::Uts => not_the_callers("uts", &namespaces.uts),
        ActsOn::Process | ActsOn::Cgroup => Ok(true),
    }
}

/// A namespace that is joined by path is the container's (or its pod's) unless it is the caller's or process 1's.
fn not_the_callers(name: &str, namespace: &Namespace) -> Result<bool> {
    let path = match namespace {
        Namespace::Host => return Ok(false),
        Namespace::New => return Ok(true),
        Namespace::Join(path) => path,
    };
    let joined = fs::metadata(path).on(Step::Join, path.display())?;
    for of in ["self", "1"] {
        let own = format!("/proc/{of}/ns/{name}");
        // Process 1 can be out of sight, for example behind hidepid; the caller's own namespaces never are.
        if fs::metadata(own).is_ok_and(|own| (own.dev(), own.ino()) == (joined.dev(), joined.ino())) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A value for each row, so that a row without one fails the test.
    fn sample(field: &str) -> Value {
        match field {
            "root" => json!({ "path": "rootfs" }),
            "mounts" => json!([{ "destination": "/tmp", "type": "tmpfs" }]),
            "hostname" | "domainname" => json!("x"),
            "linux.uidMappings" | "linux.gidMappings" => json!([{ "containerID": 0, "hostID": 0, "size": 1 }]),
            "linux.devices" => json!([{ "path": "/dev/x", "type": "c", "major": 1, "minor": 3 }]),
            "linux.maskedPaths" | "linux.readonlyPaths" => json!(["/proc/keys"]),
            "linux.rootfsPropagation" => json!("private"),
            "process.rlimits" => json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]),
            "process.oomScoreAdj" => json!(1),
            "process.user.umask" => json!(2),
            "linux.cgroupsPath" => json!("/x"),
            "linux.resources" => json!({}),
            other => panic!("no sample for {other}"),
        }
    }

    fn spec(field: &str, value: Value) -> Spec {
        let mut spec = json!({ "ociVersion": "1.0.2", "linux": {},
            "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["x"] } });
        let (parents, name) = field.rsplit_once('.').map_or(("", field), |(a, b)| (a, b));
        let mut at = &mut spec;
        for part in parents.split('.').filter(|part| !part.is_empty()) {
            at = &mut at[part];
        }
        at[name] = value;
        serde_json::from_value(spec).unwrap()
    }

    fn all(namespace: impl Fn(&str) -> Namespace) -> Namespaces {
        Namespaces {
            user: namespace("user"),
            mount: namespace("mnt"),
            net: namespace("net"),
            ipc: namespace("ipc"),
            uts: namespace("uts"),
            ..Namespaces::default()
        }
    }

    #[test]
    fn every_row_needs_a_namespace_of_the_containers_own() {
        let own = all(|_| Namespace::New);
        let callers = [all(|_| Namespace::Host), all(|name| Namespace::Join(format!("/proc/self/ns/{name}").into()))];
        for field in &FIELDS {
            let spec = spec(field.name, sample(field.name));
            check(&spec, &own).unwrap_or_else(|error| panic!("{}: {error}", field.name));
            for shared in &callers {
                let refused = check(&spec, shared);
                let inside = matches!(field.acts_on, ActsOn::Process | ActsOn::Cgroup);
                assert_eq!(refused.is_ok(), inside, "{} in {shared:?}", field.name);
                assert!(inside || refused.unwrap_err().subject == field.name);
            }
        }
    }

    #[test]
    fn a_sysctl_is_refused_in_every_spelling_unless_its_namespace_is_private() {
        let (own, host) = (all(|_| Namespace::New), all(|_| Namespace::Host));
        for (prefix, _) in SYSCTLS {
            let path = if prefix.ends_with('/') { format!("{prefix}some/thing") } else { prefix.to_owned() };
            for key in [path.clone(), path.replace('/', ".")] {
                let spec = spec("linux.sysctl", json!({ &key: "1" }));
                check(&spec, &own).unwrap();
                assert!(check(&spec, &host).unwrap_err().subject.contains(&key));
            }
        }
        for key in [
            "kernel/panic",
            "kernel.panic",
            "kernel.hostname",
            "kernel/hostname",
            "net/../kernel/panic",
            "vm/swappiness",
            "net.ipv4/../../kernel.panic",
            "net",
            "net.",
            "",
            "/net/x",
            "./kernel",
            "netx.y",
            "kernel.msgmax.x",
        ] {
            assert!(check(&spec("linux.sysctl", json!({ key: "1" })), &own).is_err(), "{key}");
        }
    }
}
