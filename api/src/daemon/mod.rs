//! The daemon: arguments, start-up, signals, shutdown.
//!
//! Invariants: one daemon per data directory (the store's lock); boxes outlive it, for every cause of its end; it
//! serves only after every box on disk was reconciled with the kernel.

mod account;
mod args;
mod check;
mod facts;
mod image;
mod images;
mod log;
mod manager;
mod serve;

use std::process::ExitCode;

use clap::Parser;

use crate::error::Error;
use args::{Args, Verb};

/// Runs `iceboxd` with the arguments of the process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            // The one place where an error that ends the program is printed.
            log::report(&format!("iceboxd: {}", error.chain()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Error> {
    let config = args.config()?;
    match &args.verb {
        None | Some(Verb::Serve) => serve::run(config),
        Some(Verb::Image { verb: None }) => image::run(&config),
        Some(Verb::Image { verb: Some(verb) }) => images::run(&config, verb),
        Some(Verb::Check) => check::run(&config),
        Some(Verb::Account(account)) => account::run(&config, account),
    }
}
