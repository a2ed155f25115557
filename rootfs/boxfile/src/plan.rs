//! The plan of a build: the stages that the target needs, their steps with keys, and the configuration of each image.
//!
//! Nothing is built here. What must be known of the world comes from [`Inputs`]: the configurations of base images and
//! the digests of URLs. A key has everything that decides the result of a step: the key below it, the instruction with its
//! variables replaced, and the files that it reads. Metadata alone (ENV, LABEL) does not change the key of what follows,
//! unless that uses it.

mod copy;
mod stage;

use std::collections::BTreeMap;

use crate::config::ImageConfig;
use crate::error::{Error, Fault};
use crate::expand::{Env, Lexer};
use crate::instruction::Network;
use crate::key::Key;
use crate::mounts::Mount;
use crate::stages::Boxfile;
use crate::tree::Tree;

pub use copy::{Copy, Origin, Source};
pub(crate) use copy::{directory_needed, missing};

/// A base image.
#[derive(Debug, Clone)]
pub struct Base {
    /// What identifies its content.
    pub id: String,
    /// Its configuration.
    pub config: ImageConfig,
}

/// A file that was fetched from a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// `sha256:` and hexadecimal digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// When it was changed last, in seconds since 1970.
    pub mtime: i64,
}

/// What a plan must know of the world.
pub trait Inputs {
    /// The image with a name. `Err` says why it cannot be had.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    fn image(&mut self, reference: &str) -> Result<Base, String>;

    /// Fetches a URL, and checks that it has `checksum`.
    ///
    /// # Errors
    /// It may not or cannot be fetched, or has another checksum.
    fn fetch(&mut self, url: &str, checksum: Option<&str>) -> Result<Fetched, String>;
}

/// What the client asks for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The stage to build; the last one if none is named.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
}

/// Where a stage begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// With nothing.
    Scratch,
    /// With an image, by its id.
    Image(String),
    /// With an earlier stage, by its place in the plan.
    Stage(usize),
}

/// A command that is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment, all of it.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub workdir: String,
    /// `USER[:GROUP]`; empty for root.
    pub user: String,
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// Its network.
    pub network: Network,
    /// A script with an interpreter line: the name of the file in `/dev/pipes`, and its content. `args` has its path.
    pub script: Option<(String, String)>,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Action {
    /// It changes the configuration only.
    Config,
    /// It runs a command.
    Run(Run),
    /// It copies files.
    Copy(Copy),
    /// It makes a directory, which belongs to `user` if it is new.
    Workdir {
        /// The path.
        path: String,
        /// `USER[:GROUP]`; empty for root.
        user: String,
    },
}

/// One instruction of a stage.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its line in the Boxfile.
    pub line: usize,
    /// The instruction as it is written, on one line.
    pub text: String,
    /// What the history of the image says.
    pub created_by: String,
    /// Equal keys mean equal results.
    pub key: Key,
    /// What it does.
    pub action: Action,
}

/// A stage that the target needs.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Its name, or its number.
    pub name: String,
    /// The line of its FROM.
    pub line: usize,
    /// Where it begins.
    pub from: From,
    /// The name of its base image or stage, as it is written.
    pub from_text: String,
    /// Its steps.
    pub steps: Vec<Step>,
    /// Its configuration; without the layers and the history of its steps.
    pub config: ImageConfig,
    /// The key of its last step.
    pub key: Key,
}

/// The plan of a build.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The name of the Boxfile.
    pub file: String,
    /// The stages in the order in which they are built. The last one is the target.
    pub stages: Vec<Stage>,
    /// Messages for the client.
    pub warnings: Vec<String>,
}

/// The deepest chain of stages.
const STAGES_MAX: usize = 128;

/// What all stages share while the plan is made.
struct Planner<'a> {
    boxfile: &'a Boxfile,
    context: &'a dyn Tree,
    inputs: &'a mut dyn Inputs,
    options: &'a Options,
    /// ARG before the first FROM, and what is known of the platform.
    globals: Env,
    /// Stages of the Boxfile that are planned, by their number: their place in the plan.
    done: BTreeMap<usize, usize>,
    stages: Vec<Stage>,
    /// Build arguments that an ARG has asked for.
    used: Vec<String>,
    depth: usize,
}

/// Makes the plan of a build.
///
/// # Errors
/// The Boxfile cannot be carried out; the error names the line.
pub fn plan(boxfile: &Boxfile, context: &dyn Tree, inputs: &mut dyn Inputs, options: &Options) -> Result<Plan, Error> {
    let mut planner = Planner {
        boxfile,
        context,
        inputs,
        options,
        globals: platform(),
        done: BTreeMap::new(),
        stages: Vec::new(),
        used: Vec::new(),
        depth: 0,
    };
    planner.read_globals()?;
    let target = match &options.target {
        None => boxfile.stages.len() - 1,
        Some(name) => boxfile.find(name).ok_or_else(|| {
            let names: Vec<&str> = boxfile.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
            let instead = (!names.is_empty()).then(|| format!("the stages are {}", names.join(", ")));
            Error { file: boxfile.file.clone(), line: None, what: format!("there is no stage '{name}'"), instead }
        })?,
    };
    planner.stage(target)?;
    let unused = options.args.keys().filter(|name| !planner.used.contains(name) && !is_predefined(name));
    let warnings = unused.map(|name| format!("no ARG asks for the build argument {name}")).collect();
    Ok(Plan { file: boxfile.file.clone(), stages: planner.stages, warnings })
}

/// Build arguments that need no ARG, and that change no key.
fn is_predefined(name: &str) -> bool {
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"].contains(&name.to_ascii_lowercase().as_str())
}

/// The platform's variables: there is one platform, this machine's.
fn platform() -> Env {
    let arch = crate::config::architecture();
    let mut env = Env::default();
    for side in ["BUILD", "TARGET"] {
        env.set(&format!("{side}PLATFORM"), &format!("linux/{arch}"));
        env.set(&format!("{side}OS"), "linux");
        env.set(&format!("{side}ARCH"), arch);
        env.set(&format!("{side}VARIANT"), "");
    }
    env
}

impl Planner<'_> {
    fn read_globals(&mut self) -> Result<(), Error> {
        let lexer = Lexer::new(self.boxfile.escape);
        for (line, pairs) in &self.boxfile.global_args {
            for (name, default) in pairs {
                let value = match (self.options.args.get(name), default) {
                    (Some(given), _) => Some(given.clone()),
                    (None, Some(text)) => {
                        Some(lexer.word(text, &self.globals).map_err(|fault| fault.at(&self.boxfile.file, *line))?)
                    }
                    (None, None) => None,
                };
                self.used.push(name.clone());
                if let Some(value) = value {
                    self.globals.set(name, &value);
                }
            }
        }
        Ok(())
    }

    /// Plans a stage of the Boxfile, and first those that it needs. Gives its place in the plan.
    fn stage(&mut self, number: usize) -> Result<usize, Error> {
        if let Some(place) = self.done.get(&number) {
            return Ok(*place);
        }
        self.depth += 1;
        let text = &self.boxfile.stages[number];
        let at = |fault: Fault| fault.at(&self.boxfile.file, text.line);
        if self.depth > STAGES_MAX {
            return Err(at(Fault::new(format!("more than {STAGES_MAX} stages depend on each other"))));
        }
        let stage = stage::plan(self, number)?;
        self.depth -= 1;
        self.stages.push(stage);
        self.done.insert(number, self.stages.len() - 1);
        Ok(self.stages.len() - 1)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
