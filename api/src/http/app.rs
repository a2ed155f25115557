//! State shared by all handlers.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::accounts::Accounts;
use super::shares::Shares;
use crate::boxes::Boxes;
use crate::builds::Builds;
use crate::config::Config;
use crate::db::Db;
use crate::doctor::Doctor;
use crate::events::Events;
use crate::images::Images;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::public_urls::Urls;
use crate::runs::Runs;

/// Memory that large bodies may take together, counted in KiB.
const BODIES_KIB_MAX: usize = 512 * 1024;

/// The parts that handlers use.
#[derive(Debug)]
pub struct AppParts {
    /// The use cases.
    pub lifecycle: Lifecycle,
    /// The boxes.
    pub boxes: Boxes,
    /// The runs.
    pub runs: Runs,
    /// The images of this host.
    pub images: Images,
    /// The builds of images.
    pub builds: Builds,
    /// The search for leftovers.
    pub doctor: Doctor,
    /// The public URLs.
    pub urls: Urls,
    /// The database.
    pub db: Db,
    /// The configuration.
    pub config: Arc<Config>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The stream of events.
    pub events: Events,
}

/// State shared by all handlers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    parts: Arc<AppParts>,
    pub(super) accounts: Arc<Accounts>,
    pub(super) shares: Shares,
    bodies: Arc<Semaphore>,
}

impl std::ops::Deref for App {
    type Target = AppParts;

    fn deref(&self) -> &AppParts {
        &self.parts
    }
}

impl App {
    /// The shared state of a server of these boxes.
    #[must_use]
    pub fn new(parts: AppParts) -> Self {
        let accounts = Arc::new(Accounts::new(parts.db.clone()));
        let shares = Shares::new(parts.config.requests_max, parts.config.requests_per_account_max);
        Self { parts: Arc::new(parts), accounts, shares, bodies: Arc::new(Semaphore::new(BODIES_KIB_MAX)) }
    }

    /// Waits until a body of this size fits beside the others. The permit lives as long as the answer.
    pub(super) async fn memory(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        // Counted twice: the body as received, and as forwarded.
        let kib = (bytes / 1024 * 2).clamp(1, BODIES_KIB_MAX);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        Arc::clone(&self.bodies).acquire_many_owned(kib).await.ok()
    }
}
