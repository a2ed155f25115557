//! The edges of the session protocol, against a server made of a few scripted frames.

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::accept_async;

use super::*;

/// What a session gave: its result and what arrived on the two output streams.
struct Outcome {
    result: Result<u8, Error>,
    stdout: String,
    stderr: String,
    /// Frames that the server got.
    seen: Vec<Value>,
}

impl Outcome {
    fn failure(&self) -> String {
        match &self.result {
            Ok(code) => panic!("ended well with {code}"),
            Err(error) => error.to_string(),
        }
    }
}

/// Runs a session against a server that reads `reads` frames, sends `frames` and then closes.
async fn session(reads: usize, frames: &[Value], stdin: &[&[u8]], controls: &[Control]) -> Outcome {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (stdin_sender, stdin_receiver) = mpsc::channel(16);
    for chunk in stdin {
        stdin_sender.send(chunk.to_vec()).await.expect("room");
    }
    drop(stdin_sender);
    let (control_sender, control_receiver) = mpsc::channel(16);
    for control in controls {
        control_sender.send(*control).await.expect("room");
    }
    let server = async {
        let mut socket = accept_async(far).await.expect("a handshake");
        let mut seen = Vec::new();
        let (first, rest) = frames.split_at(frames.len().min(1));
        read_frame(&mut socket, &mut seen).await;
        write_frames(&mut socket, first).await;
        for _ in 1..reads {
            read_frame(&mut socket, &mut seen).await;
        }
        write_frames(&mut socket, rest).await;
        // The client may have closed already.
        let _ = socket.close(None).await;
        seen
    };
    let client = async {
        let (socket, _) = tokio_tungstenite::client_async("ws://box/x", near).await.expect("a handshake");
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let start = Start { argv: vec!["true".into()], cwd: "/workspace/home".into(), ..Start::default() };
        let result = run(socket, &start, stdin_receiver, control_receiver, (&mut stdout, &mut stderr)).await;
        (result, stdout, stderr)
    };
    let (seen, (result, stdout, stderr)) = tokio::join!(server, client);
    drop(control_sender);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Outcome { result, stdout: text(stdout), stderr: text(stderr), seen }
}

async fn read_frame(socket: &mut WebSocketStream<tokio::io::DuplexStream>, seen: &mut Vec<Value>) {
    let message = socket.next().await.expect("a frame").expect("no error");
    seen.push(serde_json::from_str(message.to_text().expect("text")).expect("JSON"));
}

async fn write_frames(socket: &mut WebSocketStream<tokio::io::DuplexStream>, frames: &[Value]) {
    for frame in frames {
        // A client that has given up is what some tests are about.
        let _ = socket.send(Message::text(frame.to_string())).await;
    }
}

fn started() -> Value {
    json!({"type": "started", "pid": 2, "execId": "x"})
}

fn exit(code: Value) -> Value {
    json!({"type": "exit", "code": code})
}

fn output(stream: &str, text: &str) -> Value {
    json!({"type": stream, "data": BASE64.encode(text)})
}

#[tokio::test]
async fn output_is_kept_apart_and_the_code_is_passed_on() {
    let frames = [started(), output("stdout", "a"), output("stderr", "b"), output("stdout", "c"), exit(json!(7))];
    let outcome = session(1, &frames, &[], &[]).await;
    assert_eq!(outcome.result.as_ref().ok(), Some(&7));
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("ac", "b"));
}

#[tokio::test]
async fn start_comes_first_and_controls_overtake_input() {
    let size = WindowSize { rows: 5, cols: 7 };
    let controls = [Control::Resize(size), Control::Signal("INT")];
    let outcome = session(6, &[started(), exit(json!(0))], &[b"x", b"y"], &controls).await;
    assert_eq!(
        outcome.seen,
        [
            json!({"type": "start", "argv": ["true"], "cwd": "/workspace/home", "env": []}),
            json!({"type": "resize", "rows": 5, "cols": 7}),
            json!({"type": "signal", "signal": "INT"}),
            json!({"type": "stdin", "data": "eA=="}),
            json!({"type": "stdin", "data": "eQ=="}),
            json!({"type": "stdin_close"}),
        ]
    );
    assert_eq!(outcome.result.ok(), Some(0));
}

#[tokio::test]
async fn a_terminal_is_asked_for_with_its_size() {
    let start = Start::default().with_terminal(WindowSize { rows: 40, cols: 120 });
    let frame = serde_json::to_value(ToServer::Start(&start)).expect("JSON");
    assert_eq!(frame["tty"], json!(true));
    assert_eq!((&frame["rows"], &frame["cols"]), (&json!(40), &json!(120)));
}

#[tokio::test]
async fn an_error_before_the_start_is_the_servers_text() {
    let outcome = session(1, &[json!({"type": "error", "message": "no such program: nope"})], &[], &[]).await;
    assert_eq!(outcome.failure(), "could not run the command: no such program: nope");
    let refused = json!({"type": "error", "message": "nope: command not found", "code": 127});
    let outcome = session(1, &[refused], &[], &[]).await;
    assert_eq!((outcome.result.ok(), outcome.stderr.as_str()), (Some(127), "icebox: nope: command not found\n"));
}

#[tokio::test]
async fn output_or_exit_before_the_start_is_refused() {
    let outcome = session(1, &[output("stdout", "lost"), started(), exit(json!(0))], &[], &[]).await;
    assert!(outcome.failure().contains("output before its start"));
    assert_eq!(outcome.stdout, "");
    let outcome = session(1, &[exit(json!(0))], &[], &[]).await;
    assert!(outcome.failure().contains("end before its start"));
}

#[tokio::test]
async fn an_end_without_exit_is_no_success() {
    let outcome = session(1, &[started(), output("stdout", "half")], &[], &[]).await;
    assert!(outcome.failure().contains("ended before the command did"));
    assert_eq!(outcome.stdout, "half");
    let outcome = session(1, &[], &[], &[]).await;
    assert!(outcome.failure().contains("ended before the command did"));
}

#[tokio::test]
async fn an_error_after_the_start_is_a_failure() {
    let outcome = session(1, &[started(), json!({"type": "error", "message": "box is gone"})], &[], &[]).await;
    assert_eq!(outcome.failure(), "could not run the command: box is gone");
}

#[tokio::test]
async fn codes_that_are_no_exit_code_are_failures() {
    for code in [json!(-1), json!(256), json!("0"), json!(0.5), Value::Null] {
        let outcome = session(1, &[started(), exit(code.clone())], &[], &[]).await;
        assert!(outcome.result.is_err(), "{code}");
    }
    for code in [0, 1, 125, 137, 255] {
        let outcome = session(1, &[started(), exit(json!(code))], &[], &[]).await;
        assert_eq!(outcome.result.ok(), Some(code));
    }
}

#[tokio::test]
async fn frames_of_the_future_are_skipped() {
    let frames = [json!({"type": "weather"}), started(), json!({"type": "weather", "x": 1}), exit(json!(3))];
    let outcome = session(1, &frames, &[], &[]).await;
    assert_eq!(outcome.result.ok(), Some(3));
}
