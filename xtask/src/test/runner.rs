//! The programs that run tests: cargo-nextest where it is installed (a process and a time limit per test), else
//! `cargo test`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use super::Tier;
use super::tally::{Tally, ignored_in_list};
use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::{run, say};

/// Tests that use the machine itself disturb each other's measurements when too many run at once.
const PRIVILEGED_THREADS: &str = "2";
const CONFIG: &str = "xtask/nextest.toml";

/// Which runner there is.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    places: &'a Places,
    nextest: bool,
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

    pub(super) fn run(&self, tier: Tier, filter: Option<&str>) -> Result<Outcome> {
        if self.nextest { self.run_nextest(tier, filter) } else { self.run_libtest(tier, filter) }
    }

    fn run_nextest(&self, tier: Tier, filter: Option<&str>) -> Result<Outcome> {
        let mut command = self.nextest("run", tier, filter);
        command.args(["--no-fail-fast", "--no-tests", "pass", "--status-level", "pass"]);
        if tier != Tier::Unit {
            command.args(["--test-threads", PRIVILEGED_THREADS]);
        }
        let mut tally = Tally::default();
        let success = follow(&mut command, |line| tally += Tally::of_nextest_line(line).unwrap_or_default())?;
        if success || tally.failed > 0 {
            let ignored = self.ignored(tier, filter)?;
            ignored.iter().for_each(|name| eprintln!("     SKIPPED {name}"));
            tally.skipped = ignored.len() as u64;
        }
        Ok(Outcome { tally, success })
    }

    fn ignored(&self, tier: Tier, filter: Option<&str>) -> Result<Vec<String>> {
        let mut command = self.nextest("list", tier, filter);
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
    fn nextest(&self, verb: &str, tier: Tier, filter: Option<&str>) -> Command {
        let expression = match tier {
            Tier::Unit => "not test(/priv_/)",
            Tier::Privileged => "test(/priv_/)",
            Tier::Boxes => "all()",
        };
        let mut command = self.places.cargo();
        command.args(["nextest", verb, "--color", "never", "--config-file", CONFIG]).args(packages(tier));
        command.args(["-E", expression]).args(filter).envs(tier.environment(self.places));
        command
    }

    fn run_libtest(&self, tier: Tier, filter: Option<&str>) -> Result<Outcome> {
        let mut command = self.places.cargo();
        command.args(["test", "--no-fail-fast", "--color", "never"]).args(packages(tier)).arg("--");
        match tier {
            Tier::Unit => command.args(["--skip", "priv_"]).args(filter),
            // libtest joins filters by "or": a filter of the person's takes the place of ours.
            Tier::Privileged => command.arg(filter.filter(|filter| filter.contains("priv_")).unwrap_or("priv_")),
            Tier::Boxes => command.args(filter),
        };
        if tier != Tier::Unit {
            command.args(["--test-threads", PRIVILEGED_THREADS]);
        }
        command.envs(tier.environment(self.places));
        let mut tally = Tally::default();
        let success = follow(&mut command, |line| tally += Tally::of_libtest_line(line).unwrap_or_default())?;
        Ok(Outcome { tally, success })
    }
}

/// The packages of a tier.
fn packages(tier: Tier) -> &'static [&'static str] {
    match tier {
        Tier::Unit | Tier::Privileged => &["--workspace", "--exclude", "icebox-tests"],
        Tier::Boxes => &["--package", "icebox-tests"],
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
fn for_each_line(reader: impl Read, mut see: impl FnMut(&str)) -> std::io::Result<()> {
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
    fn both_outputs_are_followed_to_the_end() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; printf 'x\\377y\\n'; exit 1"]);
        assert!(!follow(&mut command, |line| lines.push(line.to_owned())).unwrap());
        assert_eq!(lines, ["out", "err", "x\u{fffd}y"]);
    }
}
