//! The output of `icerun features`: the structure of features.md and features-linux.md of the OCI runtime specification.
//! It is made from the tables that the parser reads by, so that it names nothing that the parser refuses.

use oci_spec::runtime::LinuxNamespaceType;
use serde_json::{Value, json};

use super::{
    fields::{self, Rule, is_carried_out},
    linux::NAMESPACES,
    mounts, prepass, seccomp,
};

/// What this runtime can do; the host's kernel may support less.
#[must_use]
pub fn features() -> Value {
    let hooks: Vec<&str> =
        fields::HOOKS.iter().filter(|key| !matches!(key.rule, Rule::Refused { .. })).map(|key| key.name).collect();
    let namespaces: Vec<LinuxNamespaceType> = NAMESPACES.iter().map(|(kind, _)| *kind).collect();
    let mut capabilities: Vec<caps::Capability> = caps::all().into_iter().collect();
    capabilities.sort_by_key(caps::Capability::index);
    let capabilities: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
    let seccomp = seccomp::names();
    json!({
        "ociVersionMin": prepass::OCI_VERSION_MIN,
        "ociVersionMax": prepass::OCI_VERSION_MAX,
        "hooks": hooks,
        "mountOptions": mounts::options(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": capabilities,
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": false,
                "systemdUser": false,
                "rdma": is_carried_out("linux.resources.rdma"),
            },
            "seccomp": {
                "enabled": is_carried_out("linux.seccomp"),
                "actions": seccomp.actions,
                "operators": seccomp.operators,
                "archs": seccomp.arches,
                "knownFlags": seccomp.flags,
                "supportedFlags": seccomp.flags,
            },
            "apparmor": { "enabled": is_carried_out("process.apparmorProfile") },
            "selinux": { "enabled": is_carried_out("process.selinuxLabel") },
            "intelRdt": {
                "enabled": is_carried_out("linux.intelRdt"),
                "schemata": is_carried_out("linux.intelRdt.schemata"),
                "monitoring": is_carried_out("linux.intelRdt.enableMonitoring"),
            },
            "mountExtensions": {
                "idmap": { "enabled": is_carried_out("mounts.uidMappings") && is_carried_out("mounts.gidMappings") },
            },
            "netDevices": { "enabled": is_carried_out("linux.netDevices") },
        },
        // No annotation changes what icerun does.
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

#[cfg(test)]
mod tests;
