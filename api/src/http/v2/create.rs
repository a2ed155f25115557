//! Endpoint 1: creating a box. Converts the clients' body to a [`BoxRequest`], which `lifecycle` checks.

use axum::extract::State;
use serde_json::Value;

use super::boxes::describe;
use crate::boxes::Secret;
use crate::http::App;
use crate::http::auth::Caller;
use crate::http::reply::{Answer, Json};
use crate::http::v1::runtimes::have_runtime;
use crate::http::v2::wire::{BoxData, CreateBox, ErrorBody};
use crate::lifecycle::{AgentRequest, BoxRequest};
use crate::refusal::Refusal;
use icebox_net::headers::Wanted;

/// Creates a box. The answer comes when it accepts work. A runtime whose image is not built yet is built first.
#[utoipa::path(post, path = "/v2/box", tag = "boxes", request_body = CreateBox, responses((status = 200, body = BoxData), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(in crate::http) async fn create(
    State(app): State<App>,
    Caller(account): Caller,
    Json(body): Json<CreateBox>,
) -> Answer<BoxData> {
    let request = request_of(body)?;
    have_runtime(&app, &account, &request).await?;
    let entry = app.lifecycle.create(&account, request).await?;
    Ok(axum::Json(describe(&entry)))
}

/// Converts the body.
pub(super) fn request_of(body: CreateBox) -> Result<BoxRequest, Refusal> {
    refuse_what_is_not_there(&body)?;
    Ok(BoxRequest {
        disk_gib: None,
        name: body.name,
        labels: body.labels.unwrap_or_default(),
        size: body.size.map(Into::into),
        keep_alive: body.keep_alive.unwrap_or(false),
        init_command: body.init_command,
        runtime: body.runtime,
        env: body.env_vars.unwrap_or_default(),
        git_user_name: body.git_user_name,
        git_user_email: body.git_user_email,
        network_policy: body.network_policy.map(Into::into),
        headers: headers_of(body.attach_headers)?,
        ephemeral: body.ephemeral.unwrap_or(false),
        ttl_seconds: body.ttl,
        idle_seconds: body.idle_seconds,
        github_token: body.github_token.map(Secret),
        agent_api_key: body.agent_api_key.map(Secret),
        volumes: body.volumes.unwrap_or_default().into_iter().map(Into::into).collect(),
        agent: AgentRequest {
            harness: body.agent,
            model: body.model,
            custom_runner: body.custom_runner.filter(|value| !is_empty(value)),
        },
    })
}

/// Unsupported options are refused, never ignored: the client would rely on them.
fn refuse_what_is_not_there(body: &CreateBox) -> Result<(), Refusal> {
    let wanted =
        [(&body.skills, "skills are"), (&body.mcp_servers, "mcp_servers are"), (&body.browser, "the browser is")];
    match wanted.iter().find(|(value, _)| value.as_ref().is_some_and(|value| !is_empty(value))) {
        Some((_, what)) => Err(Refusal::not_yet(what)),
        None => Ok(()),
    }
}

/// Values by which clients express "none".
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// The headers in a body; none if it has no such field.
pub(in crate::http) fn headers_of(wanted: Option<Value>) -> Result<Option<Wanted>, Refusal> {
    let Some(wanted) = wanted.filter(|value| !is_empty(value)) else { return Ok(None) };
    // The text does not quote the unreadable value: it may be a secret.
    let shape = "attach_headers must be an object like {\"api.example.com\": {\"Authorization\": \"Bearer …\"}}";
    serde_json::from_value(wanted).map(Some).map_err(|_| Refusal::Invalid(shape.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<BoxRequest, Refusal> {
        request_of(serde_json::from_value(body).expect("readable"))
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (body, word) in [(json!({"browser": true}), "browser"), (json!({"skills": ["a/b/c"]}), "skills")] {
            let text = read(body.clone()).expect_err("not there").to_string();
            assert!(text.contains(word) && text.contains("not available yet"), "{body}: {text}");
        }
        for body in [
            json!({"skills": [], "mcp_servers": [], "browser": false, "attach_headers": {}, "agent": null}),
            json!({"runtime": "node", "network_policy": {"mode": "deny-all", "denied_cidrs": null}}),
            json!({"init_command": "", "keep_alive": true}),
        ] {
            assert!(read(body.clone()).is_ok(), "{body}");
        }
        assert!(matches!(read(json!({"attach_headers": [1]})), Err(Refusal::Invalid(_))));
    }
}
