//! `icerun`, driven by hand on a bundle that `runc spec` made.

use std::fs;
use std::time::Duration;

use icebox_tests::machine::{self, Cgroups};
use icebox_tests::oci::{Bundle, Ran};
use icebox_tests::{PATIENCE, wait_until};
use serde_json::{Value, json};

fn wait_status(bundle: &Bundle, id: &str, status: &str) {
    wait_until(PATIENCE, &format!("the container to be {status}"), || bundle.state(id)["status"] == status);
}

/// A container that sleeps, created and started.
fn sleeping(id: &str) -> Bundle {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.icerun_detached(&["create", id]).ok();
    bundle.icerun(&["start", id]).ok();
    bundle
}

#[test]
fn run_returns_output_and_exit_code_and_leaves_nothing() {
    let bundle = Bundle::new(&["sh", "-c", "echo to-stdout; echo to-stderr >&2; id -u; pwd; exit 7"]);
    let ran = bundle.icerun(&["run", "one"]);
    assert_eq!(ran.code, 7, "{ran:?}");
    assert_eq!(ran.stdout, "to-stdout\n0\n/\n");
    assert_eq!(ran.stderr.trim(), "to-stderr");
    assert_eq!(bundle.icerun(&["list", "--quiet"]).ok(), "");
    assert!(Cgroups::probe().below(bundle.cgroup()).is_empty(), "the cgroup stays behind");
}

#[test]
fn run_of_a_process_killed_by_a_signal_is_128_plus_n() {
    let bundle = Bundle::new(&["sh", "-c", "kill -TERM $$; sleep 5; exit 1"]);
    // PID 1 of a pid namespace ignores signals that it sends itself without a handler: a child shows the shell's rule.
    bundle.edit(|spec| spec["process"]["args"] = json!(["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]));
    assert_eq!(bundle.icerun(&["run", "signalled"]).code, 128 + 15);
}

#[test]
fn create_start_state_exec_pause_resume_kill_delete() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.icerun_detached(&["create", "c1"]).ok();
    let created = bundle.state("c1");
    assert_eq!(created["status"], "created");
    assert_eq!(created["id"], "c1");
    assert_eq!(created["ociVersion"].as_str().map(|v| v.starts_with("1.")), Some(true), "{created}");
    assert_eq!(created["bundle"], bundle.dir().canonicalize().expect("bundle").to_str().expect("utf-8"));
    let pid = i32::try_from(created["pid"].as_i64().expect("a pid")).expect("a pid");
    assert!(machine::start_time(pid).is_some(), "no process {pid}");
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("cmdline");
    assert!(!command.contains("sleep"), "the user's process runs before start: {command}");

    bundle.icerun(&["start", "c1"]).ok();
    wait_status(&bundle, "c1", "running");
    assert_eq!(bundle.state("c1")["pid"].as_i64(), Some(i64::from(pid)));
    wait_until(PATIENCE, "the user's process", || {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with("sleep\0"))
    });

    let echoed = bundle.icerun(&["exec", "c1", "sh", "-c", "echo $0 $PPID; exit 9"]);
    assert_eq!((echoed.code, echoed.stdout.as_str()), (9, "sh 0\n"), "{echoed:?}");
    let listed = bundle.icerun(&["exec", "c1", "ps", "-o", "pid,args"]).ok();
    assert!(listed.contains("sleep 1000"), "{listed}");

    bundle.icerun(&["pause", "c1"]).ok();
    assert_eq!(bundle.state("c1")["status"], "paused");
    let before = machine::cpu_ms(pid);
    assert_eq!(bundle.state("c1")["status"], "paused");
    assert_eq!(machine::cpu_ms(pid), before);
    bundle.icerun(&["resume", "c1"]).ok();
    assert_eq!(bundle.state("c1")["status"], "running");

    bundle.icerun(&["kill", "c1", "KILL"]).ok();
    wait_status(&bundle, "c1", "stopped");
    bundle.icerun(&["delete", "c1"]).ok();
    bundle.icerun(&["state", "c1"]).failed();
    assert!(Cgroups::probe().below(bundle.cgroup()).is_empty(), "the cgroup stays behind");
}

#[test]
fn list_and_ps_show_the_container() {
    let bundle = sleeping("listed");
    let table = bundle.icerun(&["list"]).ok();
    assert!(table.contains("listed") && table.contains("running"), "{table}");
    let entries: Value = serde_json::from_str(&bundle.icerun(&["list", "--format", "json"]).ok()).expect("JSON");
    assert_eq!(entries[0]["id"], "listed");
    assert_eq!(entries[0]["status"], "running");
    assert_eq!(bundle.icerun(&["list", "--quiet"]).ok(), "listed");
    let pids: Vec<i64> =
        serde_json::from_str(&bundle.icerun(&["ps", "--format", "json", "listed"]).ok()).expect("JSON");
    assert!(pids.contains(&bundle.state("listed")["pid"].as_i64().expect("pid")), "{pids:?}");
    let table = bundle.icerun(&["ps", "listed"]).ok();
    assert!(table.contains("sleep"), "{table}");
}

#[test]
fn kill_reaches_the_process_with_the_signal_that_was_named() {
    let bundle =
        Bundle::new(&["sh", "-c", "trap 'exit 42' USR1; echo ready > /tmp/ready; while :; do sleep 0.05; done"]);
    bundle.edit(|spec| spec["root"]["readonly"] = json!(false));
    bundle.icerun_detached(&["create", "sig"]).ok();
    bundle.icerun(&["start", "sig"]).ok();
    wait_until(PATIENCE, "the trap", || bundle.icerun(&["exec", "sig", "test", "-e", "/tmp/ready"]).code == 0);
    for bad in ["NOPE", "999", "-1", ""] {
        bundle.icerun(&["kill", "sig", bad]).failed();
    }
    assert_eq!(bundle.state("sig")["status"], "running");
    bundle.icerun(&["kill", "sig", "SIGUSR1"]).ok();
    wait_status(&bundle, "sig", "stopped");
}

#[test]
fn state_has_the_fields_and_values_of_runc() {
    let ours = sleeping("oracle");
    let theirs = Bundle::new(&["sleep", "1000"]);
    theirs.edit(|spec| spec["annotations"] = json!({ "org.example.key": "value" }));
    ours.edit(|spec| spec["annotations"] = json!({ "org.example.key": "value" }));
    let id = icebox_tests::daemon::unique("oracle");
    let root = theirs.state_dir();
    let runc = |args: &[&str]| -> Ran {
        let mut command = std::process::Command::new("runc");
        command.arg("--root").arg(&root).args(args).current_dir(theirs.dir());
        if args[0] == "create" {
            command
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            return std::process::Output { status: command.status().expect("runc"), stdout: vec![], stderr: vec![] }
                .into();
        }
        command.output().expect("runc").into()
    };
    runc(&["create", &id]).ok();
    let oracle: Value = serde_json::from_str(&runc(&["state", &id]).ok()).expect("JSON");
    runc(&["delete", "--force", &id]).ok();
    let mine = ours.state("oracle");
    for key in ["ociVersion", "id", "pid", "status", "bundle"] {
        let kind = |v: &Value| v.is_string() || v.is_number();
        assert!(kind(&oracle[key]) && kind(&mine[key]), "{key}: runc {} icerun {}", oracle[key], mine[key]);
        assert_eq!(oracle[key].is_string(), mine[key].is_string(), "type of {key}");
    }
}

#[test]
fn two_containers_with_one_id_are_refused_and_the_first_is_untouched() {
    let bundle = sleeping("twin");
    let before = bundle.state("twin");
    let error = bundle.icerun_detached(&["create", "twin"]).failed();
    assert!(error.contains("twin"), "the error names the id: {error}");
    assert_eq!(bundle.state("twin")["pid"], before["pid"]);
    bundle.icerun(&["exec", "twin", "true"]).ok();
}

#[test]
fn verbs_in_the_wrong_state_are_refused() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.icerun_detached(&["create", "c"]).ok();
    bundle.icerun(&["delete", "c"]).failed();
    bundle.icerun(&["start", "c"]).ok();
    bundle.icerun(&["start", "c"]).failed();
    bundle.icerun(&["delete", "c"]).failed();
    assert_eq!(bundle.state("c")["status"], "running", "delete without --force leaves it alone");
    bundle.icerun(&["kill", "c", "9"]).ok();
    wait_status(&bundle, "c", "stopped");
    let error = bundle.icerun(&["exec", "c", "true"]).failed();
    assert!(error.contains("stopped") || error.contains("not running"), "{error}");
    bundle.icerun(&["pause", "c"]).failed();
    bundle.icerun(&["kill", "c", "TERM"]).failed();
    bundle.icerun(&["delete", "c"]).ok();
    for verb in ["state", "start", "delete", "pause", "resume"] {
        bundle.icerun(&[verb, "c"]).failed();
    }
}

#[test]
fn delete_force_ends_a_running_container_and_a_frozen_one() {
    let bundle = sleeping("forced");
    let pid = i32::try_from(bundle.state("forced")["pid"].as_i64().expect("pid")).expect("pid");
    bundle.icerun(&["pause", "forced"]).ok();
    bundle.icerun(&["delete", "--force", "forced"]).ok();
    wait_until(PATIENCE, "the process to end", || machine::start_time(pid).is_none());
    assert!(Cgroups::probe().below(bundle.cgroup()).is_empty());
}

#[test]
fn hostile_ids_are_refused_and_touch_nothing() {
    let bundle = Bundle::new(&["true"]);
    let parent = bundle.state_dir().parent().expect("parent").to_owned();
    let before = machine::tree(&parent);
    let long = "x".repeat(1025);
    for id in ["../escape", "a/b", ".", "..", "", "with space", "new\nline", "-dash", "ü", &long] {
        bundle.icerun_detached(&["create", "--", id]).failed();
        bundle.icerun(&["delete", "--force", "--", id]).failed();
    }
    let after: Vec<_> = machine::tree(&parent).into_iter().filter(|p| !before.contains(p)).collect();
    let strangers: Vec<_> = after.iter().filter(|p| !p.starts_with("state") && !is_output(p)).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    assert!(machine::tree(&bundle.state_dir()).is_empty(), "{:?}", machine::tree(&bundle.state_dir()));
}

fn is_output(path: &std::path::Path) -> bool {
    let name = path.to_string_lossy();
    name.starts_with("out-") || name.starts_with("err-")
}

#[test]
fn bad_bundles_are_refused_by_name() {
    let bundle = Bundle::new(&["true"]);
    let config = bundle.dir().join("config.json");
    let good = fs::read(&config).expect("config.json");
    fs::write(&config, "{ not json").expect("write");
    assert!(bundle.icerun(&["run", "bad"]).failed().contains("config.json"));
    fs::write(&config, "{}").expect("write");
    bundle.icerun(&["run", "bad"]).failed();
    fs::remove_file(&config).expect("remove");
    assert!(bundle.icerun(&["run", "bad"]).failed().contains("config.json"));
    fs::write(&config, good).expect("write");
    bundle.edit(|spec| spec["process"]["args"] = json!(["no-such-program"]));
    let error = bundle.icerun(&["run", "bad"]).failed();
    assert!(error.contains("no-such-program"), "the error names the program: {error}");
    bundle.edit(|spec| spec["root"]["path"] = json!("no-such-root"));
    assert!(bundle.icerun(&["run", "bad"]).failed().contains("no-such-root"));
    bundle.icerun(&["run", "--bundle", "/no/such/bundle", "bad"]).failed();
    assert_eq!(bundle.icerun(&["list", "--quiet"]).ok(), "", "a failed start leaves nothing");
    assert!(Cgroups::probe().below(bundle.cgroup()).is_empty());
}

#[test]
fn process_properties_arrive() {
    let script = "hostname; echo $HELLO; pwd; id -u; id -g; cat /proc/self/status; readlink /proc/self/ns/uts";
    let bundle = Bundle::new(&["sh", "-c", script]);
    fs::create_dir_all(bundle.dir().join("rootfs/deep/dir")).expect("mkdir");
    bundle.edit(|spec| {
        spec["hostname"] = json!("named-by-test");
        spec["process"]["cwd"] = json!("/deep/dir");
        spec["process"]["user"] = json!({ "uid": 1234, "gid": 5678, "additionalGids": [7, 8] });
        spec["process"]["env"] = json!(["PATH=/bin", "HELLO=world=1"]);
        spec["process"]["noNewPrivileges"] = json!(true);
        spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "hard": 512, "soft": 256 }]);
    });
    let out = bundle.icerun(&["run", "props"]).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..5], &["named-by-test", "world=1", "/deep/dir", "1234", "5678"]);
    assert!(out.contains("NoNewPrivs:\t1"), "{out}");
    assert!(out.contains("Groups:\t7 8"), "{out}");
    let uts = machine::namespace("self", "uts").expect("uts");
    assert!(!out.contains(&uts), "the container shares the host's uts namespace");
    bundle.edit(|spec| spec["process"]["args"] = json!(["sh", "-c", "ulimit -n; ulimit -Hn"]));
    assert_eq!(bundle.icerun(&["run", "props"]).ok(), "256\n512");
}

#[test]
fn a_seccomp_filter_of_the_bundle_is_loaded() {
    let bundle = Bundle::new(&["sh", "-c", "mkdir /tmp/x; echo $?; grep Seccomp: /proc/self/status"]);
    bundle.edit(|spec| {
        spec["root"]["readonly"] = json!(false);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }]
        });
    });
    let out = bundle.icerun(&["run", "filtered"]);
    assert!(out.stdout.starts_with("1\n"), "{out:?}");
    assert!(out.stdout.contains("Seccomp:\t2"), "{out:?}");
    assert!(out.stderr.contains("not permitted"), "{out:?}");
}

#[test]
fn cpu_is_held_to_the_quota_of_the_bundle() {
    let bundle = Bundle::new(&["sh", "-c", "while :; do :; done"]);
    bundle.edit(|spec| spec["linux"]["resources"]["cpu"] = json!({ "quota": 20_000, "period": 100_000 }));
    bundle.icerun_detached(&["create", "quota"]).ok();
    bundle.icerun(&["start", "quota"]).ok();
    let cgroups = Cgroups::probe();
    wait_until(PATIENCE, "the loop to run", || cgroups.cpu_stat(bundle.cgroup(), "usage_usec") > 20_000);
    let (start, used) = (std::time::Instant::now(), cgroups.cpu_stat(bundle.cgroup(), "usage_usec"));
    icebox_tests::wait::let_pass(Duration::from_millis(1500));
    let used = cgroups.cpu_stat(bundle.cgroup(), "usage_usec") - used;
    let share = f64::from(u32::try_from(used).expect("microseconds")) / start.elapsed().as_secs_f64() / 1e6;
    assert!((0.05..0.30).contains(&share), "20 % of a core was allowed, {:.0} % was used", share * 100.0);
}

#[test]
fn a_memory_limit_of_the_bundle_kills_inside() {
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "head -c 200000000 /dev/zero | tail -c 190000000 | wc -c; echo survived ${PIPESTATUS}",
    ]);
    bundle.edit(|spec| {
        // Memory and swap together: with swap on (another test may have some), the hog would only be slow.
        spec["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20, "swap": 32 << 20 });
        spec["process"]["args"] =
            json!(["sh", "-c", "dd if=/dev/zero of=/dev/null bs=120M count=1; echo dd ended with $?"]);
    });
    let out = bundle.icerun(&["run", "hog"]);
    assert!(out.stdout.contains("dd ended with 137"), "{out:?}");
}

#[test]
fn a_pids_limit_of_the_bundle_holds() {
    let bundle = Bundle::new(&["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done; echo started"]);
    bundle.edit(|spec| spec["linux"]["resources"]["pids"] = json!({ "limit": 5 }));
    let out = bundle.icerun(&["run", "bomb"]);
    assert!(out.stderr.contains("fork") || out.code != 0, "twelve children under a limit of five: {out:?}");
}

#[test]
fn help_and_version_are_there() {
    let bundle = Bundle::new(&["true"]);
    let help = bundle.icerun(&["--help"]).ok();
    for verb in ["create", "start", "state", "kill", "delete", "run", "exec", "list", "pause", "resume", "ps"] {
        assert!(help.contains(verb), "--help does not name {verb}: {help}");
    }
    assert!(bundle.icerun(&["--version"]).ok().contains("icerun"));
    bundle.icerun(&["no-such-verb"]).failed();
}

#[test]
fn the_process_that_waits_inside_is_not_the_file_on_disk() {
    let bundle = Bundle::new(&["sleep", "60"]);
    bundle.icerun_detached(&["create", "sealed"]).ok();
    let state: serde_json::Value = serde_json::from_str(&bundle.icerun(&["state", "sealed"]).ok()).expect("JSON");
    let exe = fs::read_link(format!("/proc/{}/exe", state["pid"])).expect("exe of the waiting process");
    bundle.icerun(&["delete", "--force", "sealed"]).ok();
    // The file that `#!/proc/self/exe` or a process beside it could get hold of (CVE-2019-5736).
    assert!(exe.to_string_lossy().starts_with("/memfd:icerun"), "{}", exe.display());
}

/// The values that a container could change if it shared the namespace: read in the namespaces of `unshare`.
const HOST_VALUES: &str = "hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax \
    /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/self/oom_score_adj; ulimit -Hc; umask";

#[test]
fn a_field_that_acts_on_a_shared_namespace_is_refused_and_changes_nothing() {
    let bundle = Bundle::new(&["true"]);
    let config = bundle.dir().join("config.json");
    let plain = fs::read(&config).expect("config.json");
    // The machine is never at stake: each round runs in namespaces of its own.
    let round = |verb: &str| -> (Ran, Vec<String>) {
        let icerun = bundle.icerun_command(&[verb, "shared"]);
        let line: Vec<String> = std::iter::once(icerun.get_program())
            .chain(icerun.get_args())
            .map(|word| format!("'{}'", word.to_str().expect("utf-8")))
            .collect();
        let script = format!(
            "{{ {HOST_VALUES}; }} > before; {} </dev/null; c=$?; {{ {HOST_VALUES}; }} > after; exit $c",
            line.join(" ")
        );
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--uts", "--net", "--ipc", "sh", "-c", &script]).current_dir(bundle.dir());
        let ran = Ran::from(unshare.output().expect("unshare"));
        let read = |name| fs::read_to_string(bundle.dir().join(name)).expect(name);
        (ran, vec![read("before"), read("after")])
    };
    let shares = |spec: &mut Value, kind: &str| {
        spec["linux"]["namespaces"].as_array_mut().expect("a list").retain(|ns| ns["type"] != kind);
        // runc's own specification has a hostname.
        if kind == "uts" {
            spec.as_object_mut().expect("an object").remove("hostname");
        }
    };
    for (kind, field, value) in [
        ("uts", "hostname", json!("renamed")),
        ("uts", "domainname", json!("renamed")),
        ("uts", "linux.sysctl", json!({ "kernel.domainname": "renamed" })),
        ("ipc", "linux.sysctl", json!({ "kernel/msgmax": "8191" })),
        ("ipc", "linux.sysctl", json!({ "kernel.msgmax": "8191" })),
        ("network", "linux.sysctl", json!({ "net/ipv4/ip_unprivileged_port_start": "80" })),
        ("network", "linux.sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "80" })),
        ("mount", "root", json!({ "path": "rootfs" })),
    ] {
        let set = |spec: &mut Value| match field.split_once('.') {
            Some((a, b)) => spec[a][b] = value.clone(),
            None => spec[field] = value.clone(),
        };
        fs::write(&config, &plain).expect("write");
        bundle.edit(|spec| {
            shares(spec, kind);
            set(spec);
        });
        let (ran, values) = round("run");
        let error = ran.failed();
        assert!(error.contains(field) && error.contains("without a private"), "{kind} {field}: {error}");
        assert_eq!(values[0], values[1], "{kind} {field}");
        // By path it is the same namespace.
        fs::write(&config, &plain).expect("write");
        bundle.edit(|spec| {
            shares(spec, kind);
            let file = match kind {
                "network" => "net",
                "mount" => "mnt",
                other => other,
            };
            let entry = json!({ "type": kind, "path": format!("/proc/self/ns/{file}") });
            spec["linux"]["namespaces"].as_array_mut().expect("a list").push(entry);
            set(spec);
        });
        let (ran, values) = round("run");
        assert!(ran.failed().contains(field), "{kind} {field}: {ran:?}");
        assert_eq!(values[0], values[1], "{kind} {field} by path");
        assert_eq!(bundle.icerun(&["list", "--quiet"]).ok(), "");
    }

    // What acts on the container's own process or cgroup is done, and only there. A host's /dev that is bound stays.
    fs::write(&config, &plain).expect("write");
    let dev = bundle.dir().join("dev");
    fs::create_dir(&dev).expect("mkdir");
    fs::write(dev.join("null"), "not a device").expect("write");
    bundle.edit(|spec| {
        for kind in ["uts", "network", "ipc"] {
            shares(spec, kind);
        }
        spec["process"]["oomScoreAdj"] = json!(123);
        spec["process"]["user"]["umask"] = json!(0o27);
        spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
        spec["process"]["args"] = json!(["sh", "-c", "cat /proc/self/oom_score_adj; umask; ulimit -Hc; ls /dev"]);
        spec["mounts"] = json!([{ "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev/", "type": "bind", "source": dev, "options": ["bind"] }]);
    });
    let (ran, values) = round("run");
    assert_eq!(ran.ok(), "123\n0027\n0\nnull");
    assert_eq!(values[0], values[1]);
    assert_eq!(fs::read_to_string(dev.join("null")).expect("null"), "not a device");
}

#[test]
fn sysctls_are_set_in_both_spellings() {
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start conf/lo/rp_filter conf/lo/accept_local",
    ]);
    bundle.edit(|spec| {
        spec["linux"]["sysctl"] = json!({ "net/ipv4/ip_unprivileged_port_start": "80",
            "net.ipv4.conf.lo.rp_filter": "2", "net/ipv4/conf/lo/accept_local": "1" });
    });
    assert_eq!(bundle.icerun(&["run", "sysctls"]).ok(), "80\n2\n1");
}

#[test]
fn real_time_signals_arrive_by_number_and_name_and_0_only_asks() {
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "trap 'echo got >> /tmp/got' 37; echo ready > /tmp/got; while :; do sleep 0.05; done",
    ]);
    bundle.edit(|spec| spec["root"]["readonly"] = json!(false));
    bundle.icerun_detached(&["run", "--detach", "rt"]).ok();
    let got = bundle.dir().join("rootfs/tmp/got");
    let lines = || fs::read_to_string(&got).map_or(0, |text| text.lines().count());
    wait_until(PATIENCE, "the trap", || lines() == 1);
    for (round, signal) in [&["37"][..], &["SIGRTMIN+3"], &["RTMIN+3"], &["--all", "37"]].into_iter().enumerate() {
        let line: Vec<&str> = ["kill"]
            .into_iter()
            .chain(signal.iter().copied().filter(|w| w.starts_with('-')))
            .chain(["rt"])
            .chain(signal.iter().copied().filter(|w| !w.starts_with('-')))
            .collect();
        bundle.icerun(&line).ok();
        wait_until(PATIENCE, "the signal", || lines() == round + 2);
    }
    bundle.icerun(&["kill", "rt", "0"]).ok();
    bundle.icerun(&["kill", "rt", "65"]).failed();
    bundle.icerun(&["kill", "--all", "rt", "64"]).ok();
    bundle.icerun(&["kill", "rt", "KILL"]).ok();
    wait_status(&bundle, "rt", "stopped");
    assert!(bundle.icerun(&["kill", "rt", "0"]).failed().contains("container not running"));
}

#[test]
fn a_failed_exec_names_its_cause_makes_nothing_and_leaves_the_container_running() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.edit(|spec| {
        spec["root"]["readonly"] = json!(false);
        spec["process"]["cwd"] = json!("/made/by/create");
    });
    bundle.icerun_detached(&["run", "--detach", "e"]).ok();
    assert!(bundle.dir().join("rootfs/made/by/create").is_dir());
    for (args, word) in [
        (&["--cwd", "/typo/x", "e", "pwd"][..], "/typo/x"),
        (&["--cwd", "/etc/passwd", "e", "pwd"], "/etc/passwd"),
        (&["e", "/nosuch"], "/nosuch"),
        (&["-u", "99999999999", "e", "id"], "99999999999"),
    ] {
        let line: Vec<&str> = ["exec"].iter().chain(args).copied().collect();
        let ran = bundle.icerun(&line);
        assert!(ran.failed().contains(word), "{ran:?}");
        assert_eq!(bundle.state("e")["status"], "running");
    }
    assert!(!bundle.dir().join("rootfs/typo").exists());
    assert_eq!(bundle.icerun(&["exec", "e", "echo", "still"]).ok(), "still");
}
