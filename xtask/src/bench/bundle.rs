//! The bundle that every OCI runtime gets: busybox, `runc spec`, and then the same namespaces, capabilities and seccomp
//! filter for all.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::context::{failed, make_dir, shown};
use super::seccomp_names;
use crate::error::{Result, While};

/// The capabilities that Docker gives a container.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// First host id of the user namespace of `run-userns`.
const USERNS_HOST_ID: u32 = 1_000_000;

/// Makes the busybox root that all bundles share.
pub(super) fn root(scratch: &Path) -> Result<PathBuf> {
    let root = scratch.join("rootfs");
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        make_dir(&root.join(dir))?;
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new).into_iter().find(|p| p.is_file());
    let busybox = busybox.ok_or_else(|| failed("find", "busybox", "install the package busybox-static"))?;
    std::fs::copy(busybox, root.join("bin/busybox")).or_fail("copy", shown(busybox))?;
    for applet in ["sh", "true", "sleep"] {
        let link = root.join("bin").join(applet);
        symlink("busybox", &link).or_fail("link", shown(&link))?;
    }
    Ok(root)
}

/// Makes a bundle for one runtime: `args` in the shared root, with a cgroup of its own.
pub(super) fn bundle(dir: &Path, root: &Path, args: &[&str], userns: bool) -> Result<()> {
    make_dir(dir)?;
    let made = Command::new("runc").arg("spec").current_dir(dir).output();
    let made = made.or_fail("start", "runc")?;
    if !made.status.success() {
        return Err(failed("run", "runc spec", String::from_utf8_lossy(&made.stderr).trim()));
    }
    let path = dir.join("config.json");
    let text = std::fs::read(&path).or_fail("read", shown(&path))?;
    let mut spec: Value = serde_json::from_slice(&text).map_err(|e| failed("parse", path.display(), e))?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(args);
    spec["root"] = json!({ "path": root, "readonly": true });
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(CAPABILITIES);
    }
    // Raising a limit needs CAP_SYS_RESOURCE, which a root in a virtual machine may lack.
    spec["process"]["rlimits"] = json!([]);
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    spec["linux"]["cgroupsPath"] = json!(format!("/icebox-bench-{}-{name}", std::process::id()));
    let mut namespaces = vec!["pid", "network", "ipc", "uts", "mount"];
    if userns {
        namespaces.push("user");
        let map = json!([{ "containerID": 0, "hostID": USERNS_HOST_ID, "size": 65_536 }]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
    }
    spec["linux"]["namespaces"] = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    spec["linux"]["seccomp"] = seccomp();
    std::fs::write(&path, spec.to_string()).or_fail("write", shown(&path))
}

/// An allow-list as Docker's, with its conditions on `personality`, `socket` and `clone`.
fn seccomp() -> Value {
    let equal = |value: u64| json!([{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }]);
    let mut syscalls = vec![json!({ "names": seccomp_names::allowed(), "action": "SCMP_ACT_ALLOW" })];
    for persona in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        syscalls.push(json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": equal(persona) }));
    }
    let not_vsock = json!([{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }]);
    syscalls.push(json!({ "names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": not_vsock }));
    let no_namespaces = json!([{ "index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }]);
    syscalls.push(json!({ "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": no_namespaces }));
    syscalls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls,
    })
}
