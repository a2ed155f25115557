//! Every key of the specification with a value: carried out, refused or ignored, as the table says.

use serde_json::{Value, json};

use super::{CONFIG, Key, PROCESS, Rule, keep};
use crate::{Kind, bundle::Bundle};

/// A configuration in which every key that is carried out has a value.
fn full(root: &std::path::Path) -> Value {
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
    let caps = json!(["CAP_KILL"]);
    let throttle = json!([{ "major": 8, "minor": 0, "rate": 100 }]);
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": false },
        "mounts": [{ "destination": "/m", "type": "tmpfs", "source": "a", "options": ["ro"] }],
        "process": {
            "terminal": true, "consoleSize": { "height": 1, "width": 2 },
            "user": { "uid": 1, "gid": 2, "umask": 3, "additionalGids": [4] },
            "args": ["a"], "env": ["A=1"], "cwd": "/",
            "capabilities": { "bounding": caps, "effective": caps, "inheritable": caps, "permitted": caps,
                "ambient": caps },
            "rlimits": [{ "type": "RLIMIT_CORE", "soft": 1, "hard": 2 }],
            "noNewPrivileges": false, "oomScoreAdj": 1
        },
        "hostname": "h", "domainname": "d", "annotations": { "a": "1" },
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "uts" }, { "type": "user" }, { "type": "network" },
                { "type": "pid", "path": "/a" }],
            "uidMappings": map, "gidMappings": map,
            "devices": [{ "type": "c", "path": "/dev/x", "major": 1, "minor": 3, "fileMode": 384, "uid": 1, "gid": 1 }],
            "cgroupsPath": "/a",
            "resources": {
                "unified": { "memory.high": "1" },
                "devices": [{ "allow": true, "type": "c", "major": 1, "minor": 1, "access": "r" }],
                "pids": { "limit": 1 },
                "blockIO": { "weight": 10, "throttleReadBpsDevice": throttle, "throttleWriteBpsDevice": throttle,
                    "throttleReadIOPSDevice": throttle, "throttleWriteIOPSDevice": throttle },
                "cpu": { "shares": 2, "quota": 1, "burst": 1, "period": 1, "cpus": "0", "mems": "0", "idle": 0 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 1 }],
                "memory": { "limit": 1, "reservation": 1, "swap": 2, "checkBeforeUpdate": true }
            },
            "sysctl": { "net.ipv4.ip_forward": "1" },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": [], "flags": [],
                "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2,
                    "args": [{ "index": 0, "value": 3, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ" }] }]
            },
            "maskedPaths": ["/a"], "readonlyPaths": ["/a"]
        }
    })
}

/// For every key that is carried out, another value than that in [`full`].
fn others(other_root: &std::path::Path) -> Vec<(&'static str, Value)> {
    let mut list = vec![
        ("root.path", json!(other_root)),
        ("root.readonly", json!(true)),
        ("mounts[0].destination", json!("/n")),
        ("mounts[0].type", json!("proc")),
        ("mounts[0].source", json!("b")),
        ("mounts[0].options", json!(["rw"])),
        ("process.terminal", json!(false)),
        ("process.consoleSize.height", json!(5)),
        ("process.consoleSize.width", json!(5)),
        ("process.user.uid", json!(5)),
        ("process.user.gid", json!(5)),
        ("process.user.umask", json!(5)),
        ("process.user.additionalGids", json!([5])),
        ("process.args", json!(["b"])),
        ("process.env", json!(["B=1"])),
        ("process.cwd", json!("/b")),
        ("process.capabilities.bounding", json!([])),
        ("process.capabilities.effective", json!([])),
        ("process.capabilities.inheritable", json!([])),
        ("process.capabilities.permitted", json!([])),
        ("process.capabilities.ambient", json!([])),
        ("process.rlimits[0].type", json!("RLIMIT_CPU")),
        ("process.rlimits[0].soft", json!(0)),
        ("process.rlimits[0].hard", json!(5)),
        ("process.noNewPrivileges", json!(true)),
        ("process.oomScoreAdj", json!(5)),
        ("hostname", json!("i")),
        ("domainname", json!("e")),
        ("linux.namespaces[4].type", json!("ipc")),
        ("linux.namespaces[4].path", json!("/b")),
        ("linux.devices[0].type", json!("b")),
        ("linux.devices[0].path", json!("/dev/y")),
        ("linux.devices[0].major", json!(5)),
        ("linux.devices[0].minor", json!(5)),
        ("linux.devices[0].fileMode", json!(5)),
        ("linux.devices[0].uid", json!(5)),
        ("linux.devices[0].gid", json!(5)),
        ("linux.cgroupsPath", json!("/b")),
        ("linux.resources.unified", json!({})),
        ("linux.resources.devices[0].allow", json!(false)),
        ("linux.resources.devices[0].type", json!("b")),
        ("linux.resources.devices[0].major", json!(5)),
        ("linux.resources.devices[0].minor", json!(5)),
        ("linux.resources.devices[0].access", json!("w")),
        ("linux.resources.pids.limit", json!(5)),
        ("linux.resources.blockIO.weight", json!(50)),
        ("linux.resources.cpu.shares", json!(500)),
        ("linux.resources.cpu.quota", json!(5)),
        ("linux.resources.cpu.burst", json!(5)),
        ("linux.resources.cpu.period", json!(5)),
        ("linux.resources.cpu.cpus", json!("5")),
        ("linux.resources.cpu.mems", json!("5")),
        ("linux.resources.cpu.idle", json!(1)),
        ("linux.resources.hugepageLimits[0].pageSize", json!("1GB")),
        ("linux.resources.hugepageLimits[0].limit", json!(5)),
        ("linux.resources.memory.limit", json!(2)),
        ("linux.resources.memory.reservation", json!(5)),
        ("linux.resources.memory.swap", json!(5)),
        ("linux.sysctl", json!({})),
        ("linux.seccomp.defaultAction", json!("SCMP_ACT_TRACE")),
        ("linux.seccomp.defaultErrnoRet", json!(5)),
        ("linux.seccomp.architectures", json!(["SCMP_ARCH_X86"])),
        ("linux.seccomp.flags", json!(["SECCOMP_FILTER_FLAG_LOG"])),
        ("linux.seccomp.syscalls[0].names", json!(["write"])),
        ("linux.seccomp.syscalls[0].action", json!("SCMP_ACT_TRACE")),
        ("linux.seccomp.syscalls[0].errnoRet", json!(5)),
        ("linux.seccomp.syscalls[0].args[0].index", json!(5)),
        ("linux.seccomp.syscalls[0].args[0].value", json!(7)),
        ("linux.seccomp.syscalls[0].args[0].valueTwo", json!(2)),
        ("linux.seccomp.syscalls[0].args[0].op", json!("SCMP_CMP_NE")),
        ("linux.maskedPaths", json!([])),
        ("linux.readonlyPaths", json!([])),
    ];
    for map in ["linux.uidMappings[0].containerID", "linux.uidMappings[0].hostID", "linux.uidMappings[0].size"] {
        list.extend([(map, json!(5))]);
    }
    for map in ["linux.gidMappings[0].containerID", "linux.gidMappings[0].hostID", "linux.gidMappings[0].size"] {
        list.extend([(map, json!(5))]);
    }
    for (major, minor, rate) in [
        (
            "linux.resources.blockIO.throttleReadBpsDevice[0].major",
            "linux.resources.blockIO.throttleReadBpsDevice[0].minor",
            "linux.resources.blockIO.throttleReadBpsDevice[0].rate",
        ),
        (
            "linux.resources.blockIO.throttleWriteBpsDevice[0].major",
            "linux.resources.blockIO.throttleWriteBpsDevice[0].minor",
            "linux.resources.blockIO.throttleWriteBpsDevice[0].rate",
        ),
        (
            "linux.resources.blockIO.throttleReadIOPSDevice[0].major",
            "linux.resources.blockIO.throttleReadIOPSDevice[0].minor",
            "linux.resources.blockIO.throttleReadIOPSDevice[0].rate",
        ),
        (
            "linux.resources.blockIO.throttleWriteIOPSDevice[0].major",
            "linux.resources.blockIO.throttleWriteIOPSDevice[0].minor",
            "linux.resources.blockIO.throttleWriteIOPSDevice[0].rate",
        ),
    ] {
        list.extend([(major, json!(9)), (minor, json!(9)), (rate, json!(9))]);
    }
    list
}

/// Keys that are carried out without a trace in the plan.
const NOT_IN_THE_PLAN: [(&str, &str); 3] = [
    ("ociVersion", "checked while it is read"),
    ("annotations", "printed by `icerun state`"),
    ("linux.resources.memory.checkBeforeUpdate", "a new cgroup has no usage"),
];

/// For every key that is refused: a value that is, and values that change nothing.
fn refusals() -> Vec<(&'static str, Value, Vec<Value>)> {
    let hook = json!([{ "path": "/bin/true" }]);
    let maps = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    let null = || vec![Value::Null];
    vec![
        ("hooks.prestart", hook.clone(), vec![Value::Null, json!([])]),
        ("hooks.createRuntime", hook.clone(), vec![Value::Null, json!([])]),
        ("hooks.createContainer", hook.clone(), vec![Value::Null, json!([])]),
        ("hooks.startContainer", hook.clone(), vec![Value::Null, json!([])]),
        ("hooks.poststart", hook.clone(), vec![Value::Null, json!([])]),
        ("hooks.poststop", hook, vec![Value::Null, json!([])]),
        ("mounts[0].uidMappings", maps.clone(), vec![json!([])]),
        ("mounts[0].gidMappings", maps, vec![json!([])]),
        ("process.apparmorProfile", json!("x"), vec![json!("")]),
        ("process.scheduler", json!({ "policy": "SCHED_FIFO" }), null()),
        ("process.selinuxLabel", json!("x"), vec![json!("")]),
        ("process.ioPriority", json!({ "class": "IOPRIO_CLASS_IDLE" }), null()),
        ("process.execCPUAffinity", json!({ "initial": "0" }), vec![json!({})]),
        ("linux.timeOffsets", json!({ "monotonic": { "secs": 1 } }), vec![json!({ "monotonic": { "secs": 0 } })]),
        ("linux.netDevices", json!({ "eth0": {} }), vec![json!({})]),
        ("linux.intelRdt", json!({ "closID": "x" }), vec![json!({})]),
        ("linux.memoryPolicy", json!({ "mode": "MPOL_BIND" }), null()),
        ("linux.rootfsPropagation", json!("slave"), vec![json!(""), json!("private"), json!("rprivate")]),
        ("linux.mountLabel", json!("x"), vec![json!("")]),
        ("linux.personality", json!({ "domain": "LINUX32" }), vec![json!({ "domain": "LINUX", "flags": [] })]),
        (
            "linux.resources.network",
            json!({ "classID": 1 }),
            vec![json!({}), json!({ "classID": 0, "priorities": [] })],
        ),
        ("linux.resources.rdma", json!({ "mlx": { "hcaHandles": 1 } }), vec![json!({})]),
        ("linux.resources.blockIO.leafWeight", json!(10), vec![json!(0)]),
        ("linux.resources.blockIO.weightDevice", json!([{ "major": 8, "minor": 0, "weight": 10 }]), vec![json!([])]),
        ("linux.resources.cpu.realtimeRuntime", json!(1), vec![json!(0)]),
        ("linux.resources.cpu.realtimePeriod", json!(1), vec![json!(0)]),
        ("linux.resources.memory.kernel", json!(1), vec![json!(0), json!(-1)]),
        ("linux.resources.memory.kernelTCP", json!(1), vec![json!(0), json!(-1)]),
        ("linux.resources.memory.swappiness", json!(0), null()),
        ("linux.resources.memory.disableOOMKiller", json!(true), vec![json!(false)]),
        ("linux.resources.memory.useHierarchy", json!(false), vec![json!(true)]),
        ("linux.seccomp.listenerPath", json!("/x"), vec![json!("")]),
        ("linux.seccomp.listenerMetadata", json!("x"), vec![json!("")]),
    ]
}

/// For every key that is ignored, a value.
fn ignored() -> Vec<(&'static str, Value)> {
    vec![
        ("windows", json!({ "layerFolders": ["x"] })),
        ("solaris", json!({ "milestone": "x" })),
        ("vm", json!({ "kernel": { "path": "/x" } })),
        ("zos", json!({ "namespaces": [{ "type": "pid" }] })),
        ("freebsd", json!({ "jail": { "parent": "x" } })),
        ("process.user.username", json!("x")),
        ("process.commandLine", json!("x")),
    ]
}

/// The paths of all keys whose rule is chosen, without indices.
fn paths(keys: &[Key], at: &str, choose: fn(&Rule) -> bool) -> Vec<String> {
    let mut list = Vec::new();
    for key in keys {
        let path = if at.is_empty() { key.name.to_owned() } else { format!("{at}.{}", key.name) };
        if choose(&key.rule) {
            list.push(path.clone());
        }
        if let Rule::Keys(below) = key.rule {
            list.extend(paths(below, &path, choose));
        }
    }
    list.sort();
    list
}

fn without_indices<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut list: Vec<String> = paths.map(|path| path.replace("[0]", "").replace("[4]", "")).collect();
    list.sort();
    list
}

/// Puts a value where the path says.
fn set(config: &mut Value, path: &str, value: Value) {
    let pointer = format!("/{}", path.replace('[', ".").replace(']', "").replace('.', "/"));
    let (parent, name) = pointer.rsplit_once('/').expect("a path");
    if parent == "/hooks" {
        config["hooks"] = json!({});
    }
    config.pointer_mut(parent).unwrap_or_else(|| panic!("{path} has a parent"))[name] = value;
}

struct Case {
    dir: tempfile::TempDir,
    config: Value,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        let config = full(&dir.path().join("root"));
        Self { dir, config }
    }

    fn with(&self, path: &str, value: Value) -> crate::Result<(String, Vec<String>)> {
        let mut config = self.config.clone();
        if !path.is_empty() {
            set(&mut config, path, value);
        }
        let bundle = Bundle::parse(self.dir.path().to_owned(), serde_json::to_vec(&config).unwrap())?;
        Ok((format!("{:?}", bundle.plan("x")?), bundle.warnings))
    }
}

#[test]
fn every_key_that_is_carried_out_changes_the_plan() {
    let case = Case::new();
    let others = others(&case.dir.path().join("other"));
    let mut covered = without_indices(others.iter().map(|(path, _)| *path));
    covered.extend(NOT_IN_THE_PLAN.map(|(path, _)| path.to_owned()));
    covered.sort();
    assert_eq!(covered, paths(CONFIG, "", |rule| matches!(rule, Rule::Done)));

    let (base, warnings) = case.with("", Value::Null).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    for (path, value) in others {
        let (plan, warnings) = case.with(path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_ne!(plan, base, "{path} has no effect");
        assert!(warnings.is_empty(), "{path}: {warnings:?}");
    }
}

#[test]
fn every_key_that_is_refused_is_refused_by_its_path_unless_it_changes_nothing() {
    let case = Case::new();
    let refusals = refusals();
    let covered = without_indices(refusals.iter().map(|(path, ..)| *path));
    assert_eq!(covered, paths(CONFIG, "", |rule| matches!(rule, Rule::Refused { .. })));

    let (base, _) = case.with("", Value::Null).unwrap();
    for (path, value, harmless) in refusals {
        let error = case.with(path, value).err().unwrap_or_else(|| panic!("{path} is taken"));
        assert_eq!((error.kind, error.subject.as_str()), (Kind::Unsupported, path), "{error}");
        assert!(error.cause.contains("not supported; "), "{path}: {error}");
        for value in harmless {
            let (plan, warnings) =
                case.with(path, value.clone()).unwrap_or_else(|error| panic!("{path} {value}: {error}"));
            assert_eq!(plan, base, "{path} {value}");
            assert!(warnings.is_empty(), "{path}: {warnings:?}");
        }
    }
}

#[test]
fn every_key_that_is_ignored_and_every_unknown_key_is_named_in_a_warning() {
    let case = Case::new();
    let mut ignored = ignored();
    let covered = without_indices(ignored.iter().map(|(path, _)| *path));
    assert_eq!(covered, paths(CONFIG, "", |rule| matches!(rule, Rule::Ignored(_))));

    let unknown = ["x-vendor", "process.umask", "mounts[0].flags", "linux.resources.cpu.weight", "linux.seccomp.x"];
    ignored.extend(unknown.map(|path| (path, json!({ "a": ["b"] }))));
    let (base, _) = case.with("", Value::Null).unwrap();
    for (path, value) in ignored {
        let (plan, warnings) = case.with(path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(plan, base, "{path}");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with(&format!("{path} is ignored: ")), "{warnings:?}");
    }
}

#[test]
fn the_process_of_an_exec_goes_by_the_same_table() {
    let mut warnings = Vec::new();
    let mut process = json!({ "args": ["a"], "apparmorProfile": "x" });
    let error = keep(&mut process, PROCESS, "process", &mut warnings).unwrap_err();
    assert_eq!(error.subject, "process.apparmorProfile");
    let mut process = json!({ "args": ["a"], "apparmorProfile": "", "new": 1, "user": { "uid": 1, "old": 2 } });
    keep(&mut process, PROCESS, "process", &mut warnings).unwrap();
    assert_eq!(process, json!({ "args": ["a"], "user": { "uid": 1 } }));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("process.new is ignored") && warnings[1].starts_with("process.user.old"));
}

/// [`super::super::ownership`] says what fields act on; it must not name one that the table does not carry out.
#[test]
fn what_has_an_owner_is_in_the_table() {
    for field in &crate::bundle::ownership::FIELDS {
        let known = super::is_carried_out(field.name) || field.name == "linux.rootfsPropagation";
        assert!(known, "{} is refused, so its row in ownership.rs has no use", field.name);
    }
}
