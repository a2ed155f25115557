//! Snapshots, boxes from them, forks and promotions: made while the boxes record, and looked at after the cut.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use icebox_tests::wait::wait_for;
use icebox_tests::{Api, Daemon, TestBox};
use serde_json::{Value, json};

use crate::check::Look;
use crate::load::{Random, create, delete};
use crate::model::{Deletion, Known, Op, SnapshotFacts, Text};
use crate::recorder::{self, Style};
use crate::report;

/// A snapshot of a small disk that other work delays.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(120);
/// Snapshots of all rounds that are kept at once.
const SNAPSHOTS_MAX: usize = 3;
/// Boxes of this work that live at once.
const BOXES_MAX: usize = 2;
const NOTE: &str = "/workspace/home/note";
/// Names of boxes that get the disk of a fork begin so.
const ORIGIN_PREFIX: &str = "origin-";

/// The work of one round.
pub(crate) struct Work {
    api: Api,
    recorders: Vec<(Style, TestBox)>,
    /// What earlier rounds have left.
    old_boxes: Vec<TestBox>,
    snapshots: Vec<String>,
    round: u32,
    end: Instant,
}

impl Work {
    /// `recorders` are in the order of [`Style::ALL`].
    pub(crate) fn new(daemon: &Daemon, known: &Known, recorders: Vec<TestBox>, round: u32, end: Instant) -> Self {
        let api = daemon.api();
        let is_own = |name: &str| {
            let from_snapshot = Style::ALL.iter().any(|style| name.starts_with(&style.restored_prefix()));
            // A fork has no name.
            name.is_empty() || name.starts_with(ORIGIN_PREFIX) || from_snapshot
        };
        let old = known.boxes.iter().filter(|(_, facts)| facts.deletion == Deletion::No && is_own(&facts.name));
        let old_boxes = old.map(|(id, _)| TestBox { api: api.clone(), id: id.clone() }).collect();
        let there = known.snapshots.iter().filter(|(_, facts)| facts.deletion == Deletion::No);
        let snapshots = there.map(|(id, _)| id.clone()).collect();
        Self { api, recorders: Style::ALL.into_iter().zip(recorders).collect(), old_boxes, snapshots, round, end }
    }

    /// Goes on until the power is off.
    pub(crate) fn copy_and_promote(mut self, mut random: Random) {
        let mut alive = std::mem::take(&mut self.old_boxes);
        for count in 0_u64.. {
            if Instant::now() >= self.end {
                return;
            }
            if random.below(3) == 0 {
                alive.push(self.promote(count));
            } else {
                let chosen = usize::try_from(random.below(3)).unwrap_or(0);
                alive.push(self.restore(chosen, count));
            }
            while alive.len() > BOXES_MAX {
                delete(&alive.remove(0));
            }
            while self.snapshots.len() > SNAPSHOTS_MAX {
                self.drop_oldest_snapshot();
            }
        }
    }

    /// Takes a snapshot of a box that records, and makes a box from it.
    fn restore(&mut self, chosen: usize, count: u64) -> TestBox {
        let (style, the_box) = self.recorders[chosen].clone();
        let record = last_record(&the_box, style);
        let id = take(&the_box, &format!("taken-{}-{count}", self.round), style.name(), record);
        self.snapshots.push(id.clone());
        let name = format!("{}{}-{count}", style.restored_prefix(), self.round);
        from_snapshot(&self.api, &id, &name, record)
    }

    fn drop_oldest_snapshot(&mut self) {
        drop_snapshot(&self.api, self.snapshots.remove(0));
    }

    fn promote(&self, count: u64) -> TestBox {
        let name = format!("{ORIGIN_PREFIX}{}-{count}", self.round);
        promote(&self.api, &name, &self.text(count, "old"), &self.text(count, "new"))
    }

    fn text(&self, count: u64, kind: &str) -> Text {
        Text { tag: format!("{}/{count} {kind} ", self.round), bytes: 20_000 }
    }
}

/// Makes a box, and a fork of it with another note, and puts the fork's disk in the place of the box's.
pub(crate) fn promote(api: &Api, name: &str, old: &Text, new: &Text) -> TestBox {
    let origin = create(api, name);
    put(&origin, old);
    let mut op = Op::Create { name: String::new(), id: None };
    report::begun(&op);
    let answer = api.post(&format!("/v1/boxes/{}/fork", origin.id), &json!({ "count": 1 })).ok();
    let made = answer["boxes"][0]["id"].as_str().expect("an id").to_owned();
    if let Op::Create { id, .. } = &mut op {
        *id = Some(made.clone());
    }
    report::done(&op);
    let fork = TestBox { api: api.clone(), id: made };
    put(&fork, new);
    let ops = [note(&origin, new), Op::Delete { id: fork.id.clone() }];
    ops.iter().for_each(report::begun);
    api.post_empty(&format!("/v1/boxes/{}/promote", fork.id)).ok();
    ops.iter().for_each(report::done);
    origin
}

/// Takes a snapshot of a box that has flushed `record` in the way of this name. Returns its id when it is ready.
pub(crate) fn take(the_box: &TestBox, name: &str, style: &str, record: Option<u64>) -> String {
    let op = |id| Op::Snapshot { name: name.to_owned(), style: style.to_owned(), record, id };
    report::begun(&op(None));
    let taken = the_box.post("/snapshots", &json!({ "name": name })).ok();
    let id = taken["id"].as_str().expect("an id").to_owned();
    wait_for(SNAPSHOT_DEADLINE, "a snapshot to be ready", || {
        let status = listed(&the_box.api).remove(&id).map(|(_, status)| status);
        assert_ne!(status.as_deref(), Some("error"), "the snapshot {name} could not be taken");
        (status.as_deref() == Some("ready")).then_some(())
    });
    report::done(&op(Some(id.clone())));
    id
}

/// Deletes a snapshot, and tells of it.
pub(crate) fn drop_snapshot(api: &Api, id: String) {
    let op = Op::DropSnapshot { id: id.clone() };
    report::begun(&op);
    delete_snapshot(api, &id);
    report::done(&op);
}

fn note(the_box: &TestBox, text: &Text) -> Op {
    Op::Put { id: the_box.id.clone(), path: NOTE.to_owned(), text: Some(text.clone()) }
}

/// Writes the note of a box.
pub(crate) fn put(the_box: &TestBox, text: &Text) {
    let op = note(the_box, text);
    report::begun(&op);
    the_box.write(NOTE, &text.whole());
    report::done(&op);
}

/// Makes a box from a snapshot that holds `record`.
pub(crate) fn from_snapshot(api: &Api, snapshot: &str, name: &str, record: Option<u64>) -> TestBox {
    let mut op = Op::Create { name: name.to_owned(), id: None };
    report::begun(&op);
    let data = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": snapshot, "name": name })).ok();
    let made = data["id"].as_str().expect("an id").to_owned();
    if let Op::Create { id, .. } = &mut op {
        *id = Some(made.clone());
    }
    report::done(&op);
    if let Some(number) = record {
        report::done(&Op::Record { id: made.clone(), number });
    }
    TestBox { api: api.clone(), id: made }
}

/// The last record that the box has flushed; it may be a later one by now.
fn last_record(the_box: &TestBox, style: Style) -> Option<u64> {
    let command = recorder::read_command(style, None);
    let said = the_box.exec(&command.iter().map(String::as_str).collect::<Vec<_>>());
    said.stdout.split(' ').next().and_then(|number| number.trim().parse().ok())
}

/// Deletes a snapshot, whether its box is there or not.
fn delete_snapshot(api: &Api, id: &str) {
    let answer = api.call("DELETE", "/v2/box/snapshots", Some(&json!({ "ids": [id] }))).ok();
    assert_eq!(answer["deleted"], 1, "the snapshot {id} is not deleted");
}

/// Snapshots of the account: name and status by id.
fn listed(api: &Api) -> BTreeMap<String, (String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let answer = api.get("/v2/box/snapshots").ok();
    let list = answer["snapshots"].as_array().cloned().unwrap_or_default();
    list.iter().map(|one| (text(&one["id"]), (text(&one["name"]), text(&one["status"])))).collect()
}

/// Compares the snapshots with what was acknowledged, and makes a box from one of them.
pub(crate) fn look(daemon: &Daemon, known: &Known, look: &mut Look) {
    let api = daemon.api();
    let found = listed(&api);
    let mut whole: Vec<(&String, &SnapshotFacts)> = Vec::new();
    for (id, facts) in &known.snapshots {
        let status = found.get(id).map(|(_, status)| status.as_str());
        match facts.deletion {
            Deletion::No => {
                look.fact(status == Some("ready"), || format!("snapshot {id} was ready and is {status:?} now"));
                whole.push((id, facts));
            }
            Deletion::Done => look.fact(status.is_none(), || format!("snapshot {id} was deleted and is {status:?}")),
            Deletion::Begun => {
                look.fact(matches!(status, None | Some("ready")), || {
                    format!("snapshot {id} is half deleted: {status:?}")
                });
                let op = match status {
                    None => Op::DropSnapshot { id: id.clone() },
                    Some(_) => Op::Snapshot {
                        name: String::new(),
                        style: facts.style.clone(),
                        record: facts.record,
                        id: Some(id.clone()),
                    },
                };
                report::done(&op);
            }
        }
    }
    for (id, (name, status)) in found.iter().filter(|(id, _)| !known.snapshots.contains_key(*id)) {
        let begun = known.unanswered_snapshots.get(name);
        look.fact(begun.is_some(), || format!("snapshot {id} ({name}) was never asked for"));
        look.fact(status == "ready" || status == "error", || format!("snapshot {id} ({name}) is {status}"));
        if status == "error" {
            delete_snapshot(&api, id);
        } else if let Some(Op::Snapshot { name, style, record, .. }) = begun.cloned() {
            report::done(&Op::Snapshot { name, style, record, id: Some(id.clone()) });
        }
    }
    if let Some((id, facts)) = whole.last() {
        restored_has_its_records(&api, id, facts, look);
    }
}

fn restored_has_its_records(api: &Api, id: &str, facts: &SnapshotFacts, look: &mut Look) {
    let answer = api.post("/v2/box/from-snapshot", &json!({ "snapshot_id": id }));
    look.fact(answer.status == 200 || answer.status == 201, || {
        format!("no box can be made from snapshot {id}: {} {}", answer.status, answer.text())
    });
    let Some(made) = answer.json()["id"].as_str().map(str::to_owned) else { return };
    let made = TestBox { api: api.clone(), id: made };
    let style = Style::ALL.into_iter().find(|style| style.name() == facts.style);
    if let Some(style) = style {
        let command = recorder::read_command(style, facts.record);
        let said = made.exec(&command.iter().map(String::as_str).collect::<Vec<_>>());
        let (last, verdict) = said.stdout.trim().split_once(' ').unwrap_or(("?", "no answer"));
        look.fact(said.code == 0 && verdict == "ok", || format!("snapshot {id}: its records are damaged: {said:?}"));
        let wanted = facts.record.map_or(-1, u64::cast_signed);
        look.fact(last.parse::<i64>().is_ok_and(|last| last >= wanted), || {
            format!("snapshot {id}: record {wanted} was flushed before, its last is {last}")
        });
    }
    made.delete();
}
