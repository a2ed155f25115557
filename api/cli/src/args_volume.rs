//! Verbs on volumes and their options, as in `args`: plain data, without behaviour beyond parsing single values.

use clap::Subcommand;

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// Make a volume: files that outlive boxes
    #[command(after_help = "\
Examples:
  icebox volume create models --size 50
  icebox create --volume models:/models            a box that writes to it
  icebox create --volume models:/models:ro         boxes that read it, as many as you like, when no box writes to it")]
    Create {
        /// A name of your choice
        name: String,
        /// Its size in GiB
        #[arg(long, value_name = "GIB", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
        size: u32,
    },
    /// List the volumes, and the boxes that have them
    #[command(visible_alias = "list")]
    Ls {
        /// Print names only, one a line
        #[arg(long, short)]
        quiet: bool,
    },
    /// Show a volume, and the boxes that have it
    Show {
        /// Its name
        name: String,
    },
    /// Grow a volume, also while a box writes to it; it cannot become smaller
    Resize {
        /// Its name
        name: String,
        /// The new size in GiB
        #[arg(value_name = "GIB", value_parser = clap::value_parser!(u32).range(1..))]
        size: u32,
    },
    /// Delete volumes with their files; not those that a box has
    #[command(visible_alias = "delete")]
    Rm {
        /// Their names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// `NAME:/path` or `NAME:/path:ro`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeOption {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) read_only: bool,
}

pub(crate) fn parse_volume(text: &str) -> Result<VolumeOption, String> {
    let wrong = || format!("`{text}`: write NAME:/path, or NAME:/path:ro");
    let (name, rest) = text.split_once(':').ok_or_else(wrong)?;
    let (path, read_only) = match rest.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (rest.strip_suffix(":rw").unwrap_or(rest), false),
    };
    if name.is_empty() || !path.starts_with('/') || path.contains(':') {
        return Err(wrong());
    }
    Ok(VolumeOption { name: name.to_owned(), path: path.to_owned(), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_a_name_and_a_path() {
        let of = |path: &str, read_only| VolumeOption { name: "v".into(), path: path.into(), read_only };
        assert_eq!(parse_volume("v:/data"), Ok(of("/data", false)));
        assert_eq!(parse_volume("v:/data:rw"), Ok(of("/data", false)));
        assert_eq!(parse_volume("v:/data:ro"), Ok(of("/data", true)));
        for wrong in ["v", ":/data", "v:data", "v:", "v:/data:x", "/data:/data:ro:ro"] {
            assert!(parse_volume(wrong).is_err(), "{wrong}");
        }
    }
}
