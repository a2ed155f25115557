//! Runs debootstrap and reports its progress.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use super::mirror::Mirror;
use super::{Phase, Progress};
use crate::error::{At, Cause, Error, Result, Step};

/// Number of last lines that an error quotes.
const QUOTED_LINES_MAX: usize = 12;
/// Longest line that is taken from debootstrap.
const LINE_BYTES_MAX: u64 = 4096;

/// Fills the empty directory `target`. `cache` keeps the packages, so a build after an interrupted one reuses them.
pub(super) fn run(
    suite: &str,
    packages: &[&str],
    mirror: &Mirror,
    target: &Path,
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    if !mirror.keyring.is_file() {
        let why =
            Cause::Missing("the keys of the Debian archive are not there; install the package debian-archive-keyring");
        return Err(Error::new(Step::Debootstrap, mirror.keyring.display().to_string(), why));
    }
    let (reader, writer) = io::pipe().at(Step::Debootstrap, target)?;
    let mut command = Command::new("debootstrap");
    command
        .args(["--variant=minbase", "--force-check-gpg"])
        .args((!packages.is_empty()).then(|| format!("--include={}", packages.join(","))))
        .arg(format!("--keyring={}", mirror.keyring.display()))
        .arg(format!("--cache-dir={}", cache.display()))
        .arg(suite)
        .arg(target)
        .arg(&mirror.uri)
        // Only what it needs: no secrets of ours get into a tree that is made public to every box.
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(std::env::vars().filter(|(name, _)| name.to_ascii_lowercase().ends_with("_proxy")))
        .stdin(Stdio::null())
        .stdout(writer.try_clone().at(Step::Debootstrap, target)?)
        .stderr(writer);
    let mut child = match command.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let why = Cause::Missing("there is no debootstrap on this machine; install the package debootstrap");
            return Err(Error::new(Step::Debootstrap, target.display().to_string(), why));
        }
        other => other.at(Step::Debootstrap, Path::new("debootstrap"))?,
    };
    drop(command); // it holds the pipe's writing ends, which must all be closed for the reader to end
    let tail = follow(reader, progress).at(Step::Debootstrap, target);
    let status = child.wait().at(Step::Debootstrap, target)?;
    let mut tail = tail?;
    if status.success() {
        return Ok(());
    }
    // debootstrap writes the output of its tools to a log file of its own.
    if let Ok(log) = fs::read_to_string(target.join("debootstrap/debootstrap.log")) {
        tail.extend(log.lines().rev().take(QUOTED_LINES_MAX).collect::<Vec<_>>().into_iter().rev().map(str::to_owned));
    }
    let cause = Cause::Tool { program: "debootstrap".to_owned(), status, output_tail: tail.join("\n") };
    Err(Error::new(Step::Debootstrap, target.display().to_string(), cause))
}

/// Reads to the end, reports progress, and returns the last lines.
fn follow(reader: impl Read, progress: &mut dyn FnMut(Progress)) -> io::Result<Vec<String>> {
    let mut reader = BufReader::new(reader);
    let mut tail = Vec::new();
    let mut counter = Counter::default();
    loop {
        let mut line = Vec::new();
        if reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(tail);
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if let Some(report) = counter.count(&line) {
            progress(report);
        }
        if tail.len() == QUOTED_LINES_MAX {
            tail.remove(0);
        }
        tail.push(line);
    }
}

/// Turns debootstrap's lines into counts. The number of packages is known once all were retrieved.
#[derive(Debug, Default)]
struct Counter {
    phase: Option<Phase>,
    done: u32,
    packages: Option<u32>,
    package: String,
}

impl Counter {
    fn count(&mut self, line: &str) -> Option<Progress> {
        let text = line.strip_prefix("I: ")?;
        let (verb, rest) = text.split_once(' ')?;
        let (phase, detail) = match verb {
            "Retrieving" | "Validating" => (Phase::Retrieving, rest),
            "Extracting" => (Phase::Extracting, rest),
            "Unpacking" => (Phase::Unpacking, rest),
            "Configuring" => (Phase::Configuring, rest),
            _ => return None,
        };
        if self.phase != Some(phase) {
            if self.phase == Some(Phase::Retrieving) {
                self.packages = Some(self.done);
            }
            (self.phase, self.done) = (Some(phase), 0);
        }
        // A package is retrieved, then validated: one item. One that an interrupted build left is only validated.
        if phase != Phase::Retrieving || self.package != detail {
            self.done += 1;
        }
        detail.clone_into(&mut self.package);
        let total = match phase {
            Phase::Unpacking | Phase::Configuring => self.packages,
            _ => None,
        };
        Some(Progress { phase, done: self.done, total, detail: detail.trim_end_matches("...").to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_counts() {
        let text = "I: Target architecture can be executed\nI: Retrieving a 1\nI: Validating a 1\nI: Retrieving b 2\n\
                    I: Unpacking a...\nW: something\nI: Configuring a...\nI: Configuring b...\n";
        let mut seen = Vec::new();
        let tail =
            follow(text.as_bytes(), &mut |report| seen.push((report.phase, report.done, report.total, report.detail)))
                .unwrap();
        assert_eq!(tail.len(), 8);
        assert_eq!(seen.last().unwrap(), &(Phase::Configuring, 2, Some(2), "b".to_owned()));
        assert_eq!(seen[2], (Phase::Retrieving, 2, None, "b 2".to_owned()));
        assert_eq!(seen[3], (Phase::Unpacking, 1, Some(2), "a".to_owned()));
    }

    #[test]
    fn packages_of_an_interrupted_build_count_too() {
        let text = "I: Validating a 1\nI: Retrieving b 2\nI: Validating b 2\nI: Validating c 3\nI: Configuring a...\n";
        let mut seen = Vec::new();
        follow(text.as_bytes(), &mut |report| seen.push((report.done, report.total))).unwrap();
        assert_eq!(seen, [(1, None), (2, None), (2, None), (3, None), (1, Some(3))]);
    }

    #[test]
    fn endless_lines_and_many_lines_stay_bounded() {
        let mut text = vec![b'x'; 1 << 20];
        text.extend("y\n".repeat(1000).bytes());
        let tail = follow(&text[..], &mut |_| {}).unwrap();
        assert_eq!(tail.len(), QUOTED_LINES_MAX);
        assert!(tail.iter().all(|line| line.len() <= LINE_BYTES_MAX as usize));
    }
}
