//! The layer that turns an image into the root of a box: what the base image has of its own making, other images get in a
//! layer above theirs.
//!
//! It is computed from the image alone, so it is made once per image and version of this code. The image's own files stay as
//! they are; only account files are added to.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::facts::{self, Image};
use super::merged::{Merged, Seen};
use super::place::{self, ADAPTED, ID_PREFIX, Images};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::image::account::{GIT_CONFIG, HOME, HOSTNAME, HOSTS, USER, USER_HOME, USER_ID};
use crate::image::tree::{Owner, Tree};
use crate::oci::Platform;

/// Part of the layer's name: raise it when its making changes. Boxes of a running daemon keep the old one.
const VERSION: u32 = 1;
/// Where a box has its own file systems, and their modes in case that the image lacks the directory.
const MOUNT_POINTS: [(&str, u32); 6] =
    [("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("etc", 0o755), ("tmp", 0o1777)];

/// An image as boxes use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its layers, the topmost first.
    pub layers: Vec<PathBuf>,
    /// The variables of its configuration.
    pub env: Vec<(String, String)>,
    /// It has `/bin/bash`; else its shell is `/bin/sh`.
    pub has_bash: bool,
}

/// `adapted/<image>-<version>/facts.json`: written last.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    has_bash: bool,
}

impl Images {
    /// The layers of an image with the one that boxes need above them; it is made now if need be. A base image has
    /// everything already.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidInput`] if no box can run on this image; the text says what it lacks.
    pub fn root(&self, image: &Image) -> Result<Root> {
        let below = self.layer_dirs(image)?;
        if image.is_base() {
            return Ok(Root { layers: below, env: Vec::new(), has_bash: true });
        }
        let hex = image.id.strip_prefix(ID_PREFIX).unwrap_or(&image.id);
        let dir = self.dir.join(ADAPTED).join(format!("{hex}-{VERSION}"));
        let made = match facts::read_json(&dir.join("facts.json"))? {
            Some(known) => known,
            None => self.adapt(image, &below, &dir)?,
        };
        let layers = std::iter::once(dir.join("layer")).chain(below).collect();
        let about_the_user = |name: &str| matches!(name, "HOME" | "USER" | "LOGNAME" | "SHELL" | "PWD");
        let env = image.env()?.into_iter().filter(|(name, _)| !about_the_user(name)).collect();
        Ok(Root { layers, env, has_bash: made.has_bash })
    }

    fn adapt(&self, image: &Image, below: &[PathBuf], dir: &Path) -> Result<Facts> {
        let unfit = |why: String| Error::new(Step::AdaptImage, image.id.clone(), Cause::Refused(why));
        check_platform(image).map_err(unfit)?;
        let merged = Merged::new(below.to_vec());
        let parent = self.dir.join(ADAPTED);
        files::make_dirs(&parent, 0o755).at(Step::AdaptImage, &parent)?;
        let program = |path: &str| merged.is_program(path).at(Step::AdaptImage, Path::new(&image.id));
        if !program("bin/sh")? {
            let why = "it has no /bin/sh, and a box needs a shell; take an image with one (such as its -debug variant)";
            return Err(unfit(why.to_owned()));
        }
        let made = Facts { has_bash: program("bin/bash")? };
        let temp = self.temp("adapted")?;
        let layer = temp.path().join("layer");
        files::make_dirs(&layer, 0o755).at(Step::AdaptImage, &layer)?;
        let builder = Builder {
            merged: &merged,
            implied: self.implied(image)?,
            tree: Tree::open(&layer).at(Step::AdaptImage, &layer)?,
            made: BTreeSet::new(),
        };
        builder.fill(made.has_bash).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => unfit(error.to_string()),
            _ => Error::new(Step::AdaptImage, layer.display().to_string(), Cause::Io(error)),
        })?;
        let path = temp.path().join("facts.json");
        fs::write(&path, facts::json(&path, &made)?).at(Step::AdaptImage, &path)?;
        // A directory with a lock cannot be renamed to its final name: the lock would go with it. Its content can.
        let handle = File::open(temp.path()).at(Step::AdaptImage, temp.path())?;
        rustix::fs::syncfs(&handle).at(Step::AdaptImage, temp.path())?;
        let _lock = self.lock()?;
        if facts::read_json::<Facts>(&dir.join("facts.json"))?.is_some() {
            return Ok(made);
        }
        place::remove(dir).at(Step::AdaptImage, dir)?;
        files::make_dirs(dir, 0o755).at(Step::AdaptImage, dir)?;
        for name in ["layer", "facts.json"] {
            fs::rename(temp.path().join(name), dir.join(name)).at(Step::AdaptImage, dir)?;
        }
        for dir in [dir, &parent] {
            files::sync_dir(dir).at(Step::AdaptImage, dir)?;
        }
        Ok(made)
    }

    /// Directories that some layer of the image has without listing them.
    fn implied(&self, image: &Image) -> Result<Vec<(PathBuf, BTreeSet<String>)>> {
        let mut all = Vec::new();
        for diff_id in &image.diff_ids {
            if let Some(facts) = self.layer(diff_id)?.filter(|facts| !facts.implied.is_empty()) {
                all.push((self.layer_dir(diff_id).join("diff"), facts.implied.into_iter().collect()));
            }
        }
        Ok(all)
    }
}

fn check_platform(image: &Image) -> std::result::Result<(), String> {
    let configuration = image.configuration().map_err(|error| error.to_string())?;
    let Some(configuration) = configuration else { return Ok(()) };
    let (its, host) = (configuration.architecture(), Platform::host());
    if *its == host.arch && *configuration.os() == oci_spec::image::Os::Linux {
        return Ok(());
    }
    Err(format!("it is for {}/{its}, and this machine is {host}", configuration.os()))
}

struct Builder<'m> {
    merged: &'m Merged,
    /// Directories that layers have without listing them, by the layer.
    implied: Vec<(PathBuf, BTreeSet<String>)>,
    tree: Tree,
    /// Directories of the layer.
    made: BTreeSet<String>,
}

impl Builder<'_> {
    fn fill(mut self, has_bash: bool) -> std::io::Result<()> {
        self.copy_dir("")?;
        for (path, mode) in MOUNT_POINTS {
            self.dir(path, Owner::root(mode), false)?;
        }
        self.dir("workspace", Owner::root(0o755), false)?;
        self.dir(HOME, Owner { uid: USER_ID, gid: USER_ID, mode: 0o755 }, true)?;
        self.link(&format!("/{HOME}"), "work")?;
        self.dir("home", Owner::root(0o755), false)?;
        self.link(&format!("/{HOME}"), USER_HOME)?;
        let shell = if has_bash { "/bin/bash" } else { "/bin/sh" };
        self.accounts(shell)?;
        for (path, content) in
            [("etc/hostname", HOSTNAME), ("etc/hosts", HOSTS), ("etc/resolv.conf", ""), ("etc/machine-id", "")]
        {
            self.tree.write(path, content.as_bytes(), Owner::root(0o644))?;
        }
        if self.merged.look("etc/gitconfig", false)?.is_none() {
            self.tree.write("etc/gitconfig", GIT_CONFIG.as_bytes(), Owner::root(0o644))?;
        }
        self.attributes()
    }

    /// Adds the box's user to the account files. An entry of the same number stays, behind it: names go on working, and the
    /// number is the box's user.
    fn accounts(&self, shell: &str) -> std::io::Result<()> {
        let lines = [
            ("etc/passwd", format!("{USER}:x:{USER_ID}:{USER_ID}::/{HOME}:{shell}\n"), true),
            ("etc/group", format!("{USER}:x:{USER_ID}:\n"), true),
            ("etc/shadow", format!("{USER}:*:19000:0:99999:7:::\n"), false),
            ("etc/gshadow", format!("{USER}:*::\n"), false),
        ];
        for (path, line, always) in lines {
            let old = self.merged.read(path)?;
            let Some(old) = old.or_else(|| always.then(|| root_entry(path).to_vec())) else { continue };
            let owner = match self.merged.look(path, true)? {
                Some(seen) => Owner { uid: seen.facts.uid(), gid: seen.facts.gid(), mode: seen.facts.mode() & 0o7777 },
                None => Owner::root(0o644),
            };
            self.tree.write(path, &with_user(&old, line.as_bytes()), owner)?;
        }
        Ok(())
    }

    /// Gives directories that a layer does not list the attributes of those below, which overlayfs hides.
    fn attributes(&mut self) -> std::io::Result<()> {
        let paths: BTreeSet<String> = self.implied.iter().flat_map(|(_, paths)| paths.iter().cloned()).collect();
        for path in paths {
            let seen = self.merged.look(&path, false)?.filter(|seen| seen.facts.is_dir() && seen.path == path);
            let Some(seen) = seen else { continue };
            if self.listed(&seen).is_some_and(|listed| *listed != seen.at[0]) {
                self.parents(&path)?;
                self.copy_dir(&path)?;
            }
        }
        Ok(())
    }

    /// The topmost directory of these that its layer lists.
    fn listed<'s>(&self, seen: &'s Seen) -> Option<&'s PathBuf> {
        let is_implied = |at: &PathBuf| {
            self.implied.iter().any(|(diff, paths)| paths.contains(&seen.path) && *at == diff.join(&seen.path))
        };
        seen.at.iter().find(|at| !is_implied(at))
    }

    /// The directory `path`, and those above it. One that the image has keeps its attributes, unless `ours`.
    fn dir(&mut self, path: &str, owner: Owner, ours: bool) -> std::io::Result<()> {
        self.parents(path)?;
        match self.merged.look(path, false)? {
            Some(seen) if !seen.facts.is_dir() && !seen.facts.is_symlink() => {
                Err(std::io::Error::new(std::io::ErrorKind::InvalidData, format!("its /{path} is not a directory")))
            }
            // A link to a directory does as well.
            Some(seen) if seen.facts.is_symlink() && !ours => match self.merged.look(path, true)? {
                Some(target) if target.facts.is_dir() => Ok(()),
                _ => self.new_dir(path, owner),
            },
            Some(_) if !ours => self.copy_dir(path),
            _ => self.new_dir(path, owner),
        }
    }

    fn new_dir(&mut self, path: &str, owner: Owner) -> std::io::Result<()> {
        self.made.insert(path.to_owned());
        self.tree.make_dir(path, owner)
    }

    fn parents(&mut self, path: &str) -> std::io::Result<()> {
        if let Some((above, _)) = path.rsplit_once('/')
            && !self.made.contains(above)
        {
            self.parents(above)?;
            self.copy_dir(above)?;
        }
        Ok(())
    }

    /// A directory of the image, in our layer with the same attributes.
    fn copy_dir(&mut self, path: &str) -> std::io::Result<()> {
        if !self.made.insert(path.to_owned()) {
            return Ok(());
        }
        let owner = match self.merged.look(path, false)? {
            Some(seen) if seen.facts.is_dir() => match self.listed(&seen) {
                Some(listed) => owner_of(&fs::symlink_metadata(listed)?),
                None => owner_of(&seen.facts),
            },
            _ => Owner::root(0o755),
        };
        if path.is_empty() { self.tree.give_root(owner) } else { self.tree.make_dir(path, owner) }
    }

    /// A link, unless the image has something of this name. It goes where the image's own links lead.
    fn link(&mut self, target: &str, path: &str) -> std::io::Result<()> {
        if self.merged.look(path, false)?.is_some() {
            return Ok(());
        }
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let above = self.merged.look(above, true)?.map_or_else(|| above.to_owned(), |seen| seen.path);
        let path = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
        self.parents(&path)?;
        self.tree.link(target, &path)
    }
}

fn owner_of(facts: &fs::Metadata) -> Owner {
    Owner { uid: facts.uid(), gid: facts.gid(), mode: facts.mode() & 0o7777 }
}

/// What an account file without which no program finds its user has at least.
fn root_entry(path: &str) -> &'static [u8] {
    match path {
        "etc/passwd" => b"root:x:0:0:root:/root:/bin/sh\n",
        _ => b"root:x:0:\n",
    }
}

/// The account file with the line before all others but root's. An entry of the same name goes.
fn with_user(old: &[u8], line: &[u8]) -> Vec<u8> {
    let name = |line: &[u8]| line.split(|byte| *byte == b':').next().unwrap_or_default().to_vec();
    let kept: Vec<&[u8]> =
        old.split(|byte| *byte == b'\n').filter(|old| !old.is_empty() && name(old) != USER.as_bytes()).collect();
    let first = usize::from(kept.first().is_some_and(|first| name(first) == b"root"));
    let mut new = Vec::new();
    for (index, old) in kept.iter().enumerate() {
        if index == first {
            new.extend_from_slice(line);
        }
        new.extend_from_slice(old);
        new.push(b'\n');
    }
    if kept.len() <= first {
        new.extend_from_slice(line);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boxs_user_comes_before_its_namesakes() {
        let line = b"boxuser:x:1000:1000::/workspace/home:/bin/sh\n";
        let text = |old: &str| String::from_utf8(with_user(old.as_bytes(), line)).unwrap();
        let line = std::str::from_utf8(line).unwrap();
        assert_eq!(text(""), line);
        assert_eq!(text("root:x:0:0::/:/bin/sh"), format!("root:x:0:0::/:/bin/sh\n{line}"));
        assert_eq!(
            text("root:x:0:0::/:/bin/sh\nnode:x:1000:1000::/home/node:/bin/bash\nboxuser:x:5:5::/:/bin/sh\n"),
            format!("root:x:0:0::/:/bin/sh\n{line}node:x:1000:1000::/home/node:/bin/bash\n")
        );
        assert_eq!(text("daemon:x:1:1::/:/bin/sh\n"), format!("{line}daemon:x:1:1::/:/bin/sh\n"));
    }
}
