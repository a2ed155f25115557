//! The Icebox daemon; everything is in the library.

fn main() -> std::process::ExitCode {
    icebox_api::daemon::main()
}
