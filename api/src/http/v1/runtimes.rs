//! Runtimes: which there are, how far their builds are, and the build of one that a new box needs.

use axum::extract::State;

use super::build::{account, default_policy};
use super::images::Reader;
use super::wire::RuntimeFacts;
use crate::builds::Order;
use crate::config::HostProxy;
use crate::db::Account;
use crate::http::App;
use crate::http::reply::Answer;
use crate::http::v2::wire::ErrorBody;
use crate::lifecycle::BoxRequest;
use crate::refusal::Refusal;

/// The runtimes of this version and those that the operator has configured: whether the image of each is there, is being
/// built, or what a box gets in its place. A runtime may be the name of any image too; those are listed as images.
#[utoipa::path(get, path = "/v1/runtimes", tag = "images", responses((status = 200, body = [RuntimeFacts]), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn list(State(app): State<App>, reader: Reader) -> Answer<Vec<RuntimeFacts>> {
    let mut facts = Vec::new();
    for name in app.boxes.runtime_names() {
        let stage = app.builds.stage(&name);
        facts.push(RuntimeFacts::of(app.boxes.known_runtime(name).await?, stage, reader.is_operator()));
    }
    Ok(axum::Json(facts))
}

/// Has the runtime of a new box built, if it has to be and the box could be created then.
pub(in crate::http) async fn have_runtime(app: &App, caller: &Account, request: &BoxRequest) -> Result<(), Refusal> {
    let Some(runtime) = &request.runtime else { return Ok(()) };
    let Some(recipe) = app.boxes.runtime_to_build(runtime).await? else { return Ok(()) };
    app.lifecycle.check(caller, request.clone()).await?;
    // Every Boxfile of a runtime is the operator's.
    let host_proxy = app.config.build.host_proxy != HostProxy::Off;
    let order = Order::of_runtime(&recipe, account(app, None).await?, default_policy(app, host_proxy), host_proxy);
    app.builds.have_built(&recipe, order).await
}
