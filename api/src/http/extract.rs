//! The box of a request: looked up after the key, among the caller's own boxes.

use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use super::App;
use super::auth::Caller;
use crate::boxes::{Awake, Entry, WorkKind};
use crate::db::Account;
use crate::refusal::Refusal;

/// The box that the path names by id or name. It need not be awake.
#[derive(Debug, Clone)]
pub(super) struct TheBox {
    /// The account of the request, which owns the box.
    pub account: Account,
    /// The box.
    pub entry: Arc<Entry>,
}

impl TheBox {
    /// Refuses operations that an ephemeral box does not have.
    pub(super) fn not_ephemeral(&self, what: &str) -> Result<(), Refusal> {
        if self.entry.expires_ms.is_some() {
            return Err(Refusal::Invalid(format!("{what} not available on an ephemeral box")));
        }
        Ok(())
    }

    /// Wakes the box and keeps it awake while the request lasts.
    pub(super) async fn awake(&self, app: &App) -> Result<Awake, Refusal> {
        app.lifecycle.ensure_awake(&self.entry, WorkKind::Request).await
    }
}

impl FromRequestParts<App> for TheBox {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let Caller(account) = Caller::from_request_parts(parts, app).await?;
        // A path that is not UTF-8 names no box.
        let params = RawPathParams::from_request_parts(parts, app).await.map_err(|_| Refusal::unknown_box(""))?;
        let id = params.iter().find(|(name, _)| *name == "id").map_or("", |(_, value)| value);
        let entry = app.boxes.find(&account.id, id)?;
        Ok(Self { account, entry })
    }
}
