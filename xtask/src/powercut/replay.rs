//! `cargo xtask powercut --replay`: a short scenario, and its disk as it was at each flush.
//!
//! A guest goes through the scenario once, on a disk of ours that records every write and flush, and between them what
//! the guest has told ([`super::recording`]). Afterwards the guest's program, here on the host, applies the recording
//! step by step, and looks at the disk at flush boundaries: there it holds what a cut just before the next flush is
//! sure to leave. So it shows a flush that is missing wherever it is, and not only where a cut by chance has fallen.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Rounds;
use super::disk::Disk;
use super::heard::{Heard, Round};
use super::recording::Recording;
use crate::error::{Cause, Error, Result, While};
use crate::places::{self, Places};
use crate::vm::{self, Boot, Cut, Flavour, ShortDir, Terminal, Wanted};
use crate::{run, say};

/// Large enough for the scenario, and small enough that the guest's kernel does not write its inode tables for minutes.
const DISK_BYTES: u64 = 6 << 30;
/// From each line of the scenario to the next. All of it seldom takes more than a minute.
const SCENARIO_DEADLINE: Duration = Duration::from_secs(240);
/// From the first thing that is wrong to the end of listening, unless the guest ends before.
const GRACE: Duration = Duration::from_secs(5);

/// Plays the scenario, and looks at its disk at `boundaries` of its flushes at most. `program` is the guest's half. The
/// release binaries and the base image must be there. It counts as one round.
pub(crate) fn replay(places: &Places, program: &Path, boundaries: u32) -> Result<Rounds> {
    say::heading("Power cuts: a scenario, and its disk at each flush");
    let dir = places.target.join("vm/replay");
    if dir.is_dir() {
        // Kept for inspection by an earlier call.
        fs::remove_dir_all(&dir).or_fail("remove", dir.display().to_string())?;
    }
    fs::create_dir_all(&dir).or_fail("make", dir.display().to_string())?;
    let mut heard = Heard::new();
    let mut console = Vec::new();
    let outcome = record(places, program, &dir, &mut heard, &mut console)
        .and_then(|()| look(program, &dir, boundaries, &mut heard, &mut console));
    let Err(error) = outcome else {
        fs::remove_dir_all(&dir).or_fail("remove", dir.display().to_string())?;
        return Ok(Rounds { passed: 1, failed: 0, why: Vec::new() });
    };
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let mut why = vec![format!("{error}: {cause}")];
    why.extend(heard.round.summary(&console));
    why.push(format!("disk and recording are kept in {}", dir.display()));
    why.push(format!("to repeat: cargo xtask powercut --replay --boundaries {boundaries}"));
    say::heading("Power cuts: the replay failed");
    why.iter().for_each(|line| say::fact(line));
    Ok(Rounds { passed: 0, failed: 1, why })
}

/// Plays the scenario in a guest.
fn record(places: &Places, program: &Path, dir: &Path, heard: &mut Heard, console: &mut Vec<String>) -> Result<()> {
    let began = Instant::now();
    let (base, medium) = (dir.join("base.img"), dir.join("data.img"));
    vm::data_disk(&base, DISK_BYTES)?;
    run::quiet(Command::new("cp").arg("--sparse=always").arg(&base).arg(&medium))?;
    let recording = Recording::begin(dir)?;
    let sockets = ShortDir::open(dir)?;
    let socket = sockets.join("disk");
    let _disk = Disk::serve(&medium, &socket, Some(recording.clone()))?;
    let command = format!(
        "export ICEBOX_BIN_DIR='{}' ICEBOX_IMAGE_DIR='{}' RUST_BACKTRACE=1\nexec '{}' scenario\n",
        places.bin().display(),
        places::image_dir().display(),
        program.display(),
    );
    let bring: [PathBuf; 2] = [places.bin(), program.to_owned()];
    let guest = vm::start(
        places,
        Boot {
            command: &[command],
            bring: &bring,
            flavour: Flavour::Minimal,
            processors: 1,
            data: Wanted::Served(&socket),
            terminal: Terminal::Output(Box::new(heard.ear(Some(recording.clone())))),
        },
    )?;
    let ended = |round: &Round| round.checked.is_some() || !round.violations.is_empty();
    let outcome = heard.until("a sign of the scenario", SCENARIO_DEADLINE, ended);
    if heard.round.checked.is_none() {
        heard.through(GRACE);
        guest.show_console();
        *console = guest.console_end();
    }
    guest.cut(Cut::Kill)?;
    heard.rest();
    let flushes = recording.end()?;
    outcome?;
    if heard.round.checked.is_none() || !heard.round.violations.is_empty() {
        return Err(Error::new("play", "the scenario", Cause::Tests));
    }
    say::fact(&format!(
        "{flushes} flushes and {} acknowledgements ({:.1} s)",
        heard.round.acknowledged,
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Has the recording looked at, on this machine.
fn look(program: &Path, dir: &Path, boundaries: u32, heard: &mut Heard, console: &mut Vec<String>) -> Result<()> {
    let began = Instant::now();
    let mut ear = heard.ear(None);
    console.clear();
    let mut command = Command::new(program);
    command.arg("replay").arg(dir).arg(boundaries.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().or_fail("run", program.display().to_string())?;
    let stdout = child.stdout.take();
    let copied = stdout.map_or(Ok(0), |mut stdout| io::copy(&mut stdout, &mut ear));
    let status = child.wait().or_fail("wait for", program.display().to_string())?;
    copied.or_fail("read", "the replay's output")?;
    drop(ear);
    heard.rest();
    heard.round.other.iter().for_each(|line| say::fact(line));
    let checked = heard.round.checked.filter(|_| status.success() && heard.round.violations.is_empty());
    let facts = checked.ok_or_else(|| Error::new("keep", "what was acknowledged", Cause::Tests))?;
    say::fact(&format!("{facts} facts hold ({:.1} s)", began.elapsed().as_secs_f64()));
    Ok(())
}
