//! CPU time by process: of the daemon, of the launcher and the processes that it forks for boxes, of the boxes' inits, and
//! of the commands in boxes. CPU time says on a busy machine too what an operation costs.
//!
//! The kernel counts the daemon, the launcher and the inits to the nanosecond (clock_getcpuclockid(3)), the launcher's forks
//! in clock ticks of 10 ms (proc(5), `cutime`), and the sum of the last two in the `cpu.stat` of the cgroup of all boxes,
//! where the boxes that were deleted stay counted. An `iceboxd` from before the launcher stayed has launchers as children
//! that it has waited for; these are counted too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::context::{failed, shown};
use super::http::Client;
use super::server::{self, Server};
use super::stats::{Case, Report};
use crate::error::{Result, While};

/// `cutime` in /proc/PID/stat, counted from the field after the name; `cstime` follows.
const CUTIME: usize = 13;
const UNIT: &str = "ms of CPU";

/// Reads the CPU times of one server and its boxes.
pub(super) struct Meter<'a> {
    server: &'a Server,
    boxes: PathBuf,
    ticks_per_second: f64,
}

/// CPU times at one moment, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cpu {
    /// `iceboxd`, all its threads.
    pub(super) daemon: f64,
    /// The launcher and its forks that have ended.
    pub(super) launchers: f64,
    /// The inits of the boxes that live.
    pub(super) inits: f64,
    /// Everything in boxes: inits and commands.
    pub(super) boxes: f64,
}

impl Cpu {
    /// All of it.
    pub(super) fn total(self) -> f64 {
        self.daemon + self.launchers + self.boxes
    }

    /// The difference between two moments, for each of `count` operations.
    fn per(self, before: Cpu, count: usize) -> Cpu {
        #[expect(clippy::cast_precision_loss, reason = "a number of operations is small")]
        let each = |now: f64, then: f64| (now - then) / count.max(1) as f64;
        Cpu {
            daemon: each(self.daemon, before.daemon),
            launchers: each(self.launchers, before.launchers),
            inits: each(self.inits, before.inits),
            boxes: each(self.boxes, before.boxes),
        }
    }
}

impl<'a> Meter<'a> {
    /// At least one box must live.
    pub(super) fn new(server: &'a Server) -> Result<Self> {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
        let ticks =
            ticks.ok_or_else(|| failed("read", "the clock ticks per second", "sysconf(3) does not know them"))?;
        #[expect(clippy::cast_precision_loss, reason = "it is 100")]
        Ok(Meter { server, boxes: cgroup_of_boxes(server)?, ticks_per_second: ticks as f64 })
    }

    pub(super) fn read(&self) -> Result<Cpu> {
        let mut cpu = Cpu { daemon: process(self.server.pid())?, boxes: self.boxes()?, ..Cpu::default() };
        for pid in inits(self.server) {
            // A box may end meanwhile.
            cpu.inits += process(pid).unwrap_or(0.0);
        }
        cpu.launchers = self.forks_of(self.server.pid())?;
        for pid in launchers(self.server.pid()) {
            cpu.launchers += process(pid)? + self.forks_of(pid)?;
        }
        Ok(cpu)
    }

    /// The children of a process that it has waited for.
    fn forks_of(&self, pid: u32) -> Result<f64> {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).or_fail("read", &path)?;
        Ok(waited_for(&stat).ok_or_else(|| failed("read", &path, &stat))? / self.ticks_per_second * 1e3)
    }

    fn boxes(&self) -> Result<f64> {
        let path = self.boxes.join("cpu.stat");
        let text = std::fs::read_to_string(&path).or_fail("read", shown(&path))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).and_then(|n| n.parse::<f64>().ok());
        usage.map(|usec| usec / 1e3).ok_or_else(|| failed("read", shown(&path), "there is no usage_usec in it"))
    }

    /// Does `count` operations and tells what one of them costs.
    pub(super) fn measure(&self, count: usize, work: impl FnOnce() -> Result<()>) -> Result<Cpu> {
        let before = self.read()?;
        work()?;
        Ok(self.read()?.per(before, count))
    }

    /// The cost of a box that is made and runs `true` once. The boxes are deleted afterwards.
    pub(super) fn creates(&self, client: &mut Client, count: usize) -> Result<Cpu> {
        let mut made = Vec::new();
        let cost = self.measure(count, || {
            for _ in 0..count {
                let id = server::create(client)?;
                server::exec_true(client, &id)?;
                made.push(id);
            }
            Ok(())
        })?;
        made.iter().try_for_each(|id| server::delete(client, id))?;
        Ok(cost)
    }

    /// The cost of an exec of `true` in a running box.
    pub(super) fn execs(&self, client: &mut Client, id: &str, count: usize) -> Result<Cpu> {
        self.measure(count, || (0..count).try_for_each(|_| server::exec_true(client, id)))
    }

    /// The cost of a freeze and a wake of a running box, both by request.
    pub(super) fn freezes(&self, client: &mut Client, id: &str, count: usize) -> Result<Cpu> {
        self.measure(count, || {
            (0..count).try_for_each(|_| {
                server::pause(client, id)?;
                server::resume(client, id)
            })
        })
    }
}

/// A table with a row for each operation and process.
pub(super) fn report(title: impl Into<String>, costs: &[(String, Cpu)]) -> Report {
    let mut cases = Vec::new();
    for (operation, cpu) in costs {
        let rows = [
            ("iceboxd", cpu.daemon),
            ("launchers", cpu.launchers),
            ("inits", cpu.inits),
            ("commands", cpu.boxes - cpu.inits),
            ("all", cpu.total()),
        ];
        for (who, value) in rows {
            let mut case = Case::new(format!("{operation}: {who}"), "");
            case.add_value(value);
            cases.push(case);
        }
    }
    Report::new(title, UNIT, cases)
}

/// The user and system time of a process's children that it has waited for, in ticks.
fn waited_for(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(CUTIME);
    let user: f64 = fields.next()?.parse().ok()?;
    Some(user + fields.next()?.trim().parse::<f64>().ok()?)
}

/// CPU time of a process in milliseconds, of its threads that have ended too.
pub(super) fn process(pid: u32) -> Result<f64> {
    let unknown = |cause| failed("read the CPU time of", pid, cause);
    let process = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
    let clock = nix::time::ClockId::pid_cpu_clock_id(process).map_err(unknown)?;
    Ok(clock.now().map(Duration::from).map_err(unknown)?.as_secs_f64() * 1e3)
}

/// The children of the daemon that are launchers.
fn launchers(daemon: u32) -> Vec<u32> {
    let lists = std::fs::read_dir(format!("/proc/{daemon}/task")).into_iter().flatten().flatten();
    let lists = lists.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let pids: Vec<u32> =
        lists.flat_map(|list| list.split(' ').filter_map(|n| n.parse().ok()).collect::<Vec<_>>()).collect();
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.into_iter().filter(|pid| name(pid).trim_end() == "icebox-launch").collect()
}

/// The inits of the server's boxes: PID 1 of a namespace, in a cgroup of the server's.
pub(super) fn inits(server: &Server) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let status = read("status");
        let pids = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or("");
        let is_init = pids.split_whitespace().skip(1).last() == Some("1");
        if is_init && read("cgroup").contains(server.cgroup()) {
            found.push(pid);
        }
    }
    found
}

/// The directory of the cgroup v2 that holds all boxes of the server.
fn cgroup_of_boxes(server: &Server) -> Result<PathBuf> {
    let missing = || failed("find", "the cgroup of the boxes", format!("no init is in a cgroup {}", server.cgroup()));
    let pid = *inits(server).first().ok_or_else(missing)?;
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).or_fail("read", &path)?;
    let mounts = "/proc/self/mountinfo";
    let mounts = std::fs::read_to_string(mounts).or_fail("read", mounts)?;
    directory(&text, &mounts, server.cgroup()).ok_or_else(missing)
}

/// The path of the cgroup `name` on the way to the one in a process's `/proc/PID/cgroup`, below the mount of cgroup2.
fn directory(cgroup: &str, mountinfo: &str, name: &str) -> Option<PathBuf> {
    let line = mountinfo.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mount = Path::new(line.split(' ').nth(4)?);
    let inside = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let end = Path::new(inside).ancestors().find(|path| path.file_name().is_some_and(|last| last == name))?;
    Some(mount.join(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_children_are_read() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 50 60 120 35 20 0 9 0 100\n";
        assert_eq!(waited_for(stat), Some(155.0));
        assert_eq!(waited_for("nothing"), None);
    }

    #[test]
    fn the_cgroup_of_all_boxes_is_above_each_box() {
        let mounts = "30 1 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 1 0:2 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let cgroup = "4:cpu:/icebox.0a1b/x\n0::/outer/icebox.0a1b/box1/init\n";
        let wanted = Path::new("/sys/fs/cgroup/unified/outer/icebox.0a1b");
        assert_eq!(directory(cgroup, mounts, "icebox.0a1b").as_deref(), Some(wanted));
        assert_eq!(directory(cgroup, mounts, "icebox.other"), None);
    }

    #[test]
    fn costs_are_told_by_process_and_per_operation() {
        let before = Cpu { daemon: 1.0, launchers: 10.0, inits: 0.0, boxes: 5.0 };
        let after = Cpu { daemon: 11.0, launchers: 40.0, inits: 2.0, boxes: 25.0 };
        let each = after.per(before, 10);
        assert_eq!(each, Cpu { daemon: 1.0, launchers: 3.0, inits: 0.2, boxes: 2.0 });
        let text = report("cost", &[("create".to_owned(), each)]).to_string();
        for part in ["create: iceboxd", "create: commands", "1.800", "create: all", "6.000"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
