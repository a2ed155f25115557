//! The tier `vm`: the tests of the privileged and boxes tiers, built here and run in guests with pure cgroup v2.
//!
//! Which tests don't is said in [`super::worlds`]. Each test is a process of its own with a time limit, as with
//! cargo-nextest, and is reported in the same form. A test of which the guest doesn't tell how it went has failed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::failures::{Failures, excerpt};
use super::runner::{Outcome, Selection, for_each_line};
use super::suites::{self, Built, Suite};
use super::tally::Tally;
use super::tier::Tier;
use super::times::Times;
use super::worlds;
use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::vm::{self, Flavour, Job, Patience, Terminal};
use crate::{powercut, say};

const SCRIPT: &str = include_str!("guest.sh");
/// One test; the guest's `timeout` ends it.
const TEST_SECONDS_MAX: u32 = 240;
/// The guest is ended when no test has ended for so long. The whole may take as long as it takes: the machine may be busy.
const SILENCE: Duration = Duration::from_secs(600);
/// How often the tier tells how far a guest is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(30);
/// One more than the guest has processors, since some tests wait.
const MINIMAL_THREADS: u32 = vm::PROCESSORS + 1;
/// There is one unit, and every test changes it.
const SYSTEMD_THREADS: u32 = 1;
/// What a filter is compared with.
const POWER_CUTS: &str = "powercut";
const POWER_CUT_ROUNDS: u32 = 5;
/// The replay looks at so many flushes of its scenario: each takes about a second.
const REPLAY_BOUNDARIES: u32 = 50;

/// A test that is to run in a guest.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    suite: &'a Suite,
    test: &'a str,
}

impl std::fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}::{} {}", self.suite.package, self.suite.name, self.test)
    }
}

/// How one test went, in the guest's words: `icebox-test NUMBER STATUS MILLISECONDS`.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    number: usize,
    status: String,
    milliseconds: u64,
}

/// Builds the tests and runs them in one guest per flavour, and cuts the power of others. First two guests that have one
/// processor, side by side; the one that has two begins when the power cuts are done. Guests that have more of them together
/// than the host wait for each other, in loops that the software plays to their ends.
pub(super) fn run(places: &Places, selection: &Selection<'_>, failures: &Failures, times: &Times) -> Result<Outcome> {
    let built = times.part("build of the tests of tier vm", || suites::build(places, selection))?;
    if selection.packages.is_empty() {
        worlds::check(&built.suites)?;
    }
    let in_flavour = |flavour| {
        let wanted = wanted(&built.suites, selection.filter, flavour);
        if wanted.is_empty() {
            Ok(Tally::default())
        } else {
            in_guest(places, &built, &wanted, flavour, failures, times)
        }
    };
    let tally = std::thread::scope(|scope| {
        let beside = scope.spawn(|| in_flavour(Flavour::Systemd));
        let cuts = power_cuts(places, &built, selection, failures);
        let first = in_flavour(Flavour::Minimal);
        let panicked = || Error::new("run", "the guests", Cause::Unexpected("a thread panicked".to_owned()));
        Ok(beside.join().map_err(|_| panicked())?? + cuts? + first?)
    })?;
    Ok(Outcome { tally, success: tally.failed == 0 })
}

/// Each round is a test, and so is the replay. A failed round is the last, so those after it count as failed.
fn power_cuts(places: &Places, built: &Built, selection: &Selection<'_>, failures: &Failures) -> Result<Tally> {
    let is_wanted = selection.packages.is_empty() && selection.filter.is_none_or(|filter| POWER_CUTS.contains(filter));
    if !is_wanted {
        return Ok(Tally::default());
    }
    let program = built.program(powercut::PROGRAM)?;
    let rounds = powercut::run(places, &program, POWER_CUT_ROUNDS, None, false)?;
    let replay = powercut::replay(places, &program, REPLAY_BOUNDARIES)?;
    let passed = rounds.passed;
    let tally = Tally { passed: passed.into(), failed: (POWER_CUT_ROUNDS - passed).into(), skipped: 0 };
    eprintln!("     Summary {POWER_CUT_ROUNDS} rounds of {POWER_CUTS}: {tally}");
    if tally.failed > 0 {
        failures.add(format!("{POWER_CUTS} (round {})", passed + 1), rounds.why);
    }
    if replay.failed > 0 {
        failures.add(format!("{POWER_CUTS} (replay)"), replay.why);
    }
    Ok(tally + Tally { passed: replay.passed.into(), failed: replay.failed.into(), skipped: 0 })
}

fn wanted<'a>(suites: &'a [Suite], filter: Option<&str>, flavour: Flavour) -> Vec<Wanted<'a>> {
    let tests = suites.iter().flat_map(|suite| suite.tests.iter().map(move |test| Wanted { suite, test }));
    tests
        .filter(|Wanted { suite, test }| {
            worlds::flavour_of(&suite.name, test) == Some(flavour) && filter.is_none_or(|filter| test.contains(filter))
        })
        .collect()
}

fn in_guest(
    places: &Places,
    built: &Built,
    wanted: &[Wanted<'_>],
    flavour: Flavour,
    failures: &Failures,
    times: &Times,
) -> Result<Tally> {
    say::fact(&format!("{} tests in the guest \"{flavour}\"", wanted.len()));
    let started = Instant::now();
    let mut ends: Vec<Option<Told>> = wanted.iter().map(|_| None).collect();
    let mut boot = boot(places, built, wanted, flavour, &mut ends, failures, times)?;
    let mut died = "";
    if boot.end.is_err() && ends.iter().any(Option::is_none) {
        // A lock-up of the emulated machine says nothing of the tests. One that a test brings about comes back.
        say::heading(&format!("The guest \"{flavour}\" died: another one runs the tests that it did not tell of"));
        died = " (one guest died, see further up)";
        boot = self::boot(places, built, wanted, flavour, &mut ends, failures, times)?;
    }
    let tally = conclude(wanted, &ends, &boot.last, failures);
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("     Summary [{seconds:8.3}s] {} tests run in the guest \"{flavour}\": {tally}{died}", wanted.len());
    // With an error of its own the guest has not come up, or has hung: what it told before stands above.
    boot.end.map(|_| tally)
}

/// How a guest went.
struct BootEnd {
    end: Result<vm::End>,
    /// What came after its last line about a test.
    last: String,
}

/// Runs the tests that have no end yet in one guest.
fn boot(
    places: &Places,
    built: &Built,
    wanted: &[Wanted<'_>],
    flavour: Flavour,
    ends: &mut [Option<Told>],
    failures: &Failures,
    times: &Times,
) -> Result<BootEnd> {
    let mut bring: Vec<_> = wanted.iter().map(|wanted| wanted.suite.path.clone()).collect();
    bring.dedup();
    bring.extend(built.programs.iter().cloned());
    // Binaries, public clients, and the scenarios for these.
    bring.extend([places.bin(), places.sdk(), places.root.join("tests/sdk")]);
    let (reader, writer) = std::io::pipe().or_fail("run", "the guest")?;
    let job = Job {
        command: &[script(places, wanted, ends, flavour)],
        bring: &bring,
        flavour,
        processors: if flavour == Flavour::Systemd { 1 } else { vm::PROCESSORS },
        keep: false,
        out: &places.target.join("vm").join(format!("left-by-tests-{flavour}")),
        patience: Patience::Silence(SILENCE),
        terminal: Terminal::Output(Box::new(writer)),
    };
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| read(reader, wanted, flavour, ends, failures, times));
        let end = vm::run_job(places, job);
        let panicked = || Error::new("read", "the guest's output", Cause::Unexpected("its reader panicked".to_owned()));
        let last = reading.join().map_err(|_| panicked())?.or_fail("read", "the guest's output")?;
        Ok(BootEnd { end, last })
    })
}

/// Shows what the guest prints, its lines about tests in the form of cargo-nextest. Returns what came after the last of
/// them.
fn read(
    reader: impl std::io::Read,
    wanted: &[Wanted<'_>],
    flavour: Flavour,
    ends: &mut [Option<Told>],
    failures: &Failures,
    times: &Times,
) -> std::io::Result<String> {
    let mut count = ends.iter().flatten().count();
    let mut progress = Progress { flavour, total: wanted.len(), told: Instant::now() };
    // The output of a failed test comes before its line, and nothing else does.
    let mut output = String::new();
    for_each_line(reader, |line| {
        let Some(told) = Told::parse(line).filter(|told| told.number < wanted.len()) else {
            let _ = writeln!(output, "{}", line.strip_prefix("    ").unwrap_or(line));
            return eprintln!("{line}");
        };
        count += 1;
        let (number, wanted_test) = (told.number, wanted[told.number]);
        eprintln!(
            "{:>12} [{:8.3}s] ({count:>3}/{}) {wanted_test}",
            told.word(),
            Duration::from_millis(told.milliseconds).as_secs_f64(),
            wanted.len(),
        );
        let output = std::mem::take(&mut output);
        if told.word() != "PASS" {
            failures.add(format!("{wanted_test} ({} in the guest)", told.word()), excerpt(&output));
        }
        times.add(&format!("{wanted_test} (guest {flavour})"), Duration::from_millis(told.milliseconds));
        progress.tell(count, PROGRESS_INTERVAL);
        ends[number] = Some(told);
    })?;
    Ok(output)
}

/// How far a guest is, for a person who sees the lines of two guests mixed.
struct Progress {
    flavour: Flavour,
    total: usize,
    told: Instant,
}

impl Progress {
    /// Prints a line, at most once in `interval`.
    fn tell(&mut self, count: usize, interval: Duration) {
        if self.told.elapsed() >= interval {
            self.told = Instant::now();
            say::fact(&format!("guest {}: {count} of {}", self.flavour, self.total));
        }
    }
}

/// Counts; a test that nothing was told of is named, the first of them with what came last from the guest.
fn conclude(wanted: &[Wanted<'_>], ends: &[Option<Told>], last: &str, failures: &Failures) -> Tally {
    let mut last = excerpt(last);
    let mut tally = Tally::default();
    for (wanted_test, end) in wanted.iter().zip(ends) {
        match end.as_ref().map(|told| told.status.as_str()) {
            Some("0") => tally.passed += 1,
            Some("skipped") => tally.skipped += 1,
            Some(_) => tally.failed += 1,
            None => {
                eprintln!("        LOST {wanted_test}: the guest did not tell how it went");
                failures.add(format!("{wanted_test} (LOST in the guest)"), std::mem::take(&mut last));
                tally.failed += 1;
            }
        }
    }
    tally
}

impl Told {
    fn parse(line: &str) -> Option<Told> {
        let mut words = line.strip_prefix("icebox-test ")?.split(' ');
        let number = words.next()?.parse().ok()?;
        let status = words.next()?.to_owned();
        Some(Told { number, status, milliseconds: words.next()?.parse().ok()? })
    }

    fn word(&self) -> &'static str {
        match self.status.as_str() {
            "0" => "PASS",
            "skipped" => "SKIPPED",
            // See timeout(1).
            "124" | "137" => "TIMEOUT",
            _ => "FAIL",
        }
    }
}

/// The whole work of the guest: the tests that have no end yet.
fn script(places: &Places, wanted: &[Wanted<'_>], ends: &[Option<Told>], flavour: Flavour) -> String {
    let threads = if flavour == Flavour::Systemd { SYSTEMD_THREADS } else { MINIMAL_THREADS };
    let mut text = format!("export TEST_SECONDS_MAX={TEST_SECONDS_MAX} TEST_THREADS={threads}");
    for (name, value) in Tier::Boxes.environment(places) {
        // Volumes need a disk of their own size.
        let value = if name == "ICEBOX_TEST_DIR" { "/data/tmp".into() } else { value };
        let _ = write!(text, " {name}='{}'", value.display());
    }
    text.push_str("\nmkdir -p /data/tmp && cd /data\n");
    for (file, alone) in [("tests", false), ("alone", true)] {
        let _ = writeln!(text, "cat >{file} <<'END'");
        for (number, Wanted { suite, test }) in wanted.iter().enumerate() {
            if ends[number].is_none() && worlds::is_alone(&suite.name) == alone {
                let _ = writeln!(text, "{number} {} {test}", suite.path.display());
            }
        }
        text.push_str("END\n");
    }
    text + SCRIPT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_words_are_read() {
        let told = Told::parse("icebox-test 3 0 120").unwrap();
        assert_eq!((told.number, told.word(), told.milliseconds), (3, "PASS", 120));
        assert_eq!(Told::parse("icebox-test 3 101 1").unwrap().word(), "FAIL");
        assert_eq!(Told::parse("icebox-test 3 124 1").unwrap().word(), "TIMEOUT");
        assert_eq!(Told::parse("test 3 ... ok"), None);
        assert_eq!(Told::parse("icebox-test x 0 1"), None);
    }

    #[test]
    fn what_is_not_told_has_failed() {
        let tests = ["a", "b", "c"].map(str::to_owned).to_vec();
        let suite = Suite { name: "life".into(), package: "icebox-tests".into(), path: "/t/life".into(), tests };
        let suites = [suite];
        let wanted = wanted(&suites, None, Flavour::Minimal);
        let mut ends = vec![None, None, None];
        let (failures, times) = (Failures::default(), Times::default());
        let told = "icebox-test 0 0 150\n    noise\nicebox-test 2 skipped 1\nicebox-test 9 0 1\n    Kernel panic\n";
        let last = read(told.as_bytes(), &wanted, Flavour::Minimal, &mut ends, &failures, &times).unwrap();
        assert_eq!(conclude(&wanted, &ends, &last, &failures), Tally { passed: 1, failed: 1, skipped: 1 });
        let why = "\nfailed: icebox-tests::life c (SKIPPED in the guest)\n    noise\n\n\
                   failed: icebox-tests::life b (LOST in the guest)\n    icebox-test 9 0 1\n    Kernel panic\n";
        assert_eq!(failures.report(), why);
        assert!(times.slowest(9).contains("icebox-tests::life a (guest minimal)"));
        assert!(super::wanted(&suites, Some("x"), Flavour::Minimal).is_empty());
    }
}
