//! One box after the cut: its records, files, labels, runs and bill.

use icebox_tests::api::encode;
use icebox_tests::{Api, TestBox};
use serde_json::{Value, json};

use crate::check::Look;
use crate::model::{BoxFacts, Op, Text};
use crate::recorder::{self, Style};
use crate::report;

/// Looks at a box that must be usable. The first request starts it on its disk.
pub(crate) fn look(api: &Api, id: &str, facts: &BoxFacts, look: &mut Look) {
    let the_box = TestBox { api: api.clone(), id: id.to_owned() };
    let back = the_box.post("/exec", &json!({ "command": ["true"] }));
    look.fact(back.status == 200 && back.json()["exit_code"] == 0, || {
        format!("box {id} ({}) does not come back: {} {}", facts.name, back.status, back.text())
    });
    if back.status != 200 {
        return;
    }
    records(&the_box, facts, look);
    files(&the_box, facts, look);
    labels(&the_box, facts, look);
    runs(&the_box, facts, look);
    let billed = the_box.billed_usec();
    look.fact(billed >= facts.billed_usec, || {
        format!("box {id} ({}): a bill of {} us was shown, now it is {billed} us", facts.name, facts.billed_usec)
    });
    // Frozen, its counter stands still, and what the ledger says can be compared with the bill.
    the_box.pause();
}

fn records(the_box: &TestBox, facts: &BoxFacts, look: &mut Look) {
    let Some(style) = Style::of_box(&facts.name) else { return };
    let command = recorder::read_command(style, facts.record);
    let said = the_box.exec(&command.iter().map(String::as_str).collect::<Vec<_>>());
    let (last, verdict) = said.stdout.trim().split_once(' ').unwrap_or(("?", "no answer"));
    let (id, name) = (&the_box.id, &facts.name);
    look.fact(said.code == 0 && verdict == "ok", || format!("box {id} ({name}): its records are damaged: {said:?}"));
    let wanted = facts.record.map_or(-1, u64::cast_signed);
    let last: i64 = last.parse().unwrap_or(-2);
    look.facts(u64::try_from(wanted + 1).unwrap_or(0));
    look.fact(last >= wanted, || format!("box {id} ({name}): record {wanted} was acknowledged, the last is {last}"));
}

fn files(the_box: &TestBox, facts: &BoxFacts, look: &mut Look) {
    for (path, allowed) in &facts.files {
        let reply = the_box.get(&format!("/files/read?path={}", encode(path)));
        let found = match reply.status {
            200 => Some(reply.json()["content"].as_str().unwrap_or_default().to_owned()),
            404 => None,
            status => {
                look.fact(false, || format!("box {}: reading {path} answers {status} {}", the_box.id, reply.text()));
                continue;
            }
        };
        let matching = allowed.iter().find(|text| text.as_ref().map(Text::whole) == found);
        look.fact(matching.is_some(), || {
            let has = found.as_ref().map(|text| (text.len(), text.chars().take(60).collect::<String>()));
            format!("box {} ({}): {path} holds {has:?}, but must hold one of {allowed:?}", the_box.id, facts.name)
        });
        // What was open is settled now, and may not change any more.
        if let (Some(text), true) = (matching, allowed.len() > 1) {
            report::done(&Op::Put { id: the_box.id.clone(), path: path.clone(), text: text.clone() });
        }
    }
}

fn labels(the_box: &TestBox, facts: &BoxFacts, look: &mut Look) {
    let data = the_box.data();
    let has = |label: &str| data["labels"].as_array().is_some_and(|labels| labels.iter().any(|one| one == label));
    for label in facts.labels.iter().filter(|(_, answered)| **answered).map(|(label, _)| label) {
        look.fact(has(label), || format!("box {}: the label {label} is gone: {}", the_box.id, data["labels"]));
    }
}

fn runs(the_box: &TestBox, facts: &BoxFacts, look: &mut Look) {
    let listed = the_box.runs();
    let of = |token: &str| -> Vec<&Value> {
        let said = |run: &&Value| run["prompt"].as_str().is_some_and(|prompt| prompt.ends_with(&format!(" {token}")));
        listed.iter().filter(said).collect()
    };
    for (token, (code, answered)) in &facts.runs {
        let found = of(token);
        look.fact(found.len() <= 1, || format!("box {}: run {token} is recorded twice", the_box.id));
        let Some(run) = found.first() else {
            look.fact(!answered, || format!("box {}: run {token} was answered and has no record", the_box.id));
            continue;
        };
        let ended = run["exit_code"].as_i64();
        if *answered {
            look.fact(ended == Some(*code), || {
                format!("box {}: run {token} was answered with {code}, its record is {run}", the_box.id)
            });
        } else {
            // It may have ended just before the cut. If the cut has ended it, its record says so.
            let told = ended == Some(*code) || (run["status"] == "failed" && run["error_message"].is_string());
            look.fact(told, || format!("box {}: run {token} was cut off, its record is {run}", the_box.id));
        }
    }
}
