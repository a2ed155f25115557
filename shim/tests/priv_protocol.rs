//! Peers that violate the protocol. Needs root.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::{Init, eventually};
use icebox_shim::protocol::{FrameType, PAYLOAD_BYTES_MAX, header};

fn connect(init: &Init) -> UnixStream {
    let stream = UnixStream::connect(init.dir.path().join("ctl.sock")).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream
}

fn frame(kind: FrameType, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(kind, payload.len()).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends bytes and reads until the init closes.
fn said(init: &Init, bytes: &[u8]) -> String {
    let mut stream = connect(init);
    // The init may close before it has read all.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn priv_nonsense_is_answered_and_forgotten() {
    let init = Init::start();
    let too_long = (u32::try_from(PAYLOAD_BYTES_MAX).unwrap() + 1).to_le_bytes();
    let cases: [Vec<u8>; 8] = [
        [&too_long[..], &[1]].concat(),
        vec![0, 0, 0, 0, 99],
        frame(FrameType::Stdin, b"x"),
        frame(FrameType::Request, b""),
        frame(FrameType::Request, b"{}"),
        frame(FrameType::Request, br#"{"v":1,"m":{"no_such":{}}}"#),
        frame(FrameType::Request, br#"{"v":2,"m":"hello"}"#),
        frame(FrameType::Request, &[0xff; 1000]),
    ];
    for bytes in cases {
        let answer = said(&init, &bytes);
        assert!(answer.contains("invalid_input"), "{bytes:?}: {answer:?}");
    }
    assert!(said(&init, &frame(FrameType::Request, br#"{"v":1,"m":"hello"}"#)).contains("version"));
}

#[tokio::test]
async fn priv_nonsense_after_a_good_start_ends_the_connection_only() {
    let init = Init::start();
    let exec = r#"{"v":1,"m":{"exec":{"run":900,"argv":["/bin/sh","-c","sleep 0.5; echo ok"],"cwd":"/","env":[],"user":null,"stdin":true,"tty":null,"kill_on_disconnect":false,"timeout_ms":null,"label":""}}}"#;
    let mut stream = connect(&init);
    stream.write_all(&frame(FrameType::Request, exec.as_bytes())).unwrap();
    // Invalid bytes in one piece with the request end the connection before there is a run.
    let mut header = [0; 5];
    stream.read_exact(&mut header).unwrap();
    let mut started = vec![0; u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize];
    stream.read_exact(&mut started).unwrap();
    assert!(String::from_utf8_lossy(&started).contains("\"pid\""), "{}", String::from_utf8_lossy(&started));
    stream.write_all(&frame(FrameType::Resize, b"not json")).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let output = common::collect(init.handle.attach(900).await.unwrap()).await;
    assert_eq!(output.text(), "ok\n");
}

#[tokio::test]
async fn priv_input_beyond_the_credit_ends_the_connection() {
    let init = Init::start();
    let exec = r#"{"v":1,"m":{"exec":{"run":901,"argv":["sleep","1000"],"cwd":"/","env":[],"user":null,"stdin":true,"tty":null,"kill_on_disconnect":true,"timeout_ms":null,"label":""}}}"#;
    init.run("true").await;
    let before = init.resident_kib();
    let mut stream = connect(&init);
    stream.write_all(&frame(FrameType::Request, exec.as_bytes())).unwrap();
    let piece = frame(FrameType::Stdin, &[0; 60_000]);
    let refused = (0..1000).any(|_| stream.write_all(&piece).is_err());
    assert!(refused, "60 MB of input were taken for a program that reads nothing");
    assert!(init.resident_kib() < before + 1024);
    eventually("the run went with its connection", || init.children().is_empty()).await;
}

#[tokio::test]
async fn priv_random_bytes_do_no_harm() {
    let init = Init::start();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let mut bytes: Vec<u8> = (0..random() % 200).map(|_| random().to_le_bytes()[0]).collect();
        if round % 2 == 0 {
            // Past the header at least.
            bytes = frame(FrameType::Request, &bytes);
        }
        let mut stream = connect(&init);
        let _ = stream.write_all(&bytes);
    }
    assert_eq!(init.run("echo ok").await.text(), "ok\n");
    assert!(init.resident_kib() < 8 * 1024);
}

#[tokio::test]
async fn priv_many_silent_connections_do_not_shut_others_out() {
    let init = Init::start();
    let silent: Vec<UnixStream> = (0..500).map(|_| connect(&init)).collect();
    assert_eq!(init.run("echo ok").await.text(), "ok\n");
    drop(silent);
    assert_eq!(init.run("echo ok").await.text(), "ok\n");
}

#[tokio::test]
async fn priv_it_is_small_and_no_process_can_look_into_it() {
    let init = Init::start();
    init.run("true").await;
    let pid = init.pid();
    let script =
        format!("cat /proc/{pid}/maps /proc/{pid}/environ; ls /proc/{pid}/fd/; readlink /proc/{pid}/exe; echo end");
    let output = init.run(&script).await;
    assert_eq!(output.text(), "end\n", "the box's user sees nothing of the init");
}
