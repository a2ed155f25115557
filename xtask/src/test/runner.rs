//! The programs that run tests: cargo-nextest where it is installed (a process and a time limit per test, times and
//! reasons of failures in a report), else `cargo test`, which any toolchain has. The latter runs the same tests, but has no
//! time limit, and tells neither how long a test took nor why it failed except in its own output.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use super::failures::Failures;
use super::junit;
use super::tally::{Tally, failed_in_libtest_line, ignored_in_list};
use super::tier::{BOXES_PACKAGE, Tier};
use super::times::Times;
use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::{run, say};

/// Tests that use the machine itself disturb each other's measurements when too many run at once. One more than two
/// processors have work for, since a third of their time is waiting: for the time limits of the daemon, mostly.
const PRIVILEGED_THREADS: &str = "3";
/// Selects all packages.
const WORKSPACE: &str = "--workspace";
const CONFIG: &str = "xtask/nextest.toml";

/// Which runner there is.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    places: &'a Places,
    nextest: bool,
}

/// Which tests of a tier.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selection<'a> {
    /// Only those of these packages; empty: all.
    pub(super) packages: &'a [String],
    /// Only those whose name contains this.
    pub(super) filter: Option<&'a str>,
}

/// What one tier gave.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) tally: Tally,
    pub(super) success: bool,
}

impl<'a> Runner<'a> {
    pub(super) fn choose(places: &'a Places) -> Result<Runner<'a>> {
        let nextest = run::quiet(places.cargo().args(["nextest", "--version"])).is_ok();
        if !nextest {
            say::fact("cargo-nextest is not installed; using cargo test");
        }
        Ok(Runner { places, nextest })
    }

    pub(super) fn run(
        &self,
        tier: Tier,
        selection: &Selection<'_>,
        failures: &Failures,
        times: &Times,
    ) -> Result<Outcome> {
        if self.nextest {
            self.run_nextest(tier, selection, failures, times)
        } else {
            self.run_libtest(tier, selection, failures)
        }
    }

    fn run_nextest(
        &self,
        tier: Tier,
        selection: &Selection<'_>,
        failures: &Failures,
        times: &Times,
    ) -> Result<Outcome> {
        let report = junit::path(self.places);
        if report.exists() {
            std::fs::remove_file(&report).or_fail("remove", report.display().to_string())?;
        }
        let mut build = self.nextest("run", tier, selection);
        let built = times.part(&format!("build of the tests of tier {}", tier.name()), || {
            follow(build.arg("--no-run").args(["--no-tests", "pass"]), |_| {})
        })?;
        if !built {
            return Ok(Outcome { tally: Tally::default(), success: false });
        }
        let mut command = self.nextest("run", tier, selection);
        command.args(["--no-fail-fast", "--no-tests", "pass", "--status-level", "pass"]);
        if tier != Tier::Unit {
            command.args(["--test-threads", PRIVILEGED_THREADS]);
        }
        let success = follow(&mut command, |_| {})?;
        let mut tally = junit::read(self.places, failures, times)?.unwrap_or_default();
        let ignored = self.ignored(tier, selection)?;
        ignored.iter().for_each(|name| eprintln!("     SKIPPED {name}"));
        tally.skipped += ignored.len() as u64;
        Ok(Outcome { tally, success })
    }

    fn ignored(&self, tier: Tier, selection: &Selection<'_>) -> Result<Vec<String>> {
        let mut command = self.nextest("list", tier, selection);
        let list = run::quiet(command.args(["--message-format", "json"]))?;
        ignored_in_list(&list).ok_or_else(|| {
            Error::new(
                "read",
                "the list of tests",
                Cause::Unexpected("cargo nextest printed something else".to_owned()),
            )
        })
    }

    /// `cargo nextest VERB` with the selection of the tier.
    fn nextest(&self, verb: &str, tier: Tier, selection: &Selection<'_>) -> Command {
        let expression = expression(tier);
        let mut command = self.places.cargo();
        command.args(["nextest", verb, "--color", "never", "--config-file", CONFIG]);
        command.args(if selection.packages.is_empty() {
            vec![WORKSPACE.to_owned()]
        } else {
            packages(tier, selection)
        });
        command.args(["-E", &expression]).args(selection.filter).envs(tier.environment(self.places));
        command
    }

    fn run_libtest(&self, tier: Tier, selection: &Selection<'_>, failures: &Failures) -> Result<Outcome> {
        let mut command = self.places.cargo();
        command.args(["test", "--no-fail-fast", "--color", "never"]).args(packages(tier, selection)).arg("--");
        match tier {
            Tier::Unit => command.args(["--skip", "priv_"]).args(selection.filter),
            // libtest joins filters by "or": a filter of the person's takes the place of ours.
            Tier::Privileged => {
                command.arg(selection.filter.filter(|filter| filter.contains("priv_")).unwrap_or("priv_"))
            }
            Tier::Boxes | Tier::Vm | Tier::Bare => command.args(selection.filter),
        };
        if tier != Tier::Unit {
            command.args(["--test-threads", PRIVILEGED_THREADS]);
        }
        command.envs(tier.environment(self.places));
        let mut tally = Tally::default();
        let success = follow(&mut command, |line| {
            tally += Tally::of_libtest_line(line).unwrap_or_default();
            if let Some(name) = failed_in_libtest_line(line) {
                failures.add(name, vec!["see further up".to_owned()]);
            }
        })?;
        Ok(Outcome { tally, success })
    }
}

/// Which tests nextest runs in a tier. All tiers are built with the whole workspace selected: cargo turns on the features
/// that the selected packages ask for, so another selection would compile tokio, hyper and what stands on them again.
fn expression(tier: Tier) -> String {
    let privileged = "(test(/priv_/) | binary(/^priv_/))";
    let of_boxes = format!("package({BOXES_PACKAGE})");
    match tier {
        Tier::Unit => format!("not {of_boxes} & not {privileged}"),
        Tier::Privileged => format!("not {of_boxes} & {privileged}"),
        Tier::Boxes | Tier::Vm | Tier::Bare => format!("{of_boxes} & not binary(/^guest_/)"),
    }
}

/// The arguments that name the packages of a tier, or those of them that the person wants.
fn packages(tier: Tier, selection: &Selection<'_>) -> Vec<String> {
    let of_boxes = tier == Tier::Boxes;
    let wanted = selection.packages.iter().filter(|package| (*package == BOXES_PACKAGE) == of_boxes);
    let arguments: Vec<String> = wanted.map(|package| format!("--package={package}")).collect();
    match (arguments.is_empty(), of_boxes) {
        (false, _) => arguments,
        (true, true) => vec![format!("--package={BOXES_PACKAGE}")],
        (true, false) => vec![WORKSPACE.to_owned(), format!("--exclude={BOXES_PACKAGE}")],
    }
}

/// Runs a command and shows what it prints on both outputs while `see` looks at every line.
fn follow(command: &mut Command, mut see: impl FnMut(&str)) -> Result<bool> {
    let name = run::describe(command);
    let (reader, writer) = std::io::pipe().or_fail("run", &name)?;
    let other = writer.try_clone().or_fail("run", &name)?;
    let mut child = command.stdin(Stdio::null()).stdout(writer).stderr(other).spawn().or_fail("run", &name)?;
    // The command keeps the pipe's writing ends, and the pipe only ends when all of them are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for_each_line(reader, |line| {
        eprintln!("{line}");
        see(line);
    })
    .or_fail("read the output of", &name)?;
    Ok(child.wait().or_fail("wait for", &name)?.success())
}

/// Tests may print bytes that are no text.
pub(super) fn for_each_line(reader: impl Read, mut see: impl FnMut(&str)) -> std::io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        see(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_follow_tier_and_wish() {
        let both = ["icebox-rootfs".to_owned(), BOXES_PACKAGE.to_owned()];
        let all = Selection { packages: &[], filter: None };
        let some = Selection { packages: &both, filter: None };
        assert_eq!(packages(Tier::Unit, &all), ["--workspace", "--exclude=icebox-tests"]);
        assert_eq!(packages(Tier::Privileged, &some), ["--package=icebox-rootfs"]);
        assert_eq!(packages(Tier::Boxes, &some), ["--package=icebox-tests"]);
        assert!(!Tier::Boxes.has_any_of(&both[..1]) && Tier::Unit.has_any_of(&both) && Tier::Boxes.has_any_of(&[]));
    }

    #[test]
    fn both_outputs_are_followed_to_the_end() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; printf 'x\\377y\\n'; exit 1"]);
        assert!(!follow(&mut command, |line| lines.push(line.to_owned())).unwrap());
        assert_eq!(lines, ["out", "err", "x\u{fffd}y"]);
    }
}
