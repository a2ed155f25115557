//! Endpoint 34: interactive sessions over a WebSocket.
//!
//! The socket owns the process: when it closes, for whatever reason, the whole tree is killed. `started` is the first
//! frame, `exit` the last, after all output. What cannot be started is told in an `error` frame, since a client never
//! sees the body of a refused handshake.

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use icebox_shim::handle::{RunEvent, RunEvents, RunInput, Scope, Winsize};

use super::App;
use super::extract::TheBox;
use crate::http::v2::wire::{ClientFrame, ServerFrame, Start};
use crate::ids;
use crate::refusal::Refusal;
use crate::runs::{self, Command, Ended, Started, Ticket};

/// Longest message of a client.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// How long a client may take for its first frame.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Grace between TERM and KILL when the client names none.
const GRACE_DEFAULT: Duration = Duration::from_secs(5);
/// Longest grace.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// How long a frame may wait for a client that does not read.
const SEND_DEADLINE: Duration = Duration::from_secs(300);
/// Size of a terminal when the client names none.
const ROWS_DEFAULT: u16 = 24;
const COLS_DEFAULT: u16 = 80;

type Sink = SplitSink<WebSocket, Message>;
type Source = SplitStream<WebSocket>;

/// Opens an interactive session (WebSocket, JSON frames): a process with standard input, output and error apart or with
/// a terminal.
#[utoipa::path(get, path = "/v2/box/{id}/exec-session", tag = "exec", params(("id" = String, Path)), responses((status = 101, description = "WebSocket"), (status = 404, body = crate::http::v2::wire::ErrorBody)))]
pub(super) async fn exec_session(
    State(app): State<App>,
    found: TheBox,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.map_err(|cause| Refusal::Invalid(format!("this is a WebSocket: {}", cause.body_text())))?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(move |socket| session(app, found, socket)))
}

async fn session(app: App, found: TheBox, socket: WebSocket) {
    let (mut sink, mut source) = socket.split();
    let Some(start) = first_frame(&mut source).await else { return close(&mut sink).await };
    match begin(&app, &found, start).await {
        Ok(Started::Running { pid, events, input, ticket }) => {
            let started = ServerFrame::Started { pid, exec_id: ticket.id().to_owned() };
            if send(&mut sink, &started).await.is_ok() {
                converse(events, input, ticket, sink, source).await;
            } else {
                finish_unheard(events, ticket).await;
            }
        }
        Ok(Started::NotExecutable { message, .. }) => refuse(&mut sink, message.trim_end().to_owned()).await,
        Err(refusal) => {
            if let Refusal::Failed(error) = &refusal {
                tracing::error!(error = error.chain(), "a session failed");
            }
            refuse(&mut sink, refusal.to_string()).await;
        }
    }
}

/// The first frame that means something must be `start`.
async fn first_frame(source: &mut Source) -> Option<Start> {
    let read = async {
        loop {
            match frame_of(source.next().await?.ok()?) {
                Some(ClientFrame::Start(start)) => return Some(start),
                Some(_) => return None,
                None => {}
            }
        }
    };
    tokio::time::timeout(START_DEADLINE, read).await.ok().flatten()
}

/// A frame, if the message is one that is known. Others are ignored.
fn frame_of(message: Message) -> Option<ClientFrame> {
    match message {
        Message::Text(text) => serde_json::from_str(&text).ok(),
        Message::Binary(bytes) => serde_json::from_slice(&bytes).ok(),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => None,
    }
}

async fn begin(app: &App, found: &TheBox, start: Start) -> Result<Started, Refusal> {
    let command = command_of(start)?;
    let awake = found.awake(app).await?;
    runs::start(&app.runs, &awake, &command).await
}

fn command_of(start: Start) -> Result<Command, Refusal> {
    let argv = match (start.argv.filter(|argv| !argv.is_empty()), start.cmd) {
        (Some(argv), _) => argv,
        (None, Some(cmd)) => vec!["bash".to_owned(), "-lc".to_owned(), cmd],
        (None, None) => return Err(Refusal::Invalid("start needs argv or cmd".into())),
    };
    let tty = start.tty.unwrap_or(false).then(|| Winsize {
        rows: start.rows.filter(|rows| *rows > 0).unwrap_or(ROWS_DEFAULT),
        cols: start.cols.filter(|cols| *cols > 0).unwrap_or(COLS_DEFAULT),
    });
    let env = start.env.unwrap_or_default();
    let env = env.iter().filter_map(|entry| entry.split_once('=')).filter(|(name, _)| !ids::is_blocked_env(name));
    let env = env.take(ids::ENV_VARS_MAX).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let command = Command::exec(argv, start.cwd.as_deref())?;
    Ok(Command { tty, env, interactive: true, owned_by_client: true, ..command })
}

/// Both directions at once, until the process ends or the client goes.
async fn converse(events: RunEvents, input: RunInput, ticket: Ticket, sink: Sink, source: Source) {
    let handle = ticket.entry().handle();
    let number = ticket.number();
    let listening = tokio::spawn(listen(source, input, handle.clone(), number));
    let mut listening = std::pin::pin!(listening);
    let mut talk = std::pin::pin!(talk(events, sink));
    let mut ended = tokio::select! {
        ended = &mut talk => ended,
        _ = &mut listening => {
            // The client has gone, and the process with it. The connection to the init stays until its exit is known.
            kill(&handle, number).await;
            let mut ended = talk.await;
            ended.close = false;
            ended
        }
    };
    listening.abort();
    if !ended.heard_out {
        kill(&handle, number).await;
    }
    if let Some(events) = ended.events.take() {
        // The client stopped reading; the rest of the output is nobody's.
        ended.exit = exit_of(events).await;
    }
    let finished = ticket.finish(runs::ended_now(ended.exit, ended.tail)).await;
    if let (true, Some(mut sink)) = (ended.close, ended.sink) {
        let last = if finished.lost {
            ServerFrame::Error { message: runs::stopped_text().to_owned() }
        } else {
            ServerFrame::Exit { code: finished.exit_code }
        };
        if send(&mut sink, &last).await.is_ok() {
            close(&mut sink).await;
        }
    }
}

/// How the output of a session came to its end.
struct Talked {
    exit: Result<icebox_shim::handle::Exit, icebox_shim::Error>,
    tail: Vec<u8>,
    /// All output was sent.
    heard_out: bool,
    /// The client shall be told about the end.
    close: bool,
    sink: Option<Sink>,
    events: Option<RunEvents>,
}

/// Sends output as it comes, up to the exit.
async fn talk(mut events: RunEvents, mut sink: Sink) -> Talked {
    let mut tail = runs::Tail::default();
    let exit = loop {
        let frame = match events.next().await {
            Ok(Some(RunEvent::Stdout(bytes))) => {
                tail.add(&bytes);
                ServerFrame::Stdout { data: BASE64.encode(&bytes) }
            }
            Ok(Some(RunEvent::Stderr(bytes))) => {
                tail.add(&bytes);
                ServerFrame::Stderr { data: BASE64.encode(&bytes) }
            }
            Ok(Some(RunEvent::Dropped(_))) => continue,
            Ok(Some(RunEvent::Exit(exit))) => break Ok(exit),
            Ok(None) => break Err(gone()),
            Err(error) => break Err(error),
        };
        if send(&mut sink, &frame).await.is_err() {
            let (exit, events) = (Err(gone()), Some(events));
            return Talked { exit, tail: tail.bytes(), heard_out: false, close: false, sink: None, events };
        }
    };
    Talked { exit, tail: tail.bytes(), heard_out: true, close: true, sink: Some(sink), events: None }
}

fn gone() -> icebox_shim::Error {
    icebox_shim::Error::new(icebox_shim::ErrorKind::Gone, "read run's output", "")
}

/// Reads the rest of a run that nobody listens to.
async fn exit_of(mut events: RunEvents) -> Result<icebox_shim::handle::Exit, icebox_shim::Error> {
    loop {
        match events.next().await? {
            Some(RunEvent::Exit(exit)) => return Ok(exit),
            Some(_) => {}
            None => return Err(gone()),
        }
    }
}

/// The client went away between the start and our word about it.
async fn finish_unheard(events: RunEvents, ticket: Ticket) {
    kill(&ticket.entry().handle(), ticket.number()).await;
    let exit = exit_of(events).await;
    let ended: Ended = runs::ended_now(exit, Vec::new());
    ticket.finish(ended).await;
}

/// Does what the client says, until it goes away.
async fn listen(mut source: Source, mut input: RunInput, handle: icebox_shim::handle::BoxHandle, number: u64) {
    let mut terminating = false;
    let (feed, mut fed) = tokio::sync::mpsc::channel::<Fed>(FED_MAX);
    // Input has its own task: a program that does not read must not keep signals from reaching it.
    let feeding = tokio::spawn(async move {
        while let Some(fed) = fed.recv().await {
            let done = match fed {
                Fed::Bytes(bytes) => input.write(&bytes).await,
                Fed::Close => input.close().await,
                Fed::Resize(rows, cols) => input.resize(rows, cols).await,
            };
            if done.is_err() {
                return;
            }
        }
    });
    while let Some(Ok(message)) = source.next().await {
        if matches!(message, Message::Close(_)) {
            break;
        }
        let fed = match frame_of(message) {
            Some(ClientFrame::Stdin { data }) => BASE64.decode(data).ok().map(Fed::Bytes),
            Some(ClientFrame::StdinClose) => Some(Fed::Close),
            Some(ClientFrame::Resize { rows, cols }) => Some(Fed::Resize(rows.max(1), cols.max(1))),
            Some(ClientFrame::Signal { signal }) => {
                if let Some(signal) = signal_number(&signal) {
                    send_signal(&handle, number, signal).await;
                }
                None
            }
            Some(ClientFrame::Terminate { grace_ms }) if !terminating => {
                terminating = true;
                let grace = grace_ms.map_or(GRACE_DEFAULT, Duration::from_millis).min(GRACE_MAX);
                send_signal(&handle, number, libc::SIGTERM).await;
                let handle = handle.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(grace).await;
                    kill(&handle, number).await;
                });
                None
            }
            _ => None,
        };
        // A full queue is a program that does not read: the client is slowed down, as with a pipe.
        if let Some(fed) = fed
            && feed.send(fed).await.is_err()
        {
            // The process has ended or closed its input; the client may still want to hear the rest.
            continue;
        }
    }
    feeding.abort();
}

/// Pieces of input that may wait.
const FED_MAX: usize = 64;

enum Fed {
    Bytes(Vec<u8>),
    Close,
    Resize(u16, u16),
}

fn signal_number(name: &str) -> Option<i32> {
    let number = match name {
        "TERM" => libc::SIGTERM,
        "KILL" => libc::SIGKILL,
        "INT" => libc::SIGINT,
        "HUP" => libc::SIGHUP,
        "TSTP" => libc::SIGTSTP,
        "QUIT" => libc::SIGQUIT,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        _ => return None,
    };
    Some(number)
}

async fn kill(handle: &icebox_shim::handle::BoxHandle, number: u64) {
    send_signal(handle, number, libc::SIGKILL).await;
}

/// Signals the whole tree. One that has just ended is fine.
async fn send_signal(handle: &icebox_shim::handle::BoxHandle, number: u64, signal: i32) {
    match handle.signal(number, signal, Scope::Tree).await {
        Err(error) if error.kind() != icebox_shim::ErrorKind::NotFound => {
            tracing::warn!(number, signal, error = error.report(), "cannot signal a session");
        }
        _ => {}
    }
}

async fn refuse(sink: &mut Sink, message: String) {
    if send(sink, &ServerFrame::Error { message }).await.is_ok() {
        close(sink).await;
    }
}

async fn send(sink: &mut Sink, frame: &ServerFrame) -> Result<(), ()> {
    // Plain data of ours always serialises.
    let text = serde_json::to_string(frame).map_err(|_| ())?;
    match tokio::time::timeout(SEND_DEADLINE, sink.send(Message::Text(text.into()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(()),
    }
}

async fn close(sink: &mut Sink) {
    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    // The client may have closed first.
    let _ = tokio::time::timeout(SEND_DEADLINE, sink.send(Message::Close(Some(frame)))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argv_wins_over_cmd_and_blocked_names_are_dropped_silently() {
        let start = Start {
            argv: Some(vec!["ls".into()]),
            cmd: Some("rm".into()),
            env: Some(vec!["A=1=2".into(), "PATH=/evil".into(), "nonsense".into()]),
            cwd: Some("/x/./y".into()),
            ..Start::default()
        };
        let command = command_of(start).expect("a command");
        assert_eq!((command.argv.as_slice(), command.cwd.as_str()), (["ls".to_owned()].as_slice(), "/x/./y"));
        assert_eq!(command.env, [("A".to_owned(), "1=2".to_owned())]);
        assert!(command.owned_by_client && command.tty.is_none());
    }

    #[test]
    fn cmd_runs_in_a_login_shell_and_a_terminal_has_a_size() {
        let start =
            Start { cmd: Some("echo $A".into()), tty: Some(true), rows: Some(0), cols: Some(132), ..Start::default() };
        let command = command_of(start).expect("a command");
        assert_eq!(command.argv, ["bash", "-lc", "echo $A"]);
        assert_eq!(command.tty, Some(Winsize { rows: ROWS_DEFAULT, cols: 132 }));
        assert!(command_of(Start::default()).is_err());
    }

    #[test]
    fn frames_are_those_of_the_clients() {
        let frame = |text: &str| frame_of(Message::Text(text.into()));
        assert_eq!(frame(r#"{"type":"stdin_close"}"#), Some(ClientFrame::StdinClose));
        assert_eq!(frame(r#"{"type":"terminate","graceMs":50}"#), Some(ClientFrame::Terminate { grace_ms: Some(50) }));
        assert_eq!(frame(r#"{"type":"terminate"}"#), Some(ClientFrame::Terminate { grace_ms: None }));
        assert_eq!(frame(r#"{"type":"unheard_of"}"#), None);
        assert_eq!(frame("{"), None);
        let started = serde_json::to_string(&ServerFrame::Started { pid: 7, exec_id: "x".into() }).expect("json");
        assert_eq!(started, r#"{"type":"started","pid":7,"execId":"x"}"#);
    }

    #[test]
    fn the_signals_of_the_clients_are_known() {
        for name in ["TERM", "KILL", "INT", "HUP", "TSTP", "QUIT", "USR1", "USR2"] {
            assert!(signal_number(name).is_some(), "{name}");
        }
        assert_eq!(signal_number("SIGTERM"), None);
    }
}
