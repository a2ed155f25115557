//! More options of verbs, as in `args`: plain data, without behaviour.

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  icebox events                          of all boxes, until Ctrl-C
  icebox events build --type run         commands of one box
  icebox events --type box.frozen,box.thawed --json

Types begin with box, run, network or ledger; the first part alone means all of its kind.")]
pub(crate) struct EventsArgs {
    /// Id or name; all boxes of the account otherwise
    #[arg(value_name = "BOX")]
    pub(crate) name: Option<String>,
    /// Only events of this type (repeatable, or separated by commas)
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub(crate) types: Vec<String>,
    /// Begin after the event with this id, as `--json` shows it
    #[arg(long, value_name = "ID")]
    pub(crate) after: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  icebox url build 3000              http://<id>-3000.localhost:7070/, open to anyone who knows it
  icebox url build 3000 --bearer     opens with `Authorization: Bearer <token>`
  icebox url build 3000 --remove

A request to the URL wakes the box. A URL that exists is replaced, and its credentials die.")]
pub(crate) struct UrlArgs {
    /// Id or name
    #[arg(value_name = "BOX")]
    pub(crate) name: String,
    /// The port that a server in the box listens on
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// Open it with a token; printed this once
    #[arg(long)]
    pub(crate) bearer: bool,
    /// Open it with the user `user` and a password; printed this once
    #[arg(long)]
    pub(crate) basic: bool,
    /// Remove the URL, and end the connections through it
    #[arg(long, conflicts_with_all = ["bearer", "basic"])]
    pub(crate) remove: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// Show the last LIMIT entries
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
    /// Go on and show new entries as they come
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Runs {
    /// Id or name
    #[arg(value_name = "BOX", env = "BOX_ID")]
    pub(crate) name: String,
    /// Show the last LIMIT runs
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
}
