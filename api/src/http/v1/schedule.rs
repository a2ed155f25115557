//! Automatic snapshots of a box.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::{KeepRules, Schedule};
use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json, done};
use crate::http::v2::wire::{Empty, ErrorBody};
use crate::refusal::Refusal;

/// How many automatic snapshots are kept: the newest of each of the last hours, days and weeks (UTC) that have one.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Keep {
    /// Hours, 0 to 200.
    #[serde(default)]
    hourly: u32,
    /// Days, 0 to 200.
    #[serde(default)]
    daily: u32,
    /// Weeks, 0 to 200.
    #[serde(default)]
    weekly: u32,
}

/// Body of `PUT /v1/boxes/{id}/snapshot-schedule`.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ScheduleRequest {
    /// What is kept; one of the numbers must not be 0. The shortest span says how often a snapshot is taken.
    keep: Keep,
}

/// Answer of `GET` and `PUT /v1/boxes/{id}/snapshot-schedule`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct ScheduleData {
    /// What is kept.
    keep: Keep,
    /// Unix milliseconds at which the next snapshot is due. It is skipped if the disk has not changed since the last one.
    due_ms: i64,
    /// Why the last attempt failed; absent if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl From<Schedule> for ScheduleData {
    fn from(schedule: Schedule) -> Self {
        let KeepRules { hourly, daily, weekly } = schedule.rules;
        Self { keep: Keep { hourly, daily, weekly }, due_ms: schedule.due_ms, error: schedule.error }
    }
}

/// The automatic snapshots of the box; 404 if there are none. Wakes nothing.
#[utoipa::path(get, path = "/v1/boxes/{id}/snapshot-schedule", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = ScheduleData), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn show(State(app): State<App>, found: TheBox) -> Answer<ScheduleData> {
    let none = || Refusal::NotFound("no snapshots of this box are taken automatically".into());
    Ok(axum::Json(app.boxes.schedule_of(&found.entry).await?.ok_or_else(none)?.into()))
}

/// Takes snapshots of the box automatically from now on; the first one at once. A sleeping box is not woken. Snapshots that
/// are not kept any more are deleted when the next one is taken; those that were taken by request stay.
#[utoipa::path(put, path = "/v1/boxes/{id}/snapshot-schedule", tag = "v1", params(("id" = String, Path)), request_body = ScheduleRequest, responses((status = 200, body = ScheduleData), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn set(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<ScheduleRequest>,
) -> Answer<ScheduleData> {
    let Keep { hourly, daily, weekly } = body.keep;
    app.boxes.set_schedule(&found.entry, KeepRules { hourly, daily, weekly }).await?;
    show(State(app), found).await
}

/// Takes no more snapshots of the box automatically. Those that there are stay.
#[utoipa::path(delete, path = "/v1/boxes/{id}/snapshot-schedule", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = Empty), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn remove(State(app): State<App>, found: TheBox) -> Answer<Empty> {
    app.boxes.remove_schedule(&found.entry).await?;
    done()
}
