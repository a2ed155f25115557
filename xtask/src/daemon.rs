//! The `iceboxd` that `cargo xtask up` starts and `down` stops.
//!
//! Invariant: a process is only signalled when pid, start time and boot are those that were recorded when it was started;
//! a pid alone may have been reused.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Cause, Error, Result, While};
use crate::{places, run, say};

/// The first start formats templates and reconciles boxes.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// It answers requests that it has begun before it ends.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
const HTTP_TIMEOUT: Duration = Duration::from_secs(2);
const HTTP_ANSWER_BYTES_MAX: u64 = 4096;
/// How much of the log an error quotes.
const LOG_BYTES_MAX: u64 = 3000;
const LOG_DIR: &str = "/var/log/icebox";
const KEY_BYTES: usize = 24;
/// Where `ip netns` keeps its names.
const NETNS_DIR: &str = "/run/netns";

/// Where the daemon keeps its things and listens.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Settings {
    /// Database and disks of the boxes
    #[arg(long, value_name = "DIR", default_value = "/var/lib/icebox")]
    pub(crate) data_dir: PathBuf,
    /// Sockets and facts of what runs
    #[arg(long, value_name = "DIR", default_value = "/run/icebox")]
    pub(crate) run_dir: PathBuf,
    /// Address of the HTTP API
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
}

/// What `up` writes down about the process it started.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pid: i32,
    start_time_ticks: u64,
    boot_id: String,
    listen: SocketAddr,
    #[serde(default)]
    network: HostSide,
}

/// Where the host side of the boxes' networking lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HostSide {
    /// In a namespace made for it, which has no way out: trying Icebox changes nothing of this machine's network.
    #[default]
    Apart,
    /// In this machine's own.
    Own,
    /// In an existing namespace.
    Named(String),
}

impl HostSide {
    /// The value for `iceboxd --netns`, with the namespace made if it is ours to make.
    fn prepare(&self, settings: &Settings) -> Result<Option<String>> {
        match self {
            Self::Own => Ok(None),
            Self::Named(name) => Ok(Some(name.clone())),
            Self::Apart => {
                let name = settings.netns_name();
                if !Path::new(NETNS_DIR).join(&name).exists() {
                    run::quiet(Command::new("ip").args(["netns", "add", &name]))?;
                }
                Ok(Some(name))
            }
        }
    }
}

impl Settings {
    /// One per port, as only one daemon can have it.
    fn netns_name(&self) -> String {
        format!("icebox-{}", self.listen.port())
    }

    /// Removes the namespace that `up` made, when nothing of its boxes is left.
    pub(crate) fn remove_netns(&self) -> Result<()> {
        let name = self.netns_name();
        if Path::new(NETNS_DIR).join(&name).exists() {
            run::quiet(Command::new("ip").args(["netns", "delete", &name]))?;
        }
        Ok(())
    }

    fn record_path(&self) -> PathBuf {
        self.run_dir.join("up.json")
    }

    /// The log of the daemon; instances with a run directory of their own have a log there.
    pub(crate) fn log_path(&self) -> PathBuf {
        if self.run_dir == Path::new("/run/icebox") {
            Path::new(LOG_DIR).join("iceboxd.log")
        } else {
            self.run_dir.join("iceboxd.log")
        }
    }

    /// The record of a daemon that is still running.
    fn running(&self) -> Result<Option<Record>> {
        let Some(text) = run::read_if_there(&self.record_path())? else { return Ok(None) };
        // An unreadable record (cut off by a power loss) is no record.
        let Ok(record) = serde_json::from_str::<Record>(&text) else { return Ok(None) };
        let alive = boot_id()? == record.boot_id && is_alive(&record);
        Ok(alive.then_some(record))
    }

    /// Whether `up` has a daemon running here.
    pub(crate) fn is_running(&self) -> Result<bool> {
        Ok(self.running()?.is_some())
    }

    /// Makes sure that the daemon of these binaries runs and answers.
    pub(crate) fn start(&self, bin: &Path, network: &HostSide) -> Result<()> {
        let iceboxd = bin.join("iceboxd");
        if let Some(record) = self.running()? {
            if record.listen == self.listen
                && record.network == *network
                && runs_file(record.pid, &iceboxd)
                && healthz(self.listen)
            {
                say::fact(&format!("iceboxd is running already (pid {})", record.pid));
                return Ok(());
            }
            say::fact("another build, address or network is running; boxes go on while iceboxd is replaced");
            self.stop()?;
        }
        check_port(self.listen)?;
        let key = self.key()?;
        let netns = network.prepare(self)?;
        let mut child = self.spawn(&iceboxd, &key, netns.as_deref())?;
        let wait = say::wait("starting iceboxd");
        self.write_record(&child, network)?;
        self.wait_healthy(&mut child)?;
        wait.done(&format!("iceboxd answers on http://{} (pid {})", self.listen, child.id()));
        // For the command line; iceboxd writes the same.
        write_private(&self.run_dir.join("key"), &format!("{key}\n"))
    }

    fn spawn(&self, iceboxd: &Path, key: &str, netns: Option<&str>) -> Result<Child> {
        let log_path = self.log_path();
        let dir = log_path.parent().unwrap_or(Path::new("/"));
        make_private_dir(&self.run_dir)?;
        make_private_dir(dir)?;
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
        let log = log.or_fail("open", log_path.display().to_string())?;
        let log_too = log.try_clone().or_fail("open", log_path.display().to_string())?;
        // setsid replaces itself by iceboxd, in a session that no terminal's hang-up reaches; the pid stays.
        Command::new("setsid")
            .arg(iceboxd)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .arg("--image-dir")
            .arg(places::image_dir())
            .arg("--listen")
            .arg(self.listen.to_string())
            .args(netns.iter().flat_map(|name| ["--netns", *name]))
            .env("ICEBOX_API_KEY", key)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .or_fail("start", iceboxd.display().to_string())
    }

    fn write_record(&self, child: &Child, network: &HostSide) -> Result<()> {
        let pid = i32::try_from(child.id()).unwrap_or(-1);
        // It is our child and not waited for, so it has an entry in /proc even if it has died.
        let start_time_ticks = start_time(pid).ok_or_else(|| {
            Error::new("read the start time of", "iceboxd", Cause::Unexpected("it has none in /proc".to_owned()))
        })?;
        let network = network.clone();
        let record = Record { pid, start_time_ticks, boot_id: boot_id()?, listen: self.listen, network };
        let text = serde_json::to_string(&record)
            .map_err(|error| Error::new("write", "up.json", Cause::Unexpected(error.to_string())))?;
        write_private(&self.record_path(), &text)
    }

    fn wait_healthy(&self, child: &mut Child) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while !healthz(self.listen) {
            if let Some(status) = child.try_wait().or_fail("wait for", "iceboxd")? {
                let output = format!("{}\n(log: {})", self.log_tail(), self.log_path().display());
                return Err(Error::new("start", "iceboxd", Cause::Program { status, output }));
            }
            if Instant::now() >= deadline {
                let late = Cause::Late { seconds: START_DEADLINE.as_secs() };
                return Err(Error::new("wait for", format!("http://{}/healthz", self.listen), late));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Ends the daemon. Boxes stay as they are. Returns whether there was one.
    pub(crate) fn stop(&self) -> Result<bool> {
        let Some(record) = self.running()? else { return Ok(false) };
        let wait = say::wait(format!("stopping iceboxd (pid {})", record.pid));
        for (signal, patience) in [(Signal::SIGTERM, STOP_DEADLINE), (Signal::SIGKILL, STOP_DEADLINE)] {
            if signal == Signal::SIGKILL {
                say::fact("it does not end by itself; killing it (nothing is lost by that)");
            }
            match kill(Pid::from_raw(record.pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(Error::new("stop", "iceboxd", Cause::Io(errno.into()))),
            }
            let deadline = Instant::now() + patience;
            while is_alive(&record) {
                if Instant::now() >= deadline {
                    break;
                }
                thread::sleep(POLL);
            }
            if !is_alive(&record) {
                let path = self.record_path();
                fs::remove_file(&path).or_fail("remove", path.display().to_string())?;
                wait.done("iceboxd has ended");
                return Ok(true);
            }
        }
        Err(Error::new("stop", "iceboxd", Cause::Late { seconds: 2 * STOP_DEADLINE.as_secs() }))
    }

    /// The account's key: from the environment, else the one used before, else a new one. Kept in the data directory,
    /// since the run directory is gone after a reboot and the database knows only its hash.
    fn key(&self) -> Result<String> {
        let kept = self.data_dir.join("key");
        if let Some(key) = run::read_if_there(&kept)? {
            return Ok(key.trim().to_owned());
        }
        let wished = std::env::var("ICEBOX_API_KEY").ok().filter(|key| !key.is_empty());
        let written_by_iceboxd = run::read_if_there(&self.run_dir.join("key"))?.map(|key| key.trim().to_owned());
        let key = match wished.or(written_by_iceboxd) {
            Some(key) => key,
            None if self.data_dir.join("icebox.db").exists() => {
                let advice = "this data directory has an account whose key is not kept here: set ICEBOX_API_KEY to it";
                return Err(Error::refused("find the key for", self.data_dir.display().to_string(), advice));
            }
            None => new_key()?,
        };
        make_private_dir(&self.data_dir)?;
        write_private(&kept, &format!("{key}\n"))?;
        Ok(key)
    }

    fn log_tail(&self) -> String {
        let read = || {
            let mut file = File::open(self.log_path())?;
            let length = file.metadata()?.len();
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
            let mut bytes = Vec::new();
            file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }
}

fn is_alive(record: &Record) -> bool {
    // A zombie (only our own child can be one) has ended.
    start_time(record.pid) == Some(record.start_time_ticks) && stat_field(record.pid, 0).as_deref() != Some("Z")
}

/// Whether the process runs the very file that is at `path` now.
fn runs_file(pid: i32, path: &Path) -> bool {
    // The link leads to the file it was started from even when another has its name by now.
    match (fs::metadata(format!("/proc/{pid}/exe")), fs::metadata(path)) {
        (Ok(running), Ok(built)) => (running.dev(), running.ino()) == (built.dev(), built.ino()),
        _ => false,
    }
}

/// Clock ticks between boot and the start of the process: with the pid it names a process for good.
fn start_time(pid: i32) -> Option<u64> {
    stat_field(pid, 19)?.parse().ok()
}

/// A field of `/proc/PID/stat` after the command's name, which may itself contain spaces and parentheses.
fn stat_field(pid: i32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(index).map(str::to_owned)
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).or_fail("read", path)?.trim().to_owned())
}

/// Reports that the address is in use, before a daemon's log has to.
fn check_port(listen: SocketAddr) -> Result<()> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let advice = "another program (or an iceboxd that `up` did not start) listens there: stop it, or choose \
                          another address with --listen";
            Err(Error::refused("listen on", listen.to_string(), advice))
        }
        Err(error) => Err(error).or_fail("listen on", listen.to_string()),
    }
}

/// Whether `GET /healthz` is answered with 200.
fn healthz(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, HTTP_TIMEOUT)?;
        stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
        stream
            .write_all(format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.take(HTTP_ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

fn new_key() -> Result<String> {
    let mut bytes = [0; KEY_BYTES];
    let path = "/dev/urandom";
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).or_fail("read", path)?;
    Ok(bytes.iter().fold("box_".to_owned(), |key, byte| key + &format!("{byte:02x}")))
}

fn make_private_dir(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).or_fail("make", dir.display().to_string())
}

/// Writes a file that only root reads, whole or not at all.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let temp = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temp, path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written.or_fail("write", path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let mut record = Record {
            pid,
            start_time_ticks: start_time(pid).unwrap(),
            boot_id: boot_id().unwrap(),
            listen: ([127, 0, 0, 1], 1).into(),
            network: HostSide::default(),
        };
        assert!(is_alive(&record));
        assert!(runs_file(pid, &std::env::current_exe().unwrap()));
        assert!(!runs_file(pid, Path::new("/bin/sh")));
        record.start_time_ticks += 1;
        assert!(!is_alive(&record));
    }

    #[test]
    fn a_taken_port_is_explained() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = check_port(taken.local_addr().unwrap()).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("--listen"));
        assert!(!healthz("127.0.0.1:1".parse().unwrap()));
    }

    #[test]
    fn keys_are_kept_and_never_invented_for_an_old_database() {
        let dir = std::env::temp_dir().join(format!("icebox-xtask-key-{}", std::process::id()));
        let settings =
            Settings { data_dir: dir.join("data"), run_dir: dir.join("run"), listen: ([127, 0, 0, 1], 1).into() };
        fs::create_dir_all(&settings.data_dir).unwrap();
        if std::env::var_os("ICEBOX_API_KEY").is_none() {
            fs::write(settings.data_dir.join("icebox.db"), b"").unwrap();
            assert!(settings.key().is_err());
            fs::remove_file(settings.data_dir.join("icebox.db")).unwrap();
        }
        let key = settings.key().unwrap();
        assert!(!key.is_empty());
        assert_eq!(settings.key().unwrap(), key);
        let kept = fs::metadata(settings.data_dir.join("key")).unwrap();
        assert_eq!(kept.mode() & 0o777, 0o600);
        fs::remove_dir_all(&dir).unwrap();
    }

    fn script(dir: &Path, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("iceboxd"), text).unwrap();
        fs::set_permissions(dir.join("iceboxd"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_daemon_that_ends_at_once_is_reported_with_its_own_words() {
        let dir = std::env::temp_dir().join(format!("icebox-xtask-dies-{}", std::process::id()));
        script(&dir, "#!/bin/sh\necho 'the disk is on fire' >&2\nexit 3\n");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let settings = Settings { data_dir: dir.join("data"), run_dir: dir.join("run"), listen: free };
        let error = settings.start(&dir, &HostSide::Own).unwrap_err();
        let text = std::error::Error::source(&error).unwrap().to_string();
        assert!(text.contains("on fire") && text.contains("exit status: 3"), "{text}");
        assert!(!settings.is_running().unwrap());
        assert!(!settings.stop().unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}
