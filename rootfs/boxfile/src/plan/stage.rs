//! One stage: its base, and what each instruction makes of the configuration.

use std::collections::BTreeSet;

use serde_json::Map;

use super::{Action, From, Origin, Planner, Run, Stage, Step, is_predefined};
use crate::config::{Config, DEFAULT_PATH, ImageConfig};
use crate::error::{Error, Fault};
use crate::expand::{Env, Lexer};
use crate::instruction::{Command, Instruction, Kind, RunText};
use crate::key::{Hasher, Key};
use crate::lines;
use crate::mounts::{Mount, MountText};
use crate::paths::absolute;

/// Ports of one EXPOSE.
const PORTS_MAX: usize = 4096;

/// A stage while it is planned.
pub(super) struct State {
    pub(super) config: ImageConfig,
    /// ARG of this stage.
    args: Env,
    pub(super) key: Key,
    /// True after a CMD of this stage: an ENTRYPOINT leaves it then.
    has_cmd: bool,
    pub(super) lexer: Lexer,
    steps: Vec<Step>,
}

impl State {
    /// Variables for the words of an instruction. ENV is stronger than ARG.
    pub(super) fn env(&self) -> Env {
        let mut env = self.args.clone();
        for (name, value) in Env::of(&self.config.config.env).iter() {
            env.set(name, value);
        }
        env
    }

    pub(super) fn word(&self, text: &str) -> Result<String, Fault> {
        self.lexer.word(text, &self.env())
    }

    pub(super) fn workdir(&self) -> &str {
        let dir = self.config.config.working_dir.as_str();
        if dir.is_empty() { "/" } else { dir }
    }

    fn shell(&self, command: &str) -> Vec<String> {
        let shell = &self.config.config.shell;
        let mut args = if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell.clone() };
        args.push(command.to_owned());
        args
    }
}

pub(super) fn plan(planner: &mut Planner<'_>, number: usize) -> Result<Stage, Error> {
    let boxfile = planner.boxfile;
    let text = &boxfile.stages[number];
    let at = |fault: Fault, line: usize| fault.at(&boxfile.file, line);
    let (from, from_text, config, key) = base(planner, number)?;
    let lexer = Lexer::new(boxfile.escape);
    let mut state = State { config, args: Env::default(), key, has_cmd: false, lexer, steps: Vec::new() };
    let triggers = std::mem::take(&mut state.config.config.on_build);
    for trigger in &triggers {
        let instruction = lines::trigger(trigger, text.line, '\\')
            .and_then(|line| Instruction::read(&line, '\\'))
            .map_err(|fault| at(Fault::new(format!("ONBUILD {trigger} of {from_text}: {}", fault.what)), text.line))?;
        step(planner, &mut state, &instruction, number)?;
    }
    for instruction in &text.instructions {
        step(planner, &mut state, instruction, number)?;
    }
    let name = text.name.clone().unwrap_or_else(|| format!("stage-{number}"));
    Ok(Stage { name, line: text.line, from, from_text, steps: state.steps, config: state.config, key: state.key })
}

/// Where a stage begins: what it is, its name as written, its configuration, its key.
fn base(planner: &mut Planner<'_>, number: usize) -> Result<(From, String, ImageConfig, Key), Error> {
    let boxfile = planner.boxfile;
    let text = &boxfile.stages[number];
    let at = |fault: Fault| fault.at(&boxfile.file, text.line);
    let lexer = Lexer::new(boxfile.escape);
    if let Some(platform) = &text.platform {
        let wanted = lexer.word(platform, &planner.globals).map_err(at)?;
        let own = format!("linux/{}", crate::config::architecture());
        if !wanted.is_empty() && wanted != own && !wanted.starts_with(&format!("{own}/")) {
            return Err(at(Fault::instead(
                format!("FROM --platform={wanted} is not supported: this machine is {own}"),
                format!("write --platform={own}, or leave it out"),
            )));
        }
    }
    let image = lexer.word(&text.image, &planner.globals).map_err(at)?;
    if image.is_empty() {
        let what = format!("the image '{}' is empty once its variables are replaced", text.image);
        return Err(at(Fault::instead(what, "write ARG NAME=DEFAULT before the first FROM")));
    }
    if image == "scratch" {
        return Ok((From::Scratch, image, ImageConfig::scratch(), Hasher::new("scratch").key()));
    }
    let earlier =
        boxfile.stages[..number].iter().position(|stage| stage.name.as_ref() == Some(&image.to_ascii_lowercase()));
    if let Some(earlier) = earlier {
        let place = planner.stage(earlier)?;
        let stage = &planner.stages[place];
        return Ok((From::Stage(place), image, stage.config.clone(), stage.key));
    }
    let base = planner.inputs.image(&image).map_err(|why| at(Fault::new(why)))?;
    let mut config = base.config;
    // The configurations of some base images leave it out.
    if config.architecture.is_empty() {
        crate::config::architecture().clone_into(&mut config.architecture);
    }
    let key = Hasher::new("image").field(&base.id).key();
    Ok((From::Image(base.id), image, config, key))
}

/// Plans one instruction.
fn step(planner: &mut Planner<'_>, state: &mut State, instruction: &Instruction, number: usize) -> Result<(), Error> {
    let file = planner.boxfile.file.clone();
    let at = |fault: Fault| fault.at(&file, instruction.line);
    let (action, created_by) = match &instruction.kind {
        Kind::Run(run) => {
            let from = |mount: &MountText| match mount.from() {
                Some(from) => super::copy::origin(planner, from, number, instruction.line).map(Some),
                None => Ok(None),
            };
            let origins = run.mounts.iter().map(from).collect::<Result<Vec<_>, Error>>()?;
            let (run, by) = self::run(planner, state, run, origins).map_err(at)?;
            (Action::Run(run), by)
        }
        Kind::Copy(text) => {
            let copy = super::copy::plan(planner, state, text, number, instruction.line)?;
            let by = super::copy::history(text.add, &copy);
            (Action::Copy(copy), by)
        }
        Kind::Workdir(text) => {
            let path = absolute(state.workdir(), &state.word(text).map_err(at)?);
            state.config.config.working_dir.clone_from(&path);
            let by = format!("WORKDIR {path}");
            if path == "/" {
                (Action::Config, by)
            } else {
                let user = state.config.config.user.clone();
                state.key = Hasher::new("workdir").below(state.key).field(&path).field(&user).key();
                (Action::Workdir { path, user }, by)
            }
        }
        kind => (Action::Config, configure(planner, state, kind, &instruction.text).map_err(at)?),
    };
    let step = Step { line: instruction.line, text: instruction.text.clone(), created_by, key: state.key, action };
    state.steps.push(step);
    Ok(())
}

/// A RUN, and what the history says of it. `origins` are what `from` of its mounts names.
fn run(
    planner: &Planner<'_>,
    state: &mut State,
    text: &RunText,
    origins: Vec<Option<(Origin, Key)>>,
) -> Result<(Run, String), Fault> {
    let mut script = None;
    let args = match (&text.command, text.heredocs.first()) {
        (Command::Exec(args), _) => args.clone(),
        (Command::Shell(command), None) => state.shell(command),
        (Command::Shell(command), Some(doc)) => {
            if lines::heredoc_name(command)?.is_none() {
                // The shell reads the here-documents itself.
                let docs = text.heredocs.iter().map(|doc| format!("\n{}{}", doc.raw, doc.name));
                state.shell(&std::iter::once(command.clone()).chain(docs).collect::<String>())
            } else if doc.content.starts_with("#!") {
                script = Some((doc.name.replace('/', "_"), doc.content.clone()));
                vec![format!("/dev/pipes/{}", doc.name.replace('/', "_"))]
            } else {
                state.shell(&doc.content)
            }
        }
    };
    let mut env = state.env();
    if env.get("PATH").is_none() {
        env.set("PATH", DEFAULT_PATH);
    }
    let workdir = state.workdir().to_owned();
    let keys: Vec<Key> = origins.iter().flatten().map(|(_, key)| *key).collect();
    let origins = origins.into_iter().map(|origin| origin.map(|(origin, _)| origin));
    let mounts = text.mounts.iter().zip(origins);
    let mounts = mounts.map(|(mount, origin)| mount.mount(&workdir, &|word| state.word(word), origin));
    let mounts = mounts.collect::<Result<Vec<_>, Fault>>()?;
    check_caches(&mounts)?;
    let config = &state.config.config;
    let mut hasher = Hasher::new("run").below(state.key).list(args.iter());
    hasher = hasher.list(env.to_list().iter()).field(&workdir).field(&config.user);
    for mount in &mounts {
        // What is in a cache is no part of the key: the result must not depend on it.
        hasher.add(format!("{mount:?}"));
    }
    for key in keys {
        hasher = hasher.below(key);
    }
    hasher.add(format!("{:?}", text.network));
    if let Some((_, content)) = &script {
        hasher.add(content);
    }
    state.key = hasher.key();
    // Proxies are for the command only; they are in no image and in no key.
    for (name, value) in planner.options.args.iter().filter(|(name, _)| is_predefined(name)) {
        env.set(name, value);
    }
    let declared: Vec<String> = state.args.to_list();
    let prefix =
        if declared.is_empty() { String::new() } else { format!("|{} {} ", declared.len(), declared.join(" ")) };
    let by = format!("RUN {prefix}{}", args.join(" "));
    let env = env.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let user = config.user.clone();
    Ok((Run { args, env, workdir, user, mounts, network: text.network, script }, by))
}

/// A cache can be at one place of a command only.
fn check_caches(mounts: &[Mount]) -> Result<(), Fault> {
    let mut ids = BTreeSet::new();
    let cache = |mount: &Mount| match mount {
        Mount::Cache { id, .. } => Some(id.clone()),
        Mount::Tmpfs { .. } => None,
    };
    match mounts.iter().filter_map(cache).find(|id| !ids.insert(id.clone())) {
        Some(id) => {
            Err(Fault::instead(format!("the cache '{id}' is mounted twice"), "give each mount an id of its own"))
        }
        None => Ok(()),
    }
}

/// An instruction that changes the configuration only. Gives what the history says.
fn configure(planner: &mut Planner<'_>, state: &mut State, kind: &Kind, text: &str) -> Result<String, Fault> {
    match kind {
        Kind::Arg(pairs) => return arg(planner, state, pairs),
        Kind::Env(pairs) => {
            // All values are those from before the instruction.
            let before = state.env();
            let mut env = Env::of(&state.config.config.env);
            let mut by = "ENV".to_owned();
            for (name, value) in pairs {
                let (name, value) = (state.lexer.word(name, &before)?, state.lexer.word(value, &before)?);
                by.push_str(&format!(" {name}={value}"));
                env.set(&name, &value);
            }
            state.config.config.env = env.to_list();
            return Ok(by);
        }
        Kind::Label(pairs) => {
            for (name, value) in pairs {
                let (name, value) = (state.word(name)?, state.word(value)?);
                state.config.config.labels.insert(name, value);
            }
        }
        Kind::Cmd(command) => {
            state.config.config.cmd = Some(line_of(state, command));
            state.has_cmd = true;
        }
        Kind::Entrypoint(command) => {
            let line = line_of(state, command);
            let Config { entrypoint, cmd, .. } = &mut state.config.config;
            *entrypoint = (!line.is_empty()).then_some(line);
            if !state.has_cmd {
                *cmd = None;
            }
        }
        Kind::Shell(shell) => state.config.config.shell.clone_from(shell),
        Kind::User(user) => {
            let user = state.word(user)?;
            if user.is_empty() {
                return Err(Fault::new("USER is empty once its variables are replaced"));
            }
            state.config.config.user = user;
        }
        Kind::Expose(ports) => {
            for word in state.lexer.words(ports, &state.env())? {
                for port in self::ports(&word)? {
                    state.config.config.exposed_ports.insert(port, Map::new());
                }
            }
        }
        Kind::Volume(paths) => {
            for path in paths {
                let path = state.word(path)?;
                state.config.config.volumes.insert(path, Map::new());
            }
        }
        Kind::StopSignal(signal) => {
            let signal = state.word(signal)?;
            let name = signal.strip_prefix("SIG").unwrap_or(&signal);
            let number = name.parse::<u32>().is_ok_and(|number| (1..=64).contains(&number));
            if !number && (name.is_empty() || !name.chars().all(|c| c.is_ascii_uppercase() || "+-12".contains(c))) {
                return Err(Fault::instead(format!("STOPSIGNAL {signal} is no signal"), "write SIGTERM or 15"));
            }
            state.config.config.stop_signal = signal;
        }
        Kind::Healthcheck(check) => state.config.config.healthcheck = Some(check.clone()),
        Kind::OnBuild(trigger) => state.config.config.on_build.push(trigger.clone()),
        Kind::Maintainer(author) => state.config.author = Some(author.clone()),
        Kind::From { .. } | Kind::Run(_) | Kind::Copy(_) | Kind::Workdir(_) => {
            return Err(Fault::new("the instruction is not one that changes the configuration"));
        }
    }
    Ok(text.to_owned())
}

fn line_of(state: &State, command: &Command) -> Vec<String> {
    match command {
        Command::Shell(text) => state.shell(text),
        Command::Exec(args) => args.clone(),
    }
}

fn arg(planner: &mut Planner<'_>, state: &mut State, pairs: &[(String, Option<String>)]) -> Result<String, Fault> {
    let mut by = "ARG".to_owned();
    for (name, default) in pairs {
        planner.used.push(name.clone());
        let value = match (planner.options.args.get(name), default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(text)) => Some(state.word(text)?),
            (None, None) => planner.globals.get(name).map(str::to_owned),
        };
        by.push(' ');
        by.push_str(name);
        if let Some(value) = value {
            by.push_str(&format!("={value}"));
            state.args.set(name, &value);
        }
    }
    Ok(by)
}

/// `80`, `80/udp`, `8000-8010`, `1.2.3.4:80:80`: the ports of the container with their protocol.
fn ports(word: &str) -> Result<Vec<String>, Fault> {
    let wrong = || Fault::instead(format!("EXPOSE {word} is no port"), "write EXPOSE 80, 53/udp or 8000-8010");
    let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(wrong());
    }
    let range = range.rsplit(':').next().unwrap_or(range);
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first > last || usize::from(last - first) >= PORTS_MAX {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}
