//! Options of the verbs on forks: plain data, without behaviour.

/// Options of `icebox fork`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  icebox fork build                  a box with the files that `build` has now; prints its id
  icebox fork build -n 10            ten of them, all from the same moment
  icebox promote calm-fox-12345      its disk becomes that of `build`; what `build` had is gone")]
pub(crate) struct Fork {
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// How many
    #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) count: u32,
}

/// Options of `icebox diff`.
#[derive(Debug, clap::Args)]
pub(crate) struct Diff {
    /// Id or name
    #[arg(value_name = "BOX")]
    pub(crate) name: String,
    /// Id of a snapshot, or id or name of another box
    #[arg(value_name = "SNAPSHOT|BOX")]
    pub(crate) base: String,
}

/// Options of `icebox try`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  icebox try build -n 3 -- npm test
  icebox try build -n 5 --promote-first-success -- ./fix.sh

Each fork runs the command at the same time; the box itself goes on unchanged. The forks are deleted afterwards.
Exit code: 0 if a fork was promoted or every command succeeded, else 1.")]
pub(crate) struct Try {
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// How many forks
    #[arg(long, short = 'n', default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=31))]
    pub(crate) count: u32,
    /// The fork whose command has succeeded in the shortest time becomes the box
    #[arg(long)]
    pub(crate) promote_first_success: bool,
    /// The fork with this number becomes the box, whatever its command did
    #[arg(long, value_name = "NUMBER", conflicts_with = "promote_first_success", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) promote: Option<u32>,
    /// The command and its arguments, after --
    #[arg(last = true, value_name = "ARGV", required = true)]
    pub(crate) argv: Vec<String>,
}
