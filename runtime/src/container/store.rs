//! The state root: one directory per container, found by name.

use std::{
    fs,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use super::facts::Facts;
use crate::{Error, Kind, Result, Step, error::OnStep as _};

const ID_BYTES_MAX: usize = 255;

/// A state root directory, such as `/run/icerun`.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// A store at this path; the directory is made at the first create.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    pub(crate) fn config(&self, id: &str) -> PathBuf {
        self.dir(id).join("config.json")
    }

    pub(crate) fn start_socket(&self, id: &str) -> PathBuf {
        self.dir(id).join("start.sock")
    }

    fn facts(&self, id: &str) -> PathBuf {
        self.dir(id).join("state.json")
    }

    /// Claims a name: makes its directory, which must not exist.
    pub(crate) fn claim(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700).recursive(true).create(&self.root).on(Step::State, self.root.display())?;
        match fs::DirBuilder::new().mode(0o700).create(self.dir(id)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::of(Kind::Exists, Step::State, id, "a container of this name exists"))
            }
            other => other.on(Step::State, self.dir(id).display()),
        }
    }

    /// Takes a name's directory away with everything in it.
    pub(crate) fn forget(&self, id: &str) -> Result<()> {
        check_id(id)?;
        match fs::remove_dir_all(self.dir(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.on(Step::State, self.dir(id).display()),
        }
    }

    pub(crate) fn save(&self, facts: &Facts) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(facts).map_err(io::Error::from).on(Step::State, &facts.id)?;
        let path = self.facts(&facts.id);
        replace(&path, &bytes).on(Step::State, path.display())
    }

    /// The facts of a container.
    pub(crate) fn load(&self, id: &str) -> Result<Facts> {
        check_id(id)?;
        let path = self.facts(id);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::of(Kind::NotFound, Step::State, id, "no such container"));
            }
            other => other.on(Step::State, path.display())?,
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid(Step::State, path.display(), format!("unreadable: {error}")))
    }

    /// The directories of the store, also of containers whose create did not end.
    pub(crate) fn ids(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.on(Step::State, self.root.display())?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.on(Step::State, self.root.display())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if check_id(&name).is_ok() && entry.path().is_dir() {
                ids.push(name);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// One lock per container around every change of its life; released when the descriptor is closed.
    pub(crate) fn lock(&self, id: &str) -> Result<OwnedFd> {
        check_id(id)?;
        let dir = self.dir(id);
        let file = match fs::File::open(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::of(Kind::NotFound, Step::State, id, "no such container"));
            }
            other => other.on(Step::State, dir.display())?,
        };
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).on(Step::State, dir.display())?;
        Ok(file.into())
    }
}

/// A name may hold letters, digits and `_+-.`, as with runc; not `.` or `..`, so it can never be a path,
/// and it does not begin with `-`, so it can never be taken for an option.
pub(super) fn check_id(id: &str) -> Result<()> {
    let good = !id.is_empty()
        && id.len() <= ID_BYTES_MAX
        && id != "."
        && id != ".."
        && !id.starts_with('-')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-.".contains(&b));
    if good {
        return Ok(());
    }
    let cause = format!("not a container name: 1 to {ID_BYTES_MAX} of the characters a-z A-Z 0-9 _ + - .");
    Err(Error::invalid(Step::State, format!("{id:?}"), cause))
}

/// Replaces a file so that a reader sees either the old or the new bytes, even if the writer is killed. There is no
/// fsync: the state describes processes of this boot (the facts name it), and a power cut ends them.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::check_id;

    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(256);
        for id in ["", ".", "..", "../x", "a/b", "a\0b", "ä", "a b", "-a", long.as_str()] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        for id in ["a", "A.b_c-d+e", "...", "0"] {
            assert!(check_id(id).is_ok(), "{id:?}");
        }
    }
}
