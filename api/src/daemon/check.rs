//! `iceboxd check`: what this host has and lacks, in words.

use std::path::Path;
use std::process::ExitCode;

use icebox_shim::launch::Tools;

use crate::config::{Config, PoolMode};
use crate::error::Error;
use icebox_net::namespace::Namespace;
use icebox_net::probe::{Probed, probe};

/// Value on 64-bit hosts with systemd.
const PID_MAX_WANTED: u64 = 4_194_304;
/// Enough for a thousand boxes with all their terminals.
const PTY_MAX_WANTED: u64 = 65_536;
/// Descriptors for runs, and for the connections of the proxies.
const FILES_OF_BOXES: u64 = 65_536;

struct Finding {
    good: bool,
    /// If it is missing, no box can start.
    needed: bool,
    text: String,
}

pub(super) fn run(config: &Config) -> Result<ExitCode, Error> {
    let mut findings = vec![root(), kernel(), cgroups(), loop_devices(), tools()?, base_image(config)?];
    findings.push(pool_tools(config));
    findings.push(proc_files());
    findings.extend(totals(config));
    findings.extend(network(config));
    for finding in &findings {
        let mark = match (finding.good, finding.needed) {
            (true, _) => "ok     ",
            (false, true) => "MISSING",
            (false, false) => "warning",
        };
        println!("{mark}  {}", finding.text);
    }
    let usable = findings.iter().all(|finding| finding.good || !finding.needed);
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn finding(good: bool, needed: bool, text: impl Into<String>) -> Finding {
    Finding { good, needed, text: text.into() }
}

fn root() -> Finding {
    let good = rustix::process::geteuid().is_root();
    finding(good, true, if good { "running as root" } else { "not running as root: boxes need it" })
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let numbers: Vec<u32> = release.split(['.', '-']).take(2).filter_map(|part| part.parse().ok()).collect();
    // cgroup.kill (5.14), mount_setattr with idmapped ext4 (5.12) and overlay (5.19).
    let good = matches!(numbers.as_slice(), [major, minor] if (*major, *minor) >= (5, 19));
    finding(good, true, format!("kernel {release}{}", if good { "" } else { ": 5.19 or newer is needed" }))
}

/// The mounted cgroup hierarchies.
fn cgroups() -> Finding {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kinds: Vec<&str> = mounts.lines().filter_map(|line| line.split(" - ").nth(1)?.split(' ').next()).collect();
    let (v2, v1) = (kinds.contains(&"cgroup2"), kinds.contains(&"cgroup"));
    match (v2, v1) {
        (true, false) => finding(true, true, "cgroup v2"),
        (true, true) => finding(true, true, "cgroup v2 beside v1 controllers (hybrid)"),
        (false, _) => finding(false, true, "no cgroup v2 hierarchy is mounted: boxes need it for freezing and billing"),
    }
}

/// Files of `/proc` that tell of a box are written when they are read.
fn proc_files() -> Finding {
    match icebox_shim::procfiles::can_watch() {
        Ok(()) => finding(true, false, "permission events of fanotify: /proc/meminfo and others tell of the box"),
        Err(error) => finding(
            false,
            false,
            format!(
                "no permission events of fanotify: /proc/meminfo and others are as old as the last command ({})",
                error.report()
            ),
        ),
    }
}

/// Kernel limits that all boxes share: see docs/limits.md.
fn totals(config: &Config) -> Vec<Finding> {
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let mut findings = Vec::new();
    for (path, name, least, what) in [
        ("/proc/sys/kernel/pid_max", "kernel.pid_max", PID_MAX_WANTED, "processes"),
        ("/proc/sys/kernel/pty/max", "kernel.pty.max", PTY_MAX_WANTED, "terminals"),
    ] {
        let Some(value) = number(path) else { continue };
        let few = format!("{name} is {value}: many boxes share few {what}; `sysctl -w {name}={least}`");
        findings.push(finding(value >= least, false, if value >= least { format!("{name} {value}") } else { few }));
    }
    // A connection takes a descriptor, one of a public URL two; a box takes some for each run.
    let wanted = u64::from(config.connections_max) + 2 * u64::from(config.public_urls.connections_max) + FILES_OF_BOXES;
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    findings.push(if hard >= wanted {
        finding(true, false, format!("open files: {hard}"))
    } else {
        finding(
            false,
            false,
            format!("open files: {hard}, fewer than {wanted}; start iceboxd with LimitNOFILE={wanted}"),
        )
    });
    findings
}

fn loop_devices() -> Finding {
    let good = Path::new("/dev/loop-control").exists();
    finding(good, true, if good { "loop devices" } else { "no /dev/loop-control: load the loop module" })
}

/// Without mkfs.xfs disks are copies, unless the data directory's file system can clone.
fn pool_tools(config: &Config) -> Finding {
    if config.storage.pool == PoolMode::Off {
        return finding(true, false, "pool of disks: turned off");
    }
    let found = ["/usr/sbin", "/sbin", "/usr/local/sbin"].iter().any(|dir| Path::new(dir).join("mkfs.xfs").exists());
    let text = if found {
        "pool of disks: mkfs.xfs"
    } else {
        "pool of disks: no mkfs.xfs, so disks may be copies instead of clones; install xfsprogs"
    };
    finding(found, false, text)
}

fn tools() -> Result<Finding, Error> {
    let tools = Tools::beside_current_exe().map_err(|cause| Error::new("find the init", "", cause))?;
    let missing: Vec<String> = [&tools.init, &tools.launch]
        .iter()
        .filter(|path| !path.exists())
        .map(|path| path.display().to_string())
        .collect();
    Ok(if missing.is_empty() {
        finding(true, true, "init and launcher are beside iceboxd")
    } else {
        finding(false, true, format!("not found: {} (ICEBOX_LIBEXEC names another directory)", missing.join(", ")))
    })
}

fn base_image(config: &Config) -> Result<Finding, Error> {
    let dir = config.image_dir();
    let subject = dir.display().to_string();
    let found =
        icebox_rootfs::image::find(&dir).map_err(|cause| Error::new("find the base image in", &subject, cause))?;
    Ok(match found {
        Some(base) => finding(true, false, format!("base image {}", base.dir.display())),
        None => finding(false, false, format!("no base image in {subject}: run `iceboxd image` once")),
    })
}

/// Tests whether boxes can be connected, in a namespace of its own; for the configured namespace it only tests that it
/// exists.
fn network(config: &Config) -> Vec<Finding> {
    if !config.network.enabled {
        return vec![finding(true, false, "network: turned off, boxes have a loopback interface only")];
    }
    let mut findings = Vec::new();
    if let Some(name) = &config.netns
        && let Err(error) = Namespace::open(name)
    {
        findings.push(finding(false, true, format!("network: netns: {}", error.chain())));
    }
    let Probed { is_guarded, lacks } = probe();
    if lacks.is_empty() {
        findings.push(finding(true, true, "network: links, nftables, tracked connections, netfilter's log"));
        let text = if is_guarded {
            "network: no other program can change the firewall's table while iceboxd runs"
        } else {
            "network: before Linux 6.9, a program that flushes all nftables rules opens boxes for a moment (docs/network.md)"
        };
        findings.push(finding(is_guarded, false, text));
    }
    let without = "; or set `[network] enabled = false`";
    findings.extend(lacks.into_iter().map(|lack| finding(false, true, format!("network: {lack}{without}"))));
    findings
}
