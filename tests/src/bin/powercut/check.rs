//! The look back: what must be there is there, what must be gone is gone, and nothing is left over.

use std::collections::BTreeMap;
use std::time::Duration;

use icebox_tests::Daemon;
use icebox_tests::wait::try_until;

use crate::model::{Deletion, Known, Op};
use crate::{boxes, copies, disks, images, ledger, report};

/// How long iceboxd may take to finish what a cut has interrupted.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// What a part of the look has found. It goes on after something wrong, so that all of it is told.
#[derive(Debug, Default)]
pub(crate) struct Look {
    facts: usize,
}

impl Look {
    /// Facts that were compared somewhere else.
    pub(crate) fn facts(&mut self, number: u64) {
        self.facts += usize::try_from(number).unwrap_or(0);
    }

    /// A fact that must hold.
    pub(crate) fn fact(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        self.facts += 1;
        if !holds {
            report::violation(&otherwise());
        }
    }
}

/// Compares everything; returns how many facts that were. What is wrong is reported.
pub(crate) fn look_back(daemon: &Daemon, known: &Known) -> usize {
    let mut look = Look::default();
    settle(daemon, &mut look);
    let present = list(daemon, known, &mut look);
    ledger::look(daemon, known, &mut look);
    // Boxes come back by the first request, all at once.
    let threads: Vec<_> = known
        .boxes
        .iter()
        .filter(|(id, facts)| facts.deletion != Deletion::Done && present.contains_key(*id))
        .map(|(id, facts)| {
            let (api, id, facts) = (daemon.api(), id.clone(), facts.clone());
            std::thread::spawn(move || {
                let mut look = Look::default();
                boxes::look(&api, &id, &facts, &mut look);
                println!("box {id} ({}): {} facts", facts.name, look.facts);
                look.facts
            })
        })
        .collect();
    for thread in threads {
        // A panic has been reported.
        look.facts += thread.join().unwrap_or(0);
    }
    println!("the boxes are looked at");
    copies::look(daemon, known, &mut look);
    println!("the snapshots are looked at");
    images::look(daemon, known, &mut look);
    ledger::compare_bills(daemon, present.keys(), &mut look);
    disks::look(daemon, &mut look);
    look.facts
}

/// What was in flight at the cut ends by itself.
fn settle(daemon: &Daemon, look: &mut Look) {
    let unsettled = || {
        let database = ledger::open(daemon);
        let count = |sql: &str| -> i64 { database.query_row(sql, [], |row| row.get(0)).expect("a count") };
        (
            count("SELECT count(*) FROM boxes WHERE state = 'deleting'"),
            count("SELECT count(*) FROM runs WHERE status = 'running'"),
            // Every one that is left of the last boot is released; the new ones are at most these.
            count("SELECT max(0, count(*) - 16) FROM reservations"),
        )
    };
    let settled = try_until(SETTLE_DEADLINE, || unsettled() == (0, 0, 0));
    look.fact(settled, || {
        let (deleting, running, reserved) = unsettled();
        format!(
            "after {} s {deleting} boxes are still being deleted, {running} runs of the last boot still run, and \
             {reserved} reservations of it are left",
            SETTLE_DEADLINE.as_secs()
        )
    });
}

/// Which boxes there are: the names by id.
fn list(daemon: &Daemon, known: &Known, look: &mut Look) -> BTreeMap<String, String> {
    let api = daemon.api();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let listed: BTreeMap<String, String> =
        api.list().iter().map(|data| (text(&data["id"]), text(&data["name"]))).collect();
    for (id, facts) in &known.boxes {
        let (listed, status) = (listed.contains_key(id), api.get(&format!("/v2/box/{id}")).status);
        match facts.deletion {
            Deletion::No => look.fact(listed && status == 200, || {
                format!("box {id} ({}) was created and is gone: listed {listed}, GET answers {status}", facts.name)
            }),
            Deletion::Done => look.fact(!listed && status == 404, || {
                format!("box {id} ({}) was deleted and is back: listed {listed}, GET answers {status}", facts.name)
            }),
            Deletion::Begun => {
                look.fact(matches!((listed, status), (true, 200) | (false, 404)), || {
                    format!("box {id} ({}) is half deleted: listed {listed}, GET answers {status}", facts.name)
                });
                let id = id.clone();
                report::done(&if listed { Op::Keep { id } } else { Op::Delete { id } });
            }
        }
    }
    for (id, name) in listed.iter().filter(|(id, _)| !known.boxes.contains_key(*id)) {
        // Made, but the answer was lost: it exists from now on.
        look.fact(known.unanswered_names.contains(name), || format!("box {id} ({name}) was never asked for"));
        report::done(&Op::Create { name: name.clone(), id: Some(id.clone()) });
    }
    listed
}
