//! Endpoints 23 and 26 to 29: network policy, labels, git's identity.

use axum::extract::{Path, State};

use crate::domain::BoxStatus;
use crate::http::App;
use crate::http::extract::TheBox;
use crate::http::reply::{Answer, Json, done};
use crate::http::v2::wire::{AddLabel, Empty, ErrorBody, GitConfig, GitConfigChange, Labels, NetworkPolicy};
use crate::ids;
use crate::lifecycle::check_git_identity;
use crate::refusal::Refusal;

/// Sets the network policy. It is in force when this has answered, for open connections too.
#[utoipa::path(put, path = "/v2/box/{id}/config/network-policy", tag = "settings", params(("id" = String, Path)), request_body = NetworkPolicy, responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn network_policy(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<NetworkPolicy>,
) -> Answer<Empty> {
    app.boxes.change_policy(&found.entry, found.account.idle_seconds, body.into()).await?;
    done()
}

/// Adds a label.
#[utoipa::path(post, path = "/v2/box/{id}/config/labels", tag = "settings", params(("id" = String, Path)), request_body = AddLabel, responses((status = 200, body = Labels), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn add_label(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<AddLabel>,
) -> Answer<Labels> {
    ids::check_label(&body.label).map_err(Refusal::Invalid)?;
    let full = found.entry.settings().labels;
    if !full.contains(&body.label) && full.len() >= ids::LABELS_MAX {
        return Err(Refusal::Invalid(format!("a box has at most {} labels", ids::LABELS_MAX)));
    }
    let change = |settings: &mut crate::domain::BoxSettings| {
        if !settings.labels.contains(&body.label) && settings.labels.len() < ids::LABELS_MAX {
            settings.labels.push(body.label);
        }
    };
    app.boxes.change_settings(&found.entry, found.account.idle_seconds, change).await?;
    Ok(axum::Json(Labels { labels: found.entry.settings().labels }))
}

/// Removes a label. A missing one is not an error.
#[utoipa::path(delete, path = "/v2/box/{id}/config/labels/{label}", tag = "settings", params(("id" = String, Path), ("label" = String, Path)), responses((status = 200, body = Labels)))]
pub(in crate::http) async fn remove_label(
    State(app): State<App>,
    found: TheBox,
    Path(path): Path<(String, String)>,
) -> Answer<Labels> {
    let change = |settings: &mut crate::domain::BoxSettings| settings.labels.retain(|known| *known != path.1);
    app.boxes.change_settings(&found.entry, found.account.idle_seconds, change).await?;
    Ok(axum::Json(Labels { labels: found.entry.settings().labels }))
}

/// Sets git's identity in the box. Absent fields keep their value.
#[utoipa::path(put, path = "/v2/box/{id}/git-config", tag = "settings", params(("id" = String, Path)), request_body = GitConfigChange, responses((status = 200, body = GitConfig), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn git_config(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<GitConfigChange>,
) -> Answer<GitConfig> {
    change_git_config(&app, &found, body).await
}

/// The same under the path that newer clients use.
#[utoipa::path(put, path = "/v2/box/{id}/config/git", tag = "settings", params(("id" = String, Path)), request_body = GitConfigChange, responses((status = 200, body = GitConfig), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn config_git(
    State(app): State<App>,
    found: TheBox,
    Json(body): Json<GitConfigChange>,
) -> Answer<GitConfig> {
    change_git_config(&app, &found, body).await
}

async fn change_git_config(app: &App, found: &TheBox, body: GitConfigChange) -> Answer<GitConfig> {
    let (name, email) = (check_git_identity(body.git_user_name)?, check_git_identity(body.git_user_email)?);
    if found.entry.status() == BoxStatus::Error {
        return Err(Refusal::Unavailable("the box cannot be used; its log says why".into()));
    }
    // Applies to the box at once; a sleeping one is woken for it.
    let awake = found.awake(app).await?;
    let change = |settings: &mut crate::domain::BoxSettings| {
        settings.git_user_name = name.or(settings.git_user_name.take());
        settings.git_user_email = email.or(settings.git_user_email.take());
    };
    app.boxes.change_settings(&found.entry, found.account.idle_seconds, change).await?;
    app.lifecycle.apply_git_config(&awake).await?;
    Ok(axum::Json(found.entry.settings().git_identity().into()))
}
