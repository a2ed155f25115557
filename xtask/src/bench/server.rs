//! An `iceboxd` for the benchmarks: its own directories, a free port, gone with everything at the end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::context::{Context, failed, make_dir, shown};
use super::http::Client;
use super::netns::Netns;
use crate::error::{Cause, Error, Result, While};

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A directory that is a tmpfs, as /run is where an init system runs; in a container /run may be a directory of a disk.
struct RunDir(PathBuf);

impl RunDir {
    fn new(path: PathBuf) -> Result<Self> {
        make_dir(&path)?;
        let (kind, flags) = (Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
        let mounted = mount(kind, &path, kind, flags, None::<&str>);
        mounted.map_err(|e| Error::new("mount a tmpfs on", shown(&path), Cause::Io(e.into())))?;
        Ok(Self(path))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running `iceboxd`. Boxes that are left are deleted on drop.
pub(super) struct Server {
    child: Child,
    url: String,
    key: String,
    run_dir: RunDir,
    cgroup: String,
    /// Held as long as boxes are connected there.
    _netns: Netns,
}

impl Server {
    pub(super) fn start(context: &Context, name: &str) -> Result<Self> {
        Self::start_with(context, name, "")
    }

    /// The same with `config` as its TOML file.
    pub(super) fn start_with(context: &Context, name: &str, config: &str) -> Result<Self> {
        let home = context.scratch.join(name);
        let run_dir = RunDir::new(format!("/run/icebox-bench-{}-{name}", std::process::id()).into())?;
        let data_dir = home.join("data");
        make_dir(&data_dir)?;
        let log = home.join("iceboxd.log");
        let file = std::fs::File::create(&log).or_fail("create", shown(&log))?;
        let program = context.binary("iceboxd")?;
        let key = format!("box_bench_{}", std::process::id());
        let netns = Netns::new()?;
        let file_of_config = home.join("iceboxd.toml");
        std::fs::write(&file_of_config, config).or_fail("write", shown(&file_of_config))?;
        let mut command = Command::new(&program);
        command.arg("--config").arg(&file_of_config);
        command.arg("--data-dir").arg(&data_dir).arg("--run-dir").arg(&run_dir.0);
        command.arg("--image-dir").arg(&context.image_dir).args(["--listen", "127.0.0.1:0"]);
        command.arg("--netns").arg(netns.path());
        command.env("ICEBOX_API_KEY", &key).env("ICEBOX_LIBEXEC", &context.bin_dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().or_fail("start", shown(&program))?;
        let mut server = Self { child, url: String::new(), key, run_dir, cgroup: cgroup_of(&data_dir)?, _netns: netns };
        server.url = server.wait_ready(&log)?;
        Ok(server)
    }

    fn wait_ready(&mut self, log: &Path) -> Result<String> {
        let end = Instant::now() + START_DEADLINE;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                return Err(failed("start", "iceboxd", format!("{status}: {}", text.trim())));
            }
            if let Some(url) = self.facts() {
                let mut client = Client::new(&url, &self.key);
                if client.call("GET", "/v2/box", "").is_ok() {
                    return Ok(url);
                }
            }
            std::thread::park_timeout(POLL_INTERVAL);
        }
        Err(failed("start", "iceboxd", "it does not answer"))
    }

    fn facts(&self) -> Option<String> {
        let facts: Value = serde_json::from_slice(&std::fs::read(self.run_dir.0.join("iceboxd.json")).ok()?).ok()?;
        facts["url"].as_str().map(str::to_owned)
    }

    /// A client with a connection of its own.
    pub(super) fn client(&self) -> Client {
        Client::new(&self.url, &self.key)
    }

    /// Where its operator's socket is.
    pub(super) fn run_dir(&self) -> &Path {
        &self.run_dir.0
    }

    /// The name of the cgroup that holds all its boxes.
    pub(super) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Waits until as many boxes are ready as its configuration says.
    pub(super) fn wait_boxes_ready(&self, count: u64) -> Result<()> {
        let (mut client, end) = (self.client(), Instant::now() + START_DEADLINE);
        while Instant::now() < end {
            if client.call("GET", "/v1/info", "")?["ready"][0]["ready"] == count {
                return Ok(());
            }
            std::thread::park_timeout(POLL_INTERVAL);
        }
        Err(failed("wait for", "ready boxes", "there are too few"))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn delete_all(&self) -> Result<()> {
        let mut client = self.client();
        let boxes = client.call("GET", "/v2/box", "")?;
        let ids: Vec<&str> = boxes.as_array().into_iter().flatten().filter_map(|b| b["id"].as_str()).collect();
        if !ids.is_empty() {
            client.call("DELETE", "/v2/box", &json!({ "ids": ids }).to_string())?;
        }
        Ok(())
    }
}

/// As `iceboxd` names it: by the data directory, so that several can run side by side.
fn cgroup_of(data_dir: &Path) -> Result<String> {
    let path = data_dir.canonicalize().or_fail("find", shown(data_dir))?;
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("icebox.{hex}"))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.delete_all() {
            eprintln!("boxes may be left: {error}");
        }
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let end = Instant::now() + STOP_DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::park_timeout(POLL_INTERVAL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Creates a box and returns its id.
pub(super) fn create(client: &mut Client) -> Result<String> {
    let data = client.call("POST", "/v2/box", "{}")?;
    let id = data["id"].as_str().ok_or_else(|| failed("create", "a box", "the answer has no id"))?;
    Ok(id.to_owned())
}

/// Runs `true` in a box.
pub(super) fn exec_true(client: &mut Client, id: &str) -> Result<()> {
    let answer = client.call("POST", &format!("/v2/box/{id}/exec"), r#"{"command":["true"]}"#)?;
    if answer["exit_code"] == 0 { Ok(()) } else { Err(failed("exec", id, answer)) }
}

/// Freezes a box.
pub(super) fn pause(client: &mut Client, id: &str) -> Result<()> {
    client.call("POST", &format!("/v2/box/{id}/pause"), "").map(|_| ())
}

/// Wakes a box.
pub(super) fn resume(client: &mut Client, id: &str) -> Result<()> {
    client.call("POST", &format!("/v2/box/{id}/resume"), "").map(|_| ())
}

pub(super) fn delete(client: &mut Client, id: &str) -> Result<()> {
    client.call("DELETE", &format!("/v2/box/{id}"), "").map(|_| ())
}
