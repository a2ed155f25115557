//! Authentication: the account of a request, by the key in its header (`accounts`).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::App;
use crate::db::Account;
use crate::refusal::Refusal;

/// The header that carries the key.
pub(super) const KEY_HEADER: &str = "x-box-api-key";

/// The authenticated account. Every handler of the API takes one, or a box, which implies one.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub Account);

impl FromRequestParts<App> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        // Looked up once for a request.
        if let Some(known) = parts.extensions.get::<Self>() {
            return Ok(known.clone());
        }
        let key = parts.headers.get(KEY_HEADER).ok_or(Refusal::Unauthorized)?;
        let caller = Self(app.accounts.of_key(key.as_bytes()).await?);
        parts.extensions.insert(caller.clone());
        Ok(caller)
    }
}
