//! `cargo xtask`: what a person or a machine does with the whole workspace: `up`, `down`, `test`, `bench`, `vm`,
//! `powercut`, `image`, `deps`, `bare`, `build`.
//!
//! Leaves out what the product itself does: `iceboxd` runs boxes and bills them.

mod bare;
mod bench;
mod build;
mod daemon;
mod demo;
mod deps;
mod down;
mod error;
mod icebox;
mod image;
mod places;
mod powercut;
mod run;
mod say;
mod test;
mod up;
mod vm;

use std::error::Error as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Result;
use crate::places::Places;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Tasks of the Icebox workspace")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install, build and start everything, then show a box live, sleep, wake and be billed
    Up(up::UpArgs),
    /// Put the boxes to sleep and stop iceboxd
    Down(down::DownArgs),
    /// Install what the tests need and run every tier
    Test(test::TestArgs),
    /// Measure against peers
    Bench(bench::BenchArgs),
    /// Run a command in a guest with pure cgroup v2
    Vm(vm::VmArgs),
    /// Cut the power of a guest at work, and look whether anything that was acknowledged is lost
    Powercut(powercut::PowercutArgs),
    /// Build the binaries and the base image of boxes
    Image,
    /// Install the Debian packages and public clients that all tasks need
    Deps(deps::DepsArgs),
    /// Check on a bare Debian 12 that each task's packages bring what the task starts
    Bare,
    /// Build the release binaries
    Build,
}

fn main() -> ExitCode {
    match perform(&Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("\nerror: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn perform(task: &Task) -> Result<()> {
    match task {
        Task::Up(args) => up::up(args),
        Task::Down(args) => down::down(args),
        Task::Test(args) => test::test(args),
        Task::Bench(args) => bench::run(args),
        Task::Vm(args) => vm::vm(args),
        Task::Powercut(args) => powercut::powercut(args),
        Task::Image => build::build_with_image(&Places::find()?, build::Wanted::All).map(|_| ()),
        Task::Deps(args) => deps::deps(args),
        Task::Bare => bare::bare(),
        Task::Build => build::build(&Places::find()?).map(|_| ()),
    }
}
