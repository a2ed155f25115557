//! The operator of this host: requests over the operator's socket.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::App;
use super::auth::{Caller, KEY_HEADER};
use super::system::Peer;
use crate::refusal::Refusal;

/// The operator of this host.
#[derive(Debug)]
pub(super) struct Operator;

impl FromRequestParts<App> for Operator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        if is_operator(parts) {
            return Ok(Self);
        }
        Caller::from_request_parts(parts, app).await?;
        let text = "this is for the operator of the host only, over the operator's socket (operator.sock in the run directory); \
                    `icebox` as root on the host uses it";
        Err(Refusal::Forbidden(text.into()))
    }
}

/// Any account, or the operator.
#[derive(Debug)]
pub(super) struct Reader {
    operator: bool,
}

impl Reader {
    /// It may see the paths of this host.
    pub(super) fn is_operator(&self) -> bool {
        self.operator
    }
}

impl FromRequestParts<App> for Reader {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let operator = is_operator(parts);
        if !operator {
            Caller::from_request_parts(parts, app).await?;
        }
        Ok(Self { operator })
    }
}

/// True if the request came over the operator's socket and names no account.
fn is_operator(parts: &Parts) -> bool {
    parts.extensions.get::<Peer>().is_some_and(|peer| peer.operator) && !parts.headers.contains_key(KEY_HEADER)
}
