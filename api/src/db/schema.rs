//! The schema and its migrations, numbered by `PRAGMA user_version`.

use rusqlite::{Connection, TransactionBehavior};

use crate::error::{Cause, Error};

/// One step per version; a step that has been released is never changed.
const MIGRATIONS: [&str; 8] = [VERSION_1, VERSION_2, VERSION_3, VERSION_4, VERSION_5, VERSION_6, VERSION_7, VERSION_8];

const VERSION_1: &str = "
CREATE TABLE accounts (
  id           TEXT PRIMARY KEY,
  name         TEXT NOT NULL UNIQUE,
  key_sha256   BLOB NOT NULL UNIQUE,
  idle_seconds INTEGER,
  created_ms   INTEGER NOT NULL
) STRICT;

CREATE TABLE account_env (
  account_id TEXT NOT NULL REFERENCES accounts(id),
  name       TEXT NOT NULL,
  value      TEXT NOT NULL,
  PRIMARY KEY (account_id, name)
) STRICT, WITHOUT ROWID;

-- Ids and uid ranges that boxes in the making may use. What a crash leaves of them is removed at the next start.
CREATE TABLE reservations (
  box_id     TEXT PRIMARY KEY,
  uid_base   INTEGER NOT NULL UNIQUE,
  created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE boxes (
  id               TEXT PRIMARY KEY,
  account_id       TEXT NOT NULL REFERENCES accounts(id),
  name             TEXT,
  state            TEXT NOT NULL CHECK (state IN ('ready', 'deleting', 'deleted')),
  settings         TEXT NOT NULL,
  uid_base         INTEGER NOT NULL,
  pid              INTEGER,
  start_time_ticks INTEGER,
  boot_id          TEXT,
  cgroup_inode     INTEGER,
  created_ms       INTEGER NOT NULL,
  updated_ms       INTEGER NOT NULL,
  expires_ms       INTEGER,
  deleted_ms       INTEGER
) STRICT;
CREATE UNIQUE INDEX boxes_name ON boxes (account_id, name) WHERE name IS NOT NULL AND state = 'ready';
CREATE INDEX boxes_state ON boxes (state);

CREATE TABLE runs (
  box_id            TEXT NOT NULL REFERENCES boxes(id),
  number            INTEGER NOT NULL,
  id                TEXT NOT NULL,
  status            TEXT NOT NULL,
  prompt            TEXT NOT NULL,
  started_ms        INTEGER NOT NULL,
  ended_ms          INTEGER,
  exit_code         INTEGER,
  cpu_ns            INTEGER NOT NULL DEFAULT 0,
  memory_peak_bytes INTEGER,
  oom_kills         INTEGER NOT NULL DEFAULT 0,
  output            TEXT,
  error_message     TEXT,
  PRIMARY KEY (box_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE logs (
  id         INTEGER PRIMARY KEY,
  box_id     TEXT NOT NULL REFERENCES boxes(id),
  written_ms INTEGER NOT NULL,
  level      TEXT NOT NULL,
  source     TEXT NOT NULL,
  message    TEXT NOT NULL
) STRICT;
CREATE INDEX logs_box ON logs (box_id, id);

-- The ledger. Rows are inserted, never changed; only readings that no bill depends on are thinned out later.
CREATE TABLE samples (
  box_id        TEXT NOT NULL REFERENCES boxes(id),
  boot_id       TEXT NOT NULL,
  cgroup_inode  INTEGER NOT NULL,
  sequence      INTEGER NOT NULL,
  wall_ms       INTEGER NOT NULL,
  boottime_ms   INTEGER NOT NULL,
  cpu_usec      INTEGER NOT NULL,
  storage_bytes INTEGER,
  reason        TEXT NOT NULL,
  PRIMARY KEY (box_id, boot_id, cgroup_inode, sequence)
) STRICT, WITHOUT ROWID;

-- When a uid range was given back; ranges rest before they are used again.
CREATE TABLE uid_rest (
  uid_base INTEGER PRIMARY KEY,
  freed_ms INTEGER NOT NULL
) STRICT;
";

/// Boxes of version 1 were all made in the root without a parent: see `boxes::roots`.
const VERSION_2: &str = "
-- Cgroups below which boxes were made. All are looked at when the daemon starts.
CREATE TABLE cgroup_roots (
  path TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
";

/// The network of boxes.
const VERSION_3: &str = "
ALTER TABLE boxes ADD COLUMN address TEXT;
-- Ports of boxes that are reached from outside. Credentials are kept as their SHA-256.
CREATE TABLE public_urls (
  box_id          TEXT NOT NULL REFERENCES boxes(id),
  port            INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
  created_ms      INTEGER NOT NULL,
  token_sha256    BLOB,
  password_sha256 BLOB,
  PRIMARY KEY (box_id, port)
) STRICT, WITHOUT ROWID;

CREATE TABLE account_secrets (
  account_id TEXT NOT NULL REFERENCES accounts(id),
  kind       TEXT NOT NULL,
  sealed     BLOB NOT NULL,
  PRIMARY KEY (account_id, kind)
) STRICT, WITHOUT ROWID;
-- What must not be read in this file: sealed with a key that is kept elsewhere.
CREATE TABLE box_secrets (
  box_id TEXT NOT NULL REFERENCES boxes(id),
  kind   TEXT NOT NULL,
  sealed BLOB NOT NULL,
  PRIMARY KEY (box_id, kind)
) STRICT, WITHOUT ROWID;
";

/// The base image of each box. The daemon fills in the ones that are missing: see `boxes::images`.
const VERSION_4: &str = "
ALTER TABLE boxes ADD COLUMN image TEXT;
";

/// Snapshots. They outlive their boxes; the record of a deleted one stays for the bill.
const VERSION_5: &str = "
CREATE TABLE snapshots (
  id         TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts(id),
  box_id     TEXT NOT NULL,
  name       TEXT NOT NULL,
  kind       TEXT NOT NULL,
  status     TEXT NOT NULL CHECK (status IN ('creating', 'ready', 'error', 'deleted')),
  created_ms INTEGER NOT NULL,
  deleted_ms INTEGER,
  size_bytes INTEGER NOT NULL DEFAULT 0,
  image      TEXT,
  settings   TEXT NOT NULL,
  digest     TEXT,
  signature  BLOB,
  agent_key  BLOB,
  error      TEXT
) STRICT;
CREATE INDEX snapshots_account ON snapshots (account_id, status);
CREATE INDEX snapshots_box ON snapshots (box_id, status);
";

/// Volumes of files. They outlive boxes; the record of a deleted one stays for the bill. Byte-milliseconds exceed 64 bits:
/// they are written as text.
const VERSION_6: &str = "
CREATE TABLE volumes (
  id             TEXT PRIMARY KEY,
  account_id     TEXT NOT NULL REFERENCES accounts(id),
  name           TEXT NOT NULL,
  state          TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleted')),
  size_gib       INTEGER NOT NULL,
  created_ms     INTEGER NOT NULL,
  deleted_ms     INTEGER,
  stored_bytes   INTEGER NOT NULL DEFAULT 0,
  measured_ms    INTEGER NOT NULL,
  stored_byte_ms TEXT NOT NULL DEFAULT '0'
) STRICT;
CREATE UNIQUE INDEX volumes_name ON volumes (account_id, name) WHERE state <> 'deleted';
";

/// Disks of boxes before their last commands.
const VERSION_7: &str = "
CREATE TABLE undo_points (
  id         TEXT PRIMARY KEY,
  box_id     TEXT NOT NULL REFERENCES boxes(id),
  command    TEXT NOT NULL,
  taken_ms   INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL,
  inode      INTEGER NOT NULL,
  length     INTEGER NOT NULL,
  changed_s  INTEGER NOT NULL,
  changed_ns INTEGER NOT NULL,
  signature  BLOB NOT NULL
) STRICT;
CREATE INDEX undo_points_box ON undo_points (box_id);
";

/// Automatic snapshots.
const VERSION_8: &str = "
CREATE TABLE snapshot_schedules (
  box_id TEXT PRIMARY KEY REFERENCES boxes(id),
  hourly INTEGER NOT NULL,
  daily  INTEGER NOT NULL,
  weekly INTEGER NOT NULL,
  due_ms INTEGER NOT NULL,
  mark   TEXT,
  error  TEXT
) STRICT, WITHOUT ROWID;
";

/// Brings the schema up to date. A database of a newer version is refused.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let failed = |cause: rusqlite::Error| Error::new("bring the schema up to date", "", cause);
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    // The version is read again under the write lock: another process may be migrating too.
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let version: u32 = change.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if version > known {
        return Err(Error::new(
            "open the database",
            format!("of version {version}"),
            Cause::Invalid("it was written by a newer Icebox"),
        ));
    }
    for step in MIGRATIONS.iter().skip(version as usize) {
        change.execute_batch(step).map_err(failed)?;
    }
    if version < known {
        change.pragma_update(None, "user_version", known).map_err(failed)?;
    }
    change.commit().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrating_twice_is_harmless_and_a_newer_schema_is_refused() {
        let mut connection = Connection::open_in_memory().expect("a database in memory");
        migrate(&mut connection).expect("first");
        migrate(&mut connection).expect("second");
        connection.pragma_update(None, "user_version", 99).expect("pretend");
        let refused = migrate(&mut connection).expect_err("a newer schema");
        assert!(refused.chain().contains("newer Icebox"), "{}", refused.chain());
    }

    #[test]
    fn a_database_of_version_3_keeps_its_boxes_and_they_have_no_image_yet() {
        let mut connection = Connection::open_in_memory().expect("a database in memory");
        for step in MIGRATIONS.iter().take(3) {
            connection.execute_batch(step).expect("an old step");
        }
        connection.pragma_update(None, "user_version", 3).expect("version 3");
        let old = "INSERT INTO accounts VALUES ('a', 'default', x'00', NULL, 0); \
                   INSERT INTO boxes (id, account_id, state, settings, uid_base, created_ms, updated_ms) \
                   VALUES ('b', 'a', 'ready', '{\"size\":\"small\"}', 524288, 1, 2)";
        connection.execute_batch(old).expect("a box of then");
        migrate(&mut connection).expect("migrated");
        let image: Option<String> =
            connection.query_row("SELECT image FROM boxes WHERE id = 'b'", [], |row| row.get(0)).expect("the box");
        assert_eq!(image, None);
    }
}
