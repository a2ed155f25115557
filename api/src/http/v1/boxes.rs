//! Our own name space `/v1`: bills, reasons why a box is awake, resource usage.

use axum::extract::State;
use icebox_shim::handle::{BoxPressure, Pressure};

use crate::clock;
use crate::config::check_idle_seconds;
use crate::error::{Cause, Error};
use crate::http::App;
use crate::http::auth::Caller;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json, done};
use crate::http::v1::wire::{
    AccountUsage, BoxBill, BoxNetwork, BoxView, IdleAnswer, IdleChange, KeepRequest, ReclaimAnswer, RunRecord,
    RunRecords, Top, TopPressure, TopStall, Why,
};
use crate::http::v2::create::headers_of;
use crate::http::v2::wire::{Empty, ErrorBody, Kept};
use crate::lifecycle::check_headers;
use crate::refusal::Refusal;
use crate::runs;

/// The bill of the account, deleted boxes included.
#[utoipa::path(get, path = "/v1/usage", tag = "v1", responses((status = 200, body = AccountUsage), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn account_usage(State(app): State<App>, Caller(account): Caller) -> Answer<AccountUsage> {
    Ok(axum::Json(app.boxes.account_usage(&account).await?.into()))
}

/// The bill of a box. Wakes nothing.
#[utoipa::path(get, path = "/v1/boxes/{id}/usage", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = BoxBill), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn box_usage(State(app): State<App>, found: TheBox) -> Answer<BoxBill> {
    Ok(axum::Json(app.boxes.bill_of(&found.entry).await?.into()))
}

/// The record of the box, with its base image. Wakes nothing.
#[utoipa::path(get, path = "/v1/boxes/{id}", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = BoxView), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn view(found: TheBox) -> Answer<BoxView> {
    let entry = found.entry;
    Ok(axum::Json(BoxView {
        id: entry.id.clone(),
        name: entry.name.clone(),
        status: entry.status().into(),
        image: entry.view().image,
        created_ms: entry.created_ms,
        volumes: entry.settings().volumes.into_iter().map(Into::into).collect(),
        kept: entry.settings().kept(clock::unix_ms()).map(Kept::from),
    }))
}

/// The reasons why the box is awake, or the events that wake it. Wakes nothing.
#[utoipa::path(get, path = "/v1/boxes/{id}/why", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = Why), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn why(State(app): State<App>, found: TheBox) -> Answer<Why> {
    Ok(axum::Json(app.boxes.why(&found.entry).into()))
}

/// Sets the idle time of a box; `null` returns to the account's.
#[utoipa::path(put, path = "/v1/boxes/{id}/idle", tag = "v1", params(("id" = String, Path)), request_body = IdleChange, responses((status = 200, body = IdleAnswer), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn box_idle(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<IdleChange>,
) -> Answer<IdleAnswer> {
    check(&body)?;
    let change = |settings: &mut crate::domain::BoxSettings| settings.idle_seconds = body.idle_seconds;
    app.boxes.change_settings(&found.entry, found.account.idle_seconds, change).await?;
    Ok(axum::Json(IdleAnswer { idle_seconds: found.entry.idle().as_secs() }))
}

/// Keeps a box awake for a number of seconds, or, with `null`, until it is ended by DELETE. Wakes the box. Replaces an
/// earlier request; survives a restart of the daemon. An explicit pause freezes the box all the same.
#[utoipa::path(post, path = "/v1/boxes/{id}/keep", tag = "v1", params(("id" = String, Path)), request_body = KeepRequest, responses((status = 200, body = Kept), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn keep(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<KeepRequest>,
) -> Answer<Kept> {
    let keep = app.boxes.keep(&found.entry, found.account.idle_seconds, body.seconds).await?;
    app.lifecycle.resume(&found.entry).await?;
    Ok(axum::Json(keep.into()))
}

/// Ends a request to keep the box awake. The idle rule applies again. No effect if there is none.
#[utoipa::path(delete, path = "/v1/boxes/{id}/keep", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = Empty), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn release(State(app): State<App>, found: TheBox) -> Answer<Empty> {
    app.boxes.release(&found.entry, found.account.idle_seconds).await?;
    done()
}

/// Sets the idle time of the account's boxes; `null` returns to the server's. Boxes with one of their own keep it.
#[utoipa::path(put, path = "/v1/account/idle", tag = "v1", request_body = IdleChange, responses((status = 200, body = IdleAnswer), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn account_idle(
    State(app): State<App>,
    Caller(account): Caller,
    Json(body): Json<IdleChange>,
) -> Answer<IdleAnswer> {
    check(&body)?;
    app.db.set_account_idle(&account.id, body.idle_seconds).await?;
    app.accounts.changed();
    app.boxes.account_idle_changed(&account.id, body.idle_seconds);
    let idle_seconds = body.idle_seconds.unwrap_or(app.config.idle_seconds);
    Ok(axum::Json(IdleAnswer { idle_seconds }))
}

/// Sets the headers that new boxes of the account attach, beside their own; a box's own win, pattern by pattern.
/// Existing boxes keep their headers. An empty object removes them. No answer ever contains them.
#[utoipa::path(put, path = "/v1/account/attach-headers", tag = "v1", request_body = serde_json::Value, responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn account_headers(
    State(app): State<App>,
    Caller(account): Caller,
    Json(body): Json<serde_json::Value>,
) -> Answer<Empty> {
    let wanted = headers_of(Some(body))?;
    let headers = wanted.map(|wanted| check_headers(&wanted, app.boxes.has_network())).transpose()?.flatten();
    app.boxes.set_account_headers(&account.id, headers).await?;
    done()
}

fn check(body: &IdleChange) -> Result<(), Refusal> {
    body.idle_seconds.map_or(Ok(()), |seconds| check_idle_seconds(seconds).map_err(Refusal::Invalid))
}

/// Reclaims the memory of a sleeping box: cached files are dropped, the rest goes to swap where the host has some.
/// Pages come back when the box uses them.
#[utoipa::path(post, path = "/v1/boxes/{id}/reclaim", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = ReclaimAnswer), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(in crate::http) async fn reclaim(State(app): State<App>, found: TheBox) -> Answer<ReclaimAnswer> {
    let done = app.boxes.reclaim(&found.entry).await?;
    Ok(axum::Json(ReclaimAnswer {
        memory_before: done.memory_before,
        memory_after: done.memory_after,
        swap_before: done.swap_before,
        swap_after: done.swap_after,
        cut_short: done.cut_short,
    }))
}

/// Ends all processes of the box, checks its file system and restarts it on its disk. Use it for a box whose file
/// system has become read-only because the disk of the host was full.
#[utoipa::path(post, path = "/v1/boxes/{id}/restart", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = Empty), (status = 404, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn restart(State(app): State<App>, found: TheBox) -> Answer<Empty> {
    app.lifecycle.restart(&found.entry).await?;
    done()
}

/// The runs of the box, newest first, with exit code, memory, the end of the output and the reason of a failure. Wakes
/// nothing.
#[utoipa::path(get, path = "/v1/boxes/{id}/runs", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = RunRecords), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn list_runs(State(app): State<App>, found: TheBox) -> Answer<RunRecords> {
    let rows = runs::runs_of(&app.runs, &found.entry).await?;
    let account = &found.entry.account_id;
    Ok(axum::Json(RunRecords { runs: rows.into_iter().map(|row| RunRecord::new(row, account)).collect() }))
}

/// `None` where the kernel has no such data.
fn pressure_of(read: &BoxPressure) -> Option<TopPressure> {
    let stall = |pressure: Option<Pressure>| {
        pressure.map(|Pressure { some, full }| TopStall {
            some_avg10: some.avg10,
            some_avg60: some.avg60,
            some_avg300: some.avg300,
            some_usec: some.total_usec,
            full_avg10: full.avg10,
            full_avg60: full.avg60,
            full_avg300: full.avg300,
            full_usec: full.total_usec,
        })
    };
    let pressure = TopPressure { cpu: stall(read.cpu), memory: stall(read.memory), io: stall(read.io) };
    (pressure.cpu.is_some() || pressure.memory.is_some() || pressure.io.is_some()).then_some(pressure)
}

/// The network of the box: addresses, policy, counters, connections, refusals. Wakes nothing.
#[utoipa::path(get, path = "/v1/boxes/{id}/net", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = BoxNetwork), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn net(State(app): State<App>, found: TheBox) -> Answer<BoxNetwork> {
    let report = app.boxes.network_of(&found.entry).await?;
    let (pair, policy) = (found.entry.view().pair, found.entry.settings().shown_policy());
    Ok(axum::Json(BoxNetwork::new(pair, policy.into(), report)))
}

/// The current resource usage of the box. Wakes nothing.
#[utoipa::path(get, path = "/v1/boxes/{id}/top", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = Top), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn top(found: TheBox) -> Answer<Top> {
    let handle = found.entry.handle();
    let frozen = found.entry.frozen();
    // A box without processes uses nothing.
    let usage = match handle.usage() {
        Ok(usage) => usage,
        Err(error) if error.kind() == icebox_shim::ErrorKind::NotFound => Default::default(),
        Err(error) => {
            return Err(Refusal::Failed(Error::new("look into the box", &found.entry.id, Cause::Shim(error))));
        }
    };
    let memory = handle.memory().unwrap_or_default();
    let pressure = handle.pressure().unwrap_or_default();
    Ok(axum::Json(Top {
        cpu_usec: usage.cpu_usec,
        user_usec: usage.user_usec,
        system_usec: usage.system_usec,
        memory_current: usage.memory_current,
        memory_peak: usage.memory_peak,
        memory_swap: memory.swap,
        memory_high_events: memory.high_events,
        memory_max_events: memory.max_events,
        oom_kills: usage.oom_kills,
        pressure: pressure_of(&pressure),
        pids: usage.pids,
        frozen,
        processes: None,
    }))
}
