//! Building the base image: debootstrap into a temporary directory, finishing, making durable, renaming.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::mount::{MntFlags, umount2};
use sha2::{Digest, Sha256};

use super::tree::Tree;
use super::{BaseImage, Manifest, Phase, Progress, debootstrap, find, finish, mirror};
use crate::digest::hex;
use crate::error::{At, Cause, Error, Result, Step};
use crate::files;

/// The Debian release that boxes run: the stable one.
pub(super) const SUITE: &str = "trixie";
/// The Debian release of [`minimal`], the oldest on which Icebox is installed.
const MINIMAL_SUITE: &str = "bookworm";
/// The packages beyond Debian's essential ones (which include tar, gzip, grep, sed and the like).
const PACKAGES: [&str; 21] = [
    "bash",
    "ca-certificates",
    "coreutils",
    "curl",
    "git",
    "iproute2",
    "jq",
    "less",
    "make",
    "nodejs",
    "openssh-client",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "ripgrep",
    "tzdata",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
];
/// Part of the recipe: raise it when the finishing changes.
const RECIPE_VERSION: &str = "3";
/// The cache of retrieved packages; an interrupted build leaves them to the next one.
const CACHE: &str = "packages";

/// Builds the base image, or finds the one that is there. Waits for a build by another process.
pub fn build(image_dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<BaseImage> {
    make_image_dir(image_dir)?;
    let _lock = lock(image_dir, progress)?;
    if let Some(image) = find(image_dir)? {
        return Ok(image);
    }
    sweep(image_dir)?;
    // apt's own directory on every Debian machine.
    let mirror = mirror::find(std::env::var(mirror::MIRROR_VARIABLE).ok(), Path::new("/etc/apt"), SUITE)?;
    let temp = files::temp_path(image_dir, "image");
    let rootfs = temp.join("rootfs");
    let cache = image_dir.join(CACHE);
    for dir in [&temp, &rootfs, &cache] {
        // Every user of a box reads its root directory.
        DirBuilder::new().recursive(true).mode(0o755).create(dir).at(Step::Debootstrap, dir)?;
    }
    debootstrap::run(SUITE, &PACKAGES, &mirror, &rootfs, &cache, progress)?;
    unmount_below(&temp)?;
    progress(stage(Phase::Finishing, "user, names, privileges"));
    let (size_bytes, packages) = finish::finish(&rootfs)?;
    progress(stage(Phase::Saving, "writing to disk"));
    publish(
        image_dir,
        &temp,
        Manifest {
            recipe: recipe(),
            suite: SUITE.to_owned(),
            created_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            size_bytes,
            packages,
        },
    )?;
    fs::remove_dir_all(&cache).at(Step::SweepImages, &cache)?;
    find(image_dir)?.ok_or_else(|| {
        Error::new(Step::PublishImage, image_dir.display().to_string(), Cause::Io(io::ErrorKind::NotFound.into()))
    })
}

/// Fills the empty directory `target` with the required packages and apt of a Debian suite, without what can be fetched
/// again.
pub(crate) fn debian(suite: &str, target: &Path, cache: &Path, progress: &mut dyn FnMut(Progress)) -> Result<()> {
    if suite.is_empty() || !suite.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        let why = "a suite is named like bookworm or trixie";
        return Err(Error::new(Step::Debootstrap, suite.escape_default().to_string(), Cause::Invalid(why)));
    }
    let mirror = mirror::find(std::env::var(mirror::MIRROR_VARIABLE).ok(), Path::new("/etc/apt"), suite)?;
    let done = debootstrap::run(suite, &[], &mirror, target, cache, progress);
    unmount_below(target)?;
    done?;
    let tree = Tree::open(target).at(Step::FinishImage, target)?;
    for path in ["var/cache/apt", "var/lib/apt/lists", "var/log"] {
        tree.empty_dir(path).at(Step::FinishImage, &target.join(path))?;
    }
    Ok(())
}

/// Fills the empty directory `target` with a Debian that has its required packages and apt, from the mirror that
/// [`build`] would use. `cache` keeps the retrieved packages.
pub fn minimal(target: &Path, cache: &Path) -> Result<()> {
    let mirror = mirror::find(std::env::var(mirror::MIRROR_VARIABLE).ok(), Path::new("/etc/apt"), MINIMAL_SUITE)?;
    debootstrap::run(MINIMAL_SUITE, &[], &mirror, target, cache, &mut |_| ())?;
    unmount_below(target)
}

fn stage(phase: Phase, detail: &str) -> Progress {
    Progress { phase, done: 0, total: None, detail: detail.to_owned() }
}

/// The first 8 hexadecimal digits of the hash of everything that decides what the image contains.
pub(super) fn recipe() -> String {
    let mut hash = Sha256::new();
    for part in [RECIPE_VERSION, SUITE].iter().chain(&PACKAGES) {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hex(&hash.finalize())[..8].to_owned()
}

/// Makes the image directory. It holds nothing secret, and boxes of every user range read their layers through it.
pub(super) fn make_image_dir(image_dir: &Path) -> Result<()> {
    files::make_dirs(image_dir, 0o755).at(Step::LockImages, image_dir)
}

/// Takes the lock of the image directory, waiting for its holder.
pub(super) fn lock(image_dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File> {
    let path = image_dir.join("lock");
    let file = files::open_lock(&path).at(Step::LockImages, &path)?;
    if !files::try_lock(&file).at(Step::LockImages, &path)? {
        progress(stage(Phase::Waiting, "another build in the same directory"));
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).at(Step::LockImages, &path)?;
    }
    Ok(file)
}

/// Removes the leftovers of an interrupted build. debootstrap mounts /proc and /sys in the tree while it works;
/// removing the tree with the host's /proc still in it would reach into the host.
fn sweep(image_dir: &Path) -> Result<()> {
    let entries = fs::read_dir(image_dir).at(Step::SweepImages, image_dir)?;
    for entry in entries {
        let entry = entry.at(Step::SweepImages, image_dir)?;
        if entry.file_name().as_encoded_bytes().starts_with(files::TEMP_PREFIX.as_bytes()) {
            unmount_below(&entry.path())?;
        }
    }
    files::sweep_temps(image_dir).at(Step::SweepImages, image_dir)?;
    Ok(())
}

/// Unmounts everything at or below `dir`, the innermost first.
fn unmount_below(dir: &Path) -> Result<()> {
    let dir = dir.canonicalize().at(Step::SweepImages, dir)?;
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).at(Step::SweepImages, table)?;
    for path in mounts_below(&text, &dir).into_iter().rev() {
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        umount2(&path, flags).at(Step::SweepImages, &path)?;
    }
    Ok(())
}

/// Mount points at or below `dir` in mount order.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// Writes the manifest, makes everything durable, then gives the image its name.
fn publish(image_dir: &Path, temp: &Path, manifest: Manifest) -> Result<()> {
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| Error::new(Step::PublishImage, temp.display().to_string(), Cause::Json(error)))?;
    files::write_atomic(temp, "manifest.json", &text, 0o644).at(Step::PublishImage, temp)?;
    // Tens of thousands of files: one flush of the file system instead of one per file.
    let dir = File::open(temp).at(Step::PublishImage, temp)?;
    rustix::fs::syncfs(&dir).at(Step::PublishImage, temp)?;
    let name = image_dir.join(format!("{SUITE}-{}", manifest.recipe));
    fs::rename(temp, &name).at(Step::PublishImage, &name)?;
    files::sync_dir(image_dir).at(Step::PublishImage, image_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_inside_are_found_outside_are_not() {
        let table = "20 1 0:1 / / rw - ext4 /dev/vda rw\n\
                     21 20 0:2 / /images/.tmp-image-1-0/rootfs/proc rw - proc proc rw\n\
                     22 21 0:3 / /images/.tmp-image-1-0/rootfs/my\\040dir rw - tmpfs x rw\n\
                     23 20 0:4 / /images/.tmp-image-1-01/proc rw - proc proc rw\n";
        let found = mounts_below(table, Path::new("/images/.tmp-image-1-0"));
        assert_eq!(
            found,
            [
                PathBuf::from("/images/.tmp-image-1-0/rootfs/proc"),
                PathBuf::from("/images/.tmp-image-1-0/rootfs/my dir")
            ]
        );
    }

    #[test]
    fn an_image_directory_without_an_image_has_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(dir.path()).unwrap().is_none());
        fs::create_dir(dir.path().join(format!("{SUITE}-{}", recipe()))).unwrap();
        assert!(find(dir.path()).unwrap().is_none());
    }
}
