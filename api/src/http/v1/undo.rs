//! Taking commands back.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::UndoPoint;
use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json, done};
use crate::http::v2::wire::{Empty, ErrorBody};

/// Body of `PUT /v1/boxes/{id}/undo`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct UndoOn {
    /// Commands that can be taken back one after the other, 1 to 20; 5 if it was never set.
    #[serde(default)]
    steps: Option<u32>,
    /// Age in seconds up to which a command can be taken back, 1 to 604800; a day if it was never set.
    #[serde(default)]
    max_age_seconds: Option<u64>,
}

/// Body of `POST /v1/boxes/{id}/undo`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct UndoRequest {
    /// The point that is meant; the newest if absent. 409 if it is not the newest any more.
    #[serde(default)]
    point: Option<String>,
}

/// Answer of `GET` and `PUT /v1/boxes/{id}/undo`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct UndoState {
    /// The disk is copied before each command.
    on: bool,
    /// Commands that can be taken back one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<u32>,
    /// Age in seconds up to which a command can be taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age_seconds: Option<u64>,
    /// What can be taken back, the newest first.
    points: Vec<UndoPointData>,
}

/// A command that can be taken back.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct UndoPointData {
    /// Id of the point.
    id: String,
    /// The command that came after it, on one line.
    command: String,
    /// Unix milliseconds.
    taken_ms: i64,
    /// Bytes that it occupies; blocks that it shares count.
    size_bytes: u64,
}

impl From<UndoPoint> for UndoPointData {
    fn from(point: UndoPoint) -> Self {
        Self { id: point.id, command: point.command, taken_ms: point.taken_ms, size_bytes: point.size_bytes }
    }
}

/// Answer of `POST /v1/boxes/{id}/undo`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct Undone {
    /// The command that was taken back.
    undone: UndoPointData,
    /// Commands that can still be taken back.
    left: usize,
}

fn state_of(found: &TheBox) -> UndoState {
    let undo = found.entry.settings().undo;
    UndoState {
        on: undo.is_some(),
        steps: undo.map(|undo| undo.steps),
        max_age_seconds: undo.map(|undo| undo.max_age_seconds),
        points: found.entry.undo_points().into_iter().map(Into::into).collect(),
    }
}

/// What can be taken back in the box. Wakes nothing.
#[utoipa::path(get, path = "/v1/boxes/{id}/undo", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = UndoState), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn show(found: TheBox) -> Answer<UndoState> {
    Ok(axum::Json(state_of(&found)))
}

/// Copies the disk of the box before each command from now on. The box stands still for it; a command whose copy fails is not
/// started. Copies beyond the bounds are removed.
#[utoipa::path(put, path = "/v1/boxes/{id}/undo", tag = "v1", params(("id" = String, Path)), request_body = UndoOn, responses((status = 200, body = UndoState), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn on(State(app): State<App>, found: TheBox, Json(body): Json<UndoOn>) -> Answer<UndoState> {
    app.boxes.set_undo(&found.entry, found.account.idle_seconds, body.steps, body.max_age_seconds).await?;
    Ok(axum::Json(state_of(&found)))
}

/// Copies the disk of the box no longer, and removes the copies.
#[utoipa::path(delete, path = "/v1/boxes/{id}/undo", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = Empty), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn off(State(app): State<App>, found: TheBox) -> Answer<Empty> {
    app.boxes.end_undo(&found.entry, found.account.idle_seconds).await?;
    done()
}

/// Puts the disk of the box back to what it was before its last command that is not taken back yet. All processes of the box
/// end, commands in flight fail, and it starts again. What other processes have written since is gone too; there is no redo.
#[utoipa::path(post, path = "/v1/boxes/{id}/undo", tag = "v1", params(("id" = String, Path)), request_body = UndoRequest, responses((status = 200, body = Undone), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(in crate::http) async fn undo(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<UndoRequest>,
) -> Answer<Undone> {
    let undone = app.lifecycle.undo(&found.entry, body.point).await?.into();
    Ok(axum::Json(Undone { undone, left: found.entry.undo_points().len() }))
}
