//! sudo by the init, as the box's user calls it. Needs root.

mod common;

use std::os::unix::fs::symlink;

use common::{Init, Output, eventually, exists};
use icebox_shim::handle::{ExecRequest, ExitStatus, RunEvent};

/// A shell script that finds `sudo`.
fn script(init: &Init, text: &str) -> ExecRequest {
    let bin = init.dir.path().join("bin");
    if !exists(&bin) {
        std::fs::create_dir(&bin).unwrap();
        // A copy, as in a box: the test's own build directory need not be open to the box's user.
        std::fs::copy(env!("CARGO_BIN_EXE_icebox-init"), bin.join("sudo")).unwrap();
    }
    let mut request = init.shell(text);
    request.cwd = init.path("");
    request.env = vec![
        ("PATH".into(), format!("{}:/usr/bin:/bin", bin.display())),
        ("ICEBOX_SUDO_SOCKET".into(), init.dir.path().join("sudo.sock").to_str().unwrap().into()),
    ];
    request
}

async fn run(init: &Init, text: &str) -> Output {
    init.finish(script(init, text)).await
}

#[tokio::test]
async fn priv_sudo_is_root_and_gives_the_code_back() {
    let init = Init::start();
    let output = run(&init, "sudo id -u; sudo -n sh -c 'exit 42'; echo $?").await;
    assert_eq!((output.text().as_str(), output.errors().as_str()), ("0\n42\n", ""));
    let output = run(&init, "sudo -u 1234 id -u; sudo -u '#77' id -u; sudo sh -c 'kill -TERM $$'; echo $?").await;
    assert_eq!(output.text(), "1234\n77\n143\n");
    let output = run(&init, "sudo no-such-program; echo $?; sudo -z id; echo $?; sudo; echo $?").await;
    assert_eq!(output.text(), "1\n1\n1\n");
    for text in ["sudo: no-such-program: command not found\n", "sudo: invalid option -- 'z'\nusage: sudo -h"] {
        assert!(output.errors().contains(text), "{}", output.errors());
    }
}

#[tokio::test]
async fn priv_sudo_as_people_and_scripts_use_it() {
    let init = Init::start();
    let cases = [
        ("sudo -v && sudo -k && sudo -K && sudo -n true && sudo -A true && echo ok", "ok"),
        ("sudo -l | tail -1", "    (ALL : ALL) NOPASSWD: ALL"),
        ("sudo -l sh; sudo -l none || echo $?", "/usr/bin/sh 1"),
        ("sudo -V | cut -d' ' -f1-2", "Sudo version"),
        ("sudo -g 77 sh -c 'id -u; id -g'", "1000 77"),
        ("sudo -u 1234 -g 77 sh -c 'id -u; id -g'", "1234 77"),
        ("sudo -D /usr pwd; sudo --chdir=/etc pwd; cd /; sudo -D usr pwd", "/usr /etc /usr"),
        ("sudo -D /none pwd 2>&1", "sudo: unable to change directory to /none: No such file or directory"),
        ("sudo -u none id 2>&1; sudo -g none id 2>&1", "sudo: unknown user none sudo: unknown group none"),
        ("sudo sh -c 'echo ${SUDO_USER:+name} $SUDO_UID $SUDO_GID'", "name 1000 1000"),
        ("sudo sh -c 'echo $SUDO_COMMAND'", "/usr/bin/sh -c echo $SUDO_COMMAND"),
        ("PATH=$PATH:/evil sudo sh -c 'echo $PATH'", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("A=1 sudo B=2 -- sh -c 'echo $A$B' 2>&1; sudo -E B=3 sh -c 'echo $B'", "2 3"),
    ];
    for (line, expected) in cases {
        let output = run(&init, line).await;
        let text = output.text().trim_end().replace('\n', " ");
        assert_eq!(text, expected, "{line}: {}", output.errors());
    }
}

#[tokio::test]
async fn priv_sudo_uses_the_callers_descriptors_and_folder() {
    let init = Init::start();
    let output =
        run(&init, "echo in | sudo cat; sudo sh -c 'echo e >&2'; sudo pwd; sudo sh -c 'umask; ls /proc/self/fd'").await;
    let folder = init.path("");
    let expected = format!("in\n{}\n0022\n0\n1\n2\n3\n", folder.trim_end_matches('/'));
    assert_eq!((output.text(), output.errors().as_str()), (expected, "e\n"));
}

#[tokio::test]
async fn priv_sudo_environment() {
    let init = Init::start();
    let text = "export MINE=1 OTHER=2 TERM=vt100; sudo env | sort; echo --; sudo -E sh -c 'echo $MINE $HOME'; sudo -EH sh -c 'echo $HOME'; sudo --preserve-env=OTHER sh -c 'echo $OTHER$MINE'; sudo A=b sh -c 'echo $A'";
    let output = run(&init, text).await;
    let text = output.text();
    let (env, rest) = text.split_once("--\n").unwrap();
    for line in ["HOME=/root", "USER=root", "TERM=vt100", "SUDO_UID=1000", "SUDO_COMMAND=/usr/bin/env"] {
        assert!(env.lines().any(|l| l == line), "{line}: {env}");
    }
    assert!(!env.contains("MINE") && env.contains("PATH=/usr/local/sbin:"), "{env}");
    assert_eq!(rest, "1 /workspace/home\n/root\n2\nb\n");
}

#[tokio::test]
async fn priv_sudo_shells() {
    let init = Init::start();
    let text =
        "sudo -s echo 'a  b' '$HOME;'; sudo -i pwd; sudo -i 'echo $0 $HOME'; echo 'id -u' | SHELL=/bin/sh sudo -s";
    let output = run(&init, text).await;
    let lines: Vec<String> = output.text().lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "a  b /workspace/home;".replace("/workspace/home", "/root"));
    assert_eq!(lines[1], "/root");
    assert_eq!(lines.last().unwrap(), "0", "{lines:?} {}", output.errors());
}

#[tokio::test]
async fn priv_sudo_forwards_signals() {
    let init = Init::start();
    let text = "sudo sh -c 'trap \"echo got; exit 6\" TERM; echo up; while :; do sleep 0.05; done' & wait_for=$!; read x; kill -TERM $wait_for; wait $wait_for; echo $?";
    let mut request = script(&init, text);
    request.stdin = true;
    let (mut events, mut input) = init.handle.exec(request).await.unwrap().split();
    let mut output = Output::default();
    while !output.text().contains("up") {
        output.take(events.next().await.unwrap().unwrap());
    }
    input.write(b"\n").await.unwrap();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    assert_eq!(output.text(), "up\ngot\n6\n");
}

#[tokio::test]
async fn priv_a_command_goes_with_its_client_unless_in_the_background() {
    let init = Init::start();
    let up = init.path("up");
    let text = format!(
        "sudo sh -c 'trap \"\" HUP; echo up; touch {up}; sleep 1000' & until [ -e {up} ]; do sleep 0.05; done; kill -KILL $!; wait"
    );
    assert_eq!(run(&init, &text).await.text(), "up\n");
    eventually("the command is killed", || init.children().is_empty()).await;
    let (go, flag) = (init.path("go"), init.path("flag"));
    let text = format!("sudo -b sh -c 'until [ -e {go} ]; do sleep 0.05; done; touch {flag}'; echo back");
    let output = run(&init, &text).await;
    assert_eq!(output.text(), "back\n");
    assert!(!exists(&flag));
    std::fs::write(&go, "").unwrap();
    eventually("the command went on", || exists(&flag)).await;
}

#[tokio::test]
async fn priv_sudo_on_a_terminal_has_it() {
    let init = Init::start();
    let mut request = script(&init, "sudo sh -c 'test -t 0 && tty; read x; echo got $x'");
    request.tty = Some(icebox_shim::handle::Winsize { rows: 10, cols: 20 });
    let (mut events, mut input) = init.handle.exec(request).await.unwrap().split();
    let mut output = Output::default();
    while !output.text().contains("/dev/pts/") {
        output.take(events.next().await.unwrap().unwrap());
    }
    input.write(b"typed\n").await.unwrap();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    assert!(output.text().ends_with("got typed\r\n"), "{}", output.text());
}

#[tokio::test]
async fn priv_only_root_and_the_boxes_user_may() {
    let init = Init::start();
    for (user, code) in [("1234", 1), ("0", 0), ("1000", 0)] {
        let mut request = script(&init, "sudo id -u");
        request.cwd = "/".into();
        request.user = Some(user.into());
        let output = init.finish(request).await;
        assert_eq!(output.code(), code, "{user}: {}", output.errors());
    }
}

#[tokio::test]
async fn priv_silent_clients_of_sudo_do_not_shut_others_out_for_ever() {
    let init = Init::start();
    init.run("true").await;
    let path = init.dir.path().join("sudo.sock");
    let silent: Vec<_> = (0..16).map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap()).collect();
    assert_eq!(run(&init, "sudo id -u").await.text(), "0\n", "they were expired");
    drop(silent);
}

#[tokio::test]
async fn priv_the_name_of_the_program_decides() {
    let init = Init::start();
    let link = init.dir.path().join("sudo");
    symlink(env!("CARGO_BIN_EXE_icebox-init"), &link).unwrap();
    let help = std::process::Command::new(&link).arg("-h").output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("usage: sudo -h"));
    let init = std::process::Command::new(env!("CARGO_BIN_EXE_icebox-init")).output().unwrap();
    assert!(String::from_utf8_lossy(&init.stderr).starts_with("icebox-init: read arguments"));
}

#[tokio::test]
async fn priv_a_signalled_command_signals_its_client() {
    let init = Init::start();
    let mut request = script(&init, "exec sudo sh -c 'echo x; kill -USR1 $$'");
    request.label = "direct".into();
    let (mut events, _input) = init.handle.exec(request).await.unwrap().split();
    assert_eq!(events.next().await.unwrap(), Some(RunEvent::Stdout("x\n".into())));
    let Some(RunEvent::Exit(exit)) = events.next().await.unwrap() else { panic!("no exit") };
    assert_eq!(exit.status, ExitStatus::Signal(libc::SIGUSR1));
}

#[tokio::test]
async fn priv_nonsense_on_the_socket_is_refused() {
    use std::io::{Read, Write};

    use icebox_shim::protocol::{FrameType, header};

    let init = Init::start();
    init.run("true").await;
    let path = init.dir.path().join("sudo.sock");
    let frame = |kind, payload: &[u8]| [&header(kind, payload.len())[..], payload].concat();
    let request =
        br#"{"v":1,"m":{"argv":["id"],"mode":"command","user":null,"group":null,"folder":null,"command":"id","env":[],"shell":null,"background":false}}"#;
    let cases: [(Vec<u8>, &str); 5] = [
        ([&300_000_u32.to_le_bytes()[..], &[1]].concat(), "invalid_input"),
        (vec![0, 0, 0, 0, 77], "invalid_input"),
        (frame(FrameType::Request, b"{}"), "invalid_input"),
        // Without descriptors.
        (frame(FrameType::Request, request), "invalid_input"),
        (frame(FrameType::Signal, b"{}"), ""),
    ];
    for (bytes, expected) in cases {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains(expected), "{bytes:?}: {answer:?}");
    }
    assert_eq!(run(&init, "sudo id -u").await.text(), "0\n");
}
