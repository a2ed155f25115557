//! Starting a box on its disk, for the first time or again.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use icebox_rootfs::{Attached, AttachedData, DATA_DIRECTORY, Volume};
use icebox_shim::handle::BoxHandle;
use icebox_shim::launch::{BoxSpec, Launched, ProcFile, VolumeMount};
use icebox_shim::procfiles::Size;

use super::build::BoxRoot;
use super::disks::stored_bytes;
use super::started::Started;
use super::{Boxes, Entry, LAUNCH_DEADLINE, PIDS_MAX, View, blocking};
use crate::domain::{BoxSize, Incarnation, VolumeUse};
use crate::error::{Cause, Error};
use crate::events::{Fact, StopCause};
use crate::refusal::Refusal;
use icebox_net::Rights;
use icebox_net::address::Pair;

/// Inputs of a start.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) id: String,
    pub(super) size: BoxSize,
    /// Id of its image.
    pub(super) image: String,
    /// Layers in place of those of the image.
    pub(super) root: Option<BoxRoot>,
    pub(super) uid_base: u32,
    /// Its addresses; none if it has no network.
    pub(super) pair: Option<Pair>,
    pub(super) rights: Rights,
    /// Volumes beside its disk.
    pub(super) volumes: Vec<VolumeUse>,
}

/// An attached disk, and an empty run directory beside it.
#[derive(Debug)]
pub(super) struct ReadyDisk {
    /// Held until the launcher has mounted the device; the box's mount keeps it from then on.
    attached: Attached,
    run_dir: PathBuf,
    began: Instant,
}

impl ReadyDisk {
    /// Attaches the disk and makes the run directory. This blocks.
    pub(super) fn make(volume: &Volume, run_dir: PathBuf) -> Result<Self, Error> {
        let began = Instant::now();
        let attached = volume.attach().map_err(|cause| Error::new("attach the disk", "", cause))?;
        make_run_dir(&run_dir)?;
        Ok(Self { attached, run_dir, began })
    }
}

/// Facts about this machine.
#[derive(Debug, Clone, Copy)]
struct Host {
    cores: u32,
    memory_bytes: u64,
}

static HOST: LazyLock<Host> = LazyLock::new(|| Host {
    cores: std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
    memory_bytes: std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(total_memory).unwrap_or(u64::MAX),
});

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

impl Boxes {
    /// Readies the disk of a box that has one for its start.
    pub(super) async fn ready_disk(&self, id: &str, volume: Volume) -> Result<ReadyDisk, Error> {
        let run_dir = self.run_dir(id);
        let made = tokio::task::spawn_blocking(move || ReadyDisk::make(&volume, run_dir)).await;
        made.unwrap_or_else(|_| Err(Error::new("attach the disk", id, Cause::WorkerEnded)))
    }

    /// Starts the box. The remains of a failure carry the box's id.
    pub(super) async fn start(&self, start: &Start, disk: ReadyDisk) -> Result<Started, Refusal> {
        let ReadyDisk { attached, run_dir, began } = disk;
        let lower = match &start.root {
            Some(root) => root.lower.clone(),
            None => {
                let root = self.inner.images.root(&start.image).await?;
                let lower = root.layers.clone();
                if let Some(entry) = self.with_id(&start.id) {
                    entry.set_root(root);
                }
                lower
            }
        };
        self.check_cgroup_parent()?;
        let (mut spec, mut warnings) = self.spec(start, run_dir, lower, attached.device.clone());
        spec.proc_files = self.proc_files(&spec)?;
        let volumes = self.attach_volumes(&start.volumes).await?;
        spec.volumes =
            start.volumes.iter().zip(&volumes).map(|(volume, attached)| mount_of(volume, attached)).collect();
        let launched = self
            .inner
            .launcher
            .launch(&spec, LAUNCH_DEADLINE)
            .await
            .map_err(|cause| Refusal::Failed(Error::new("start the box", &start.id, cause)))?;
        drop((attached, volumes));
        self.connect(&start.id, start.pair, launched.pid, start.rights.clone()).await?;
        let handle = self.open_handle(&start.id, start.uid_base)?;
        tracing::debug!(box_id = start.id, steps = ?launched.steps, "started");
        warnings.extend(launched.warnings.iter().cloned());
        let incarnation = incarnation(launched);
        self.watch_proc_files(&start.id, &handle, &incarnation);
        Ok(Started { incarnation, handle, warnings, took: began.elapsed() })
    }

    fn spec(&self, start: &Start, run_dir: PathBuf, lower: Vec<PathBuf>, device: PathBuf) -> (BoxSpec, Vec<String>) {
        let mut warnings = Vec::new();
        let (cores, memory_bytes) = (start.size.cores(), start.size.memory_bytes());
        if cores > HOST.cores {
            warnings.push(format!("this host has {} cores: the box gets these, not {cores}", HOST.cores));
        }
        if memory_bytes > HOST.memory_bytes {
            let gib = HOST.memory_bytes / (1 << 30);
            warnings.push(format!(
                "this host has {gib} GiB of memory: the box gets these, not {}",
                memory_bytes / (1 << 30)
            ));
        }
        let spec = BoxSpec {
            id: start.id.clone(),
            hostname: start.id.clone(),
            run_dir,
            cgroup: self.cgroup(&start.id),
            lower,
            volume_device: device,
            volumes: Vec::new(),
            uid_base: start.uid_base,
            nameserver: start.pair.map(Pair::host),
            cores: f64::from(cores.min(HOST.cores)),
            memory_bytes: memory_bytes.min(HOST.memory_bytes),
            pids_max: PIDS_MAX,
            proc_files: Vec::new(),
            limits: self.inner.config.limits.clone(),
            allow_unenforced_limits: self.inner.config.allow_unenforced_limits,
        };
        (spec, warnings)
    }

    /// The files of the `/proc` of a box that is started now.
    fn proc_files(&self, spec: &BoxSpec) -> Result<Vec<ProcFile>, Error> {
        let size =
            Size { cores: spec.cores, cpuset: spec.limits.cpuset_cpus.as_deref(), memory_bytes: spec.memory_bytes };
        self.inner.proc_files.files(size).map_err(|cause| Error::new("start the box", &spec.id, cause))
    }

    /// Keeps the files of the `/proc` of a running box up to date.
    pub(super) fn watch_proc_files(&self, id: &str, handle: &BoxHandle, init: &Incarnation) {
        let keeper = &self.inner.proc_files;
        if let Err(error) = handle.keep_proc_files(keeper, init.pid, init.start_time_ticks, &init.boot_id) {
            tracing::warn!(
                box_id = id,
                error = error.report(),
                "cannot watch files of its /proc: they are written at the start of a command"
            );
        }
    }

    /// The image of a box. A record from before boxes had an image gets the current one, for life.
    pub(super) async fn image_of(&self, entry: &Entry) -> Result<String, Refusal> {
        if let Some(image) = entry.view().image {
            return Ok(image);
        }
        self.give_images().await?;
        entry
            .view()
            .image
            .ok_or_else(|| Refusal::Failed(Error::new("find the image of", &entry.id, Cause::Invalid("it has none"))))
    }

    /// Gives the current image to all boxes whose records are from before boxes had one: on disk first, then in memory.
    pub(crate) async fn give_images(&self) -> Result<(), Refusal> {
        let without: Vec<Arc<Entry>> = self.all().into_iter().filter(|entry| entry.view().image.is_none()).collect();
        if without.is_empty() {
            return Ok(());
        }
        let image = self.inner.images.current().await?;
        self.inner.db.set_missing_images(&image).await?;
        for entry in without {
            entry.change_view(|view| view.image = view.image.take().or_else(|| Some(image.clone())));
        }
        Ok(())
    }

    /// The disk of a box; an error if it is missing.
    pub(super) async fn volume(&self, id: &str) -> Result<Volume, Refusal> {
        let (store, volume_id) = (Arc::clone(&self.inner.store), id.to_owned());
        blocking("find the disk", move || store.volume(&volume_id))
            .await?
            .ok_or_else(|| Refusal::Failed(Error::new("find the disk of", id, Cause::Invalid("it is missing"))))
    }

    /// Bytes that the disk of a box occupies, with its undo points; `None` if they cannot be read now.
    pub(crate) async fn storage_bytes(&self, id: &str) -> Option<u64> {
        let points = self.entry(id).map_or(0, |entry| entry.points.bytes());
        let (store, volume_id) = (Arc::clone(&self.inner.store), id.to_owned());
        let read = tokio::task::spawn_blocking(move || stored_bytes(&store, &volume_id, points)).await;
        read.unwrap_or_else(|_| Err(Error::new("measure the disk", id, Cause::WorkerEnded)))
            .inspect_err(|error| tracing::warn!(box_id = id, error = error.chain(), "cannot measure a disk"))
            .ok()
            .flatten()
    }

    /// Waits for the end of the box's PID 1 in the background and does the work that follows it.
    pub(crate) fn watch_death(&self, entry: &Arc<Entry>) {
        let (boxes, entry) = (self.clone(), Arc::clone(entry));
        tokio::spawn(async move {
            let view = entry.view();
            let Some(init) = view.incarnation else { return };
            view.handle.wait_dead(init.pid, init.start_time_ticks, &init.boot_id).await;
            boxes.died(&entry, &init).await;
        });
    }

    /// Handles the end of a PID 1 without a deletion: last reading, removal of the cgroup, log entry.
    async fn died(&self, entry: &Arc<Entry>, init: &Incarnation) {
        let _life = entry.lock_life().await;
        let view = entry.view();
        if view.phase != super::Phase::Ready || view.incarnation.as_ref() != Some(init) {
            return;
        }
        tracing::warn!(box_id = entry.id, "the init of a box has ended");
        self.clean_up_dead(entry, StopCause::InitKilled).await;
    }

    /// Takes the last reading of a box without processes and removes its cgroup. Needs the lifecycle lock.
    /// `cause`: the reason if it had processes until now.
    pub(crate) async fn clean_up_dead(&self, entry: &Arc<Entry>, cause: StopCause) {
        entry.set_sleep_timer(None);
        self.disconnect(&entry.id).await;
        let View { handle, uid_base, incarnation, .. } = entry.view();
        if incarnation.is_some() {
            self.publish(entry, Fact::Stopped { cause });
        }
        if let Err(error) = self.kill_everywhere(&entry.id, uid_base).await {
            tracing::error!(box_id = entry.id, error = error.chain(), "cannot end the processes of a box");
        }
        let storage = self.storage_bytes(&entry.id).await;
        let sample = entry.meter.read(&entry.id, &handle, storage, super::Write::Always, "exit");
        if incarnation.is_some() {
            self.publish_metered(entry, storage, "exit");
        }
        // The reading must be on disk before the counter goes away.
        if let Some(sample) = sample
            && let Err(error) = self.inner.db.write_essential("append to the ledger", move |c| sample.insert(c)).await
        {
            tracing::error!(box_id = entry.id, error = error.chain(), "the last reading of a box is lost");
        }
        let (boxes, id) = (self.clone(), entry.id.clone());
        let removed = tokio::task::spawn_blocking(move || boxes.remove_cgroups(&id, uid_base)).await;
        if let Ok(Err(error)) = removed {
            tracing::error!(box_id = entry.id, error = error.chain(), "a box without processes keeps its cgroup");
        }
        entry.change_view(|view| view.incarnation = None);
    }
}

/// Bytes that a disk occupies; `None` if they cannot be read now.
pub(super) fn storage_of(volume: &Volume, id: &str) -> Option<u64> {
    let read = volume.allocated_bytes().map_err(|cause| Error::new("measure the disk", "", cause));
    read.inspect_err(|error| tracing::warn!(box_id = id, error = error.chain(), "cannot measure a disk")).ok()
}

/// Creates an empty run directory. No process of a box can reach it, so removing it by path is safe.
fn make_run_dir(path: &Path) -> Result<(), Error> {
    let failed = |cause: std::io::Error| Error::new("make the run directory", path.display().to_string(), cause);
    let make = |recursive| std::fs::DirBuilder::new().recursive(recursive).mode(0o700).create(path);
    match make(false) {
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {
            remove_run_dir(path)?;
            make(false)
        }
        // With the first box its parent is made too.
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => make(true),
        made => made,
    }
    .map_err(failed)
}

/// Removes a run directory; a missing one is fine.
pub(super) fn remove_run_dir(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::new("remove the run directory", path.display().to_string(), cause))
        }
        _ => Ok(()),
    }
}

fn mount_of(volume: &VolumeUse, attached: &AttachedData) -> VolumeMount {
    VolumeMount {
        device: attached.device().to_owned(),
        directory: DATA_DIRECTORY.to_owned(),
        target: PathBuf::from(&volume.path),
        readonly: volume.read_only,
    }
}

fn incarnation(launched: Launched) -> Incarnation {
    Incarnation {
        pid: launched.pid,
        start_time_ticks: launched.start_time_ticks,
        boot_id: launched.boot_id,
        cgroup_inode: launched.cgroup_inode,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(total_memory("MemFree: 1 kB\nMemTotal:       2 kB\n"), Some(2048));
        assert_eq!(total_memory("nothing"), None);
    }
}
