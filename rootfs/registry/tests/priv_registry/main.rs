//! The client of registries against servers of the test: what it does with good ones and with hostile ones. Needs root, since
//! layers are unpacked with their owners. Nothing leaves the loopback interface.

mod hostile;
mod hub;
mod login;
mod pull;
mod push;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use icebox_registry::{Event, Registries, Result, Settings, Timing};
use icebox_rootfs::images::{Image, Images};
use icebox_rootfs::oci::Reference;

/// A store, and a client of registries.
struct World {
    dir: tempfile::TempDir,
    images: Images,
    settings: Settings,
    timing: Timing,
    events: Arc<Mutex<Vec<Event>>>,
}

impl World {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes files of several owners: run it as root");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let images = Images::open(&dir.path().join("images")).expect("a store");
        // No credentials of this machine.
        let auth = dir.path().join("auth.json");
        std::fs::write(&auth, "{}").expect("written");
        let settings = Settings { auth_file: Some(auth), ..Settings::default() };
        let timing = Timing { pause: Duration::from_millis(1), ..Timing::default() };
        Self { dir, images, settings, timing, events: Arc::default() }
    }

    fn mirrors(mut self, registry: &str, places: &[String]) -> Self {
        self.settings.mirrors = BTreeMap::from([(registry.to_owned(), places.to_vec())]);
        self
    }

    fn auth(self, text: &str) -> Self {
        std::fs::write(self.auth_file(), text).expect("written");
        self
    }

    fn auth_file(&self) -> PathBuf {
        self.dir.path().join("auth.json")
    }

    fn report(&self) -> icebox_registry::Report {
        let events = Arc::clone(&self.events);
        Arc::new(move |event| events.lock().expect("no panic").push(event))
    }

    fn registries(&self) -> Registries {
        Registries::new(&self.settings, self.timing).expect("good settings")
    }

    fn pull(&self, name: &str) -> Result<Image> {
        let name: Reference = name.parse().expect("a name");
        run(self.registries().pull(&self.images, &name, self.report()))
    }

    fn pulled(&self, name: &str) -> Image {
        self.pull(name).unwrap_or_else(|error| panic!("{}", told(&error)))
    }

    /// The refusal of a pull, which leaves nothing.
    fn refused(&self, name: &str) -> String {
        let Err(error) = self.pull(name) else { panic!("{name} is pulled") };
        assert!(self.images.list().expect("a list").is_empty(), "an image is there");
        let left: Vec<_> = std::fs::read_dir(self.images.dir().join("layers"))
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        assert!(left.is_empty(), "left: {left:?}");
        told(&error)
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().expect("a runtime").block_on(work)
}

fn told(error: &icebox_registry::Error) -> String {
    let mut text = format!("{error}: {}", error.cause());
    let mut next = std::error::Error::source(error.cause());
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
