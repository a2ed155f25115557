//! The unmodified npm client `@upstash/box` against `iceboxd`.

use std::path::Path;
use std::process::Command;

use icebox_tests::{Daemon, sdk};

#[test]
fn scenario_of_the_npm_client() {
    let daemon = Daemon::start();
    sdk::run_scenario(&daemon, Path::new("node"), flags_of_node(), "scenario.mjs");
}

/// The client uses the global `crypto`, which Debian 12's node 18 has behind a flag (Node.js 18, "Global objects").
fn flags_of_node() -> &'static [&'static str] {
    let version = Command::new("node").arg("--version").output().expect("node is installed (cargo xtask test)");
    if version.stdout.starts_with(b"v18.") { &["--experimental-global-webcrypto"] } else { &[] }
}
