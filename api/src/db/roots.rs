//! The cgroups below which boxes of this data directory have been made.
//!
//! The current one is recorded before any cgroup is made in it, so that the remains of a crash are found even if
//! another one is configured at the next start.

use super::Db;
use crate::error::Error;

impl Db {
    /// Adds a root; a known one is ignored.
    pub async fn add_cgroup_root(&self, path: &str) -> Result<(), Error> {
        let path = path.to_owned();
        self.write("record the cgroup of boxes", move |connection| {
            connection.execute("INSERT OR IGNORE INTO cgroup_roots VALUES (?1)", [path]).map(|_| ())
        })
        .await
    }

    /// Every root that may hold cgroups of boxes.
    pub async fn cgroup_roots(&self) -> Result<Vec<String>, Error> {
        self.read("read the cgroups of boxes", |connection| {
            let mut query = connection.prepare_cached("SELECT path FROM cgroup_roots ORDER BY path")?;
            let rows = query.query_map([], |row| row.get(0))?;
            rows.collect()
        })
        .await
    }

    /// Removes a root that is empty.
    pub async fn forget_cgroup_root(&self, path: &str) -> Result<(), Error> {
        let path = path.to_owned();
        self.write("forget a cgroup of boxes", move |connection| {
            connection.execute("DELETE FROM cgroup_roots WHERE path = ?1", [path]).map(|_| ())
        })
        .await
    }
}
