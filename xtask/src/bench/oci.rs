//! The verbs of an OCI runtime on a container that lives: create, start, exec, pause, resume, delete.

use std::path::Path;

use super::bundle;
use super::context::{Context, WARM_UP_ROUNDS};
use super::peers::{owned, path, runtimes, view_note};
use super::stats::{Case, Report};
use super::view::View;
use crate::error::Result;

const ROUNDS: usize = 30;
const VERBS: [&str; 7] = ["create", "start", "exec", "pause", "resume", "state", "delete --force"];

/// One runtime with its bundle.
struct Runtime {
    name: &'static str,
    head: Vec<String>,
    bundle: String,
    id: String,
    view: View,
}

impl Runtime {
    fn argv(&self, verb: &str) -> Vec<String> {
        let mut argv = self.head.clone();
        argv.extend(verb.split(' ').map(str::to_owned));
        if verb == "create" {
            argv.extend(owned(&["--bundle", &self.bundle]));
        }
        argv.push(self.id.clone());
        if verb == "exec" {
            argv.push("/bin/true".to_owned());
        }
        argv
    }
}

/// Measures each verb, runtime by runtime within each round.
pub(super) fn verbs(context: &Context) -> Result<Vec<Report>> {
    let scratch = context.scratch.join("verbs");
    let root = bundle::root(&scratch)?;
    let mut list = Vec::new();
    for (name, program, kind) in runtimes(context)? {
        list.push(prepare(name, &program, View::new(kind)?, &scratch, &root)?);
    }
    let mut cases: Vec<Vec<Case>> = VERBS.map(|_| list.iter().map(|r| Case::new(r.name, "")).collect()).into();
    for round in 0..context.rounds.unwrap_or(ROUNDS) + WARM_UP_ROUNDS {
        for step in 0..list.len() {
            let index = (round + step) % list.len();
            for (verb, cases) in VERBS.iter().zip(&mut cases) {
                let runtime = &list[index];
                let wall = runtime.view.must(&runtime.argv(verb));
                let wall = wall.inspect_err(|_| {
                    let _ = runtime.view.run(&runtime.argv("delete --force"));
                })?;
                if round >= WARM_UP_ROUNDS {
                    cases[index].add(wall);
                }
            }
        }
    }
    let title = |verb: &str| format!("{verb}, one container that sleeps, with seccomp");
    let mut reports: Vec<Report> =
        VERBS.iter().zip(cases).map(|(verb, cases)| Report::new(title(verb), "ms", cases).ratio_to("crun")).collect();
    if let (Some(note), Some(last)) = (view_note(), reports.pop()) {
        reports.push(last.note(note));
    }
    Ok(reports)
}

fn prepare(name: &'static str, program: &str, view: View, scratch: &Path, root: &Path) -> Result<Runtime> {
    let dir = scratch.join(name);
    bundle::bundle(&dir, root, &["/bin/sleep", "100000"], false)?;
    let state = scratch.join(format!("{name}-state"));
    let head = owned(&[program, "--root", &path(&state)]);
    Ok(Runtime { name, head, bundle: path(&dir), id: format!("bench-{name}"), view })
}
