//! The test binaries that cargo has built, and the tests in them.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::runner::Selection;
use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::run;

/// A test binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suite {
    pub(super) name: String,
    pub(super) package: String,
    pub(super) path: PathBuf,
    /// Names of its tests, modules included.
    pub(super) tests: Vec<String>,
}

/// What cargo has built.
#[derive(Debug, Default)]
pub(super) struct Built {
    pub(super) suites: Vec<Suite>,
    /// Programs that tests start by the path they were built at.
    pub(super) programs: Vec<PathBuf>,
}

/// Builds the test binaries of the selected packages, and asks each for its tests.
pub(super) fn build(places: &Places, selection: &Selection<'_>) -> Result<Built> {
    let mut command = places.cargo();
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    if selection.packages.is_empty() {
        // As the other tiers, so that nothing is compiled twice.
        command.arg("--workspace");
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
    if !status.success() {
        return Err(Error::new("run", name, Cause::Program { status, output: String::new() }));
    }
    for suite in &mut built.suites {
        let text = run::quiet(Command::new(&suite.path).args(["--list", "--format", "terse"]))?;
        suite.tests = text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    }
    Ok(built)
}

impl Built {
    /// The program of that name.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf> {
        let found = self.programs.iter().find(|path| path.file_name().is_some_and(|file| file == name));
        found.cloned().ok_or_else(|| {
            Error::new("build", name, Cause::Unexpected("cargo did not name such an executable".to_owned()))
        })
    }

    /// Looks at one of cargo's messages.
    fn take(&mut self, line: &str) {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { return };
        let (Some(path), Some(name)) = (message["executable"].as_str(), message["target"]["name"].as_str()) else {
            return;
        };
        let kind = &message["target"]["kind"][0];
        if kind == "test" {
            let package = package_of(message["package_id"].as_str().unwrap_or_default());
            self.suites.push(Suite { name: name.to_owned(), package, path: path.into(), tests: Vec::new() });
        } else if kind == "bin" && message["profile"]["test"] == false {
            self.programs.push(path.into());
        }
    }
}

/// The package's name in an id like `path+file:///x/tests#icebox-tests@0.1.0`; without a name after the `#` it is the
/// directory's.
fn package_of(id: &str) -> String {
    let (url, fragment) = id.split_once('#').unwrap_or((id, ""));
    let name = match fragment.split_once('@') {
        Some((name, _)) => name,
        None => url.rsplit('/').next().unwrap_or(url),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_things_are_told_apart() {
        let mut built = Built::default();
        built.take(
            r#"{"executable":"/t/deps/life-1","package_id":"path+file:///w/tests#icebox-tests@0.1.0",
            "target":{"name":"life","kind":["test"]},"profile":{"test":true}}"#,
        );
        built.take(r#"{"executable":"/t/icerun","target":{"name":"icerun","kind":["bin"]},"profile":{"test":false}}"#);
        built.take(
            r#"{"executable":"/t/deps/icerun-1","target":{"name":"icerun","kind":["bin"]},"profile":{"test":true}}"#,
        );
        built.take(r#"{"executable":null,"target":{"name":"x","kind":["lib"]}}"#);
        assert_eq!(built.suites.len(), 1);
        assert_eq!((built.suites[0].name.as_str(), built.suites[0].package.as_str()), ("life", "icebox-tests"));
        assert_eq!(built.programs, [PathBuf::from("/t/icerun")]);
    }

    #[test]
    fn packages_are_named_as_cargo_names_them() {
        assert_eq!(package_of("path+file:///w/tests#icebox-tests@0.1.0"), "icebox-tests");
        assert_eq!(package_of("path+file:///w/xtask#0.1.0"), "xtask");
    }
}
