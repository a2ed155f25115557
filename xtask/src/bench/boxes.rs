//! One box over HTTP, by one client: create, first exec, exec, freeze, wake, delete.

use std::time::Instant;

use super::stats::{Case, Report};
use super::{Context, WARM_UP_ROUNDS, server};
use crate::error::Result;
use server::Server;

const CREATE_ROUNDS: usize = 30;
const EXEC_ROUNDS: usize = 200;

/// Marks to reach, in milliseconds.
const EXEC_MS_MAX: f64 = 4.0;
const WAKE_MS_MAX: f64 = 1.0;
const CREATE_MS_MAX: f64 = 40.0;

/// `true` on a running box, on a frozen one (interleaved), and the freezing itself.
pub(super) fn exec(context: &Context) -> Result<Vec<Report>> {
    let server = Server::start(context, "exec")?;
    let client = &mut server.client();
    let id = server::create(client)?;
    let mut running = Case::new("exec on a running box", "");
    let mut frozen = Case::new("exec on a frozen box", "");
    let mut freeze = Case::new("freeze (pause)", "");
    for round in 0..context.rounds.unwrap_or(EXEC_ROUNDS) + WARM_UP_ROUNDS {
        let t0 = Instant::now();
        server::exec_true(client, &id)?;
        let t1 = Instant::now();
        server::pause(client, &id)?;
        let t2 = Instant::now();
        server::exec_true(client, &id)?;
        let t3 = Instant::now();
        if round >= WARM_UP_ROUNDS {
            running.add(t1 - t0);
            freeze.add(t2 - t1);
            frozen.add(t3 - t2);
        }
    }
    server::delete(client, &id)?;
    let wake = frozen.median() - running.median();
    let exec = running.median();
    let report = Report::new("HTTP exec of true, one client, kept connection", "ms", vec![running, frozen, freeze]);
    Ok(vec![report.mark("exec p50", exec, EXEC_MS_MAX).mark("wake adds at p50", wake, WAKE_MS_MAX)])
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
    let reached = first.median();
    let report = Report::new("a box, one client", "ms", vec![create, first, delete, delete_frozen]);
    Ok(vec![report.mark("create → first exec p50", reached, CREATE_MS_MAX)])
}
