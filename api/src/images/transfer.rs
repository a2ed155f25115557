//! Pull and push. The daemon speaks to the registry, from its own network; no box takes part. The work ends when its client
//! leaves.

use std::sync::Arc;

use icebox_registry::{Cause as Of, Event, Registries, Timing};
use icebox_rootfs::oci::Reference;
use tokio::sync::mpsc;

use super::report::{REPORTS_MAX, Report};
use super::service::Images;
use crate::boxes::Boxes;
use crate::error::Error;
use crate::refusal::Refusal;

const PULL: &str = "pull the image";
const PUSH: &str = "push the image";

impl Images {
    /// Pulls an image under its name. The last report is [`Report::Ended`].
    pub fn pull(&self, name: Reference) -> mpsc::Receiver<Report> {
        let images = self.clone();
        working(move |to| async move {
            let _room = images.transfer_room().await;
            let store = images.boxes.image_store().await?;
            let registries = images.registries(PULL).await?;
            let pulled = registries.pull(&store, &name, report(&to)).await;
            Ok(Report::Image(Box::new(pulled.map_err(|error| refusal(PULL, error))?)))
        })
    }

    /// Pushes an image of this host to the place that `name` tells; without it, to that of the image's own name. The last report
    /// is [`Report::Ended`].
    pub fn push(&self, image: String, name: Option<Reference>) -> mpsc::Receiver<Report> {
        let images = self.clone();
        working(move |to| async move {
            let _room = images.transfer_room().await;
            let wanted = image.clone();
            let found = images.read("find the image", move |store| store.find(&wanted)).await?;
            let name = match name {
                Some(name) => name,
                None => {
                    image.parse::<Reference>().ok().filter(|name| found.names.contains(&name.to_string())).ok_or_else(
                        || {
                            Refusal::Invalid(format!(
                                "'{image}' is no name of the image; say under which name it is to be pushed"
                            ))
                        },
                    )?
                }
            };
            let store = images.boxes.image_store().await?;
            let registries = images.registries(PUSH).await?;
            let pushed = registries.push(&store, &found, &name, report(&to)).await;
            let pushed = pushed.map_err(|error| refusal(PUSH, error))?;
            Ok(Report::Pushed { name: name.to_string(), digest: pushed.digest, changed: pushed.changed })
        })
    }

    /// Read anew each time: certificates and proxies may have changed.
    async fn registries(&self, operation: &'static str) -> Result<Registries, Refusal> {
        let settings = Arc::clone(&self.registry);
        let made = tokio::task::spawn_blocking(move || Registries::new(&settings, Timing::default())).await;
        made.map_err(|_| Error::new(operation, "", crate::error::Cause::WorkerEnded))?
            .map_err(|error| refusal(operation, error))
    }
}

/// Does the work until it has ended or the client has left.
fn working<W>(work: impl FnOnce(mpsc::Sender<Report>) -> W) -> mpsc::Receiver<Report>
where
    W: Future<Output = Result<Report, Refusal>> + Send + 'static,
{
    let (sender, reports) = mpsc::channel(REPORTS_MAX);
    let work = work(sender.clone());
    tokio::spawn(async move {
        let ended = tokio::select! {
            done = work => match done {
                Ok(last) => {
                    // The client may have left.
                    let _ = sender.send(last).await;
                    Ok(())
                }
                Err(refusal) => Err(refusal),
            },
            () = sender.closed() => return,
        };
        let _ = sender.send(Report::Ended(ended)).await;
    });
    reports
}

fn report(to: &mpsc::Sender<Report>) -> icebox_registry::Report {
    let to = to.clone();
    Arc::new(move |event| {
        let report = match event {
            Event::Work(text) => Report::Work(text),
            Event::Transfer(progress) => Report::Transfer(progress),
            Event::Layer(progress) => Report::Layer(progress),
        };
        let _ = to.try_send(report);
    })
}

/// The refusal that a failure of a registry is. Its texts name images and registries, and are for the operator.
fn refusal(operation: &'static str, error: icebox_registry::Error) -> Refusal {
    let text = format!("{error}: {}", error.cause());
    let subject = error.to_string();
    match error.into_cause() {
        Of::Refused(_) => Refusal::Invalid(text),
        Of::NotFound(_) => Refusal::NotFound(text),
        Of::Denied(_) => Refusal::Forbidden(text),
        Of::Unavailable(_) => Refusal::Unavailable(text),
        Of::NoSpace(_) => Refusal::NoSpace(text),
        Of::Rootfs(cause) => Boxes::image_refusal(operation, cause),
        Of::Io(cause) if cause.kind() == std::io::ErrorKind::StorageFull => Refusal::disk_full(),
        Of::Io(cause) => Error::new(operation, subject, cause).into(),
        other => Refusal::Unavailable(format!("{subject}: {other}")),
    }
}
