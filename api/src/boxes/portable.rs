//! Disks of boxes as trees of files: the changes of a box as of one moment, to be read, and an empty one, to be filled.
//!
//! Neither is mounted at a path. The first is a copy, so that the box goes on; its bytes were written by the kernel's own file
//! system, since a box has no device, but its names and links are the tenant's (`icebox_rootfs::portable` follows none).

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use icebox_rootfs::portable::{archive_bytes, write_archive};
use icebox_rootfs::{Attached, Content, Copy};
use icebox_shim::launch::{UPPER, open_disk, open_new_disk};
use rustix::fs::{Mode, OFlags, openat, syncfs};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{Boxes, Entry, blocking, to_the_end};
use crate::clock;
use crate::domain::BoxSettings;
use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// What an id of an imported image begins with; a base image has another form of id.
const IMPORTED: &str = "sha256:";

/// The image of a box, in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// Its id.
    pub id: String,
    /// Its names on the host of the archive.
    #[serde(default)]
    pub names: Vec<String>,
}

/// A disk that is mounted, and goes when this is dropped.
#[derive(Debug)]
struct Tree {
    // In the order of their ends: the mount, the device, the file.
    mount: OwnedFd,
    _attached: Attached,
    copy: Copy,
    _room: OwnedSemaphorePermit,
}

impl Tree {
    fn upper(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{UPPER}", self.mount.as_raw_fd()))
    }
}

/// The archive of a box, ready to be written.
#[derive(Debug)]
pub struct Export {
    facts: Vec<u8>,
    made: u64,
    tree: Tree,
    /// Bytes that will be written.
    pub bytes: u64,
}

impl Export {
    /// Writes the archive. This blocks.
    pub fn write(self, output: impl Write) -> io::Result<()> {
        write_archive(&self.facts, self.made, &self.tree.upper(), output)
    }
}

/// The disk of a box that is about to be made.
#[derive(Debug)]
pub(crate) struct NewTree(Tree);

impl NewTree {
    /// The directory for what the box has in place of, or beside, what is in its image.
    pub(crate) fn upper(&self) -> PathBuf {
        self.0.upper()
    }

    /// The content, for the box. This blocks.
    pub(crate) fn finish(self) -> Result<(Copy, Content), Error> {
        let failed = |cause: io::Error| Error::new("write the files of", "a new box", cause);
        // The descriptor of a mount only names it.
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = openat(&self.0.mount, ".", flags, Mode::empty());
        root.and_then(syncfs).map_err(|errno| failed(errno.into()))?;
        let Tree { mount, _attached, copy, _room } = self.0;
        drop(mount);
        drop(_attached);
        let settled = copy.settle().and_then(|()| copy.content());
        let content = settled.map_err(|cause| Error::new("write the files of", "a new box", cause))?;
        Ok((copy, content))
    }
}

impl Boxes {
    /// The archive of a box as it is at this moment. A box that runs stands still for a moment.
    pub async fn export(&self, entry: &Arc<Entry>) -> Result<Export, Refusal> {
        let room = self.room_to_carry()?;
        let image = self.image_facts(&self.image_of(entry).await?).await?;
        let (boxes, entry) = (self.clone(), Arc::clone(entry));
        let (copy, facts) = to_the_end(async move {
            // Together: what the archive says of the box is of about the same moment.
            let (copy, _) = boxes.copy_disk(&entry).await?;
            Ok((copy, facts_of(&entry, &image)?))
        })
        .await?;
        let made = u64::try_from(clock::unix_ms() / 1000).unwrap_or(0);
        let ready = tokio::task::spawn_blocking(move || {
            let attached = copy.attach().map_err(|cause| Error::new("attach a copy", "", cause))?;
            let mount = open_disk(&attached.device, "copy").map_err(|cause| Error::new("read a copy", "", cause))?;
            let tree = Tree { mount, _attached: attached, copy, _room: room };
            match archive_bytes(&facts, &tree.upper()) {
                Ok(bytes) => Ok(Export { facts, made, tree, bytes }),
                // What the tree has, and an archive cannot.
                Err(cause) if cause.kind() == io::ErrorKind::InvalidInput => {
                    Err(Refusal::Conflict(format!("the box cannot be exported: {cause}")))
                }
                Err(cause) => Err(Error::new("read the files of", "a copy", cause).into()),
            }
        });
        ready.await.map_err(|_| Error::new("export a box", "", Cause::WorkerEnded))?
    }

    /// An empty disk for a box with these settings.
    pub(crate) async fn new_tree(&self, settings: &BoxSettings) -> Result<NewTree, Refusal> {
        let room = self.room_to_carry()?;
        self.check_free_space().await?;
        let (store, class, gib) = (Arc::clone(&self.inner.store), settings.size.disk_gib(), settings.disk_gib());
        let copy = blocking("make the disk", move || store.blank(class, gib)).await?;
        let made = tokio::task::spawn_blocking(move || {
            let attached = copy.attach().map_err(|cause| Error::new("attach the disk", "", cause))?;
            let mount =
                open_new_disk(&attached.device, "a new box").map_err(|cause| Error::new("fill the disk", "", cause))?;
            Ok::<_, Error>(NewTree(Tree { mount, _attached: attached, copy, _room: room }))
        });
        Ok(made.await.map_err(|_| Error::new("fill the disk", "", Cause::WorkerEnded))??)
    }

    fn room_to_carry(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let room = Arc::clone(&self.inner.carrying).try_acquire_owned();
        room.map_err(|_| Refusal::Limit("too many boxes are exported or imported at this moment; try again".into()))
    }

    async fn image_facts(&self, id: &str) -> Result<ImageFacts, Refusal> {
        let (store, wanted) = (self.image_store().await?, id.to_owned());
        let found = blocking("find the image", move || store.by_id(&wanted)).await?;
        Ok(ImageFacts { id: id.to_owned(), names: found.map(|image| image.names).unwrap_or_default() })
    }

    /// Refuses an archive whose image is not on this host.
    pub(crate) async fn check_image(&self, image: &ImageFacts) -> Result<(), Refusal> {
        let (store, wanted) = (self.image_store().await?, image.id.clone());
        match blocking("find the image", move || store.by_id(&wanted)).await? {
            Some(_) => Ok(()),
            None => Err(Refusal::Conflict(missing(image))),
        }
    }
}

/// What is missing, and how to get it.
fn missing(image: &ImageFacts) -> String {
    let shown = |text: &str| text.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
    let id = shown(&image.id);
    if !image.id.starts_with(IMPORTED) {
        return format!(
            "the box stands on the base image '{id}', which is not on this host; the operator can make it with `iceboxd \
             image` of the version of Icebox that the archive comes from"
        );
    }
    let name = image.names.first().map_or_else(String::new, |name| format!(" ({})", shown(name)));
    format!(
        "the box stands on the image {id}{name}, which is not on this host; the operator can copy it: `icebox image \
         export {id} image.tar` on the host of the archive, `icebox image import image.tar` on this one"
    )
}

/// The facts of an archive, for people and for an import.
fn facts_of(entry: &Entry, image: &ImageFacts) -> Result<Vec<u8>, Error> {
    let settings = BoxSettings {
        keep: None,
        undo: None,
        forked_from: None,
        ephemeral: false,
        // They are of this host.
        volumes: Vec::new(),
        disk_gib: Some(entry.settings().disk_gib()),
        ..entry.settings()
    };
    let facts = serde_json::json!({
        "format": "icebox-box",
        "version": 1,
        "exported_ms": clock::unix_ms(),
        "box": { "id": entry.id, "name": entry.name, "created_ms": entry.created_ms },
        "image": image,
        "settings": settings,
    });
    let mut text = serde_json::to_vec_pretty(&facts)
        .map_err(|cause| Error::new("write the facts of", &entry.id, Cause::from(cause)))?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_is_named_with_the_way_to_get_it() {
        let text = missing(&ImageFacts { id: "sha256:ab".into(), names: vec!["team/app:1".into()] });
        assert!(text.contains("sha256:ab (team/app:1)") && text.contains("icebox image export sha256:ab"), "{text}");
        let text = missing(&ImageFacts { id: "trixie-\n1234".into(), names: Vec::new() });
        assert!(text.contains("'trixie-1234'") && text.contains("iceboxd image"), "{text}");
    }
}
