//! Endpoints 2, 3, 10 and 11: listing, describing and deleting boxes.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tokio::task::JoinSet;
use utoipa::IntoParams;

use crate::boxes::{Deleted, Entry};
use crate::clock;
use crate::error::{Cause, Error};
use crate::http::App;
use crate::http::auth::Caller;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json, Query};
use crate::http::v2::wire::{BoxData, DeleteBoxes, Empty, ErrorBody};
use crate::ledger::cpu_micro_dollars;
use crate::refusal::Refusal;

/// Most boxes of one bulk request.
const BULK_IDS_MAX: usize = 1000;
/// Boxes of one bulk request that are deleted in parallel.
const BULK_AT_ONCE: usize = 16;

/// A box as the clients see it. Asks the kernel; does not block.
pub(in crate::http) fn describe(entry: &Entry) -> BoxData {
    let (settings, usage) = (entry.settings(), entry.meter.usage());
    let network_policy = settings.shown_policy();
    let kept = settings.kept(clock::unix_ms()).map(Into::into);
    #[expect(clippy::cast_precision_loss, reason = "for people; the bill has the exact integers")]
    let cost = cpu_micro_dollars(usage.cpu_usec) as f64 / 1e6;
    BoxData {
        id: entry.id.clone(),
        name: entry.name.clone(),
        status: entry.status().into(),
        size: settings.size.into(),
        runtime: settings.runtime,
        labels: settings.labels,
        enabled_skills: Vec::new(),
        keep_alive: settings.keep_alive,
        network_policy: network_policy.into(),
        customer_id: entry.account_id.clone(),
        created_at: entry.created_ms.div_euclid(1000),
        updated_at: entry.updated_ms().div_euclid(1000),
        last_activity_at: entry.activity.last_work_ms().div_euclid(1000),
        total_cpu_ns: usage.cpu_usec.saturating_mul(1000),
        total_compute_cost_usd: cost,
        agent: settings.agent,
        model: settings.model,
        ephemeral: settings.ephemeral,
        expires_at: entry.expires_ms.map(|ms| ms.div_euclid(1000)),
        idle_seconds: entry.idle().as_secs(),
        kept,
    }
}

/// Query of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ListQuery {
    /// Only boxes with this label.
    label: Option<String>,
}

/// Lists the boxes of the account, oldest first.
#[utoipa::path(get, path = "/v2/box", tag = "boxes", params(ListQuery), responses((status = 200, body = Vec<BoxData>), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn list(
    State(app): State<App>,
    Caller(account): Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Vec<BoxData>> {
    let mut entries = app.boxes.of_account(&account.id);
    if let Some(label) = query.label.filter(|label| !label.is_empty()) {
        entries.retain(|entry| entry.settings().labels.contains(&label));
    }
    // This queries the kernel about every box: not in a thread that serves other requests.
    let described = tokio::task::spawn_blocking(move || entries.iter().map(|entry| describe(entry)).collect());
    let boxes = described.await.map_err(|_| Error::new("list the boxes", "", Cause::WorkerEnded))?;
    Ok(axum::Json(boxes))
}

/// Describes a box. Wakes nothing.
#[utoipa::path(get, path = "/v2/box/{id}", tag = "boxes", params(("id" = String, Path, description = "Id or name")), responses((status = 200, body = BoxData), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn get(found: TheBox) -> Answer<BoxData> {
    Ok(axum::Json(describe(&found.entry)))
}

/// Deletes a box for good.
#[utoipa::path(delete, path = "/v2/box/{id}", tag = "boxes", params(("id" = String, Path, description = "Id or name")), responses((status = 200, body = Empty), (status = 202, body = Empty, description = "Its deletion goes on in the background"), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    found: TheBox,
) -> Result<(StatusCode, axum::Json<Empty>), Refusal> {
    let status = match app.boxes.delete(&found.entry).await? {
        Deleted::Whole => StatusCode::OK,
        Deleted::GoingOn => StatusCode::ACCEPTED,
    };
    Ok((status, axum::Json(Empty {})))
}

/// Answer of a bulk deletion.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub(in crate::http) struct BulkDeleted {
    /// Number of deleted boxes.
    deleted: usize,
}

/// Deletes several boxes. Unknown ids are skipped, unless all are unknown.
#[utoipa::path(delete, path = "/v2/box", tag = "boxes", request_body = DeleteBoxes, responses((status = 200, body = BulkDeleted), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn delete_many(
    State(app): State<App>,
    Caller(account): Caller,
    Json(body): Json<DeleteBoxes>,
) -> Answer<BulkDeleted> {
    let ids = body.ids.filter(|ids| !ids.is_empty());
    let ids = ids.ok_or_else(|| Refusal::Invalid("ids must be a list with at least one id".into()))?;
    if ids.len() > BULK_IDS_MAX {
        return Err(Refusal::Invalid(format!("ids must have at most {BULK_IDS_MAX} entries")));
    }
    let found: Vec<Arc<Entry>> = ids.iter().filter_map(|id| app.boxes.find(&account.id, id).ok()).collect();
    if found.is_empty() {
        return Err(Refusal::NotFound("none of these boxes exists".into()));
    }
    let (mut deleting, mut deleted, mut failed) = (JoinSet::new(), 0, None);
    let mut waiting = found.into_iter();
    loop {
        while deleting.len() < BULK_AT_ONCE
            && let Some(entry) = waiting.next()
        {
            let boxes = app.boxes.clone();
            deleting.spawn(async move { boxes.delete(&entry).await });
        }
        match deleting.join_next().await {
            None => break,
            Some(Ok(Ok(_))) => deleted += 1,
            // The same box twice in the list, or deleted by another request meanwhile.
            Some(Ok(Err(Refusal::NotFound(_)))) => {}
            Some(Ok(Err(refusal))) => failed = Some(refusal),
            Some(Err(_)) => failed = Some(Refusal::Failed(Error::new("delete boxes", "", Cause::WorkerEnded))),
        }
    }
    failed.map_or(Ok(axum::Json(BulkDeleted { deleted })), Err)
}
