//! The output of the verbs, and the log.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf, time::SystemTime};

use icebox_runtime::{Error, Result, container::State};
use serde::Serialize;

use super::parse::bad_argument;

/// The destination of errors and warnings.
pub(super) struct Log {
    path: Option<PathBuf>,
    json: bool,
}

impl Log {
    pub(super) fn new(path: Option<PathBuf>, format: &str) -> Self {
        Self { path, json: format == "json" }
    }

    pub(super) fn error(&self, error: &Error) {
        self.write("error", &error.to_string());
        if self.path.is_some() {
            eprintln!("icerun: {error}");
        }
    }

    pub(super) fn warn(&self, warnings: &[String]) {
        for text in warnings {
            self.write("warning", text);
        }
    }

    fn write(&self, level: &str, text: &str) {
        let line = if self.json {
            let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
            format!("{}\n", serde_json::json!({ "level": level, "msg": text, "time": seconds }))
        } else if level == "error" {
            format!("icerun: {text}\n")
        } else {
            format!("icerun: {level}: {text}\n")
        };
        let written = match &self.path {
            Some(path) => OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .and_then(|mut file| file.write_all(line.as_bytes())),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
        if written.is_err() {
            eprint!("{line}");
        }
    }
}

/// One value as indented JSON.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| bad_argument("output", error))?;
    println!("{text}");
    Ok(())
}

pub(super) fn list(states: Vec<Result<State>>, format: &str, quiet: bool, log: &Log) -> Result<()> {
    let mut good = Vec::new();
    for state in states {
        match state {
            Ok(state) => good.push(state),
            // One unreadable container does not hide the others.
            Err(error) => log.warn(&[error.to_string()]),
        }
    }
    if quiet {
        for state in &good {
            println!("{}", state.id);
        }
        return Ok(());
    }
    match format {
        "json" => json(&good),
        "table" => {
            println!("{:<24} {:>8} {:<9} {:<22} BUNDLE", "ID", "PID", "STATUS", "CREATED");
            for s in &good {
                println!(
                    "{:<24} {:>8} {:<9} {:<22} {}",
                    s.id,
                    s.pid,
                    s.status.to_string(),
                    s.created,
                    s.bundle.display()
                );
            }
            Ok(())
        }
        other => Err(bad_argument(&format!("--format {other}"), "expected table or json")),
    }
}

pub(super) fn processes(pids: &[i32], format: &str) -> Result<()> {
    match format {
        "json" => json(&pids),
        "table" => {
            println!("{:>8} COMMAND", "PID");
            for pid in pids {
                // A process may end between the list and this look.
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                println!("{pid:>8} {}", name.trim());
            }
            Ok(())
        }
        other => Err(bad_argument(&format!("--format {other}"), "expected table or json")),
    }
}
