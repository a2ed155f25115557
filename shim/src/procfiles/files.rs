//! The three files of one box: making them, finding them again, and writing what they say now.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use icebox_runtime::cgroup::MemoryParts;
use rustix::fs::FileType;
use rustix::time::{ClockId, clock_gettime};

use super::processors::{self, Cpu, Load};
use super::{Key, Kind, Readings, key, meminfo};

/// Most bytes that are read of a file of before; a processor takes some 60.
const STAT_BYTES_MAX: usize = 256 << 10;
/// The type of tmpfs in statfs(2).
const TMPFS_MAGIC: rustix::fs::FsWord = libc::TMPFS_MAGIC;
/// Words of `loadavg`.
const LOADAVG_WORDS: usize = 5;
/// Clock ticks of a second in the start time of a process (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

fn is_file_of_tmpfs(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
        && rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == TMPFS_MAGIC)
}

/// The open files of a box.
#[derive(Debug)]
pub(super) struct Files {
    files: [OwnedFd; 3],
    processors: usize,
    /// The memory of its size, for a machine that enforces no limit of memory.
    memory_bytes: u64,
}

/// What a file says of a box that has used nothing yet.
pub(super) fn first_text(kind: Kind, processors: usize, memory_bytes: u64) -> String {
    match kind {
        Kind::Meminfo => meminfo::text(memory_bytes, 0, &MemoryParts::default()),
        Kind::Stat => processors::stat(processors, Cpu::default(), Duration::ZERO, boot_time(Duration::ZERO)),
        Kind::Loadavg => Load::new(Duration::ZERO).text(1),
    }
}

impl Files {
    /// These descriptors, in the order of [`Kind::ALL`]; `None` if they are of something else: the init of a box of an
    /// earlier version has other descriptors under the same numbers, and the root of a box may exchange them. Files of
    /// other file systems are refused: a write to them could wait for the box. No process may answer for these files yet.
    pub(super) fn of(files: [OwnedFd; 3]) -> Option<Self> {
        if !files.iter().all(is_file_of_tmpfs) {
            return None;
        }
        let [meminfo, stat, loadavg] = &files;
        let memory_bytes = meminfo::total(&text_of(meminfo))?;
        let processors = Some(processors::count(&text_of(stat))).filter(|count| *count > 0)?;
        let is_load = text_of(loadavg).split_ascii_whitespace().count() == LOADAVG_WORDS;
        is_load.then_some(Self { files, processors, memory_bytes })
    }
}

/// The files of a running box, and what they say.
#[derive(Debug)]
pub(super) struct BoxFiles {
    files: Files,
    readings: Box<dyn Readings>,
    /// Its PID 1.
    pid: i32,
    /// When that started, by the host's clock since boot.
    started: Duration,
    /// What the clocks of the box's time namespace are set back by.
    clock_offset: OnceLock<Duration>,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    load: Load,
    idle: Duration,
}

impl BoxFiles {
    pub(super) fn new(files: Files, readings: Box<dyn Readings>, pid: i32, start_time_ticks: u64) -> Self {
        let started = Duration::from_millis(start_time_ticks.saturating_mul(1000 / TICKS_PER_SECOND));
        Self {
            files,
            readings,
            pid,
            started,
            clock_offset: OnceLock::new(),
            used: Mutex::new(Used { load: Load::new(started), idle: Duration::ZERO }),
        }
    }

    pub(super) fn file(&self, kind: Kind) -> BorrowedFd<'_> {
        let [meminfo, stat, loadavg] = &self.files.files;
        match kind {
            Kind::Meminfo => meminfo,
            Kind::Stat => stat,
            Kind::Loadavg => loadavg,
        }
        .as_fd()
    }

    pub(super) fn keys(&self) -> Result<[(Key, Kind); 3], rustix::io::Errno> {
        let of = |kind| Ok((key(self.file(kind))?, kind));
        Ok([of(Kind::Meminfo)?, of(Kind::Stat)?, of(Kind::Loadavg)?])
    }

    pub(super) fn note_cpu(&self, used: Duration) {
        self.lock().load.update(since_boot(), used);
    }

    /// Writes what the file says now. A file whose numbers cannot be read says what it said last.
    pub(super) fn refresh(&self, kind: Kind) {
        let text = match kind {
            Kind::Meminfo => self.meminfo(),
            Kind::Stat => self.stat(),
            Kind::Loadavg => self.loadavg(),
        };
        if let Some(text) = text {
            // Best effort: if it fails, the reader has the former text.
            let _ = replace(self.file(kind), &text);
        }
    }

    fn meminfo(&self) -> Option<String> {
        let memory = self.readings.memory()?;
        let total = memory.limit.unwrap_or(self.files.memory_bytes).min(host_memory());
        Some(meminfo::text(total, memory.used, &memory.parts))
    }

    fn stat(&self) -> Option<String> {
        let cpu = self.cpu()?;
        let now = since_boot();
        let count = u32::try_from(self.files.processors).unwrap_or(u32::MAX);
        let all = now.saturating_sub(self.started).saturating_mul(count);
        let idle = {
            let mut used = self.lock();
            // It never gets less, though a box may use a little more than its quota for a moment.
            used.idle = used.idle.max(all.saturating_sub(cpu.user + cpu.system));
            used.load.update(now, cpu.user + cpu.system);
            used.idle
        };
        let offset = *self.clock_offset.get_or_init(|| clock_offset(self.pid).unwrap_or_default());
        Some(processors::stat(self.files.processors, cpu, idle, boot_time(offset)))
    }

    fn loadavg(&self) -> Option<String> {
        let cpu = self.cpu()?;
        let tasks = self.readings.tasks().unwrap_or(1);
        let mut used = self.lock();
        used.load.update(since_boot(), cpu.user + cpu.system);
        Some(used.load.text(tasks))
    }

    fn cpu(&self) -> Option<Cpu> {
        let usage = self.readings.cpu()?;
        Some(Cpu { user: Duration::from_micros(usage.user_usec), system: Duration::from_micros(usage.system_usec) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a new text over the former one.
fn replace(file: impl AsFd, text: &str) -> rustix::io::Result<()> {
    let length = text.len() as u64;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = rustix::io::pwrite(&file, rest, length - rest.len() as u64)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    if rustix::fs::fstat(&file)?.st_size as u64 > length {
        rustix::fs::ftruncate(&file, length)?;
    }
    Ok(())
}

/// The beginning of a file.
fn text_of(file: &OwnedFd) -> String {
    let size = rustix::fs::fstat(file).map_or(0, |stat| usize::try_from(stat.st_size).unwrap_or(0));
    let mut bytes = vec![0; size.min(STAT_BYTES_MAX)];
    let length = rustix::io::pread(file, &mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned()
}

/// What the clocks of the process's time namespace are set back by; `None` without time namespaces.
fn clock_offset(pid: i32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/timens_offsets")).ok()?;
    parse_offset(&text)
}

/// The line `boottime -123 0` of time_namespaces(7), in whole seconds as the launcher sets it.
fn parse_offset(text: &str) -> Option<Duration> {
    let mut words = text.lines().find_map(|line| line.strip_prefix("boottime"))?.split_ascii_whitespace();
    words.next()?.strip_prefix('-')?.parse().ok().map(Duration::from_secs)
}

/// `btime` of a clock that is set back by `offset`: seconds since 1970.
fn boot_time(offset: Duration) -> u64 {
    let now = Duration::try_from(clock_gettime(ClockId::Realtime)).unwrap_or_default();
    (now.saturating_sub(since_boot()) + offset).as_secs()
}

/// Since the host started, time asleep too.
fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

fn host_memory() -> u64 {
    let host = rustix::system::sysinfo();
    (host.totalram as u64).saturating_mul(u64::from(host.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_time_namespace() {
        assert_eq!(
            parse_offset("monotonic       -12         0\nboottime     -3400         0\n"),
            Some(Duration::from_secs(3400))
        );
        assert_eq!(parse_offset("monotonic 0 0\nboottime 0 0\n"), None, "the host's clocks");
        assert_eq!(parse_offset(""), None);
    }

    #[test]
    fn a_shorter_text_leaves_nothing_of_the_longer_one() {
        let file = tempfile::tempfile().unwrap();
        for text in ["a long text\n", "short\n", "longer again\n"] {
            replace(&file, text).unwrap();
            assert_eq!(text_of(&file.try_clone().unwrap().into()), text);
        }
    }

    #[test]
    fn files_of_before_tell_what_they_are_of() {
        let file = |text: &str| {
            let file = rustix::fs::memfd_create("text", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            replace(&file, text).unwrap();
            file
        };
        let texts = || Kind::ALL.map(|kind| file(&first_text(kind, 3, 5 << 30)));
        let found = Files::of(texts()).unwrap();
        assert_eq!((found.processors, found.memory_bytes), (3, 5 << 30));
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        for other in [file(""), file("text\n"), pipe] {
            for place in 0..3 {
                let mut files = texts();
                files[place] = other.try_clone().unwrap();
                assert!(Files::of(files).is_none(), "{place}");
            }
        }
        assert!(is_file_of_tmpfs(&file("text\n")));
        assert!(!is_file_of_tmpfs(&std::fs::File::open("/proc/version").unwrap().into()));
    }
}
