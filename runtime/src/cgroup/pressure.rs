//! Pressure stall information (PSI) for CPU, memory and IO of a v2 cgroup.
//!
//! The format and its meaning are those of the kernel's `Documentation/accounting/psi.rst`; that every cgroup has the
//! files `cpu.pressure`, `memory.pressure` and `io.pressure`, with or without controllers, is in
//! `Documentation/admin-guide/cgroup-v2.rst` ("PSI"). So a hybrid machine tells pressure too. Reading only.

use rustix::io::Errno;

use super::Cgroup;
use super::error::{Error, ErrorKind, Result};

/// The resource that tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// A CPU; being throttled by the quota counts.
    Cpu,
    /// Memory: reclaim, refaults, swapping in, throttling by `memory.high`.
    Memory,
    /// Block IO; being throttled by `io.max` counts.
    Io,
}

/// The share of time in which tasks were stalled on a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last 5 minutes.
    pub avg300: f64,
    /// Since the cgroup was made, in µs.
    pub total_usec: u64,
}

/// One pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one task was stalled.
    pub some: Stall,
    /// All non-idle tasks were stalled at the same time. Zero for CPU before Linux 5.13, which lacks that line.
    pub full: Stall,
}

impl Resource {
    const fn file(self) -> &'static str {
        match self {
            Self::Cpu => "cpu.pressure",
            Self::Memory => "memory.pressure",
            Self::Io => "io.pressure",
        }
    }
}

impl Cgroup {
    /// Reads a pressure file; it tells about this cgroup and those below it.
    ///
    /// # Errors
    /// `Unsupported` on a legacy layout, and on kernels built or started without PSI.
    pub fn pressure(&self, resource: Resource) -> Result<Pressure> {
        let file = resource.file();
        let without = |subject: std::path::PathBuf| {
            Error::new("read", subject, ErrorKind::Unsupported)
                .detail("this kernel tells no pressure (psi=1 turns it on)")
        };
        let dir = self.unified.as_ref().ok_or_else(|| without(self.path.as_str().into()))?;
        let text = match dir.read(file) {
            // Started with psi=0: the file is not there, or (older kernels) cannot be opened.
            Err(e) if e.is(Errno::NOENT) || e.is(Errno::OPNOTSUPP) => return Err(without(dir.path().join(file))),
            read => read?,
        };
        parse(&text)
            .ok_or_else(|| Error::new("read", dir.path().join(file), ErrorKind::Io).detail("unexpected content"))
    }
}

/// `None` without a readable `some` line.
fn parse(text: &str) -> Option<Pressure> {
    let line = |kind: &str| text.lines().find_map(|l| l.strip_prefix(kind)?.strip_prefix(' '));
    let some = stall(line("some")?)?;
    let full = match line("full") {
        Some(rest) => stall(rest)?,
        None => Stall::default(),
    };
    Some(Pressure { some, full })
}

fn stall(rest: &str) -> Option<Stall> {
    let value = |key: &str| rest.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let percent = |key| value(key)?.parse().ok().filter(|p: &f64| p.is_finite() && *p >= 0.0);
    Some(Stall {
        avg10: percent("avg10")?,
        avg60: percent("avg60")?,
        avg300: percent("avg300")?,
        total_usec: value("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_of_the_kernel() {
        let text = "some avg10=50.43 avg60=37.31 avg300=12.36 total=42088493\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = parse(text).unwrap();
        assert_eq!(pressure.some, Stall { avg10: 50.43, avg60: 37.31, avg300: 12.36, total_usec: 42_088_493 });
        assert_eq!(pressure.full.total_usec, 7);
    }

    #[test]
    fn an_old_cpu_file_has_no_full_line() {
        let pressure = parse("some avg10=1.00 avg60=0.00 avg300=0.00 total=3\n").unwrap();
        assert_eq!((pressure.some.total_usec, pressure.full), (3, Stall::default()));
    }

    #[test]
    fn nonsense_is_no_pressure() {
        for text in ["", "some", "some avg10=x avg60=0 avg300=0 total=1", "some avg10=nan avg60=0 avg300=0 total=1"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        let half = "some avg10=1.00 avg60=0.00 avg300=0.00 total=3\nfull avg10=1\n";
        assert_eq!(parse(half), None, "half a line is not taken for zeros");
    }

    proptest! {
        #[test]
        fn never_panics(text in "(some|full)?( ?(avg10|avg60|avg300|total)=\\PC{0,6}){0,5}\n?") {
            let _ = parse(&text);
        }
    }
}
