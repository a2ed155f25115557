//! What this daemon is and has.

use axum::extract::State;

use super::wire::InfoAnswer;
use crate::http::App;
use crate::http::operator::Reader;
use crate::http::reply::Answer;
use crate::http::v2::wire::ErrorBody;

/// What this daemon is and has: version, what disks lie on, ready boxes. For every account, and for the operator.
#[utoipa::path(get, path = "/v1/info", tag = "v1", responses((status = 200, body = InfoAnswer), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn info(State(app): State<App>, _reader: Reader) -> Answer<InfoAnswer> {
    let ready = app.boxes.ready_counts().await;
    Ok(axum::Json(InfoAnswer::new(app.boxes.backing(), app.boxes.devices(), ready)))
}
