//! One request through a public URL.
//!
//! In this order: find the URL, check access, find room, wake the box, wait for the port, relay. A client without
//! access is refused before the request has any effect on the box.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::address::Target;
use super::body::{Asked, Download, Upload};
use super::dial::NoDial;
use super::head::{self, Client};
use super::passage::Passage;
use super::secret;
use super::stream::BoxStream;
use super::table::PublicUrl;
use super::trouble::Trouble;
use super::{Urls, tunnel};
use crate::boxes::{Awake, Entry, WorkKind};
use crate::refusal::Refusal;

/// Time limit for the port to listen in a box that was just woken or started.
const HOLD: Duration = Duration::from_secs(30);
/// First delay between two attempts at the port; it doubles up to [`LOOK_MAX`].
const LOOK_MIN: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(160);
/// Time limit for the box to begin its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(600);
/// Most 1xx answers before the final one.
const INFORMATIONAL_MAX: u32 = 32;
/// Largest head of an answer of a box.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most headers of one answer.
const HEADERS_MAX: usize = 128;

/// The client's connection.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Peer address.
    pub peer: SocketAddr,
    /// True if it came over TLS that ends here.
    pub secure: bool,
    /// The part of the path that named the box, in the path form.
    pub prefix: Option<String>,
}

/// A box and the connection to it.
struct Way {
    entry: Arc<Entry>,
    url: Arc<PublicUrl>,
}

impl Urls {
    /// Answers a request for a port of a box.
    pub async fn answer(&self, target: &Target, arrival: &Arrival, request: Request) -> Response {
        let began = std::time::Instant::now();
        let page = trouble_page(&request);
        let response = match self.pass(target, arrival, request).await {
            Ok(response) => response,
            Err(trouble) => trouble.response(page),
        };
        self.metrics.request("public URL", response.status().as_u16(), began.elapsed());
        response
    }

    async fn pass(&self, target: &Target, arrival: &Arrival, request: Request) -> Result<Response, Trouble> {
        let url = self.table.find(target).ok_or(Trouble::Unknown)?;
        let entry = self.boxes.with_id(&target.box_id).ok_or(Trouble::Unknown)?;
        let credentials_were_ours = match secret::entry(&url.row, request.headers()) {
            secret::Entry::Free => false,
            secret::Entry::Opened => true,
            secret::Entry::Refused => return Err(Trouble::unauthorized(&url.row)),
        };
        if request.method() == Method::CONNECT {
            return Err(Trouble::Malformed("CONNECT is not for servers"));
        }
        if let Some(redirect) = to_directory(&request, arrival) {
            return Ok(redirect);
        }
        let passage = Passage::new(take(&self.room)?, take(&url.room)?);
        let way = Way { entry, url };
        let (closed, gone) = (way.url.closed.clone(), way.entry.gone.clone());
        // The request ends with the URL, in progress or not.
        tokio::select! {
            biased;
            () = closed.cancelled() => Err(Trouble::Unknown),
            () = gone.cancelled() => Err(Trouble::Unknown),
            passed = self.pass_on(way, arrival, request, credentials_were_ours, passage) => passed,
        }
    }

    async fn pass_on(
        &self,
        way: Way,
        arrival: &Arrival,
        mut request: Request,
        credentials_were_ours: bool,
        mut passage: Passage,
    ) -> Result<Response, Trouble> {
        let client_upgrade = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        // The server's extensions must not go to the box.
        parts.extensions.clear();
        let chunked = parts.headers.contains_key(header::TRANSFER_ENCODING);
        let client = self.client(arrival);
        let upgrade = head::to_box(&mut parts, &client, credentials_were_ours).map_err(Trouble::Malformed)?;
        let (stream, awake) = self.reach(&way).await?;
        let stream = BoxStream::new(stream, self.lifecycle.clone(), Arc::clone(&way.entry));
        let mut sender = connect(stream, &way, &mut passage).await?;
        let asked = Asked::new(&way.entry.activity);
        let upload = Upload::new(body, Arc::clone(&asked));
        // From here on the request itself, or its pieces, keep the box awake.
        drop(awake);
        let mut passed_on = Request::from_parts(parts, upload);
        let informed = count_informational(&mut passed_on);
        let answering = sender.send_request(passed_on);
        let answered = tokio::select! {
            // The final answer may be there as well when too many 1xx answers came in the same packet.
            biased;
            () = informed.cancelled() => {
                tracing::debug!(box_id = way.entry.id, "a box answers a request with too many 1xx");
                asked.answered();
                return Err(Trouble::NoAnswer);
            }
            answered = tokio::time::timeout(ANSWER_DEADLINE, answering) => answered,
        };
        asked.answered();
        let response = answered.map_err(|_| Trouble::TooSlow)?.map_err(|cause| {
            tracing::debug!(box_id = way.entry.id, %cause, "a box has not answered a request of a public URL");
            Trouble::NoAnswer
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if upgrade.is_none() {
                return Err(Trouble::NoAnswer);
            }
            return Ok(switched(response, client_upgrade, way, passage, client.prefix.as_deref()));
        }
        let (mut parts, body) = response.into_parts();
        parts.extensions.clear();
        head::to_client(&mut parts, client.prefix.as_deref());
        if chunked {
            // If sender and receiver disagree about the end of such a body, no further message follows on the
            // connection.
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(Response::from_parts(parts, Download::body(body, passage)))
    }

    fn client(&self, arrival: &Arrival) -> Client {
        let outside = self.config.scheme.as_deref().unwrap_or("http");
        let scheme = if arrival.secure { "https" } else { outside };
        Client { address: arrival.peer.ip().to_canonical(), scheme: scheme.to_owned(), prefix: arrival.prefix.clone() }
    }

    /// Wakes the box and connects to the port; waits for the port if the box has only just woken.
    async fn reach(&self, way: &Way) -> Result<(TcpStream, Awake), Trouble> {
        let (entry, port) = (&way.entry, way.url.row.port);
        let mut held: Option<OwnedSemaphorePermit> = None;
        let mut pause = LOOK_MIN;
        loop {
            let awake =
                self.lifecycle.ensure_awake(entry, WorkKind::Url).await.map_err(|refusal| unwoken(entry, &refusal))?;
            let failed = match self.dialler.dial(entry, port).await {
                Ok(stream) => return Ok((stream, awake)),
                Err(failed) => failed,
            };
            match failed {
                NoDial::Silent | NoDial::Dead => {}
                NoDial::Busy => return Err(Trouble::TooSlow),
                NoDial::Failed(error) => {
                    tracing::error!(box_id = entry.id, error = error.chain(), "a public URL cannot be served");
                    return Err(Trouble::Broken);
                }
            }
            let fresh = entry.activity.since_woken().is_some_and(|since| since < HOLD);
            match (fresh, &held) {
                (false, Some(_)) => return Err(Trouble::StillStarting),
                (false, None) => return Err(Trouble::NothingListens(port)),
                (true, None) => held = Some(take(&self.holds)?),
                (true, Some(_)) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
    }
}

/// Counts the 1xx answers to a request. The token is cancelled when there are too many.
fn count_informational(request: &mut Request<Upload>) -> CancellationToken {
    let too_many = CancellationToken::new();
    let (count, told) = (AtomicU32::new(0), too_many.clone());
    hyper::ext::on_informational(request, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) >= INFORMATIONAL_MAX {
            told.cancel();
        }
    });
    too_many
}

/// Room for one more request, or a refusal.
fn take(room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Trouble> {
    Arc::clone(room).try_acquire_owned().map_err(|_| Trouble::Full)
}

/// The box does not wake: its owner finds the reason in its log, a visitor does not see it.
fn unwoken(entry: &Entry, refusal: &Refusal) -> Trouble {
    match refusal {
        Refusal::NotFound(_) => Trouble::Unknown,
        Refusal::Failed(error) => {
            tracing::error!(box_id = entry.id, error = error.chain(), "a public URL cannot wake its box");
            Trouble::Broken
        }
        _ => Trouble::StillStarting,
    }
}

type Sender = http1::SendRequest<Upload>;

/// Drives HTTP on a connection to the box, in a task that ends with the passage, the URL or the box.
async fn connect(stream: BoxStream, way: &Way, passage: &mut Passage) -> Result<Sender, Trouble> {
    let handshake = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake::<_, Upload>(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.map_err(|_| Trouble::NoAnswer)?;
    let (closed, gone) = (way.url.closed.clone(), way.entry.gone.clone());
    let task = tokio::spawn(async move {
        tokio::select! {
            // The answer or its body reports how it ended.
            _ = connection.with_upgrades() => {}
            () = closed.cancelled() => {}
            () = gone.cancelled() => {}
        }
    });
    passage.holds(task.abort_handle());
    Ok(sender)
}

/// The answer to a request that has upgraded the protocol. A separate task relays the bytes.
fn switched(
    mut response: hyper::Response<hyper::body::Incoming>,
    client: hyper::upgrade::OnUpgrade,
    way: Way,
    passage: Passage,
    prefix: Option<&str>,
) -> Response {
    let inside = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    parts.extensions.clear();
    head::to_client(&mut parts, prefix);
    tokio::spawn(async move {
        let _passage = passage;
        let both = async {
            if let Ok((client, inside)) = tokio::try_join!(client, inside) {
                tunnel::copy(TokioIo::new(client), TokioIo::new(inside)).await;
            }
        };
        tokio::select! {
            () = both => {}
            () = way.url.closed.cancelled() => {}
            () = way.entry.gone.cancelled() => {}
        }
    });
    Response::from_parts(parts, Body::empty())
}

/// The path form without a slash at its end: relative links in the page would be wrong there.
fn to_directory(request: &Request, arrival: &Arrival) -> Option<Response> {
    let prefix = arrival.prefix.as_deref().filter(|prefix| request.uri().path() == *prefix)?;
    let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let location = HeaderValue::from_str(&format!("{prefix}/{query}")).ok()?;
    response.headers_mut().insert(header::LOCATION, location);
    Some(response)
}

/// True if the answer is for a browser.
fn trouble_page(request: &Request) -> bool {
    let accepts = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    request.method() == Method::GET && accepts.is_some_and(|accepts| accepts.contains("text/html"))
}
