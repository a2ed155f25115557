//! Endpoint 34: interactive sessions over a WebSocket.
//!
//! Owns the frames and the connection: `started` is the first frame, `exit` the last, after all output. A failed start
//! is reported in an `error` frame, since a client never sees the body of a refused handshake. The session itself is
//! `runs::Session`.

use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc;

use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::seats::Seat;
use crate::http::v2::wire::{ClientFrame, ServerFrame, Start};
use crate::refusal::Refusal;
use crate::runs::{self, ClientGone, Opened, Session, SessionEnd, SessionInput, SessionOutput, SessionStart};

/// Longest message of a client.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Time limit for a client's first frame.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Time limit for sending a frame to a client that does not read.
const SEND_DEADLINE: Duration = Duration::from_secs(300);
/// Time limit for the client's Close after the daemon's own.
const CLOSE_DEADLINE: Duration = Duration::from_secs(60);

type Sink = SplitSink<WebSocket, Message>;
type Source = SplitStream<WebSocket>;

/// Opens an interactive session (WebSocket, JSON frames): a process with standard input, output and error apart or with
/// a terminal.
#[utoipa::path(get, path = "/v2/box/{id}/exec-session", tag = "exec", params(("id" = String, Path)), responses((status = 101, description = "WebSocket"), (status = 404, body = crate::http::v2::wire::ErrorBody)))]
pub(in crate::http) async fn exec_session(
    State(app): State<App>,
    found: TheBox,
    seat: Option<Extension<Seat>>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.map_err(|cause| Refusal::Invalid(format!("this is a WebSocket: {}", cause.body_text())))?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    // The session counts as a connection in use, as the request did.
    let busy = seat.map(|Extension(seat)| seat.busy());
    Ok(upgrade.on_upgrade(move |socket| async move {
        serve(app, found, socket).await;
        drop(busy);
    }))
}

async fn serve(app: App, found: TheBox, socket: WebSocket) {
    let (mut sink, mut source) = socket.split();
    let Some(start) = first_frame(&mut source).await else { return close(sink, drain(source)).await };
    let last = match open(&app, &found, start).await {
        Ok(Opened::Running(session)) => return converse(*session, sink, source).await,
        Ok(Opened::NotExecutable { exit_code, message }) => ServerFrame::Error { message, code: Some(exit_code) },
        Err(refusal) => {
            if let Refusal::Failed(error) = &refusal {
                tracing::error!(error = error.chain(), "a session failed");
            }
            ServerFrame::Error { message: refusal.to_string(), code: None }
        }
    };
    if send(&mut sink, &last).await.is_ok() {
        close(sink, drain(source)).await;
    }
}

/// The first known frame must be `start`.
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

async fn open(app: &App, found: &TheBox, start: Start) -> Result<Opened, Refusal> {
    let wanted = SessionStart {
        argv: start.argv,
        shell: start.cmd,
        cwd: start.cwd,
        env: start.env.unwrap_or_default(),
        terminal: start.tty.unwrap_or(false).then(|| (start.rows.unwrap_or(0), start.cols.unwrap_or(0))),
    };
    let awake = found.awake(app).await?;
    runs::open_session(&app.runs, &awake, wanted).await
}

/// A session from `started` to the close of the connection.
async fn converse(session: Session, mut sink: Sink, source: Source) {
    let started = ServerFrame::Started { pid: session.pid(), exec_id: session.id().to_owned() };
    if send(&mut sink, &started).await.is_err() {
        return session.abandon().await;
    }
    // The queue is short: the session has one of its own.
    let (sender, inputs) = mpsc::channel(1);
    let reading = tokio::spawn(read(source, sender));
    let last = match session.run(inputs, &mut Output(&mut sink)).await {
        SessionEnd::Exited(code) => ServerFrame::Exit { code },
        SessionEnd::BoxStopped => ServerFrame::Error { message: runs::stopped_text().to_owned(), code: None },
        SessionEnd::ClientGone => return reading.abort(),
    };
    if send(&mut sink, &last).await.is_ok() {
        let stop = reading.abort_handle();
        close(sink, async { drop(reading.await) }).await;
        stop.abort();
    }
}

/// Forwards the frames of the client until it closes the connection. After the end of the session, frames are read and
/// dropped.
async fn read(mut source: Source, session: mpsc::Sender<SessionInput>) {
    while let Some(Ok(message)) = source.next().await {
        if matches!(message, Message::Close(_)) {
            // The session ends at once; the rest closes the connection in order.
            drop(session);
            return drain(source).await;
        }
        if let Some(input) = frame_of(message).and_then(input_of) {
            let _ = session.send(input).await;
        }
    }
}

/// Reads and drops what the client still sends, until it closes the connection.
async fn drain(mut source: Source) {
    while let Some(Ok(_)) = source.next().await {}
}

/// Closes the connection (RFC 6455, section 7.1.1): sends Close and reads on until the client has closed too. A socket
/// that is closed with unread input makes a TCP reset, and the client loses output that it has not read yet.
async fn close(mut sink: Sink, until_closed: impl Future<Output = ()>) {
    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    // The client may have closed first.
    let _ = tokio::time::timeout(SEND_DEADLINE, sink.send(Message::Close(Some(frame)))).await;
    let _ = tokio::time::timeout(CLOSE_DEADLINE, until_closed).await;
}

/// Parses a message into a frame. Unknown messages are ignored.
fn frame_of(message: Message) -> Option<ClientFrame> {
    match message {
        Message::Text(text) => serde_json::from_str(&text).ok(),
        Message::Binary(bytes) => serde_json::from_slice(&bytes).ok(),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => None,
    }
}

/// Converts a frame into input of a running session.
fn input_of(frame: ClientFrame) -> Option<SessionInput> {
    match frame {
        ClientFrame::Stdin { data } => BASE64.decode(data).ok().map(SessionInput::Bytes),
        ClientFrame::StdinClose => Some(SessionInput::End),
        ClientFrame::Resize { rows, cols } => Some(SessionInput::Resize { rows, cols }),
        ClientFrame::Signal { signal } => signal_number(&signal).map(SessionInput::Signal),
        ClientFrame::Terminate { grace_ms } => Some(SessionInput::Terminate(grace_ms.map(Duration::from_millis))),
        ClientFrame::Start(_) => None,
    }
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

/// Output as frames.
struct Output<'a>(&'a mut Sink);

impl SessionOutput for Output<'_> {
    async fn stdout(&mut self, bytes: Bytes) -> Result<(), ClientGone> {
        send(self.0, &ServerFrame::Stdout { data: BASE64.encode(&bytes) }).await
    }

    async fn stderr(&mut self, bytes: Bytes) -> Result<(), ClientGone> {
        send(self.0, &ServerFrame::Stderr { data: BASE64.encode(&bytes) }).await
    }
}

async fn send(sink: &mut Sink, frame: &ServerFrame) -> Result<(), ClientGone> {
    // Plain data of ours always serialises.
    let text = serde_json::to_string(frame).map_err(|_| ClientGone)?;
    match tokio::time::timeout(SEND_DEADLINE, sink.send(Message::Text(text.into()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(ClientGone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
