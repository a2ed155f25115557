//! One box over HTTP, by one client: create, first exec, exec, freeze, wake, delete. Times, and CPU by process.

use std::time::{Duration, Instant};

use super::context::{Context, WARM_UP_ROUNDS};
use super::cpu::{self, Meter};
use super::server;
use super::stats::{Case, Report};
use crate::error::Result;
use server::Server;

const CREATE_ROUNDS: usize = 30;
const EXEC_ROUNDS: usize = 200;
/// Boxes of which the CPU is measured.
const CREATE_CPU_ROUNDS: usize = 20;

/// Marks to reach, in milliseconds.
const EXEC_MS_MAX: f64 = 2.0;
const WAKE_MS_MAX: f64 = 1.0;
const CREATE_MS_MAX: f64 = 12.0;
const READY_MS_MAX: f64 = 5.0;
/// Most ready boxes that a configuration may ask for.
const READY_BOXES_MAX: u64 = 256;
/// Marks in milliseconds of CPU: the daemon's part of an exec, all of a box that is made and used, the daemon's part of it.
pub(super) const EXEC_DAEMON_CPU_MS_MAX: f64 = 0.4;
pub(super) const BOX_CPU_MS_MAX: f64 = 18.0;
pub(super) const BOX_DAEMON_CPU_MS_MAX: f64 = 3.0;

/// `true` on a running box, on a frozen one (interleaved), and the freezing itself.
pub(super) fn exec(context: &Context) -> Result<Vec<Report>> {
    let server = Server::start(context, "exec")?;
    let client = &mut server.client();
    let id = server::create(client)?;
    let mut running = Case::new("exec on a running box", "");
    let mut frozen = Case::new("exec on a frozen box", "");
    let mut added = Case::new("what waking adds", "difference of neighbours");
    let mut busy = Case::new("freeze right after a command", "");
    let mut calm = Case::new("freeze of a box that rests", "");
    for round in 0..context.rounds.unwrap_or(EXEC_ROUNDS) + WARM_UP_ROUNDS {
        let exec = timed(|| server::exec_true(client, &id))?;
        let first = timed(|| server::pause(client, &id))?;
        let woken = timed(|| server::exec_true(client, &id))?;
        server::pause(client, &id)?;
        server::resume(client, &id)?;
        let second = timed(|| server::pause(client, &id))?;
        server::resume(client, &id)?;
        if round >= WARM_UP_ROUNDS {
            running.add(exec);
            frozen.add(woken);
            added.add_value((woken.as_secs_f64() - exec.as_secs_f64()) * 1e3);
            busy.add(first);
            calm.add(second);
        }
    }
    let meter = Meter::new(&server)?;
    let count = context.rounds.unwrap_or(EXEC_ROUNDS);
    let exec_cpu = meter.execs(client, &id, count)?;
    let sleep_cpu = meter.freezes(client, &id, count)?;
    server::delete(client, &id)?;
    let costs = [("exec".to_owned(), exec_cpu), ("freeze and wake".to_owned(), sleep_cpu)];
    let cost = cpu::report("the same, one after the other", &costs).mark(
        "iceboxd's part of an exec",
        exec_cpu.daemon,
        EXEC_DAEMON_CPU_MS_MAX,
    );
    let (exec, wake) = (running.median(), added.median());
    let cases = vec![running, frozen, added, busy, calm];
    let report = Report::new("HTTP exec of true, one client, kept connection", "ms", cases);
    Ok(vec![report.mark("exec p50", exec, EXEC_MS_MAX).mark("wake adds at p50", wake, WAKE_MS_MAX), cost])
}

fn timed(action: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    action()?;
    Ok(start.elapsed())
}

/// From the create request to the answer of the first command; and the end of the box.
pub(super) fn create(context: &Context) -> Result<Vec<Report>> {
    let server = Server::start(context, "create")?;
    let client = &mut server.client();
    let mut create = Case::new("create", "");
    let mut first = Case::new("create → first exec answered", "");
    let mut delete = Case::new("delete", "");
    let mut delete_frozen = Case::new("delete of a frozen box", "");
    for round in 0..context.rounds.unwrap_or(CREATE_ROUNDS) + WARM_UP_ROUNDS {
        let t0 = Instant::now();
        let id = server::create(client)?;
        let t1 = Instant::now();
        server::exec_true(client, &id)?;
        let t2 = Instant::now();
        let sleeping = round % 2 == 1;
        if sleeping {
            server::pause(client, &id)?;
        }
        let t3 = Instant::now();
        server::delete(client, &id)?;
        if round >= WARM_UP_ROUNDS {
            create.add(t1 - t0);
            first.add(t2 - t0);
            if sleeping { &mut delete_frozen } else { &mut delete }.add(t3.elapsed());
        }
    }
    let count = context.rounds.unwrap_or(CREATE_CPU_ROUNDS);
    // The box that shows where the cgroup of all boxes is.
    let first_box = server::create(client)?;
    let used = Meter::new(&server)?.creates(client, count)?;
    server::delete(client, &first_box)?;
    let cost = cpu::report("the same", &[("create → first exec".to_owned(), used)])
        .mark("all of it", used.total(), BOX_CPU_MS_MAX)
        .mark("iceboxd's part", used.daemon, BOX_DAEMON_CPU_MS_MAX);
    let reached = first.median();
    let report = Report::new("a box, one client", "ms", vec![create, first, delete, delete_frozen]);
    Ok(vec![report.mark("create → first exec p50", reached, CREATE_MS_MAX), cost])
}

/// The same with a box that was ready, side by side with one that was not.
pub(super) fn ready(context: &Context) -> Result<Vec<Report>> {
    let rounds = context.rounds.unwrap_or(CREATE_ROUNDS) + WARM_UP_ROUNDS;
    let count = (rounds as u64).min(READY_BOXES_MAX);
    let plain = Server::start(context, "plain")?;
    let prepared = Server::start_with(context, "ready", &format!("[[ready]]\ncount = {count}\n"))?;
    let (mut one, mut two) = (plain.client(), prepared.client());
    let mut new = Case::new("create → first exec, a new box", "");
    let mut create = Case::new("create, a ready box", "");
    let mut taken = Case::new("create → first exec, a ready box", "");
    prepared.wait_boxes_ready(count)?;
    let (mut made, mut made_ready) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let t0 = Instant::now();
        made.push(server::create(&mut one)?);
        server::exec_true(&mut one, &made[round])?;
        let t1 = Instant::now();
        made_ready.push(server::create(&mut two)?);
        let t2 = Instant::now();
        server::exec_true(&mut two, &made_ready[round])?;
        if round >= WARM_UP_ROUNDS {
            new.add(t1 - t0);
            create.add(t2 - t1);
            taken.add(t1.elapsed());
        }
    }
    let reached = taken.median();
    let report = Report::new("a box that was ready, one client", "ms", vec![new, create, taken]);
    Ok(vec![report.mark("create → first exec p50 with a ready box", reached, READY_MS_MAX)])
}
