//! The guest's kernel and root file system, made once and kept in the target directory.
//!
//! A recipe is all that goes into them; its hash names the directory, so a changed recipe makes a new image and the old
//! one of the same suite is removed. The scripts of the guest are no part of it: they are added in each run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::{run, say};

/// The suite of Debian, unless `ICEBOX_GUEST_SUITE` names another one: trixie has Linux 6.12.
const SUITE: &str = "bookworm";
/// What the tests use in the guest (node and python for the public clients; what shapes, shows and sends packets), the
/// kernel, LVM for disks of boxes on its thin pools, and systemd for the flavour of that name.
const PACKAGES: [&str; 30] = [
    "busybox-static",
    "conntrack",
    "curl",
    "dbus",
    "diffutils",
    "e2fsprogs",
    "ethtool",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "lvm2",
    "mount",
    "nftables",
    "nodejs",
    "openssl",
    "procps",
    "psmisc",
    "python3",
    "runc",
    "socat",
    "strace",
    "systemd",
    "systemd-sysv",
    "tcpdump",
    "thin-provisioning-tools",
    "udev",
    "util-linux",
    "xfsprogs",
];
/// What the kernel needs to see the root disk, wherever it is below the modules' directory.
const BOOT_MODULES: [&str; 6] =
    ["virtio", "virtio_ring", "virtio_pci", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_blk"];
/// Counts up when this file makes something else of the same recipe.
const FORMAT: u32 = 1;
const ROOT_BYTES: u64 = 8 << 30;
const HASH_BYTES: usize = 6;

/// The finished parts, all below one directory.
#[derive(Debug)]
pub(super) struct Image {
    dir: PathBuf,
}

impl Image {
    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root.img")
    }

    pub(super) fn busybox(&self) -> PathBuf {
        self.dir.join("busybox")
    }

    pub(super) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }
}

/// Finds the image, or makes it.
pub(super) fn ensure(places: &Places) -> Result<Image> {
    let suite = suite();
    let all = places.target.join("vm/images").join(&suite);
    let dir = all.join(recipe(&suite));
    if dir.is_dir() {
        return Ok(Image { dir });
    }
    // Images of other recipes, and what an interrupted run left.
    if all.is_dir() {
        fs::remove_dir_all(&all).or_fail("remove", all.display().to_string())?;
    }
    let temp = all.join("new");
    fs::create_dir_all(&temp).or_fail("make", temp.display().to_string())?;
    let wait = say::wait("making the guest's image (some minutes, once)");
    make(&Image { dir: temp.clone() }, &suite)?;
    fs::rename(&temp, &dir).or_fail("make", dir.display().to_string())?;
    wait.done("the guest's image is made");
    Ok(Image { dir })
}

fn suite() -> String {
    let wished = std::env::var("ICEBOX_GUEST_SUITE").ok();
    wished.filter(|suite| !suite.is_empty()).unwrap_or_else(|| SUITE.to_owned())
}

fn recipe(suite: &str) -> String {
    let text = format!("{FORMAT} {suite} {ROOT_BYTES} {} {}", PACKAGES.join(","), BOOT_MODULES.join(","));
    Sha256::digest(text).iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

fn make(image: &Image, suite: &str) -> Result<()> {
    let tree = image.dir.join("tree");
    run::quiet(
        Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={}", PACKAGES.join(",")), suite])
            .arg(&tree)
            .arg(mirror()?),
    )?;
    // A guest has no name of its own, and only the user who started it logs in.
    let hostname = tree.join("etc/hostname");
    fs::write(&hostname, "icebox-guest\n").or_fail("write", hostname.display().to_string())?;
    let boot = tree.join("boot");
    copy(&only_file(&boot, "vmlinuz-")?, &image.kernel())?;
    copy(&tree.join("bin/busybox"), &image.busybox())?;
    let modules = image.modules();
    fs::create_dir(&modules).or_fail("make", modules.display().to_string())?;
    for name in BOOT_MODULES {
        boot_module(&tree.join("lib/modules"), name, &modules)?;
    }
    fs::remove_dir_all(&boot).or_fail("remove", boot.display().to_string())?;
    filesystem(&image.root(), ROOT_BYTES, "root", Some(&tree))?;
    fs::remove_dir_all(&tree).or_fail("remove", tree.display().to_string())
}

/// Copies a module, unpacked: the guest's first program has no decompressor. One that is built into the kernel has no file.
fn boot_module(tree: &Path, name: &str, to: &Path) -> Result<()> {
    let (plain, packed) = (format!("{name}.ko"), format!("{name}.ko.xz"));
    let names = ["-name", &plain, "-o", "-name", &packed];
    let found = run::quiet(Command::new("find").arg(tree).args(names))?;
    let found = Path::new(found.trim_end());
    if found.as_os_str().is_empty() {
        let built_in = format!("/{plain}");
        let lists =
            run::quiet(Command::new("find").arg(tree).args(["-name", "modules.builtin", "-exec", "cat", "{}", "+"]))?;
        if lists.lines().any(|line| line.ends_with(&built_in)) {
            return Ok(());
        }
        let why = format!("the kernel in {} has no such module", tree.display());
        return Err(Error::new("find", name, Cause::Unexpected(why)));
    }
    if found.extension().is_some_and(|extension| extension == "xz") {
        copy(found, &to.join(&packed))?;
        return run::quiet(Command::new("xz").arg("--decompress").arg(to.join(&packed))).map(|_| ());
    }
    copy(found, &to.join(&plain))
}

/// A sparse file with an ext4 file system of this label that holds a copy of `tree`.
pub(super) fn filesystem(path: &Path, bytes: u64, label: &str, tree: Option<&Path>) -> Result<()> {
    let subject = || path.display().to_string();
    let file = File::create(path).or_fail("make", subject())?;
    file.set_len(bytes).or_fail("make", subject())?;
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", label, "-E", "lazy_itable_init=1,lazy_journal_init=1"]);
    if let Some(tree) = tree {
        mkfs.arg("-d").arg(tree);
    }
    run::quiet(mkfs.arg(path)).map(|_| ())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).or_fail("copy", from.display().to_string()).map(|_| ())
}

fn only_file(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).or_fail("read", dir.display().to_string())?;
    let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    found.map(|entry| entry.path()).ok_or_else(|| {
        Error::new("find", format!("{prefix}*"), Cause::Unexpected(format!("there is none in {}", dir.display())))
    })
}

/// The machine's own mirror of Debian.
fn mirror() -> Result<String> {
    if let Some(wished) = std::env::var("ICEBOX_DEBIAN_MIRROR").ok().filter(|uri| !uri.is_empty()) {
        return Ok(wished);
    }
    let mut apt = Command::new("apt-get");
    let targets = run::quiet(apt.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]))?;
    whole_archive(&targets).ok_or_else(|| {
        let advice = "no Debian mirror is configured on this machine; set ICEBOX_DEBIAN_MIRROR to the URL of one";
        Error::refused("find", "a Debian mirror", advice)
    })
}

/// The first of apt's sources that is a complete archive by its path: it holds every suite.
fn whole_archive(targets: &str) -> Option<String> {
    targets.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_archive_is_chosen() {
        let targets = "http://a.example/debian-security/\nhttp://b.example/debian/\nhttp://c.example/debian/\n";
        assert_eq!(whole_archive(targets).unwrap(), "http://b.example/debian/");
        assert_eq!(whole_archive("http://a.example/ubuntu/\n"), None);
    }
}
