//! Endpoints 30 to 33: commands and code, answered at their end or as a stream.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::sync::oneshot;

use super::stream_body::StreamBody;
use crate::boxes::StreamClient;
use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::flush::FlushWatch;
use crate::http::reply::Json;
use crate::http::system::Peer;
use crate::http::v2::wire::{CodeBody, ErrorBody, ExecBody, ExecResult};
use crate::refusal::Refusal;
use crate::runs::{self, Command, Outcome, Share};

/// A client on node gives up after 300 s without a byte. So if a command takes longer than this, such a client gets
/// status line and headers at once, and blanks until the command ends: JSON allows leading blanks. Other clients get
/// none, because each byte restarts the read timeout of a client on Python.
const HEAD_AFTER: Duration = Duration::from_secs(10);
/// The connection of a client that reads a stream; absent in tests without one.
type Reader = (Option<Extension<FlushWatch>>, Option<Extension<Peer>>);

/// Time between two blanks.
const BLANK_EVERY: Duration = Duration::from_secs(20);

/// Runs a command and answers when it has ended. A command that fails is no error of the request.
#[utoipa::path(post, path = "/v2/box/{id}/exec", tag = "exec", params(("id" = String, Path)), request_body = ExecBody, responses((status = 200, body = ExecResult), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn exec(
    State(app): State<App>,
    headers: HeaderMap,
    found: TheBox,
    Json(body): Json<ExecBody>,
) -> Result<Response, Refusal> {
    let command = Command::exec(body.command, body.folder.as_deref())?;
    run_to_end(&app, &found, &command, wants_blanks(&headers)).await
}

/// Runs code and answers when it has ended.
#[utoipa::path(post, path = "/v2/box/{id}/code", tag = "exec", params(("id" = String, Path)), request_body = CodeBody, responses((status = 200, body = ExecResult), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn code(
    State(app): State<App>,
    headers: HeaderMap,
    found: TheBox,
    Json(body): Json<CodeBody>,
) -> Result<Response, Refusal> {
    run_to_end(&app, &found, &runs::code_command(body.into())?, wants_blanks(&headers)).await
}

/// Runs a command; its output comes as it is written, stdout and stderr merged, then `event: exit` with the exit code.
/// When the client disconnects, the command continues.
#[utoipa::path(post, path = "/v2/box/{id}/exec-stream", tag = "exec", params(("id" = String, Path)), request_body = ExecBody, responses((status = 200, content_type = "text/plain", description = "Raw output and a trailer"), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn exec_stream(
    State(app): State<App>,
    client: Reader,
    found: TheBox,
    Json(body): Json<ExecBody>,
) -> Result<Response, Refusal> {
    let command = Command::exec(body.command, body.folder.as_deref())?;
    run_as_stream(&app, &found, command, client).await
}

/// Runs code; its output comes as it is written.
#[utoipa::path(post, path = "/v2/box/{id}/code-stream", tag = "exec", params(("id" = String, Path)), request_body = CodeBody, responses((status = 200, content_type = "text/plain", description = "Raw output and a trailer"), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn code_stream(
    State(app): State<App>,
    client: Reader,
    found: TheBox,
    Json(body): Json<CodeBody>,
) -> Result<Response, Refusal> {
    run_as_stream(&app, &found, runs::code_command(body.into())?, client).await
}

async fn run_as_stream(
    app: &App,
    found: &TheBox,
    command: Command,
    (flushes, peer): Reader,
) -> Result<Response, Refusal> {
    let awake = found.awake(app).await?;
    let client = StreamClient { address: peer.map(|Extension(peer)| peer.address) };
    let command = Command { streamed_to: Some(client), ..command };
    let output = runs::stream(&app.runs, &awake, &command).await?;
    let body = StreamBody::new(output, flushes.map(|Extension(flushes)| flushes)).into_body();
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        // For proxies in front of us: buffering delays the output, or splits it in the wrong place.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, body).into_response())
}

/// True if the client runs on node or a similar runtime: by its telemetry header, or else by the name of its HTTP
/// client.
fn wants_blanks(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("upstash-telemetry-sdk") {
        Some(sdk) => sdk.starts_with("@upstash/box"),
        None => text(header::USER_AGENT.as_str())
            .is_some_and(|agent| ["node", "undici", "Bun", "Deno"].iter().any(|name| agent.starts_with(name))),
    }
}

async fn run_to_end(app: &App, found: &TheBox, command: &Command, blanks: bool) -> Result<Response, Refusal> {
    let awake = found.awake(app).await?;
    let timeout_ms = command.timeout_ms;
    let mut ended = runs::collect(&app.runs, &awake, command).await?;
    // From here on the run itself keeps the box awake; a pause need not wait for this request.
    drop(awake);
    let outcome = if blanks {
        match tokio::time::timeout(HEAD_AFTER, &mut ended).await {
            Ok(outcome) => outcome,
            Err(_) => return Ok(keep_alive_body(ended.apart(), timeout_ms)),
        }
    } else {
        ended.await
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], answer(outcome, timeout_ms)).into_response())
}

/// The JSON of a finished command. It holds its share of memory until it is sent.
fn answer(mut outcome: Outcome, timeout_ms: Option<u64>) -> Bytes {
    struct Held {
        json: Vec<u8>,
        _share: Share,
    }
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.json
        }
    }
    let share = std::mem::take(&mut outcome.share);
    // Plain data of ours always serialises.
    let json = serde_json::to_vec(&result(outcome, timeout_ms)).unwrap_or_default();
    Bytes::from_owner(Held { json, _share: share })
}

/// The answer for a finished command with both streams.
fn result(outcome: Outcome, timeout_ms: Option<u64>) -> ExecResult {
    let mut error = text_of(outcome.stderr);
    let has_note = outcome.finished.timed_out || outcome.truncated || outcome.finished.out_of_memory.is_some();
    if has_note && !error.is_empty() && !error.ends_with('\n') {
        error.push('\n');
    }
    if let Some(text) = &outcome.finished.out_of_memory {
        error.push_str(text);
        error.push('\n');
    }
    if outcome.truncated {
        let most = runs::EXEC_OUTPUT_BYTES_MAX;
        error.push_str(&format!(
            "icebox: the output was cut (at most {most} bytes are kept); stream it, or write it to a file\n"
        ));
    }
    if outcome.finished.timed_out {
        let limit = timeout_ms.map_or_else(String::new, |ms| format!(" after {ms} ms"));
        error.push_str(&format!("timed out{limit}"));
    }
    ExecResult {
        exit_code: outcome.finished.exit_code,
        output: text_of(outcome.stdout),
        error,
        truncated: outcome.truncated,
        cpu_ns: outcome.finished.cpu_ns,
    }
}

fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|bytes| String::from_utf8_lossy(bytes.as_bytes()).into_owned())
}

/// An answer that begins now and ends with the command.
fn keep_alive_body(ended: oneshot::Receiver<Outcome>, timeout_ms: Option<u64>) -> Response {
    let pieces = stream::unfold((Some(ended), Duration::ZERO), move |(ended, wait)| async move {
        let mut ended = ended?;
        let piece = match tokio::time::timeout(wait, &mut ended).await {
            Err(_) => {
                return Some((Ok::<_, std::convert::Infallible>(Bytes::from_static(b" ")), (Some(ended), BLANK_EVERY)));
            }
            Ok(Ok(outcome)) => return Some((Ok(answer(outcome, timeout_ms)), (None, BLANK_EVERY))),
            // The status is already sent: the client learns of the failure by the exit code and the text.
            Ok(Err(_)) => serde_json::to_vec(&ExecResult {
                exit_code: 1,
                output: String::new(),
                error: "the output of the command could not be read to its end".into(),
                truncated: false,
                cpu_ns: 0,
            }),
        };
        Some((Ok(Bytes::from(piece.unwrap_or_default())), (None, BLANK_EVERY)))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(pieces)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::RunState;
    use crate::runs::Finished;

    fn outcome(timed_out: bool, stderr: &str) -> Outcome {
        let finished = Finished {
            exit_code: if timed_out { 137 } else { 0 },
            state: RunState::Completed,
            cpu_ns: 5,
            error_message: None,
            out_of_memory: None,
            timed_out,
            lost: false,
        };
        Outcome { stdout: b"out\xff".to_vec(), stderr: stderr.as_bytes().to_vec(), ..Outcome::of(finished) }
    }

    #[test]
    fn error_is_stderr_and_absent_when_that_is_empty() {
        let json = serde_json::to_value(result(outcome(false, ""), None)).expect("json");
        assert_eq!(json, serde_json::json!({"exit_code": 0, "output": "out\u{fffd}", "cpu_ns": 5}));
        assert_eq!(result(outcome(false, "warning\n"), None).error, "warning\n");
    }

    #[test]
    fn a_timeout_is_said_in_error_beside_a_non_zero_code() {
        let said = result(outcome(true, "x"), Some(50));
        assert_eq!((said.exit_code, said.error.as_str()), (137, "x\ntimed out after 50 ms"));
    }

    #[test]
    fn cut_output_is_said_in_error() {
        let cut = Outcome { truncated: true, ..outcome(false, "warning") };
        let said = result(cut, None);
        assert!(said.truncated && said.error.starts_with("warning\nicebox: the output was cut"), "{}", said.error);
    }

    #[test]
    fn only_clients_on_node_get_blanks() {
        let asks = |name: &'static str, value: &'static str| {
            wants_blanks(&HeaderMap::from_iter([(
                header::HeaderName::from_static(name),
                header::HeaderValue::from_static(value),
            )]))
        };
        assert!(
            asks("upstash-telemetry-sdk", "@upstash/box@0.5.5,@upstash/box-cli@0.1.0") && asks("user-agent", "node")
        );
        assert!(!asks("upstash-telemetry-sdk", "upstash-box-py@0.4.0") && !asks("user-agent", "python-httpx/0.28.1"));
        assert!(!wants_blanks(&HeaderMap::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_command_is_answered_with_blanks_and_then_json() {
        let (send, receive) = oneshot::channel();
        let body = keep_alive_body(receive, None).into_body();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(50)).await;
            assert!(send.send(outcome(false, "")).is_ok(), "the body waits");
        });
        let bytes = axum::body::to_bytes(body, 1000).await.expect("a body");
        let text = std::str::from_utf8(&bytes).expect("text");
        assert_eq!(text.len() - text.trim_start().len(), 3, "{text:?}");
        assert!(serde_json::from_str::<ExecResult>(text).is_ok());
    }
}
