//! Boxfiles: images from the syntax of a Dockerfile.
//!
//! Owns: the reading of a Boxfile ([`Boxfile`]), the rules of each instruction, the plan of a build with a key for each step
//! ([`plan`]), the layers of COPY and ADD ([`Changes`]), and the order in which a build goes on ([`build`]). Commands run, and
//! layers and images are kept, behind the trait [`Executor`].
//!
//! **Absent:** running commands, the store of images, the network, mounts, and threads.

mod archive;
mod build;
mod changes;
mod chmod;
mod config;
mod error;
mod expand;
mod flags;
mod healthcheck;
mod ignore;
mod instruction;
mod key;
mod lines;
mod mounts;
mod owner;
mod paths;
mod pattern;
mod plan;
mod stages;
mod tarball;
mod tree;
mod words;

pub use build::{Built, Event, Executor, Failed, LayerSource, RunFailed, Time, build};
pub use changes::{Changes, Content, Item};
pub use config::{Config, DEFAULT_PATH, History, ImageConfig, RootFs, architecture};
pub use error::Error;
pub use expand::Env;
pub use healthcheck::Healthcheck;
pub use ignore::Ignore;
pub use instruction::{Command, Network};
pub use key::{Key, digest_text};
pub use lines::BOXFILE_BYTES_MAX;
pub use mounts::{Mount, Seed, Sharing};
pub use owner::{Owner, owner, user};
pub use plan::{Action, Base, Copy, Fetched, From, Inputs, Options, Origin, Plan, Run, Source, Stage, Step, plan};
pub use stages::Boxfile;
pub use tarball::{write_copy, write_layer};
pub use tree::{Kind, Node, Nothing, Tree, resolve};
