//! The init as PID 1 of a launched box. Needs root, busybox-static, e2fsprogs.

#[path = "common/boxed.rs"]
mod boxed;
mod common;

use std::time::Duration;

use boxed::{TestBox, leaf_path};
use common::{PATIENCE, collect, eventually};
use icebox_runtime::cgroup::{CgroupPath, Controller, Hierarchy, Manager};
use icebox_shim::ErrorKind;
use icebox_shim::handle::{BoxHandle, ExitStatus, RunEvent, Scope, Winsize};
use icebox_shim::launch::Launcher;

#[tokio::test]
async fn priv_a_box_runs_programs_and_files() {
    let b = TestBox::start().await;
    let hello = b.handle.hello(PATIENCE).await.unwrap();
    assert_eq!(hello.pid, 1);
    assert!(b.alive());
    let output = b.sh("id -un; hostname; pwd; echo $HOME; echo err >&2; exit 3").await;
    assert_eq!(output.text(), "boxuser\ntest-box-1\n/workspace/home\n/workspace/home\n");
    assert_eq!((output.errors().as_str(), output.code()), ("err\n", 3));
    let mut writer = b.handle.file_write("/workspace/home/a/file").await.unwrap();
    writer.write(b"content").await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(b.sh("cat a/file; stat -c %u:%g a/file").await.text(), "content1000:1000\n");
    let denied = b.handle.file_write("/etc/file").await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
    println!("steps {:?}, init {} KiB", b.launched.steps, b.init_resident_kib());
}

#[tokio::test]
async fn priv_the_clocks_of_a_box_begin_at_its_start() {
    let b = TestBox::start().await;
    // The start of a process in ticks (field 22), the uptime, and when the system booted.
    let script = "awk '{sub(/.*\\) /, \"\"); print $20}' /proc/self/stat; cut -d' ' -f1 /proc/uptime; \
                  sed -n 's/btime //p' /proc/stat; date +%s";
    let text = b.sh(script).await.text();
    let numbers: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let [started, up, boot, now] = numbers[..] else { panic!("{text}") };
    let lived = PATIENCE.as_secs_f64();
    assert!(up < lived, "the box is up for {up} s");
    assert!(started / 100.0 <= up, "started at tick {started}, up for {up} s");
    assert!((now - up - boot).abs() < 3.0, "booted at {boot}, up for {up} s, it is {now}");
    assert_eq!(b.sh("cat /sys/devices/system/cpu/online").await.text(), "0\n", "one core");
}

#[tokio::test]
async fn priv_runs_have_a_leaf_with_exact_usage() {
    let b = TestBox::start().await;
    let request = b.request(&["/bin/sh", "-c", "cat /proc/self/cgroup; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; head -c 20000000 /dev/zero | tail -c 20000000 >/dev/null"]);
    let number = request.run;
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    assert!(output.text().lines().any(|l| l == format!("0::{}", leaf_path(number))), "{}", output.text());
    let usage = b.handle.finish(number, output.exit.as_ref()).unwrap();
    assert!(usage.cpu_ns > 10_000_000, "{usage:?}");
    assert!(usage.memory_peak_bytes > 15_000_000, "{usage:?}");
    assert_eq!(b.handle.finish(number, None).unwrap_err().kind(), ErrorKind::NotFound, "the leaf is gone");
    let whole = b.handle.usage().unwrap();
    assert!(whole.cpu_usec * 1000 >= usage.cpu_ns && whole.cgroup_inode == b.launched.cgroup_inode);
    assert!(whole.memory_current > 0 && whole.pids == 1, "{whole:?}");
}

#[tokio::test]
async fn priv_a_start_that_fails_leaves_no_leaf() {
    let b = TestBox::start().await;
    let request = b.request(&["/no/such/program"]);
    let number = request.run;
    assert_eq!(b.handle.exec(request).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(b.handle.finish(number, None).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn priv_a_background_child_keeps_its_leaf_until_the_sweep() {
    let b = TestBox::start().await;
    let request = b.request(&["/bin/sh", "-c", "setsid sleep 1000 & exit 0"]);
    let number = request.run;
    collect(b.handle.exec(request).await.unwrap()).await;
    b.handle.finish(number, None).unwrap();
    assert_eq!(b.handle.sweep_leaves(|_| false).unwrap(), 0);
    b.handle.signal(number, libc::SIGKILL, Scope::Tree).await.unwrap();
    eventually("the leaf can be swept", || b.handle.sweep_leaves(|_| false).unwrap() == 1).await;
    let gone = b.handle.signal(number, libc::SIGKILL, Scope::Tree).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn priv_the_tree_dies_with_double_forks_and_sessions() {
    let b = TestBox::start().await;
    let script = "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; echo up; sleep 1000";
    let mut request = b.request(&["/bin/sh", "-c", script]);
    request.kill_on_disconnect = true;
    let (mut events, _input) = b.handle.exec(request).await.unwrap().split();
    assert_eq!(events.next().await.unwrap(), Some(RunEvent::Stdout("up\n".into())));
    eventually("all of them run", || b.handle.usage().unwrap().pids > 3).await;
    drop(events);
    eventually("only the init is left", || b.handle.usage().unwrap().pids == 1).await;
}

#[tokio::test]
async fn priv_freeze_thaw_and_kill() {
    let b = TestBox::start().await;
    let request = b.request(&["/bin/sh", "-c", "while :; do echo x; sleep 0.02; done"]);
    let (mut events, _input) = b.handle.exec(request).await.unwrap().split();
    events.next().await.unwrap();
    b.handle.freeze(PATIENCE).await.unwrap();
    assert!(b.handle.frozen().unwrap());
    let frozen = b.handle.hello(Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(frozen.kind(), ErrorKind::Timeout);
    let before = b.handle.usage().unwrap().cpu_usec;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(b.handle.usage().unwrap().cpu_usec, before, "a frozen box costs nothing");
    b.handle.thaw(PATIENCE).await.unwrap();
    while !matches!(events.next().await.unwrap(), Some(RunEvent::Stdout(_))) {}
    b.handle.freeze(PATIENCE).await.unwrap();
    b.handle.kill(PATIENCE).await.unwrap();
    let l = &b.launched;
    b.handle.wait_dead(l.pid, l.start_time_ticks, &l.boot_id).await;
    assert!(!b.alive());
    assert_eq!(events_end(&mut events).await, ErrorKind::Gone);
    assert_eq!(b.handle.hello(PATIENCE).await.unwrap_err().kind(), ErrorKind::Gone);
    b.handle.remove_cgroup(PATIENCE).unwrap();
    assert_eq!(b.handle.usage().unwrap_err().kind(), ErrorKind::NotFound);
    b.handle.remove_cgroup(PATIENCE).unwrap();
}

async fn events_end(events: &mut icebox_shim::handle::RunEvents) -> ErrorKind {
    loop {
        match events.next().await {
            Ok(Some(RunEvent::Stdout(_))) => {}
            Ok(other) => panic!("{other:?}"),
            Err(e) => return e.kind(),
        }
    }
}

#[tokio::test]
async fn priv_sudo_is_root_of_the_box_in_the_callers_leaf() {
    let b = TestBox::start().await;
    let request = b.request(&["/bin/sh", "-c", "sudo id -u; sudo cat /proc/self/cgroup | grep 0::; sudo touch /etc/made; stat -c %u /etc/made; sudo grep -E 'Cap(Prm|Eff|Bnd|Inh|Amb)|NoNew|Seccomp:' /proc/self/status"]);
    let number = request.run;
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    let text = output.text();
    let caps: u64 = [0, 1, 3, 4, 5, 6, 7, 31].iter().map(|n| 1 << n).sum();
    let expected = format!(
        "0\n0::{}\n0\nNoNewPrivs:\t1\nSeccomp:\t2\nCapInh:\t{:016x}\nCapPrm:\t{caps:016x}\nCapEff:\t{caps:016x}\nCapBnd:\t{caps:016x}\nCapAmb:\t{:016x}\n",
        leaf_path(number),
        0,
        0
    );
    let mut lines: Vec<&str> = text.lines().collect();
    let mut wanted: Vec<&str> = expected.lines().collect();
    lines.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(lines, wanted, "{}", output.errors());
    b.handle.finish(number, None).unwrap();
}

#[tokio::test]
async fn priv_root_of_the_box_adds_to_hosts_and_resolv_conf() {
    let b = TestBox::start().await;
    let script = "sudo sh -c 'echo \"127.0.0.1 db.test\" >>/etc/hosts && echo \"search x.test\" >>/etc/resolv.conf'; \
                  tail -n1 /etc/hosts /etc/resolv.conf; echo x 2>/dev/null >>/etc/hosts || echo denied; \
                  sudo sh -c 'echo x >>/etc/hostname' 2>/dev/null || echo fixed; sudo sh -c 'echo s >/dev/stdout'";
    let output = b.sh(script).await;
    let text = output.text();
    for line in ["127.0.0.1 db.test", "search x.test", "denied", "fixed", "s"] {
        assert!(text.lines().any(|found| found == line), "{line}: {text} {}", output.errors());
    }
}

#[tokio::test]
async fn priv_the_control_socket_that_is_gone_is_told_apart() {
    let b = TestBox::start().await;
    std::fs::remove_file(b.spec.run_dir.join("ctl.sock")).unwrap();
    assert_eq!(b.handle.hello(PATIENCE).await.unwrap_err().kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn priv_a_terminal_in_a_box() {
    let b = TestBox::start().await;
    let mut request = b.request(&["/bin/sh", "-c", "tty; stty size; stat -c %u $(tty); echo ok > /dev/tty"]);
    request.tty = Some(Winsize { rows: 12, cols: 34 });
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    assert_eq!(output.text(), "/dev/pts/0\r\n12 34\r\n1000\r\nok\r\n");
}

#[tokio::test]
async fn priv_out_of_processes_is_a_limit_and_passes() {
    let b = TestBox::start_with(|spec| spec.pids_max = 20).await;
    let mut numbers = Vec::new();
    let refused = loop {
        let request = b.request(&["/bin/sleep", "1000"]);
        let number = request.run;
        match b.handle.exec(request).await {
            Ok(_) => numbers.push(number),
            Err(e) => break e,
        }
    };
    assert_eq!(numbers.len(), 20);
    assert_eq!(refused.kind(), ErrorKind::Limit, "{}", refused.report());
    assert!(refused.report().contains("as many processes and threads as it may have"), "{}", refused.report());
    b.handle.file_list("/").await.expect("the init has processes in reserve");
    for number in numbers {
        b.handle.signal(number, libc::SIGKILL, Scope::Tree).await.unwrap();
    }
    eventually("there is room again", || b.handle.usage().unwrap().pids == 1).await;
    assert_eq!(b.sh("echo ok").await.text(), "ok\n");
}

/// Starts as many processes as runs may have, and keeps them: only SIGKILL ends them.
const STORM: &str = "trap '' TERM HUP; (while :; do sleep 1000 & done) 2>/dev/null; while :; do :; done";

#[tokio::test]
async fn priv_a_fork_storm_is_ended_whole_and_shuts_nothing_out() {
    let b = TestBox::start_with(|spec| spec.pids_max = 40).await;
    // A shell of the storm ends when it cannot fork, so a few of the 40 may be free again.
    let full = || b.handle.usage().unwrap().pids >= 36;
    // In the background of a run that has ended: killed by the host.
    let request = b.request(&["/bin/sh", "-c", &format!("({STORM}) & exit 0")]);
    let number = request.run;
    collect(b.handle.exec(request).await.unwrap()).await;
    eventually("the storm is there", full).await;
    for _ in 0..20 {
        b.handle.file_list("/").await.expect("files in a storm");
        if let Err(error) = b.handle.exec(b.request(&["/bin/true"])).await {
            assert_eq!(error.kind(), ErrorKind::Limit, "{}", error.report());
        }
    }
    assert!(b.handle.has_processes(number).await.unwrap());
    b.handle.signal(number, libc::SIGKILL, Scope::Tree).await.unwrap();
    eventually("only the init is left", || b.handle.usage().unwrap().pids == 1).await;
    assert!(!b.handle.has_processes(number).await.unwrap());
    // A run whose time is up, and a run whose client disconnects: killed by the init.
    let mut request = b.request(&["/bin/sh", "-c", STORM]);
    request.timeout_ms = Some(300);
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    assert!(output.exit.unwrap().timed_out);
    eventually("only the init is left", || b.handle.usage().unwrap().pids == 1).await;
    let mut request = b.request(&["/bin/sh", "-c", &format!("(setsid sh -c \"{STORM}\") & exit 3")]);
    request.kill_on_disconnect = true;
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    assert_eq!(output.code(), 3);
    eventually("what a session left has gone with it", || b.handle.usage().unwrap().pids == 1).await;
}

#[tokio::test]
async fn priv_the_sweep_leaves_alone_what_is_being_started() {
    let b = TestBox::start().await;
    b.sh("true").await;
    // The interval between the creation of a leaf and the fork into it.
    let request = b.request(&["/bin/echo", "ok"]);
    let number = request.run;
    let hierarchy = Hierarchy::probe().unwrap();
    let parent = [format!("{}/runs", b.spec.cgroup), b.spec.cgroup.clone()].into_iter().find_map(|path| {
        Manager::Cgroupfs.open(&hierarchy, &CgroupPath::new(path).unwrap(), &[Controller::Memory]).unwrap()
    });
    parent.unwrap().leaf(&format!("run-{number}"), &[Controller::Memory]).unwrap();
    b.handle.sweep_leaves(|run| run == number).unwrap();
    assert_eq!(b.handle.find_leaves().await.unwrap(), number, "the leaf was swept away under its start");
    assert_eq!(collect(b.handle.exec(request).await.unwrap()).await.text(), "ok\n");
    // Its usage is not read yet.
    b.handle.sweep_leaves(|run| run == number).unwrap();
    assert!(b.handle.finish(number, None).unwrap().cpu_ns > 0);
}

#[tokio::test]
async fn priv_out_of_memory_is_told_by_the_leaf() {
    let b = TestBox::start_with(|spec| spec.memory_bytes = 64 << 20).await;
    let request = b.request(&["/bin/sh", "-c", "tail -c 200000000 /dev/zero"]);
    let number = request.run;
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    assert_ne!(output.status(), ExitStatus::Code(0));
    assert!(b.handle.finish(number, None).unwrap().oom_kills >= 1);
    assert!(b.alive());
    assert_eq!(b.sh("echo ok").await.text(), "ok\n");
}

#[tokio::test]
async fn priv_the_host_is_out_of_reach() {
    let b = TestBox::start().await;
    for number in 0..40 {
        let mut request = b.request(&["/bin/pwd"]);
        request.cwd = format!("/proc/self/fd/{number}");
        let run = request.run;
        assert!(b.handle.exec(request).await.is_err());
        let _ = b.handle.finish(run, None);
    }
    let script = "sudo readlink /proc/1/fd/2 /proc/1/root /proc/1/cwd /proc/1/exe; sudo cat /proc/1/environ /proc/1/maps; sudo sh -c 'echo x > /proc/1/fd/2'; kill -TERM 1; sudo kill -TERM 1; sudo kill -KILL 1; echo end";
    let output = b.sh(script).await;
    assert_eq!(output.text(), "end\n", "{}", output.errors());
    assert!(b.alive());
    assert!(b.sh("mkdir /sys/fs/cgroup/x; sudo mkdir /sys/fs/cgroup/x; ls -d /sys/fs/cgroup/x").await.code() != 0);
}

#[tokio::test]
async fn priv_what_is_left_survives_a_new_handle() {
    let b = TestBox::start().await;
    let request = b.request(&["/bin/sh", "-c", "sleep 0.3; echo late; exit 9"]);
    let number = request.run;
    drop(b.handle.exec(request).await.unwrap());
    let again = BoxHandle::open(&b.spec.run_dir, &b.spec.cgroup, b.spec.uid_base).unwrap();
    let output = collect(again.attach(number).await.unwrap()).await;
    assert_eq!((output.text().as_str(), output.code()), ("late\n", 9));
    assert!(again.finish(number, None).unwrap().cpu_ns > 0);
    again.ack(number).await.unwrap();
}

/// A view is the host's own mount of the hierarchy. A new mount in the box's cgroup namespace has a device number of its own.
#[tokio::test]
async fn priv_the_views_of_the_cgroup_are_no_new_file_systems() {
    use std::os::unix::fs::MetadataExt as _;
    let b = TestBox::start().await;
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", b.launched.pid)).unwrap();
    let mut views = 0;
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let fields: Vec<&str> = line.split(' ').collect();
        let (device, at) = (fields[2], fields[4]);
        let name = at.rsplit('/').next().unwrap();
        let host = if name == "cgroup" { "/sys/fs/cgroup".to_owned() } else { format!("/sys/fs/cgroup/{name}") };
        let number = std::fs::metadata(&host).unwrap().dev();
        let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
        assert_eq!(device, number, "{line}");
        assert!(fields[5].starts_with("ro,"), "{line}");
        views += 1;
    }
    assert!(views > 0, "{mounts}");
    // In the box the root of each is its own cgroup.
    let roots = b.sh("grep ' - cgroup' /proc/self/mountinfo | cut -d ' ' -f 4 | sort -u").await;
    assert_eq!(roots.text(), "/\n");
}

/// The children of this process that are launchers and have not ended.
fn launchers() -> Vec<i32> {
    children("icebox-launch")
}

/// The children of this process with this name that have not ended.
fn children(name: &str) -> Vec<i32> {
    let lists = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = lists.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let pids: Vec<i32> =
        lists.flat_map(|list| list.split(' ').filter_map(|n| n.parse().ok()).collect::<Vec<_>>()).collect();
    let is_one = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(&format!("({name}) ")) && !stat.contains(") Z ")
    };
    pids.into_iter().filter(is_one).collect()
}

#[tokio::test]
async fn priv_one_launcher_stays_for_all_boxes_and_is_started_anew_when_it_has_ended() {
    let b = TestBox::start().await;
    eventually("the launcher of the box ends", || launchers().is_empty()).await;
    let mut spec = b.spec.clone();
    spec.volume_device = "/dev/no-such-device".into();
    spec.cgroup = format!("{}-2", spec.cgroup);
    spec.run_dir = b.dir.path().join("run2");
    std::fs::create_dir(&spec.run_dir).unwrap();
    let launcher = Launcher::new(boxed::tools());
    assert!(launchers().is_empty(), "it is started with the first box");
    let fails = async || {
        let error = launcher.launch(&spec, PATIENCE).await.unwrap_err();
        assert!(error.report().contains("no-such-device"), "{}", error.report());
    };
    fails().await;
    let first = launchers();
    fails().await;
    assert_eq!((first.len(), launchers()), (1, first.clone()), "one process for both");
    rustix::process::kill_process(rustix::process::Pid::from_raw(first[0]).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    fails().await;
    let second = launchers();
    assert!(second.len() == 1 && second != first, "{second:?} after {first:?}");
    drop(launcher);
    eventually("it ends with its owner", || launchers().is_empty()).await;
}

/// The process that starts a box is killed when the launch takes too long.
#[tokio::test]
async fn priv_a_launch_that_is_given_up_leaves_no_process() {
    let b = TestBox::start().await;
    let mut spec = b.spec.clone();
    spec.run_dir = b.dir.path().join("run2");
    std::fs::create_dir(&spec.run_dir).unwrap();
    // Opening a FIFO to write to it waits for a reader, which never comes.
    let log = spec.run_dir.join("init.log");
    rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let launcher = Launcher::new(boxed::tools());
    let error = launcher.launch(&spec, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{}", error.report());
    let forks = || {
        let pid = launchers()[0];
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap()
    };
    eventually("the fork is gone and reaped", || forks().trim().is_empty()).await;
}

/// A launcher that ends before it forks is started anew once, and one that never answers is ended.
#[tokio::test]
async fn priv_a_launcher_that_does_not_answer_is_an_error_and_does_not_stay() {
    let b = TestBox::start().await;
    let with = |program: &str| Launcher::new(icebox_shim::launch::Tools { launch: program.into(), ..boxed::tools() });
    let error = with("/bin/true").launch(&b.spec, PATIENCE).await.unwrap_err();
    let steps = ["run launcher", "talk to launcher"];
    assert!(steps.contains(&error.step()) && error.kind() != ErrorKind::Timeout, "{}", error.report());
    let silent = with("/bin/cat");
    let error = silent.launch(&b.spec, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{}", error.report());
    eventually("the silent launcher is ended", || children("cat").is_empty()).await;
}

#[tokio::test]
async fn priv_a_launch_that_fails_says_what_failed_and_leaves_nothing() {
    let b = TestBox::start().await;
    let mut spec = b.spec.clone();
    spec.volume_device = "/dev/no-such-device".into();
    spec.cgroup = format!("{}-2", spec.cgroup);
    spec.run_dir = b.dir.path().join("run2");
    std::fs::create_dir(&spec.run_dir).unwrap();
    let tools = boxed::tools();
    let launcher = Launcher::new(tools.clone());
    let error = launcher.launch(&spec, PATIENCE).await.unwrap_err();
    assert!(error.report().contains("no-such-device"), "{}", error.report());
    let handle = BoxHandle::open(&spec.run_dir, &spec.cgroup, spec.uid_base).unwrap();
    assert_eq!(handle.usage().unwrap_err().kind(), ErrorKind::NotFound, "no cgroup is left");
    let missing = Launcher::new(icebox_shim::launch::Tools { launch: "/no/launcher".into(), ..tools });
    let error = missing.launch(&spec, PATIENCE).await.unwrap_err();
    assert_eq!((error.kind(), error.step()), (ErrorKind::NotFound, "spawn launcher"));
}
