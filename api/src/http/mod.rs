//! The HTTP API.
//!
//! Owns: routes, extractors, bodies and errors of the wire format, and the server that carries them. Invariants: every
//! error has the one shape `{"error": "…"}`; the key is checked before anything else is looked at; a box is looked up
//! among the caller's own and is unknown otherwise; nothing is ever redirected. Leaves out: every decision about boxes
//! (`boxes`) and runs (`runs`).

mod account;
mod auth;
mod boxes;
mod create;
mod exec;
mod files;
mod found;
mod front;
mod gate;
mod later;
mod lifecycle;
mod patient;
mod preview;
mod reply;
mod routes;
mod seats;
mod server;
mod session;
mod settings;
mod shares;
mod stream_body;
mod system;
mod upload;
pub mod v1;
pub mod v2;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::boxes::Boxes;
use crate::preview::Preview;
use auth::Accounts;
use shares::Shares;

pub use front::{Front, UrlsOnly};
pub use routes::{Api, api, openapi};
pub use seats::SeatLimits;
pub use server::{Door, Listening, OperatorSocket, serve};

/// Memory that large bodies may take together, counted in KiB.
const BODIES_KIB_MAX: usize = 512 * 1024;

/// What handlers share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    /// The boxes.
    pub boxes: Boxes,
    preview: Preview,
    accounts: Arc<Accounts>,
    shares: Shares,
    bodies: Arc<Semaphore>,
}

impl App {
    /// The shared state of a server of these boxes.
    #[must_use]
    pub fn new(boxes: Boxes, preview: Preview) -> Self {
        let accounts = Arc::new(Accounts::new(boxes.db().clone()));
        let config = boxes.config();
        let shares = Shares::new(config.requests_max, config.requests_per_account_max);
        Self { boxes, preview, accounts, shares, bodies: Arc::new(Semaphore::new(BODIES_KIB_MAX)) }
    }

    /// Waits until a body of this size fits beside the others. It, and what is made of it, lives as long as the answer.
    async fn memory(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        // Once as it came, once as it goes on.
        let kib = (bytes / 1024 * 2).clamp(1, BODIES_KIB_MAX);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        Arc::clone(&self.bodies).acquire_many_owned(kib).await.ok()
    }
}
