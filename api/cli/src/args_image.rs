//! What can be typed after `icebox image`: plain data, without behaviour.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Build an image from a Boxfile, which has the syntax of a Dockerfile
    Build(BuildArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  icebox image build -t tools:1 .              from ./Boxfile or ./Dockerfile
  icebox image build -f ci/Boxfile --target test --build-arg V=2 .
  icebox create --image tools:1

Each RUN is a command in a box of its own. What it makes is kept, and taken again as long as nothing changes that it
depends on. Ctrl-C ends the build.")]
pub(crate) struct BuildArgs {
    /// The directory whose files COPY and ADD take
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) context: PathBuf,
    /// The Boxfile; Boxfile or Dockerfile in DIR otherwise
    #[arg(long, short)]
    pub(crate) file: Option<PathBuf>,
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
