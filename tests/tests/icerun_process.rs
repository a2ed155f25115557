//! How `icerun` becomes the program: each field of `process`, for create, run and exec.

use std::fs;

use icebox_tests::oci::{Bundle, Ran};
use serde_json::{Value, json};

#[test]
fn home_comes_from_the_containers_passwd_unless_given() {
    let bundle = Bundle::new(&["env"]);
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1883:1883::/var/empty:/bin/sh\n";
    fs::write(bundle.dir().join("rootfs/etc/passwd"), passwd).expect("write");
    let user = |uid: u32, env: &[&str]| {
        bundle.edit(|spec| {
            spec["process"]["user"] = json!({ "uid": uid, "gid": uid });
            spec["process"]["env"] = json!(env);
        });
    };
    let home = |text: String| text.lines().filter(|line| line.starts_with("HOME")).collect::<Vec<_>>().join(" ");
    for (uid, env, expected) in [
        (0, &["PATH=/bin"][..], "HOME=/root"),
        (1883, &["PATH=/bin"], "HOME=/var/empty"),
        (4242, &["PATH=/bin"], "HOME=/"),
        (0, &["PATH=/bin", "HOME=/given"], "HOME=/given"),
    ] {
        user(uid, env);
        assert_eq!(home(bundle.icerun(&["run", "home"]).ok()), expected);
    }
    user(0, &["PATH=/bin"]);
    bundle.edit(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    bundle.icerun_detached(&["run", "--detach", "home"]).ok();
    fs::write(bundle.dir().join("p"), r#"{"args":["/bin/env"],"cwd":"/","user":{"uid":1883,"gid":1883}}"#)
        .expect("write");
    assert_eq!(home(bundle.icerun(&["exec", "home", "env"]).ok()), "HOME=/root");
    assert_eq!(home(bundle.icerun(&["exec", "-u", "1883", "home", "env"]).ok()), "HOME=/var/empty");
    assert_eq!(
        bundle.icerun(&["exec", "-p", "p", "home"]).ok(),
        "HOME=/var/empty",
        "the file's environment, and no other"
    );
}

#[test]
fn exec_reads_the_whole_process_object_and_sets_limits() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.edit(|spec| {
        spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "hard": 512, "soft": 256 }]);
        spec["process"]["user"]["additionalGids"] = json!([77]);
    });
    bundle.icerun_detached(&["run", "--detach", "whole"]).ok();
    assert_eq!(bundle.icerun(&["exec", "whole", "sh", "-c", "ulimit -n; ulimit -Hn"]).ok(), "256\n512");
    let file = bundle.dir().join("p");
    let exec = |process: Value| {
        fs::write(&file, process.to_string()).expect("write");
        bundle.icerun(&["exec", "--process", file.to_str().expect("utf-8"), "whole"])
    };
    let script =
        "umask; ulimit -n; cat /proc/self/oom_score_adj; grep -E 'Groups|CapEff|CapBnd' /proc/self/status; env";
    let process = json!({ "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin", "HOME=/h", "A=b"],
        "user": { "uid": 0, "gid": 0, "additionalGids": [5, 6], "umask": 63 }, "oomScoreAdj": 321,
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 300, "soft": 200 }],
        "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] } });
    let out = exec(process.clone()).ok();
    assert!(out.starts_with("0077\n200\n321\n"), "{out}");
    assert!(out.contains("Groups:\t5 6 \n"), "{out}");
    assert!(out.contains("CapEff:\t0000000000000020\nCapBnd:\t0000000000000020"), "{out}");
    assert!(out.contains("A=b") && !out.contains("TERM="), "{out}");
    for (key, value) in [
        ("apparmorProfile", json!("x")),
        ("selinuxLabel", json!("x")),
        ("ioPriority", json!({ "class": "IOPRIO_CLASS_IDLE" })),
        ("scheduler", json!({ "policy": "SCHED_IDLE" })),
        ("fromTheFuture", json!(1)),
    ] {
        let mut process = process.clone();
        process[key] = value;
        assert!(exec(process).failed().contains(key), "{key}");
    }
    let error = bundle.icerun(&["exec", "whole", "no-such-program"]).failed();
    assert!(error.contains("executable file not found") && error.contains("no such file or directory"), "{error}");
}

#[test]
fn streams_can_be_opened_by_name_as_any_user() {
    let script = "echo 1 > /dev/stdout; echo 2 > /proc/self/fd/1; echo 3 > /dev/stderr; cat /dev/stdin";
    let bundle = Bundle::new(&["sh", "-c", script]);
    let check = |ran: Ran, who: &str| {
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "1\n2\nin\n", "3\n"), "{who}: {ran:?}");
    };
    let with_input = |args: &[&str]| -> Ran {
        use std::io::Write as _;
        let mut command = bundle.icerun_command(args);
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("start icerun");
        child.stdin.take().expect("stdin").write_all(b"in\n").expect("write");
        child.wait_with_output().expect("icerun").into()
    };
    bundle.edit(|spec| spec["process"]["user"] = json!({ "uid": 1883, "gid": 1883 }));
    check(with_input(&["run", "streams"]), "run");
    bundle.edit(|spec| {
        let maps = json!([{ "containerID": 0, "hostID": 3_000_000_000_u32, "size": 65536 }]);
        spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({ "type": "user" }));
        spec["linux"]["uidMappings"] = maps.clone();
        spec["linux"]["gidMappings"] = maps;
        spec["process"]["args"] = json!(["sleep", "1000"]);
    });
    bundle.icerun_detached(&["run", "--detach", "streams"]).ok();
    check(with_input(&["exec", "-u", "1884", "streams", "sh", "-c", script]), "exec in a user namespace");
    // A file of the host keeps its owner.
    let file = bundle.dir().join("out");
    let mut command = bundle.icerun_command(&["exec", "-u", "1884", "streams", "true"]);
    command.stdin(fs::File::open(bundle.dir().join("config.json")).expect("open"));
    command.stdout(fs::File::create(&file).expect("create"));
    assert!(command.status().expect("icerun").success());
    for path in [file, bundle.dir().join("config.json")] {
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).expect("stat")), 0);
    }
}

#[test]
fn the_console_is_the_terminal_also_on_a_read_only_dev() {
    let script = "test -t 0 && ls -l /dev/console; echo via-console > /dev/console; echo tty > /dev/tty; echo > /dev/new; cat /run/secrets/s; echo > /run/new";
    let bundle = Bundle::new(&["sh", "-c", script]);
    let secret = bundle.dir().join("secret");
    fs::write(&secret, "told\n").expect("write");
    let dev_options = |words: &[&str]| {
        bundle.edit(|spec| {
            spec["process"]["terminal"] = json!(true);
            spec["process"]["user"] = json!({ "uid": 1883, "gid": 1883 });
            let mounts = spec["mounts"].as_array_mut().expect("a list");
            let dev = mounts.iter_mut().find(|mount| mount["destination"] == "/dev").expect("/dev");
            dev["options"].as_array_mut().expect("a list").extend(words.iter().map(|word| json!(word)));
            if !words.is_empty() {
                mounts.push(json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro"] }));
                mounts.push(json!({ "destination": "/run/secrets/s", "type": "bind", "source": secret, "options": ["bind", "ro"] }));
            }
        });
    };
    for words in [&[][..], &["ro"]] {
        dev_options(words);
        let icerun = bundle.icerun_command(&["run", "console"]);
        let line: Vec<&str> = std::iter::once(icerun.get_program())
            .chain(icerun.get_args())
            .map(|w| w.to_str().expect("utf-8"))
            .collect();
        let mut script = std::process::Command::new("script");
        script
            .args(["-qec", &line.join(" "), "/dev/null"])
            .current_dir(bundle.dir())
            .stdin(std::process::Stdio::null());
        let text = String::from_utf8_lossy(&script.output().expect("script").stdout).into_owned();
        assert!(text.contains("via-console") && text.contains("/dev/console") && text.contains("tty\r\n"), "{text}");
        assert!(!text.contains("can't create /dev/console") && !text.contains("can't create /dev/tty"), "{text}");
        assert_eq!(text.contains("/dev/new: Read-only file system"), !words.is_empty(), "{text}");
        assert_eq!(text.contains("told"), !words.is_empty(), "{text}");
        assert_eq!(text.contains("/run/new: Read-only file system"), !words.is_empty(), "{text}");
    }
}

#[test]
fn a_filter_needs_to_allow_nothing_of_the_runtime_but_execve() {
    // What a static busybox `true` and the kernel need, and execve. In none of the two is close_range or capset.
    let names = [
        "execve",
        "brk",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "readlink",
        "readlinkat",
        "getrandom",
        "mprotect",
        "mmap",
        "munmap",
        "exit_group",
        "getuid",
        "geteuid",
        "getgid",
        "getegid",
        "prctl",
        "futex",
    ];
    let bundle = Bundle::new(&["true"]);
    for no_new_privs in [true, false] {
        bundle.edit(|spec| {
            spec["process"]["noNewPrivileges"] = json!(no_new_privs);
            spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] });
        });
        bundle.icerun(&["run", "narrow"]).ok();
        // A created container waits with the program's rights. What loading the filter takes is permitted, not effective.
        bundle.icerun_detached(&["create", "narrow"]).ok();
        let status = fs::read_to_string(format!("/proc/{}/status", bundle.state("narrow")["pid"])).expect("status");
        let set = |name: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            u64::from_str_radix(mask.expect("a set"), 16).expect("a mask")
        };
        let (effective, permitted) = (set("CapEff"), set("CapPrm"));
        assert_eq!(effective.count_ones(), 3, "runc's specification gives three capabilities: {status}");
        assert_eq!(permitted, effective | if no_new_privs { 0 } else { 1 << 21 }, "{status}");
        assert_eq!((set("CapBnd"), set("CapInh"), set("CapAmb")), (effective, 0, 0), "{status}");
        bundle.icerun(&["start", "narrow"]).ok();
        bundle.icerun(&["delete", "--force", "narrow"]).ok();
    }
}

#[test]
fn programs_start_with_default_signals() {
    // Rust ignores SIGPIPE when it starts, so a program under `icerun` would write to a closed pipe without end.
    let bundle = Bundle::new(&["cat", "/proc/self/status"]);
    let default = |text: &str| {
        for set in ["SigBlk", "SigIgn", "SigCgt"] {
            assert!(text.contains(&format!("{set}:\t0000000000000000\n")), "{text}");
        }
    };
    default(&bundle.icerun(&["run", "signals"]).ok());
    bundle.edit(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    bundle.icerun_detached(&["run", "--detach", "signals"]).ok();
    default(&bundle.icerun(&["exec", "signals", "cat", "/proc/self/status"]).ok());
    bundle.icerun(&["delete", "--force", "signals"]).ok();
}
