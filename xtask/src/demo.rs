//! The main job in front of a person's eyes: a box is made, works, keeps a file, falls asleep, wakes with its memory,
//! and is billed.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Cause, Error, Result, While};
use crate::icebox::Icebox;
use crate::say;

/// The box of the demonstration. It stays, for the person to go on with.
const NAME: &str = "hello";
/// So soon it falls asleep.
const IDLE: &str = "2s";
/// The box must be asleep after the idle time and a little more.
const FREEZE_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// How long we look at the frozen box's CPU meter.
const METER_TIME: Duration = Duration::from_secs(1);

/// A process that counts its visitors in memory and nowhere else, and costs nothing without visitors.
const SERVER: &str = include_str!("demo/server.py");
/// The server may need a moment until it listens.
const VISIT: [&str; 13] = [
    "exec",
    NAME,
    "--",
    "curl",
    "-sf",
    "--retry",
    "100",
    "--retry-delay",
    "0",
    "--retry-connrefused",
    "--retry-max-time",
    "20",
    "http://127.0.0.1:8000",
];

/// Shows everything once. The second time the box of the first is used. `dir` is for a file to copy from.
pub(crate) fn show(icebox: &Icebox, dir: &Path) -> Result<()> {
    let began = Instant::now();
    create(icebox)?;
    say::heading("It is a Linux computer of its own, with a disk that stays");
    icebox.show(&["exec", NAME, "--", "sh", "-c", "id -un; uname -sr; cat /etc/debian_version; nproc"])?;
    icebox.show(&["exec", NAME, "--", "sh", "-c", "date > note.txt; cat note.txt"])?;
    say::heading("A process in it counts its visitors, in memory only");
    copy_server(icebox, dir)?;
    // When it runs already, the second one finds its port taken and ends.
    icebox.show(&["exec", "-d", NAME, "--", "python3", "server.py"])?;
    let before = visitor(&icebox.show_and_read(&VISIT)?)?;
    say::heading("No work: it falls asleep and costs no CPU");
    sleep_until_frozen(icebox)?;
    show_meter(icebox)?;
    say::heading("The next request wakes it, with its memory");
    let after = visitor(&icebox.show_and_read(&VISIT)?)?;
    if after != before + 1 {
        let why = format!("visitor {before} was followed by visitor {after}: its memory did not survive");
        return Err(Error::new("wake", NAME, Cause::Unexpected(why)));
    }
    icebox.show(&["cp", "hello:note.txt", "-"])?;
    say::heading("The bill: CPU really used, disk really occupied");
    icebox.show(&["bill"])?;
    say::fact(&format!("all of this took {:.1} s", began.elapsed().as_secs_f64()));
    Ok(())
}

fn create(icebox: &Icebox) -> Result<()> {
    if icebox.boxes()?.iter().any(|one| one.name == NAME) {
        say::heading("The box of the last time is still there");
        return icebox.show(&["ls"]);
    }
    say::heading("A box");
    icebox.show(&["create", "--name", NAME, "--idle", IDLE])
}

fn copy_server(icebox: &Icebox, dir: &Path) -> Result<()> {
    let path = dir.join("server.py");
    fs::create_dir_all(dir).and_then(|()| fs::write(&path, SERVER)).or_fail("write", path.display().to_string())?;
    icebox.show(&["cp", &path.to_string_lossy(), "hello:server.py"])
}

fn sleep_until_frozen(icebox: &Icebox) -> Result<()> {
    let mut wait = say::wait("waiting until it is frozen");
    let deadline = Instant::now() + FREEZE_DEADLINE;
    loop {
        let why = icebox.json(&["why", NAME])?;
        // The word of the wire contract for a box that sleeps.
        if why["status"] == "paused" {
            break;
        }
        if Instant::now() >= deadline {
            let because = format!("it is still awake after {} s: {why}", FREEZE_DEADLINE.as_secs());
            return Err(Error::new("freeze", NAME, Cause::Unexpected(because)));
        }
        if let Some(seconds) = why["freezes_in_seconds"].as_f64() {
            wait.update(&format!("it freezes in {:.0} s if nothing happens", seconds.max(0.0).ceil()));
        }
        thread::sleep(POLL);
    }
    wait.done("frozen");
    icebox.show(&["why", NAME])
}

/// Looks twice at the meter of the frozen box.
fn show_meter(icebox: &Icebox) -> Result<()> {
    let meter = || -> Result<u64> {
        let bill = icebox.json(&["bill", NAME])?;
        bill["cpu_usec"].as_u64().ok_or_else(|| {
            Error::new("read the bill of", NAME, Cause::Unexpected(format!("there is no cpu_usec in {bill}")))
        })
    };
    let first = meter()?;
    thread::sleep(METER_TIME);
    let used = meter()?.saturating_sub(first);
    say::fact(&format!("CPU time of the frozen box in {} s: {used} microseconds", METER_TIME.as_secs()));
    Ok(())
}

/// The number in `visitor N`.
fn visitor(text: &str) -> Result<u64> {
    text.trim().strip_prefix("visitor ").and_then(|number| number.parse().ok()).ok_or_else(|| {
        Error::new("read the answer of the server in", NAME, Cause::Unexpected(format!("it said {text:?}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_are_counted() {
        assert_eq!(visitor("visitor 12\n").unwrap(), 12);
        assert!(visitor("").is_err());
        assert!(visitor("visitor x").is_err());
    }
}
