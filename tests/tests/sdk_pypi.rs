//! The unmodified PyPI client `upstash-box` against `iceboxd`.

use icebox_tests::{Daemon, sdk};

#[test]
fn scenario_of_the_pypi_client() {
    let python = sdk::sdk_dir().join("venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `cargo xtask test`", python.display());
    let daemon = Daemon::start();
    sdk::run_scenario(&daemon, &python, &[], "scenario.py");
}
