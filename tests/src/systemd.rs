//! Icebox as a service of this machine's systemd, installed as users do it, by `dist/install.sh`.
//!
//! There is one systemd and one set of unit names, so these tests run one after the other, by a lock. They are for
//! dedicated machines: a guest (`cargo xtask vm --flavour systemd`).

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::api::{Api, TestBox};
use crate::daemon::{bin_dir, image_dir, scratch_dir, unique};
use crate::machine::{self, Cgroups};
use crate::wait::wait_until;

/// The unit that serves.
pub const DAEMON: &str = "iceboxd.service";
/// The unit that boxes live in.
pub const BOXES: &str = "icebox-boxes.service";
/// How long systemd and iceboxd may take together. Guests are slow.
pub const DEADLINE: Duration = Duration::from_secs(90);

const DATA_DIR: &str = "/var/lib/icebox";
const RUN_DIR: &str = "/run/icebox";
const CONFIG: &str = "/etc/icebox/iceboxd.toml";
const DROP_IN_DIR: &str = "/run/systemd/system/iceboxd.service.d";
const LOCK: &str = "/run/icebox-systemd-tests.lock";

/// What a release holds beside the binaries, as it was when the tests were built.
const RELEASE: [(&str, &str); 5] = [
    ("dist/install.sh", include_str!("../../dist/install.sh")),
    ("dist/iceboxd.service", include_str!("../../dist/iceboxd.service")),
    ("dist/icebox-boxes.service", include_str!("../../dist/icebox-boxes.service")),
    ("dist/iceboxd.toml", include_str!("../../dist/iceboxd.toml")),
    ("docs/operating.md", include_str!("../../docs/operating.md")),
];

/// An installed Icebox. Uninstalled, with everything that it made, when dropped.
#[derive(Debug)]
pub struct Service {
    release: PathBuf,
    cgroups: Cgroups,
    cursor: String,
    _alone: File,
}

impl Service {
    /// Installs the built binaries. Starts nothing.
    pub fn install() -> Self {
        machine::require_root();
        assert!(Path::new("/run/systemd/system").is_dir(), "this test needs systemd: cargo xtask vm --flavour systemd");
        let alone = File::create(LOCK).expect("make the lock");
        alone.lock().expect("wait for other tests of systemd");
        let release = scratch_dir().join(unique("release"));
        for (name, text) in RELEASE {
            let path = release.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("make the release");
            fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        }
        let script = release.join("dist/install.sh");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
        let service = Self { release, cgroups: Cgroups::probe(), cursor: journal_cursor(), _alone: alone };
        service.configure("");
        let said = service.install_from(&bin_dir());
        assert!(said.contains("installed"), "{said}");
        service
    }

    /// Runs `dist/install.sh` with these binaries; what it said.
    pub fn install_from(&self, bin: &Path) -> String {
        run(Command::new(self.release.join("dist/install.sh")).arg("--from").arg(bin))
    }

    /// Writes the settings: the test's own, and where the base image is on this machine.
    pub fn configure(&self, config: &str) {
        fs::create_dir_all("/etc/icebox").expect("make /etc/icebox");
        let image_dir = image_dir();
        fs::write(CONFIG, format!("image_dir = {:?}\n{config}\n", image_dir.to_str().expect("text")))
            .expect("configure");
    }

    /// Changes the daemon's unit as `systemctl edit --runtime` does. For its next start.
    pub fn drop_in(&self, text: &str) {
        fs::create_dir_all(DROP_IN_DIR).expect("make the drop-in's directory");
        fs::write(Path::new(DROP_IN_DIR).join("test.conf"), text).expect("write the drop-in");
        systemctl(&["daemon-reload"]);
    }

    /// A client with the first account's key.
    pub fn api(&self) -> Api {
        let facts = fs::read(Path::new(RUN_DIR).join("iceboxd.json")).expect("iceboxd tells where it listens");
        let facts: Value = serde_json::from_slice(&facts).expect("facts are JSON");
        let key = fs::read_to_string(Path::new(RUN_DIR).join("key")).expect("the first key");
        Api::new(facts["url"].as_str().expect("a url"), Some(key.trim()))
    }

    /// The same box, as the daemon of now shows it.
    pub fn again(&self, made: &TestBox) -> TestBox {
        TestBox { api: self.api(), id: made.id.clone() }
    }

    /// The pid of the daemon, which has to be serving.
    pub fn pid(&self) -> i32 {
        serving_pid().unwrap_or_else(|| panic!("{DAEMON} does not serve: {}", show(DAEMON, "ActiveState")))
    }

    /// Waits until another process than `old` is the daemon, and serves.
    pub fn wait_replaced(&self, old: i32, what: &str) {
        wait_until(DEADLINE, what, || serving_pid().is_some_and(|pid| pid != old));
    }

    /// The control group of a box, relative to the mount point.
    pub fn cgroup(&self, made: &TestBox) -> String {
        let unit = self.cgroups.unified.join("system.slice").join(BOXES);
        let roots = fs::read_dir(&unit).unwrap_or_else(|e| panic!("read {}: {e}", unit.display())).flatten();
        let root = roots.map(|e| e.file_name().to_string_lossy().into_owned()).find(|name| name.starts_with("icebox."));
        format!("system.slice/{BOXES}/{}/{}", root.expect("the daemon's cgroup"), made.id)
    }

    /// The host pid of the init of a box.
    pub fn init_pid(&self, made: &TestBox) -> i32 {
        machine::init_pid(&self.cgroups, &self.cgroup(made))
    }

    /// The cgroup hierarchies of the machine.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The run directory of a box.
    pub fn run_dir(&self, made: &TestBox) -> PathBuf {
        Path::new(RUN_DIR).join("boxes").join(&made.id)
    }

    /// The entries that the journal has of the daemon since this was installed: priority and message.
    pub fn journal(&self) -> Vec<(u8, String)> {
        run(Command::new("journalctl").arg("--sync"));
        let text = run(Command::new("journalctl").args(["-u", DAEMON, "-o", "json", "--no-pager", "-q"]).args([
            "--after-cursor",
            &self.cursor,
            "_TRANSPORT=stdout",
        ]));
        let entry = |line: &str| {
            let entry: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
            let priority = entry["PRIORITY"].as_str().and_then(|n| n.parse().ok()).expect("a priority");
            (priority, entry["MESSAGE"].as_str().unwrap_or_else(|| panic!("no text in {entry}")).to_owned())
        };
        text.lines().map(entry).collect()
    }

    /// Deletes every box and uninstalls.
    fn remove(&self) {
        if is_active(DAEMON) {
            let api = self.api();
            for data in api.list() {
                let id = data["id"].as_str().expect("an id");
                api.delete(&format!("/v2/box/{id}")).ok();
            }
        }
        run(Command::new(self.release.join("dist/install.sh")).arg("--uninstall"));
        assert!(!is_active(BOXES) && !is_active(DAEMON));
        assert!(!self.cgroups.unified.join("system.slice").join(BOXES).exists(), "the cgroup of boxes is left");
        let tables = Command::new("nft").args(["list", "tables"]).output().expect("nft");
        let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
        assert!(!tables.contains("icebox"), "the firewall is left: {tables}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for command in [["status", "--no-pager", "-l", DAEMON], ["status", "--no-pager", "-l", BOXES]] {
                let output = Command::new("systemctl").args(command).output().expect("systemctl");
                eprintln!("{}", String::from_utf8_lossy(&output.stdout));
            }
            let journal = Command::new("journalctl").args(["-u", DAEMON, "--no-pager", "-n", "60"]).output();
            eprintln!("{}", String::from_utf8_lossy(&journal.expect("journalctl").stdout));
            let _ = Command::new(self.release.join("dist/install.sh")).arg("--uninstall").output();
        } else {
            self.remove();
        }
        // What a test has set on the units.
        let _ = Command::new("systemctl").args(["revert", DAEMON, BOXES]).output();
        let _ = fs::remove_dir_all(DROP_IN_DIR);
        let _ = Command::new("systemctl").arg("daemon-reload").output();
        let _ = Command::new("systemctl").args(["reset-failed", DAEMON, BOXES]).output();
        for entry in fs::read_dir(DATA_DIR).into_iter().flatten().flatten() {
            // Base images are the machine's.
            if entry.path() != image_dir() {
                let _ = fs::remove_dir_all(entry.path());
                let _ = fs::remove_file(entry.path());
            }
        }
        for dir in [RUN_DIR, "/run/icebox-uid", "/etc/icebox"] {
            let _ = fs::remove_dir_all(dir);
        }
        let _ = fs::remove_dir_all(&self.release);
    }
}

/// Runs a program that must succeed; its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// `systemctl`, which must succeed; its output.
pub fn systemctl(arguments: &[&str]) -> String {
    run(Command::new("systemctl").args(arguments))
}

/// A property of a unit.
pub fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", unit, "--value", "-p", property]).trim().to_owned()
}

/// The daemon's pid if it serves. Both are of one moment: between two questions it may have been killed and be about to
/// start again, "active" in the first answer and without a process in the second.
fn serving_pid() -> Option<i32> {
    let text = systemctl(&["show", DAEMON, "-p", "ActiveState", "-p", "MainPID"]);
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let pid = value("MainPID").and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no MainPID in {text}"));
    (value("ActiveState") == Some("active") && pid != 0).then_some(pid)
}

/// Whether a unit is active.
pub fn is_active(unit: &str) -> bool {
    Command::new("systemctl").args(["--quiet", "is-active", unit]).status().expect("systemctl").success()
}

/// Waits until a unit's property is `wanted`.
pub fn wait_property(unit: &str, property: &str, wanted: &str) {
    wait_until(DEADLINE, &format!("{property} of {unit} to be {wanted:?}"), || show(unit, property) == wanted);
}

fn journal_cursor() -> String {
    let text = run(Command::new("journalctl").args(["-n", "1", "-q", "--show-cursor", "--no-pager", "-o", "cat"]));
    let cursor = text.lines().find_map(|line| line.strip_prefix("-- cursor: "));
    cursor.unwrap_or_else(|| panic!("no cursor in {text}")).to_owned()
}
