//! Builds the binaries that people run and puts them into one directory.
//!
//! The resident init, the launcher and icerun have a profile of their own (small, panic aborts); the first two are built
//! without the asynchronous half of their crate. An unchanged binary is not written again, so that a running `iceboxd`
//! is not restarted without need. The base image of boxes, which waits for the network and for dpkg, is made at the same
//! time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::{deps, image, run, say};

/// What a machine with boxes runs.
const OF_BOXES: &[&str] = &["iceboxd", "icebox", "icebox-init", "icebox-launch"];
/// What an OCI caller runs.
const OCI: &[&str] = &["icerun"];

/// The daemon and the command line.
const OUTSIDE: &[&str] = &["--release", "-p", "icebox-api", "-p", "icebox-cli", "--bins"];
/// The init and the launcher. Cargo keeps quiet about it: the progress shown is that of the other build.
const INSIDE: &[&str] = &["--quiet", "--profile", "init", "--no-default-features", "-p", "icebox-shim", "--bins"];
/// `icerun`. Built apart, so that the init is the same file with and without it.
const RUNTIME: &[&str] = &["--quiet", "--profile", "init", "-p", "icebox-runtime", "--bins"];

/// Which programs a task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Those that a machine with boxes runs.
    OfBoxes,
    /// These and `icerun`.
    All,
}

/// Builds all programs; cargo's output is shown. Returns the directory of the binaries.
pub(crate) fn build(places: &Places) -> Result<PathBuf> {
    deps::ensure(&[deps::BUILD])?;
    say::heading("Building (the first time takes some minutes)");
    programs(places, Wanted::All)
}

/// Builds programs and makes the base image, side by side. Returns the directory of the binaries.
pub(crate) fn build_with_image(places: &Places, wanted: Wanted) -> Result<PathBuf> {
    run::require_root("image")?;
    deps::ensure(&[deps::BUILD, deps::IMAGE])?;
    say::heading("Building programs and the base image, Debian trixie (the first time takes some minutes)");
    let (bin, image) = std::thread::scope(|scope| {
        let image = scope.spawn(image::base);
        (programs(places, wanted), joined(image.join()))
    });
    let bin = bin?;
    image?;
    image::tools(&bin)?;
    Ok(bin)
}

fn programs(places: &Places, wanted: Wanted) -> Result<PathBuf> {
    let bin = places.bin();
    // One that was built before is not left behind at an older version.
    let with_oci = wanted == Wanted::All || OCI.iter().any(|name| bin.join(name).exists());
    // Two profiles have two directories, so neither build waits for the other. iceboxd is the longer chain of crates that
    // wait for each other; the other build has the processors that this one leaves idle.
    let (outside, inside) = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let mut built = cargo_build(run::beside(&places.cargo()), INSIDE)?;
            if with_oci {
                built.extend(cargo_build(run::beside(&places.cargo()), RUNTIME)?);
            }
            Ok(built)
        });
        (cargo_build(places.cargo(), OUTSIDE), joined(inside.join()))
    });
    let mut built = outside?;
    built.extend(inside?);
    fs::create_dir_all(&bin).or_fail("make", bin.display().to_string())?;
    for name in OF_BOXES.iter().chain(OCI.iter().filter(|_| with_oci)) {
        let path = built.iter().find(|path| path.file_name().is_some_and(|file| file == *name)).ok_or_else(|| {
            Error::new("build", *name, Cause::Unexpected("cargo did not name such an executable".to_owned()))
        })?;
        install(path, &bin)?;
    }
    say::fact(&format!("binaries are in {}", bin.display()));
    Ok(bin)
}

/// What a thread returned.
fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|_| Err(Error::new("build", "in a thread", Cause::Unexpected("it panicked".to_owned()))))
}

/// Runs `cargo build` and returns the executables it names.
fn cargo_build(mut command: Command, arguments: &[&str]) -> Result<Vec<PathBuf>> {
    command.arg("build").args(arguments).arg("--message-format=json-render-diagnostics");
    let name = run::describe(&command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().or_fail("run", &name)?;
    let mut executables = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.or_fail("read the output of", &name)?;
            executables.extend(executable_of(&line));
        }
    }
    let status = child.wait().or_fail("wait for", &name)?;
    if status.success() {
        Ok(executables)
    } else {
        Err(Error::new("run", name, Cause::Program { status, output: String::new() }))
    }
}

/// The executable that one of cargo's messages names.
fn executable_of(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(PathBuf::from(message["executable"].as_str()?))
}

/// Copies a binary and renames the copy, so that a process that runs the old file keeps it.
fn install(from: &Path, bin: &Path) -> Result<()> {
    let name = from.file_name().unwrap_or_default();
    let to = bin.join(name);
    let content = fs::read(from).or_fail("read", from.display().to_string())?;
    if fs::read(&to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let temp = bin.join(format!(".{}.new", name.to_string_lossy()));
    fs::write(&temp, &content).or_fail("write", temp.display().to_string())?;
    fs::set_permissions(&temp, fs::Permissions::from_mode(0o755)).or_fail("write", temp.display().to_string())?;
    fs::rename(&temp, &to).or_fail("write", to.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_messages() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/release/icebox"}"#;
        assert_eq!(executable_of(line), Some("/t/release/icebox".into()));
        assert_eq!(executable_of(r#"{"reason":"compiler-artifact","executable":null}"#), None);
        assert_eq!(executable_of("warning: text"), None);
    }
}
