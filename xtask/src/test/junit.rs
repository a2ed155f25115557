//! nextest's report of a run, a JUnit document: which test took how long, and why it failed.

use std::path::PathBuf;
use std::time::Duration;

use roxmltree::{Document, Node};

use super::failures::{Failures, excerpt};
use super::tally::Tally;
use super::times::Times;
use crate::error::{Cause, Error, Result};
use crate::places::Places;
use crate::run;

/// Below the target directory; the last part is set in xtask/nextest.toml.
const PATH: &str = "nextest/default/junit.xml";

/// Where nextest writes the report.
pub(super) fn path(places: &Places) -> PathBuf {
    places.target.join(PATH)
}

/// Reads the report of the run that has just ended. `None` if the run ended before it had one: nothing was built, or no
/// test was selected.
pub(super) fn read(places: &Places, failures: &Failures, times: &Times) -> Result<Option<Tally>> {
    let path = path(places);
    let Some(text) = run::read_if_there(&path)? else { return Ok(None) };
    take(&text, failures, times)
        .map(Some)
        .map_err(|why| Error::new("read", path.display().to_string(), Cause::Unexpected(why.to_string())))
}

fn take(text: &str, failures: &Failures, times: &Times) -> Result<Tally, roxmltree::Error> {
    let document = Document::parse(text)?;
    let mut tally = Tally::default();
    for case in document.descendants().filter(|node| node.has_tag_name("testcase")) {
        let attribute = |name| case.attribute(name).unwrap_or_default();
        let name = format!("{} {}", attribute("classname"), attribute("name"));
        let seconds: f64 = attribute("time").parse().unwrap_or(0.0);
        times.add(&name, Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let child = |tag: &str| case.children().find(|node| node.has_tag_name(tag));
        if let Some(failure) = child("failure").or_else(|| child("error")) {
            tally.failed += 1;
            failures.add(name, why(case, failure));
        } else if child("skipped").is_some() {
            tally.skipped += 1;
        } else {
            tally.passed += 1;
        }
    }
    Ok(tally)
}

/// The test's own output says most; a test that was killed has at least nextest's words.
fn why(case: Node<'_, '_>, failure: Node<'_, '_>) -> Vec<String> {
    let outputs = case.children().filter(|node| node.has_tag_name("system-out") || node.has_tag_name("system-err"));
    let output: Vec<&str> = outputs.filter_map(|node| node.text()).collect();
    let mut lines = excerpt(&output.join("\n"));
    if lines.is_empty() {
        lines = excerpt(failure.text().unwrap_or_default());
    }
    let kind = failure.attribute("type").unwrap_or_default();
    if !lines.iter().any(|line| line.contains("panicked at ")) {
        lines.insert(0, kind.to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_counted_timed_and_explained() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
            <testsuites name="nextest-run" tests="4" failures="2" errors="1">
              <testsuite name="crate" tests="4">
                <testcase name="a" classname="crate" time="0.004"></testcase>
                <testcase name="b" classname="crate::bin" time="1.5">
                  <failure type="test failure with exit code 101" message="thread">d</failure>
                  <system-out>running 1 test</system-out>
                  <system-err>thread 'b' (1) panicked at x:
why &lt;so&gt;
note: run with `RUST_BACKTRACE=1` environment variable</system-err>
                </testcase>
                <testcase name="c" classname="crate" time="300"><failure type="test timeout"/><system-out>hung here</system-out></testcase>
                <testcase name="d" classname="crate" time="0"><error type="execution failure">no such file</error></testcase>
              </testsuite>
            </testsuites>"#;
        let (failures, times) = (Failures::default(), Times::default());
        assert_eq!(take(text, &failures, &times).unwrap(), Tally { passed: 1, failed: 3, skipped: 0 });
        let wanted = "\nfailed: crate::bin b\n    thread 'b' (1) panicked at x:\n    why <so>\n\n\
                      failed: crate c\n    test timeout\n    hung here\n\nfailed: crate d\n    execution failure\n    no such file\n";
        assert_eq!(failures.report(), wanted);
        assert!(times.slowest(1).contains("300.0 s  crate c"), "{}", times.slowest(1));
        assert!(take("no XML", &failures, &times).is_err());
    }

    #[test]
    fn nextest_is_told_to_write_it() {
        let name = PATH.rsplit('/').next().unwrap();
        assert!(include_str!("../../nextest.toml").contains(&format!("path = \"{name}\"")));
    }
}
