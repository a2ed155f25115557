//! Many boxes: created by eight clients, all frozen, and what they cost then in memory and in CPU.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::stats::{Case, Report};
use super::{Context, failed, server};
use crate::error::Result;
use server::Server;

const CLIENTS: usize = 8;
/// For how long the CPU time of `iceboxd` is watched while everything sleeps.
const WATCH: Duration = Duration::from_secs(10);
/// Mark: resident memory of the init of a box, in MB.
const INIT_MB_MAX: f64 = 1.5;

/// Creates, freezes, measures, deletes.
pub(super) fn fleet(context: &Context) -> Result<Vec<Report>> {
    let server = Server::start(context, "fleet")?;
    // One box first: the volume template is made by it.
    let warm = server::create(&mut server.client())?;
    server::delete(&mut server.client(), &warm)?;
    let before = Memory::read();
    let daemon_before = pss_kb(server.pid(), "Pss");
    let (ids, made) = create_all(&server, context.boxes)?;
    let (_, frozen) = each(&server, &ids, "freeze", server::pause)?;
    let after = Memory::read();
    let memory = memory_report(&server, &before, &after, daemon_before, ids.len());
    let cpu = watch_cpu(&server)?;
    let (_, woken) = each(&server, &ids, "exec on frozen, 8 clients", server::exec_true)?;
    let (wall, deleted) = each(&server, &ids, "delete", server::delete)?;
    let all =
        Report::new(format!("{} boxes, {CLIENTS} clients", ids.len()), "ms", vec![made.1, frozen, woken, deleted])
            .note(format!(
                "all created and used in {:.2} s, all deleted in {:.2} s",
                made.0.as_secs_f64(),
                wall.as_secs_f64()
            ));
    Ok(vec![all, memory, cpu])
}

type Made = (Duration, Case);

fn create_all(server: &Server, count: usize) -> Result<(Vec<String>, Made)> {
    let slots: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    let ids = Mutex::new(Vec::new());
    let (wall, case) = each(server, &slots, "create → first exec", |client, _| {
        let id = server::create(client)?;
        server::exec_true(client, &id)?;
        ids.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(id);
        Ok(())
    })?;
    Ok((ids.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner), (wall, case)))
}

/// Does something with every item, by eight clients with a connection each. Wall time of all, and a case of the single ones.
fn each(
    server: &Server,
    items: &[String],
    name: &str,
    action: impl Fn(&mut super::http::Client, &str) -> Result<()> + Sync,
) -> Result<(Duration, Case)> {
    let next = AtomicUsize::new(0);
    let case = Mutex::new(Case::new(name, ""));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = server.client();
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let begin = Instant::now();
                        action(&mut client, item)?;
                        case.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(begin.elapsed());
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err(failed("run", "a client", "it panicked"))))
    })?;
    Ok((start.elapsed(), case.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)))
}

/// Figures of /proc/meminfo that grow with boxes, in kB.
struct Memory {
    used: f64,
    kernel: f64,
}

impl Memory {
    fn read() -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |name: &str| number_after(&text, name);
        let kernel = ["Slab:", "KernelStack:", "PageTables:", "Percpu:", "SecPageTables:"].map(field).iter().sum();
        Self { used: field("MemTotal:") - field("MemAvailable:"), kernel }
    }
}

fn number_after(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

fn memory_report(server: &Server, before: &Memory, after: &Memory, daemon_before: f64, count: usize) -> Report {
    #[expect(clippy::cast_precision_loss, reason = "a number of boxes is small")]
    let per_box = |kb: f64| kb / count as f64;
    let (mut pss, mut rss) = (Case::new("init, proportional (PSS)", ""), Case::new("init, resident (RSS)", ""));
    for pid in inits(server) {
        pss.add_value(pss_kb(pid, "Pss"));
        rss.add_value(pss_kb(pid, "Rss"));
    }
    let mut kernel = Case::new("kernel: slab, stacks, tables, per-cpu", "difference / boxes");
    kernel.add_value(per_box(after.kernel - before.kernel));
    let mut used = Case::new("everything: memory not available", "difference / boxes");
    used.add_value(per_box(after.used - before.used));
    let mut daemon = Case::new("iceboxd, its growth", "difference / boxes");
    daemon.add_value(per_box(pss_kb(server.pid(), "Pss") - daemon_before));
    let resident_mb = rss.median() / 1024.0;
    Report::new("memory per frozen box", "kB", vec![pss, rss, daemon, kernel, used]).mark(
        "resident init in MB, median",
        resident_mb,
        INIT_MB_MAX,
    )
}

fn pss_kb(pid: u32, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    number_after(&text, &format!("{field}:"))
}

/// The inits of the server's boxes: PID 1 of a namespace, in a cgroup of the server's.
fn inits(server: &Server) -> Vec<u32> {
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

/// CPU time of a process, of its threads that have ended too.
fn cpu_time(pid: u32) -> Result<Duration> {
    let unknown = |cause| failed("read the CPU time of", pid, cause);
    let process = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
    let clock = nix::time::ClockId::pid_cpu_clock_id(process).map_err(unknown)?;
    clock.now().map(Duration::from).map_err(unknown)
}

fn watch_cpu(server: &Server) -> Result<Report> {
    let mut case = Case::new("iceboxd", "");
    let (before, start) = (cpu_time(server.pid())?, Instant::now());
    let end = start + WATCH;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
        std::thread::park_timeout(left);
    }
    let used = cpu_time(server.pid())? - before;
    case.add_value(used.as_secs_f64() * 1e3 / start.elapsed().as_secs_f64());
    Ok(Report::new(format!("CPU while all boxes sleep, over {} s", WATCH.as_secs()), "ms per second", vec![case]))
}
