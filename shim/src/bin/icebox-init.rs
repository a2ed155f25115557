//! The resident init of a box; under the name `sudo`, its client for the box's user.

use std::path::Path;
use std::process::exit;

fn main() {
    let name = std::env::args_os().next().unwrap_or_default();
    let called_sudo = Path::new(&name).file_name().is_some_and(|n| n == "sudo");
    exit(if called_sudo { icebox_shim::sudo::main() } else { icebox_shim::init::main() })
}
