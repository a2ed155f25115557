//! `delete`: the cgroup, then the state directory. Mounts and namespaces went with the last process.

use std::time::Duration;

use super::{
    state::{Container, Status},
    store::Store,
};
use crate::{Error, Kind, Result, Step, error::OnStep as _};

pub(super) const CGROUP_REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// Removes a stopped container, or with `force` any.
///
/// # Errors
/// If there is no such container (not an error with `force`), or it is not stopped and `force` was not given.
pub fn delete(store: &Store, id: &str, force: bool) -> Result<()> {
    let _lock = match store.lock(id) {
        Err(error) if force && error.kind == Kind::NotFound => return Ok(()),
        other => other?,
    };
    match Container::open(store, id) {
        Ok(container) => {
            let status = container.status();
            if status != Status::Stopped && !force {
                let cause = format!("the container is {status}; stop it first, or delete with --force");
                return Err(Error::of(Kind::WrongState, Step::Delete, id, cause));
            }
        }
        // A directory without facts is a create that did not end; it is all there is to remove.
        Err(error) if error.kind == Kind::NotFound => {}
        Err(error) if !force => return Err(error),
        Err(_) => {}
    }
    tear_down(store, id)
}

/// Kills the processes that are left, removes the cgroup in all hierarchies and the state directory.
pub(super) fn tear_down(store: &Store, id: &str) -> Result<()> {
    if let Ok(container) = Container::open(store, id)
        && let Some(cgroup) = container.cgroup()?
    {
        cgroup.kill().on(Step::Delete, cgroup.path().as_str())?;
        let path = cgroup.path().as_str().to_owned();
        cgroup.remove(CGROUP_REMOVE_DEADLINE).on(Step::Delete, path)?;
    }
    store.forget(id)
}
