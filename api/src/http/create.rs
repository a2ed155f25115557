//! Endpoint 1: what a client wants, checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use serde_json::Value;

use super::App;
use super::account::check_env;
use super::auth::Caller;
use super::boxes::describe;
use super::reply::{Answer, Json};
use crate::boxes::{NewBox, check_policy, policy_in_force};
use crate::config::check_idle_seconds;
use crate::db::Account;
use crate::domain::{BoxSettings, NetworkPolicy};
use crate::http::v2::wire::{BoxData, CreateBox, ErrorBody};
use crate::ids;
use icebox_net::headers::{HeaderRules, Wanted};
use crate::refusal::Refusal;

/// Longest life of an ephemeral box, and its life if none is asked for: 3 days.
const TTL_SECONDS_MAX: u64 = 259_200;
/// How programs with trust stores of their own are told of the certificate that `runs::setup` puts into the box. What its
/// owner sets himself stays.
const TRUST_ENV: [(&str, &str); 6] = [
    ("CURL_CA_BUNDLE", TRUST_BUNDLE),
    ("GIT_SSL_CAINFO", TRUST_BUNDLE),
    ("NODE_EXTRA_CA_CERTS", crate::runs::CERTIFICATE_PATH),
    ("PIP_CERT", TRUST_BUNDLE),
    ("REQUESTS_CA_BUNDLE", TRUST_BUNDLE),
    ("SSL_CERT_FILE", TRUST_BUNDLE),
];
/// Debian's bundle.
const TRUST_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Longest init command.
const INIT_COMMAND_BYTES_MAX: usize = 64 * 1024;
/// Longest name or address for git.
const GIT_IDENTITY_BYTES_MAX: usize = 256;

/// Creates a box. The answer comes when it accepts work.
#[utoipa::path(post, path = "/v2/box", tag = "boxes", request_body = CreateBox, responses((status = 200, body = BoxData), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<App>,
    Caller(account): Caller,
    Json(body): Json<CreateBox>,
) -> Answer<BoxData> {
    let account_env = app.boxes.db().account_env(&account.id).await?;
    let general = app.boxes.account_headers(&account.id).await?;
    let wanted = checked(body, &account, account_env, app.boxes.has_network(), general)?;
    app.boxes.check_policy_possible(&policy_in_force(&wanted.settings))?;
    let entry = app.boxes.create(wanted).await?;
    Ok(axum::Json(describe(&entry)))
}

/// Turns a body into what `boxes` understands, or says what is wrong with it.
fn checked(
    body: CreateBox,
    account: &Account,
    account_env: BTreeMap<String, String>,
    has_network: bool,
    general: Option<HeaderRules>,
) -> Result<NewBox, Refusal> {
    refuse_what_is_not_there(&body)?;
    if let Some(name) = &body.name {
        ids::check_name(name).map_err(Refusal::Invalid)?;
    }
    let labels = without_repetitions(body.labels.unwrap_or_default());
    ids::check_labels(&labels).map_err(Refusal::Invalid)?;
    let own_env = body.env_vars.unwrap_or_default();
    check_env(&own_env)?;
    let mut env = account_env;
    env.extend(own_env);
    if let Some(seconds) = body.idle_seconds {
        check_idle_seconds(seconds).map_err(Refusal::Invalid)?;
    }
    let own = headers_of(body.attach_headers, has_network)?;
    let headers = match (own, general) {
        (Some(own), Some(general)) => Some(own.over(&general)),
        (own, general) => own.or(general),
    };
    let headers = headers.map(Arc::new);
    if headers.is_some() {
        for (name, value) in TRUST_ENV {
            env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    let ephemeral = body.ephemeral.unwrap_or(false);
    let settings = BoxSettings {
        size: body.size.unwrap_or_default().into(),
        keep_alive: body.keep_alive.unwrap_or(false),
        ephemeral,
        runtime: body.runtime,
        init_command: check_init_command(body.init_command)?,
        env,
        labels,
        git_user_name: check_git_identity(body.git_user_name)?,
        git_user_email: check_git_identity(body.git_user_email)?,
        idle_seconds: body.idle_seconds,
        network_policy: Some(policy_of(body.network_policy.map(NetworkPolicy::from), has_network)?),
    };
    let ttl_seconds = if ephemeral { Some(check_ttl(body.ttl)?) } else { None };
    Ok(NewBox {
        account_id: account.id.clone(),
        name: body.name,
        settings,
        ttl_seconds,
        account_idle: account.idle_seconds,
        headers,
    })
}

/// What is asked for and does not exist is refused, never ignored: the client would rely on it.
fn refuse_what_is_not_there(body: &CreateBox) -> Result<(), Refusal> {
    let wanted = [
        (&body.agent, "agents are"),
        (&body.model, "agents (model) are"),
        (&body.custom_runner, "agents (custom_runner) are"),
        (&body.skills, "skills are"),
        (&body.mcp_servers, "mcp_servers are"),
        (&body.browser, "the browser is"),
    ];
    if let Some((_, what)) = wanted.iter().find(|(value, _)| value.as_ref().is_some_and(|value| !is_empty(value))) {
        return Err(Refusal::not_yet(what));
    }
    match body.runtime.as_deref() {
        None | Some("node" | "python") => {}
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            let text =
                format!("the runtime '{other}' is not available yet in this version of Icebox (node and python are)");
            return Err(Refusal::Invalid(text));
        }
    }
    Ok(())
}

/// Values by which clients say "nothing".
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// The policy that was asked for; if none was, everything, as far as there is a network.
fn policy_of(asked: Option<NetworkPolicy>, has_network: bool) -> Result<NetworkPolicy, Refusal> {
    let Some(asked) = asked else {
        return Ok(if has_network { NetworkPolicy::allow_all() } else { NetworkPolicy::deny_all() });
    };
    check_policy(&asked)?;
    Ok(asked)
}

/// The headers that the requests of the box get; none if none are wanted.
pub(super) fn headers_of(wanted: Option<Value>, has_network: bool) -> Result<Option<HeaderRules>, Refusal> {
    let Some(wanted) = wanted.filter(|value| !is_empty(value)) else { return Ok(None) };
    if !has_network {
        let text = "attach_headers need a network, and boxes of this Icebox have none (`[network] enabled = false`)";
        return Err(Refusal::Invalid(text.into()));
    }
    // What cannot be read is not quoted: it may be a secret.
    let shape = "attach_headers must be an object like {\"api.example.com\": {\"Authorization\": \"Bearer …\"}}";
    let wanted: Wanted = serde_json::from_value(wanted).map_err(|_| Refusal::Invalid(shape.into()))?;
    let rules = HeaderRules::check(&wanted).map_err(|wrong| Refusal::Invalid(format!("attach_headers: {wrong}")))?;
    Ok((!rules.is_empty()).then_some(rules))
}

/// An init command; the empty one is none.
pub(super) fn check_init_command(command: Option<String>) -> Result<Option<String>, Refusal> {
    match command {
        Some(command) if command.len() > INIT_COMMAND_BYTES_MAX => {
            Err(Refusal::Invalid(format!("init_command must have at most {INIT_COMMAND_BYTES_MAX} bytes")))
        }
        Some(command) if command.contains('\0') => Err(Refusal::Invalid("init_command must not contain NUL".into())),
        Some(command) if command.trim().is_empty() => Ok(None),
        other => Ok(other),
    }
}

/// A name or address for git; the empty one is none.
pub(super) fn check_git_identity(value: Option<String>) -> Result<Option<String>, Refusal> {
    match value {
        Some(value) if value.len() > GIT_IDENTITY_BYTES_MAX || value.chars().any(char::is_control) => {
            Err(Refusal::Invalid(format!(
                "a git name or address must have at most {GIT_IDENTITY_BYTES_MAX} bytes, without control characters"
            )))
        }
        Some(value) if value.trim().is_empty() => Ok(None),
        other => Ok(other),
    }
}

fn check_ttl(ttl: Option<u64>) -> Result<u64, Refusal> {
    match ttl {
        None => Ok(TTL_SECONDS_MAX),
        Some(seconds) if (1..=TTL_SECONDS_MAX).contains(&seconds) => Ok(seconds),
        Some(_) => Err(Refusal::Invalid(format!("ttl must be 1 to {TTL_SECONDS_MAX} seconds"))),
    }
}

fn without_repetitions(labels: Vec<String>) -> Vec<String> {
    let mut unique: Vec<String> = Vec::new();
    for label in labels {
        if !unique.contains(&label) {
            unique.push(label);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::BoxSize;

    fn check(body: Value) -> Result<NewBox, Refusal> {
        let account = Account { id: "a".into(), name: "default".into(), key_sha256: [0; 32], idle_seconds: None };
        let account_env =
            BTreeMap::from([("A".to_owned(), "account".to_owned()), ("B".to_owned(), "account".to_owned())]);
        checked(serde_json::from_value(body).expect("readable"), &account, account_env, true, None)
    }

    #[test]
    fn an_empty_body_gives_a_plain_box() {
        let plain = check(json!({})).expect("a plain box");
        assert_eq!(plain.settings.size, BoxSize::Small);
        assert_eq!((plain.name, plain.ttl_seconds), (None, None));
        assert_eq!(plain.settings.env.len(), 2);
    }

    #[test]
    fn the_box_wins_over_the_account() {
        let made = check(json!({"env_vars": {"A": "box"}})).expect("a box");
        assert_eq!((made.settings.env["A"].as_str(), made.settings.env["B"].as_str()), ("box", "account"));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (body, word) in [
            (json!({"agent": "claude-code"}), "agents"),
            (json!({"model": "x/y"}), "model"),
            (json!({"browser": true}), "browser"),
            (json!({"skills": ["a/b/c"]}), "skills"),
            (json!({"runtime": "rust"}), "rust"),
        ] {
            let text = check(body.clone()).expect_err("not there").to_string();
            assert!(text.contains(word) && text.contains("not available yet"), "{body}: {text}");
        }
        for body in [
            json!({"skills": [], "mcp_servers": [], "browser": false, "attach_headers": {}, "agent": null}),
            json!({"runtime": "node", "network_policy": {"mode": "deny-all", "denied_cidrs": null}}),
            json!({"init_command": "", "keep_alive": true}),
        ] {
            assert!(check(body.clone()).is_ok(), "{body}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for body in [
            json!({"name": "../x"}),
            json!({"name": "snapshots"}),
            json!({"labels": ["ä"]}),
            json!({"labels": ["1", "2", "3", "4", "5", "6"]}),
            json!({"env_vars": {"LD_PRELOAD": "x"}}),
            json!({"ephemeral": true, "ttl": 0}),
            json!({"ephemeral": true, "ttl": 259_201}),
            json!({"idle_seconds": 0}),
            json!({"init_command": "x".repeat(INIT_COMMAND_BYTES_MAX + 1)}),
            json!({"git_user_name": "a\nb"}),
        ] {
            assert!(matches!(check(body.clone()), Err(Refusal::Invalid(_))), "{body}");
        }
    }

    #[test]
    fn ephemeral_boxes_live_three_days_at_most_and_by_default() {
        assert_eq!(check(json!({"ephemeral": true})).expect("a box").ttl_seconds, Some(TTL_SECONDS_MAX));
        assert_eq!(check(json!({"ephemeral": true, "ttl": 60})).expect("a box").ttl_seconds, Some(60));
    }
}
