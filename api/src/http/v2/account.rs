//! Endpoints 6 to 9: the environment that an account gives to its boxes.

use axum::extract::{Path, State};

use crate::http::App;
use crate::http::auth::Caller;
use crate::http::reply::{Answer, Json, done};
use crate::http::v2::wire::{Empty, EnvValue, EnvVars, ErrorBody};
use crate::ids::{self, ENV_VARS_MAX};
use crate::lifecycle::check_env;
use crate::refusal::Refusal;

/// Mask shown in place of a value.
const MASK: &str = "********";

/// Names of the account's variables; values are masked.
#[utoipa::path(get, path = "/v2/box/settings/env", tag = "account", responses((status = 200, body = EnvVars), (status = 401, body = ErrorBody)))]
pub(in crate::http) async fn get_env(State(app): State<App>, Caller(account): Caller) -> Answer<EnvVars> {
    let env = app.db.account_defaults(&account.id).await?.env.clone();
    let env_vars = env.into_keys().map(|name| (name, MASK.to_owned())).collect();
    Ok(axum::Json(EnvVars { env_vars }))
}

/// Replaces all variables of the account. They reach boxes created afterwards.
#[utoipa::path(put, path = "/v2/box/settings/env", tag = "account", request_body = EnvVars, responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn replace_env(
    State(app): State<App>,
    Caller(account): Caller,
    Json(body): Json<EnvVars>,
) -> Answer<Empty> {
    check_env(&body.env_vars)?;
    app.db.replace_account_env(&account.id, body.env_vars).await?;
    done()
}

/// Sets one variable of the account.
#[utoipa::path(put, path = "/v2/box/settings/env/{key}", tag = "account", params(("key" = String, Path)), request_body = EnvValue, responses((status = 200, body = Empty), (status = 400, body = ErrorBody)))]
pub(in crate::http) async fn set_env(
    State(app): State<App>,
    Caller(account): Caller,
    Path(key): Path<String>,
    Json(body): Json<EnvValue>,
) -> Answer<Empty> {
    ids::check_env(&key, &body.value).map_err(Refusal::Invalid)?;
    if app.db.set_account_env(&account.id, &key, &body.value, ENV_VARS_MAX).await? {
        return done();
    }
    Err(Refusal::Invalid(format!("at most {ENV_VARS_MAX} environment variables can be set")))
}

/// Removes one variable of the account.
#[utoipa::path(delete, path = "/v2/box/settings/env/{key}", tag = "account", params(("key" = String, Path)), responses((status = 200, body = Empty), (status = 404, body = ErrorBody)))]
pub(in crate::http) async fn remove_env(
    State(app): State<App>,
    Caller(account): Caller,
    Path(key): Path<String>,
) -> Answer<Empty> {
    if app.db.remove_account_env(&account.id, &key).await? {
        return done();
    }
    Err(Refusal::NotFound("the account has no such environment variable".into()))
}
