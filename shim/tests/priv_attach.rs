//! Runs that outlive their clients, and clients that are slow. Needs root.

mod common;

use std::time::Duration;

use common::{Init, PATIENCE, collect, eventually, exists};
use icebox_shim::ErrorKind;
use icebox_shim::handle::{ExitStatus, RunEvent};

#[tokio::test]
async fn priv_a_run_outlives_its_client_and_tells_its_exit_later() {
    let init = Init::start();
    let go = init.path("go");
    let request = init.shell(&format!("echo one; while [ ! -e {go} ]; do sleep 0.05; done; echo two; exit 11"));
    let number = request.run;
    drop(init.handle.exec(request).await.unwrap());
    let live = init.handle.runs().await.unwrap();
    assert_eq!((live.len(), live[0].run, live[0].exit), (1, number, None));
    assert_eq!((live[0].label.as_str(), live[0].argv[0].as_str()), ("label", "/bin/sh"));
    assert_eq!(init.handle.ack(number).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    std::fs::write(&go, "").unwrap();
    let mut known = live;
    while known[0].exit.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        known = init.handle.runs().await.unwrap();
    }
    assert!(known[0].ended_unix_ms.unwrap() >= known[0].started_unix_ms);
    for _ in 0..2 {
        let output = collect(init.handle.attach(number).await.unwrap()).await;
        assert_eq!((output.text().as_str(), output.code()), ("one\ntwo\n", 11));
    }
    init.handle.ack(number).await.unwrap();
    init.handle.ack(number).await.unwrap();
    assert!(init.handle.runs().await.unwrap().is_empty());
    assert_eq!(init.handle.attach(number).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn priv_an_exit_is_acknowledged_on_the_connection_of_its_run() {
    let init = Init::start();
    let (mut events, mut input) = init.handle.exec(init.shell("exit 3")).await.unwrap().split();
    let exit = loop {
        if let Some(RunEvent::Exit(exit)) = events.next().await.unwrap() {
            break exit;
        }
    };
    assert_eq!(exit.code(), 3);
    assert_eq!(init.handle.runs().await.unwrap().len(), 1, "it is not acknowledged");
    // Input that crosses with the exit is no error, and does not count as an acknowledgement.
    input.resize(1, 1).await.unwrap();
    events.acknowledge().unwrap();
    // The init reads its connections in any order.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !init.handle.runs().await.unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the acknowledged run is still known");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn priv_attach_gets_the_tail_and_what_comes() {
    let init = Init::start();
    let go = init.path("go");
    let script = format!(
        "head -c 300000 /dev/zero | tr '\\0' a; echo err >&2; touch {go}.written; while [ ! -e {go} ]; do sleep 0.05; done; printf live"
    );
    let request = init.shell(&script);
    let number = request.run;
    drop(init.handle.exec(request).await.unwrap());
    eventually("it wrote", || exists(format!("{go}.written"))).await;
    let run = init.handle.attach(number).await.unwrap();
    std::fs::write(&go, "").unwrap();
    let output = collect(run).await;
    let text = output.text();
    assert_eq!(output.dropped + text.len() as u64, 300_000 + 4);
    assert!(text.len() > 60_000 && text.starts_with("aaaa") && text.ends_with("alive"));
    assert_eq!(output.errors(), "err\n");
}

#[tokio::test]
async fn priv_input_works_after_an_attach() {
    let init = Init::start();
    let mut request = init.request(&["cat"]);
    request.stdin = true;
    let number = request.run;
    drop(init.handle.exec(request).await.unwrap());
    let (mut events, mut input) = init.handle.attach(number).await.unwrap().split();
    input.write(b"hello").await.unwrap();
    assert_eq!(events.next().await.unwrap(), Some(RunEvent::Stdout("hello".into())));
    input.close().await.unwrap();
    assert!(matches!(events.next().await.unwrap(), Some(RunEvent::Exit(_))));
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn priv_two_clients_see_the_same() {
    let init = Init::start();
    let mut request = init.request(&["cat"]);
    request.stdin = true;
    let number = request.run;
    let first = init.handle.exec(request).await.unwrap();
    let second = init.handle.attach(number).await.unwrap();
    let (mut seen, _unheard) = first.split();
    let (mut also, mut input) = second.split();
    input.write(b"x").await.unwrap();
    assert_eq!(seen.next().await.unwrap(), Some(RunEvent::Stdout("x".into())));
    assert_eq!(also.next().await.unwrap(), Some(RunEvent::Stdout("x".into())));
    input.close().await.unwrap();
    assert!(matches!(seen.next().await.unwrap(), Some(RunEvent::Exit(_))));
    assert!(matches!(also.next().await.unwrap(), Some(RunEvent::Exit(_))));
}

#[tokio::test]
async fn priv_kill_on_disconnect_kills_the_tree() {
    let init = Init::start();
    let mut request = init.shell("trap '' HUP; (trap '' HUP; sleep 1000) & echo up; sleep 1000");
    request.kill_on_disconnect = true;
    let number = request.run;
    let (mut events, input) = init.handle.exec(request).await.unwrap().split();
    assert_eq!(events.next().await.unwrap(), Some(RunEvent::Stdout("up\n".into())));
    drop(input);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!init.children().is_empty(), "dropping the input is no disconnect");
    drop(events);
    eventually("nothing is left", || init.children().is_empty()).await;
    let output = collect(init.handle.attach(number).await.unwrap()).await;
    assert!(matches!(output.status(), ExitStatus::Signal(_)));
}

#[tokio::test]
async fn priv_a_slow_reader_holds_the_program_and_not_the_init() {
    let init = Init::start();
    init.run("true").await;
    let before = init.resident_kib();
    let (mut events, _input) = init.handle.exec(init.request(&["yes"])).await.unwrap().split();
    // Other clients are served while this one does not read.
    for _ in 0..20 {
        assert_eq!(init.run("echo hi").await.text(), "hi\n");
    }
    let after = init.resident_kib();
    assert!(after < before + 1024, "resident {before} KiB, then {after} KiB");
    let mut seen = 0;
    while seen < 1_000_000 {
        if let Some(RunEvent::Stdout(bytes)) = events.next().await.unwrap() {
            seen += bytes.len();
        }
    }
}

#[tokio::test]
async fn priv_a_gigabyte_passes_and_nothing_piles_up() {
    let init = Init::start();
    init.run("true").await;
    let before = init.resident_kib();
    let (mut events, _input) = init.handle.exec(init.shell("yes | head -c 1000000000")).await.unwrap().split();
    let mut bytes = 0;
    let mut most = 0;
    let mut pieces = 0_u64;
    while let Some(event) = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap() {
        if let RunEvent::Stdout(piece) = event {
            bytes += piece.len();
            pieces += 1;
            if pieces.is_multiple_of(1000) {
                most = most.max(init.resident_kib());
            }
        }
    }
    assert_eq!(bytes, 1_000_000_000);
    assert!(most < before + 1024, "resident {before} KiB, at most {most} KiB");
}

#[tokio::test]
async fn priv_unattached_output_is_drained_to_a_tail() {
    let init = Init::start();
    let request = init.shell("yes | head -c 50000000; echo end");
    let number = request.run;
    drop(init.handle.exec(request).await.unwrap());
    let output = collect(init.handle.attach(number).await.unwrap()).await;
    assert!(output.text().ends_with("end\n"));
    assert_eq!(output.code(), 0);
}

#[tokio::test]
async fn priv_finished_runs_are_bounded() {
    let init = Init::start();
    let mut first = None;
    for round in 0..1100 {
        let request = init.request(&["/bin/true"]);
        first.get_or_insert(request.run);
        let run = init.handle.exec(request).await.unwrap_or_else(|e| panic!("{round}: {}", e.report()));
        collect(run).await;
    }
    let runs = init.handle.runs().await.unwrap();
    assert_eq!(runs.len(), 1024);
    assert_eq!(init.handle.attach(first.unwrap()).await.unwrap_err().kind(), ErrorKind::NotFound);
    eventually("no child is left", || init.children().is_empty()).await;
}

#[tokio::test]
async fn priv_a_run_number_is_used_once() {
    let init = Init::start();
    let request = init.request(&["/bin/true"]);
    init.finish(request.clone()).await;
    assert_eq!(init.handle.exec(request).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let mut request = init.request(&["/bin/true"]);
    request.run = u64::MAX;
    assert_eq!(init.handle.exec(request).await.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn priv_a_congested_client_gets_the_exit_though_the_pipe_stays_open() {
    let init = Init::start();
    for round in 0..30 {
        // More than socket, queue and pipe take together, up to a different point each time.
        let bytes = 300_000 + round * 4096;
        let script = format!("(sleep 1000) & head -c {bytes} /dev/zero");
        let run = init.handle.exec(init.shell(&script)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let begun = std::time::Instant::now();
        let output = collect(run).await;
        assert_eq!(output.stdout.len(), bytes);
        assert!(begun.elapsed() < common::PATIENCE, "the exit came late");
    }
}
