//! Routing by host: a request is for a box or for the API.
//!
//! Decided first of all, by the host of the request, so that requests for a box never reach the API and the other way
//! round.

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::reply;
use super::routes::Api;
use super::seats::{Seat, Use};
use super::system::Peer;
use crate::public_urls::{Addressed, Arrival, Target, Urls};
use crate::refusal::Refusal;

/// Handler of the requests of a listener.
pub trait Answers: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send;
}

/// Serves the API, and boxes by their names.
#[derive(Debug, Clone)]
pub struct HostRouter {
    /// The API.
    pub api: Api,
    /// The public URLs.
    pub urls: Urls,
}

/// Serves boxes only.
#[derive(Debug, Clone)]
pub struct UrlsOnly {
    /// The public URLs.
    pub urls: Urls,
}

impl Answers for HostRouter {
    async fn answer(&self, request: Request) -> Response {
        match sort(&self.urls, request).await {
            Sorted::Answered(response) => response,
            Sorted::Other(request) if !room_for(&request, Use::Api) => no_room(),
            Sorted::Other(request) => self.api.answer(request).await,
        }
    }
}

impl Answers for UrlsOnly {
    async fn answer(&self, request: Request) -> Response {
        match sort(&self.urls, request).await {
            Sorted::Answered(response) => response,
            Sorted::Other(request) if request.headers().contains_key(header::HOST) => self.urls.no_box(),
            Sorted::Other(_) => reply::error(StatusCode::BAD_REQUEST, "a Host header is missing"),
        }
    }
}

enum Sorted {
    Answered(Response),
    Other(Request),
}

async fn sort(urls: &Urls, request: Request) -> Sorted {
    let (parts, body) = request.into_parts();
    let addressed = urls.addressed(&parts);
    let request = Request::from_parts(parts, body);
    match addressed {
        // It is for no known box; programs can read the API's error format.
        Err(text) => Sorted::Answered(reply::error(StatusCode::BAD_REQUEST, text)),
        Ok(Addressed::Other) => Sorted::Other(request),
        Ok(Addressed::NoBox) => Sorted::Answered(urls.no_box()),
        Ok(Addressed::Name(target)) => Sorted::Answered(pass(urls, &target, None, request).await),
        Ok(Addressed::Path(target, prefix)) => Sorted::Answered(pass(urls, &target, Some(prefix), request).await),
    }
}

/// True if the connection of the request may be used for this purpose.
fn room_for(request: &Request, wanted: Use) -> bool {
    request.extensions().get::<Seat>().is_none_or(|seat| seat.use_for(wanted))
}

fn no_room() -> Response {
    Refusal::Unavailable("too many connections are open; try again".into()).into_response()
}

async fn pass(urls: &Urls, target: &Target, prefix: Option<String>, request: Request) -> Response {
    if !room_for(&request, Use::Url) {
        return no_room();
    }
    let Some(peer) = request.extensions().get::<Peer>().copied() else {
        return reply::error(StatusCode::INTERNAL_SERVER_ERROR, "internal error");
    };
    let arrival = Arrival { peer: peer.address, secure: peer.secure, prefix };
    urls.answer(target, &arrival, request).await
}
