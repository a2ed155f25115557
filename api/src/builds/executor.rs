//! What a build is made with: boxes for commands, and the store for layers.
//!
//! A build is a sequence of blocking work, so it runs on a thread of its own and enters the event loop for what is
//! asynchronous: the life of a box and its output.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use icebox_boxfile::{
    Base, Event, Executor, Fetched, ImageConfig, Inputs, Key, LayerSource, Network, Run, RunFailed, Tree, user,
};
use icebox_rootfs::images::{Image, Images};

use super::cache::{Cache, Layer, told};
use super::layers::Layers;
use super::mounts::{Mounted, Mounts, Saved};
use super::order::{Means, Order};
use super::record::{Record, Report};
use super::store::LayerStore;
use super::trust;
use super::urls::Urls;
use crate::boxes::{BoxRoot, Entry, NewBox, WorkKind};
use crate::domain::{BoxSettings, NetworkPolicy};
use crate::refusal::Refusal;
use crate::runs::{self, Command, StreamItem};

/// Names by which a Boxfile can begin with the base image of this Icebox.
const BASE_NAMES: [&str; 2] = ["icebox-base", "icebox/base"];
/// Bytes of the end of a command's output that its failure repeats.
const TAIL_BYTES_MAX: usize = 4096;
/// Directories and files of a box over which its own mounts lie. They are below the image, so that it need not have them.
const MOUNT_DIRS: [&str; 5] = ["proc", "dev", "sys", "run", "etc"];
const MOUNT_FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];
/// Life of a box beyond the time limit of its command.
const SPARE: Duration = Duration::from_secs(600);

/// The executor of one build.
pub(super) struct Work {
    pub(super) means: Means,
    pub(super) order: Order,
    pub(super) report: Report,
    pub(super) cache: Cache,
    /// A directory that goes with the build.
    pub(super) temp: tempfile::TempDir,
    pub(super) store: LayerStore,
    pub(super) mounts: Mounts,
    /// Images of caches that have changed since. They go when the build has ended.
    pub(super) replaced: Vec<String>,
    pub(super) urls: Urls,
    pub(super) boxes_made: usize,
    pub(super) step: usize,
    pub(super) step_began: Instant,
}

impl Work {
    fn images(&self) -> &Images {
        &self.store.images
    }

    /// The image of a name. A base image becomes one with a layer, once.
    fn find(&self, reference: &str) -> Result<Image, String> {
        let images = self.images();
        let found = if BASE_NAMES.contains(&reference) {
            let id = self.means.runtime.block_on(self.means.boxes.current_image()).map_err(|why| why.to_string())?;
            images.by_id(&id).map_err(|error| told(&error))?.ok_or("the base image is gone")?
        } else {
            images.find(reference).map_err(|error| told(&error))?
        };
        if !found.is_base() {
            return Ok(found);
        }
        let name = format!("localhost/icebox-base:{}", found.id).parse().map_err(|why| format!("{why}"))?;
        if let Ok(known) = images.find(&format!("localhost/icebox-base:{}", found.id)) {
            return Ok(known);
        }
        self.report.send(Record::Note(format!("the base image {} becomes a layer, once", found.id)));
        let dirs = images.layer_dirs(&found).map_err(|error| told(&error))?;
        let dir = dirs.first().ok_or("the base image has no files")?;
        let made = images.import_dir(dir, Some(&name), None).map_err(|error| told(&error))?;
        made.into_iter().next().ok_or_else(|| "the base image has no files".to_owned())
    }

    /// The lowest layer of a box: what its mounts and the command need, if the image has not got it.
    pub(super) fn lowest(&mut self, workdir: &str) -> io::Result<PathBuf> {
        self.boxes_made += 1;
        let root = self.temp.path().join(format!("lowest-{}", self.boxes_made));
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o755).create(path);
        make(&root)?;
        for dir in MOUNT_DIRS {
            make(&root.join(dir))?;
        }
        for file in MOUNT_FILES {
            File::create(root.join(file))?;
        }
        make(&root.join(workdir.trim_start_matches('/')))?;
        if self.order.host_proxy {
            trust::put_into(&root)?;
        }
        Ok(root)
    }

    fn user(&mut self, layers: &[Layer], text: &str) -> Result<String, String> {
        let root = self.tree(layers)?;
        user(root.as_ref(), text)
    }

    pub(super) fn new_box(&self, network: Network, lower: Vec<PathBuf>) -> NewBox {
        let policy = match network {
            Network::Default => self.order.network_policy.clone(),
            Network::None => NetworkPolicy::deny_all(),
        };
        let settings = BoxSettings {
            size: self.order.size,
            build: true,
            ephemeral: true,
            keep_alive: true,
            labels: vec!["build".to_owned()],
            network_policy: Some(policy),
            ..BoxSettings::default()
        };
        NewBox {
            account_id: self.order.account.id.clone(),
            name: None,
            settings,
            ttl_seconds: Some((self.order.step_limit + SPARE).as_secs()),
            account_idle: self.order.account.idle_seconds,
            headers: None,
            origin: None,
            root: Some(BoxRoot { name: format!("build-{}", uuid::Uuid::new_v4()), lower }),
            github_token: None,
            agent_api_key: None,
            volumes: Vec::new(),
        }
    }

    fn command(&self, run: &Run, user: String) -> Command {
        let mut argv = run.args.clone();
        let mut stdin = None;
        if let Some((_, script)) = &run.script {
            // Its interpreter reads it from standard input: nothing of it is left in the image.
            let line = script.lines().next().unwrap_or_default().trim_start_matches("#!").trim();
            let (program, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            argv = vec![program.to_owned()];
            if !argument.trim().is_empty() {
                argv.push(argument.trim().to_owned());
            }
            argv.push("/dev/stdin".to_owned());
            stdin = Some(Bytes::from(script.clone().into_bytes()));
        }
        Command {
            argv,
            cwd: run.workdir.clone(),
            user: Some(user),
            env: run.env.clone(),
            env_is_whole: true,
            stdin,
            timeout_ms: Some(u64::try_from(self.order.step_limit.as_millis()).unwrap_or(u64::MAX)),
            prompt: "a step of a build".to_owned(),
            ..Command::default()
        }
    }

    /// Runs the command in a box, which stays for the reading of its changes. `Err`: it failed, and what is to be said.
    fn in_box(&self, entry: &Arc<Entry>, command: &Command) -> Result<(), RunFailed> {
        let failed = |what: String| RunFailed { what, instead: None, output: String::new() };
        let refused = |why: Refusal| failed(format!("could not be run: {}", why.chain()));
        self.means.runtime.clone().block_on(async {
            let awake = self.means.lifecycle.ensure_awake(entry, WorkKind::Run).await.map_err(refused)?;
            // It ends with this function, before the box does.
            let proxy = match self.order.host_proxy {
                true => Some(self.means.boxes.forward(entry).await.map_err(refused)?),
                false => None,
            };
            let mut command = command.clone();
            if let Some(proxy) = &proxy {
                trust::add_env(&mut command.env, &proxy.url());
            }
            let mut stream = runs::stream(&self.means.runs, &awake, &command).await.map_err(refused)?;
            let mut tail: Vec<u8> = Vec::new();
            loop {
                let item = tokio::select! {
                    item = std::future::poll_fn(|context| stream.poll_next(context)) => item,
                    () = self.report.closed() => return Err(failed("was cancelled: the client has gone".to_owned())),
                };
                match item {
                    Some(StreamItem::Output(bytes)) => {
                        tail.extend_from_slice(&bytes);
                        let cut = tail.len().saturating_sub(TAIL_BYTES_MAX);
                        tail.drain(..cut);
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        self.report.send_waiting(Record::Output { number: self.step, text }).await;
                    }
                    Some(StreamItem::End(finished)) if finished.exit_code == 0 && !finished.timed_out => return Ok(()),
                    Some(StreamItem::End(finished)) => {
                        let what = if finished.timed_out {
                            format!("timed out after {} s", self.order.step_limit.as_secs())
                        } else if let Some(text) = finished.out_of_memory {
                            format!("was killed: {text}")
                        } else {
                            format!("ended with exit code {}", finished.exit_code)
                        };
                        let output = String::from_utf8_lossy(&tail).into_owned();
                        return Err(RunFailed { what, instead: None, output });
                    }
                    None => return Err(failed("was lost: its box has ended".to_owned())),
                }
            }
        })
    }
}

impl Inputs for Work {
    fn image(&mut self, reference: &str) -> Result<Base, String> {
        let image = self.find(reference)?;
        self.store.pin(&image.id)?;
        let config: ImageConfig =
            serde_json::from_str(&image.config).map_err(|error| format!("{reference}: {error}"))?;
        let own = icebox_boxfile::architecture();
        if !config.architecture.is_empty() && config.architecture != own {
            return Err(format!("the image {reference} is for {}; this machine is {own}", config.architecture));
        }
        Ok(Base { id: image.id, config })
    }

    fn fetch(&mut self, url: &str, checksum: Option<&str>) -> Result<Fetched, String> {
        self.look_at(url, checksum)
    }
}

impl Executor for Work {
    type Layer = Layer;

    fn cached(&mut self, key: Key) -> Result<Option<Layer>, String> {
        let found = self.cache.get(key, self.images())?;
        if let Some(layer) = &found {
            self.store.pin(&layer.image)?;
        }
        Ok(found)
    }

    fn keep(&mut self, key: Key, layer: &Layer) -> Result<(), String> {
        self.cache.put(key, layer)
    }

    fn image_layers(&mut self, id: &str) -> Result<Vec<Layer>, String> {
        let image = self.images().by_id(id).map_err(|error| told(&error))?;
        let image = image.ok_or_else(|| format!("the image {id} was removed during the build"))?;
        Ok(image.diff_ids.iter().map(|diff_id| Layer { diff_id: diff_id.clone(), image: id.to_owned() }).collect())
    }

    fn diff_id(&self, layer: &Layer) -> String {
        layer.diff_id.clone()
    }

    fn tree(&mut self, layers: &[Layer]) -> Result<Box<dyn Tree>, String> {
        let dirs = match self.store.image_of(layers)? {
            Some(image) => self.images().layer_dirs(&image).map_err(|error| told(&error))?,
            None => Vec::new(),
        };
        Ok(Box::new(Layers::new(dirs)))
    }

    fn run(&mut self, layers: &[Layer], run: &Run, seeds: &[Vec<Layer>]) -> Result<Layer, RunFailed> {
        let failed = |what: String| RunFailed { what, instead: None, output: String::new() };
        let image = self.store.image_of(layers).map_err(&failed)?.ok_or_else(|| RunFailed {
            what: "has no program to run: the image is empty".to_owned(),
            instead: Some("copy one into it first, or begin with another image".to_owned()),
            output: String::new(),
        })?;
        let user = self.user(layers, &run.user).map_err(|why| failed(format!("has no user: {why}")))?;
        let mounted = self.mounted(layers, run, seeds).map_err(|why| failed(format!("has no mounts: {why}")))?;
        let mut lower = mounted.lower.clone();
        lower.extend(self.images().layer_dirs(&image).map_err(|error| failed(told(&error)))?);
        lower.push(self.lowest(&run.workdir).map_err(|error| failed(told(&error)))?);
        let means = self.means.clone();
        let wanted = self.new_box(run.network, lower);
        let created = means.runtime.block_on(crate::boxes::to_the_end({
            let boxes = means.boxes.clone();
            async move { boxes.create(wanted).await }
        }));
        let entry = created.map_err(|why| failed(format!("got no box: {}", why.chain())))?;
        let command = self.command(run, user);
        let ran = self.in_box(&entry, &command);
        let done = self.after(&entry, layers, mounted, ran);
        means.runtime.block_on(means.boxes.end_build_box(&entry));
        done
    }

    fn pack(&mut self, below: &[Layer], archive: LayerSource<'_>) -> Result<Layer, String> {
        self.store.enter(below, |output| archive.write(output))
    }

    fn fetched(&mut self, fetched: &Fetched) -> io::Result<File> {
        self.file_of(fetched).map_err(io::Error::other)
    }

    fn spool(&mut self) -> io::Result<File> {
        tempfile::tempfile_in(self.temp.path())
    }

    fn event(&mut self, event: Event) -> Result<(), String> {
        let record = match event {
            Event::Begin { number, stage, of: (step, steps), text } => {
                (self.step, self.step_began) = (number, Instant::now());
                Record::Step { number, stage, step, steps, text }
            }
            Event::Cached(number) => Record::Cached { number },
            Event::Done(number) => {
                let ms = u64::try_from(self.step_began.elapsed().as_millis()).unwrap_or(u64::MAX);
                Record::Done { number, ms }
            }
        };
        if self.report.send(record) { Ok(()) } else { Err("the client has gone".to_owned()) }
    }
}

impl Work {
    /// The layers of the mounts of a command.
    fn mounted(&mut self, layers: &[Layer], run: &Run, seeds: &[Vec<Layer>]) -> Result<Mounted, String> {
        let root = self.tree(layers)?;
        let dir = self.temp.path().join(format!("mounts-{}", self.boxes_made));
        let mut saved = Saved::default();
        let mounted = self.mounts.prepare(run, root.as_ref(), seeds, &dir, &mut saved);
        self.tell_saved(saved);
        mounted
    }

    fn tell_saved(&mut self, saved: Saved) {
        for note in saved.notes {
            self.report.send(Record::Note(note));
        }
        self.replaced.extend(saved.replaced);
    }

    /// Keeps what a command has changed: the layer of the image if it succeeded, the caches in any case.
    fn after(
        &mut self,
        entry: &Arc<Entry>,
        below: &[Layer],
        mounted: Mounted,
        ran: Result<(), RunFailed>,
    ) -> Result<Layer, RunFailed> {
        let failed = |what: String| RunFailed { what, instead: None, output: String::new() };
        if let Err(why) = &ran
            && (!mounted.has_caches() || self.report.is_closed())
        {
            return Err(why.clone());
        }
        let (mounts, below, succeeded) = (self.mounts.clone(), below.to_vec(), ran.is_ok());
        let taken = self.means.boxes.take_apart(entry, move |upper| {
            let layer = if succeeded { mounts.changes(&mounted, &below, upper).map(Some) } else { Ok(None) };
            (layer, mounts.save(&mounted, upper))
        });
        match self.means.runtime.clone().block_on(taken) {
            Ok((layer, saved)) => {
                self.tell_saved(saved);
                ran?;
                let layer = layer.map_err(|why| failed(format!("made a layer that cannot be kept: {why}")))?;
                layer.ok_or_else(|| failed("made no layer".to_owned()))
            }
            Err(why) => {
                ran?;
                Err(failed(format!("made a layer that cannot be read: {}", why.chain())))
            }
        }
    }
}
