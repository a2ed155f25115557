//! Images out of directories and archives of this machine.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use oci_spec::image::{ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder, RootFsBuilder};

use super::facts::{self, BlobFacts, Image};
use super::import::{Expected, Report};
use super::place::Images;
use crate::error::{At, Cause, Error, Result, Step};
use crate::oci::files::{DirFiles, Files, TarFiles};
use crate::oci::layout::parse;
use crate::oci::{Found, Platform, Reference, docker_archive, layout};
use crate::unpack::{Fault, Limits, Reason, inflate, is_compressed};

/// `PATH` of an image that is made of a bare root file system: Debian's, which others share.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an archive contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchiveKind {
    /// Decided by its content.
    Any,
    /// Images: an OCI layout or what `docker save` writes.
    Images,
    /// One root file system.
    RootFs,
}

impl Images {
    /// Enters the images of an archive: an OCI layout or `docker save` archive in a tar, or the tar of a root file system;
    /// compressed or not. `source` is its name, for people.
    ///
    /// The names in the archive count, unless `name` is given. A tag without a name becomes `localhost/STEM:TAG`.
    pub fn import_archive(
        &self,
        archive: File,
        source: &str,
        kind: ArchiveKind,
        name: Option<&Reference>,
        report: Option<Report>,
    ) -> Result<Vec<Image>> {
        let refuse = |fault| refused(source, fault);
        let mut archive = archive;
        if kind != ArchiveKind::RootFs {
            let plain = if is_compressed(&mut archive).map_err(refuse)? {
                let temp = self.temp("archive")?;
                let path = temp.path().join("tar");
                let tar = File::options().read(true).write(true).create_new(true).open(&path);
                let mut tar = tar.at(Step::ReadArchive, &path)?;
                inflate(&archive, &mut tar, Limits::default()).map_err(refuse)?;
                // The file lives on without a name until it is closed.
                tar
            } else {
                archive.try_clone().map_err(|error| refuse(error.into()))?
            };
            rewind(&plain).map_err(refuse)?;
            if let Some(files) = TarFiles::list(plain).map_err(refuse)? {
                return self.import_found(&files, source, name, report);
            }
            if kind == ArchiveKind::Images {
                return Err(refuse(Fault::refused("it is neither an OCI layout nor an archive of `docker save`")));
            }
        }
        rewind(&archive).map_err(refuse)?;
        Ok(vec![self.import_rootfs(archive, source, name, report)?])
    }

    /// Enters what is at a path of this machine: a directory as [`Images::import_dir`], a file as [`Images::import_archive`].
    pub fn import_path(
        &self,
        path: &Path,
        kind: ArchiveKind,
        name: Option<&Reference>,
        report: Option<Report>,
    ) -> Result<Vec<Image>> {
        let file = File::open(path).at(Step::ReadArchive, path)?;
        let facts = file.metadata().at(Step::ReadArchive, path)?;
        if facts.is_dir() {
            return self.import_dir(path, name, report);
        }
        let source = path.display().to_string();
        if !facts.is_file() {
            return Err(refused(&source, Fault::refused("it is neither a directory nor a regular file")));
        }
        self.import_archive(file, &source, kind, name, report)
    }

    /// Enters a Debian that debootstrap makes: its required packages and apt, from the mirror of this machine.
    pub fn import_debootstrap(
        &self,
        suite: &str,
        name: Option<&Reference>,
        report: Option<Report>,
        progress: &mut dyn FnMut(crate::image::Progress),
    ) -> Result<Image> {
        let temp = self.temp("debootstrap")?;
        let (root, cache) = (temp.path().join("root"), temp.path().join("cache"));
        for dir in [&root, &cache] {
            crate::files::make_dirs(dir, 0o755).at(Step::Debootstrap, dir)?;
        }
        crate::image::debian(suite, &root, &cache, progress)?;
        let named;
        let name = match name {
            Some(name) => name,
            None => {
                named = format!("localhost/debian:{suite}").parse()?;
                &named
            }
        };
        let mut images = self.import_tree(&root, &format!("debootstrap:{suite}"), Some(name), report)?;
        images.pop().ok_or_else(|| refused(suite, Fault::refused("it is empty")))
    }

    /// Enters the images of a directory: an OCI layout, or else the directory is a root file system.
    pub fn import_dir(&self, dir: &Path, name: Option<&Reference>, report: Option<Report>) -> Result<Vec<Image>> {
        let source = dir.display().to_string();
        if dir.join("oci-layout").is_file() {
            let files = DirFiles::open(dir).at(Step::ReadArchive, dir)?;
            return self.import_found(&files, &source, name, report);
        }
        self.import_tree(dir, &source, name, report)
    }

    fn import_tree(
        &self,
        dir: &Path,
        source: &str,
        name: Option<&Reference>,
        report: Option<Report>,
    ) -> Result<Vec<Image>> {
        let (reader, writer) = std::io::pipe().at(Step::ReadArchive, dir)?;
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || crate::pack::pack(dir, crate::pack::Form::Plain, writer));
            let image = self.import_rootfs(reader, source, name, report);
            let packed = packing.join().unwrap_or_else(|_| Err(std::io::Error::other("the packing thread panicked")));
            match (image, packed) {
                (Ok(image), Ok(())) => Ok(vec![image]),
                // The end of one is the failure of the other.
                (Err(error), Err(packed)) if packed.kind() == std::io::ErrorKind::BrokenPipe => Err(error),
                (_, Err(packed)) => Err(Error::new(Step::ReadArchive, source, Cause::Io(packed))),
                (Err(error), Ok(())) => Err(error),
            }
        })
    }

    /// Enters one root file system as an image with one layer. `rootfs` is a tar archive, compressed or not.
    pub fn import_rootfs(
        &self,
        rootfs: impl Read + Send,
        source: &str,
        name: Option<&Reference>,
        report: Option<Report>,
    ) -> Result<Image> {
        let mut import = self.begin(source, report)?;
        import.set_layers_total(1);
        let layer = import.layer(rootfs, &Expected::default())?;
        if layer.entries == 0 {
            return Err(refused(source, Fault::refused("it is empty")));
        }
        let config = rootfs_config(&[layer.diff_id])
            .map_err(|error| Error::new(Step::StoreImage, source, Cause::Refused(error.to_string())))?;
        let config = facts::json(Path::new(source), &config)?;
        import.commit(&config, name.map(std::slice::from_ref).unwrap_or_default())
    }

    fn import_found(
        &self,
        files: &(dyn Files + Sync),
        source: &str,
        name: Option<&Reference>,
        report: Option<Report>,
    ) -> Result<Vec<Image>> {
        let refuse = |fault| refused(source, fault);
        let found = match docker_archive::images(files).map_err(refuse)? {
            Some(found) => found,
            None => layout::images(files).map_err(refuse)?,
        };
        if name.is_some() && found.len() > 1 {
            let why = format!("it has {} images, so that one name cannot be given to them", found.len());
            return Err(refuse(Fault::refused(why)));
        }
        found.iter().map(|image| self.import_one(files, image, source, name, report.clone())).collect()
    }

    fn import_one(
        &self,
        files: &(dyn Files + Sync),
        found: &Found,
        source: &str,
        name: Option<&Reference>,
        report: Option<Report>,
    ) -> Result<Image> {
        let refuse = |fault| refused(source, fault);
        let config: ImageConfiguration = parse("the configuration", &found.config).map_err(refuse)?;
        let diff_ids = config.rootfs().diff_ids();
        if diff_ids.len() != found.layers.len() {
            let (claimed, there) = (diff_ids.len(), found.layers.len());
            return Err(refuse(Fault::refused(format!(
                "its configuration lists {claimed} layers, but it has {there}"
            ))));
        }
        let mut import = self.begin(source, report)?;
        import.set_layers_total(diff_ids.len());
        for (layer, diff_id) in found.layers.iter().zip(diff_ids) {
            let blob = layer.claimed.as_ref().map(|(digest, size)| BlobFacts {
                digest: digest.to_string(),
                size: *size,
                repository: None,
            });
            if import.stored_layer(diff_id, blob)? {
                continue;
            }
            let opened = files.open(&layer.file).map_err(|error| refuse(Fault::reading(error)))?;
            let (file, _) = opened.ok_or_else(|| refuse(Fault::refused(format!("it has no file {}", layer.file))))?;
            import.layer(file, &Expected { blob: layer.claimed.clone(), diff_id: Some(diff_id.clone()) })?;
        }
        let names = match name {
            Some(name) => vec![name.clone()],
            None => found.names.iter().map(|name| full_name(name, source)).collect::<Result<_>>()?,
        };
        import.commit(&found.config, &names)
    }
}

/// A name that stands in an archive. A bare tag gets the name of the archive.
fn full_name(name: &str, source: &str) -> Result<Reference> {
    if name.contains(['/', ':']) {
        return name.parse();
    }
    let file = source.rsplit('/').find(|part| !part.is_empty()).unwrap_or("image");
    let stem = file.split('.').next().unwrap_or(file).to_ascii_lowercase();
    let stem: String =
        stem.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    let stem = if stem.is_empty() { "image" } else { &stem };
    format!("localhost/{stem}:{name}").parse()
}

/// The configuration of an image that is a bare root file system.
pub(super) fn rootfs_config(diff_ids: &[String]) -> Result<ImageConfiguration, oci_spec::OciSpecError> {
    ImageConfigurationBuilder::default()
        .architecture(Platform::host().arch)
        .os("linux")
        .config(ConfigBuilder::default().env(vec![DEFAULT_PATH.to_owned()]).build()?)
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?)
        .build()
}

fn rewind(mut file: &File) -> Result<(), Fault> {
    Ok(file.rewind()?)
}

fn refused(source: &str, fault: Fault) -> Error {
    let subject = match fault.entry {
        Some(entry) => format!("{source}, entry '{entry}'"),
        None => source.to_owned(),
    };
    let cause = match fault.reason {
        Reason::Refused(why) => Cause::Refused(why),
        Reason::Io(error) => Cause::Io(error),
    };
    Error::new(Step::ReadArchive, subject, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_tags_get_the_name_of_the_archive() {
        for (name, source, full) in [
            ("12", "/tmp/Debian Base.tar.gz", "localhost/debian-base:12"),
            ("latest", "layout/", "localhost/layout:latest"),
            ("latest", "...", "localhost/image:latest"),
            ("debian:12", "x.tar", "docker.io/library/debian:12"),
            ("r.io/a/b:1", "x.tar", "r.io/a/b:1"),
        ] {
            assert_eq!(full_name(name, source).unwrap().to_string(), full);
        }
        assert!(full_name("a b", "x").is_err());
    }
}
