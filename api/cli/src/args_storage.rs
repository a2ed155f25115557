//! Verbs on disks and their options, as in `args`: plain data, without behaviour.

#[derive(Debug, clap::Subcommand)]
pub(crate) enum StorageVerb {
    /// Grow the disk of a box, whatever its state; it cannot become smaller
    #[command(after_help = "Example:\n  icebox resize build 20")]
    Resize {
        /// Id or name
        #[arg(value_name = "BOX", env = "BOX_ID")]
        name: String,
        /// The new size in GiB
        #[arg(value_name = "GIB", value_parser = clap::value_parser!(u32).range(1..))]
        disk_gib: u32,
    },
    /// Show what disks are promised, have allocated and share, and the space for them
    Df,
}
