//! What operations cost while more and more boxes sleep beside: CPU time per operation and process.
//!
//! A cost that grows with the number of boxes is a fault. The times themselves are measured by the other benchmarks.

use std::time::{Duration, Instant};

use super::boxes::{BOX_CPU_MS_MAX, BOX_DAEMON_CPU_MS_MAX, EXEC_DAEMON_CPU_MS_MAX};
use super::context::{Context, WARM_UP_ROUNDS};
use super::cpu::{Cpu, Meter, report};
use super::fleet::{create_all, each};
use super::http::Client;
use super::server::{self, Server};
use super::stats::Report;
use crate::error::Result;

/// So many boxes sleep beside. An account has at most 1,000, and those that are measured are among them.
const SIZES: [usize; 4] = [0, 10, 100, 970];
/// Operations of each kind at each size.
const CREATES: usize = 20;
const EXECS: usize = 100;
const FREEZES: usize = 50;
/// For how long everything sleeps.
const WATCH: Duration = Duration::from_secs(5);
/// Mark: milliseconds of CPU per second while the largest number of boxes sleeps.
const SLEEP_MS_PER_S_MAX: f64 = 1.0;

/// What was measured at one size.
struct Row {
    sleeping: usize,
    create: Cpu,
    exec: Cpu,
    freeze: Cpu,
    sleep: Cpu,
}

/// `cargo xtask bench scale`.
pub(super) fn scale(context: &Context) -> Result<Vec<Report>> {
    let server = Server::start(context, "scale")?;
    let client = &mut server.client();
    let awake = server::create(client)?;
    let meter = Meter::new(&server)?;
    let rounds = context.rounds;
    for _ in 0..WARM_UP_ROUNDS {
        create_use_delete(client)?;
        server::exec_true(client, &awake)?;
    }
    let mut rows = Vec::new();
    let mut sleeping = 0;
    for size in SIZES {
        let (ids, _) = create_all(&server, size - sleeping)?;
        each(&server, &ids, "freeze", server::pause)?;
        sleeping = size;
        eprintln!("    {size} boxes sleep");
        rows.push(measure(&meter, client, &awake, size, rounds)?);
    }
    Ok(reports(&rows))
}

fn measure(meter: &Meter<'_>, client: &mut Client, awake: &str, sleeping: usize, rounds: Option<usize>) -> Result<Row> {
    let create = meter.creates(client, rounds.unwrap_or(CREATES))?;
    let exec = meter.execs(client, awake, rounds.unwrap_or(EXECS))?;
    let freeze = meter.freezes(client, awake, rounds.unwrap_or(FREEZES))?;
    server::pause(client, awake)?;
    let watched = usize::try_from(WATCH.as_secs()).unwrap_or(usize::MAX);
    let sleep = meter.measure(watched, || {
        let end = Instant::now() + WATCH;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
        Ok(())
    })?;
    server::resume(client, awake)?;
    Ok(Row { sleeping, create, exec, freeze, sleep })
}

fn create_use_delete(client: &mut Client) -> Result<()> {
    let id = server::create(client)?;
    server::exec_true(client, &id)?;
    server::delete(client, &id)
}

fn reports(rows: &[Row]) -> Vec<Report> {
    let table = |title: &str, of: fn(&Row) -> Cpu| {
        let costs: Vec<_> = rows.iter().map(|row| (format!("{} sleep beside", row.sleeping), of(row))).collect();
        report(title, &costs)
    };
    let last = |of: fn(&Row) -> Cpu| rows.last().map_or(Cpu::default(), of);
    let (create, exec, sleep) = (last(|row| row.create), last(|row| row.exec), last(|row| row.sleep));
    vec![
        table("CPU of create + first exec of true, one client", |row| row.create)
            .mark("all of it, at the last number", create.total(), BOX_CPU_MS_MAX)
            .mark("iceboxd's part", create.daemon, BOX_DAEMON_CPU_MS_MAX),
        table("CPU of an exec of true, one client", |row| row.exec).mark(
            "iceboxd's part, at the last number",
            exec.daemon,
            EXEC_DAEMON_CPU_MS_MAX,
        ),
        table("CPU of a freeze and a wake by request, one client", |row| row.freeze),
        table("CPU of one second in which all boxes sleep", |row| row.sleep).mark(
            "all of it, at the last number",
            sleep.total(),
            SLEEP_MS_PER_S_MAX,
        ),
    ]
}
