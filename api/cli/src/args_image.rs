//! What can be typed after `icebox image`: plain data, without behaviour.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  icebox image pull debian:trixie-slim         an image of a registry
  icebox image import debian.tar               an OCI layout or a `docker save` archive
  icebox image import rootfs.tar.gz -n mine:1  the tar of a root file system, with a name
  icebox image import debootstrap:trixie       a fresh Debian, as localhost/debian:trixie
  icebox create --image mine:1                 a box on it
  icebox image rm mine:1

Everyone with a key may list images and use them. They are changed as root on the host of iceboxd: `icebox` finds the
operator's socket in the run directory.")]
pub(crate) enum ImageVerb {
    /// Build an image from a Boxfile, which has the syntax of a Dockerfile
    Build(BuildArgs),
    /// List the images
    #[command(visible_alias = "list")]
    Ls,
    /// List the runtimes: which names boxes may ask for, and whether the image of each is built
    Runtimes,
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
    /// Pull an image from its registry
    #[command(after_help = "\
Examples:
  icebox image pull debian:trixie-slim
  icebox image pull registry.example.com:5000/team/app:1
  icebox image pull team/app@sha256:...

iceboxd speaks to the registry, over the network of the host. Mirrors, authorities and the file with credentials are in
[registry] of its configuration.")]
    Pull {
        /// [REGISTRY/]NAME[:TAG][@DIGEST]
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Push an image to a registry
    #[command(after_help = "\
Examples:
  icebox image push registry.example.com/team/app:1      an image of this name
  icebox image push mine:1 registry.example.com/team/app:1")]
    Push {
        /// A name or id
        #[arg(value_name = "IMAGE")]
        image: String,
        /// Where it goes: [REGISTRY/]NAME[:TAG]; without it, to its own name
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
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

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  icebox image build -t tools:1 .              from ./Boxfile or ./Dockerfile
  icebox image build -f ci/Boxfile --target test --build-arg V=2 .
  icebox create --image tools:1
  icebox image build --runtime node            Node.js 24 for `icebox create --runtime node`

Each RUN is a command in a box of its own. What it makes is kept, and taken again as long as nothing changes that it
depends on. Ctrl-C ends the build.")]
pub(crate) struct BuildArgs {
    /// The directory whose files COPY and ADD take
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) context: PathBuf,
    /// The Boxfile; Boxfile or Dockerfile in DIR otherwise
    #[arg(long, short)]
    pub(crate) file: Option<PathBuf>,
    /// Build a runtime: node, python, golang, ruby, rust, or one of [runtimes] that has a Boxfile
    #[arg(long, value_name = "NAME", conflicts_with_all = ["file", "target", "context"])]
    pub(crate) runtime: Option<String>,
    /// The name of the image
    #[arg(long, short, value_name = "NAME")]
    pub(crate) tag: Option<String>,
    /// The stage to build; the last one otherwise
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// A value for an ARG (repeatable); NAME alone takes it from the environment
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    pub(crate) build_args: Vec<String>,
    /// Make every step anew
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// The network policy of commands, as JSON
    #[arg(long, value_name = "JSON")]
    pub(crate) network_policy: Option<String>,
    /// The size of the boxes: small, medium or large
    #[arg(long)]
    pub(crate) size: Option<String>,
    /// Longest time of one command, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Images: an OCI layout or an archive of `docker save`
    Images,
    /// A root file system
    Rootfs,
}
