//! The tier `vm`: the tests of the privileged and boxes tiers, built here and run in a guest with pure cgroup v2.
//!
//! Which tests stay out is one list, [`LEFT_OUT`], with the reasons. A name in it that no test has fails the tier, and
//! so does a test of which the guest doesn't tell how it went.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Tier;
use super::runner::{Outcome, PRIVILEGED_THREADS, Selection, for_each_line};
use super::tally::Tally;
use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::vm::{self, Flavour, Job, Terminal};
use crate::{run, say};

/// Tests that don't run in the guest: binary, the beginning of their names (empty: all), and why.
const LEFT_OUT: [(&str, &str, &str); 15] = [
    ("edges", "", "reads the workspace, which is the same everywhere"),
    ("sdk_npm", "", "the clients speak HTTP only; they know nothing of the kernel"),
    ("sdk_pypi", "", "the clients speak HTTP only; they know nothing of the kernel"),
    ("accounts", "", "HTTP and records only"),
    ("api_errors", "", "HTTP and records only"),
    ("routes", "", "HTTP and records only"),
    ("churn", "", "hundreds of boxes: too slow in a machine made of software"),
    ("races", "", "needs many rounds: too slow in a machine made of software"),
    ("priv_attach", "priv_a_gigabyte", "a gigabyte: too slow in a machine made of software"),
    ("priv_attach", "priv_finished_runs_are_bounded", "a thousand runs: too slow in a machine made of software"),
    (
        "priv_files",
        "priv_file_work_leaves_no_process",
        "counts over many rounds: too slow in a machine made of software",
    ),
    ("priv_volume", "priv_two_hundred", "loop devices are the same everywhere, and two hundred are slow"),
    ("limits", "a_memory_hog", "four gigabytes; priv_box does the same with less"),
    ("limits", "a_gigabyte_of_yes", "a gigabyte: too slow in a machine made of software"),
    ("bill", "run_figures", "its upper bounds are those of a real processor"),
];
const TIER_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// One test binary; the guest's `timeout` ends it.
const BINARY_SECONDS_MAX: u32 = 400;

/// A test binary, and those of its tests that are to run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Suite {
    name: String,
    path: PathBuf,
    tests: Vec<String>,
}

/// What cargo has built.
#[derive(Debug, Default)]
struct Built {
    suites: Vec<Suite>,
    /// Programs that tests start by the path they were built at.
    programs: Vec<PathBuf>,
}

/// Builds the tests and runs them in one guest.
pub(super) fn run(places: &Places, selection: &Selection<'_>) -> Result<Outcome> {
    let mut built = build(places, selection)?;
    for suite in &mut built.suites {
        suite.tests = list(suite)?;
    }
    if selection.packages.is_empty() {
        check_left_out(&built.suites)?;
    }
    for suite in &mut built.suites {
        suite.tests.retain(|test| is_wanted(&suite.name, test, selection.filter));
    }
    built.suites.retain(|suite| !suite.tests.is_empty());
    let expected: usize = built.suites.iter().map(|suite| suite.tests.len()).sum();
    if expected == 0 {
        return Ok(Outcome { tally: Tally::default(), success: true });
    }
    say::fact(&format!("{expected} tests of {} binaries", built.suites.len()));
    let (tally, status) = in_guest(places, &built)?;
    let told = usize::try_from(tally.passed + tally.failed).unwrap_or(usize::MAX);
    if told != expected {
        eprintln!("{expected} tests were to run, and the guest told of {told}");
    }
    Ok(Outcome { tally, success: status == 0 && told == expected })
}

fn in_guest(places: &Places, built: &Built) -> Result<(Tally, i32)> {
    let mut bring: Vec<PathBuf> = built.suites.iter().map(|suite| suite.path.clone()).collect();
    bring.extend(built.programs.iter().cloned());
    bring.push(places.bin());
    let (reader, writer) = std::io::pipe().or_fail("run", "the guest")?;
    let reading = std::thread::spawn(move || {
        let mut tally = Tally::default();
        let read = for_each_line(reader, |line| {
            eprintln!("{line}");
            tally += Tally::of_libtest_line(line).unwrap_or_default();
        });
        read.map(|()| tally)
    });
    let job = Job {
        command: &[script(places, &built.suites)],
        bring: &bring,
        flavour: Flavour::Minimal,
        keep: false,
        deadline: TIER_DEADLINE,
        terminal: Terminal::Output(Box::new(writer)),
    };
    let end = vm::run_job(places, job)?;
    let panicked = || Error::new("read", "the guest's output", Cause::Unexpected("its reader panicked".to_owned()));
    let tally = reading.join().map_err(|_| panicked())?.or_fail("read", "the guest's output")?;
    Ok((tally, end.status))
}

/// The whole work of the guest. Its status is 1 if any binary's is not 0.
fn script(places: &Places, suites: &[Suite]) -> String {
    let mut text = "cd /data; mkdir -p tmp; status=0; export ICEBOX_TEST_DIR=/data/tmp".to_owned();
    for (name, value) in Tier::Boxes.environment(places) {
        if name != "ICEBOX_TEST_DIR" {
            text.push_str(&format!(" {name}='{}'", value.display()));
        }
    }
    for suite in suites {
        text.push_str(&format!(
            "\necho '== {}'\ntimeout {BINARY_SECONDS_MAX} '{}' --test-threads={PRIVILEGED_THREADS} --exact {} || status=1",
            suite.name,
            suite.path.display(),
            suite.tests.join(" ")
        ));
    }
    text + "\nexit $status"
}

fn is_wanted(binary: &str, test: &str, filter: Option<&str>) -> bool {
    let left_out = LEFT_OUT.iter().any(|(name, start, _)| *name == binary && last(test).starts_with(start));
    !left_out && filter.is_none_or(|filter| test.contains(filter))
}

/// A test's name without its modules.
fn last(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

/// A name that no test has is out of date, and hides that a test runs nowhere or everywhere.
fn check_left_out(suites: &[Suite]) -> Result<()> {
    for (binary, start, _) in LEFT_OUT {
        let mut tests = suites.iter().filter(|suite| suite.name == binary).flat_map(|suite| &suite.tests);
        if !tests.any(|test| last(test).starts_with(start)) {
            let why = "no test is called so any more".to_owned();
            return Err(Error::new("leave out", format!("{binary} {start}"), Cause::Unexpected(why)));
        }
    }
    Ok(())
}

fn build(places: &Places, selection: &Selection<'_>) -> Result<Built> {
    let mut command = places.cargo();
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    if selection.packages.is_empty() {
        command.args(["--workspace", "--exclude=xtask"]);
    }
    command.args(selection.packages.iter().map(|package| format!("--package={package}")));
    let name = run::describe(&command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().or_fail("run", &name)?;
    let mut built = Built::default();
    if let Some(stdout) = child.stdout.take() {
        for line in std::io::BufReader::new(stdout).lines() {
            built.take(&line.or_fail("read the output of", &name)?);
        }
    }
    let status = child.wait().or_fail("wait for", &name)?;
    if status.success() {
        Ok(built)
    } else {
        Err(Error::new("run", name, Cause::Program { status, output: String::new() }))
    }
}

impl Built {
    /// Looks at one of cargo's messages.
    fn take(&mut self, line: &str) {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { return };
        let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) else {
            return;
        };
        let kind = &message["target"]["kind"][0];
        if kind == "test" {
            self.suites.push(Suite { name: name.to_owned(), path: path.into(), tests: Vec::new() });
        } else if kind == "bin" && message["profile"]["test"] == false {
            self.programs.push(path.into());
        }
    }
}

fn list(suite: &Suite) -> Result<Vec<String>> {
    let text = run::quiet(Command::new(&suite.path).args(["--list", "--format", "terse"]))?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_things_are_told_apart() {
        let mut built = Built::default();
        built.take(
            r#"{"executable":"/t/deps/life-1","target":{"name":"life","kind":["test"]},"profile":{"test":true}}"#,
        );
        built.take(r#"{"executable":"/t/icerun","target":{"name":"icerun","kind":["bin"]},"profile":{"test":false}}"#);
        built.take(
            r#"{"executable":"/t/deps/icerun-1","target":{"name":"icerun","kind":["bin"]},"profile":{"test":true}}"#,
        );
        built.take(r#"{"executable":null,"target":{"name":"x","kind":["lib"]}}"#);
        assert_eq!(built.suites.len(), 1);
        assert_eq!(built.programs, [PathBuf::from("/t/icerun")]);
    }

    #[test]
    fn what_is_left_out_is_named() {
        assert!(!is_wanted("edges", "anything", None));
        assert!(!is_wanted("limits", "a_memory_hog_is_killed", None));
        assert!(is_wanted("limits", "a_full_disk_stays_inside", None));
        assert!(!is_wanted("limits", "a_full_disk_stays_inside", Some("fork")));
        assert!(is_wanted("priv_cgroup", "priv_tree::priv_x", Some("priv_x")));
        let suite = |name: &str| Suite { name: name.into(), path: PathBuf::new(), tests: vec!["x".into()] };
        assert!(check_left_out(&[suite("edges")]).is_err());
    }
}
