//! The records of undo points. A file of a point without a record is removed at the start of the daemon, so these writes are
//! waited for by none.

use rusqlite::{Row, params};

use super::{Commit, Db, from_sql, to_sql};
use crate::domain::UndoPoint;
use crate::error::Error;

const COLUMNS: &str = "box_id, id, command, taken_ms, size_bytes, inode, length, changed_s, changed_ns, signature";

fn read_point(row: &Row<'_>) -> rusqlite::Result<(String, UndoPoint)> {
    let point = UndoPoint {
        id: row.get(1)?,
        command: row.get(2)?,
        taken_ms: row.get(3)?,
        size_bytes: from_sql(row.get(4)?),
        inode: from_sql(row.get(5)?),
        length: from_sql(row.get(6)?),
        changed: (row.get(7)?, row.get(8)?),
        signature: row.get(9)?,
    };
    Ok((row.get(0)?, point))
}

impl Db {
    /// Records a finished point of a box.
    pub fn insert_undo_point(&self, box_id: &str, point: &UndoPoint) {
        let (box_id, point) = (box_id.to_owned(), point.clone());
        let insert = move |connection: &rusqlite::Connection| {
            let sql = format!(
                "INSERT INTO undo_points ({COLUMNS}) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 \
                 WHERE EXISTS (SELECT 1 FROM boxes WHERE id = ?1 AND state = 'ready')"
            );
            let values = params![
                box_id,
                point.id,
                point.command,
                point.taken_ms,
                to_sql(point.size_bytes),
                to_sql(point.inode),
                to_sql(point.length),
                point.changed.0,
                point.changed.1,
                point.signature
            ];
            connection.prepare_cached(&sql)?.execute(values).map(drop)
        };
        self.write_later("record an undo point", Commit::Soon, insert, drop);
    }

    /// Deletes the records of points.
    pub fn delete_undo_points(&self, ids: Vec<String>) {
        let delete = move |connection: &rusqlite::Connection| {
            let mut query = connection.prepare_cached("DELETE FROM undo_points WHERE id = ?1")?;
            ids.iter().try_for_each(|id| query.execute([id]).map(drop))
        };
        self.write_later("delete records of undo points", Commit::Soon, delete, drop);
    }

    /// All points with the ids of their boxes, the oldest first.
    pub async fn undo_points(&self) -> Result<Vec<(String, UndoPoint)>, Error> {
        self.read("read the undo points", |connection| {
            let sql = format!("SELECT {COLUMNS} FROM undo_points ORDER BY rowid");
            let mut query = connection.prepare_cached(&sql)?;
            let rows = query.query_map([], read_point)?;
            rows.collect()
        })
        .await
    }
}
