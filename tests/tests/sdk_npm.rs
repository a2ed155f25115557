//! The unmodified npm client `@upstash/box` against `iceboxd`.

use std::path::Path;

use icebox_tests::{Daemon, sdk};

#[test]
fn scenario_of_the_npm_client() {
    let daemon = Daemon::start();
    sdk::run_scenario(&daemon, Path::new("node"), "scenario.mjs");
}
