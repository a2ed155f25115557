//! The client side of an exec session: JSON frames over a WebSocket.
//!
//! The server begins with `started` and ends with `exit`. Output before `started`, or an end without `exit`, is an error
//! here and not a guess: an exit code that is reported is one that the server sent. The socket owns the process in
//! the box, so dropping it ends the process.

use std::convert::Infallible;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest, http::HeaderValue};

use super::client::{Client, KEY_HEADER, refusal};
use super::error::{Error, STDOUT};
use super::terminal::WindowSize;

const CONNECT_SECONDS_MAX: u64 = 5;
/// Waking a box and starting a program takes milliseconds; this is for a machine in trouble.
const STARTED_SECONDS_MAX: u64 = 120;
const STEP: &str = "run the command";

/// What to run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Start {
    /// Program and arguments; no shell is involved.
    pub(crate) argv: Vec<String>,
    /// Absolute directory.
    pub(crate) cwd: String,
    /// `NAME=VALUE`, on top of the box's environment.
    pub(crate) env: Vec<String>,
    /// Whether to use a terminal.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) tty: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rows: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cols: Option<u16>,
}

impl Start {
    /// Asks for a terminal of this size.
    pub(crate) fn with_terminal(mut self, size: WindowSize) -> Self {
        (self.tty, self.rows, self.cols) = (true, Some(size.rows), Some(size.cols));
        self
    }
}

/// What may be told to a running command besides its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// The terminal has a new size.
    Resize(WindowSize),
    /// A signal, named without SIG.
    Signal(&'static str),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ToServer<'a> {
    Start(&'a Start),
    Stdin { data: String },
    StdinClose,
    Resize { rows: u16, cols: u16 },
    Signal { signal: &'a str },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum FromServer {
    Started,
    Stdout {
        data: String,
    },
    Stderr {
        data: String,
    },
    Exit {
        code: i64,
    },
    Error {
        message: String,
        /// The exit code of a program that is not there or cannot be executed.
        code: Option<i64>,
    },
    /// Frames that were invented later.
    #[serde(other)]
    Unknown,
}

/// Opens the socket of a box.
pub(crate) async fn connect(client: &Client, id: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let mut url = client.url(&["v2", "box", id, "exec-session"]);
    let unreachable = |cause: Box<dyn std::error::Error + Send + Sync>| {
        Error::transport("reach the server", &client.access().url, cause)
    };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(80);
    let dialling = TcpStream::connect((host.as_str(), port));
    let stream = tokio::time::timeout(Duration::from_secs(CONNECT_SECONDS_MAX), dialling)
        .await
        .map_err(|late| unreachable(late.into()))?
        .map_err(|cause| unreachable(cause.into()))?;
    // Keys are single bytes: they must not wait for company.
    stream.set_nodelay(true).map_err(|cause| unreachable(cause.into()))?;
    url.set_scheme("ws").map_err(|()| Error::usage(format!("{url} can not carry a WebSocket")))?;
    let mut request = url.as_str().into_client_request().map_err(|cause| unreachable(cause.into()))?;
    let key = HeaderValue::from_str(&client.access().key).map_err(|cause| unreachable(cause.into()))?;
    request.headers_mut().insert(KEY_HEADER, key);
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            Err(refusal(answer.status().as_u16(), answer.body().as_deref().unwrap_or_default()))
        }
        Err(cause) => Err(Error::transport("open a session", &client.access().url, cause)),
    }
}

/// Runs one command over an open socket and returns its exit code.
pub(crate) async fn run<S>(
    socket: WebSocketStream<S>,
    start: &Start,
    stdin: Receiver<Vec<u8>>,
    controls: Receiver<Control>,
    mut output: (impl AsyncWrite + Unpin, impl AsyncWrite + Unpin),
) -> Result<u8, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut stream) = socket.split();
    send(&mut sink, &ToServer::Start(start)).await.map_err(broken)?;
    let started = tokio::time::timeout(Duration::from_secs(STARTED_SECONDS_MAX), await_started(&mut stream))
        .await
        .map_err(|_| Error::protocol(STEP, "the server did not start it in time"))??;
    if let Begun::NotExecutable { code, message } = started {
        write_bytes(&mut output.1, "standard error", format!("icebox: {message}\n").as_bytes()).await?;
        let _ = sink.close().await;
        return Ok(code);
    }
    let code = tokio::select! {
        code = relay_output(&mut stream, output) => code?,
        never = relay_input(&mut sink, stdin, controls) => match never {},
    };
    // The server has said all it had to; whether it still hears the good-bye makes no difference.
    let _ = sink.close().await;
    Ok(code)
}

/// What the server says of the start.
enum Begun {
    Running,
    /// The box has no such program, or cannot execute it: 127 or 126, and what a shell would print.
    NotExecutable {
        code: u8,
        message: String,
    },
}

async fn await_started<S>(stream: &mut SplitStream<WebSocketStream<S>>) -> Result<Begun, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match next_frame(stream).await? {
            FromServer::Started => return Ok(Begun::Running),
            FromServer::Unknown => {}
            FromServer::Error { message, code: Some(code) } => {
                return Ok(Begun::NotExecutable { code: exit_code(code)?, message });
            }
            FromServer::Error { message, code: None } => return Err(Error::protocol(STEP, message)),
            FromServer::Exit { .. } => {
                return Err(Error::protocol(STEP, "the server reported its end before its start"));
            }
            FromServer::Stdout { .. } | FromServer::Stderr { .. } => {
                return Err(Error::protocol(STEP, "the server sent output before its start"));
            }
        }
    }
}

async fn relay_output<S>(
    stream: &mut SplitStream<WebSocketStream<S>>,
    (mut stdout, mut stderr): (impl AsyncWrite + Unpin, impl AsyncWrite + Unpin),
) -> Result<u8, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match next_frame(stream).await? {
            FromServer::Stdout { data } => write(&mut stdout, STDOUT, &data).await?,
            FromServer::Stderr { data } => write(&mut stderr, "standard error", &data).await?,
            FromServer::Exit { code } => return exit_code(code),
            FromServer::Error { message, .. } => return Err(Error::protocol(STEP, message)),
            FromServer::Started | FromServer::Unknown => {}
        }
    }
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), name: &'static str, data: &str) -> Result<(), Error> {
    let bytes =
        BASE64.decode(data).map_err(|cause| Error::protocol(STEP, format!("output that is no base64 ({cause})")))?;
    write_bytes(writer, name, &bytes).await
}

async fn write_bytes(writer: &mut (impl AsyncWrite + Unpin), name: &'static str, bytes: &[u8]) -> Result<(), Error> {
    async {
        writer.write_all(bytes).await?;
        writer.flush().await
    }
    .await
    .map_err(|cause| Error::io("write", name, cause))
}

/// Passes input and controls on, controls first. Never returns: the session ends when the server says so.
async fn relay_input<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    mut stdin: Receiver<Vec<u8>>,
    mut controls: Receiver<Control>,
) -> Infallible
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut input_open, mut controls_open) = (true, true);
    while input_open || controls_open {
        let sent = tokio::select! {
            biased;
            control = controls.recv(), if controls_open => match control {
                Some(Control::Resize(size)) => send(sink, &ToServer::Resize { rows: size.rows, cols: size.cols }).await,
                Some(Control::Signal(signal)) => send(sink, &ToServer::Signal { signal }).await,
                None => { controls_open = false; Ok(()) }
            },
            chunk = stdin.recv(), if input_open => match chunk {
                Some(bytes) => send(sink, &ToServer::Stdin { data: BASE64.encode(bytes) }).await,
                None => { input_open = false; send(sink, &ToServer::StdinClose).await }
            },
        };
        // A broken connection is noticed, and reported, by the side that reads.
        if sent.is_err() {
            break;
        }
    }
    std::future::pending().await
}

async fn send<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    frame: &ToServer<'_>,
) -> Result<(), tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let text = serde_json::to_string(frame).map_err(|cause| tungstenite::Error::Io(cause.into()))?;
    sink.send(Message::text(text)).await
}

async fn next_frame<S>(stream: &mut SplitStream<WebSocketStream<S>>) -> Result<FromServer, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ended = || Error::protocol(STEP, "the connection ended before the command did");
    loop {
        let parsed = match stream.next().await {
            None | Some(Ok(Message::Close(_))) => return Err(ended()),
            Some(Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::Protocol(_))) => {
                return Err(ended());
            }
            Some(Err(cause)) => return Err(broken(cause)),
            Some(Ok(Message::Text(text))) => serde_json::from_str(text.as_str()),
            Some(Ok(Message::Binary(bytes))) => serde_json::from_slice(&bytes),
            Some(Ok(_)) => continue,
        };
        return parsed.map_err(|cause| Error::protocol(STEP, format!("a frame that makes no sense ({cause})")));
    }
}

fn broken(cause: tungstenite::Error) -> Error {
    Error::transport("keep the session", "the server", cause)
}

/// The exit code of a process is a byte; anything else is the server's mistake and must not pass for success.
fn exit_code(code: i64) -> Result<u8, Error> {
    u8::try_from(code).map_err(|_| Error::protocol(STEP, format!("the server reported {code} as its exit code")))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
