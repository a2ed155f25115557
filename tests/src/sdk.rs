//! The unmodified public clients, and the scenario scripts that use them.
//!
//! `cargo xtask test` installs the clients into `target/sdk`: `node_modules/@upstash/box` and a Python environment
//! `venv`. `ICEBOX_SDK_DIR` names another place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{Daemon, scratch_dir, unique};

/// Where the clients are installed; panics with what to do when they are not.
pub fn sdk_dir() -> PathBuf {
    let dir = match std::env::var_os("ICEBOX_SDK_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => scratch_dir().parent().expect("the target directory").join("sdk"),
    };
    assert!(
        dir.is_dir(),
        "the public clients are not installed in {}: run `cargo xtask test`, or set ICEBOX_SDK_DIR",
        dir.display()
    );
    dir
}

/// Runs a scenario script against a daemon and panics with its output if it fails.
pub fn run_scenario(daemon: &Daemon, interpreter: &Path, flags: &[&str], script: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk").join(script);
    let cwd = scratch_dir().join(unique("sdk-cwd"));
    fs::create_dir_all(&cwd).expect("make the scenario's directory");
    let mut command = Command::new(interpreter);
    command.args(flags).arg(&script).current_dir(&cwd);
    command.env("ICEBOX_SDK_DIR", sdk_dir());
    command.env("UPSTASH_BOX_BASE_URL", daemon.url()).env("UPSTASH_BOX_API_KEY", daemon.key());
    let output = command.output().unwrap_or_else(|e| panic!("start {}: {e}", interpreter.display()));
    let _ = fs::remove_dir_all(&cwd);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success(), "{} failed ({}):\n{out}\n{err}", script.display(), output.status);
    assert!(out.trim_end().ends_with("SCENARIO PASSED"), "{} did not reach its end:\n{out}\n{err}", script.display());
}
