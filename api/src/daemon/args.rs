//! Command line of `iceboxd`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{Config, Overrides};
use crate::error::Error;

/// The Icebox daemon: boxes over HTTP.
///
/// Settings come from defaults, then a TOML file, then these flags. The environment variable ICEBOX_API_KEY becomes the
/// key of the first account at the first start; without it a key is made and written to <run-dir>/key.
#[derive(Debug, Parser)]
#[command(name = "iceboxd", version)]
pub(super) struct Args {
    /// Configuration file [default: /etc/icebox/iceboxd.toml if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Database, disks and templates [default: /var/lib/icebox]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Sockets and facts of running boxes [default: /run/icebox]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Base images [default: /var/lib/icebox/images]
    #[arg(long, global = true, value_name = "DIR")]
    image_dir: Option<PathBuf>,
    /// Cgroup below which boxes are made, such as system.slice/icebox-boxes.service [default: the root of the tree]
    #[arg(long, global = true, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:7070]
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Network namespace of the host side of boxes' networking: a path, or a name of `ip netns` [default: the daemon's]
    #[arg(long, global = true, value_name = "PATH|NAME")]
    netns: Option<String>,
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Serve (the default)
    Serve,
    /// Build the base image; or manage images without a running daemon
    Image {
        #[command(subcommand)]
        verb: Option<ImageVerb>,
    },
    /// Say what this host has and lacks
    Check,
    /// Manage accounts; works while the daemon runs
    #[command(subcommand)]
    Account(AccountVerb),
}

#[derive(Debug, Subcommand)]
pub(super) enum ImageVerb {
    /// List the images
    Ls,
    /// Import from an archive, a directory, or debootstrap:SUITE
    Import {
        /// FILE, DIR or debootstrap:SUITE
        source: String,
        /// The name that the image gets; without it, the names in the archive count
        #[arg(long, short)]
        name: Option<String>,
    },
    /// Remove a name of an image; with the last one goes the image
    Rm {
        /// Name or id
        image: String,
    },
    /// Remove images without a name that no box uses, and unused layers
    Prune,
    /// Write an image as an OCI layout in a tar archive
    Export {
        /// Name or id
        image: String,
        /// The file
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AccountVerb {
    /// Add an account and print its key, this once
    Add {
        /// Its name
        name: String,
    },
    /// List the accounts
    List,
}

impl Args {
    pub(super) fn config(&self) -> Result<Config, Error> {
        Config::load(&Overrides {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            run_dir: self.run_dir.clone(),
            image_dir: self.image_dir.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            listen: self.listen,
            netns: self.netns.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_verb() {
        for line in [["iceboxd", "--data-dir", "/x", "image"], ["iceboxd", "image", "--data-dir", "/x"]] {
            let args = Args::try_parse_from(line).expect("a good line");
            assert_eq!(args.data_dir, Some(PathBuf::from("/x")));
        }
    }
}
