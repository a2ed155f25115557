//! The root cgroups of boxes.
//!
//! Owns: the root below which boxes are created now, and the earlier roots that may still hold some. An operator may
//! change `cgroup_parent` while boxes run: they stay in place, with their counters, until they are restarted.
//! Invariant: an id has a cgroup in one root at most, since every start and removal of a box clears all of them first.

use std::sync::{PoisonError, RwLock};

use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::db::Db;
use crate::error::Error;

/// The roots of one data directory.
#[derive(Debug)]
pub(super) struct Roots {
    current: String,
    earlier: RwLock<Vec<String>>,
}

impl Roots {
    pub(super) fn new(config: &Config) -> Self {
        let plain = plain_root(config);
        let current = config.cgroup_parent().map_or_else(|| plain.clone(), |parent| format!("{parent}/{plain}"));
        // Versions that recorded no roots used only this one.
        let earlier = if current == plain { Vec::new() } else { vec![plain] };
        Self { current, earlier: RwLock::new(earlier) }
    }

    /// Reads the earlier roots and records the current one.
    pub(super) async fn open(&self, db: &Db) -> Result<(), Error> {
        db.add_cgroup_root(&self.current).await?;
        let known = db.cgroup_roots().await?;
        let mut earlier = self.earlier.write().unwrap_or_else(PoisonError::into_inner);
        earlier.extend(known.into_iter().filter(|root| *root != self.current));
        earlier.sort_unstable();
        earlier.dedup();
        Ok(())
    }

    /// The root below which boxes are created now.
    pub(super) fn current(&self) -> &str {
        &self.current
    }

    /// The earlier roots that may still hold boxes.
    pub(super) fn earlier(&self) -> Vec<String> {
        self.earlier.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets an earlier root.
    pub(super) fn forget(&self, root: &str) {
        self.earlier.write().unwrap_or_else(PoisonError::into_inner).retain(|known| known != root);
    }
}

/// The root without a parent; it is named after the data directory, so that daemons can share a parent.
fn plain_root(config: &Config) -> String {
    let path = std::fs::canonicalize(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("icebox.{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_without_a_parent_is_always_known() {
        let plain = Roots::new(&Config::default());
        assert!(plain.earlier().is_empty());
        let config = Config { cgroup_parent: "/system.slice/icebox-boxes.service".into(), ..Config::default() };
        let below = Roots::new(&config);
        assert_eq!(below.current, format!("system.slice/icebox-boxes.service/{}", plain.current));
        assert_eq!(below.earlier(), [plain.current]);
    }
}
