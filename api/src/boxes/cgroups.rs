//! The cgroups of boxes: their names, the root that holds each, and their removal.

use std::time::Duration;

use icebox_shim::ErrorKind;
use icebox_shim::handle::BoxHandle;

use super::{Boxes, KILL_DEADLINE};
use crate::error::Error;
use crate::refusal::Refusal;

/// Three quarters of `kernel.pid_max`.
fn pids_of_all_boxes() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?;
    text.trim().parse::<i64>().ok().map(|most| most / 4 * 3)
}

impl Boxes {
    /// The cgroup of a box that is started now.
    pub(super) fn cgroup(&self, id: &str) -> String {
        format!("{}/{id}", self.inner.roots.current())
    }

    /// A handle for a box that is started now.
    pub(super) fn open_handle(&self, id: &str, uid_base: u32) -> Result<BoxHandle, Error> {
        self.handle_in(self.inner.roots.current(), id, uid_base)
    }

    /// A handle for a box from an earlier run of the daemon, in the root where it was started.
    pub(crate) fn find_handle(&self, id: &str, uid_base: u32) -> Result<BoxHandle, Error> {
        for root in self.inner.roots.earlier() {
            let handle = self.handle_in(&root, id, uid_base)?;
            if handle.has_cgroup().map_err(|cause| Error::new("find the cgroup of", id, cause))? {
                return Ok(handle);
            }
        }
        self.open_handle(id, uid_base)
    }

    fn handle_in(&self, root: &str, id: &str, uid_base: u32) -> Result<BoxHandle, Error> {
        BoxHandle::open(&self.run_dir(id), &format!("{root}/{id}"), uid_base)
            .map_err(|cause| Error::new("open the box", id, cause))
    }

    /// Returns why no box can start below the configured cgroup, if that is so.
    pub(crate) fn check_cgroup_parent(&self) -> Result<(), Refusal> {
        let Some(parent) = self.inner.config.cgroup_parent() else { return Ok(()) };
        icebox_shim::handle::check_parent(parent).map_err(|cause| match cause.kind() {
            ErrorKind::NotFound => {
                let unit = parent.rsplit('/').next().unwrap_or(parent);
                Refusal::Unavailable(format!("the cgroup for boxes is not there: start the systemd unit {unit}"))
            }
            _ => Refusal::Failed(Error::new("use the cgroup parent", parent, cause)),
        })
    }

    /// Limits the processes and threads of all boxes together: a quarter of the kernel's pids stays for the host.
    /// Without the limit, boxes within their own limits use up `kernel.pid_max`, and the host cannot fork.
    pub(crate) async fn limit_processes(&self) {
        let Some(pids_max) = pids_of_all_boxes() else { return };
        let root = self.inner.roots.current().to_owned();
        let limited = match BoxHandle::open(&self.inner.config.run_dir, &root, 0) {
            Ok(handle) => tokio::task::spawn_blocking(move || handle.limit_pids(pids_max)).await,
            Err(error) => Ok(Err(error)),
        };
        match limited {
            Ok(Ok(())) => tracing::debug!(cgroup = root, pids_max, "limited the processes of all boxes"),
            Ok(Err(error)) => tracing::warn!(error = error.report(), "the processes of all boxes are not limited"),
            Err(_) => tracing::error!("limiting the processes of all boxes panicked"),
        }
    }

    /// Kills all processes of this id, in every root, and waits for their end.
    pub(super) async fn kill_everywhere(&self, id: &str, uid_base: u32) -> Result<(), Error> {
        for handle in self.every_handle(id, uid_base)? {
            match handle.kill(KILL_DEADLINE).await {
                Err(cause) if cause.kind() != ErrorKind::NotFound => {
                    return Err(Error::new("end the processes of", id, cause));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the cgroups of this id from every root. They must be empty. Blocks.
    pub(super) fn remove_cgroups(&self, id: &str, uid_base: u32) -> Result<(), Error> {
        for handle in self.every_handle(id, uid_base)? {
            handle.remove_cgroup(KILL_DEADLINE).map_err(|cause| Error::new("remove the cgroup of", id, cause))?;
        }
        Ok(())
    }

    fn every_handle(&self, id: &str, uid_base: u32) -> Result<Vec<BoxHandle>, Error> {
        let roots = &self.inner.roots;
        let all = roots.earlier().into_iter().chain([roots.current().to_owned()]);
        all.map(|root| self.handle_in(&root, id, uid_base)).collect()
    }

    /// Reads the earlier roots and records the current one.
    pub(crate) async fn open_roots(&self) -> Result<(), Error> {
        self.inner.roots.open(&self.inner.db).await
    }

    /// Removes earlier roots that hold no boxes.
    pub(crate) async fn forget_empty_roots(&self) {
        for root in self.inner.roots.earlier() {
            let inside = format!("{root}/");
            if self.all().iter().any(|entry| entry.handle().cgroup_path().starts_with(&inside)) {
                tracing::info!(cgroup = root, "boxes stay in the cgroup of before until they are started anew");
                continue;
            }
            if !self.remove_root(&root, Duration::ZERO).await {
                continue;
            }
            if let Err(error) = self.inner.db.forget_cgroup_root(&root).await {
                tracing::warn!(error = error.chain(), "a cgroup of before is remembered for nothing");
            }
            self.inner.roots.forget(&root);
        }
    }

    /// A daemon without boxes leaves no cgroup behind.
    pub(super) async fn remove_empty_root(&self) {
        if self.all().is_empty() {
            self.remove_root(self.inner.roots.current(), KILL_DEADLINE).await;
        }
    }

    async fn remove_root(&self, root: &str, deadline: Duration) -> bool {
        let Ok(handle) = BoxHandle::open(&self.inner.config.run_dir, root, 0) else { return false };
        match tokio::task::spawn_blocking(move || handle.remove_cgroup(deadline)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(error = error.report(), "a cgroup of this daemon stays");
                false
            }
            Err(_) => false,
        }
    }
}
