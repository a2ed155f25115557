//! Making a box from an archive of one (`boxes::portable`).
//!
//! What the archive says is a request like any other: it is checked as if its sender had asked for it.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use icebox_rootfs::VOLUME_SIZE_GIB_MAX;
use serde::Deserialize;
use tokio::runtime::Handle;

use super::{BoxRequest, Lifecycle};
use crate::boxes::{Entry, ImageFacts, NewBox, NewTree, Origin, to_the_end};
use crate::db::Account;
use crate::domain::BoxSettings;
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// What every archive of a box says of itself.
const FORMAT: &str = "icebox-box";
/// The version of the form that this daemon writes, the latest that it reads.
const VERSION: u32 = 1;

/// The facts of an archive. Later versions may have more.
#[derive(Debug, Deserialize)]
struct Facts {
    #[serde(default)]
    format: String,
    #[serde(default)]
    version: u32,
    image: ImageFacts,
    settings: BoxSettings,
}

/// A box that is being made from an archive.
struct Begun {
    wanted: NewBox,
    image: ImageFacts,
    tree: NewTree,
}

impl Lifecycle {
    /// Creates a box from an archive, which is read as it comes. Nothing is left of one that is cut off or refused.
    pub async fn import(
        &self,
        account: &Account,
        archive: impl Read + Send + 'static,
        name: Option<String>,
    ) -> Result<Arc<Entry>, Refusal> {
        let (lifecycle, account) = (self.clone(), account.clone());
        to_the_end(async move {
            let (filler, runtime) = (lifecycle.clone(), Handle::current());
            let filled = tokio::task::spawn_blocking(move || filler.fill(&runtime, &account, archive, name)).await;
            let (begun, warnings) = filled.map_err(|_| Error::new("import a box", "", Cause::WorkerEnded))??;
            let Begun { mut wanted, image, tree } = begun;
            let finished = tokio::task::spawn_blocking(move || tree.finish()).await;
            let (copy, content) = finished.map_err(|_| Error::new("import a box", "", Cause::WorkerEnded))??;
            wanted.origin = Some(Origin { content, image: Some(image.id) });
            let entry = lifecycle.boxes.create(wanted).await?;
            drop(copy);
            warnings.into_iter().for_each(|text| lifecycle.warn(&entry, text));
            lifecycle.provision_copy(&entry, false).await;
            Ok(entry)
        })
        .await
    }

    /// Reads the archive onto a new disk. This blocks.
    fn fill(
        &self,
        runtime: &Handle,
        account: &Account,
        archive: impl Read + Send,
        name: Option<String>,
    ) -> Result<(Begun, Vec<String>), Refusal> {
        let begun = Mutex::new(None);
        let open = |facts: &[u8]| {
            let made = runtime.block_on(self.begin_import(account, facts, name))?;
            let upper = made.tree.upper();
            *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
            Ok(upper)
        };
        let read = icebox_rootfs::portable::read_archive::<ImportError>(archive, open);
        let warnings = read.map_err(|ImportError(refusal)| refusal)?;
        let begun = begun.into_inner().unwrap_or_else(PoisonError::into_inner);
        let begun = begun.ok_or_else(|| Error::new("import a box", "", Cause::WorkerEnded))?;
        Ok((begun, warnings))
    }

    async fn begin_import(&self, account: &Account, facts: &[u8], name: Option<String>) -> Result<Begun, Refusal> {
        let facts = read_facts(facts)?;
        self.boxes.check_image(&facts.image).await?;
        let settings = facts.settings;
        let request = BoxRequest {
            name,
            labels: settings.labels.clone(),
            keep_alive: settings.keep_alive,
            idle_seconds: settings.idle_seconds,
            init_command: settings.init_command.clone(),
            ..BoxRequest::default()
        };
        let wanted = self.wanted(account, request, Some(settings)).await?;
        let tree = self.boxes.new_tree(&wanted.settings).await?;
        Ok(Begun { wanted, image: facts.image, tree })
    }
}

/// A refusal on its way through the reader of archives.
struct ImportError(Refusal);

impl From<Refusal> for ImportError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<icebox_rootfs::Error> for ImportError {
    fn from(cause: icebox_rootfs::Error) -> Self {
        let no_space = cause.kind() == icebox_rootfs::ErrorKind::NoSpace;
        Self(match no_space {
            true => Refusal::Invalid("the files of the archive do not fit on the disk that it asks for".into()),
            false => crate::boxes::Boxes::image_refusal("import a box", cause),
        })
    }
}

fn read_facts(text: &[u8]) -> Result<Facts, Refusal> {
    let facts: Facts = serde_json::from_slice(text)
        .map_err(|cause| Refusal::Invalid(format!("the box.json of the archive cannot be read: {cause}")))?;
    if facts.format != FORMAT {
        return Err(Refusal::Invalid("the box.json of the archive is not that of a box".into()));
    }
    if !(1..=VOLUME_SIZE_GIB_MAX).contains(&facts.settings.disk_gib()) {
        let text = format!("the disk that the archive asks for must have 1 to {VOLUME_SIZE_GIB_MAX} GiB");
        return Err(Refusal::Invalid(text));
    }
    if facts.version > VERSION {
        let text = format!(
            "the archive has version {} of the form, and this Icebox reads up to {VERSION}; import it with a later one",
            facts.version
        );
        return Err(Refusal::Invalid(text));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_other_forms_are_refused_and_more_facts_are_not() {
        let good =
            r#"{"format":"icebox-box","version":1,"image":{"id":"a","more":1},"settings":{"size":"small"},"x":2}"#;
        assert_eq!(read_facts(good.as_bytes()).expect("good").image.id, "a");
        for (text, why) in [
            (good.replace("icebox-box", "other"), "not that of a box"),
            (good.replace("\"version\":1", "\"version\":2"), "later"),
            (good.replace("small", "giant"), "cannot be read"),
            (good.replace("\"small\"", "\"small\",\"disk_gib\":0"), "1 to 1024"),
            ("{}".to_owned(), "cannot be read"),
            ("[".to_owned(), "cannot be read"),
        ] {
            let refused = read_facts(text.as_bytes()).expect_err(&text).to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
