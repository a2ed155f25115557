//! Options of the verbs on snapshots: plain data, without behaviour.

use std::fmt;
use std::str::FromStr;

use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::args_create::Create;

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Copy the disk of a box as it is now; prints the id of the snapshot
    Create {
        /// Id or name
        #[arg(value_name = "BOX", env = "BOX_ID")]
        name: String,
        /// A name of your choice; it need not be unique
        #[arg(long = "name", short = 'n', value_name = "NAME", default_value = "snapshot")]
        label: String,
    },
    /// List the snapshots of a box, or all of the account
    #[command(visible_alias = "list")]
    Ls {
        /// Id or name
        #[arg(value_name = "BOX")]
        name: Option<String>,
        /// Print ids only, one a line
        #[arg(long, short)]
        quiet: bool,
    },
    /// Delete snapshots; boxes made from them stay
    #[command(visible_alias = "delete")]
    Rm {
        /// Ids of snapshots
        #[arg(value_name = "SNAPSHOT", required_unless_present = "all")]
        snapshots: Vec<String>,
        /// All of the account
        #[arg(long, conflicts_with = "snapshots")]
        all: bool,
    },
    /// Take snapshots of a box automatically, and keep some; without an option, show it
    #[command(after_help = "\
Examples:
  icebox snapshot schedule build --keep hourly=24,daily=7
  icebox snapshot schedule build                            what is kept, and when the next one is due
  icebox snapshot schedule build --off

The newest of each of the last 24 hours and 7 days (UTC) that have one is kept. The shortest span says how often one is taken;
it is skipped if the disk has not changed. A sleeping box is not woken.")]
    Schedule(ScheduleArgs),
    /// Make a box from a snapshot; prints the id of the box
    Restore {
        /// Id of the snapshot
        snapshot: String,
        #[command(flatten)]
        create: Box<Create>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ScheduleArgs {
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// How many to keep: hourly=N, daily=N, weekly=N, with commas between
    #[arg(long, value_name = "RULES")]
    pub(crate) keep: Option<Keep>,
    /// Take no more; those that there are stay
    #[arg(long, conflicts_with = "keep")]
    pub(crate) off: bool,
}

/// How many automatic snapshots are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Keep {
    hourly: u32,
    daily: u32,
    weekly: u32,
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no list of rules; write hourly=24,daily=7 or the like");
        let mut keep = Self::default();
        for rule in text.split(',') {
            let (name, count) = rule.split_once('=').ok_or_else(wrong)?;
            let place = match name.trim() {
                "hourly" => &mut keep.hourly,
                "daily" => &mut keep.daily,
                "weekly" => &mut keep.weekly,
                _ => return Err(wrong()),
            };
            let count: u32 = count.trim().parse().map_err(|_| wrong())?;
            if *place > 0 || count == 0 {
                return Err(wrong());
            }
            *place = count;
        }
        Ok(keep)
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = [("hourly", self.hourly), ("daily", self.daily), ("weekly", self.weekly)];
        let shown = rules.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name}={count}"));
        f.write_str(&shown.collect::<Vec<_>>().join(","))
    }
}
