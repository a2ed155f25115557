//! Serving: from start-up to shutdown.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use icebox_rootfs::{Backing, DeviceReport, Store};
use icebox_shim::launch::Tools;
use icebox_shim::procfiles::Keeper;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{facts, log, manager};
use crate::boxes::{Boxes, Denials, Parts, REGISTRY_DIR, UidRanges};
use crate::builds::Builds;
use crate::config::Config;
use crate::db::{CommitFailure, Db, ensure_first_account, hash_key};
use crate::doctor::Doctor;
use crate::error::{Cause, Error};
use crate::events::{Events, Sink};
use crate::http::{self, App, AppParts, Door, HostRouter, Listening, OperatorSocket, SeatLimits, UrlsOnly};
use crate::images::Images;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::public_urls::{Certificate, Urls};
use crate::runs::Runs;
use icebox_net::secret::{KEY_FILE, SealingKey};
use icebox_net::{Network, NetworkParts};

/// The key of the first account, at the first start.
const KEY_ENV: &str = "ICEBOX_API_KEY";
/// The operator's socket in the run directory.
const OPERATOR_SOCKET: &str = "operator.sock";
/// Wanted number of descriptors.
const OPEN_FILES_WANTED: u64 = 1_048_576;

/// Reason for the daemon's stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Asked,
    /// The disk under the database has failed: the daemon could no longer keep what it promises.
    DatabaseFailed,
}

pub(super) fn run(config: Config) -> Result<ExitCode, Error> {
    log::start(config.log_json);
    raise_open_files();
    // Box inits whose launcher has ended become our children (child subreaper): we notice their end and reap them.
    nix::sys::prctl::set_child_subreaper(true).map_err(|cause| Error::new("become the reaper of boxes", "", cause))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|cause| Error::new("start the event loop", "", cause))?;
    let stop = runtime.block_on(serve(config))?;
    // Tasks that still read from boxes end here; the boxes continue.
    runtime.shutdown_background();
    Ok(if stop == Stop::Asked { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn serve(config: Config) -> Result<Stop, Error> {
    let began = Instant::now();
    // First: a signal may arrive at any time.
    let mut signals = Signals::listen()?;
    let Opened { config, db, metrics, events, boxes } = open(config).await?;
    for shortfall in icebox_shim::launch::shortfalls() {
        tracing::warn!("{shortfall}");
    }
    let runs = Runs::new(&config, boxes.clone(), db.clone(), events.clone());
    let lifecycle = Lifecycle::new(boxes.clone(), runs.clone(), db.clone(), events.clone());
    manager::while_starting(&lifecycle, lifecycle.reconcile()).await?;
    tokio::spawn(boxes.clone().watch());
    tokio::spawn(boxes.clone().expire());
    tokio::spawn(lifecycle.clone().heed_network());
    tokio::spawn(lifecycle.clone().heed_space());
    tokio::spawn(boxes.clone().prune());
    tokio::spawn(boxes.clone().keep_schedules());
    let warming = boxes.clone();
    tokio::spawn(async move {
        warming.warm_up().await;
        warming.keep_ready().await;
    });

    let builds = Builds::new(&config, boxes.clone(), lifecycle.clone(), runs.clone());
    if let Err(error) = builds.sweep() {
        tracing::warn!(error = error.chain(), "something of an earlier build is left");
    }
    tokio::spawn(Doctor::new(boxes.clone(), builds.clone()).report());
    let public = config.public_urls.clone();
    let urls = Urls::new(public, boxes.clone(), lifecycle.clone(), db.clone(), Arc::clone(&metrics));
    urls.load().await?;
    let listening = Listening::bind(config.listen).await?;
    let address = listening.address;
    let urls_door = urls_only(&config, &urls).await?;
    urls.listens_at(urls_door.as_ref().map_or(address, |door| door.listening.address).port());
    facts::write_facts(&config, address)?;
    let count = boxes.all().len();
    tracing::info!(%address, boxes = count, ready_ms = began.elapsed().as_millis(), "serving");
    manager::ready(&boxes, address);
    tokio::spawn(manager::go_on_telling(boxes.clone(), address));

    let stopping = CancellationToken::new();
    let commit_failure = db.commit_failure();
    let parts = AppParts {
        images: Images::new(boxes.clone(), &config),
        lifecycle,
        boxes: boxes.clone(),
        doctor: Doctor::new(boxes.clone(), builds.clone()),
        builds,
        runs,
        urls: urls.clone(),
        db,
        config: Arc::clone(&config),
        metrics: Arc::clone(&metrics),
        events: events.clone(),
    };
    let api = http::api(App::new(parts));
    let router = HostRouter { api, urls };
    let operator = OperatorSocket::bind(&config.run_dir.join(OPERATOR_SOCKET))?;
    tokio::spawn(operator.serve(router.clone(), stopping.clone()));
    let door =
        Door { listening, certificate: None, answers: router, limits: SeatLimits::of(&config), metrics: Some(metrics) };
    let urls_serving = urls_door.map(|door| tokio::spawn(http::serve(door, stopping.clone())));
    let serving = tokio::spawn(http::serve(door, stopping.clone()));
    let stop = until_stopped(&mut signals, commit_failure).await;
    manager::stopping();
    tracing::info!(?stop, "stopping; boxes go on");
    events.close();
    stopping.cancel();
    for serving in urls_serving.into_iter().chain([serving]) {
        if serving.await.is_err() {
            tracing::error!("the server panicked");
        }
    }
    facts::remove_facts(&config);
    boxes.close().await;
    Ok(stop)
}

/// The listener for public URLs only, if one is configured.
async fn urls_only(config: &Config, urls: &Urls) -> Result<Option<Door<UrlsOnly>>, Error> {
    let Some(listen) = config.public_urls.listen else { return Ok(None) };
    let certificate = Certificate::of(&config.public_urls)?;
    if let Some(certificate) = certificate.clone() {
        tokio::spawn(certificate.watch());
    }
    let listening = Listening::bind(listen).await?;
    tracing::info!(address = %listening.address, tls = certificate.is_some(), "serving public URLs");
    let answers = UrlsOnly { urls: urls.clone() };
    // Here every connection is for public URLs.
    let limits = SeatLimits { api_max: config.public_urls.connections_max, ..SeatLimits::of(config) };
    Ok(Some(Door { listening, certificate, answers, limits, metrics: None }))
}

/// Parts of the daemon.
struct Opened {
    config: Arc<Config>,
    db: Db,
    metrics: Arc<Metrics>,
    events: Events,
    boxes: Boxes,
}

/// Everything that is needed before boxes are examined.
async fn open(config: Config) -> Result<Opened, Error> {
    facts::make_run_dir(&config)?;
    let data_dir = config.data_dir.clone();
    let pool = config.storage.pool_settings(config.disk_free_bytes_min);
    // Takes the lock of the data directory: a second daemon fails here.
    let store = tokio::task::spawn_blocking(move || Store::open_with(&data_dir, &pool))
        .await
        .map_err(|_| Error::new("open the data directory", "", Cause::WorkerEnded))?
        .map_err(|cause| Error::new("open the data directory", "", cause))?;
    tell_backing(store.backing());
    tell_devices(store.devices());
    let data_dir = std::fs::canonicalize(&config.data_dir)
        .map_err(|cause| Error::new("find", config.data_dir.display().to_string(), cause))?;
    let config = Config { data_dir, ..config };
    let db = Db::open(&config.data_dir)?;
    first_account(&config, &db).await?;
    let rest = db.uid_bases_at_rest().await?;
    let ranges = UidRanges::open(Path::new(REGISTRY_DIR), &config.data_dir, rest)?;
    let tools = Tools::beside_current_exe().map_err(|cause| Error::new("find the init", "", cause))?;
    let proc_files = Keeper::start().unwrap_or_else(|error| {
        tracing::warn!(
            error = error.report(),
            "files of /proc in boxes are written at the start of a command and at a wake, not when they are read"
        );
        Keeper::without_watch()
    });
    let key = SealingKey::load_or_create(&config.data_dir.join(KEY_FILE))?;
    let denials = Denials::default();
    let network = start_network(&config, &denials).await?;
    let (config, metrics) = (Arc::new(config), Arc::new(Metrics::default()));
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(db.clone()), Box::new(Arc::clone(&metrics))];
    let events = Events::new(config.events_kept, sinks);
    let boxes = Boxes::new(Parts {
        config: Arc::clone(&config),
        db: db.clone(),
        store: Arc::new(store),
        tools,
        proc_files,
        ranges: Arc::new(ranges),
        metrics: Arc::clone(&metrics),
        events: events.clone(),
        network,
        key: Arc::new(key),
    });
    denials.belong_to(&boxes);
    Ok(Opened { config, db, metrics, events, boxes })
}

/// Says once what the disks of boxes lie on.
fn tell_backing(backing: &Backing) {
    match backing {
        Backing::Own => tracing::info!("disks of boxes are clones on the file system of the data directory"),
        Backing::File => tracing::info!("disks of boxes are clones in the pool of the data directory"),
        Backing::Device(path) => tracing::info!(device = %path.display(), "disks of boxes are clones in the pool"),
        Backing::Sparse { reason } => {
            tracing::warn!(%reason, "disks of boxes are copies, since there is no pool; see docs/storage.md");
        }
    }
}

/// Says what block devices there are for disks, and which of them are not used.
fn tell_devices(report: Option<DeviceReport>) {
    let Some(DeviceReport { for_new, disks, free, wiping, refused }) = report else { return };
    tracing::info!(disks, free, wiping, for_new, "block devices for the disks of boxes");
    for device in refused {
        tracing::error!(device = %device.path.display(), why = device.why, "a block device is not used");
    }
}

/// The network of boxes, if it is enabled.
async fn start_network(config: &Config, denials: &Denials) -> Result<Option<Network>, Error> {
    if !config.network.enabled {
        tracing::info!("boxes have a loopback interface only");
        return Ok(None);
    }
    let parts = NetworkParts {
        config: &config.network,
        netns: config.netns.as_deref(),
        data_dir: &config.data_dir,
        on_refusal: denials.callback(),
    };
    let started = Network::start(parts).await;
    if started.is_err() {
        tracing::error!("boxes cannot be connected; `[network] enabled = false` gives them a loopback interface only");
    }
    Ok(Some(started?))
}

/// Ensures that there is an account, and that root of this machine has a key.
async fn first_account(config: &Config, db: &Db) -> Result<(), Error> {
    let wanted = std::env::var(KEY_ENV).ok().filter(|key| !key.is_empty());
    let connection = Db::connect(&config.data_dir)?;
    if let Some(key) = ensure_first_account(&connection, wanted.clone())? {
        tracing::info!("made the first account");
        return facts::write_key(config, &key.0, wanted.is_none());
    }
    if let Some(key) = wanted {
        let digest = hash_key(key.as_bytes());
        if db.accounts().await?.iter().any(|account| account.key_sha256 == digest) {
            return facts::write_key(config, &key, false);
        }
        tracing::warn!("{KEY_ENV} is not the key of any account; it counts at the very first start only");
    }
    facts::restore_key(config)
}

/// The signals that ask the daemon to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|cause| Error::new("listen for signals", "", cause));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }
}

/// Waits for a signal, or for the database to fail.
async fn until_stopped(signals: &mut Signals, mut failure: CommitFailure) -> Stop {
    tokio::select! {
        _ = signals.terminate.recv() => Stop::Asked,
        _ = signals.interrupt.recv() => Stop::Asked,
        _ = failure.wait_for(|failed| *failed) => Stop::DatabaseFailed,
    }
}

/// Raises the descriptor limit to the hard limit: streams, sockets and pidfds need descriptors.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = Some(now.maximum.map_or(OPEN_FILES_WANTED, |most| most.min(OPEN_FILES_WANTED)));
    if now.current.is_some_and(|current| Some(current) < wanted) {
        let raised = Rlimit { current: wanted, maximum: now.maximum };
        if let Err(cause) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%cause, "cannot raise the limit of open files");
        }
    }
}
