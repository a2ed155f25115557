//! Building images from Boxfiles.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::wire::BuildProgress;
use crate::boxes::{check_policy, policy_in_force};
use crate::builds::{Order, STEP_LIMIT_DEFAULT, STEP_LIMIT_MAX};
use crate::config::HostProxy;
use crate::db::Account;
use crate::domain::{self, runtimes::Recipe};
use crate::error::{Cause, Error};
use crate::http::App;
use crate::http::reply::{Query, body_refusal};
use crate::http::system::Peer;
use crate::http::v2::wire::{ErrorBody, NetworkPolicy};
use crate::refusal::Refusal;

/// Largest context.
const CONTEXT_BYTES_MAX: u64 = 4 << 30;

/// Query of a build.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct BuildQuery {
    /// The Boxfile in the context. `Boxfile`, or else `Dockerfile`.
    file: Option<String>,
    /// A runtime in place of a Boxfile of the client's: `node`, `python`, `golang`, `ruby`, `rust`, or one that the operator has
    /// configured with a Boxfile. The body is empty then, and the image gets the name by which boxes find the runtime.
    runtime: Option<String>,
    /// The account that owns the boxes of the build. The first one.
    account: Option<String>,
    /// The name of the image.
    tag: Option<String>,
    /// The stage to build. The last one.
    target: Option<String>,
    /// Build arguments: a JSON object of strings.
    args: Option<String>,
    /// Take no results of earlier builds.
    no_cache: Option<bool>,
    /// The network policy of commands, as of a box: a JSON object.
    network_policy: Option<String>,
    /// The size of the boxes in which commands run: a size class.
    size: Option<String>,
    /// Longest time of one command, in seconds.
    step_seconds: Option<u64>,
}

/// Builds an image. The body is the context: a tar archive with the Boxfile in it (or beside it, as `.icebox.boxfile`).
/// The answer is a line of JSON for each thing that happens: `step`, `output`, `cached`, `done`, `note`, and at the end
/// `image` or `error`. The build ends when the client disconnects.
#[utoipa::path(post, path = "/v1/images/build", tag = "v1", params(BuildQuery), request_body(content_type = "application/x-tar", description = "The context"), responses((status = 200, body = BuildProgress, content_type = "application/x-ndjson"), (status = 400, body = ErrorBody), (status = 413, body = ErrorBody)))]
pub(in crate::http) async fn build(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    Query(query): Query<BuildQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    if !peer.is_some_and(|Extension(peer)| peer.operator) {
        let text = "images are built by the operator of the host only, over the operator's socket (operator.sock in the run \
                    directory); `icebox image build` as root on the host uses it";
        return Err(Refusal::Forbidden(text.into()));
    }
    let account = account(&app, query.account.as_deref()).await?;
    let recipe = match query.runtime.as_deref() {
        Some(name) => Some(recipe(&app, name).await?),
        None => None,
    };
    let order = order(&app, account, query, recipe.as_ref())?;
    let context = match recipe {
        Some(recipe) => app.builds.context_of_runtime(&recipe.text)?,
        None => receive(&app, request.into_body()).await?,
    };
    let records = ReceiverStream::new(app.builds.build(order, context)).map(|record| {
        let mut line = serde_json::to_vec(&BuildProgress::from(record))?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(line)
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(records)).into_response())
}

/// How a runtime with a Boxfile is built.
async fn recipe(app: &App, name: &str) -> Result<Recipe, Refusal> {
    if let Some(recipe) = app.boxes.recipe(name).await? {
        return Ok(recipe);
    }
    let shown: String = name.chars().take(64).collect();
    let known = app.boxes.runtime_names().join(", ");
    Err(Refusal::Invalid(format!("runtime: there is no Boxfile of '{shown}' here; the runtimes are {known}")))
}

/// The policy of a build for which none is asked: everything, if there is a way. The forward proxy is one that needs no network
/// of the box; it judges by the policy too.
pub(super) fn default_policy(app: &App, host_proxy: bool) -> domain::NetworkPolicy {
    if host_proxy || app.boxes.has_network() {
        domain::NetworkPolicy::allow_all()
    } else {
        domain::NetworkPolicy::deny_all()
    }
}

/// The account that owns the boxes of a build: the one with the name, or the first.
pub(super) async fn account(app: &App, name: Option<&str>) -> Result<Account, Refusal> {
    let accounts = app.db.accounts().await?;
    let found = accounts.into_iter().find(|account| name.is_none_or(|name| account.name == name));
    found.ok_or_else(|| Refusal::NotFound(format!("there is no account '{}'", name.unwrap_or_default())))
}

fn order(app: &App, account: Account, query: BuildQuery, recipe: Option<&Recipe>) -> Result<Order, Refusal> {
    let json = |what: &str, cause: serde_json::Error| Refusal::Invalid(format!("{what}: {cause}"));
    let host_proxy = match app.config.build.host_proxy {
        HostProxy::Off => false,
        HostProxy::Runtimes => query.runtime.is_some(),
        HostProxy::All => true,
    };
    let policy = match &query.network_policy {
        Some(text) => {
            let policy: NetworkPolicy = serde_json::from_str(text).map_err(|cause| json("network_policy", cause))?;
            let policy = domain::NetworkPolicy::from(policy);
            check_policy(&policy)?;
            policy
        }
        None => default_policy(app, host_proxy),
    };
    if !host_proxy {
        let settings = domain::BoxSettings { network_policy: Some(policy.clone()), ..domain::BoxSettings::default() };
        app.boxes.check_policy_possible(&policy_in_force(&settings))?;
    }
    let args: BTreeMap<String, String> = match &query.args {
        Some(text) => serde_json::from_str(text).map_err(|cause| json("args", cause))?,
        None => BTreeMap::new(),
    };
    let size = match query.size {
        Some(size) => serde_json::from_value(serde_json::Value::String(size)).map_err(|cause| json("size", cause))?,
        None => domain::BoxSize::default(),
    };
    let tag = query.tag.as_deref().map(str::parse).transpose();
    let tag = tag.map_err(|cause: icebox_rootfs::Error| Refusal::Invalid(format!("tag: {cause}")))?;
    let step_limit = query.step_seconds.map_or(STEP_LIMIT_DEFAULT, Duration::from_secs);
    if step_limit.is_zero() || step_limit > STEP_LIMIT_MAX {
        return Err(Refusal::Invalid(format!("step_seconds must be 1 to {}", STEP_LIMIT_MAX.as_secs())));
    }
    let (file, target, cache) = (query.file, query.target, !query.no_cache.unwrap_or(false));
    let plain = match recipe {
        Some(recipe) => Order::of_runtime(recipe, account, policy, host_proxy),
        None => Order::new(account, policy, host_proxy),
    };
    Ok(Order { file: file.or(plain.file), tag: tag.or(plain.tag), target, args, cache, size, step_limit, ..plain })
}

/// Writes the body to a file that has no name.
async fn receive(app: &App, body: Body) -> Result<File, Refusal> {
    let mut file = app.builds.context_file()?;
    let mut pieces = body.into_data_stream();
    let mut length = 0_u64;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|cause| body_refusal(&cause, CONTEXT_BYTES_MAX))?;
        length += piece.len() as u64;
        if length > CONTEXT_BYTES_MAX {
            return Err(Refusal::TooLarge(format!("the context must have at most {CONTEXT_BYTES_MAX} bytes")));
        }
        let written = tokio::task::spawn_blocking(move || file.write_all(&piece).map(|()| file)).await;
        let written = written.map_err(|_| Error::new("keep the context of a build", "", Cause::WorkerEnded))?;
        file = written.map_err(|cause| Error::new("keep the context of a build", "", cause))?;
    }
    Ok(file)
}
