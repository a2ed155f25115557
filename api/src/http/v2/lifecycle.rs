//! Endpoints 12 to 20: status, sleep and wake, init command, log and runs.

use axum::Extension;
use axum::extract::{Path, State};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json, Query, done};
use crate::http::system::Peer;
use crate::http::v2::wire::{BoxRunData, Empty, ErrorBody, Logs, Runs, Startup, StatusAnswer};
use crate::lifecycle::check_init_command;
use crate::refusal::Refusal;
use crate::runs;

/// The status of the box. Wakes nothing.
#[utoipa::path(get, path = "/v2/box/{id}/status", tag = "life", params(("id" = String, Path)), responses((status = 200, body = StatusAnswer), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn status(found: TheBox) -> Answer<StatusAnswer> {
    Ok(axum::Json(StatusAnswer { status: found.entry.status().into() }))
}

/// Puts the box to sleep: its processes are frozen and continue when it is woken.
#[utoipa::path(post, path = "/v2/box/{id}/pause", tag = "life", params(("id" = String, Path)), responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn pause(State(app): State<App>, found: TheBox) -> Answer<Empty> {
    found.not_ephemeral("pause is")?;
    app.lifecycle.pause(&found.entry).await?;
    done()
}

/// Wakes the box. Every request that needs it does the same.
#[utoipa::path(post, path = "/v2/box/{id}/resume", tag = "life", params(("id" = String, Path)), responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn resume(State(app): State<App>, found: TheBox) -> Answer<Empty> {
    found.not_ephemeral("resume is")?;
    app.lifecycle.resume(&found.entry).await?;
    done()
}

/// The init command; empty if there is none.
#[utoipa::path(get, path = "/v2/box/{id}/startup", tag = "life", params(("id" = String, Path)), responses((status = 200, body = Startup)))]
pub(in crate::http) async fn get_startup(found: TheBox) -> Answer<Startup> {
    Ok(axum::Json(Startup { init_command: Some(found.entry.settings().init_command.unwrap_or_default()) }))
}

/// Sets the init command. It runs at the next start of the box.
#[utoipa::path(put, path = "/v2/box/{id}/startup", tag = "life", params(("id" = String, Path)), request_body = Startup, responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn set_startup(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<Startup>,
) -> Answer<Empty> {
    let command = check_init_command(body.init_command)?;
    let command = command.ok_or_else(|| Refusal::Invalid("init_command must not be empty".into()))?;
    let change = |settings: &mut crate::domain::BoxSettings| settings.init_command = Some(command);
    app.boxes.change_settings(&found.entry, found.account.idle_seconds, change).await?;
    done()
}

/// Removes the init command. Processes that it has started go on.
#[utoipa::path(delete, path = "/v2/box/{id}/startup", tag = "life", params(("id" = String, Path)), responses((status = 200, body = Empty)))]
pub(in crate::http) async fn remove_startup(State(app): State<App>, found: TheBox) -> Answer<Empty> {
    let change = |settings: &mut crate::domain::BoxSettings| settings.init_command = None;
    app.boxes.change_settings(&found.entry, found.account.idle_seconds, change).await?;
    done()
}

/// Query of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct LogsQuery {
    /// Entries to skip from the oldest.
    offset: Option<u64>,
    /// Entries to return; 0 or absent: all.
    limit: Option<u64>,
}

/// The log of the box, oldest entry first.
#[utoipa::path(get, path = "/v2/box/{id}/logs", tag = "life", params(("id" = String, Path), LogsQuery), responses((status = 200, body = Logs), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn logs(
    State(app): State<App>,
    found: TheBox,
    Query(query): Query<LogsQuery>,
) -> Answer<Logs> {
    found.not_ephemeral("logs are")?;
    app.db.settle().await?;
    let limit = query.limit.filter(|limit| *limit > 0);
    let logs = app.db.logs(&found.entry.id, query.offset.unwrap_or(0), limit).await?;
    Ok(axum::Json(Logs { logs: logs.into_iter().map(Into::into).collect() }))
}

/// The runs of the box, newest first.
#[utoipa::path(get, path = "/v2/box/{id}/runs", tag = "life", params(("id" = String, Path)), responses((status = 200, body = Runs), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn list_runs(State(app): State<App>, found: TheBox) -> Answer<Runs> {
    found.not_ephemeral("runs are")?;
    let runs = runs::runs_of(&app.runs, &found.entry).await?;
    let runs = runs.into_iter().map(|run| BoxRunData::new(run, &found.entry.account_id)).collect();
    Ok(axum::Json(Runs { runs }))
}

/// Ends a run with all its processes. An unknown id means the stream that the same client reads, or has just left: the
/// clients make up ids for their streams.
#[utoipa::path(post, path = "/v2/box/{id}/runs/{run}/cancel", tag = "life", params(("id" = String, Path), ("run" = String, Path)), responses((status = 200, body = Empty), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn cancel(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    found: TheBox,
    Path(path): Path<(String, String)>,
) -> Answer<Empty> {
    let client = peer.map(|Extension(peer)| peer.address);
    runs::cancel(&app.runs, &found.entry, &path.1, client, async || found.awake(&app).await).await?;
    done()
}
