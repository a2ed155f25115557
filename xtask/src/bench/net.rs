//! The network of boxes. What is measured, and how, is a program of the tests (`netbench`), since it needs their closed
//! world of network namespaces; here it is built and started, and its figures become reports.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::context::{Context, failed, shown};
use super::stats::{Case, Report};
use crate::error::{Result, While};
use crate::places::Places;

const PROGRAM: &str = "netbench";
const ROUNDS: usize = 20;

/// `cargo xtask bench net`.
pub(super) fn net(context: &Context) -> Result<Vec<Report>> {
    let places = Places::find()?;
    let mut cargo = places.cargo();
    // The other packages are named so that the crates which they share with it are compiled once.
    cargo.args(["build", "--release", "-p", "icebox-api", "-p", "icebox-cli", "-p", "icebox-tests", "--bin", PROGRAM]);
    cargo.arg("--message-format=json");
    let built = cargo.stderr(Stdio::inherit()).output().or_fail("build", PROGRAM)?;
    let messages = String::from_utf8_lossy(&built.stdout).into_owned();
    let executables = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = executables.filter_map(|m| m["executable"].as_str().map(str::to_owned)).next_back();
    let program = program.ok_or_else(|| failed("build", PROGRAM, "cargo named no executable"))?;
    let mut command = Command::new(&program);
    command.arg(context.rounds.unwrap_or(ROUNDS).to_string());
    command.env("ICEBOX_BIN_DIR", &context.bin_dir).env("ICEBOX_IMAGE_DIR", &context.image_dir);
    command.env("ICEBOX_TEST_DIR", &context.scratch);
    let output = command.stderr(Stdio::inherit()).output().or_fail("start", &program)?;
    if !output.status.success() {
        return Err(failed("run", shown(program.as_ref()), output.status));
    }
    String::from_utf8_lossy(&output.stdout).lines().map(report).collect()
}

/// One line of the program.
fn report(line: &str) -> Result<Report> {
    let wrong = || failed("read the figures of", PROGRAM, line);
    let data: Value = serde_json::from_str(line).map_err(|_| wrong())?;
    let list = |key: &str| data[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let cases = list("cases").into_iter().map(|from| {
        // There are a few of them, once.
        let mut case = Case::new(text(&from["name"]), text(&from["note"]).leak());
        from["samples"].as_array().into_iter().flatten().filter_map(Value::as_f64).for_each(|s| case.add_value(s));
        case
    });
    let title = data["title"].as_str().ok_or_else(wrong)?;
    let mut report = Report::new(title, text(&data["unit"]).leak(), cases.collect());
    if let Some(base) = data["base"].as_str() {
        report = report.ratio_to(base);
    }
    for mark in list("marks") {
        let number = |key: &str| mark[key].as_f64().unwrap_or(f64::NAN);
        report = report.mark(text(&mark["text"]), number("reached"), number("wanted"));
    }
    Ok(list("notes").iter().fold(report, |report, note| report.note(text(note))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_become_a_table() {
        let line = r#"{"title":"t","unit":"ms","base":"a","cases":[{"name":"a","note":"n","samples":[1,3,2]},
            {"name":"b","note":"","samples":[4]}],"marks":[{"text":"m","reached":5,"wanted":1}],"notes":["why"]}"#;
        let text = report(line).expect("a report").to_string();
        for part in ["t (ms)", "× a", "2.000", "2.00", "MISSED: m = 5.000", "note: why"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(report("no JSON").is_err() && report("{}").is_err());
    }
}
