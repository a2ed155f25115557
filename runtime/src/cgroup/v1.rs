//! Writes to v1 control files, each read back. The order matters more here than on v2: most limits are two files.

use rustix::io::Errno;

use super::controller::Controller;
use super::devices::{DeviceRule, V1Program};
use super::error::{Error, ErrorKind, Result};
use super::file::Dir;
use super::limits::{IoMax, blkio_weight, memsw, shares_from_weight};
use super::v2::{checked, exact, rounded};

pub(super) const LIMIT: &str = "memory.limit_in_bytes";
const MEMSW: &str = "memory.memsw.limit_in_bytes";
/// Buffers of TCP and UDP sockets, in spite of the name.
pub(super) const SOCKETS: &str = "memory.kmem.tcp.limit_in_bytes";
/// A v1 memory limit from here up means "none": the kernel prints the largest page count for it.
const UNLIMITED_BYTES: i64 = i64::MAX - 65_536;

/// This limit does not exist on v1.
pub(super) fn lacks(dir: &Dir, c: Controller, why: &'static str) -> Error {
    Error::new("limit", dir.path(), ErrorKind::Unenforced(c)).detail(why)
}

pub(super) fn cpu_max(dir: &Dir, quota: Option<i64>, period: Option<u64>, resets_burst: bool) -> Result<()> {
    let c = Controller::Cpu;
    let set_period = || period.map_or(Ok(()), |p| exact(dir, c, "cpu.cfs_period_us", p));
    let set_quota = || {
        let value = |q: i64| q.to_string();
        quota.map_or(Ok(()), |q| checked(dir, c, "cpu.cfs_quota_us", &value(q), |kept| kept == value(q)))
    };
    if resets_burst && dir.has("cpu.cfs_burst_us") {
        // The kernel refuses a quota below the old burst; the new burst follows.
        dir.write("cpu.cfs_burst_us", "0")?;
    }
    // Between the two writes old and new mix, and the mixture can exceed what the parent allows: then try the other
    // order.
    match set_period() {
        Err(e) if e.is(Errno::INVAL) && quota.is_some() => {
            set_quota()?;
            set_period()
        }
        Err(e) => Err(e),
        Ok(()) => set_quota(),
    }
}

pub(super) fn cpu_weight(dir: &Dir, weight: u64) -> Result<()> {
    exact(dir, Controller::Cpu, "cpu.shares", shares_from_weight(weight))
}

/// A limit in bytes; the kernel keeps whole pages.
pub(super) fn bytes(dir: &Dir, file: &str, bytes: i64) -> Result<()> {
    let same = |kept: &str| match bytes {
        -1 => kept.parse().is_ok_and(|kept: i64| kept >= UNLIMITED_BYTES),
        _ => rounded(kept, bytes) || kept.parse().is_ok_and(|k: i64| k >= UNLIMITED_BYTES && bytes >= UNLIMITED_BYTES),
    };
    checked(dir, Controller::Memory, file, &bytes.to_string(), same)
}

/// The memory limit alone; memory+swap stays, but must not be below it.
pub(super) fn memory_max(dir: &Dir, max: i64) -> Result<()> {
    bytes(dir, LIMIT, max)
}

/// Memory and memory+swap. At every moment the kernel wants limit <= memsw, so the order is up first, or down first.
pub(super) fn memory_and_swap(dir: &Dir, max: Option<i64>, swap: i64) -> Result<()> {
    let memory = match max {
        Some(max) => max,
        None => match current(dir, LIMIT)? {
            UNLIMITED_BYTES.. => -1,
            limit => limit,
        },
    };
    if !dir.has(MEMSW) {
        return Err(lacks(dir, Controller::Memory, "the kernel does not account swap"));
    }
    let Some(sum) = memsw(memory, swap) else {
        return Err(lacks(dir, Controller::Memory, "v1 cannot limit swap without a limit of memory"));
    };
    let set_memory = || max.map_or(Ok(()), |max| bytes(dir, LIMIT, max));
    if sum == -1 || sum >= current(dir, MEMSW)? {
        bytes(dir, MEMSW, sum)?;
        set_memory()
    } else {
        set_memory()?;
        bytes(dir, MEMSW, sum)
    }
}

fn current(dir: &Dir, file: &str) -> Result<i64> {
    let text = dir.read(file)?;
    let number = text.trim().parse();
    number.map_err(|_| Error::new("read", dir.path().join(file), ErrorKind::Io).detail("unexpected content"))
}

pub(super) fn io_weight(dir: &Dir, weight: u64) -> Result<()> {
    let file = if dir.has("blkio.weight") { "blkio.weight" } else { "blkio.bfq.weight" };
    let value = blkio_weight(weight).to_string();
    let same = |kept: &str| kept == value || kept.lines().any(|l| l == format!("default {value}"));
    checked(dir, Controller::Blkio, file, &value, same)
}

pub(super) fn io_max(dir: &Dir, io: &IoMax) -> Result<()> {
    let files = [
        ("blkio.throttle.read_bps_device", io.rbps),
        ("blkio.throttle.write_bps_device", io.wbps),
        ("blkio.throttle.read_iops_device", io.riops),
        ("blkio.throttle.write_iops_device", io.wiops),
    ];
    for (file, rate) in files {
        let Some(rate) = rate else { continue };
        // 0 takes a limit away on v1.
        let rate = if rate == u64::MAX { 0 } else { rate };
        let device = format!("{}:{}", io.major, io.minor);
        let line = format!("{device} {rate}");
        let same = |kept: &str| match rate {
            0 => !kept.lines().any(|l| l.split(' ').next() == Some(&device)),
            _ => kept.lines().any(|l| l == line),
        };
        checked(dir, Controller::Blkio, file, &line, same)?;
    }
    Ok(())
}

/// The device controller. From "deny all", each exception is added: nothing is granted on the way that the list
/// denies. A list that ends in "allow all but" begins with a short moment of "allow all".
pub(super) fn devices(dir: &Dir, rules: &[DeviceRule]) -> Result<()> {
    let c = Controller::Devices;
    let program = V1Program::fold(rules).map_err(|rule| {
        Error::new("limit", dir.path(), ErrorKind::Unenforced(c))
            .detail(format!("v1 cannot hold the rule `{}` after a wider one", rule.0))
    })?;
    let (default, exception) =
        if program.default_allow { ("devices.allow", "devices.deny") } else { ("devices.deny", "devices.allow") };
    dir.write(default, "a")?;
    for e in &program.exceptions {
        dir.write(exception, &e.to_string())?;
    }
    let kept = dir.read("devices.list")?;
    let mut kept: Vec<&str> = kept.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let mut wanted: Vec<String> = match program.default_allow {
        // The kernel does not show what is excepted from "allow".
        true => vec!["a *:* rwm".to_owned()],
        false => program.exceptions.iter().map(ToString::to_string).collect(),
    };
    kept.sort_unstable();
    wanted.sort_unstable();
    if kept == wanted {
        return Ok(());
    }
    let why = format!("wrote {wanted:?}, the kernel keeps {kept:?}");
    Err(Error::new("read back", dir.path().join("devices.list"), ErrorKind::Unenforced(c)).detail(why))
}
