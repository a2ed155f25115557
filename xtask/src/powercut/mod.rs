//! `cargo xtask powercut`: does what was acknowledged survive a power cut?
//!
//! A guest works on a disk that all rounds share, and tells this process of every answer it gets. At a moment of
//! chance its power is cut. The guest of the next round first compares what it finds with what was acknowledged, then
//! works on. The guest's half, which knows what there is to acknowledge, is `tests/src/bin/powercut`.
//!
//! There are three ways: the guest resets itself, QEMU is killed, and the disk loses what was not flushed. In the first
//! two the data disk is a file with QEMU's cache mode writeback: what the guest has flushed is in the file, and so is
//! what its kernel has merely written, since this machine's page cache outlives QEMU. They show what is lost that was in
//! the memory of the guest. Only the third shows a flush that is missing between a box and the disk.
//!
//! Beside these rounds there is the replay of a recording ([`replay`]).
//!
//! Owns the rounds, the moment and the way of the cut, and the record of what was heard.

mod chance;
mod disk;
mod heard;
mod recording;
mod replay;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use self::chance::{Choice, Way, choose, new_seed};
use self::disk::Disk;
use self::heard::{Heard, Round};
pub(crate) use self::replay::replay;
use crate::error::{Cause, Error, Result, While};
use crate::places::{self, Places};
use crate::vm::{self, Boot, Cut, Flavour, Running, ShortDir, Terminal, Wanted};
use crate::{build, deps, run, say};

/// The guest's half, a program of the package icebox-tests.
pub(crate) const PROGRAM: &str = "powercut";
/// From QEMU's start to the guest's first line, and from each line of the look back to the next.
const CHECK_DEADLINE: Duration = Duration::from_secs(240);
/// As long between lines until the first acknowledgements. The first round makes its boxes in this time.
const WORK_DEADLINE: Duration = Duration::from_secs(120);
/// As long from the end of the look back to the end of the guest, in the last boot.
const END_DEADLINE: Duration = Duration::from_secs(120);
/// The disk's writes that come before its power goes do not come for ever.
const POWER_DEADLINE: Duration = Duration::from_secs(2);
/// From the first thing that is wrong to the end of listening, unless the guest ends before.
const GRACE: Duration = Duration::from_secs(15);
/// So many acknowledgements come before the cut may.
const ACKNOWLEDGED_MIN: u64 = 8;
/// So many of the last operations are shown when a round fails.
const SHOWN_OPERATIONS: usize = 20;

/// Options of `powercut`.
#[derive(Debug, Args)]
pub(crate) struct PowercutArgs {
    /// How often the power is cut
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Repeat the choices of an earlier call
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Always lose what the disk's cache holds, instead of one of three ways by chance
    #[arg(long)]
    strict: bool,
    /// Instead: play a short scenario, record its disk, and look at the disk at its flushes
    #[arg(long, conflicts_with_all = ["rounds", "seed", "strict"])]
    replay: bool,
    /// At so many flushes, at most
    #[arg(long, default_value_t = 400, value_name = "N", requires = "replay", value_parser = clap::value_parser!(u32).range(1..))]
    boundaries: u32,
}

/// How the rounds went. The failed one, if any, is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rounds {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// Why the failed one failed, in a few lines for the end of a report.
    pub(crate) why: Vec<String>,
}

/// The task.
pub(crate) fn powercut(args: &PowercutArgs) -> Result<()> {
    run::require_root("powercut")?;
    deps::ensure(&[deps::BUILD, deps::IMAGE, deps::RUN, deps::VM])?;
    let places = Places::find()?;
    build::build_with_image(&places, build::Wanted::All)?;
    let (began, program) = (Instant::now(), build_program(&places)?);
    let rounds = if args.replay {
        replay(&places, &program, args.boundaries)?
    } else {
        run(&places, &program, args.rounds, args.seed, args.strict)?
    };
    let wanted = if args.replay { 1 } else { args.rounds };
    say::fact(&format!("{} of {wanted} rounds passed ({:.0} s)", rounds.passed, began.elapsed().as_secs_f64()));
    if rounds.failed == 0 { Ok(()) } else { Err(Error::new("keep", "what was acknowledged", Cause::Tests)) }
}

/// Cuts the power `rounds` times. `program` is the guest's half. The release binaries and the base image must be there.
/// A round that fails is the last: its disk is kept.
pub(crate) fn run(places: &Places, program: &Path, rounds: u32, seed: Option<u64>, strict: bool) -> Result<Rounds> {
    let seed = seed.unwrap_or_else(new_seed);
    say::heading(&format!("Power cuts: {rounds} rounds, seed {seed}"));
    let mut bench = Bench::new(places, program, seed, strict)?;
    for round in 0..=rounds {
        let began = Instant::now();
        let last = round == rounds;
        let outcome = bench.boot(round, last);
        match outcome {
            Ok(()) => bench.tell(round, last, began.elapsed()),
            Err(error) => {
                bench.tell_failure(round, &error);
                // A look back that fails condemns the round before it; failing work, the round itself.
                let looked = bench.heard.round.checked.is_some() && !last;
                let passed = if looked { round } else { round.saturating_sub(1) };
                return Ok(Rounds { passed, failed: 1, why: bench.why(round, &error) });
            }
        }
    }
    fs::remove_dir_all(&bench.dir).or_fail("remove", bench.dir.display().to_string())?;
    Ok(Rounds { passed: rounds, failed: 0, why: Vec::new() })
}

/// What the rounds share.
struct Bench<'a> {
    places: &'a Places,
    seed: u64,
    strict: bool,
    dir: PathBuf,
    sockets: ShortDir,
    program: PathBuf,
    heard: Heard,
    /// The end of the console of a guest that failed without a violation.
    console: Vec<String>,
}

impl<'a> Bench<'a> {
    fn new(places: &'a Places, program: &Path, seed: u64, strict: bool) -> Result<Self> {
        let dir = places.target.join("vm/powercut");
        if dir.is_dir() {
            // Kept for inspection by an earlier call.
            fs::remove_dir_all(&dir).or_fail("remove", dir.display().to_string())?;
        }
        fs::create_dir_all(&dir).or_fail("make", dir.display().to_string())?;
        let program = program.to_owned();
        vm::data_disk(&dir.join("data.img"), vm::DATA_BYTES)?;
        let sockets = ShortDir::open(&dir)?;
        Ok(Bench { places, seed, strict, dir, sockets, program, heard: Heard::new(), console: Vec::new() })
    }

    /// One boot: the look back at the last round, and but for the last boot the work and the cut of this one.
    fn boot(&mut self, round: u32, last: bool) -> Result<()> {
        let choice = self.choice(round);
        let kept = self.dir.join("acknowledged");
        fs::write(&kept, self.heard.operations.join("\n")).or_fail("write", kept.display().to_string())?;
        let disk = if choice.way == Way::Forget && !last { Some(self.serve()?) } else { None };
        let guest = self.start(&kept, round, &choice, last)?;
        let outcome = self.watch(&choice, last);
        if !self.heard.round.violations.is_empty() {
            // One is seldom alone.
            self.heard.through(GRACE);
        }
        match outcome {
            Ok(true) if !last => cut(guest, disk.as_ref(), &choice)?,
            Ok(true) => drop(guest),
            Ok(false) | Err(_) => {
                // A violation says more than a console.
                if self.heard.round.violations.is_empty() {
                    guest.show_console();
                    self.console = guest.console_end();
                }
                drop(guest);
            }
        }
        // The guest is off, so this ends.
        self.heard.rest();
        match outcome {
            Err(error) => Err(error),
            Ok(enough) if enough && self.heard.round.violations.is_empty() => Ok(()),
            Ok(_) => Err(Error::new("keep", "what was acknowledged", Cause::Tests)),
        }
    }

    fn choice(&self, round: u32) -> Choice {
        choose(self.seed, round, self.strict)
    }

    fn socket(&self) -> PathBuf {
        self.sockets.join("disk")
    }

    fn serve(&self) -> Result<Disk> {
        let socket = self.socket();
        if socket.exists() {
            fs::remove_file(&socket).or_fail("remove", socket.display().to_string())?;
        }
        Disk::serve(&self.dir.join("data.img"), &socket, None)
    }

    fn start(&mut self, kept: &Path, round: u32, choice: &Choice, last: bool) -> Result<Running> {
        let bring = [self.places.bin(), self.program.clone(), kept.to_owned()];
        let command = script(self.places, &self.program, kept, round, choice, last);
        let (data, socket) = (self.dir.join("data.img"), self.socket());
        vm::start(
            self.places,
            Boot {
                command: &[command],
                bring: &bring,
                flavour: Flavour::Minimal,
                processors: 1,
                data: if choice.way == Way::Forget && !last { Wanted::Served(&socket) } else { Wanted::File(&data) },
                terminal: Terminal::Output(Box::new(self.heard.ear(None))),
            },
        )
    }

    /// Listens until the power is to be cut, or until the last guest has ended. Says whether all went well until then.
    fn watch(&mut self, choice: &Choice, last: bool) -> Result<bool> {
        let failed = |round: &Round| !round.violations.is_empty();
        let heard = &mut self.heard;
        heard.until("a sign of the look back", CHECK_DEADLINE, |round| round.checked.is_some() || failed(round))?;
        if heard.round.checked.is_none() {
            return Ok(false);
        }
        if last {
            // The end of its output is the end of its work; anything wrong has been said by then.
            let ended = !heard.until("a sign of the guest's end", END_DEADLINE, failed)?;
            return Ok(ended);
        }
        let begun = |round: &Round| round.acknowledged >= ACKNOWLEDGED_MIN || failed(round);
        let working = heard.until("a sign of the first acknowledgements", WORK_DEADLINE, begun)?;
        Ok(working && heard.through(choice.delay) && !failed(&heard.round))
    }

    fn tell(&self, round: u32, last: bool, took: Duration) {
        let said = &self.heard.round;
        let checked = said.checked.unwrap_or(0);
        let took = took.as_secs_f64();
        if last {
            return say::fact(&format!("after the last cut: {checked} facts hold ({took:.1} s)"));
        }
        let choice = self.choice(round);
        say::fact(&format!(
            "round {}: {checked} facts hold, {} acknowledgements, then {} after {:.1} s ({took:.1} s)",
            round + 1,
            said.acknowledged,
            choice.way.name(),
            choice.delay.as_secs_f64()
        ));
    }

    /// Everything that helps to find out what was lost. The cut that a look back complains of is the one before it.
    fn tell_failure(&self, round: u32, error: &Error) {
        say::heading(&self.headline(round));
        self.circumstances(round, error).iter().for_each(|line| say::fact(line));
        for violation in &self.heard.round.violations {
            say::fact(&format!("violation: {violation}"));
        }
        self.heard.round.other.iter().for_each(|line| say::fact(line));
        let operations = &self.heard.operations;
        say::fact(&format!("the last of {} operations that the guest has told of:", operations.len()));
        operations.iter().skip(operations.len().saturating_sub(SHOWN_OPERATIONS)).for_each(|line| say::fact(line));
        say::fact(&format!("disk and operations are kept in {}", self.dir.display()));
        say::fact(&self.repetition(round));
    }

    /// The same in a few lines, for a report whose end is all that is kept of it.
    fn why(&self, round: u32, error: &Error) -> Vec<String> {
        let mut lines = vec![self.headline(round)];
        lines.extend(self.circumstances(round, error));
        lines.extend(self.heard.round.summary(&self.console));
        lines.push(self.repetition(round));
        lines
    }

    fn headline(&self, round: u32) -> String {
        format!("Power cuts: failed in boot {} of seed {}", round + 1, self.seed)
    }

    /// The error, and the cut that a look back complains of.
    fn circumstances(&self, round: u32, error: &Error) -> Vec<String> {
        let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        let mut lines = vec![format!("{error}: {cause}")];
        if let Some(before) = round.checked_sub(1).filter(|_| self.heard.round.checked.is_none()) {
            let choice = self.choice(before);
            lines.push(format!("the cut was round {round}'s: {} after {:?}", choice.way.name(), choice.delay));
        }
        lines
    }

    fn repetition(&self, round: u32) -> String {
        let strict = if self.strict { " --strict" } else { "" };
        format!("to repeat: cargo xtask powercut --rounds {} --seed {}{strict}", round.max(1), self.seed)
    }
}

fn cut(guest: Running, disk: Option<&Disk>, choice: &Choice) -> Result<()> {
    let Some(disk) = disk else {
        return guest.cut(if choice.way == Way::Reset { Cut::Reset } else { Cut::Kill });
    };
    disk.power_off(choice.end, POWER_DEADLINE);
    guest.cut(Cut::Kill)?;
    let fate = disk.settle(choice.disk_seed)?;
    say::fact(&format!(
        "writes in the disk's cache: {} reached the medium, {} did not, {} did in part",
        fate.kept, fate.lost, fate.torn
    ));
    Ok(())
}

/// The guest's work. In the last boot the file system itself is looked at too, once nothing uses it.
fn script(places: &Places, program: &Path, kept: &Path, round: u32, choice: &Choice, last: bool) -> String {
    let mut text = format!(
        "export ICEBOX_BIN_DIR='{}' ICEBOX_IMAGE_DIR='{}' RUST_BACKTRACE=1\n'{}' {} {round} '{}' {} || exit 1\n",
        places.bin().display(),
        places::image_dir().display(),
        program.display(),
        choice.guest_seed,
        kept.display(),
        if last { "last" } else { "load" },
    );
    if last {
        text.push_str(
            "disk=$(findmnt -n -o SOURCE /data)\numount /data || echo '@violation /data cannot be unmounted'\n\
             fsck=$(e2fsck -fn \"$disk\" 2>&1) || echo \"@violation e2fsck of /data:\" $fsck\n",
        );
    }
    text
}

fn build_program(places: &Places) -> Result<PathBuf> {
    let mut command = places.cargo();
    command.args(["build", "--package", "icebox-tests", "--bin", PROGRAM, "--message-format=json"]);
    let messages = run::quiet(&mut command)?;
    let executable = |line: &str| {
        let message = serde_json::from_str::<serde_json::Value>(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    };
    messages.lines().find_map(executable).ok_or_else(|| {
        Error::new("build", PROGRAM, Cause::Unexpected("cargo does not tell where the program is".to_owned()))
    })
}
