//! Public URLs: ports of boxes, reachable from outside over HTTP.
//!
//! Owns: their table and credentials, the target of a request, the connection to the box, and which traffic counts as
//! activity. Invariants: a request is authorised before it has any effect on the box; it leads to a loopback address in
//! the network namespace of the named box, and nowhere else; head and body are parsed here and generated anew, never
//! copied; a connection ends with its URL and with its box, and survives the box's sleep.
//!
//! Leaves out: the endpoints that make URLs, and the listeners (`http`).

mod address;
mod body;
mod certificate;
mod dial;
mod head;
mod passage;
mod proxy;
mod secret;
mod stream;
mod table;
mod told;
mod trouble;
mod tunnel;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axum::http::request::Parts;
use axum::response::Response;
use tokio::sync::{Mutex, Semaphore};

use crate::boxes::{Boxes, Entry};
use crate::clock;
use crate::config::PublicUrls;
use crate::db::{Db, PublicUrlRow};
use crate::error::Error;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use dial::Dialler;
use table::Table;
use trouble::Trouble;

pub use address::{Addressed, Target};
pub use certificate::Certificate;
pub use proxy::Arrival;
pub use secret::USER;
pub use told::Addresses;

/// Most public URLs of one box.
const URLS_PER_BOX_MAX: usize = 100;
/// Most requests that may wait at once for ports of boxes that have just woken.
const HOLDS_MAX: usize = 1024;

/// All public URLs of a daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Urls {
    inner: Arc<Inner>,
}

/// Parts that exist once per daemon.
#[derive(Debug)]
pub struct Inner {
    config: PublicUrls,
    boxes: Boxes,
    lifecycle: Lifecycle,
    db: Db,
    metrics: Arc<Metrics>,
    table: Table,
    dialler: Dialler,
    /// Held while a URL is made or removed, so that disk and memory agree on the order.
    changing: Mutex<()>,
    room: Arc<Semaphore>,
    holds: Arc<Semaphore>,
    /// The port of the listener that clients reach.
    port: AtomicU16,
    /// Whether programs on this machine resolve names below `localhost`.
    local_names_resolve: bool,
}

impl Deref for Urls {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// A new public URL. The secrets are returned only once.
#[derive(Debug)]
pub struct Opened {
    /// The token of `Authorization: Bearer`.
    pub token: Option<String>,
    /// The password of basic authentication.
    pub password: Option<String>,
}

impl Urls {
    /// An empty table; [`Urls::load`] fills it.
    #[must_use]
    pub fn new(config: PublicUrls, boxes: Boxes, lifecycle: Lifecycle, db: Db, metrics: Arc<Metrics>) -> Self {
        let inner = Inner {
            boxes,
            lifecycle,
            db,
            metrics,
            table: Table::new(config.connections_per_box_max),
            dialler: Dialler::default(),
            changing: Mutex::new(()),
            room: Arc::new(Semaphore::new(config.connections_max as usize)),
            holds: Arc::new(Semaphore::new(HOLDS_MAX)),
            port: AtomicU16::new(0),
            local_names_resolve: told::local_names_resolve(),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Reads the URLs of an earlier run of the daemon. The boxes must be loaded.
    pub async fn load(&self) -> Result<(), Error> {
        for row in self.db.public_urls().await? {
            match self.boxes.with_id(&row.box_id) {
                Some(entry) => self.put(&entry, row),
                None => self.db.delete_public_url(&row.box_id, row.port).await?,
            }
        }
        Ok(())
    }

    /// Sets the port at which clients find the listener.
    pub fn listens_at(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    /// Makes the URL of a port. An existing one is replaced; its credentials become invalid and its connections end.
    pub async fn open(&self, entry: &Arc<Entry>, port: u16, bearer: bool, basic: bool) -> Result<Opened, Refusal> {
        let _changing = self.changing.lock().await;
        let known = self.table.of_box(&entry.id);
        if known.len() >= URLS_PER_BOX_MAX && known.iter().all(|url| url.row.port != port) {
            return Err(Refusal::Limit(format!("a box has at most {URLS_PER_BOX_MAX} public URLs")));
        }
        let token = bearer.then(secret::new_secret);
        let password = basic.then(secret::new_secret);
        let digest = |secret: &Option<(String, [u8; 32])>| secret.as_ref().map(|(_, digest)| *digest);
        let row = PublicUrlRow {
            box_id: entry.id.clone(),
            port,
            created_ms: clock::unix_ms(),
            token_sha256: digest(&token),
            password_sha256: digest(&password),
        };
        self.db.put_public_url(row.clone()).await?;
        self.put(entry, row);
        let text = |secret: Option<(String, [u8; 32])>| secret.map(|(text, _)| text);
        Ok(Opened { token: text(token), password: text(password) })
    }

    /// The URLs of a box, by port.
    #[must_use]
    pub fn list(&self, entry: &Entry) -> Vec<PublicUrlRow> {
        self.table.of_box(&entry.id).into_iter().map(|url| url.row.clone()).collect()
    }

    /// Removes the URL of a port, and ends its connections. A missing one is not an error.
    pub async fn close(&self, entry: &Entry, port: u16) -> Result<(), Error> {
        let _changing = self.changing.lock().await;
        self.db.delete_public_url(&entry.id, port).await?;
        self.table.remove(&Target { box_id: entry.id.clone(), port });
        Ok(())
    }

    /// The target of a request. The error describes the invalid request.
    pub fn addressed(&self, parts: &Parts) -> Result<Addressed, &'static str> {
        let config = &self.config;
        address::addressed(parts, &config.domain, config.path_form)
    }

    /// The answer for a name below our domain that belongs to no box.
    #[must_use]
    pub fn no_box(&self) -> Response {
        Trouble::Unknown.response(false)
    }

    /// The addresses of a port of a box, for a client that reaches the API as `asked` (its `Host` header).
    #[must_use]
    pub fn addresses(&self, box_id: &str, port: u16, asked: Option<&str>) -> Addresses {
        let target = Target { box_id: box_id.to_owned(), port };
        let listener = self.port.load(Ordering::Relaxed);
        told::addresses(&self.config, &target, listener, asked, self.local_names_resolve)
    }

    fn put(&self, entry: &Arc<Entry>, row: PublicUrlRow) {
        if !self.table.put(row) {
            return;
        }
        let (urls, entry) = (self.clone(), Arc::clone(entry));
        tokio::spawn(async move {
            entry.gone.cancelled().await;
            urls.table.forget(&entry.id);
        });
    }
}
