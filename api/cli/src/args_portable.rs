//! Verbs on archives of boxes and their options: plain data, without behaviour.

use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum PortableVerb {
    /// Write a box as it is now to an archive, which other hosts and other programs can read
    #[command(after_help = "\
Examples:
  icebox export build build.tar
  icebox export build - | zstd > build.tar.zst
  tar tvf build.tar                    box.json, and the files that the box has changed in its image

The archive has the settings of the box, its variables too, but no tokens, keys or headers. Files of the image that the box
has not changed are not in it; `.wh.NAME` says that NAME of the image is deleted. A running box stands still for a moment, and
a sleeping one is not woken.")]
    Export {
        /// Id or name
        #[arg(value_name = "BOX")]
        name: String,
        /// The archive, or - for standard output
        file: PathBuf,
    },
    /// Make a box from an archive of one; prints its id
    #[command(after_help = "\
Examples:
  icebox import build.tar --name build
  icebox import build.tar.zst          gzip and zstd are read too

The image that the box stands on must be on the host; icebox says which one is missing and how to get it.")]
    Import {
        /// The archive, or - for standard input
        file: PathBuf,
        /// A name for the box
        #[arg(long)]
        name: Option<String>,
    },
}
