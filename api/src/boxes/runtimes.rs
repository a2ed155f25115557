//! Runtimes: what the name that a client asks for means here, and whether its image is there.
//!
//! A name means, in this order: what `[runtimes]` of the configuration says, the image that was built from the Boxfile of this
//! version, the base image for what that has of its own, and an image of this host.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use icebox_boxfile::BOXFILE_BYTES_MAX;
use icebox_rootfs::ErrorKind;
use icebox_rootfs::images::{Image, Images as Store};

use super::Boxes;
use super::images::{Images, reason, told};
use super::tasks::blocking;
use crate::config::{self, OnCreate};
use crate::domain::runtimes::{self, LABEL, Recipe, Runtime};
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// What a runtime is made from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// An image, by its name.
    Image(&'a str),
    /// A Boxfile of this version.
    Own(&'static Runtime),
    /// A Boxfile of the operator.
    Boxfile(&'a Path),
}

/// A runtime of this host, for those who list them.
#[derive(Debug, Clone)]
pub struct KnownRuntime {
    /// Its name.
    pub name: String,
    /// The name of its image.
    pub image_name: String,
    /// Its image, if it is here.
    pub image: Option<Image>,
    /// The Boxfile that it is built from; none for an image that the operator has named.
    pub recipe: Option<Recipe>,
    /// The path of the operator's Boxfile.
    pub path: Option<std::path::PathBuf>,
    /// The Boxfile cannot be read: why.
    pub error: Option<String>,
    /// A box that asks for it now gets the base image.
    pub in_base: bool,
    /// A box that asks for it now has it built.
    pub on_create: bool,
}

impl KnownRuntime {
    /// The image is of another Boxfile, or stands on another base image, than a build now would take.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        match (&self.image, &self.recipe) {
            (Some(image), Some(recipe)) => recipe_of(image).as_deref() != Some(recipe.digest().as_str()),
            _ => false,
        }
    }
}

/// The digest of the recipe that an image was built by.
fn recipe_of(image: &Image) -> Option<String> {
    let read: serde_json::Value = serde_json::from_str(&image.config).ok()?;
    read["config"]["Labels"][LABEL].as_str().map(str::to_owned)
}

impl Images {
    /// What a runtime is made from.
    pub(super) fn source<'a>(&'a self, runtime: &'a str) -> Source<'a> {
        match self.runtimes.get(runtime) {
            Some(config::Runtime::Image(image)) => Source::Image(image),
            Some(config::Runtime::Boxfile(place)) => Source::Boxfile(&place.boxfile),
            None => runtimes::find(runtime).map_or(Source::Image(runtime), Source::Own),
        }
    }

    /// The id of the image for a new box with this runtime. Nothing is built here.
    pub(super) async fn choose(&self, runtime: Option<&str>) -> Result<String, Refusal> {
        let Some(runtime) = runtime else { return self.current().await };
        let source = self.source(runtime);
        if let Source::Image(image) = source {
            let (dir, wanted) = (self.dir.clone(), image.to_owned());
            let found = blocking("find the image", move || Store::open(&dir)?.find(&wanted)).await;
            let configured = self.runtimes.contains_key(runtime).then_some(image);
            return found.map(|image| image.id).map_err(|error| unknown(error, runtime, configured));
        }
        match (self.built(runtime).await?, source) {
            (Some(image), _) => Ok(image.id),
            (None, Source::Own(own)) if runtimes::is_in_base(own.name) => self.current().await,
            (None, _) => Err(Refusal::Invalid(format!(
                "the runtime '{runtime}' is not built on this host; the operator builds it with \
                 `icebox image build --runtime {runtime}`"
            ))),
        }
    }

    /// The image that was built of a runtime with a Boxfile.
    pub(super) async fn built(&self, runtime: &str) -> Result<Option<Image>, Refusal> {
        self.look_up(runtimes::image_name(runtime)).await
    }

    async fn look_up(&self, name: String) -> Result<Option<Image>, Refusal> {
        let dir = self.dir.clone();
        let found = blocking("find the image of the runtime", move || match Store::open(&dir)?.find(&name) {
            Ok(image) => Ok(Some(image)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        });
        found.await.map_err(told)
    }

    /// How a runtime is built; none for one that is an image.
    async fn recipe(&self, runtime: &str) -> Result<Option<Recipe>, Refusal> {
        let (text, megabytes) = match self.source(runtime) {
            Source::Image(_) => return Ok(None),
            Source::Own(own) => (own.boxfile.to_owned(), Some((own.fetched_mb, own.stored_mb))),
            Source::Boxfile(path) => (read_boxfile(runtime, path).await?, None),
        };
        Ok(Some(Recipe { name: runtime.to_owned(), text, base: self.current().await?, megabytes }))
    }
}

/// The refusal of a runtime that is no image here.
fn unknown(error: Error, runtime: &str, configured: Option<&str>) -> Refusal {
    let Cause::Rootfs(cause) = error.cause() else { return error.into() };
    let shown: String = runtime.chars().take(200).collect();
    match (cause.kind(), configured) {
        (ErrorKind::NotFound, None) if runtimes::is_alpine(runtime) => Refusal::Invalid(format!(
            "the runtime '{shown}' is not available here: Icebox builds its runtimes on Debian. For one on Alpine the operator \
             gets an image with `icebox image import ARCHIVE --name {shown}`, and boxes find it by this name; or `{shown} = \
             \"IMAGE\"` in [runtimes] of the configuration names one that is here"
        )),
        (ErrorKind::NotFound, None) => Refusal::Invalid(format!(
            "the runtime '{shown}' is not available here: it is neither in [runtimes] of the configuration nor an image of \
             this host; the operator can get one with `icebox image pull {shown}` (node and python are \
             always there)"
        )),
        (ErrorKind::NotFound, Some(image)) => Refusal::Invalid(format!(
            "the image '{image}' of the runtime '{shown}' is not on this host; the operator can get it with \
             `icebox image pull {image}`"
        )),
        (ErrorKind::InvalidInput, _) => {
            Refusal::Invalid(format!("the runtime '{shown}' is no name of an image: {}", reason(cause)))
        }
        _ => error.into(),
    }
}

/// The text of an operator's Boxfile.
async fn read_boxfile(runtime: &str, path: &Path) -> Result<String, Refusal> {
    let path = path.to_owned();
    let shown = path.display().to_string();
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        // One byte more than is allowed: the reader of the Boxfile says that it is too long.
        File::open(path)?.take(BOXFILE_BYTES_MAX as u64 + 1).read_to_string(&mut text).map(|_| text)
    });
    match read.await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(cause)) => {
            tracing::error!(runtime, path = shown, %cause, "the Boxfile of a runtime cannot be read");
            Err(Refusal::Unavailable(format!("the Boxfile of the runtime '{runtime}' cannot be read here: {cause}")))
        }
        Err(_) => Err(Error::new("read the Boxfile of", runtime, Cause::WorkerEnded).into()),
    }
}

impl Boxes {
    /// How a runtime is built; none for one that is an image.
    pub(crate) async fn recipe(&self, runtime: &str) -> Result<Option<Recipe>, Refusal> {
        self.inner.images.recipe(runtime).await
    }

    /// The recipe of a runtime that must be built before a box can have it; none if a box can be created.
    pub(crate) async fn runtime_to_build(&self, runtime: &str) -> Result<Option<Recipe>, Refusal> {
        let images = &self.inner.images;
        if !self.is_built_on_create(runtime) || images.built(runtime).await?.is_some() {
            return Ok(None);
        }
        images.recipe(runtime).await
    }

    /// True if the creation of a box has a runtime built when its image is missing.
    fn is_built_on_create(&self, runtime: &str) -> bool {
        match (self.inner.config.build.on_create, self.inner.images.source(runtime)) {
            (OnCreate::Off, _) | (_, Source::Image(_)) => false,
            (OnCreate::Needed, Source::Own(own)) => !runtimes::is_in_base(own.name),
            _ => true,
        }
    }

    /// The names of the runtimes that this version or the operator has.
    #[must_use]
    pub fn runtime_names(&self) -> Vec<String> {
        let own = runtimes::RUNTIMES.iter().map(|own| own.name.to_owned());
        let mut names: Vec<String> = own.chain(self.inner.images.runtimes.keys().cloned()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// A runtime of [`Boxes::runtime_names`].
    pub(crate) async fn known_runtime(&self, name: String) -> Result<KnownRuntime, Refusal> {
        let images = &self.inner.images;
        let source = images.source(&name);
        let (image_name, path) = match source {
            Source::Image(image) => (image.to_owned(), None),
            Source::Own(_) => (runtimes::image_name(&name), None),
            Source::Boxfile(path) => (runtimes::image_name(&name), Some(path.to_owned())),
        };
        let image = images.look_up(image_name.clone()).await?;
        let (recipe, error) = match images.recipe(&name).await {
            Ok(recipe) => (recipe, None),
            Err(Refusal::Unavailable(why)) => (None, Some(why)),
            Err(other) => return Err(other),
        };
        let on_create = image.is_none() && self.is_built_on_create(&name);
        let in_base =
            image.is_none() && !on_create && matches!(source, Source::Own(own) if runtimes::is_in_base(own.name));
        Ok(KnownRuntime { image_name, image, recipe, path, error, in_base, on_create, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_another_recipe_is_outdated() {
        let recipe = Recipe { name: "x".into(), text: "FROM y".into(), base: "z".into(), megabytes: None };
        let image = |label: &str| Image {
            id: String::new(),
            config: serde_json::json!({"config": {"Labels": {LABEL: label}}}).to_string(),
            diff_ids: Vec::new(),
            blobs: Vec::new(),
            stored_unix: 0,
            size_bytes: 0,
            source: String::new(),
            names: Vec::new(),
        };
        let known = |label: &str| KnownRuntime {
            name: "x".into(),
            image_name: String::new(),
            image: Some(image(label)),
            recipe: Some(recipe.clone()),
            path: None,
            error: None,
            in_base: false,
            on_create: false,
        };
        assert!(!known(&recipe.digest()).is_outdated());
        assert!(known("").is_outdated() && known("other").is_outdated());
    }
}
