//! Volumes: files that outlive boxes.

use axum::extract::{Path, State};

use crate::http::App;
use crate::http::auth::Caller;
use crate::http::reply::{Answer, Json, done};
use crate::http::v1::wire::{CreateVolume, ResizeVolume, VolumeAnswer, Volumes};
use crate::http::v2::wire::{Empty, ErrorBody};

/// The volumes of the account, by name.
#[utoipa::path(get, path = "/v1/volumes", tag = "v1", responses((status = 200, body = Volumes), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn list(State(app): State<App>, Caller(account): Caller) -> Answer<Volumes> {
    let volumes = app.boxes.volumes_of(&account.id).await?;
    Ok(axum::Json(Volumes { volumes: volumes.into_iter().map(Into::into).collect() }))
}

/// Makes a volume. A box gets it when it is created, with `volumes`.
#[utoipa::path(post, path = "/v1/volumes", tag = "v1", request_body = CreateVolume, responses((status = 200, body = VolumeAnswer), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn create(
    State(app): State<App>,
    Caller(account): Caller,
    Json(body): Json<CreateVolume>,
) -> Answer<VolumeAnswer> {
    Ok(axum::Json(app.boxes.create_volume(&account.id, &body.name, body.size_gib).await?.into()))
}

/// A volume, and the boxes that have it.
#[utoipa::path(get, path = "/v1/volumes/{name}", tag = "v1", params(("name" = String, Path)), responses((status = 200, body = VolumeAnswer), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn show(
    State(app): State<App>,
    Caller(account): Caller,
    Path(name): Path<String>,
) -> Answer<VolumeAnswer> {
    Ok(axum::Json(app.boxes.volume_named(&account.id, &name).await?.into()))
}

/// Deletes a volume with its files. 409 if a box has it.
#[utoipa::path(delete, path = "/v1/volumes/{name}", tag = "v1", params(("name" = String, Path)), responses((status = 200, body = Empty), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(in crate::http) async fn remove(
    State(app): State<App>,
    Caller(account): Caller,
    Path(name): Path<String>,
) -> Answer<Empty> {
    app.boxes.delete_volume(&account.id, &name).await?;
    done()
}

/// Grows a volume, also while a box writes to it. It cannot become smaller. 409 if boxes read it.
#[utoipa::path(post, path = "/v1/volumes/{name}/resize", tag = "v1", params(("name" = String, Path)), request_body = ResizeVolume, responses((status = 200, body = VolumeAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn resize(
    State(app): State<App>,
    Caller(account): Caller,
    Path(name): Path<String>,
    Json(body): Json<ResizeVolume>,
) -> Answer<VolumeAnswer> {
    let (report, waits) = app.boxes.resize_volume(&account.id, &name, body.size_gib).await?;
    Ok(axum::Json(VolumeAnswer { waits_because: waits.map(str::to_owned), ..report.into() }))
}
