//! The guest's half of `cargo xtask powercut`: looks whether everything that was acknowledged before the last cut of
//! the power is still there, then makes new work until the power is cut again.
//!
//! What was acknowledged is kept by the host, which hears of it on this program's standard output: only there does it
//! survive the cut with certainty. The lines that the host reads begin with `@`:
//!
//! - `@try OP`, `@ack OP`: an operation begins, and has been answered. `OP` is JSON, see `model`.
//! - `@checked FACTS`: the look back is over, so many facts were compared.
//! - `@working`: the new work has begun.
//! - `@violation TEXT`: something that must not be. The round has failed.
//!
//! For the replay of a recording it has two more parts: `scenario` plays a short scenario in the guest, and `replay` looks
//! at the recording of the guest's disk, on the host.
//!
//! Leaves out when and how the power is cut: that is the host's choice.

mod boxes;
mod check;
mod copies;
mod disks;
mod images;
mod ledger;
mod load;
mod model;
mod recorder;
mod recording;
mod replay;
mod report;
mod rest;
mod scenario;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use icebox_tests::Daemon;

use crate::model::Known;

/// Where everything lies, on the disk whose power is cut: the disk's place, and the directory on it.
const DISK: &str = "/data";
const HOME: &str = "powercut";
const NAME: &str = "icebox-powercut";
/// Boxes fall asleep and wake up all the time; the record of a command is on disk when its answer comes.
const CONFIG: &str = "idle_seconds = 2\nreply_after_commit = true\n";

/// What the host wants.
struct Wanted {
    /// Decides what is done, not when.
    seed: u64,
    round: u32,
    /// What the host has heard so far.
    heard: PathBuf,
    /// Whether this is the last boot: then there is a last look, and no new work.
    last: bool,
}

fn main() -> ExitCode {
    // A thread is not restarted: the round has failed, and the host is told why.
    std::panic::set_hook(Box::new(|panic| {
        report::violation(&format!("a thread of the test panicked: {panic}"));
    }));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match (words.as_slice(), Wanted::of(&words)) {
        (["scenario"], _) => scenario::play(),
        (["replay", dir, boundaries], _) if boundaries.parse::<usize>().is_ok() => {
            replay::replay(Path::new(dir), boundaries.parse().unwrap_or(usize::MAX));
        }
        (_, Some(wanted)) => return round(&wanted),
        _ => {
            eprintln!(
                "usage: powercut SEED ROUND FILE load|last\n       powercut scenario\n       \
                 powercut replay DIRECTORY BOUNDARIES"
            );
            return ExitCode::from(2);
        }
    }
    if report::violations() > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The look back, and the work or the end.
fn round(wanted: &Wanted) -> ExitCode {
    let text = std::fs::read_to_string(&wanted.heard).expect("read what was heard so far");
    let known = Known::from_lines(&text).expect("what was heard so far");
    let began = Instant::now();
    let daemon = Daemon::start_at_with_images(&Path::new(DISK).join(HOME), NAME, CONFIG);
    println!("iceboxd is ready after {} ms", began.elapsed().as_millis());
    let facts = check::look_back(&daemon, &known);
    println!("the look back took {} ms", began.elapsed().as_millis());
    if report::violations() == 0 && wanted.last {
        // It stops iceboxd, and what it leaves on the disk can be looked at afterwards.
        disks::look_at_rest(daemon);
    } else if report::violations() == 0 {
        report::checked(facts);
        load::work(&daemon, &known, wanted.seed, wanted.round);
        std::mem::forget(daemon);
        return ExitCode::FAILURE;
    } else {
        println!("the log of iceboxd ends with:\n{}", daemon.log_tail());
        std::mem::forget(daemon);
    }
    if report::violations() > 0 {
        return ExitCode::FAILURE;
    }
    report::checked(facts);
    ExitCode::SUCCESS
}

impl Wanted {
    fn of(arguments: &[&str]) -> Option<Wanted> {
        let [seed, round, heard, what] = arguments else { return None };
        Some(Wanted {
            seed: seed.parse().ok()?,
            round: round.parse().ok()?,
            heard: heard.into(),
            last: match *what {
                "load" => false,
                "last" => true,
                _ => return None,
            },
        })
    }
}
