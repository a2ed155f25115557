//! Getting an image. The work goes on if its client leaves: what it has begun is useful to the next one.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use icebox_rootfs::images::{ArchiveKind, Image, Images as Store};
use icebox_rootfs::oci::Reference;
use tokio::sync::mpsc;

use super::report::{REPORTS_MAX, Report};
use super::service::Images;
use crate::boxes::Boxes;
use crate::refusal::Refusal;

/// Sources that debootstrap fills, by their suites.
const DEBOOTSTRAP: &str = "debootstrap:";

/// Where an image comes from.
#[derive(Debug)]
pub enum Source {
    /// A path of this host, or `debootstrap:SUITE`.
    Named(String),
    /// An archive that a client has sent, and the name that the client gave it.
    Archive(File, String),
}

impl Images {
    /// Imports images. The last report is [`Report::Ended`].
    pub fn import(&self, source: Source, name: Option<Reference>, kind: ArchiveKind) -> mpsc::Receiver<Report> {
        let (sender, reports) = mpsc::channel(REPORTS_MAX);
        let images = self.clone();
        tokio::spawn(async move {
            let _room = images.room().await;
            let to = sender.clone();
            let imported =
                images.read("import the image", move |store| import(store, source, name.as_ref(), kind, &to));
            let ended = match imported.await {
                Ok(found) => {
                    for image in found {
                        // The client may have left.
                        let _ = sender.send(Report::Image(Box::new(image))).await;
                    }
                    Ok(())
                }
                Err(refusal) => Err(refusal),
            };
            let _ = sender.send(Report::Ended(ended)).await;
        });
        reports
    }

    /// The refusal of a name that is no reference.
    pub fn reference(name: &str) -> Result<Reference, Refusal> {
        name.parse().map_err(|cause| Boxes::image_refusal("read the name of the image", cause))
    }
}

fn import(
    store: &Store,
    source: Source,
    name: Option<&Reference>,
    kind: ArchiveKind,
    to: &mpsc::Sender<Report>,
) -> icebox_rootfs::Result<Vec<Image>> {
    let sender = to.clone();
    let report: icebox_rootfs::images::Report = Arc::new(move |progress| {
        let _ = sender.try_send(Report::Layer(progress));
    });
    match source {
        Source::Archive(file, shown) => store.import_archive(file, &shown, kind, name, Some(report)),
        Source::Named(source) => {
            if let Some(suite) = source.strip_prefix(DEBOOTSTRAP) {
                let image = store.import_debootstrap(suite, name, Some(report), &mut |progress| {
                    let text = match progress.total {
                        Some(total) => format!("{} {}/{total}", progress.phase, progress.done),
                        None => format!("{} {}", progress.phase, progress.done),
                    };
                    let _ = to.try_send(Report::Work(text));
                })?;
                return Ok(vec![image]);
            }
            store.import_path(&PathBuf::from(source), kind, name, Some(report))
        }
    }
}
