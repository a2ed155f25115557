//! Carrying out a plan: which step comes next, what is taken from the cache, what becomes of the configuration.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use crate::archive::{self, HEAD_BYTES, Spool};
use crate::changes::{Changes, Rules};
use crate::config::{History, ImageConfig};
use crate::error::{Error, Fault};
use crate::key::Key;
use crate::mounts::Mount;
use crate::owner::{self, Owner};
use crate::pattern::has_wildcards;
use crate::plan::{Action, Copy, Fetched, From, Origin, Plan, Run, Source, Stage, Step};
use crate::tarball::write_layer;
use crate::tree::{Kind, Node, Nothing, Tree, glob, resolve};

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFailed {
    /// In words that follow the name of the instruction, such as `ended with exit code 1`.
    pub what: String,
    /// What to do about it, if that is known.
    pub instead: Option<String>,
    /// The end of its output.
    pub output: String,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What is wrong, and where.
    pub error: Error,
    /// The end of the output of the command that failed.
    pub output: String,
}

/// How far a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A step begins.
    Begin {
        /// Its number in the build, from 1.
        number: usize,
        /// Its stage.
        stage: String,
        /// Its number in the stage, from 1, and the number of steps of the stage.
        of: (usize, usize),
        /// The instruction.
        text: String,
    },
    /// Its result was there.
    Cached(usize),
    /// It is done.
    Done(usize),
}

/// What a build is made with.
pub trait Executor {
    /// A layer in the store.
    type Layer: Clone;

    /// The layer that a step with this key made.
    ///
    /// # Errors
    /// The store cannot be read.
    fn cached(&mut self, key: Key) -> Result<Option<Self::Layer>, String>;

    /// Notes the layer that a step has made.
    ///
    /// # Errors
    /// The store cannot be written.
    fn keep(&mut self, key: Key, layer: &Self::Layer) -> Result<(), String>;

    /// The layers of an image, the lowest first.
    ///
    /// # Errors
    /// The image is not there.
    fn image_layers(&mut self, id: &str) -> Result<Vec<Self::Layer>, String>;

    /// The digest of the archive of a layer.
    fn diff_id(&self, layer: &Self::Layer) -> String;

    /// The files of layers on top of each other, the lowest first.
    ///
    /// # Errors
    /// A layer cannot be read.
    fn tree(&mut self, layers: &[Self::Layer]) -> Result<Box<dyn Tree>, String>;

    /// Runs a command on top of layers; gives the layer of what it has changed. `seeds` has, for each of its mounts, the layers of
    /// what a new cache begins with.
    ///
    /// # Errors
    /// It cannot be run, or fails.
    fn run(&mut self, layers: &[Self::Layer], run: &Run, seeds: &[Vec<Self::Layer>]) -> Result<Self::Layer, RunFailed>;

    /// Puts an archive into the store as the layer on top of others.
    ///
    /// # Errors
    /// The store cannot be written, or the archive cannot be read.
    fn pack(&mut self, below: &[Self::Layer], archive: LayerSource<'_>) -> Result<Self::Layer, String>;

    /// A file that the plan has fetched.
    ///
    /// # Errors
    /// It cannot be opened.
    fn fetched(&mut self, fetched: &Fetched) -> io::Result<File>;

    /// An empty file that goes away when it is closed.
    ///
    /// # Errors
    /// It cannot be made.
    fn spool(&mut self) -> io::Result<File>;

    /// Tells how far the build is.
    ///
    /// # Errors
    /// The build must end: the client has gone, or time is over.
    fn event(&mut self, event: Event) -> Result<(), String>;
}

/// The archive of a layer, which is written as it is asked for.
pub struct LayerSource<'a> {
    changes: &'a Changes<'a>,
    sources: &'a [&'a dyn Tree],
    spool: Option<&'a File>,
}

impl LayerSource<'_> {
    /// Writes the archive.
    ///
    /// # Errors
    /// A source cannot be read or `output` cannot be written.
    pub fn write(&self, output: &mut dyn Write) -> io::Result<()> {
        write_layer(self.changes, self.sources, self.spool, output)
    }
}

/// The result of a build.
#[derive(Debug, Clone)]
pub struct Built<L> {
    /// The configuration of the image, complete.
    pub config: ImageConfig,
    /// Its layers, the lowest first.
    pub layers: Vec<L>,
}

/// The time of a build.
#[derive(Debug, Clone, Copy)]
pub struct Time<'a> {
    /// Now, as RFC 3339 says.
    pub created: &'a str,
    /// Now, in seconds since 1970.
    pub seconds: i64,
}

/// Carries out a plan. `cache`: results of earlier builds may be taken.
///
/// # Errors
/// A step fails; the error names its line.
pub fn build<E: Executor>(
    plan: &Plan,
    context: &dyn Tree,
    executor: &mut E,
    time: Time<'_>,
    cache: bool,
) -> Result<Built<E::Layer>, Failed> {
    let mut build = Build { plan, context, executor, time, cache, number: 0, done: Vec::new() };
    for stage in &plan.stages {
        build.stage(stage)?;
    }
    let none = || failed(Fault::new("the plan has no stages").at(&plan.file, 0));
    build.done.pop().ok_or_else(none)
}

fn failed(error: Error) -> Failed {
    Failed { error, output: String::new() }
}

struct Build<'a, E: Executor> {
    plan: &'a Plan,
    context: &'a dyn Tree,
    executor: &'a mut E,
    time: Time<'a>,
    cache: bool,
    number: usize,
    /// The stages that are built, in the order of the plan.
    done: Vec<Built<E::Layer>>,
}

impl<E: Executor> Build<'_, E> {
    fn stage(&mut self, stage: &Stage) -> Result<(), Failed> {
        let at = |fault: Fault| failed(fault.at(&self.plan.file, stage.line));
        let mut built = Built { config: stage.config.clone(), layers: Vec::new() };
        match &stage.from {
            From::Scratch => {}
            From::Image(id) => built.layers = self.executor.image_layers(id).map_err(|why| at(why.into()))?,
            From::Stage(place) => {
                let below = &self.done[*place];
                built.layers.clone_from(&below.layers);
                built.config.rootfs = below.config.rootfs.clone();
                built.config.history.clone_from(&below.config.history);
            }
        }
        for (at, step) in stage.steps.iter().enumerate() {
            self.number += 1;
            let of = (at + 1, stage.steps.len());
            self.step(stage, step, of, &mut built).map_err(|mut failed| {
                if failed.error.line.is_none() {
                    failed.error.line = Some(step.line);
                }
                failed
            })?;
        }
        built.config.created = Some(self.time.created.to_owned());
        self.done.push(built);
        Ok(())
    }

    fn fault(&self, fault: impl Into<Fault>) -> Failed {
        let fault = fault.into();
        failed(Error { file: self.plan.file.clone(), line: None, what: fault.what, instead: fault.instead })
    }

    fn event(&mut self, event: Event) -> Result<(), Failed> {
        self.executor.event(event).map_err(|why| self.fault(why))
    }

    fn step(
        &mut self,
        stage: &Stage,
        step: &Step,
        of: (usize, usize),
        built: &mut Built<E::Layer>,
    ) -> Result<(), Failed> {
        let number = self.number;
        let layer = if matches!(step.action, Action::Config) {
            None
        } else {
            self.event(Event::Begin { number, stage: stage.name.clone(), of, text: step.text.clone() })?;
            let known = if self.cache { self.executor.cached(step.key) } else { Ok(None) };
            match known.map_err(|why| self.fault(why))? {
                Some(layer) => {
                    self.event(Event::Cached(number))?;
                    Some(layer)
                }
                None => {
                    let layer = self.make(step, built)?;
                    if let Some(layer) = &layer {
                        self.executor.keep(step.key, layer).map_err(|why| self.fault(why))?;
                    }
                    self.event(Event::Done(number))?;
                    layer
                }
            }
        };
        built.config.history.push(History {
            created: Some(self.time.created.to_owned()),
            created_by: Some(step.created_by.clone()),
            empty_layer: layer.is_none(),
            ..History::default()
        });
        if let Some(layer) = layer {
            built.config.rootfs.diff_ids.push(self.executor.diff_id(&layer));
            built.layers.push(layer);
        }
        Ok(())
    }

    fn make(&mut self, step: &Step, built: &Built<E::Layer>) -> Result<Option<E::Layer>, Failed> {
        match &step.action {
            Action::Config => Ok(None),
            Action::Run(run) => {
                let seeds = run.mounts.iter().map(|mount| self.seed(mount)).collect::<Result<Vec<_>, Failed>>()?;
                match self.executor.run(&built.layers, run, &seeds) {
                    Ok(layer) => Ok(Some(layer)),
                    Err(RunFailed { what, instead, output }) => {
                        let what = format!("'{}' {what}", step.text);
                        let error = Error { file: self.plan.file.clone(), line: Some(step.line), what, instead };
                        Err(Failed { error, output })
                    }
                }
            }
            Action::Workdir { path, user } => {
                let root = self.tree(&built.layers)?;
                let owner = if user.is_empty() { Ok(Owner::default()) } else { owner::find(root.as_ref(), user) };
                let owner = owner.map_err(|fault| self.fault(fault))?;
                let mut changes = Changes::new(root.as_ref(), self.time.seconds);
                changes.workdir(path, owner).map_err(|fault| self.fault(fault))?;
                self.pack(&built.layers, &changes, &[], None)
            }
            Action::Copy(copy) => self.copy(copy, built),
        }
    }

    fn tree(&mut self, layers: &[E::Layer]) -> Result<Box<dyn Tree>, Failed> {
        if layers.is_empty() {
            return Ok(Box::new(Nothing));
        }
        self.executor.tree(layers).map_err(|why| self.fault(why))
    }

    fn pack(
        &mut self,
        below: &[E::Layer],
        changes: &Changes<'_>,
        sources: &[&dyn Tree],
        spool: Option<&File>,
    ) -> Result<Option<E::Layer>, Failed> {
        if changes.is_empty() {
            return Ok(None);
        }
        let packed = self.executor.pack(below, LayerSource { changes, sources, spool });
        packed.map(Some).map_err(|why| self.fault(why))
    }

    /// The layers of what a new cache begins with.
    fn seed(&mut self, mount: &Mount) -> Result<Vec<E::Layer>, Failed> {
        match mount {
            Mount::Cache { from: Some(seed), .. } => self.layers_of(&seed.origin),
            Mount::Cache { from: None, .. } | Mount::Tmpfs { .. } => Ok(Vec::new()),
        }
    }

    /// The layers of a stage or an image.
    fn layers_of(&mut self, origin: &Origin) -> Result<Vec<E::Layer>, Failed> {
        match origin {
            Origin::Context => Ok(Vec::new()),
            Origin::Stage(place) => Ok(self.done[*place].layers.clone()),
            Origin::Image(id) => self.executor.image_layers(id).map_err(|why| self.fault(why)),
        }
    }

    fn copy(&mut self, copy: &Copy, built: &Built<E::Layer>) -> Result<Option<E::Layer>, Failed> {
        let root = self.tree(&built.layers)?;
        let from: Option<Box<dyn Tree>> = match &copy.origin {
            Origin::Context => None,
            origin => {
                let layers = self.layers_of(origin)?;
                Some(self.tree(&layers)?)
            }
        };
        // The number of a source is its place here; the origin is the first.
        let mut fetched = Vec::new();
        for source in &copy.sources {
            if let Source::Url(_, file) = source {
                let open = self.executor.fetched(file).map_err(|error| self.fault(error))?;
                fetched.push(OneFile { file: open, size: file.size, mtime: file.mtime });
            }
        }
        let mut sources: Vec<&dyn Tree> = vec![from.as_deref().unwrap_or(self.context)];
        sources.extend(fetched.iter().map(|file| file as &dyn Tree));
        let file = self.executor.spool().map_err(|error| self.fault(error))?;
        let mut spool = Spool { file, length: 0 };
        let mut changes = Changes::new(root.as_ref(), self.time.seconds);
        fill(&mut changes, copy, &sources, root.as_ref(), &mut spool).map_err(|fault| self.fault(fault))?;
        archive::flush(&mut spool).map_err(|error| self.fault(error))?;
        self.pack(&built.layers, &changes, &sources, Some(&spool.file))
    }
}

/// Enters what COPY or ADD copies. The first of `sources` is the origin, the others are the fetched files in their order.
fn fill(
    changes: &mut Changes<'_>,
    copy: &Copy,
    sources: &[&dyn Tree],
    root: &dyn Tree,
    spool: &mut Spool,
) -> Result<(), Fault> {
    let owner = copy.chown.as_deref().map(|text| owner::find(root, text)).transpose()?;
    let rules = Rules { owner, chmod: copy.chmod.clone(), exclude: copy.exclude.clone(), parents: copy.parents };
    several(changes, copy, sources[0])?;
    let mut url = 0;
    for source in &copy.sources {
        match source {
            Source::Inline(name, content) => {
                changes.add_bytes(&copy.dest, name, content.clone().into_bytes(), &rules)?;
            }
            Source::Url(name, fetched) => {
                url += 1;
                let tree = sources[url];
                if copy.unpack == Some(true) && unpack(changes, (tree, Path::new("/")), &copy.dest, &rules, spool)? {
                    continue;
                }
                let node = Node {
                    kind: Kind::File(fetched.size),
                    mode: 0o600,
                    uid: 0,
                    gid: 0,
                    mtime: fetched.mtime,
                    xattrs: Vec::new(),
                };
                changes.copy_file((url, Path::new("/")), node, &copy.dest, Path::new(name), &rules)?;
            }
            Source::Files(pattern) => {
                let tree = sources[0];
                let found = glob(tree, pattern)?;
                if !has_wildcards(pattern) && found.is_empty() {
                    return Err(crate::plan::missing(pattern, "the image or stage"));
                }
                if !copy.unpack.unwrap_or(copy.add) {
                    changes.copy((0, tree), pattern, &copy.dest, &rules)?;
                    continue;
                }
                for path in found {
                    if !unpack(changes, (tree, &path), &copy.dest, &rules, spool)? {
                        changes.copy_found((0, tree), &path, &copy.dest, &rules)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Several files need a directory.
fn several(changes: &Changes<'_>, copy: &Copy, tree: &dyn Tree) -> Result<(), Fault> {
    if copy.dest.ends_with('/') || copy.parents {
        return Ok(());
    }
    let mut found = BTreeSet::new();
    let mut files = 0;
    for source in &copy.sources {
        let Source::Files(pattern) = source else { continue };
        for path in glob(tree, pattern)? {
            let target = resolve(tree, &path, true)?;
            let is_dir = matches!(tree.node(&target)?, Some(Node { kind: Kind::Dir, .. }));
            files += usize::from(!is_dir && found.insert(path));
        }
    }
    let dest = changes.resolve(Path::new(&copy.dest), true)?;
    let is_dir = matches!(changes.node(&dest)?, Some(Node { kind: Kind::Dir, .. }));
    if files > 1 && !is_dir { Err(crate::plan::directory_needed(&copy.dest)) } else { Ok(()) }
}

/// Unpacks a file if it is an archive. `false`: it is none, and nothing is changed.
fn unpack(
    changes: &mut Changes<'_>,
    (tree, path): (&dyn Tree, &Path),
    dest: &str,
    rules: &Rules,
    spool: &mut Spool,
) -> Result<bool, Fault> {
    let path = resolve(tree, path, true)?;
    if !matches!(tree.node(&path)?, Some(Node { kind: Kind::File(_), .. })) {
        return Ok(false);
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    tree.open(&path)?.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    match archive::packing(&head) {
        None => Ok(false),
        Some(packing) => archive::unpack(changes, packing, tree.open(&path)?, dest, rules, spool),
    }
}

/// A fetched file as a tree: whatever the path, it is that file.
struct OneFile {
    file: File,
    size: u64,
    mtime: i64,
}

impl Tree for OneFile {
    fn node(&self, _: &Path) -> io::Result<Option<Node>> {
        let kind = Kind::File(self.size);
        Ok(Some(Node { kind, mode: 0o600, uid: 0, gid: 0, mtime: self.mtime, xattrs: Vec::new() }))
    }
    fn names(&self, _: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        Ok(Vec::new())
    }
    fn open(&self, _: &Path) -> io::Result<Box<dyn Read + '_>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Box::new(file))
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
