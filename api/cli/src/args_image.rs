//! What can be typed after `icebox image`: plain data, without behaviour.

use clap::{Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  icebox image import debian.tar               an OCI layout or a `docker save` archive
  icebox image import rootfs.tar.gz -n mine:1  the tar of a root file system, with a name
  icebox image import debootstrap:trixie       a fresh Debian, as localhost/debian:trixie
  icebox create --image mine:1                 a box on it
  icebox image rm mine:1

Everyone with a key may list images and use them. They are changed as root on the host of iceboxd: `icebox` finds the
operator's socket in the run directory.")]
pub(crate) enum ImageVerb {
    /// List the images
    #[command(visible_alias = "list")]
    Ls,
    /// Show an image: names, layers, configuration
    Show {
        /// A name, an id, or the first digits of one
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// Import images from an archive, a directory or debootstrap
    #[command(after_help = "\
SOURCE is one of
  FILE               an OCI layout in a tar, an archive of `docker save`, or the tar of a root file system; gzip and zstd
                     are recognised
  DIR                an OCI layout (it has a file oci-layout), or else a root file system
  debootstrap:SUITE  a Debian of that suite, from the mirror of the host
  -                  an archive on standard input

FILE and DIR are read by iceboxd. The names in an archive count unless --name is given.")]
    Import(Import),
    /// Remove a name of an image; with the last one goes the image
    #[command(visible_alias = "delete")]
    Rm {
        /// Names, or ids: an image by its id goes with all its names
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Remove images without a name that no box uses, and unused layers
    Prune {
        /// Images with names too
        #[arg(long)]
        all: bool,
    },
    /// Give an image another name
    Tag {
        /// A name or id
        #[arg(value_name = "IMAGE")]
        image: String,
        /// The name
        name: String,
    },
    /// Write an image as an OCI layout in a tar archive
    Export {
        /// A name or id
        #[arg(value_name = "IMAGE")]
        image: String,
        /// The file; - for standard output
        #[arg(value_name = "FILE")]
        file: std::path::PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// FILE, DIR, debootstrap:SUITE, or -
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// The name that the image gets
    #[arg(long, short)]
    pub(crate) name: Option<String>,
    /// What an archive is, if its content shall not decide
    #[arg(long, value_enum)]
    pub(crate) kind: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Images: an OCI layout or an archive of `docker save`
    Images,
    /// A root file system
    Rootfs,
}
