//! Writes to v2 control files, each read back. Some forms serve v1 too, where both versions agree.

use super::controller::Controller;
use super::error::{Error, ErrorKind, Result};
use super::file::Dir;
use super::limits::IoMax;
use super::parse;

/// The kernel rounds byte limits down to whole pages; no page we run on is larger.
const PAGE_BYTES_MAX: i64 = 65_536;

/// Writes, reads back, and compares.
pub(super) fn checked(
    dir: &Dir,
    c: Controller,
    file: &str,
    value: &str,
    same: impl FnOnce(&str) -> bool,
) -> Result<()> {
    dir.write(file, value)?;
    let kept = dir.read(file)?;
    if same(kept.trim()) {
        return Ok(());
    }
    let why = format!("wrote {value:?}, the kernel keeps {:?}", kept.trim());
    Err(Error::new("read back", dir.path().join(file), ErrorKind::Unenforced(c)).detail(why))
}

pub(super) fn exact(dir: &Dir, c: Controller, file: &str, value: u64) -> Result<()> {
    let value = value.to_string();
    checked(dir, c, file, &value, |kept| kept == value)
}

/// A number, or "max" for -1.
pub(super) fn max_or(dir: &Dir, c: Controller, file: &str, value: i64) -> Result<()> {
    let value = spelled(value);
    checked(dir, c, file, &value, |kept| kept == value)
}

fn spelled(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

/// Is `kept` what the kernel makes of a limit of `bytes`?
pub(super) fn rounded(kept: &str, bytes: i64) -> bool {
    kept.parse().is_ok_and(|kept: i64| kept <= bytes && bytes - kept < PAGE_BYTES_MAX)
}

pub(super) fn bytes(dir: &Dir, file: &str, bytes: i64) -> Result<()> {
    let value = spelled(bytes);
    checked(dir, Controller::Memory, file, &value, |kept| kept == value || (bytes != -1 && rounded(kept, bytes)))
}

/// Rounded down to whole huge pages, which can be large.
pub(super) fn hugetlb(dir: &Dir, file: &str, bytes: u64) -> Result<()> {
    let same = |kept: &str| kept == "max" || kept.parse().is_ok_and(|kept: u64| kept <= bytes);
    checked(dir, Controller::Hugetlb, file, &bytes.to_string(), same)
}

pub(super) fn number_list(dir: &Dir, file: &str, list: &str) -> Result<()> {
    let same = |kept: &str| parse::number_list(kept) == parse::number_list(list);
    checked(dir, Controller::Cpuset, file, list, same)?;
    // v2 keeps a list of which nothing is online, or nothing the parent has, and goes on with all that the parent has.
    let effective = format!("{file}.effective");
    if !dir.has(&effective) {
        return Ok(()); // v1 refuses such a list
    }
    let (kept, wanted) = (parse::number_list(&dir.read(&effective)?), parse::number_list(list));
    if kept.as_ref().zip(wanted.as_ref()).is_some_and(|(kept, wanted)| kept.is_subset(wanted)) {
        return Ok(());
    }
    let why = format!("none of {list} is there: {} are in use instead", dir.read(&effective)?.trim());
    Err(Error::new("read back", dir.path().join(&effective), ErrorKind::Unenforced(Controller::Cpuset)).detail(why))
}

/// Quota and period in one write, so that no mixture of old and new is ever in force.
pub(super) fn cpu_max(dir: &Dir, quota: Option<i64>, period: Option<u64>, resets_burst: bool) -> Result<()> {
    let now = dir.read("cpu.max")?;
    let (quota_now, period_now) = now.trim().split_once(' ').unwrap_or(("max", "100000"));
    let quota = quota.map_or_else(|| quota_now.to_owned(), spelled);
    let period = period.map_or_else(|| period_now.to_owned(), |p| p.to_string());
    if resets_burst && dir.has("cpu.max.burst") {
        // The kernel refuses a quota below the old burst; the new burst follows.
        dir.write("cpu.max.burst", "0")?;
    }
    let value = format!("{quota} {period}");
    checked(dir, Controller::Cpu, "cpu.max", &value, |kept| kept == value)
}

pub(super) fn io_weight(dir: &Dir, weight: u64) -> Result<()> {
    let has_default = |kept: &str| kept.lines().any(|l| l == format!("default {weight}"));
    if dir.has("io.weight") {
        return checked(dir, Controller::Io, "io.weight", &format!("default {weight}"), has_default);
    }
    // Without iocost the scheduler BFQ has the only weight.
    let weight = super::limits::blkio_weight(weight).to_string();
    let same = |kept: &str| kept == weight || kept.lines().any(|l| l == format!("default {weight}"));
    checked(dir, Controller::Io, "io.bfq.weight", &weight, same)
}

pub(super) fn io_max_line(io: &IoMax) -> String {
    let mut line = format!("{}:{}", io.major, io.minor);
    for (key, value) in [("rbps", io.rbps), ("wbps", io.wbps), ("riops", io.riops), ("wiops", io.wiops)] {
        match value {
            Some(u64::MAX) => line += &format!(" {key}=max"),
            Some(value) => line += &format!(" {key}={value}"),
            None => {}
        }
    }
    line
}

pub(super) fn io_max(dir: &Dir, io: &IoMax) -> Result<()> {
    let line = io_max_line(io);
    let same = |kept: &str| {
        let device = format!("{}:{} ", io.major, io.minor);
        let wanted = line.split(' ').skip(1);
        match kept.lines().find(|l| l.starts_with(&device)) {
            Some(kept) => wanted.into_iter().all(|w| kept.split(' ').any(|k| k == w)),
            // A device without a limit has no line.
            None => wanted.into_iter().all(|w| w.ends_with("=max")),
        }
    };
    checked(dir, Controller::Io, "io.max", &line, same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_rounding_is_the_same_limit() {
        assert!(rounded("4096", 5000));
        assert!(rounded("5000", 5000));
        assert!(!rounded("8192", 5000), "never more than asked");
        assert!(!rounded("0", 1 << 20));
        assert!(!rounded("max", 5000));
    }

    #[test]
    fn io_lines() {
        let io = IoMax { major: 8, minor: 16, rbps: Some(1), wiops: Some(u64::MAX), ..IoMax::default() };
        assert_eq!(io_max_line(&io), "8:16 rbps=1 wiops=max");
    }
}
