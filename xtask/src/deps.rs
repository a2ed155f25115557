//! What each task needs from Debian, and the public clients that the tests drive.
//!
//! Each task names its groups of needs, and a test compares the groups with the programs that the task's sources start. What
//! the packages of priority "required" bring is on every Debian machine and is not listed. Nothing is asked
//! of the network while everything is there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::{run, say};

/// A program or file that must be there, and the package that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    what: What,
    package: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Program(&'static str),
    File(&'static str),
    /// A Python module of the system's interpreter.
    Module(&'static str),
}

const fn program(name: &'static str, package: &'static str) -> Need {
    Need { what: What::Program(name), package }
}

/// For building: the linker, and the C compiler for SQLite.
pub(crate) const BUILD: &[Need] =
    &[program("cc", "gcc"), Need { what: What::File("/usr/include/stdio.h"), package: "libc6-dev" }];

/// For making the base image.
pub(crate) const IMAGE: &[Need] = &[
    program("debootstrap", "debootstrap"),
    program("gpgv", "gpgv"),
    program("wget", "wget"),
    Need { what: What::File("/usr/share/keyrings/debian-archive-keyring.gpg"), package: "debian-archive-keyring" },
];

/// For running `iceboxd`: mkfs.ext4 formats volumes, e2fsck repairs them, e2image copies and tune2fs labels those on
/// devices, mkfs.xfs formats their pool, blkid looks at devices, `setsid` detaches the daemon, `ip` makes it a network namespace.
pub(crate) const RUN: &[Need] = &[
    program("blkid", "util-linux"),
    program("e2fsck", "e2fsprogs"),
    program("e2image", "e2fsprogs"),
    program("ip", "iproute2"),
    program("mkfs.ext4", "e2fsprogs"),
    program("mkfs.xfs", "xfsprogs"),
    program("setsid", "util-linux"),
    program("tune2fs", "e2fsprogs"),
];

/// For the tests: peers, other file systems, networks, and what the public clients run on.
pub(crate) const TEST: &[Need] = &[
    program("buildah", "buildah"),
    program("busybox", "busybox-static"),
    program("conntrack", "conntrack"),
    program("docker-registry", "docker-registry"),
    program("e2fsck", "e2fsprogs"),
    program("ethtool", "ethtool"),
    program("filefrag", "e2fsprogs"),
    program("ip", "iproute2"),
    program("losetup", "mount"),
    program("mkfs.xfs", "xfsprogs"),
    program("mount", "mount"),
    program("nft", "nftables"),
    program("node", "nodejs"),
    program("npm", "npm"),
    program("python3", "python3"),
    Need { what: What::Module("ensurepip"), package: "python3-venv" },
    program("openssl", "openssl"),
    program("ping", "iputils-ping"),
    program("podman", "podman"),
    program("runc", "runc"),
    program("script", "bsdutils"),
    program("skopeo", "skopeo"),
    program("socat", "socat"),
    program("tc", "iproute2"),
    program("tcpdump", "tcpdump"),
    program("umoci", "umoci"),
    program("wipefs", "util-linux"),
    program("xfs_io", "xfsprogs"),
    program("xfs_repair", "xfsprogs"),
];

/// For the guest: its image is made as the base image of boxes is, and busybox packs its first root file system. Its disk is
/// mounted here when a power cut is replayed.
pub(crate) const VM: &[Need] = &[
    program("busybox", "busybox-static"),
    program("debootstrap", "debootstrap"),
    program("gpgv", "gpgv"),
    program("wget", "wget"),
    Need { what: What::File("/usr/share/keyrings/debian-archive-keyring.gpg"), package: "debian-archive-keyring" },
    program("mkfs.ext4", "e2fsprogs"),
    program("mount", "mount"),
    program("qemu-system-x86_64", "qemu-system-x86"),
    // QEMU only recommends the firmware.
    Need { what: What::File("/usr/share/seabios/bios-256k.bin"), package: "seabios" },
    program("strip", "binutils"),
    program("xz", "xz-utils"),
];

/// For the benchmarks: the peers, Docker's firewall rules for the bridge that networks are compared with, and a plain
/// server of the closed world of networks.
pub(crate) const BENCH: &[Need] = &[
    program("buildah", "buildah"),
    program("busybox", "busybox-static"),
    program("bwrap", "bubblewrap"),
    program("crun", "crun"),
    program("losetup", "mount"),
    program("nft", "nftables"),
    program("podman", "podman"),
    program("python3", "python3"),
    program("runc", "runc"),
    program("umoci", "umoci"),
    program("unshare", "util-linux"),
];

/// The groups of needs, by their names on the command line.
pub(crate) const GROUPS: [(&str, &[Need]); 6] =
    [("build", BUILD), ("image", IMAGE), ("run", RUN), ("test", TEST), ("vm", VM), ("bench", BENCH)];

/// Programs of packages that every Debian machine has: coreutils, dash, findutils, tar, gzip, util-linux, apt.
pub(crate) const REQUIRED: [&str; 16] = [
    "apt-get", "cat", "chmod", "cp", "du", "find", "gzip", "nice", "nsenter", "setpriv", "sh", "sleep", "stty", "tar",
    "true", "unshare",
];

/// Options of `deps`.
#[derive(Debug, clap::Args)]
pub(crate) struct DepsArgs {
    /// Only the packages of this group
    #[arg(long, value_name = "GROUP", value_parser = clap::builder::PossibleValuesParser::new(GROUPS.map(|group| group.0)))]
    only: Option<String>,
}

/// Installs the packages and the public clients of all tasks, or the packages of one group.
pub(crate) fn deps(args: &DepsArgs) -> Result<()> {
    let wanted = |name: &str| args.only.as_deref().is_none_or(|only| only == name);
    let groups: Vec<&[Need]> = GROUPS.into_iter().filter(|(name, _)| wanted(name)).map(|(_, needs)| needs).collect();
    ensure(&groups)?;
    if args.only.is_some() {
        return start_each(&groups);
    }
    sdk_clients(&Places::find()?)
}

/// Starts each program of these groups once: a library that its package does not bring shows here.
fn start_each(groups: &[&[Need]]) -> Result<()> {
    for need in groups.iter().copied().flatten() {
        let What::Program(name) = need.what else { continue };
        let path = run::find_program(name).unwrap_or_else(|| name.into());
        // Not all know the option. They say so, and have started.
        let output = Command::new(&path).arg("--version").output().or_fail("start", name)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("error while loading shared libraries") {
            return Err(Error::new("start", name, Cause::Unexpected(said.trim().to_owned())));
        }
    }
    Ok(())
}

/// The system's own Python: another one in `PATH` has other modules.
const PYTHON: &str = "/usr/bin/python3";
/// The public clients, with the versions that the tests are written for.
const NPM_CLIENT: (&str, &str) = ("@upstash/box", "0.5.5");
/// npm itself, for boxes: the base image has none. The last one that node 18 runs.
const NPM: (&str, &str) = ("npm", "10.9.4");
const PYPI_CLIENT: (&str, &str) = ("upstash-box", "0.4.0");

impl Need {
    fn is_there(&self) -> bool {
        match self.what {
            What::Program(name) => run::find_program(name).is_some(),
            What::File(path) => Path::new(path).exists(),
            What::Module(name) => {
                let import = format!("import {name}");
                Path::new(PYTHON).exists() && run::quiet(Command::new(PYTHON).args(["-c", &import])).is_ok()
            }
        }
    }
}

/// Installs the packages of the needs that are not met.
pub(crate) fn ensure(groups: &[&[Need]]) -> Result<()> {
    let missing = missing(groups);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if run::find_program("apt-get").is_none() {
        let advice = format!("this machine has no apt-get; install what these Debian packages bring: {list}");
        return Err(Error::refused("install", list, advice));
    }
    if !nix::unistd::geteuid().is_root() {
        let advice = format!("run as root, or first: sudo apt-get install --no-install-recommends {list}");
        return Err(Error::refused("install", list, advice));
    }
    let mut wait = say::wait("apt-get update");
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
        command
    };
    run::quiet(apt().arg("update"))?;
    wait.update(&format!("apt-get install {list}"));
    run::quiet(apt().args(["install", "-y", "--no-install-recommends"]).args(&missing))?;
    wait.done(&format!("installed {list}"));
    // The package may not bring what we need on this release: better said here than later.
    if let Some(still) = groups.iter().copied().flatten().find(|need| !need.is_there()) {
        let why = format!("the package {} is installed, but {:?} is still missing", still.package, still.what);
        return Err(Error::new("install", list, Cause::Unexpected(why)));
    }
    Ok(())
}

/// Packages of the needs that are not met, each once, sorted.
fn missing(groups: &[&[Need]]) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        groups.iter().copied().flatten().filter(|need| !need.is_there()).map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Installs the public clients into the target directory, unless these versions are there.
pub(crate) fn sdk_clients(places: &Places) -> Result<()> {
    let dir = places.sdk();
    fs::create_dir_all(&dir).or_fail("make", dir.display().to_string())?;
    npm_packages(&dir)?;
    pypi_client(&dir)
}

/// Both in one go: npm takes away what it was not asked for.
fn npm_packages(dir: &Path) -> Result<()> {
    let is_installed = |(name, version): (&str, &str)| -> Result<bool> {
        let manifest = dir.join("node_modules").join(name).join("package.json");
        let package = run::read_if_there(&manifest)?;
        let package = package.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        Ok(package.is_some_and(|package| package["version"] == version))
    };
    if is_installed(NPM_CLIENT)? && is_installed(NPM)? {
        return Ok(());
    }
    let wanted = [NPM_CLIENT, NPM].map(|(name, version)| format!("{name}@{version}"));
    let wait = say::wait(format!("npm install {}", wanted.join(" ")));
    // A manifest of its own keeps npm from looking for one further up.
    let own = dir.join("package.json");
    fs::write(&own, "{\"private\": true}\n").or_fail("write", own.display().to_string())?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save", "--prefix"]).arg(dir);
    run::quiet(npm.args(&wanted).current_dir(dir))?;
    wait.done(&format!("{} are installed", wanted.join(" and ")));
    Ok(())
}

fn pypi_client(dir: &Path) -> Result<()> {
    let (name, version) = PYPI_CLIENT;
    let venv = dir.join("venv");
    let python = venv.join("bin/python3");
    // Debian's own python is the one that is in the guest, too.
    let test = format!(
        "import importlib.metadata as m, sys; sys.exit(m.version('{name}') != '{version}' or sys.base_prefix != '/usr')"
    );
    if python.exists() && run::quiet(Command::new(&python).args(["-c", &test])).is_ok() {
        return Ok(());
    }
    let wait = say::wait(format!("pip install {name}=={version}"));
    run::quiet(Command::new(PYTHON).args(["-m", "venv", "--clear"]).arg(&venv))?;
    let mut pip = Command::new(&python);
    run::quiet(
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).arg(format!("{name}=={version}")),
    )?;
    wait.done(&format!("{name} {version} is installed"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs of the guest, which `vm/image.rs` installs there.
    const IN_THE_GUEST: [&str; 9] = [
        "journalctl",
        "lvcreate",
        "lvs",
        "modprobe",
        "swapoff",
        "systemctl",
        "systemd-analyze",
        "vgcreate",
        "vgremove",
    ];
    /// Ours, and those that are used only where they are installed.
    const OTHERS: [&str; 2] = ["docker", "icebox"];
    /// Sources that start programs of the host, and the groups of the tasks that run them.
    const SOURCES: [(&str, &[&[Need]]); 15] = [
        ("xtask/src/bench", &[BUILD, IMAGE, RUN, BENCH]),
        ("tests/src/bin/netbench", &[BUILD, IMAGE, RUN, BENCH]),
        ("tests/src/net", &[BUILD, IMAGE, RUN, BENCH]),
        ("xtask/src/vm", &[VM]),
        ("xtask/src/powercut", &[BUILD, IMAGE, RUN, VM]),
        ("xtask/src/daemon.rs", &[RUN]),
        ("xtask/src/deps.rs", &[TEST]),
        ("rootfs/src", &[IMAGE, RUN]),
        ("rootfs/tests", &[IMAGE, RUN, TEST]),
        ("runtime/src", &[RUN]),
        ("shim/src", &[RUN]),
        ("api", &[BUILD, IMAGE, RUN, TEST]),
        ("tests", &[BUILD, IMAGE, RUN, TEST, VM]),
        ("shim/tests", &[BUILD, IMAGE, RUN, TEST]),
        ("runtime/tests", &[BUILD, IMAGE, RUN, TEST]),
    ];

    #[test]
    fn only_what_is_missing_is_named_and_once() {
        let here = program("sh", "dash");
        let gone = program("no-such-program-anywhere", "b-package");
        let file = Need { what: What::File("/no/such/file"), package: "a-package" };
        let module = Need { what: What::Module("no_such_module"), package: "b-package" };
        assert_eq!(missing(&[&[here, gone], &[file, module]]), ["a-package", "b-package"]);
        assert!(missing(&[&[here]]).is_empty());
    }

    /// Every Rust source at or below a path.
    fn sources(path: &Path) -> Vec<std::path::PathBuf> {
        if path.is_file() {
            return vec![path.to_owned()];
        }
        let entries = fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let all = entries.flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { sources(&path) } else { vec![path] }
        });
        all.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
    }

    /// The programs that a source starts by a name that stands in it.
    fn programs(text: &str) -> Vec<&str> {
        let starts = text.split("Command::new(\"").skip(1);
        starts.filter_map(|rest| rest.split('"').next()).map(|path| path.rsplit('/').next().unwrap_or(path)).collect()
    }

    #[test]
    fn each_task_installs_the_programs_that_it_starts() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut lacking = Vec::new();
        let mut seen = 0;
        for (path, groups) in SOURCES {
            let is_listed = |program: &str| {
                let needs = groups.iter().copied().flatten();
                needs.into_iter().any(|need| matches!(need.what, What::Program(name) if name == program))
            };
            for file in sources(&root.join(path)) {
                let text = fs::read_to_string(&file).unwrap();
                for program in programs(&text) {
                    seen += 1;
                    let known =
                        REQUIRED.contains(&program) || IN_THE_GUEST.contains(&program) || OTHERS.contains(&program);
                    if !known && !is_listed(program) {
                        lacking.push(format!("{}: {program}", file.display()));
                    }
                }
            }
        }
        assert!(seen > 20, "only {seen} programs were found: the sources are read wrongly");
        assert!(lacking.is_empty(), "programs that no group of the task installs:\n{}", lacking.join("\n"));
    }
}
