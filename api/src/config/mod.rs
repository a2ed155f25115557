//! Configuration: defaults, overlaid by a TOML file, overlaid by flags.
//!
//! Invariants: an unknown key is an error that names it; every value is checked here, once.

mod build;
mod public_urls;
mod ready;
mod registry;
mod runtimes;
mod storage;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use icebox_shim::handle::BoxHandle;
use icebox_shim::launch::HostLimits;
use serde::Deserialize;

use crate::error::{Cause, Error};
use icebox_net::config::NetworkConfig;

pub use build::{Build, HostProxy, OnCreate};
pub use public_urls::PublicUrls;
pub use ready::Ready;
pub use registry::Registry;
pub use runtimes::{BoxfilePath, Runtime};
pub use storage::{Block, Driver, PoolMode, Storage, WhenFull};

/// Read when no `--config` is given and the file exists.
pub const CONFIG_PATH_DEFAULT: &str = "/etc/icebox/iceboxd.toml";
/// Shortest idle time.
pub const IDLE_SECONDS_MIN: u64 = 1;
/// The lowest rate at which the daemon relays for a box.
const PASSED_BYTES_PER_SECOND_MIN: u64 = 65_536;
/// Most events kept per account.
const EVENTS_KEPT_MAX: usize = 100_000;
/// Longest idle time: 30 days.
pub const IDLE_SECONDS_MAX: u64 = 30 * 24 * 3600;

/// All settings of an operator.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Database, volumes and templates.
    pub data_dir: PathBuf,
    /// Sockets and facts of running boxes; gone after a reboot.
    pub run_dir: PathBuf,
    /// Base images; `images` below the default data directory if unset.
    pub image_dir: Option<PathBuf>,
    /// Cgroup below which boxes are made, as a path below the root of the cgroup tree; empty is the root itself. On a
    /// host with systemd it must be one that systemd has delegated.
    pub cgroup_parent: String,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// The network namespace in which the host side of all boxes' networking lives (links, firewall, proxies), as a path
    /// or as a name of `ip netns`. Default: that of the daemon. The API is served in the daemon's own in any case.
    pub netns: Option<String>,
    /// The network of boxes.
    pub network: NetworkConfig,
    /// Seconds without work until a box sleeps, unless account or box say otherwise.
    pub idle_seconds: u64,
    /// CPU use over the idle window, in percent of one core, up to which a box counts as idle.
    pub idle_cpu_percent: f64,
    /// Start boxes even if this host cannot enforce all their limits.
    pub allow_unenforced_limits: bool,
    /// Limits of every box beside those of its size. Default: none.
    pub limits: HostLimits,
    /// Reclaim the memory of a box (to swap, and cached files) when it has slept this many seconds. Default: never,
    /// since only the operator knows whether swap is compressed memory or a slow disk that all processes wait for, and
    /// without swap there is little to reclaim.
    pub reclaim_after_seconds: Option<u64>,
    /// Boxes that one account may have at once.
    pub boxes_per_account_max: u32,
    /// Snapshots that one account may have at once.
    pub snapshots_per_account_max: u32,
    /// Commands that may run in one box at once.
    pub runs_per_box_max: u32,
    /// Free bytes on the disk of the data directory below which no box is created.
    pub disk_free_bytes_min: u64,
    /// Bytes per second that the daemon relays for one box: output of commands, downloads, public URLs.
    pub passed_bytes_per_second_max: u64,
    /// Most requests in progress at once.
    pub requests_max: u32,
    /// Most requests in progress of one account.
    pub requests_per_account_max: u32,
    /// Most open connections at once.
    pub connections_max: u32,
    /// Most connections from one IPv4 address, or from one IPv6 /64 network.
    pub connections_per_address_max: u32,
    /// Most connections in use by one account.
    pub connections_per_account_max: u32,
    /// Longest pause in the body of a request, in seconds.
    pub body_timeout_seconds: u64,
    /// Events kept in memory per account, for subscribers that connect again.
    pub events_kept: usize,
    /// Answer a command only when its record is on disk. It costs one flush of the disk per command; without it a power
    /// cut may lose the record of the last commands, never more, and a crash of the daemon loses nothing.
    pub reply_after_commit: bool,
    /// Web origins that may use the API from a browser.
    pub cors_origins: Vec<String>,
    /// Log lines as JSON instead of text.
    pub log_json: bool,
    /// Ports of boxes that are reachable from outside.
    pub public_urls: PublicUrls,
    /// What the disks of boxes lie on.
    pub storage: Storage,
    /// Runtimes of boxes by name: the image, as `icebox image ls` shows it, or a Boxfile.
    pub runtimes: BTreeMap<String, Runtime>,
    /// Builds of images.
    pub build: Build,
    /// Boxes that are started before a client asks for them.
    pub ready: Vec<Ready>,
    /// Registries of images.
    pub registry: Registry,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/icebox".into(),
            run_dir: "/run/icebox".into(),
            image_dir: None,
            cgroup_parent: String::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            netns: None,
            network: NetworkConfig::default(),
            idle_seconds: 3600,
            idle_cpu_percent: 1.0,
            allow_unenforced_limits: false,
            limits: HostLimits::default(),
            reclaim_after_seconds: None,
            boxes_per_account_max: 1000,
            snapshots_per_account_max: 200,
            runs_per_box_max: 256,
            disk_free_bytes_min: 256 << 20,
            passed_bytes_per_second_max: 128 << 20,
            requests_max: 2048,
            requests_per_account_max: 1024,
            connections_max: 4096,
            connections_per_address_max: 2048,
            connections_per_account_max: 2048,
            body_timeout_seconds: 30,
            events_kept: 2048,
            reply_after_commit: false,
            cors_origins: Vec::new(),
            log_json: false,
            public_urls: PublicUrls::default(),
            storage: Storage::default(),
            runtimes: BTreeMap::new(),
            build: Build::default(),
            ready: Vec::new(),
            registry: Registry::default(),
        }
    }
}

/// Overrides from the command line.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--run-dir`.
    pub run_dir: Option<PathBuf>,
    /// `--image-dir`.
    pub image_dir: Option<PathBuf>,
    /// `--cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// `--listen`.
    pub listen: Option<SocketAddr>,
    /// `--netns`.
    pub netns: Option<String>,
}

impl Config {
    /// Defaults, file and flags together.
    pub fn load(overrides: &Overrides) -> Result<Self, Error> {
        let mut config = match &overrides.config {
            Some(path) => Self::read(path)?,
            None if Path::new(CONFIG_PATH_DEFAULT).exists() => Self::read(Path::new(CONFIG_PATH_DEFAULT))?,
            None => Self::default(),
        };
        if let Some(data_dir) = &overrides.data_dir {
            config.data_dir = absolute(data_dir)?;
        }
        if let Some(run_dir) = &overrides.run_dir {
            config.run_dir = absolute(run_dir)?;
        }
        if let Some(image_dir) = &overrides.image_dir {
            config.image_dir = Some(absolute(image_dir)?);
        }
        if let Some(cgroup_parent) = &overrides.cgroup_parent {
            config.cgroup_parent.clone_from(cgroup_parent);
        }
        if let Some(listen) = overrides.listen {
            config.listen = listen;
        }
        if let Some(netns) = &overrides.netns {
            config.netns = Some(netns.clone());
        }
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let subject = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|cause| Error::new("read the configuration", &subject, cause))?;
        Self::parse(&text, &subject)
    }

    fn parse(text: &str, subject: &str) -> Result<Self, Error> {
        toml::from_str(text).map_err(|cause| Error::new("read the configuration", subject, cause))
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |key: &str, expected| Err(Error::new("check the configuration", key, Cause::Invalid(expected)));
        if !(IDLE_SECONDS_MIN..=IDLE_SECONDS_MAX).contains(&self.idle_seconds) {
            return wrong("idle_seconds", "must be 1 to 2592000");
        }
        if !(0.0..=100.0).contains(&self.idle_cpu_percent) {
            return wrong("idle_cpu_percent", "must be 0 to 100");
        }
        if self.reclaim_after_seconds.is_some_and(|seconds| seconds > IDLE_SECONDS_MAX) {
            return wrong("reclaim_after_seconds", "must be 0 to 2592000");
        }
        if let Err((key, expected)) = self.limits.check().and_then(|()| self.network.check()) {
            return wrong(key, expected);
        }
        let sections =
            self.public_urls.check().and_then(|()| self.storage.check()).and_then(|()| self.registry.check());
        if let Err((key, expected)) = sections {
            return wrong(key, expected);
        }
        if let Err((key, expected)) = Ready::check(&self.ready) {
            return wrong(key, expected);
        }
        for (name, runtime) in &self.runtimes {
            if let Err(expected) = runtime.check(name) {
                return wrong(&format!("runtimes.{name}"), expected);
            }
        }
        if !self.data_dir.is_absolute() {
            return wrong("data_dir", "must be an absolute path");
        }
        if !self.run_dir.is_absolute() {
            return wrong("run_dir", "must be an absolute path");
        }
        // Opening a handle uses only the path.
        if self.cgroup_parent().is_some_and(|parent| BoxHandle::open(&self.run_dir, parent, 0).is_err()) {
            return wrong("cgroup_parent", "must be a plain path, such as system.slice/icebox-boxes.service");
        }
        for (key, value) in [
            ("requests_max", self.requests_max),
            ("requests_per_account_max", self.requests_per_account_max),
            ("connections_max", self.connections_max),
            ("connections_per_address_max", self.connections_per_address_max),
            ("connections_per_account_max", self.connections_per_account_max),
            ("runs_per_box_max", self.runs_per_box_max),
        ] {
            if value == 0 {
                return wrong(key, "must be at least 1");
            }
        }
        if self.passed_bytes_per_second_max < PASSED_BYTES_PER_SECOND_MIN {
            return wrong("passed_bytes_per_second_max", "must be at least 65536");
        }
        if !(1..=EVENTS_KEPT_MAX).contains(&self.events_kept) {
            return wrong("events_kept", "must be 1 to 100000");
        }
        if !(1..=3600).contains(&self.body_timeout_seconds) {
            return wrong("body_timeout_seconds", "must be 1 to 3600");
        }
        Ok(())
    }

    /// The cgroup below which boxes are made, without a leading slash; none if it is the root.
    #[must_use]
    pub fn cgroup_parent(&self) -> Option<&str> {
        let parent = self.cgroup_parent.strip_prefix('/').unwrap_or(&self.cgroup_parent);
        (!parent.is_empty()).then_some(parent)
    }

    /// Directory of base images.
    #[must_use]
    pub fn image_dir(&self) -> PathBuf {
        self.image_dir.clone().unwrap_or_else(|| PathBuf::from("/var/lib/icebox/images"))
    }
}

/// A path of the command line is relative to the working directory.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|cause| Error::new("find", path.display().to_string(), cause))
}

/// True if a client may request this idle time.
pub fn check_idle_seconds(seconds: u64) -> Result<(), String> {
    if (IDLE_SECONDS_MIN..=IDLE_SECONDS_MAX).contains(&seconds) {
        Ok(())
    } else {
        Err(format!("idle_seconds must be {IDLE_SECONDS_MIN} to {IDLE_SECONDS_MAX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named() {
        let refused = Config::parse("idle_second = 3", "x.toml").expect_err("a misspelt key");
        assert!(refused.chain().contains("idle_second"), "{}", refused.chain());
        let refused = Config::parse("[limits]\ncpu_set = \"0\"", "x.toml").expect_err("a misspelt key");
        assert!(refused.chain().contains("cpu_set"), "{}", refused.chain());
    }

    #[test]
    fn a_file_overrides_defaults_and_flags_override_the_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "idle_seconds = 5\nlisten = \"127.0.0.1:1\"\n").expect("write");
        let overrides = Overrides {
            config: Some(path),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 2))),
            ..Overrides::default()
        };
        let config = Config::load(&overrides).expect("a good file");
        assert_eq!((config.idle_seconds, config.listen.port()), (5, 2));
        assert_eq!(config.data_dir, Path::new("/var/lib/icebox"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "idle_seconds = 0",
            "idle_cpu_percent = 101.0",
            "data_dir = \"x\"",
            "requests_max = 0",
            "events_kept = 0",
            "reclaim_after_seconds = 9999999",
            "[limits]\nmemory_high_percent = 100",
            "[limits]\ncpuset_cpus = \"all\"",
            "[limits]\nio_write_bytes_per_second = 1",
            "[limits]\nio_reads_per_second = 0",
            "cgroup_parent = \"a/../b\"",
            "[runtimes]\nmine = { boxfile = \"Boxfile\" }",
            "[runtimes]\nMine = { boxfile = \"/Boxfile\" }",
        ] {
            assert!(Config::parse(text, "x").expect("readable").check().is_err(), "{text}");
        }
    }
}
