//! The boxes: one entry each, and the operations on them.
//!
//! Owns: the table of boxes, the operations on one box (create, freeze, thaw, restart, delete), the idle rule and the
//! ledger readings. Invariants:
//! - status is derived from the kernel; an entry holds facts and counts only;
//! - every change of a box's life happens under its lifecycle lock, in a task that no client can cancel;
//! - no lock of one box is held while another box is touched, and no lock of the table is held across a wait.
//!
//! Leaves out: HTTP, processes in a box (`runs`), and the use cases that need both (`lifecycle`): creation, waking, and
//! the start of the daemon.

mod activity;
mod awake;
mod build;
mod cgroups;
mod create;
mod delete;
mod disk_check;
mod disk_watch;
mod disks;
mod entry;
mod fork;
mod forward;
mod freeze;
mod idle;
mod image_use;
mod images;
mod keep;
mod late_kills;
mod launch;
mod meter;
mod monitor;
mod network;
mod orphans;
mod passed;
mod policy;
mod portable;
mod ready;
mod ready_boxes;
mod reclaim;
mod reserve;
mod restore;
mod roots;
mod run_table;
mod runtimes;
mod schedule;
mod shared_flush;
mod snapshot_sweep;
mod snapshots;
mod space;
mod space_state;
mod started;
mod still;
mod storage;
mod strays;
mod table;
mod tasks;
mod thaw;
mod uids;
mod undo;
mod undo_points;
mod usage;
mod volumes;
mod why;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use icebox_rootfs::Store;
use icebox_shim::launch::{Launcher, Tools};
use icebox_shim::procfiles::Keeper;
use tokio::sync::{Mutex, Notify, OnceCell, Semaphore};

use crate::config::Config;
use crate::db::Db;
use crate::domain::Reservation;
use crate::events::{Events, Fact};
use crate::ids;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use icebox_net::Network;
use icebox_net::secret::SealingKey;
use icebox_net::sockets::Sockets;

pub use activity::{Activity, Counts, Work, WorkKind};
pub use awake::Awake;
pub use build::BoxRoot;
pub use create::{NewBox, Origin, Secret};
pub use delete::Deleted;
pub use entry::{Entry, Phase, View};
pub(crate) use freeze::FreezeReason;
pub use idle::{CpuWindow, Observed, Verdict, decide};
pub use meter::{Meter, Write};
pub use network::Denials;
pub use passed::Passed;
pub use policy::{check_policy, policy_in_force};
pub(crate) use portable::NewTree;
pub use portable::{Export, ImageFacts};
pub use ready_boxes::ReadyCount;
pub use run_table::{LiveRun, RunTable, StreamClient};
pub use runtimes::KnownRuntime;
pub use snapshots::Restorable;
pub use storage::{Disk, Resized};
pub(crate) use strays::Left;
pub(crate) use tasks::{Lasting, to_the_end};
pub use uids::{REGISTRY_DIR, UidRanges};
pub use usage::{AccountBill, BoxBill, KeptBill};
pub use volumes::{VolumeReport, VolumeUser};
pub use why::Why;

use images::Images;
use ready::ReadyBoxes;
use reserve::Reservations;
use roots::Roots;
use shared_flush::SharedFlush;
pub(crate) use space_state::Space;
use space_state::SpaceState;
use table::Table;
use tasks::blocking;

/// Time limit for freezing.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);
/// Time limit for thawing.
const THAW_DEADLINE: Duration = Duration::from_secs(5);
/// Time limit for the start of a box.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(20);
/// Time limit for killing all processes of a box, or for removing its cgroup.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// Disks whose whole content is read at once.
const DIGESTS_AT_ONCE: usize = 2;
/// Disks that are exported or filled at once: each has a thread and a loop device.
const CARRIED_AT_ONCE: usize = 8;
/// Processes and threads of one box.
const PIDS_MAX: u64 = 1024;

/// All boxes of this daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Boxes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    db: Db,
    store: Arc<Store>,
    launcher: Launcher,
    proc_files: Keeper,
    ranges: Arc<UidRanges>,
    reservations: Reservations,
    ready: Arc<ReadyBoxes>,
    /// Reservations whose boxes could not be removed.
    stuck: std::sync::Mutex<Vec<Reservation>>,
    metrics: Arc<Metrics>,
    events: Events,
    roots: Roots,
    /// None if boxes have no network here.
    network: Option<Network>,
    /// The maker of sockets in the namespaces of boxes.
    sockets: OnceCell<Arc<Sockets>>,
    images: Images,
    /// The installation's key.
    key: Arc<SealingKey>,
    /// Held while the whole content of a disk is read.
    digesting: Semaphore,
    /// Held while a disk is exported or filled.
    carrying: Arc<Semaphore>,
    /// Held while disks and volumes are promised, and while volumes are given to a new box, deleted or grown.
    claims: Mutex<()>,
    /// What is remembered of the space for disks.
    space: SpaceState,
    /// Flushes of removed disks.
    removals: SharedFlush,
    table: RwLock<Table>,
    /// Notified when an idle time has changed, and when a box has woken while the clock stood still.
    awake: Notify,
    /// The clock waits for a box that wakes, or is about to.
    stands_still: AtomicBool,
    /// Held by the one box whose memory is being reclaimed because it has slept long enough.
    reclaiming: Semaphore,
    /// Notified when a box with an expiry has been added.
    expiring: Notify,
    /// Notified when a schedule of snapshots was set.
    schedules: Notify,
    /// Notified when the number of boxes changes.
    number: Notify,
}

/// Parts of the table.
#[derive(Debug)]
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The database.
    pub db: Db,
    /// The disks.
    pub store: Arc<Store>,
    /// The programs that start a box.
    pub tools: Tools,
    /// The files of boxes' `/proc`.
    pub proc_files: Keeper,
    /// The host uids.
    pub ranges: Arc<UidRanges>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The stream of events.
    pub events: Events,
    /// The network, if boxes have one.
    pub network: Option<Network>,
    /// The installation's key.
    pub key: Arc<SealingKey>,
}

impl Boxes {
    /// An empty table; `Lifecycle::reconcile` fills it.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let reservations = Reservations::new(parts.db.clone(), Arc::clone(&parts.ranges));
        let roots = Roots::new(&parts.config);
        let images = Images::new(&parts.config, parts.tools.init.clone());
        let inner = Inner {
            config: parts.config,
            db: parts.db,
            store: parts.store,
            launcher: Launcher::new(parts.tools),
            proc_files: parts.proc_files,
            ranges: parts.ranges,
            reservations,
            ready: Arc::default(),
            stuck: std::sync::Mutex::default(),
            metrics: parts.metrics,
            events: parts.events,
            roots,
            network: parts.network,
            sockets: OnceCell::new(),
            images,
            key: parts.key,
            digesting: Semaphore::new(DIGESTS_AT_ONCE),
            carrying: Arc::new(Semaphore::new(CARRIED_AT_ONCE)),
            claims: Mutex::default(),
            space: SpaceState::default(),
            removals: SharedFlush::default(),
            table: RwLock::default(),
            awake: Notify::new(),
            stands_still: AtomicBool::new(false),
            reclaiming: Semaphore::new(1),
            expiring: Notify::new(),
            schedules: Notify::new(),
            number: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Takes the last readings and writes everything to disk. Boxes keep running; no request is served after this.
    pub async fn close(&self) {
        let boxes = self.clone();
        let last = tokio::task::spawn_blocking(move || {
            let awake = boxes.all().into_iter().filter(|entry| entry.view().incarnation.is_some());
            awake
                .filter_map(|entry| entry.meter.read(&entry.id, &entry.handle(), None, Write::IfChanged, "stop"))
                .collect::<Vec<_>>()
        });
        self.inner.db.append_samples(last.await.unwrap_or_default());
        self.end_ready().await;
        self.inner.reservations.release_all().await;
        self.close_network().await;
        self.forget_empty_roots().await;
        self.inner.db.close().await;
        self.inner.ranges.release_unused_blocks();
        self.remove_empty_root().await;
    }

    /// How often a reader of a file of `/proc` was held up, and how often a file was written for one.
    #[must_use]
    pub fn proc_file_counts(&self) -> (u64, u64) {
        self.inner.proc_files.counts()
    }

    /// The box with this id or name in the account. A box of another account is reported as unknown.
    pub fn find(&self, account_id: &str, id_or_name: &str) -> Result<Arc<Entry>, Refusal> {
        let unknown = || Refusal::unknown_box(id_or_name);
        if !ids::is_id_or_name(id_or_name) {
            return Err(unknown());
        }
        let table = self.inner.table.read().unwrap_or_else(PoisonError::into_inner);
        let mine = |entry: &&Arc<Entry>| entry.account_id == account_id && entry.view().phase != Phase::Deleting;
        if let Some(entry) = table.get(id_or_name).filter(mine) {
            return Ok(Arc::clone(entry));
        }
        let named = |entry: &&Arc<Entry>| entry.name.as_deref() == Some(id_or_name);
        table.values().filter(named).find(mine).map(Arc::clone).ok_or_else(unknown)
    }

    /// The box with this id, of any account. For callers that check access by other means.
    #[must_use]
    pub fn with_id(&self, id: &str) -> Option<Arc<Entry>> {
        let table = self.inner.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get(id).filter(|entry| entry.view().phase != Phase::Deleting).map(Arc::clone)
    }

    /// The boxes of an account, oldest first.
    #[must_use]
    pub fn of_account(&self, account_id: &str) -> Vec<Arc<Entry>> {
        let mut all = self.all();
        all.retain(|entry| entry.account_id == account_id && entry.view().phase != Phase::Deleting);
        all.sort_by_key(|entry| (entry.created_ms, entry.id.clone()));
        all
    }

    /// The box with this id, of any account.
    pub(super) fn entry(&self, id: &str) -> Option<Arc<Entry>> {
        self.inner.table.read().unwrap_or_else(PoisonError::into_inner).get(id).map(Arc::clone)
    }

    /// Every box.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Entry>> {
        let table = self.inner.table.read().unwrap_or_else(PoisonError::into_inner);
        table.values().map(Arc::clone).collect()
    }

    /// Waits until the number of boxes changes. One waiter.
    pub async fn number_changed(&self) {
        self.inner.number.notified().await;
    }

    /// Publishes a fact about a box.
    fn publish(&self, entry: &Entry, fact: Fact) {
        self.inner.events.publish(entry.event(fact));
    }

    /// Publishes the counters of a box, after the reading at a change of its state.
    fn publish_metered(&self, entry: &Entry, storage_bytes: Option<u64>, reason: &'static str) {
        let cpu_usec = entry.meter.usage().cpu_usec;
        self.publish(entry, Fact::Metered { reason, cpu_usec, storage_bytes });
    }

    fn forget(&self, id: &str) {
        self.inner.number.notify_one();
        self.inner.table.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn run_dir(&self, id: &str) -> PathBuf {
        self.inner.config.run_dir.join("boxes").join(id)
    }

    /// Prepares in advance what the first box needs. A failure is harmless: that box will report it.
    pub async fn warm_up(&self) {
        self.inner.reservations.prepare().await;
        if let Err(refusal) = self.inner.images.current().await {
            tracing::warn!(%refusal, "no box can be created yet");
        }
        let store = Arc::clone(&self.inner.store);
        let size = crate::domain::BoxSize::default().disk_gib();
        if let Err(error) = blocking("prepare a disk template", move || store.prepare_template(size)).await {
            tracing::warn!(error = error.chain(), "cannot prepare the disk template");
        }
    }
}
