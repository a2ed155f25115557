//! The work that the cut falls into. It goes on until the power is off; any refused request is a violation.

use std::io::BufRead;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use icebox_tests::api::encode;
use icebox_tests::wait::let_pass;
use icebox_tests::{Api, Daemon, TestBox};
use serde_json::json;

use crate::model::{Known, Op, Text};
use crate::recorder::{self, Style};
use crate::{copies, images, report};

/// The box with files and commands.
const DESK: &str = "desk";
/// The host cuts the power long before; if it does not, the program must not go on for ever.
const WORK_DEADLINE: Duration = Duration::from_secs(300);
const BILL_INTERVAL: Duration = Duration::from_millis(150);
/// Different files, so that the box's disk stays small.
const FILES: u64 = 12;
/// Boxes of this round that live at once.
const CHURNED_MAX: usize = 2;
const LABELS_MAX: u64 = 5;

/// SplitMix64: small, and the same everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Works until the end of the power, or of the patience.
pub(crate) fn work(daemon: &Daemon, known: &Known, seed: u64, round: u32) {
    let end = Instant::now() + WORK_DEADLINE;
    let make = |name: String| {
        let (api, old) = (daemon.api(), known.named(&name).map(str::to_owned));
        thread::spawn(move || match old {
            Some(id) => TestBox { api, id },
            None => create(&api, &name),
        })
    };
    let recorders: Vec<(Style, JoinHandle<TestBox>)> =
        Style::ALL.into_iter().map(|style| (style, make(style.box_name()))).collect();
    let desk = make(DESK.to_owned()).join().expect("the desk");
    let mut boxes = vec![desk.clone()];
    let (began, first_records) = channel::<()>();
    let mut threads = Vec::new();
    for (style, made) in recorders {
        let the_box = made.join().expect("a box for records");
        boxes.push(the_box.clone());
        let began = began.clone();
        threads.push(thread::spawn(move || record(&the_box, style, round, began)));
    }
    let random = |n: u64| Random(seed.wrapping_add(n.wrapping_mul(0xD134_2543_DE82_EF95)));
    let (first, second, third, fourth) = (random(1), random(2), random(3), random(4));
    let copies = copies::Work::new(daemon, known, boxes[1..].to_vec(), round, end);
    let images = images::Work::new(daemon, round, end);
    let (fifth, sixth) = (random(5), random(6));
    threads.push(thread::spawn(move || copies.copy_and_promote(fifth)));
    threads.push(thread::spawn(move || images.come_and_go(sixth)));
    let (files, commands, api) = (desk.clone(), desk, daemon.api());
    threads.push(thread::spawn(move || write_files(&files, first, round, end)));
    threads.push(thread::spawn(move || run_commands(&commands, second, round, end)));
    threads.push(thread::spawn(move || come_and_go(&api, third, round, end)));
    threads.push(thread::spawn(move || look_at_bills(&boxes, fourth, end)));
    drop(began);
    // The channel ends when every recorder has said its first number: from here on a cut hits all kinds of work.
    if first_records.recv().is_err() {
        report::working();
    }
    for thread in threads {
        // A panic has been reported.
        let _ = thread.join();
    }
    report::violation("the power was not cut");
}

pub(crate) fn create(api: &Api, name: &str) -> TestBox {
    let mut op = Op::Create { name: name.to_owned(), id: None };
    report::begun(&op);
    let data = api.post("/v2/box", &json!({ "name": name })).ok();
    let made = data["id"].as_str().expect("an id").to_owned();
    if let Op::Create { id, .. } = &mut op {
        *id = Some(made.clone());
    }
    report::done(&op);
    TestBox { api: api.clone(), id: made }
}

pub(crate) fn delete(the_box: &TestBox) {
    let op = Op::Delete { id: the_box.id.clone() };
    report::begun(&op);
    the_box.delete();
    report::done(&op);
}

/// Hears of every record that a program in the box has flushed.
fn record(the_box: &TestBox, style: Style, round: u32, began: Sender<()>) {
    let mut began = Some(began);
    let mut command = recorder::write_command(style);
    let token = format!("recorder-{round}");
    command.push(token.clone());
    report::begun(&Op::Run { id: the_box.id.clone(), token, code: 0 });
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    for line in std::io::BufReader::new(the_box.stream(&words)).lines() {
        let line = line.expect("a record's number");
        let number = line.parse().unwrap_or_else(|_| panic!("the recorder {style:?} says {line:?}"));
        report::done(&Op::Record { id: the_box.id.clone(), number });
        drop(began.take());
    }
    panic!("the recorder {style:?} has ended");
}

/// Writes, renames and removes files through the API.
fn write_files(desk: &TestBox, mut random: Random, round: u32, end: Instant) {
    let id = desk.id.clone();
    let path = |n: u64| format!("/workspace/home/files/{}/{n}", n % 3);
    for count in 0_u64.. {
        if Instant::now() >= end {
            return;
        }
        let here = path(random.below(FILES));
        match random.below(10) {
            0 | 1 => {
                // What is not there is answered with 404, and nothing has changed.
                let op = Op::Put { id: id.clone(), path: here.clone(), text: None };
                report::begun(&op);
                let reply = desk.post("/files/remove", &json!({ "path": here }));
                assert!(matches!(reply.status, 200 | 404), "remove: {} {}", reply.status, reply.text());
                report::done(&op);
            }
            2 => {
                let there = format!("{here}-renamed");
                if desk.get(&format!("/files/stat?path={}", encode(&here))).status != 200 {
                    continue;
                }
                let op = Op::Rename { id: id.clone(), from: here.clone(), to: there.clone() };
                report::begun(&op);
                desk.post("/files/rename", &json!({ "from": here, "to": there })).ok();
                report::done(&op);
            }
            kind => {
                let bytes = usize::try_from(random.below(60_000)).unwrap_or(0);
                let text = Text { tag: format!("{round}/{count} "), bytes };
                let op = Op::Put { id: id.clone(), path: here.clone(), text: Some(text.clone()) };
                report::begun(&op);
                if kind < 5 {
                    upload(desk, &here, text.whole());
                } else {
                    desk.write(&here, &text.whole());
                }
                report::done(&op);
            }
        }
    }
}

fn upload(desk: &TestBox, path: &str, content: String) {
    const BOUNDARY: &str = "the-end-of-a-part";
    let body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"paths\"\r\n\r\n{path}\r\n--{BOUNDARY}\r\n\
         Content-Disposition: form-data; name=\"files\"; filename=\"x\"\r\n\r\n{content}\r\n--{BOUNDARY}--\r\n"
    );
    let request = desk.api.build("POST", &desk.path("/files/upload"));
    let request = request.header("content-type", format!("multipart/form-data; boundary={BOUNDARY}")).body(body);
    desk.api.send("upload", request).ok();
}

/// Runs commands, and one that is in flight at the cut.
fn run_commands(desk: &TestBox, mut random: Random, round: u32, end: Instant) {
    let id = desk.id.clone();
    let sleeper = Op::Run { id: id.clone(), token: format!("sleeper-{round}"), code: 0 };
    report::begun(&sleeper);
    let _in_flight = desk.stream(&["sh", "-c", "echo; exec sleep 3600", &format!("sleeper-{round}")]);
    for count in 0.. {
        if Instant::now() >= end {
            return;
        }
        let (token, code) = (format!("run-{round}-{count}"), random.below(100));
        // Some take long enough to be recorded while they run.
        let pause = if random.below(4) == 0 { "0.5" } else { "0" };
        let op = Op::Run { id: id.clone(), token: token.clone(), code: code.cast_signed() };
        report::begun(&op);
        let done = desk.exec(&["sh", "-c", &format!("sleep {pause}; exit {code}"), &token]);
        assert!(done.code == code.cast_signed(), "{token} ended with {}, not {code}", done.code);
        report::done(&op);
        if count % 8 == 0 {
            let op = Op::Label { id: id.clone(), label: format!("label-{}", random.below(LABELS_MAX)) };
            report::begun(&op);
            let Op::Label { label, .. } = &op else { continue };
            desk.post("/config/labels", &json!({ "label": label })).ok();
            report::done(&op);
        }
    }
}

/// Makes boxes, uses each once, and deletes most.
fn come_and_go(api: &Api, mut random: Random, round: u32, end: Instant) {
    let mut alive: Vec<TestBox> = Vec::new();
    for count in 0.. {
        if Instant::now() >= end {
            return;
        }
        let made = create(api, &format!("short-{round}-{count}"));
        let text = Text { tag: format!("{round}:{count} "), bytes: 3000 };
        let op = Op::Put { id: made.id.clone(), path: "/workspace/home/note".into(), text: Some(text.clone()) };
        report::begun(&op);
        made.write("/workspace/home/note", &text.whole());
        report::done(&op);
        alive.push(made);
        while alive.len() > CHURNED_MAX || (!alive.is_empty() && random.below(2) == 0) {
            delete(&alive.remove(0));
        }
    }
}

/// Reads bills, and puts boxes to sleep in the middle of their work.
fn look_at_bills(boxes: &[TestBox], mut random: Random, end: Instant) {
    while Instant::now() < end {
        for the_box in boxes {
            report::done(&Op::Bill { id: the_box.id.clone(), cpu_usec: the_box.billed_usec() });
            if random.below(12) == 0 {
                the_box.pause();
                report::done(&Op::Bill { id: the_box.id.clone(), cpu_usec: the_box.billed_usec() });
                the_box.resume();
            }
        }
        let_pass(BILL_INTERVAL);
    }
}
