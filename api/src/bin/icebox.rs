//! `icebox`, the command line of Icebox. Everything is in `icebox_api::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    icebox_api::cli::main()
}
