//! Options of `icebox undo`: plain data, without behaviour.

use super::human::parse_duration;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  icebox undo build --on                   from now on its disk is copied before each command
  icebox undo build --on --steps 10 --max-age 2h
  icebox undo build --list                 what can be taken back
  icebox undo build                        the last command; again: the one before it
  icebox undo build --off                  no more copies; those that there are go away

The whole disk goes back, with what other processes have written since. All processes of the box end, and it starts again.
There is no redo. On a terminal, icebox asks first.")]
pub(crate) struct Undo {
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// Copy the disk before each command from now on
    #[arg(long)]
    pub(crate) on: bool,
    /// Copy it no longer, and remove the copies
    #[arg(long, conflicts_with = "on")]
    pub(crate) off: bool,
    /// List what can be taken back
    #[arg(long, conflicts_with_all = ["on", "off"])]
    pub(crate) list: bool,
    /// Commands that can be taken back one after the other; 5 if it was never set
    #[arg(long, requires = "on", value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(crate) steps: Option<u32>,
    /// Age up to which a command can be taken back, at most 7d; 1d if it was never set
    #[arg(long, value_name = "DURATION", requires = "on", value_parser = parse_duration)]
    pub(crate) max_age: Option<u64>,
    /// Do not ask
    #[arg(long, short, conflicts_with_all = ["on", "off", "list"])]
    pub(crate) yes: bool,
}
