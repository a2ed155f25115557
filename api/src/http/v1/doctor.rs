//! Leftovers without an owner, for the operator.

use axum::extract::State;

use super::wire::{DoctorAnswer, RepairAnswer};
use crate::error::{Cause, Error};
use crate::http::App;
use crate::http::operator::Operator;
use crate::http::reply::Answer;
use crate::http::v2::wire::ErrorBody;

/// What is left on the host without an owner. For the operator.
#[utoipa::path(get, path = "/v1/doctor", tag = "v1", responses((status = 200, body = DoctorAnswer), (status = 403, body = ErrorBody)))]
pub(in crate::http) async fn look(State(app): State<App>, _operator: Operator) -> Answer<DoctorAnswer> {
    Ok(axum::Json(DoctorAnswer::new(app.doctor.look().await?)))
}

/// Removes it. For the operator.
#[utoipa::path(post, path = "/v1/doctor/repair", tag = "v1", responses((status = 200, body = RepairAnswer), (status = 403, body = ErrorBody)))]
pub(in crate::http) async fn repair(State(app): State<App>, _operator: Operator) -> Answer<RepairAnswer> {
    let doctor = app.doctor.clone();
    // It goes on if the client leaves.
    let done = tokio::spawn(async move { doctor.repair().await }).await;
    let treated = done.map_err(|_| Error::new("remove leftovers", "", Cause::WorkerEnded))??;
    Ok(axum::Json(RepairAnswer::new(treated)))
}
