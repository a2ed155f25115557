//! Endpoints 4, 5 and 55 to 57: snapshots, and boxes made from them.

use axum::body::Body;
use axum::extract::{Path, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::boxes::describe;
use super::create::request_of;
use crate::http::App;
use crate::http::auth::Caller;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, JSON_BYTES_MAX, Json, Query, done, parse_json, read_body};
use crate::http::v2::wire::{
    BoxData, CreateSnapshot, DeleteSnapshots, Empty, ErrorBody, FromSnapshot, Snapshot, Snapshots, SnapshotsDeleted,
};
use crate::refusal::Refusal;

/// Most snapshots of one bulk request.
const BULK_IDS_MAX: usize = 1000;

/// Takes a snapshot of the box: its disk at one moment, and its settings. A running box stands still for a moment; a
/// sleeping one is not woken. It is answered with the status `creating` if it takes long.
#[utoipa::path(post, path = "/v2/box/{id}/snapshots", tag = "snapshots", params(("id" = String, Path)), request_body = CreateSnapshot, responses((status = 200, body = Snapshot), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 429, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(in crate::http) async fn take(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<CreateSnapshot>,
) -> Answer<Snapshot> {
    Ok(axum::Json(app.boxes.snapshot(&found.entry, &body.name).await?.into()))
}

/// The snapshots of the box, the oldest first. Wakes nothing.
#[utoipa::path(get, path = "/v2/box/{id}/snapshots", tag = "snapshots", params(("id" = String, Path)), responses((status = 200, body = Snapshots), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn of_box(State(app): State<App>, found: TheBox) -> Answer<Snapshots> {
    let snapshots = app.boxes.snapshots_of(&found.entry).await?;
    Ok(axum::Json(Snapshots { snapshots: snapshots.into_iter().map(Into::into).collect() }))
}

/// Deletes a snapshot of the box. Boxes made from it stay.
#[utoipa::path(delete, path = "/v2/box/{id}/snapshots/{snapshot}", tag = "snapshots", params(("id" = String, Path), ("snapshot" = String, Path)), responses((status = 200, body = Empty), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    found: TheBox,
    Path((_, id)): Path<(String, String)>,
) -> Answer<Empty> {
    let snapshot = app.boxes.find_snapshot(&found.account.id, &id).await?;
    if snapshot.box_id != found.entry.id {
        return Err(Refusal::NotFound("this snapshot is not of this box".into()));
    }
    app.boxes.delete_snapshots(&found.account.id, Some(vec![id])).await?;
    done()
}

/// The snapshots of the account, the oldest first, those of deleted boxes too.
#[utoipa::path(get, path = "/v2/box/snapshots", tag = "snapshots", responses((status = 200, body = Snapshots), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn of_account(State(app): State<App>, Caller(account): Caller) -> Answer<Snapshots> {
    let snapshots = app.boxes.snapshots_of_account(&account.id).await?;
    Ok(axum::Json(Snapshots { snapshots: snapshots.into_iter().map(Into::into).collect() }))
}

/// Query of a bulk deletion.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct DeleteQuery {
    /// `true`: all snapshots of the account.
    all: Option<bool>,
}

/// Deletes several snapshots, or all of the account: by `?all=true`, or by the body `{}`. Unknown ids are skipped, unless
/// all are unknown.
#[utoipa::path(delete, path = "/v2/box/snapshots", tag = "snapshots", params(DeleteQuery), request_body = DeleteSnapshots, responses((status = 200, body = SnapshotsDeleted), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn delete_many(
    State(app): State<App>,
    Caller(account): Caller,
    Query(query): Query<DeleteQuery>,
    body: Body,
) -> Answer<SnapshotsDeleted> {
    let ids = which(query.all, &read_body(body, JSON_BYTES_MAX).await?)?;
    let is_all = ids.is_none();
    let deleted = app.boxes.delete_snapshots(&account.id, ids).await?;
    if deleted == 0 && !is_all {
        return Err(Refusal::NotFound("none of these snapshots exists".into()));
    }
    Ok(axum::Json(SnapshotsDeleted { deleted }))
}

/// The ids that a bulk deletion names; `None` for all of the account. Only an explicit wish means all.
fn which(all: Option<bool>, body: &[u8]) -> Result<Option<Vec<String>>, Refusal> {
    let object: serde_json::Map<String, serde_json::Value> = parse_json(body)?;
    let has_ids = object.contains_key("ids");
    let DeleteSnapshots { ids } = parse_json(body)?;
    match (all, has_ids, ids) {
        (None | Some(false), true, Some(ids)) if ids.len() > BULK_IDS_MAX => {
            Err(Refusal::Invalid(format!("ids must have at most {BULK_IDS_MAX} entries")))
        }
        (None | Some(false), true, Some(ids)) if !ids.is_empty() => Ok(Some(ids)),
        (_, true, _) => Err(Refusal::Invalid("ids must be a list with at least one id, and goes without `all`".into())),
        (Some(true), false, _) => Ok(None),
        (None, false, _) if !body.trim_ascii().is_empty() => Ok(None),
        (None | Some(false), false, _) => {
            Err(Refusal::Invalid("name the snapshots in `ids`, or ask for `?all=true`".into()))
        }
    }
}

/// Creates a box that starts with the disk of a snapshot. The answer comes when it accepts work.
#[utoipa::path(post, path = "/v2/box/from-snapshot", tag = "snapshots", request_body = FromSnapshot, responses((status = 200, body = BoxData), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(in crate::http) async fn restore(
    State(app): State<App>,
    Caller(account): Caller,
    Json(body): Json<FromSnapshot>,
) -> Answer<BoxData> {
    let entry = app.lifecycle.restore(&account, &body.snapshot_id, request_of(body.create)?).await?;
    Ok(axum::Json(describe(&entry)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_meant_only_when_it_is_said() {
        let ids = |text: &str| Some(vec![text.to_owned()]);
        assert_eq!(which(None, b"{\"ids\": [\"a\"]}").expect("one"), ids("a"));
        assert_eq!(which(None, b"{}").expect("all"), None);
        assert_eq!(which(Some(true), b"{}").expect("all"), None);
        assert_eq!(which(Some(true), b"").expect("all"), None);
        for (all, body) in [
            (None, &b"{\"ids\": []}"[..]),
            (None, b"{\"ids\": null}"),
            (None, b""),
            (None, b" \n"),
            (Some(false), b"{}"),
            (Some(true), b"{\"ids\": [\"a\"]}"),
            (Some(true), b"{\"ids\": []}"),
            (None, b"[]"),
        ] {
            assert!(matches!(which(all, body), Err(Refusal::Invalid(_))), "{all:?} {}", String::from_utf8_lossy(body));
        }
    }
}
