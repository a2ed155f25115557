//! Many boxes: created by eight clients, all frozen, and what they cost then in memory and in CPU.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::boxes::{BOX_CPU_MS_MAX, BOX_DAEMON_CPU_MS_MAX};
use super::context::{Context, failed};
use super::cpu::{self, Meter};
use super::server;
use super::stats::{Case, Report};
use crate::error::Result;
use server::Server;

const CLIENTS: usize = 8;
/// For how long the CPU time of `iceboxd` is watched while everything sleeps.
const WATCH: Duration = Duration::from_secs(10);
/// Marks in MB: resident memory of the init of a box, and memory of the kernel for a frozen box.
const INIT_MB_MAX: f64 = 1.5;
const KERNEL_MB_MAX: f64 = 0.7;
/// Mark: seconds in which 500 boxes are made and used.
const MADE_500_S_MAX: f64 = 6.0;
/// Mark: milliseconds of CPU per second while 1,000 boxes sleep.
const SLEEP_1000_MS_PER_S_MAX: f64 = 1.0;

/// Creates, freezes, measures, deletes.
pub(super) fn fleet(context: &Context) -> Result<Vec<Report>> {
    let server = Server::start(context, "fleet")?;
    // One box first: the volume template is made by it.
    let warm = server::create(&mut server.client())?;
    let meter = Meter::new(&server)?;
    server::delete(&mut server.client(), &warm)?;
    let before = Memory::read();
    let daemon_before = pss_kb(server.pid(), "Pss");
    let mut all_made = None;
    let made_cpu = meter.measure(context.boxes, || {
        all_made = Some(create_all(&server, context.boxes)?);
        Ok(())
    })?;
    let Some((ids, made)) = all_made else { return Err(failed("create", "the boxes", "nothing was measured")) };
    let (_, frozen) = each(&server, &ids, "freeze", server::pause)?;
    let cpu = watch_cpu(&server, ids.len())?;
    // The kernel frees what commands have left (cgroups, namespaces, buffers) in the background.
    let after = Memory::read();
    let memory = memory_report(&server, &before, &after, daemon_before, ids.len());
    let (_, woken) = each(&server, &ids, "exec on frozen, 8 clients", server::exec_true)?;
    let (wall, deleted) = each(&server, &ids, "delete", server::delete)?;
    let all =
        Report::new(format!("{} boxes, {CLIENTS} clients", ids.len()), "ms", vec![made.1, frozen, woken, deleted])
            .note(format!(
                "all created and used in {:.2} s, all deleted in {:.2} s",
                made.0.as_secs_f64(),
                wall.as_secs_f64()
            ))
            .mark(
                "seconds for 500 boxes at this rate",
                500.0 * per_box(made.0.as_secs_f64(), ids.len()),
                MADE_500_S_MAX,
            );
    let share = cpu::report(
        format!("CPU of a box that is made and used, {CLIENTS} clients"),
        &[("create → first exec".to_owned(), made_cpu)],
    );
    let share = share.mark("all of it", made_cpu.total(), BOX_CPU_MS_MAX).mark(
        "iceboxd's part",
        made_cpu.daemon,
        BOX_DAEMON_CPU_MS_MAX,
    );
    Ok(vec![all, share, memory, cpu])
}

pub(super) type Made = (Duration, Case);

pub(super) fn create_all(server: &Server, count: usize) -> Result<(Vec<String>, Made)> {
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
pub(super) fn each(
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
    let per_box = |kb: f64| per_box(kb, count);
    let (mut pss, mut rss) = (Case::new("init, proportional (PSS)", ""), Case::new("init, resident (RSS)", ""));
    for pid in cpu::inits(server) {
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
    let kernel_mb = kernel.median() / 1024.0;
    Report::new("memory per frozen box", "kB", vec![pss, rss, daemon, kernel, used])
        .mark("resident init in MB, median", resident_mb, INIT_MB_MAX)
        .mark("kernel in MB", kernel_mb, KERNEL_MB_MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a number of boxes is small")]
fn per_box(all: f64, count: usize) -> f64 {
    all / count as f64
}

fn pss_kb(pid: u32, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    number_after(&text, &format!("{field}:"))
}

fn watch_cpu(server: &Server, count: usize) -> Result<Report> {
    let mut case = Case::new("iceboxd", "");
    let (before, start) = (cpu::process(server.pid())?, Instant::now());
    let end = start + WATCH;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
        std::thread::park_timeout(left);
    }
    let used = cpu::process(server.pid())? - before;
    let per_second = used / start.elapsed().as_secs_f64();
    case.add_value(per_second);
    let report =
        Report::new(format!("CPU while all boxes sleep, over {} s", WATCH.as_secs()), "ms per second", vec![case]);
    Ok(report.mark("for 1,000 boxes at this rate", 1000.0 * per_box(per_second, count), SLEEP_1000_MS_PER_S_MAX))
}
