//! Disks: growing one, and what they take.

use axum::extract::State;

use crate::http::App;
use crate::http::auth::Caller;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json};
use crate::http::v1::wire::{ResizeAnswer, ResizeRequest, StorageAnswer};
use crate::http::v2::wire::ErrorBody;

/// Grows the disk of a box while it runs, sleeps or is stopped. A disk cannot become smaller.
#[utoipa::path(post, path = "/v1/boxes/{id}/resize", tag = "v1", params(("id" = String, Path)), request_body = ResizeRequest, responses((status = 200, body = ResizeAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn resize(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<ResizeRequest>,
) -> Answer<ResizeAnswer> {
    let done = app.boxes.resize(&found.entry, found.account.idle_seconds, body.disk_gib).await?;
    Ok(axum::Json(done.into()))
}

/// What the disks of the account's boxes take, and the space that this host has for disks.
#[utoipa::path(get, path = "/v1/storage", tag = "v1", responses((status = 200, body = StorageAnswer), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn storage(State(app): State<App>, Caller(account): Caller) -> Answer<StorageAnswer> {
    // First: it says why nothing can be measured.
    let usage = app.boxes.storage_usage().await?;
    Ok(axum::Json(StorageAnswer::new(usage, app.boxes.disks_of(&account.id).await?)))
}
