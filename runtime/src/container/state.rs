//! A container that exists: its status, and the state that the OCI specification asks for.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::Serialize;

use super::{facts::Facts, store::Store};
use crate::{
    Result, Step,
    bundle::Bundle,
    cgroup::{Cgroup, Controller, Hierarchy},
    error::OnStep as _,
    identity,
};

/// The version of the runtime specification that state is reported in.
pub(crate) const OCI_VERSION: &str = "1.2.0";

/// The status of a container (OCI runtime, "State"), with `paused` as runc reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Set up, waiting for `start`.
    Created,
    /// The user's program runs.
    Running,
    /// All processes are frozen.
    Paused,
    /// The first process has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// The state document of the OCI specification, with runc's additions `rootfs`, `created` and `owner`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// The first process, 0 when it has ended.
    pub pid: i32,
    /// Its status.
    pub status: Status,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root directory.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339, UTC.
    pub created: String,
    /// Annotations of the configuration.
    pub annotations: BTreeMap<String, String>,
    /// Owner of the state directory; this runtime runs as root.
    pub owner: String,
}

/// A container that was found in the store.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) store: Store,
    pub(crate) facts: Facts,
}

impl Container {
    /// Finds a container by its name.
    pub(crate) fn open(store: &Store, id: &str) -> Result<Self> {
        Ok(Self { facts: store.load(id)?, store: store.clone() })
    }

    /// True while the first process exists (same pid, start time and boot id) and is not a zombie.
    pub(crate) fn alive(&self) -> bool {
        let facts = &self.facts;
        facts.pid > 0 && identity::alive(facts.pid, facts.start_time, &facts.boot_id)
    }

    pub(crate) fn status(&self) -> Status {
        if !self.alive() {
            return Status::Stopped;
        }
        if self.store.start_socket(&self.facts.id).exists() {
            return Status::Created;
        }
        match self.cgroup() {
            Ok(Some(cgroup)) if cgroup.events().is_ok_and(|events| events.frozen) => Status::Paused,
            _ => Status::Running,
        }
    }

    pub(crate) fn cgroup(&self) -> Result<Option<Cgroup>> {
        let Some(facts) = &self.facts.cgroup else { return Ok(None) };
        let subject = facts.path.as_str();
        let hierarchy = Hierarchy::probe().on(Step::Cgroup, subject)?;
        let controllers: Vec<Controller> =
            self.facts.controllers.iter().filter_map(|name| Controller::from_name(name)).collect();
        facts.manager.open(&hierarchy, &facts.path, &controllers).on(Step::Cgroup, subject)
    }

    /// The bundle with the configuration that the container was created with.
    pub(crate) fn bundle(&self) -> Result<Bundle> {
        let path = self.store.config(&self.facts.id);
        let bytes = fs::read(&path).on(Step::State, path.display())?;
        Bundle::parse(self.facts.bundle.clone(), bytes)
    }

    pub(crate) fn state(&self) -> State {
        let status = self.status();
        State {
            oci_version: OCI_VERSION.to_owned(),
            id: self.facts.id.clone(),
            pid: if status == Status::Stopped { 0 } else { self.facts.pid },
            status,
            bundle: self.facts.bundle.clone(),
            rootfs: self.facts.rootfs.clone(),
            created: rfc3339(self.facts.created),
            annotations: self.facts.annotations.clone(),
            owner: "root".to_owned(),
        }
    }
}

/// The state of one container.
///
/// # Errors
/// If there is no such container or its facts cannot be read.
pub fn state(store: &Store, id: &str) -> Result<State> {
    Ok(Container::open(store, id)?.state())
}

/// The states of all containers that can be read, and an error for each that cannot.
///
/// # Errors
/// If the store itself cannot be read.
pub fn list(store: &Store) -> Result<Vec<Result<State>>> {
    Ok(store.ids()?.iter().map(|id| state(store, id)).collect())
}

/// Seconds since 1970 as RFC 3339 in UTC.
fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_795_513_914), "2026-11-24T09:51:54Z");
    }
}
