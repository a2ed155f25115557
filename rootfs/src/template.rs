//! The formatted file system that every new volume of one size starts as.
//!
//! Invariants: a template is complete when it has its final name (written under a temporary one, fsync, rename, fsync
//! of the directory); it is read-only; a fact file beside it keeps the checksum of its content, which is compared
//! before the first use in a process. The recipe's hash is in the name, so another recipe never uses an old template.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::digest::{digest, hex};
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;
use crate::tool::Tool;

/// What a volume is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The disk of a box.
    Disk,
    /// Files that outlive boxes.
    Data,
}

impl Kind {
    /// The directories in the root of the file system, which belongs to root, and the uid and gid of each.
    fn directories(self) -> &'static [(&'static str, u32)] {
        match self {
            // The overlay's upper and work directory.
            Kind::Disk => &[("upper", 0), ("work", 0)],
            Kind::Data => &[(DATA_DIRECTORY, BOX_USER)],
        }
    }

    /// The first part of a template's name.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Disk => "ext4",
            Kind::Data => "data",
        }
    }
}

/// The directory of a volume of files that boxes see. Above it is `lost+found`, which programs that want an empty directory
/// would find.
pub const DATA_DIRECTORY: &str = "data";
/// Uid and gid of the user that commands in a box have (`boxuser`).
const BOX_USER: u32 = 1000;
const DIRECTORY_MODE: u32 = 0o755;
/// Part of the recipe: raise it on a change that the options do not show.
const RECIPE_VERSION: &str = "1";
const MKFS: Tool = Tool {
    program: "mkfs.ext4",
    missing: "there is no mkfs.ext4 on this machine; install the package e2fsprogs",
    step: Step::MakeTemplate,
};

/// Options of mkfs.ext4, independent of the host's mke2fs.conf.
///
/// Without `resize_inode` (which reserves descriptor blocks and writes them out: 4.1 MiB of a 10 GiB file system) a
/// fresh 10 GiB file system holds less than 200 KiB of data. The kernel can grow it while it is mounted: it converts the
/// descriptors to `meta_bg` when they need more blocks. It cannot grow one with `sparse_super2`. `assume_storage_prezeroed` is true for a new sparse file: no zeroes are written for
/// inode tables and journal, and no thread writes them after the first mount.
const MKFS_OPTIONS: &[&str] = &[
    "-q",
    "-F",
    "-b",
    "4096",
    "-I",
    "256",
    "-i",
    "16384",
    "-m",
    "0",
    "-e",
    "remount-ro",
    "-J",
    "size=16",
    "-O",
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
     huge_file,dir_nlink,extra_isize,metadata_csum",
    "-E",
    "assume_storage_prezeroed=1,nodiscard,root_owner=0:0",
];

/// The fact file beside a template.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    recipe: String,
    size_gib: u32,
    sha256: String,
}

/// The path of the template of that size, made now if need be, verified.
pub(crate) fn prepare(dir: &Path, kind: Kind, size_gib: u32) -> Result<PathBuf> {
    let path = dir.join(format!("{}-{size_gib}g-{}.img", kind.prefix(), recipe(kind)));
    if path.try_exists().at(Step::MakeTemplate, &path)? {
        verify(&path)?;
    } else {
        make(dir, &path, kind, size_gib)?;
    }
    Ok(path)
}

/// The first 8 hexadecimal digits of the hash of everything that decides what a template contains.
fn recipe(kind: Kind) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update(part.as_bytes());
        hash.update([0]);
    };
    [RECIPE_VERSION].iter().chain(MKFS_OPTIONS).for_each(|part| add(part));
    for (name, owner) in kind.directories() {
        add(name);
        if *owner != 0 {
            add(&owner.to_string());
        }
    }
    hex(&hash.finalize())[..8].to_owned()
}

fn facts_name(template: &Path) -> String {
    let stem = template.file_stem().unwrap_or_default().to_string_lossy();
    format!("{stem}.json")
}

fn make(dir: &Path, path: &Path, kind: Kind, size_gib: u32) -> Result<()> {
    let image = files::temp_path(dir, "template");
    let content = files::temp_path(dir, "content");
    let made = format(&image, &content, kind, size_gib).and_then(|()| publish(dir, &image, path, kind, size_gib));
    let _ = fs::remove_dir_all(&content);
    if made.is_err() {
        let _ = fs::remove_file(&image);
    }
    made
}

/// Formats the sparse file `image` with the directories that `content` is given here.
fn format(image: &Path, content: &Path, kind: Kind, size_gib: u32) -> Result<()> {
    for (directory, owner) in kind.directories() {
        let path = content.join(directory);
        DirBuilder::new().recursive(true).create(&path).at(Step::MakeTemplate, &path)?;
        fs::set_permissions(&path, Permissions::from_mode(DIRECTORY_MODE)).at(Step::MakeTemplate, &path)?;
        if *owner != 0 {
            chown(&path, Some(*owner), Some(*owner)).at(Step::MakeTemplate, &path)?;
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(image).at(Step::MakeTemplate, image)?;
    file.set_len(u64::from(size_gib) << 30).at(Step::MakeTemplate, image)?;
    let mut command = MKFS.command();
    command.args(MKFS_OPTIONS).arg("-d").args([content, image]).env("MKE2FS_CONFIG", "/dev/null");
    MKFS.run(&mut command, image).map(|_| ())
}

/// Writes the facts, then gives the image its final name: a template without facts cannot exist.
fn publish(dir: &Path, image: &Path, path: &Path, kind: Kind, size_gib: u32) -> Result<()> {
    fs::set_permissions(image, Permissions::from_mode(0o400)).at(Step::MakeTemplate, image)?;
    let file = File::open(image).at(Step::MakeTemplate, image)?;
    file.sync_all().at(Step::MakeTemplate, image)?;
    let facts = Facts { recipe: recipe(kind), size_gib, sha256: digest(&file).at(Step::MakeTemplate, image)? };
    let text = serde_json::to_vec_pretty(&facts)
        .map_err(|error| Error::new(Step::MakeTemplate, path.display().to_string(), Cause::Json(error)))?;
    files::write_atomic(dir, &facts_name(path), &text, 0o600).at(Step::MakeTemplate, path)?;
    fs::rename(image, path).at(Step::MakeTemplate, path)?;
    files::sync_dir(dir).at(Step::MakeTemplate, dir)
}

fn verify(path: &Path) -> Result<()> {
    let facts_path = path.with_file_name(facts_name(path));
    let text = fs::read(&facts_path).at(Step::VerifyTemplate, &facts_path)?;
    let facts: Facts = serde_json::from_slice(&text)
        .map_err(|error| Error::new(Step::VerifyTemplate, facts_path.display().to_string(), Cause::Json(error)))?;
    let file = File::open(path).at(Step::VerifyTemplate, path)?;
    let length = file.metadata().at(Step::VerifyTemplate, path)?.len();
    if length != u64::from(facts.size_gib) << 30 || digest(&file).at(Step::VerifyTemplate, path)? != facts.sha256 {
        return Err(Error::new(Step::VerifyTemplate, path.display().to_string(), Cause::Corrupt));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_changed_template_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = prepare(dir.path(), Kind::Disk, 1).unwrap();
        assert_eq!(prepare(dir.path(), Kind::Disk, 1).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"evil", 1 << 29).unwrap();
        assert_eq!(prepare(dir.path(), Kind::Disk, 1).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn making_leaves_only_the_template_and_its_facts() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), Kind::Disk, 1).unwrap();
        let recipe = recipe(Kind::Disk);
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, [format!("ext4-1g-{recipe}.img"), format!("ext4-1g-{recipe}.json")]);
    }
}
