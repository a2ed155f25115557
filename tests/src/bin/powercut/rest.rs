//! A disk at rest, as a power cut has left it: mounted and compared with what was acknowledged, without an `iceboxd`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use icebox_rootfs::images::Images;
use rusqlite::{Connection, OptionalExtension};

use crate::model::{BoxFacts, Deletion, Known, Text};
use crate::replay::Mounted;
use crate::{HOME, images, scenario};

/// What a look has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) facts: usize,
    pub(crate) wrong: Vec<String>,
}

impl Found {
    /// A fact that must hold. Says whether it does.
    fn fact(&mut self, holds: bool, otherwise: impl FnOnce() -> String) -> bool {
        self.facts += 1;
        if !holds {
            self.wrong.push(otherwise());
        }
        holds
    }

    fn mount(&mut self, what: &str, kind: &str, options: &str, file: &Path, at: &Path) -> Option<Mounted> {
        self.facts += 1;
        let mounted = Mounted::new(kind, options, file, at);
        mounted.map_err(|why| self.wrong.push(format!("{what} cannot be mounted: {why}"))).ok()
    }

    /// A file system that is not mounted, by its own checker.
    fn check(&mut self, what: &str, checker: &[&str], file: &Path) {
        let [program, options @ ..] = checker else { return };
        let checked = Command::new(program).args(options).arg(file).output().expect("run a checker");
        self.fact(checked.status.success(), || {
            let said = [checked.stdout.as_slice(), &checked.stderr].concat();
            format!("{program} finds {what} damaged ({}): {}", checked.status, String::from_utf8_lossy(&said).trim())
        });
    }
}

/// Looks at the disk in this file, which is changed by it. Mounts are made in `scratch`.
pub(crate) fn look(disk: &Path, scratch: &Path, known: &Known) -> Found {
    let mut found = Found::default();
    if let Some(mounted) = found.mount("the disk", "ext4", "loop", disk, &scratch.join("disk")) {
        let home = mounted.root().join(HOME);
        let data = home.join("data");
        let pool = data.join("pool.xfs");
        let has_pool = pool.exists();
        found.fact(has_pool || known.pool_gib == 0, || "the pool is gone".to_owned());
        if has_pool && let Some(mounted) = found.mount("the pool", "xfs", "loop", &pool, &scratch.join("pool")) {
            pool_has_grown(&pool, mounted.root(), known, &mut found);
            records(&data, mounted.root(), scratch, known, &mut found);
        }
        if has_pool {
            found.check("the pool", &["xfs_repair", "-n"], &pool);
        }
        images_of(&home.join("images"), known, &mut found);
    }
    found.check("the disk", &["e2fsck", "-fn"], disk);
    found
}

fn pool_has_grown(file: &Path, root: &Path, known: &Known, found: &mut Found) {
    let length = fs::metadata(file).map_or(0, |metadata| metadata.len());
    let blocks = rustix::fs::statvfs(root).expect("statvfs");
    // The log and the heads of its parts are no blocks for files.
    let least = (known.pool_gib << 30) / 100 * 95;
    let total = blocks.f_blocks * blocks.f_frsize;
    found.fact(length >= known.pool_gib << 30 && total >= least, || {
        format!("the pool had grown to {} GiB; its file has {length} bytes, and it has {total}", known.pool_gib)
    });
}

/// The database, and the disks and snapshots that it knows of.
fn records(data: &Path, pool: &Path, scratch: &Path, known: &Known, found: &mut Found) {
    let path = data.join("icebox.db");
    if !path.exists() {
        found.fact(known.boxes.is_empty(), || "the database is gone".to_owned());
        return;
    }
    let database = Connection::open(&path).expect("open the database");
    let verdict = database.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    if !found.fact(verdict == Ok("ok".to_owned()), || format!("the database is damaged: {verdict:?}")) {
        return;
    }
    let state_of = |table: &str, column: &str, id: &str| -> Option<String> {
        let query = format!("SELECT {column} FROM {table} WHERE id = ?1");
        // Before anything was acknowledged, there may be no table yet.
        database.query_row(&query, [id], |row| row.get(0)).optional().unwrap_or_default()
    };
    for (id, facts) in &known.boxes {
        let state = state_of("boxes", "state", id);
        let expected: &[Option<&str>] = match facts.deletion {
            Deletion::No => &[Some("ready")],
            Deletion::Begun => &[Some("ready"), Some("deleting"), Some("deleted")],
            // The next start of iceboxd finishes it.
            Deletion::Done => &[Some("deleting"), Some("deleted")],
        };
        found.fact(expected.contains(&state.as_deref()), || {
            format!("box {id} ({}) must be {expected:?} and is {state:?}", facts.name)
        });
        let volume = pool.join("volumes").join(format!("{id}.img"));
        if facts.deletion == Deletion::No {
            volume_of_box(id, facts, &volume, scratch, found);
        }
    }
    for (id, facts) in &known.snapshots {
        let status = state_of("snapshots", "status", id);
        let expected: &[Option<&str>] = match facts.deletion {
            Deletion::No => &[Some("ready")],
            Deletion::Begun => &[Some("ready"), Some("deleted"), None],
            Deletion::Done => &[Some("deleted"), None],
        };
        found.fact(expected.contains(&status.as_deref()), || {
            format!("snapshot {id} must be {expected:?} and is {status:?}")
        });
        if facts.deletion == Deletion::No {
            let what = format!("snapshot {id}");
            let file = pool.join("snapshots").join(format!("{id}.img"));
            if let Some(mounted) = found.mount(&what, "ext4", "loop", &file, &scratch.join("box")) {
                log(&what, facts.record, mounted.root(), found);
            }
            found.check(&what, &["e2fsck", "-fn"], &file);
        }
    }
}

fn volume_of_box(id: &str, facts: &BoxFacts, volume: &Path, scratch: &Path, found: &mut Found) {
    let what = format!("the disk of box {id} ({})", facts.name);
    if let Some(mounted) = found.mount(&what, "ext4", "loop", volume, &scratch.join("box")) {
        log(&what, facts.record, mounted.root(), found);
        for (path, allowed) in &facts.files {
            let holds = fs::read_to_string(in_volume(mounted.root(), path)).ok();
            found.fact(allowed.iter().any(|text| text.as_ref().map(Text::whole) == holds), || {
                let holds = holds.as_ref().map(|text| (text.len(), text.chars().take(40).collect::<String>()));
                format!("{what}: {path} holds {holds:?}, but must hold one of {allowed:?}")
            });
        }
    }
    if volume.exists() {
        found.check(&what, &["e2fsck", "-fn"], volume);
    }
}

/// A path of a box on its disk, which is the upper layer of an overlay.
fn in_volume(root: &Path, path: &str) -> PathBuf {
    root.join("upper").join(path.trim_start_matches('/'))
}

/// The lines up to the last one that was told.
fn log(what: &str, last: Option<u64>, root: &Path, found: &mut Found) {
    let Some(last) = last else { return };
    let holds = fs::read(in_volume(root, scenario::LOG)).unwrap_or_default();
    found.fact(holds.starts_with(scenario::lines_until(last).as_bytes()), || {
        format!("{what}: line {last} was acknowledged, the log is {:?}", String::from_utf8_lossy(&holds))
    });
}

/// The images.
fn images_of(store: &Path, known: &Known, found: &mut Found) {
    if known.images.is_empty() || !store.exists() {
        found.fact(known.images.values().all(|facts| facts.present != Some(true)), || "no image is left".to_owned());
        return;
    }
    let store = Images::open(store).expect("open the images");
    for (name, facts) in &known.images {
        let image = store.find(name).ok();
        found.fact(facts.present.is_none_or(|present| present == image.is_some()), || {
            format!("image {name} must be there: {:?}, and is: {}", facts.present, image.is_some())
        });
        if let Some(image) = image {
            let layer = store.layer_dirs(&image).ok().and_then(|layers| layers.into_iter().next());
            let holds = layer.and_then(|layer| fs::read_to_string(layer.join(images::FILE)).ok());
            found.fact(holds == Some(facts.text.whole()), || format!("image {name} has not its content"));
        }
    }
}
