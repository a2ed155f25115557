//! Options of the verbs on snapshots: plain data, without behaviour.

use clap::Subcommand;

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
    /// Make a box from a snapshot; prints the id of the box
    Restore {
        /// Id of the snapshot
        snapshot: String,
        #[command(flatten)]
        create: Box<Create>,
    },
}
