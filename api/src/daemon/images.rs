//! `iceboxd image import|ls|rm|prune|export`: the store of images without a running daemon.

use std::fs::File;
use std::process::ExitCode;

use icebox_rootfs::images::{ArchiveKind, Image, Images, Pruned};
use icebox_rootfs::oci::Reference;

use super::args::ImageVerb;
use crate::config::Config;
use crate::error::Error;

/// Sources that debootstrap fills, by their suites.
const DEBOOTSTRAP: &str = "debootstrap:";

pub(super) fn run(config: &Config, verb: &ImageVerb) -> Result<ExitCode, Error> {
    let dir = config.image_dir();
    let images =
        Images::open(&dir).map_err(|cause| Error::new("open the images in", dir.display().to_string(), cause))?;
    let of = |operation, subject: &str| {
        let subject = subject.to_owned();
        move |cause: icebox_rootfs::Error| Error::new(operation, subject, cause)
    };
    match verb {
        ImageVerb::Ls => {
            for image in images.list().map_err(of("list the images in", &dir.display().to_string()))? {
                println!("{}\t{}\t{}", image.id, image.size_bytes, image.names.join(" "));
            }
        }
        ImageVerb::Import { source, name } => {
            let imported = import(&images, source, name.as_deref()).map_err(of("import", source))?;
            for image in imported {
                println!("{}", image.names.first().unwrap_or(&image.id));
            }
        }
        ImageVerb::Rm { image } => show(&images.remove(image).map_err(of("remove", image))?),
        ImageVerb::Prune => show(&images.prune(false).map_err(of("prune", ""))?),
        ImageVerb::Export { image, file } => {
            let found = images.find(image).map_err(of("export", image))?;
            let subject = file.display().to_string();
            let output = File::create(file).map_err(|cause| Error::new("write", &subject, cause))?;
            let name = found.names.first().and_then(|name| name.parse().ok());
            images.export(&found, name.as_ref(), output).map_err(of("export", image))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn import(images: &Images, source: &str, name: Option<&str>) -> icebox_rootfs::Result<Vec<Image>> {
    let name: Option<Reference> = name.map(str::parse).transpose()?;
    if let Some(suite) = source.strip_prefix(DEBOOTSTRAP) {
        let mut phase = None;
        let image = images.import_debootstrap(suite, name.as_ref(), None, &mut |progress| {
            if phase.replace(progress.phase) != Some(progress.phase) {
                eprintln!("{}", progress.phase);
            }
        })?;
        return Ok(vec![image]);
    }
    images.import_path(source.as_ref(), ArchiveKind::Any, name.as_ref(), None)
}

fn show(removed: &Pruned) {
    for name in removed.untagged.iter().chain(&removed.images) {
        println!("{name}");
    }
}
