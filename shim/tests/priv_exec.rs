//! Runs: start, streams and end. Needs root.

mod common;

use std::time::{Duration, Instant};

use common::{Init, Output, PATIENCE, collect, eventually, exists};
use icebox_shim::handle::{ExitStatus, RunEvent, Scope, Winsize};
use icebox_shim::{ErrorKind, ExecFailure};

#[tokio::test]
async fn priv_stdout_stderr_and_code_are_apart() {
    let init = Init::start();
    let output = init.run("echo out; echo err >&2; exit 7").await;
    assert_eq!((output.text().as_str(), output.errors().as_str()), ("out\n", "err\n"));
    assert_eq!(output.status(), ExitStatus::Code(7));
    assert_eq!(output.dropped, 0);
}

#[tokio::test]
async fn priv_hello_tells_version_and_pid() {
    let init = Init::start();
    let hello = init.handle.hello(PATIENCE).await.unwrap();
    assert_eq!((hello.pid, hello.runs), (init.pid(), 0));
    assert_eq!(hello.version, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn priv_a_signal_is_told_as_such() {
    let init = Init::start();
    let output = init.run("kill -TERM $$").await;
    assert_eq!(output.status(), ExitStatus::Signal(15));
    assert_eq!(output.code(), 143);
}

#[tokio::test]
async fn priv_the_program_is_the_boxes_user_in_a_clean_state() {
    let init = Init::start();
    let script = "id -u; id -g; umask; pwd; grep -E 'Cap(Prm|Eff|Inh|Amb)|NoNewPrivs|SigBlk|SigIgn' /proc/self/status; ls /proc/self/fd";
    let mut request = init.shell(script);
    request.cwd = "/usr".to_owned();
    let output = init.finish(request).await;
    let text = output.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(&lines[..4], ["1000", "1000", "0022", "/usr"], "{text}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(text.contains(&format!("{set}:\t0000000000000000")), "{text}");
    }
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("SigIgn:\t0000000000000000"), "{text}");
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    // 3 is the descriptor that ls opens for the directory.
    assert!(text.ends_with("0\n1\n2\n3\n"), "{text}");
}

#[tokio::test]
async fn priv_clone3_is_not_there() {
    let init = Init::start();
    let output = init.run("grep Seccomp: /proc/self/status").await;
    assert_eq!(output.text().trim(), "Seccomp:\t2");
    let script = "import ctypes,os; l=ctypes.CDLL(None,use_errno=True); l.syscall(435,0,0); print(ctypes.get_errno())";
    let mut request = init.request(&["python3", "-c", script]);
    request.user = Some("0".to_owned());
    match init.handle.exec(request).await {
        Ok(run) => assert_eq!(collect(run).await.text().trim(), libc::ENOSYS.to_string()),
        Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound, "python3 is missing, nothing else"),
    }
}

#[tokio::test]
async fn priv_environment_is_a_login_with_additions() {
    let init = Init::start();
    let mut request = init.request(&["env"]);
    request.env = vec![("A".into(), "b c".into()), ("LANG".into(), "X".into())];
    let output = init.finish(request).await;
    let text = output.text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "A=b c",
            "HOME=/workspace/home",
            "LANG=X",
            "LOGNAME=boxuser",
            "PATH=/workspace/home/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "SHELL=/bin/bash",
            "USER=boxuser",
        ]
    );
}

#[tokio::test]
async fn priv_other_users() {
    let init = Init::start();
    for (user, expected) in [("root", "0 0"), ("0", "0 0"), ("1234", "1234 1234"), ("1234:77", "1234 77")] {
        let mut request = init.shell("echo $(id -u) $(id -g)");
        request.user = Some(user.to_owned());
        assert_eq!(init.finish(request).await.text().trim(), expected, "{user}");
    }
    for user in ["no-such-user", "-1", "4294967295", "1:", ""] {
        let mut request = init.shell("true");
        request.user = Some(user.to_owned());
        assert!(init.handle.exec(request).await.is_err(), "{user:?}");
    }
    assert_eq!(init.handle.hello(PATIENCE).await.unwrap().runs, 4, "failed starts leave no run");
}

#[tokio::test]
async fn priv_what_cannot_start_says_why() {
    let init = Init::start();
    let error = |request| async { init.handle.exec(request).await.unwrap_err() };
    let missing = error(init.request(&["no-such-program"])).await;
    assert_eq!((missing.kind(), missing.subject()), (ErrorKind::NotFound, "no-such-program"));
    assert_eq!((missing.step(), missing.exec_failure()), ("execute", Some(ExecFailure::Program)));
    let denied = error(init.request(&["/etc/passwd"])).await;
    assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
    let mut request = init.shell("true");
    request.cwd = "/no/such/folder".to_owned();
    let folder = error(request).await;
    assert_eq!((folder.kind(), folder.exec_failure()), (ErrorKind::NotFound, Some(ExecFailure::Folder)));
    let mut request = init.shell("true");
    request.cwd = "relative".to_owned();
    assert_eq!(error(request).await.kind(), ErrorKind::InvalidInput);
    assert_eq!(error(init.request(&[])).await.kind(), ErrorKind::InvalidInput);
    let script = init.work().join("script");
    std::fs::write(&script, "not a program").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let garbage = error(init.request(&[script.to_str().unwrap()])).await;
    assert_eq!(garbage.kind(), ErrorKind::InvalidInput);
    assert!(init.handle.runs().await.unwrap().is_empty());
}

#[tokio::test]
async fn priv_a_descriptor_is_no_way_to_a_folder() {
    let init = Init::start();
    for number in 0..64 {
        let mut request = init.shell("true");
        request.cwd = format!("/proc/self/fd/{number}");
        let error = init.handle.exec(request).await.unwrap_err();
        assert_eq!(error.exec_failure(), Some(ExecFailure::Folder), "{}", error.report());
    }
}

#[tokio::test]
async fn priv_a_background_child_does_not_delay_the_exit() {
    let init = Init::start();
    let begun = Instant::now();
    let output = init.run("echo before; (sleep 1000; echo late) & exit 3").await;
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!((output.text().as_str(), output.code()), ("before\n", 3));
    // The background program lives on, and its writes do not end it with SIGPIPE.
    assert!(!init.children().is_empty());
    let flag = init.path("alive");
    let script = format!("(sleep 0.2; head -c 1000000 /dev/zero; echo ok > {flag}) & exit 0");
    init.run(&script).await;
    eventually("the background child wrote on", || exists(&flag)).await;
}

#[tokio::test]
async fn priv_what_was_written_before_the_exit_is_whole() {
    let init = Init::start();
    for _ in 0..20 {
        let output = init.run("(sleep 5) & head -c 200000 /dev/zero; head -c 50000 /dev/zero >&2").await;
        assert_eq!((output.stdout.len(), output.stderr.len()), (200_000, 50_000));
    }
}

#[tokio::test]
async fn priv_stdin_reaches_the_program_and_ends() {
    let init = Init::start();
    let mut request = init.shell("wc -c; echo done");
    request.stdin = true;
    let run = init.handle.exec(request).await.unwrap();
    let (mut events, mut input) = run.split();
    let bytes = 3 * 1024 * 1024 + 17;
    let writing = tokio::spawn(async move {
        input.write(&vec![b'x'; bytes]).await.unwrap();
        input.close().await.unwrap();
    });
    let mut output = Output::default();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    writing.await.unwrap();
    assert_eq!(output.text(), format!("{bytes}\ndone\n"));
}

#[tokio::test]
async fn priv_a_program_may_open_its_streams_again() {
    let init = Init::start();
    for user in ["1000", "0", "1234"] {
        let script =
            "echo a >/dev/stdout; echo b >/proc/self/fd/1; echo c >/dev/stderr; cat /dev/stdin; cat </proc/self/fd/0";
        let mut request = init.shell(script);
        request.user = Some(user.to_owned());
        request.stdin = true;
        let (mut events, mut input) = init.handle.exec(request).await.unwrap().split();
        input.write(b"in\n").await.unwrap();
        input.close().await.unwrap();
        let mut output = Output::default();
        while let Some(event) = events.next().await.unwrap() {
            output.take(event);
        }
        assert_eq!((output.text().as_str(), output.errors().as_str()), ("a\nb\nin\n", "c\n"), "{user}");
        let mut request =
            init.shell("echo t >/dev/tty; echo o >/dev/stdout; cat </dev/null >/dev/tty; test -t 1 </dev/stdin");
        request.user = Some(user.to_owned());
        request.tty = Some(Winsize { rows: 24, cols: 80 });
        let output = init.finish(request).await;
        assert_eq!((output.text().as_str(), output.code()), ("t\r\no\r\n", 0), "{user}");
    }
}

#[tokio::test]
async fn priv_without_stdin_there_is_an_empty_one() {
    let init = Init::start();
    assert_eq!(init.run("wc -c").await.text().trim(), "0");
}

#[tokio::test]
async fn priv_a_program_that_does_not_read_blocks_nothing_else() {
    let init = Init::start();
    let mut request = init.shell("trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.05; done");
    request.stdin = true;
    let run = init.handle.exec(request).await.unwrap();
    let (mut events, mut input) = run.split();
    assert_eq!(events.next().await.unwrap(), Some(RunEvent::Stdout("up\n".into())));
    // More than a pipe and the window hold.
    let big = vec![b'x'; 1024 * 1024];
    let stuck = tokio::time::timeout(Duration::from_millis(300), input.write(&big));
    let reading = tokio::time::timeout(Duration::from_millis(300), events.next());
    let (stuck, reading) = tokio::join!(stuck, reading);
    assert!(stuck.is_err() && reading.is_err(), "the write must wait for credit");
    input.signal(libc::SIGUSR1).await.unwrap();
    let mut output = Output::default();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    assert_eq!((output.text().as_str(), output.code()), ("got\n", 5));
    assert_eq!(input.write(b"x").await.unwrap_err().kind(), ErrorKind::Gone);
}

#[tokio::test]
async fn priv_a_terminal_is_one() {
    let init = Init::start();
    let mut request =
        init.shell("stty size; test -t 0 && test -t 1 && test -t 2 && tty; echo $TERM; read x; stty size; echo got $x");
    request.tty = Some(Winsize { rows: 33, cols: 101 });
    let run = init.handle.exec(request).await.unwrap();
    let (mut events, mut input) = run.split();
    let mut output = Output::default();
    while !output.text().contains("xterm-256color\r\n") {
        output.take(events.next().await.unwrap().unwrap());
    }
    assert!(output.text().starts_with("33 101\r\n/dev/pts/"), "{:?}", output.text());
    input.resize(50, 60).await.unwrap();
    input.write(b"typed\n").await.unwrap();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    assert!(output.text().ends_with("typed\r\n50 60\r\ngot typed\r\n"), "{:?}", output.text());
    assert_eq!(output.code(), 0);
    assert!(output.stderr.is_empty());
}

#[tokio::test]
async fn priv_closing_a_terminals_input_ends_its_reader() {
    let init = Init::start();
    let mut request = init.request(&["cat"]);
    request.tty = Some(Winsize { rows: 24, cols: 80 });
    let run = init.handle.exec(request).await.unwrap();
    let (mut events, mut input) = run.split();
    input.write(b"half a line").await.unwrap();
    input.close().await.unwrap();
    let mut output = Output::default();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    assert_eq!(output.code(), 0);
    assert!(output.text().ends_with("half a line"), "{:?}", output.text());
}

#[tokio::test]
async fn priv_control_c_reaches_the_foreground() {
    let init = Init::start();
    let mut request = init.shell("trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.05; done");
    request.tty = Some(Winsize { rows: 24, cols: 80 });
    let run = init.handle.exec(request).await.unwrap();
    let (mut events, mut input) = run.split();
    let mut output = Output::default();
    while !output.text().contains("up") {
        output.take(events.next().await.unwrap().unwrap());
    }
    input.write(&[3]).await.unwrap();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    assert_eq!(output.code(), 9);
}

#[tokio::test]
async fn priv_a_signal_to_the_tree_reaches_the_children() {
    let init = Init::start();
    let request = init.shell("sleep 1000 & sleep 1000 & echo up; wait");
    let number = request.run;
    let run = init.handle.exec(request).await.unwrap();
    let (mut events, _input) = run.split();
    assert_eq!(events.next().await.unwrap(), Some(RunEvent::Stdout("up\n".into())));
    init.handle.signal(number, libc::SIGKILL, Scope::Tree).await.unwrap();
    let Some(RunEvent::Exit(exit)) = events.next().await.unwrap() else { panic!("no exit") };
    assert_eq!(exit.status, ExitStatus::Signal(9));
    eventually("no child is left", || init.children().is_empty()).await;
    let gone = init.handle.signal(number, libc::SIGKILL, Scope::Leader).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let bad = init.handle.signal(number, 1000, Scope::Leader).await.unwrap_err();
    assert_eq!(bad.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn priv_jobs_of_a_session_go_when_its_shell_has_exited() {
    let init = Init::start();
    let mut request = init.shell("sleep 1000 & trap '' HUP; sleep 1000 & exit 3");
    request.kill_on_disconnect = true;
    assert_eq!(init.finish(request).await.code(), 3);
    eventually("the jobs are gone", || init.children().is_empty()).await;
}

#[tokio::test]
async fn priv_time_is_up() {
    let init = Init::start();
    let mut request = init.shell("echo begun; sleep 1000 & sleep 1000");
    request.timeout_ms = Some(200);
    let output = init.finish(request).await;
    assert_eq!(output.status(), ExitStatus::Signal(9));
    assert!(output.exit.unwrap().timed_out);
    assert_eq!(output.text(), "begun\n");
    eventually("no child is left", || init.children().is_empty()).await;
    let mut request = init.shell("exit 4");
    request.timeout_ms = Some(60_000);
    let output = init.finish(request).await;
    assert_eq!((output.code(), output.exit.unwrap().timed_out), (4, false));
}

#[tokio::test]
async fn priv_zombies_are_reaped() {
    let init = Init::start();
    let script =
        "i=0; while [ $i -lt 300 ]; do (true &) ; i=$((i+1)); done; (sleep 0.3 & sleep 0.3 & sleep 0.3 &); exit 0";
    assert_eq!(init.run(script).await.code(), 0);
    eventually("all orphans are reaped", || init.children().is_empty()).await;
}

#[tokio::test]
async fn priv_a_real_time_signal_works_too() {
    let init = Init::start();
    let request = init.request(&["sleep", "1000"]);
    let number = request.run;
    let run = init.handle.exec(request).await.unwrap();
    init.handle.signal(number, 40, Scope::Leader).await.unwrap();
    assert_eq!(collect(run).await.status(), ExitStatus::Signal(40));
}

#[tokio::test]
async fn priv_a_terminal_may_be_closed_and_opened_again() {
    let init = Init::start();
    let script = "echo one; exec 0<&- 1>&- 2>&-; sleep 0.3; exec 1>/dev/tty 0</dev/tty; echo two; read x; echo got $x; exec 0<&- 1>&-; sleep 0.1; exit 3";
    let mut request = init.shell(script);
    request.tty = Some(Winsize { rows: 24, cols: 80 });
    let (mut events, mut input) = init.handle.exec(request).await.unwrap().split();
    input.write(b"typed\n").await.unwrap();
    let mut output = Output::default();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    assert_eq!(output.status(), ExitStatus::Code(3), "{:?}", output.text());
    assert!(output.text().contains("two\r\n") && output.text().ends_with("got typed\r\n"), "{:?}", output.text());
}
