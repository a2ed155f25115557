//! An `iceboxd` of the test's own: own data directory (on the disk of the build tree, not on a tmpfs: volumes need a real
//! file system), own run directory, a port the kernel chooses, and a key of its own. Only the base image is shared.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::api::{Api, TestBox};
use crate::machine::{self, Cgroups};
use crate::netns::Netns;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// How long `iceboxd` may take to answer after it was started (the first start formats a volume template).
const START_DEADLINE: Duration = PATIENCE;
/// How long `iceboxd` may take to end after SIGTERM.
const STOP_DEADLINE: Duration = PATIENCE;
/// How much of the log a failed test prints.
const LOG_TAIL_BYTES: usize = 6000;
/// The key of the account that [`Daemon::other_account`] adds.
pub const OTHER_KEY: &str = "box_key_of_the_other_account";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A running (or killed, or stopped) `iceboxd` with everything that belongs to it.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    url: String,
    key: String,
    home: PathBuf,
    run_dir: PathBuf,
    config: Option<PathBuf>,
    cgroups: Cgroups,
    root: String,
    /// Where the host side of its boxes' networking lives: never the machine's own namespace.
    /// An image directory of its own.
    images: Option<PathBuf>,
    netns: Netns,
}

/// The directory of the built binaries: `ICEBOX_BIN_DIR`, or the profile directory of this test executable.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("ICEBOX_BIN_DIR") {
        return PathBuf::from(dir);
    }
    let exe = std::env::current_exe().expect("the path of this executable");
    let profile = exe.ancestors().nth(2).expect("<profile>/deps/<test>");
    profile.to_owned()
}

/// A built binary; panics with what to do when it is missing.
pub fn binary(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(
        path.is_file(),
        "{} is missing: build it (`cargo build --workspace`) or run `cargo xtask test`",
        path.display()
    );
    path
}

/// The directory for the files of tests: `ICEBOX_TEST_DIR`, or `tmp` in the target directory.
pub fn scratch_dir() -> PathBuf {
    let dir = match std::env::var_os("ICEBOX_TEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let exe = std::env::current_exe().expect("the path of this executable");
            // <target>/<profile>/deps/<test>, with a directory of the platform between when one was named.
            let above = exe.ancestors().nth(3).expect("a target directory");
            let named = above.file_name().is_some_and(|n| n.to_string_lossy().contains("-linux-"));
            let target = if named { above.parent().expect("a target directory") } else { above };
            target.join("tmp")
        }
    };
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("make {}: {e}", dir.display()));
    dir.canonicalize().expect("an absolute path")
}

/// A name that no other test of this machine uses now.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Where the base image lies: `ICEBOX_IMAGE_DIR`, or the place where `cargo xtask up` caches it.
pub fn image_dir() -> PathBuf {
    let dir = std::env::var_os("ICEBOX_IMAGE_DIR").unwrap_or_else(|| "/var/lib/icebox/images".into());
    let dir = PathBuf::from(dir);
    let has_image = fs::read_dir(&dir).is_ok_and(|mut d| d.any(|e| e.is_ok_and(|e| e.path().join("rootfs").is_dir())));
    assert!(has_image, "no base image below {}: run `cargo xtask image` (or `cargo xtask test`)", dir.display());
    dir
}

impl Daemon {
    /// Starts an `iceboxd` with default settings.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts an `iceboxd` with `config` as its TOML file (empty: no file).
    pub fn start_with(config: &str) -> Self {
        let name = unique("icebox-test");
        Self::start_at(&scratch_dir().join(&name), &name, config)
    }

    /// Starts an `iceboxd` that lives in `home`, perhaps with what an earlier one has left there. `name` is part of its
    /// run directory and its key. Dropping it removes all of it, as with the others.
    pub fn start_at(home: &Path, name: &str, config: &str) -> Self {
        Self::start_here(home, name, config, Netns::new())
    }

    /// Starts an `iceboxd` whose host side of networking is in `netns`.
    pub fn start_in(netns: Netns, config: &str) -> Self {
        let name = unique("icebox-test");
        Self::start_here(&scratch_dir().join(&name), &name, config, netns)
    }

    fn start_here(home: &Path, name: &str, config: &str, netns: Netns) -> Self {
        machine::require_root();
        let home = home.to_owned();
        let data = home.join("data");
        fs::create_dir_all(&data).unwrap_or_else(|e| panic!("make {}: {e}", data.display()));
        let config = (!config.is_empty()).then(|| {
            let path = home.join("iceboxd.toml");
            fs::write(&path, config).expect("write the config file");
            path
        });
        let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
        let hex: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
        let mut daemon = Self {
            child: None,
            url: String::new(),
            key: format!("box_test_{name}"),
            run_dir: PathBuf::from("/run").join(name),
            home,
            config,
            cgroups: Cgroups::probe(),
            root: format!("icebox.{hex}"),
            netns,
            images: None,
        };
        daemon.start_again();
        daemon
    }

    /// Ends this `iceboxd` and starts it anew with an image directory of its own, in its home. The base images in it are links
    /// to those of all tests.
    pub fn with_own_images(self) -> Self {
        let own = self.home.join("images");
        self.with_images(&own)
    }

    /// The same with an image directory that may be there already, and stays.
    pub fn with_images(mut self, dir: &Path) -> Self {
        self.stop();
        fs::create_dir_all(dir).expect("a directory");
        for entry in fs::read_dir(image_dir()).expect("the images").flatten() {
            let link = dir.join(entry.file_name());
            if entry.path().join("manifest.json").is_file() && !link.is_dir() {
                symlink(entry.path(), link).expect("a link");
            }
        }
        self.images = Some(dir.to_owned());
        self.start_again();
        self
    }

    /// The image directory.
    pub fn images(&self) -> PathBuf {
        self.images.clone().unwrap_or_else(image_dir)
    }

    /// Gives `iceboxd` another TOML file, for its next start.
    pub fn configure(&mut self, config: &str) {
        let path = self.home.join("iceboxd.toml");
        fs::write(&path, config).expect("write the config file");
        self.config = Some(path);
    }

    /// Starts `iceboxd` on the same directories, after [`Daemon::kill9`] or [`Daemon::stop`].
    pub fn start_again(&mut self) {
        let pid = self.spawn();
        let facts = self.run_dir.join("iceboxd.json");
        self.url = wait_for(START_DEADLINE, "iceboxd to tell its address", || {
            self.assert_alive();
            let facts: Value = serde_json::from_slice(&fs::read(&facts).ok()?).ok()?;
            (facts["pid"].as_u64() == Some(u64::from(pid))).then(|| facts["url"].as_str().map(str::to_owned))?
        });
        self.url = self.url.trim_end_matches('/').to_owned();
        let api = self.api();
        wait_until(START_DEADLINE, "iceboxd to be healthy", || {
            self.assert_alive();
            api.try_send("healthz", api.build("GET", "/healthz")).is_ok_and(|r| r.status == 200)
        });
    }

    /// Starts `iceboxd` as [`Daemon::start_again`] does, without waiting for anything. Its pid.
    pub fn spawn(&mut self) -> u32 {
        assert!(self.child.is_none(), "iceboxd runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open the log");
        let mut command = Command::new(binary("iceboxd"));
        command.arg("--data-dir").arg(self.data_dir());
        command.arg("--run-dir").arg(&self.run_dir);
        command.arg("--image-dir").arg(self.images());
        command.args(["--listen", "127.0.0.1:0", "--netns", &self.netns.path()]);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.env("ICEBOX_API_KEY", &self.key).env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        let child = command.spawn().expect("start iceboxd");
        let pid = child.id();
        self.child = Some(child);
        pid
    }

    fn assert_alive(&mut self) {
        let child = self.child.as_mut().expect("iceboxd was started");
        if let Some(status) = child.try_wait().expect("wait for iceboxd") {
            self.child = None;
            panic!("iceboxd ended with {status}; its log ends with:\n{}", self.log_tail());
        }
    }

    /// A client with the key of the first account.
    pub fn api(&self) -> Api {
        Api::new(&self.url, Some(&self.key))
    }

    /// The address, without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The key of the first account.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Adds a second account the way an operator's tool does: a row with the hash of its key, [`OTHER_KEY`].
    pub fn other_account(&self) -> Api {
        let database = rusqlite::Connection::open(self.data_dir().join("icebox.db")).expect("open the database");
        let hash = Sha256::digest(OTHER_KEY.as_bytes()).to_vec();
        let insert = "INSERT INTO accounts (id, name, key_sha256, created_ms) VALUES ('acc_other', 'other', ?1, 0)";
        database.execute(insert, [hash]).expect("add an account");
        self.api().with_key(Some(OTHER_KEY))
    }

    /// The command line client, with the address and the key of this daemon.
    pub fn icebox(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("icebox"));
        command.args(["--url", self.url(), "--key", self.key()]).args(args);
        command
    }

    /// The command line client as the operator uses it: over the socket in the run directory.
    pub fn icebox_as_operator(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("icebox"));
        command.env_remove("UPSTASH_BOX_BASE_URL").env_remove("UPSTASH_BOX_API_KEY");
        command.arg("--run-dir").arg(&self.run_dir).args(args);
        command
    }

    /// The pid of the running `iceboxd`.
    pub fn pid(&self) -> i32 {
        let child = self.child.as_ref().expect("iceboxd runs");
        i32::try_from(child.id()).expect("a pid")
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// The run directory.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The cgroup of a box, relative to the mount points.
    pub fn cgroup(&self, made: &TestBox) -> String {
        format!("{}/{}", self.root, made.id)
    }

    /// The cgroup that holds all boxes of this daemon.
    pub fn cgroup_root(&self) -> &str {
        &self.root
    }

    /// The cgroup hierarchies of the machine.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The host pid of the init of a box.
    pub fn init_pid(&self, made: &TestBox) -> i32 {
        machine::init_pid(&self.cgroups, &self.cgroup(made))
    }

    /// `kill -9`, and reaps.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("iceboxd runs");
        child.kill().expect("kill iceboxd");
        child.wait().expect("reap iceboxd");
    }

    /// Reaps an `iceboxd` that was killed.
    pub fn reap(&mut self) {
        let mut child = self.child.take().expect("iceboxd was started");
        match child.wait() {
            // Who has traced its first thread has reaped it with that.
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => {}
            other => drop(other.expect("reap iceboxd")),
        }
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop(&mut self) {
        let pid = Pid::from_raw(self.pid());
        kill(pid, Signal::SIGTERM).expect("signal iceboxd");
        let mut child = self.child.take().expect("iceboxd runs");
        let status = wait_for(STOP_DEADLINE, "iceboxd to end after SIGTERM", || child.try_wait().expect("wait"));
        assert!(status.success(), "iceboxd ended with {status} after SIGTERM:\n{}", self.log_tail());
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }

    /// The whole log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.home.join("iceboxd.log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of iceboxd ends with:\n{}\n---", self.log_tail());
        } else if self.child.is_some() {
            // The polite way, which is itself a test: delete every box, then stop.
            let api = self.api();
            for data in api.list() {
                let id = data["id"].as_str().expect("an id").to_owned();
                api.delete(&format!("/v2/box/{id}")).ok();
            }
            self.stop();
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.cgroups.destroy(&self.root);
        let _ = fs::remove_dir_all(&self.run_dir);
        let _ = fs::remove_dir_all(&self.home);
    }
}
