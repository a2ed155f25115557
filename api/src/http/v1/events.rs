//! The stream of events.

use axum::Extension;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::event_body::EventBody;
use crate::events::{Filter, KINDS};
use crate::http::App;
use crate::http::auth::{Caller, KEY_HEADER};
use crate::http::reply::Query;
use crate::http::seats::Cut;
use crate::http::system::Peer;
use crate::http::v1::wire::EventRecord;
use crate::http::v2::wire::ErrorBody;
use crate::refusal::Refusal;

/// The header with the id of the last event that the client has seen.
pub(in crate::http) const LAST_EVENT_ID: &str = "last-event-id";

/// Query of the stream.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct EventsQuery {
    /// Only events of this box, by id or name.
    #[serde(rename = "box")]
    of_box: Option<String>,
    /// Only events of these kinds, separated by commas; `box` means all `box.…`.
    #[serde(rename = "type")]
    kinds: Option<String>,
}

/// The events of the account's boxes from now on, as Server-Sent Events. With `Last-Event-ID`, those after it; a record
/// `lost` comes first if some of them are gone. Each record has the kind of the event as its name and JSON as its data;
/// a record `end` gives the reason when the stream ends. Over the operator's socket and without a key: the events of
/// all accounts.
#[utoipa::path(get, path = "/v1/events", tag = "v1", params(EventsQuery, ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event that the client has seen")), responses((status = 200, body = EventRecord, content_type = "text/event-stream"), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn events(
    State(app): State<App>,
    Query(query): Query<EventsQuery>,
    peer: Option<Extension<Peer>>,
    cut: Option<Extension<Cut>>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let is_operator = peer.is_some_and(|Extension(peer)| peer.operator) && !parts.headers.contains_key(KEY_HEADER);
    let account_id = match is_operator {
        true => None,
        false => Some(Caller::from_request_parts(&mut parts, &app).await?.0.id),
    };
    let box_id = query.of_box.map(|named| box_id(&app, account_id.as_deref(), named)).transpose()?;
    let kinds = Filter::kinds_of(query.kinds.as_deref().unwrap_or_default()).map_err(|unknown| {
        let unknown: String = unknown.chars().take(40).collect();
        Refusal::Invalid(format!("there is no event type '{unknown}'; the types are: {}", KINDS.join(", ")))
    })?;
    let after = parts.headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
    let subscription = app.events.subscribe(Filter { account_id, box_id, kinds }, after);
    let cut = cut.map(|Extension(Cut(cut))| cut);
    let body = EventBody::of(subscription, after.is_some(), cut);
    // Buffering proxies would delay events.
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, body).into_response())
}

/// The id of a box. A box that was deleted is known as long as one of its events is kept.
fn box_id(app: &App, account_id: Option<&str>, named: String) -> Result<String, Refusal> {
    if app.events.knows_box(account_id, &named) {
        return Ok(named);
    }
    match account_id {
        Some(account) => app.boxes.find(account, &named).map(|entry| entry.id.clone()),
        None => app.boxes.with_id(&named).map(|entry| entry.id.clone()).ok_or_else(|| Refusal::unknown_box(&named)),
    }
}
