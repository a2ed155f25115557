//! `features` against the parser: what is printed is taken, what is not printed is refused.

use serde_json::{Value, json};

use super::features;
use crate::bundle::{Bundle, fields::HOOKS};

fn plan(change: impl FnOnce(&mut Value)) -> crate::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": dir.path() },
        "mounts": [{ "destination": "/m", "type": "tmpfs", "source": "/", "options": [] }],
        "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["a"], "capabilities": { "bounding": [] } },
        "linux": { "namespaces": [{ "type": "mount" }] },
    });
    change(&mut config);
    let bundle = Bundle::parse(dir.path().to_owned(), serde_json::to_vec(&config).unwrap())?;
    assert!(bundle.warnings.is_empty(), "{:?}", bundle.warnings);
    bundle.plan("x").map(|_| ())
}

fn list<'a>(features: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = features.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer}"));
    list.iter().map(|item| item.as_str().expect("a string")).collect()
}

#[test]
fn the_structure_is_that_of_the_specification() {
    let printed = features();
    let typed: oci_spec::runtime::Features = serde_json::from_value(printed.clone()).unwrap();
    let mut again = serde_json::to_value(&typed).unwrap();
    // What is not printed is unknown: "MAY either be absent or have the null value".
    fn strip(value: &mut Value) {
        if let Value::Object(map) = value {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip);
        }
    }
    strip(&mut again);
    assert_eq!(again, printed);
}

#[test]
fn both_versions_are_read() {
    let features = features();
    for key in ["ociVersionMin", "ociVersionMax"] {
        plan(|config| config["ociVersion"] = features[key].clone()).unwrap();
    }
}

#[test]
fn a_hook_is_printed_if_it_is_run() {
    let features = features();
    let printed = list(&features, "/hooks");
    for hook in HOOKS {
        let taken = plan(|config| config["hooks"] = json!({ hook.name: [{ "path": "/bin/true" }] })).is_ok();
        assert_eq!(taken, printed.contains(&hook.name), "{}", hook.name);
    }
}

#[test]
fn every_mount_option_is_taken() {
    let features = features();
    let printed = list(&features, "/mountOptions");
    assert!(printed.len() > 50 && printed.is_sorted(), "{printed:?}");
    for option in printed {
        plan(|config| config["mounts"][0]["options"] = json!([option])).unwrap();
    }
}

#[test]
fn a_namespace_is_printed_if_it_is_made() {
    let features = features();
    let printed = list(&features, "/linux/namespaces");
    for kind in ["mount", "pid", "network", "uts", "ipc", "user", "cgroup", "time"] {
        let entries =
            if kind == "mount" { json!([{ "type": kind }]) } else { json!([{ "type": "mount" }, { "type": kind }]) };
        let taken = plan(|config| config["linux"]["namespaces"] = entries).is_ok();
        assert_eq!(taken, printed.contains(&kind), "{kind}");
    }
}

#[test]
fn every_capability_is_known() {
    let features = features();
    let printed = list(&features, "/linux/capabilities");
    assert_eq!((printed[0], printed.len()), ("CAP_CHOWN", 41));
    plan(|config| config["process"]["capabilities"]["bounding"] = json!(printed)).unwrap();
}

#[test]
fn every_seccomp_name_is_taken() {
    let features = features();
    let seccomp = |pointer: &str| list(&features, &format!("/linux/seccomp/{pointer}"));
    let with = |value: Value| plan(|config| config["linux"]["seccomp"] = value);
    let all = "KILL KILL_PROCESS KILL_THREAD TRAP ERRNO TRACE ALLOW LOG NOTIFY";
    for action in all.split(' ').map(|name| format!("SCMP_ACT_{name}")) {
        let syscalls = json!([{ "names": ["read"], "action": action }]);
        let taken = with(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls })).is_ok();
        assert_eq!(taken, seccomp("actions").contains(&action.as_str()), "{action}");
    }
    for op in seccomp("operators") {
        let args = json!([{ "index": 0, "value": 1, "op": op }]);
        let syscalls = json!([{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": args }]);
        with(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls })).unwrap();
    }
    assert_eq!(seccomp("operators").len(), 7);
    with(json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": seccomp("archs") })).unwrap();
    assert!(!seccomp("archs").is_empty());
    with(json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": seccomp("supportedFlags") })).unwrap();
    assert_eq!(seccomp("supportedFlags").len(), 4);
}

#[test]
fn an_extension_is_enabled_if_its_key_is_taken() {
    let features = features();
    for (pointer, path, value) in [
        ("/linux/apparmor/enabled", "/process/apparmorProfile", json!("x")),
        ("/linux/selinux/enabled", "/process/selinuxLabel", json!("x")),
        ("/linux/intelRdt/enabled", "/linux/intelRdt", json!({ "closID": "x" })),
        ("/linux/netDevices/enabled", "/linux/netDevices", json!({ "eth0": {} })),
        (
            "/linux/mountExtensions/idmap/enabled",
            "/mounts/0/uidMappings",
            json!([{ "containerID": 0, "hostID": 0, "size": 1 }]),
        ),
        ("/linux/cgroup/rdma", "/linux/resources", json!({ "rdma": { "mlx": { "hcaHandles": 1 } } })),
    ] {
        let taken = plan(|config| {
            let (parent, name) = path.rsplit_once('/').expect("a pointer");
            config.pointer_mut(parent).expect("the parent")[name] = value;
        });
        assert_eq!(features.pointer(pointer), Some(&Value::Bool(taken.is_ok())), "{pointer}");
    }
}
