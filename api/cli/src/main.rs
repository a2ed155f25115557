//! The command line `icebox`.
//!
//! Owns: arguments, the choice of server and key, the HTTP and WebSocket client side, tables for people and JSON for
//! programs. It talks to `iceboxd` over HTTP only and never touches a box, a cgroup or the data directory by itself, so
//! it works the same from another machine.
//!
//! Invariants: standard output carries results and nothing else, remarks go to standard error; an error is printed
//! once, here; the exit code is the command's own for `exec` and `code`, and [`EXIT_CLI_FAILURE`] for a failure of the
//! command line itself, so that the two can be told apart.

mod access;
mod args;
mod args_create;
mod args_forks;
mod args_image;
mod args_more;
mod args_portable;
mod args_snapshots;
mod args_storage;
mod args_undo;
mod args_volume;
mod bill;
mod boxes;
mod build;
mod client;
mod copy;
mod error;
mod events;
mod exec;
mod files;
mod forks;
mod human;
mod images;
mod names;
mod net;
mod output;
mod place;
mod portable;
mod records;
mod runtimes;
mod schedule;
mod session;
mod snapshots;
mod storage;
mod table;
mod terminal;
mod top;
mod types;
mod undo;
mod urls;
mod volumes;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Args, Verb};
use client::Client;
use error::Error;
use output::Output;

/// Exit code when the command line itself fails: bad usage, no server, unknown box.
const EXIT_CLI_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(refused) => {
            let failed = refused.use_stderr();
            // Nothing sensible is left to do when even the terminal refuses the text.
            let _ = refused.print();
            if is_command_without_dashes(refused.kind(), &std::env::args().collect::<Vec<_>>()) {
                eprintln!("  hint: the command comes after two dashes: icebox exec BOX -- ARGV");
            }
            return if failed { ExitCode::from(EXIT_CLI_FAILURE) } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            error::report(&Error::io("start the event loop", "icebox", cause));
            return ExitCode::from(EXIT_CLI_FAILURE);
        }
    };
    let outcome = runtime.block_on(run(args));
    // A read of standard input may still be blocked in its own thread: do not wait for it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        // `icebox ls | head -1`: the reader has seen enough, which is no failure of ours.
        Err(failed) if failed.is_closed_stdout() => ExitCode::SUCCESS,
        Err(failed) => {
            error::report(&failed);
            ExitCode::from(EXIT_CLI_FAILURE)
        }
    }
}

/// `icebox exec box ls`, as other tools have it.
fn is_command_without_dashes(kind: clap::error::ErrorKind, words: &[String]) -> bool {
    kind == clap::error::ErrorKind::UnknownArgument
        && words.iter().any(|word| word == "exec")
        && words.iter().all(|word| word != "--")
}

async fn run(args: Args) -> Result<u8, Error> {
    let output = Output::new(args.global.json);
    match args.verb {
        Verb::Completions { shell } => {
            output.text(&completions(shell))?;
            return Ok(0);
        }
        Verb::Env => {
            access::print_env(&args.global, &output)?;
            return Ok(0);
        }
        _ => {}
    }
    if let Verb::Image(verb) = args.verb {
        images::image(&images::client(&args.global)?, &output, verb).await?;
        return Ok(0);
    }
    let client = Client::new(access::resolve(&args.global)?)?;
    match args.verb {
        Verb::Create(create) => boxes::create(&client, &output, create).await?,
        Verb::Ls(list) => boxes::list(&client, &output, list).await?,
        Verb::Exec(exec) => return exec::exec(&client, &output, exec).await,
        Verb::Code(code) => return exec::code(&client, &output, code).await,
        Verb::Cp { source, destination } => copy::copy(&client, &output, &source, &destination).await?,
        Verb::Freeze { boxes } => boxes::freeze(&client, &output, &boxes).await?,
        Verb::Wake { boxes } => boxes::wake(&client, &output, &boxes).await?,
        Verb::Restart { boxes } => boxes::restart(&client, &output, &boxes).await?,
        Verb::Reclaim { name } => boxes::reclaim(&client, &output, &name).await?,
        Verb::Rm(remove) => boxes::remove(&client, &output, remove).await?,
        Verb::Snapshot(verb) => snapshots::snapshot(&client, &output, verb).await?,
        Verb::Fork(fork) => forks::fork(&client, &output, fork).await?,
        Verb::Promote { name } => forks::promote(&client, &output, &name).await?,
        Verb::Diff(diff) => forks::diff(&client, &output, diff).await?,
        Verb::Try(attempt) => return forks::attempt(&client, &output, attempt).await,
        Verb::Undo(undo) => undo::undo(&client, &output, undo).await?,
        Verb::Portable(verb) => portable::portable(&client, &output, verb).await?,
        Verb::Idle(idle) => boxes::idle(&client, &output, idle).await?,
        Verb::Keep(keep) => boxes::keep(&client, &output, keep).await?,
        Verb::Bill { name } => bill::bill(&client, &output, name.as_deref()).await?,
        Verb::Why { name } => boxes::why(&client, &output, &name).await?,
        Verb::Policy(policy) => net::policy(&client, &output, policy).await?,
        Verb::Net { name } => net::net(&client, &output, &name).await?,
        Verb::Logs(logs) => records::logs(&client, &output, logs).await?,
        Verb::Events(events) => events::events(&client, &output, events).await?,
        Verb::Runs(runs) => records::runs(&client, &output, runs).await?,
        Verb::Cancel { name, run } => records::cancel(&client, &name, &run).await?,
        Verb::Url(url) => urls::url(&client, &output, url).await?,
        Verb::Urls { name } => urls::urls(&client, &output, &name).await?,
        Verb::Storage(verb) => storage::storage(&client, &output, verb).await?,
        Verb::Volume(verb) => volumes::volume(&client, &output, verb).await?,
        Verb::Top(top) => top::top(&client, &output, top).await?,
        Verb::Env | Verb::Completions { .. } | Verb::Image(_) => {}
    }
    Ok(0)
}

fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "icebox", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
