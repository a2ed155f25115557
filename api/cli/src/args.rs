//! What can be typed: the verbs, their options and their help.
//!
//! Holds no behaviour beyond parsing single values.

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::args_create::parse_variable;
pub(crate) use super::args_create::{Create, PolicyLists, PolicyMode};
use super::args_storage::StorageVerb;
use super::human::parse_duration;
use super::place::Place;

const EXAMPLES: &str = "\
Examples:
  icebox create --name build --size medium     make a box; prints its id
  icebox exec build                            a shell in it
  icebox exec build -- python3 -c 'print(1)'   one command; its exit code is yours
  icebox cp ./src build:src                    copy a directory into the box
  icebox freeze build                          from now on it costs no CPU
  icebox exec build -- date                    any work wakes it again
  icebox bill                                  what it all cost
  eval \"$(icebox env)\"                         point the npm and PyPI clients here

A box is named by its id or by its name; where BOX may be left out, $BOX_ID is used.
Exit codes: that of the command for `exec` and `code`; 125 when icebox itself fails; else 0.";

/// Boxes: computers that sleep for free.
#[derive(Debug, Parser)]
#[command(name = "icebox", version, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options that every verb takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Global {
    /// Address of iceboxd; otherwise $UPSTASH_BOX_BASE_URL, else the server of this machine
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// API key (visible to other users of this machine: better in $UPSTASH_BOX_API_KEY)
    #[arg(long, global = true, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Run directory of the iceboxd of this machine, where its address and key are found
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/icebox")]
    pub(crate) run_dir: std::path::PathBuf,
    /// Print JSON for programs in place of tables
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a box and print its id
    Create(Create),
    /// Manage the images that boxes can stand on
    #[command(subcommand)]
    Image(super::args_image::ImageVerb),
    /// List the boxes
    #[command(visible_alias = "list")]
    Ls(List),
    /// Run a command in a box, or a shell when no command is given
    Exec(Exec),
    /// Run a piece of code in a box
    Code(Code),
    /// Copy files and directories into or out of a box
    #[command(after_help = "\
Examples:
  icebox cp notes.txt build:               into /workspace/home
  icebox cp build:out ./                   a directory out of the box
  icebox cp ./site/. build:/srv/www        the content of a directory
  tar c . | icebox cp - build:src.tar      standard input into a file

A path in a box starts at /workspace/home unless it begins with a slash. Directories are copied whole. The files of a
box carry no mode over HTTP: a file that is executable here is made executable in the box, not the other way round.")]
    Cp {
        /// PATH, BOX:PATH, :PATH in the box of $BOX_ID, or - for standard input
        source: Place,
        /// PATH, BOX:PATH, :PATH in the box of $BOX_ID, or - for standard output
        destination: Place,
    },
    /// Freeze boxes now: no CPU from here on, everything kept in place
    #[command(visible_alias = "pause")]
    Freeze {
        /// Ids or names
        #[arg(value_name = "BOX", env = "BOX_ID", required = true)]
        boxes: Vec<String>,
    },
    /// Wake frozen boxes (any work in a box does so by itself)
    #[command(visible_alias = "resume")]
    Wake {
        /// Ids or names
        #[arg(value_name = "BOX", env = "BOX_ID", required = true)]
        boxes: Vec<String>,
    },
    /// End all processes of boxes, check their disks and start them anew
    Restart {
        /// Ids or names
        #[arg(value_name = "BOX", env = "BOX_ID", required = true)]
        boxes: Vec<String>,
    },
    /// Take the memory of a frozen box, to swap where the host has some
    Reclaim {
        /// Id or name
        #[arg(value_name = "BOX", env = "BOX_ID")]
        name: String,
    },
    /// Delete boxes with their disks, for good
    #[command(visible_alias = "delete")]
    Rm(Remove),
    /// Copy the disks of boxes, and make boxes from the copies
    #[command(subcommand)]
    Snapshot(super::args_snapshots::SnapshotVerb),
    /// Make boxes that start with the files of a box as they are now
    Fork(super::args_forks::Fork),
    /// Put the disk of a fork in the place of its origin's
    Promote {
        /// Id or name of the fork
        #[arg(value_name = "FORK")]
        name: String,
    },
    /// Show what has changed in a box since a snapshot, or compared with another box
    Diff(super::args_forks::Diff),
    /// Run a command in several forks of a box at once, and compare the results
    Try(super::args_forks::Try),
    /// Take the last command of a box back: its disk becomes what it was before
    Undo(super::args_undo::Undo),
    #[command(flatten)]
    Portable(super::args_portable::PortableVerb),
    /// Set after how long without work a box freezes
    Idle(Idle),
    /// Keep a box awake for a while, or until `--off`
    Keep(Keep),
    /// Show what boxes cost: core-seconds, GB-hours, dollars
    Bill {
        /// Id or name; all boxes and the total otherwise
        #[arg(value_name = "BOX")]
        name: Option<String>,
    },
    /// Tell what keeps a box awake, or what a frozen box waits for
    Why {
        /// Id or name
        #[arg(value_name = "BOX", env = "BOX_ID")]
        name: String,
    },
    /// Set what a box may reach, for connections that are open too; without a mode or lists, show it
    Policy(Policy),
    /// Show the network of a box: addresses, policy, counters, connections, what it was refused
    Net {
        /// Id or name
        #[arg(value_name = "BOX", env = "BOX_ID")]
        name: String,
    },
    /// Show the log of a box
    Logs(super::args_more::Logs),
    /// Show events of boxes as they happen: lifecycle, commands, network, ledger
    Events(super::args_more::EventsArgs),
    /// Show the runs of a box, newest first
    Runs(super::args_more::Runs),
    /// Stop a run
    Cancel {
        /// Id or name
        #[arg(value_name = "BOX")]
        name: String,
        /// Id of the run, as `icebox runs` shows it
        run: String,
    },
    /// Make a port of a box reachable from outside, and print its URL
    Url(super::args_more::UrlArgs),
    /// List the ports of a box that are reachable from outside
    Urls {
        /// Id or name
        #[arg(value_name = "BOX", env = "BOX_ID")]
        name: String,
    },
    /// Show what boxes use at the moment; wakes none
    Top(Top),
    #[command(flatten)]
    Storage(StorageVerb),
    /// Manage volumes: files that outlive boxes
    #[command(subcommand)]
    Volume(super::args_volume::VolumeVerb),
    /// Print the variables that point the npm and PyPI clients at this server
    #[command(after_help = "Example:\n  eval \"$(icebox env)\"")]
    Env,
    /// Print completions for a shell
    #[command(after_help = "Example:\n  icebox completions bash > /etc/bash_completion.d/icebox")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Policy {
    /// Id or name
    #[arg(value_name = "BOX")]
    pub(crate) name: String,
    /// What it may reach from now on; lists alone mean `custom`
    #[arg(value_enum, value_name = "MODE")]
    pub(crate) mode: Option<PolicyMode>,
    #[command(flatten)]
    pub(crate) lists: PolicyLists,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only boxes with this label
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Print ids only, one a line
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  icebox exec build                              a shell
  icebox exec build -w src -e CI=1 -- make test  in /workspace/home/src, with a variable
  icebox exec build -- sh -c 'ls | wc -l'        a shell only where you ask for one
  cat data.csv | icebox exec build -- sort -u    standard input is passed on
  icebox exec -d build -- python3 server.py      a server that stays; its output is discarded

Without --detach the command belongs to this connection: when icebox or the command ends, all that the command started
ends too. Signals that icebox gets (INT, TERM, HUP, QUIT, USR1, USR2) go to the command; the third INT stops it by force.")]
pub(crate) struct Exec {
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// Directory to start in, from /workspace/home
    #[arg(long, short = 'w', value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// An environment variable of this command; a bare NAME is taken from here (repeatable)
    #[arg(long = "env", short = 'e', value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Use a terminal, even if standard input or output is none
    #[arg(long, short = 't', overrides_with = "no_tty")]
    pub(crate) tty: bool,
    /// Use no terminal: standard output and error stay apart
    #[arg(long, short = 'T')]
    pub(crate) no_tty: bool,
    /// Give the command an empty standard input (as in a `while read` loop)
    #[arg(long, short = 'n', conflicts_with = "tty")]
    pub(crate) no_stdin: bool,
    /// Start the command in the background and return; it stays, and sleeps and wakes with the box
    #[arg(long, short = 'd', conflicts_with_all = ["tty", "no_stdin"])]
    pub(crate) detach: bool,
    /// The command and its arguments, after --; a login shell if there is none
    #[arg(last = true, value_name = "ARGV")]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// JavaScript
    Js,
    /// TypeScript
    Ts,
    /// Python
    Python,
}

impl Language {
    /// The word on the wire.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Js => "js",
            Self::Ts => "ts",
            Self::Python => "python",
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  echo 'print(6 * 7)' | icebox code python build")]
pub(crate) struct Code {
    /// The language
    #[arg(value_enum, value_name = "LANG")]
    pub(crate) language: Language,
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// Read the code from this file, not from standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<std::path::PathBuf>,
    /// Directory to start in, from /workspace/home
    #[arg(long, short = 'w', value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Stop it after this long: 90, 30s, 10m, 1h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    /// Ids or names
    #[arg(value_name = "BOX", required = true)]
    pub(crate) boxes: Vec<String>,
    /// A box that does not exist is no failure
    #[arg(long, short)]
    pub(crate) force: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  icebox idle 10m build\n  icebox idle 1h --account     for boxes that have no time of their own"
)]
pub(crate) struct Idle {
    /// 90, 30s, 10m, 1h, or `default` for the time of the account or the server
    #[arg(value_name = "DURATION", value_parser = parse_idle)]
    pub(crate) time: IdleTime,
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID", required_unless_present = "account")]
    pub(crate) name: Option<String>,
    /// Set it for the account, not for one box
    #[arg(long)]
    pub(crate) account: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Keep {
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// End after this time: 90, 30s, 10m, 1h; otherwise it lasts until `--off`
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) duration: Option<u64>,
    /// End it now
    #[arg(long, conflicts_with = "duration")]
    pub(crate) off: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    /// Id or name; all boxes otherwise
    #[arg(value_name = "BOX")]
    pub(crate) name: Option<String>,
    /// Show it again and again, with the share of a core used since the last time
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Time between two pictures
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_interval)]
    pub(crate) interval: u64,
}

/// Seconds without work, or none for the default of the level above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdleTime(pub(crate) Option<u64>);

fn parse_idle(text: &str) -> Result<IdleTime, String> {
    match text {
        "default" => Ok(IdleTime(None)),
        _ => parse_duration(text).map(|seconds| IdleTime(Some(seconds))),
    }
}

fn parse_interval(text: &str) -> Result<u64, String> {
    match parse_duration(text)? {
        0 => Err("at least 1s".to_owned()),
        seconds => Ok(seconds),
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
