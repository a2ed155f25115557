//! Forks of boxes, their promotion, and what has changed in a box.

use axum::extract::{Path, State};
use icebox_shim::names;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json};
use crate::http::v2::boxes::describe;
use crate::http::v2::wire::{BoxData, ErrorBody};
use crate::lifecycle::Change;

/// Body of `POST /v1/boxes/{id}/fork`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(in crate::http) struct ForkRequest {
    /// Number of forks; 1 if absent.
    #[serde(default)]
    count: Option<usize>,
}

/// Answer of `POST /v1/boxes/{id}/fork`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct Forks {
    /// The new boxes.
    boxes: Vec<BoxData>,
}

/// Makes boxes that start with the disk of this one, all from one moment, with its settings. A running box stands still for a
/// moment. All are made, or none.
#[utoipa::path(post, path = "/v1/boxes/{id}/fork", tag = "v1", params(("id" = String, Path)), request_body = ForkRequest, responses((status = 200, body = Forks), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn fork(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<ForkRequest>,
) -> Answer<Forks> {
    let forks = app.lifecycle.fork(&found.account, &found.entry, body.count.unwrap_or(1)).await?;
    Ok(axum::Json(Forks { boxes: forks.iter().map(|fork| describe(fork)).collect() }))
}

/// Puts the disk of this fork in the place of its origin's, in one step, and deletes the fork. The origin's processes end,
/// and it starts again; what its disk had is gone. Answers with the origin.
#[utoipa::path(post, path = "/v1/boxes/{id}/promote", tag = "v1", params(("id" = String, Path)), responses((status = 200, body = BoxData), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(in crate::http) async fn promote(State(app): State<App>, found: TheBox) -> Answer<BoxData> {
    Ok(axum::Json(describe(&*app.lifecycle.promote(&found.entry).await?)))
}

/// Answer of `GET /v1/boxes/{id}/diff/{base}`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct DiffAnswer {
    /// By path.
    changes: Vec<PathChange>,
    /// There are more changes than are listed (10 000).
    truncated: bool,
}

/// A change of one path.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct PathChange {
    /// The path.
    path: String,
    /// `added`, `removed` or `changed`.
    change: String,
}

/// What has changed in the box since a snapshot, or compared with another box, as paths. Both sides list their files
/// themselves: boxes are woken, and a snapshot is restored into a box that is deleted at once.
#[utoipa::path(get, path = "/v1/boxes/{id}/diff/{base}", tag = "v1", params(("id" = String, Path), ("base" = String, Path, description = "Id of a snapshot, or id or name of a box")), responses((status = 200, body = DiffAnswer), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(in crate::http) async fn diff(
    State(app): State<App>,
    found: TheBox,
    Path((_, base)): Path<(String, String)>,
) -> Answer<DiffAnswer> {
    let diff = app.lifecycle.diff(&found.account, &found.entry, &base).await?;
    let change = |(path, change): (Vec<u8>, Change)| {
        let word = match change {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Changed => "changed",
        };
        PathChange { path: names::to_text(&path), change: word.to_owned() }
    };
    Ok(axum::Json(DiffAnswer { changes: diff.changes.into_iter().map(change).collect(), truncated: diff.truncated }))
}
