//! The mounts of a RUN, as layers between the image and the disk of its box.
//!
//! From the top: a frame with the directories on the way and the mount points, then for each mount the layers of its cache
//! and a layer that hides what the image has there. What the command changes is on the box's disk like all its changes;
//! afterwards the part below a mount point becomes a layer of the cache, and the rest one of the image.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use icebox_boxfile::{Kind, Mount, Node, Run, Seed, Tree, resolve, write_copy};
use icebox_rootfs::pack::{Form, pack_part, pack_without};
use rustix::fs::{XattrFlags, lsetxattr};

use super::cache::{Layer, told};
use super::caches::{Caches, Kept};
use super::layers::{Found, Layers, OPAQUE, in_layer};
use super::store::LayerStore;

/// A cache with this many layers becomes one layer.
const LAYERS_MAX: usize = 6;
const DIR_MODE: u32 = 0o755;

/// The mounts of a RUN.
#[derive(Debug, Clone, Default)]
pub(super) struct Mounted {
    /// The layers above the image, the topmost first.
    pub(super) lower: Vec<PathBuf>,
    /// Where the mounts are, relative to the root.
    points: Vec<Vec<u8>>,
    caches: Vec<CacheMount>,
}

impl Mounted {
    /// True if something is kept between builds.
    pub(super) fn has_caches(&self) -> bool {
        !self.caches.is_empty()
    }
}

/// A cache whose changes are kept.
#[derive(Debug, Clone)]
struct CacheMount {
    id: String,
    at: PathBuf,
    layers: Vec<Layer>,
}

/// What became of the caches of a command.
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// What the client is told.
    pub(super) notes: Vec<String>,
    /// Images of caches that have changed since.
    pub(super) replaced: Vec<String>,
}

/// What mounts are made with.
#[derive(Debug, Clone)]
pub(super) struct Mounts {
    pub(super) caches: Caches,
    pub(super) store: LayerStore,
}

impl Mounts {
    /// Makes the layers of the mounts of `run` in the new directory `dir`. `root` has the files of the image.
    pub(super) fn prepare(
        &self,
        run: &Run,
        root: &dyn Tree,
        seeds: &[Vec<Layer>],
        dir: &Path,
        saved: &mut Saved,
    ) -> Result<Mounted, String> {
        let mut mounted = Mounted::default();
        if run.mounts.is_empty() {
            return Ok(mounted);
        }
        let frame = dir.join("frame");
        let failed = |error: io::Error| format!("a mount cannot be made: {error}");
        make_dir(&frame, root.node(Path::new("/")).map_err(failed)?.as_ref()).map_err(failed)?;
        for (number, mount) in run.mounts.iter().enumerate() {
            let at = resolve(root, Path::new(mount.target()), true).map_err(failed)?;
            let hiding = dir.join(format!("hide-{number}"));
            make_way(&hiding, &at, root)?;
            lsetxattr(hiding.join(relative(&at)), OPAQUE, b"y", XattrFlags::empty())
                .map_err(|error| failed(error.into()))?;
            let mut layers = vec![hiding];
            let top = match mount {
                Mount::Tmpfs { .. } => directory(DIR_MODE, 0, 0),
                Mount::Cache { id, uid, gid, mode, read_only, from, .. } => {
                    let seed = from.as_ref().zip(seeds.get(number));
                    let cache = self.open(id, &at, seed, saved)?;
                    let mut dirs = self.dirs(&cache.layers)?;
                    let top = Layers::new(dirs.clone()).node(&at).map_err(failed)?;
                    dirs.append(&mut layers);
                    layers = dirs;
                    if !read_only {
                        mounted.caches.push(cache);
                    }
                    top.unwrap_or_else(|| directory(*mode, *uid, *gid))
                }
            };
            make_way(&frame, &at, root)?;
            set_owner(&frame.join(relative(&at)), &top).map_err(failed)?;
            // A later mount lies over an earlier one.
            layers.append(&mut mounted.lower);
            mounted.lower = layers;
            mounted.points.push(relative(&at).as_os_str().as_encoded_bytes().to_vec());
        }
        mounted.lower.insert(0, frame);
        Ok(mounted)
    }

    fn dirs(&self, layers: &[Layer]) -> Result<Vec<PathBuf>, String> {
        match self.store.image_of(layers)? {
            Some(image) => self.store.images.layer_dirs(&image).map_err(|error| told(&error)),
            None => Ok(Vec::new()),
        }
    }

    /// The layers of a cache with its files at `at`. A new one begins with its seed.
    fn open(
        &self,
        id: &str,
        at: &Path,
        seed: Option<(&Seed, &Vec<Layer>)>,
        saved: &mut Saved,
    ) -> Result<CacheMount, String> {
        let cache = |layers| CacheMount { id: id.to_owned(), at: at.to_owned(), layers };
        let (layers, from) = match (self.caches.get(id, &self.store.images)?, seed) {
            (Some((kept, image)), _) => {
                self.store.pin(&image.id)?;
                let layer = |diff_id: &String| Layer { diff_id: diff_id.clone(), image: image.id.clone() };
                let layers: Vec<Layer> = image.diff_ids.iter().map(layer).collect();
                if kept.target == at {
                    return Ok(cache(layers));
                }
                saved.replaced.push(kept.image);
                (layers, kept.target)
            }
            (None, Some((seed, layers))) => (layers.clone(), PathBuf::from(&seed.path)),
            (None, None) => return Ok(cache(Vec::new())),
        };
        Ok(cache(vec![self.copy(id, &layers, &from, at)?]))
    }

    /// Makes one layer of the directory `from` in `layers`, with its files at `at`, and notes it as what the cache is.
    fn copy(&self, id: &str, layers: &[Layer], from: &Path, at: &Path) -> Result<Layer, String> {
        let failed = |error: io::Error| format!("the cache '{id}' cannot be filled: {error}");
        let tree = Layers::new(self.dirs(layers)?);
        let from = resolve(&tree, from, true).map_err(failed)?;
        let top = tree.node(&from).map_err(failed)?.filter(|node| node.kind == Kind::Dir);
        let top =
            top.ok_or_else(|| format!("the cache '{id}' cannot be filled: {} is no directory", from.display()))?;
        let made =
            self.store.enter_for(&of_cache(id), &[], |output| write_copy(&tree, &from, at, top.clone(), output))?;
        self.caches.put(&Kept { id: id.to_owned(), image: made.image.clone(), target: at.to_owned() })?;
        Ok(made)
    }

    /// The layer of what the command has changed outside its mounts. `upper` is the upper directory of its overlay.
    pub(super) fn changes(&self, mounted: &Mounted, below: &[Layer], upper: &Path) -> Result<Layer, String> {
        let skip: Vec<&[u8]> = mounted.points.iter().map(Vec::as_slice).collect();
        self.store.enter(below, |output| pack_without(upper, Form::Overlay, &skip, output))
    }

    /// Keeps what the command has changed in its caches. A cache that cannot be kept is empty the next time.
    pub(super) fn save(&self, mounted: &Mounted, upper: &Path) -> Saved {
        let mut saved = Saved::default();
        for cache in &mounted.caches {
            if let Err(why) = self.save_one(cache, mounted, upper, &mut saved) {
                saved.notes.push(format!("the cache '{}' is empty the next time: {why}", cache.id));
                saved.replaced.extend(cache.layers.last().map(|layer| layer.image.clone()));
                saved.notes.extend(self.caches.forget(&cache.id).err());
            }
        }
        if mounted.caches.is_empty() {
            return saved;
        }
        match self.caches.bound(&self.store.images) {
            Ok(dropped) => {
                for one in dropped {
                    let (id, bytes, most) = (&one.kept.id, one.bytes, self.caches.bytes_max());
                    let why = format!("all caches together have at most {most} bytes ([build] cache_bytes)");
                    saved.notes.push(format!("the cache '{id}' of {bytes} bytes is dropped: {why}"));
                    saved.replaced.push(one.kept.image);
                }
            }
            Err(why) => saved.notes.push(why),
        }
        saved
    }

    fn save_one(&self, cache: &CacheMount, mounted: &Mounted, upper: &Path, saved: &mut Saved) -> Result<(), String> {
        let CacheMount { id, at, layers } = cache;
        match in_layer(upper, at).map_err(|error| error.to_string())? {
            // The command has changed nothing there.
            Found::Below => return Ok(()),
            Found::Here(_, facts) if facts.is_dir() => {}
            Found::Here(..) | Found::Hidden => return Err("the command has removed its directory".to_owned()),
        }
        let part = relative(at).as_os_str().as_encoded_bytes();
        let others = mounted.points.iter().map(Vec::as_slice).filter(|point| *point != part);
        let skip: Vec<&[u8]> = others.collect();
        let write = |output: &mut dyn io::Write| pack_part(upper, Form::Overlay, part, &skip, output);
        let made = self.store.enter_for(&of_cache(id), layers, write)?;
        saved.replaced.extend(layers.last().map(|layer| layer.image.clone()));
        let image = self.store.images.by_id(&made.image).map_err(|error| told(&error))?;
        // What lower layers have of files that were replaced counts, until there is one layer.
        let large = image.is_some_and(|image| image.size_bytes > self.caches.bytes_max());
        if layers.is_empty() || (layers.len() + 1 < LAYERS_MAX && !large) {
            return self.caches.put(&Kept { id: id.clone(), image: made.image, target: at.clone() });
        }
        saved.replaced.push(made.image.clone());
        let mut layers = layers.clone();
        layers.push(made);
        self.copy(id, &layers, at, at).map(drop)
    }
}

/// What the history of the image of a cache says. Two caches with the same files are two images.
fn of_cache(id: &str) -> String {
    format!("the cache '{id}' of builds")
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn directory(mode: u32, uid: u32, gid: u32) -> Node {
    Node { kind: Kind::Dir, mode, uid, gid, mtime: 0, xattrs: Vec::new() }
}

/// Makes a directory of a layer, with the owner and mode that the image gives it.
fn make_dir(path: &Path, like: Option<&Node>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    set_owner(path, like.unwrap_or(&directory(DIR_MODE, 0, 0)))
}

fn set_owner(path: &Path, like: &Node) -> io::Result<()> {
    chown(path, Some(like.uid), Some(like.gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(like.mode))
}

/// Makes the directory `at` and those on the way to it below `layer`, which is made too.
fn make_way(layer: &Path, at: &Path, root: &dyn Tree) -> Result<(), String> {
    let mut way: Vec<&Path> = at.ancestors().collect();
    way.reverse();
    for dir in way {
        let failed = |error: io::Error| format!("a mount cannot be made: {}: {error}", dir.display());
        let known = root.node(dir).map_err(failed)?;
        if known.as_ref().is_some_and(|node| node.kind != Kind::Dir) {
            return Err(format!(
                "{} cannot be a mount: {} is not a directory in the image",
                at.display(),
                dir.display()
            ));
        }
        let path = layer.join(relative(dir));
        // What a mount before has made stays as it is.
        if !path.exists() {
            make_dir(&path, known.as_ref()).map_err(failed)?;
        }
    }
    Ok(())
}
