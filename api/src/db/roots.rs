//! The cgroups below which boxes of this data directory have been made.
//!
//! The current one is written down before anything is made in it, so that what a crash leaves in one of them is found
//! even if another one is configured at the next start.

use super::Db;
use crate::error::Error;

impl Db {
    /// Adds a root; one that is known makes no difference.
    pub async fn add_cgroup_root(&self, path: &str) -> Result<(), Error> {
        let path = path.to_owned();
        self.write("record the cgroup of boxes", move |connection| {
            connection.execute("INSERT OR IGNORE INTO cgroup_roots VALUES (?1)", [path]).map(|_| ())
        })
        .await
    }

    /// Every root that may hold something.
    pub async fn cgroup_roots(&self) -> Result<Vec<String>, Error> {
        self.read("read the cgroups of boxes", |connection| {
            let mut query = connection.prepare_cached("SELECT path FROM cgroup_roots ORDER BY path")?;
            let rows = query.query_map([], |row| row.get(0))?;
            rows.collect()
        })
        .await
    }

    /// Forgets a root in which nothing is left.
    pub async fn forget_cgroup_root(&self, path: &str) -> Result<(), Error> {
        let path = path.to_owned();
        self.write("forget a cgroup of boxes", move |connection| {
            connection.execute("DELETE FROM cgroup_roots WHERE path = ?1", [path]).map(|_| ())
        })
        .await
    }
}
