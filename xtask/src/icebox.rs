//! The command line `icebox`, as the person would use it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::daemon::Settings;
use crate::error::{Cause, Error, Result};
use crate::{run, say};

/// Variables that would lead the command line to another server or box.
const FOREIGN_VARIABLES: [&str; 3] = ["UPSTASH_BOX_BASE_URL", "UPSTASH_BOX_API_KEY", "BOX_ID"];

/// `icebox` for one instance.
#[derive(Debug)]
pub(crate) struct Icebox {
    program: PathBuf,
    run_dir: Option<PathBuf>,
}

impl Icebox {
    /// The command line of that build, for the instance with those settings.
    pub(crate) fn new(bin: &Path, settings: &Settings) -> Icebox {
        let is_default = settings.run_dir == Path::new("/run/icebox");
        Icebox { program: bin.join("icebox"), run_dir: (!is_default).then(|| settings.run_dir.clone()) }
    }

    /// The call, and how a person with `icebox` in the path would type it.
    fn command(&self, arguments: &[&str]) -> (Command, String) {
        let mut typed = Command::new("icebox");
        let mut command = Command::new(&self.program);
        for command in [&mut typed, &mut command] {
            if let Some(dir) = &self.run_dir {
                command.arg("--run-dir").arg(dir);
            }
            command.args(arguments);
        }
        for name in FOREIGN_VARIABLES {
            command.env_remove(name);
        }
        (command, run::describe(&typed))
    }

    /// Shows the call and its output.
    pub(crate) fn show(&self, arguments: &[&str]) -> Result<()> {
        let (mut command, typed) = self.command(arguments);
        say::command(&typed);
        run::shown(&mut command)
    }

    /// Shows the call and its output, and returns the output.
    pub(crate) fn show_and_read(&self, arguments: &[&str]) -> Result<String> {
        let (mut command, typed) = self.command(arguments);
        say::command(&typed);
        let output = run::quiet(&mut command)?;
        print!("{output}");
        Ok(output)
    }

    /// Asks without showing.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let (mut command, typed) = self.command(&all);
        let text = run::quiet(&mut command)?;
        serde_json::from_str(&text)
            .map_err(|error| Error::new("read the answer of", typed, Cause::Unexpected(error.to_string())))
    }

    /// The boxes: id, name and status of each.
    pub(crate) fn boxes(&self) -> Result<Vec<Listed>> {
        let list = self.json(&["ls"])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let boxes = list.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(boxes
            .iter()
            .map(|one| Listed { id: text(&one["id"]), name: text(&one["name"]), status: text(&one["status"]) })
            .collect())
    }
}

/// A box in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: String,
    /// Its name, empty if it has none.
    pub(crate) name: String,
    /// What it is doing.
    pub(crate) status: String,
}
