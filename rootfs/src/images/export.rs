//! Images as others take them: layers as compressed archives, and an OCI layout in a tar.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::image::{
    Descriptor, DescriptorBuilder, Digest, ImageIndexBuilder, ImageManifest, ImageManifestBuilder, MediaType,
    OciLayoutBuilder,
};
use sha2::{Digest as _, Sha256};
use tar::Header;

use super::facts::{self, Image};
use super::lock::Temp;
use super::place::{ID_PREFIX, Images};
use super::source::rootfs_config;
use crate::digest::hex;
use crate::error::{At, Cause, Error, Result, Step};
use crate::oci::Reference;
use crate::oci::layout::blob_path;
use crate::pack::{Form, pack};
use crate::unpack::split;

/// An image ready to travel. Its files go when this is dropped.
#[derive(Debug)]
pub struct Parcel {
    /// The manifest, and its bytes.
    pub manifest: ImageManifest,
    /// Bytes of the manifest.
    pub manifest_bytes: Vec<u8>,
    /// Bytes of the configuration.
    pub config_bytes: Vec<u8>,
    /// The layers' blobs, in the order of the manifest.
    pub layers: Vec<File>,
    /// Layers whose archive could not be made again as it was: the id of the image is another one.
    pub changed: bool,
    _temp: Temp,
}

impl Images {
    /// Makes the archives of an image's layers, compressed with gzip, and a manifest for them. `each` hears the number of
    /// each layer before it is made, from 1, and how many there are.
    pub fn parcel(&self, image: &Image, each: &mut dyn FnMut(usize, usize)) -> Result<Parcel> {
        let temp = self.temp("parcel")?;
        let total = image.diff_ids.len().max(1);
        let mut layers = Vec::new();
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for number in 0..total {
            each(number + 1, total);
            let path = temp.path().join(format!("layer-{number}"));
            let file =
                File::options().read(true).write(true).create_new(true).open(&path).at(Step::ExportImage, &path)?;
            let mut output = Blob::new(file);
            self.write_archive(image, number, &mut output)?;
            let (file, blob) = output.finish().at(Step::ExportImage, &path)?;
            descriptors.push(descriptor(MediaType::ImageLayerGzip, &blob.digest, blob.size)?);
            diff_ids.push(blob.diff_id);
            layers.push(file);
        }
        let changed = diff_ids != image.diff_ids;
        let config_bytes = if image.is_base() {
            facts::json(temp.path(), &rootfs_config(&diff_ids).map_err(|error| unfit(image, &error))?)?
        } else if changed {
            with_diff_ids(image, &diff_ids)?
        } else {
            image.config.clone().into_bytes()
        };
        let config =
            descriptor(MediaType::ImageConfig, &hex(&Sha256::digest(&config_bytes)), config_bytes.len() as u64)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(descriptors)
            .build()
            .map_err(|error| unfit(image, &error))?;
        let manifest_bytes = facts::json(temp.path(), &manifest)?;
        Ok(Parcel { manifest, manifest_bytes, config_bytes, layers, changed, _temp: temp })
    }

    /// Writes the archive of one layer, as it came if that is possible.
    fn write_archive(&self, image: &Image, number: usize, output: &mut Blob) -> Result<()> {
        let Some(diff_id) = image.diff_ids.get(number) else {
            let root = self.layer_dirs(image)?.pop().unwrap_or_default();
            return pack(&root, Form::Plain, output).at(Step::ExportImage, &root);
        };
        let dir = self.layer_dir(diff_id);
        let facts = self.layer(diff_id)?.ok_or_else(|| self.lost(image, diff_id))?;
        let diff = dir.join("diff");
        if facts.exact {
            return split::replay(&dir.join("archive.gz"), &diff, output).at(Step::ExportImage, &dir);
        }
        pack(&diff, Form::Overlay, output).at(Step::ExportImage, &diff)
    }

    /// Writes an image as an OCI layout in a tar archive. Returns whether it kept its id.
    pub fn export(&self, image: &Image, name: Option<&Reference>, output: impl Write) -> Result<bool> {
        let mut parcel = self.parcel(image, &mut |_, _| ())?;
        let subject = Path::new(&image.id);
        let mut tar = LayoutTar { output: BufWriter::new(output) };
        let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build();
        let layout = facts::json(subject, &layout.map_err(|error| unfit(image, &error))?)?;
        let digest = hex(&Sha256::digest(&parcel.manifest_bytes));
        let mut entry = descriptor(MediaType::ImageManifest, &digest, parcel.manifest_bytes.len() as u64)?;
        if let Some(name) = name {
            let full = name.to_string();
            let tag = name.tag().unwrap_or(&full).to_owned();
            entry.set_annotations(Some(
                [("io.containerd.image.name".to_owned(), full), ("org.opencontainers.image.ref.name".to_owned(), tag)]
                    .into(),
            ));
        }
        let manifest = blob_path(entry.digest());
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![entry])
            .build()
            .map_err(|error| unfit(image, &error))?;
        let index = facts::json(subject, &index)?;
        (|| {
            tar.bytes("oci-layout", &layout)?;
            tar.bytes("index.json", &index)?;
            tar.bytes(&manifest, &parcel.manifest_bytes)?;
            tar.bytes(&blob_path(parcel.manifest.config().digest()), &parcel.config_bytes)?;
            let mut written = Vec::new();
            for (layer, file) in parcel.manifest.layers().iter().zip(&mut parcel.layers) {
                let path = blob_path(layer.digest());
                if !written.contains(&path) {
                    file.seek(SeekFrom::Start(0))?;
                    tar.file(&path, layer.size(), file)?;
                    written.push(path);
                }
            }
            tar.finish()
        })()
        .at(Step::ExportImage, subject)?;
        Ok(!parcel.changed)
    }
}

fn unfit(image: &Image, error: &oci_spec::OciSpecError) -> Error {
    Error::new(Step::ExportImage, image.id.clone(), Cause::Refused(error.to_string()))
}

fn descriptor(media_type: MediaType, digest: &str, size: u64) -> Result<Descriptor> {
    let digest: Digest = format!("{ID_PREFIX}{digest}")
        .parse()
        .map_err(|_| Error::new(Step::ExportImage, digest, Cause::Invalid("it is no digest")))?;
    DescriptorBuilder::default()
        .media_type(media_type)
        .digest(digest)
        .size(size)
        .build()
        .map_err(|error| Error::new(Step::ExportImage, "descriptor", Cause::Refused(error.to_string())))
}

/// The configuration with other layers. Everything else stays, what this crate does not know too.
fn with_diff_ids(image: &Image, diff_ids: &[String]) -> Result<Vec<u8>> {
    let json = |error| Error::new(Step::ExportImage, image.id.clone(), Cause::Json(error));
    let mut config: serde_json::Value = serde_json::from_str(&image.config).map_err(json)?;
    config["rootfs"]["diff_ids"] = diff_ids.into();
    serde_json::to_vec(&config).map_err(json)
}

/// Compresses an archive into a file; both are hashed.
struct Blob {
    archive: Sha256,
    output: GzEncoder<Hashing>,
}

struct Hashing {
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

struct BlobFound {
    digest: String,
    size: u64,
    diff_id: String,
}

impl Blob {
    fn new(file: File) -> Self {
        let output = Hashing { file: BufWriter::with_capacity(128 * 1024, file), hash: Sha256::new(), bytes: 0 };
        Self { archive: Sha256::new(), output: GzEncoder::new(output, Compression::fast()) }
    }

    fn finish(self) -> io::Result<(File, BlobFound)> {
        let output = self.output.finish()?;
        let mut file = output.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        let diff_id = format!("{ID_PREFIX}{}", hex(&self.archive.finalize()));
        Ok((file, BlobFound { digest: hex(&output.hash.finalize()), size: output.bytes, diff_id }))
    }
}

impl Write for Blob {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.archive.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The tar of a layout.
struct LayoutTar<W: Write> {
    output: BufWriter<W>,
}

impl<W: Write> LayoutTar<W> {
    fn bytes(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(path, bytes.len() as u64, &mut &*bytes)
    }

    fn file(&mut self, path: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_path(path)?;
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        self.output.write_all(header.as_bytes())?;
        if io::copy(&mut content.take(size), &mut self.output)? != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let padding = size.next_multiple_of(512) - size;
        io::copy(&mut io::repeat(0).take(padding), &mut self.output).map(drop)
    }

    fn finish(mut self) -> io::Result<()> {
        self.output.write_all(&[0; 1024])?;
        self.output.flush()
    }
}
