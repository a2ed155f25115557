//! `cargo xtask bare`: the packages of each group of needs (`deps`), on a Debian 12 that has nothing else.
//!
//! Each group is installed alone, above the same minimal tree, by this very program: so no group rests on what another
//! one brings, and each sum of groups that a task asks for is complete. Then every program of the group is started. What
//! is built is tried with Rust's toolchain and the workspace, both bound in read-only.
//!
//! Everything lives in a mount namespace of a thread, over a tmpfs: nothing of it is left when the thread ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use icebox_rootfs::image;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::{deps, run, say};

/// Groups that are installed at the same time: a part of each waits for the mirror.
const AT_ONCE: usize = 3;
/// Longest time of one group.
const GROUP_SECONDS_MAX: u64 = 600;
/// Size of the layer that a group is installed into.
const LAYER_BYTES_MAX: &str = "size=2g";
/// Where the workspace, the toolchain and this program are in the tree.
const WORKSPACE: &str = "mnt/workspace";
const TOOLCHAIN: &str = "mnt/toolchain";
const XTASK: &str = "mnt/xtask";
/// A program that needs what the workspace needs of the C compiler and linker: a static executable and a C header.
const BUILD_SCRIPT: &str = "set -e; cd /tmp; echo '#include <stdio.h>' > a.c; cc -c a.c; \
    echo 'fn main() { println!(\"built\") }' > a.rs; \
    /mnt/toolchain/bin/rustc -C target-feature=+crt-static a.rs; ./a; \
    CARGO_HOME=/tmp/cargo RUSTC=/mnt/toolchain/bin/rustc \
    /mnt/toolchain/bin/cargo metadata --no-deps --offline --format-version 1 --manifest-path /mnt/workspace/Cargo.toml";

/// `cargo xtask bare`: fails with the error of the first group that failed.
pub(crate) fn bare() -> Result<()> {
    check_groups()?.into_iter().try_for_each(|(_, result)| result)
}

/// Installs every group in a tree of its own. Returns the name and the result of each.
pub(crate) fn check_groups() -> Result<Vec<(&'static str, Result<()>)>> {
    run::require_root("bare")?;
    deps::ensure(&[deps::IMAGE])?;
    let places = Places::find()?;
    let tree = tree(&places)?;
    for program in deps::REQUIRED {
        if !["usr/bin", "usr/sbin"].iter().any(|dir| tree.join(dir).join(program).exists()) {
            return Err(Error::new("find", program, Cause::Unexpected("Debian's required packages lack it".into())));
        }
    }
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            // Each group has a thread of its own, since a thread's mount namespace ends with it.
            scope.spawn(|| {
                while let Some((name, _)) = deps::GROUPS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (places, tree) = (&places, &tree);
                    let done = std::thread::scope(|one| one.spawn(|| group(places, tree, name)).join());
                    let done = done.unwrap_or_else(|_| {
                        Err(Error::new("install", *name, Cause::Unexpected("its thread panicked".into())))
                    });
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((*name, done));
                }
            });
        }
    });
    Ok(results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// The minimal tree, made once and never changed.
fn tree(places: &Places) -> Result<PathBuf> {
    let dir = places.target.join("bare");
    let (tree, temp, cache) = (dir.join("root"), dir.join("new"), dir.join("packages"));
    if tree.is_dir() {
        return Ok(tree);
    }
    let wait = say::wait("making a minimal Debian 12");
    if temp.is_dir() {
        fs::remove_dir_all(&temp).or_fail("remove", temp.display().to_string())?;
    }
    for dir in [&temp, &cache] {
        fs::create_dir_all(dir).or_fail("make", dir.display().to_string())?;
    }
    image::minimal(&temp, &cache).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        Error::new("make", temp.display().to_string(), Cause::Unexpected(format!("{error}{cause}")))
    })?;
    fs::rename(&temp, &tree).or_fail("make", tree.display().to_string())?;
    wait.done("a minimal Debian 12 is made");
    Ok(tree)
}

/// Installs one group above the tree, and starts its programs.
fn group(places: &Places, tree: &Path, name: &str) -> Result<()> {
    let started = Instant::now();
    let root = enter(places, tree, name)?;
    let inside = |command: &[&str]| {
        let limit = GROUP_SECONDS_MAX.to_string();
        let mut chroot = Command::new("timeout");
        chroot.args([limit.as_str(), "chroot"]).arg(&root).args(command);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        chroot.env_clear().env("PATH", path).env("HOME", "/root");
        chroot.envs(std::env::vars().filter(|(name, _)| name.to_ascii_lowercase().ends_with("_proxy")));
        run::quiet(&mut chroot)
    };
    inside(&["/mnt/xtask", "deps", "--only", name])?;
    if name == "build" {
        inside(&["sh", "-c", BUILD_SCRIPT])?;
    }
    say::fact(&format!("{name}: its packages bring what it starts ({} s)", started.elapsed().as_secs()));
    Ok(())
}

/// Gives the calling thread a mount namespace with the tree, writable in memory. Returns the root of it.
fn enter(places: &Places, tree: &Path, name: &str) -> Result<PathBuf> {
    let dir = places.target.join("bare").join(name);
    fs::create_dir_all(&dir).or_fail("make", dir.display().to_string())?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |errno: nix::errno::Errno| Error::new("mount", what, Cause::Io(errno.into()))
    };
    let plain = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("in a namespace"))?;
    mount(plain, "/", plain, MsFlags::MS_PRIVATE | MsFlags::MS_REC, plain).map_err(failed("/"))?;
    mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some(LAYER_BYTES_MAX)).map_err(failed("tmpfs"))?;
    let (upper, work, root) = (dir.join("upper"), dir.join("work"), dir.join("root"));
    for dir in [&upper, &work, &root] {
        fs::create_dir(dir).or_fail("make", dir.display().to_string())?;
    }
    let layers = format!("lowerdir={},upperdir={},workdir={}", tree.display(), upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .map_err(failed("overlay"))?;
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), plain).map_err(failed("proc"))?;
    let bind = |from: &Path, to: &Path, flags: MsFlags| {
        mount(Some(from), to, plain, MsFlags::MS_BIND, plain).map_err(failed(&from.display().to_string()))?;
        mount(plain, to, plain, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, plain)
            .map_err(failed(&to.display().to_string()))
    };
    bind(Path::new("/dev"), &root.join("dev"), MsFlags::empty())?;
    let sysroot = run::quiet(Command::new("rustc").current_dir(&places.root).args(["--print", "sysroot"]))?;
    for (from, to) in [(places.root.as_path(), WORKSPACE), (Path::new(sysroot.trim()), TOOLCHAIN)] {
        let to = root.join(to);
        fs::create_dir_all(&to).or_fail("make", to.display().to_string())?;
        bind(from, &to, MsFlags::MS_RDONLY)?;
    }
    let own = std::env::current_exe().or_fail("find", "the program of this task")?;
    let copies = [(own.as_path(), XTASK), (Path::new("/etc/resolv.conf"), "etc/resolv.conf")];
    for (from, to) in copies {
        fs::copy(from, root.join(to)).or_fail("copy", from.display().to_string())?;
    }
    // In memory nothing has to be flushed, and no service may start.
    let files = [("etc/dpkg/dpkg.cfg.d/bare", "force-unsafe-io\n"), ("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")];
    for (name, text) in files {
        let path = root.join(name);
        fs::write(&path, text).or_fail("write", path.display().to_string())?;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).or_fail("write", path.display().to_string())?;
    }
    Ok(root)
}
