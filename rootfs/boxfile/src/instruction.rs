//! The instructions of a Boxfile, as they are written: variables are not replaced yet.

use crate::error::Fault;
use crate::flags::Flags;
use crate::healthcheck::{self, Healthcheck};
use crate::lines::{Heredoc, Line, heredoc_name};
use crate::mounts::MountText;
use crate::words;

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// For the shell.
    Shell(String),
    /// The program and its arguments.
    Exec(Vec<String>),
}

/// The network of a RUN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// That of the build.
    #[default]
    Default,
    /// None.
    None,
}

/// A RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunText {
    pub(crate) command: Command,
    pub(crate) heredocs: Vec<Heredoc>,
    pub(crate) mounts: Vec<MountText>,
    pub(crate) network: Network,
}

/// A source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceText {
    /// A path, a pattern, or a URL.
    Path(String),
    /// A file whose content is in the Boxfile.
    Inline(Heredoc),
}

/// A COPY or an ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyText {
    pub(crate) add: bool,
    pub(crate) sources: Vec<SourceText>,
    pub(crate) dest: String,
    pub(crate) from: Option<String>,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<String>,
    pub(crate) checksum: Option<String>,
    pub(crate) exclude: Vec<String>,
    pub(crate) parents: bool,
    pub(crate) unpack: Option<bool>,
}

/// A name of ARG, and its default.
pub(crate) type ArgText = (String, Option<String>);

/// What an instruction says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    From { image: String, name: Option<String>, platform: Option<String> },
    Arg(Vec<ArgText>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Run(RunText),
    Copy(CopyText),
    Cmd(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    Workdir(String),
    User(String),
    Expose(String),
    Volume(Vec<String>),
    StopSignal(String),
    Healthcheck(Healthcheck),
    OnBuild(String),
    Maintainer(String),
}

/// An instruction and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) line: usize,
    /// The instruction on one line, for people.
    pub(crate) text: String,
    pub(crate) kind: Kind,
}

/// All keywords, for a suggestion.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

impl Instruction {
    pub(crate) fn read(line: &Line, escape: char) -> Result<Self, Fault> {
        let mut flags = Flags::new(&line.keyword, &line.flags)?;
        let kind = kind(line, &mut flags, escape)?;
        flags.finish()?;
        let mut text = line.keyword.clone();
        for word in line.flags.iter().map(String::as_str).chain([line.rest.as_str()]).filter(|word| !word.is_empty()) {
            text.push(' ');
            text.push_str(word);
        }
        Ok(Self { line: line.line, text, kind })
    }
}

fn kind(line: &Line, flags: &mut Flags, escape: char) -> Result<Kind, Fault> {
    let rest = line.rest.as_str();
    let keyword = line.keyword.as_str();
    let pairs = || words::pairs(keyword, rest, escape);
    Ok(match keyword {
        "FROM" => from(rest, flags)?,
        "ARG" => Kind::Arg(args(rest, escape)?),
        "ENV" => Kind::Env(pairs()?),
        "LABEL" => Kind::Label(pairs()?),
        "RUN" => run(line, flags)?,
        "COPY" | "ADD" => Kind::Copy(copy(line, flags)?),
        "CMD" => Kind::Cmd(command(rest)?),
        "ENTRYPOINT" => Kind::Entrypoint(command(rest)?),
        "SHELL" => match words::list(rest)? {
            Some(shell) if !shell.is_empty() => Kind::Shell(shell),
            _ => return Err(Fault::instead("SHELL is not a JSON array", "write SHELL [\"/bin/bash\", \"-c\"]")),
        },
        "WORKDIR" => Kind::Workdir(one(keyword, rest)?),
        "USER" => Kind::User(one(keyword, rest)?),
        "STOPSIGNAL" => Kind::StopSignal(one(keyword, rest)?),
        "MAINTAINER" => Kind::Maintainer(one(keyword, rest)?),
        "EXPOSE" => Kind::Expose(one(keyword, rest)?),
        "VOLUME" => {
            let volumes = words::list(rest)?.unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
            if volumes.is_empty() || volumes.iter().any(|volume| volume.trim().is_empty()) {
                return Err(Fault::instead("VOLUME has no path", "write VOLUME /data"));
            }
            Kind::Volume(volumes)
        }
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck::read(rest, flags)?),
        "ONBUILD" => Kind::OnBuild(on_build(line)?),
        other => {
            let near = KEYWORDS.iter().find(|known| other.get(..2).is_some_and(|begin| known.starts_with(begin)));
            let instead = near.map_or_else(
                || format!("the instructions are {}", KEYWORDS.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            return Err(Fault::instead(format!("the instruction '{other}' is not known"), instead));
        }
    })
}

fn one(keyword: &str, rest: &str) -> Result<String, Fault> {
    if rest.is_empty() { Err(Fault::new(format!("{keyword} has no argument"))) } else { Ok(rest.to_owned()) }
}

/// Shell or exec form. Without arguments it is the exec form of nothing.
fn command(rest: &str) -> Result<Command, Fault> {
    Ok(match words::list(rest)? {
        Some(list) => Command::Exec(list),
        None if rest.is_empty() => Command::Exec(Vec::new()),
        None => Command::Shell(rest.to_owned()),
    })
}

fn from(rest: &str, flags: &mut Flags) -> Result<Kind, Fault> {
    let platform = flags.take("platform")?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (image, name) = match words.as_slice() {
        [image] => (image, None),
        [image, as_, name] if as_.eq_ignore_ascii_case("as") => (image, Some(name.to_ascii_lowercase())),
        _ => return Err(Fault::instead("FROM takes an image", "write FROM IMAGE, or FROM IMAGE AS NAME")),
    };
    if let Some(name) = &name {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(valid) {
            let instead = "a name begins with a letter and has letters, digits, '-', '_' and '.'";
            return Err(Fault::instead(format!("'{name}' is no name of a stage"), instead));
        }
    }
    Ok(Kind::From { image: (*image).to_owned(), name, platform })
}

fn args(rest: &str, escape: char) -> Result<Vec<ArgText>, Fault> {
    let words = words::split(rest, escape);
    if words.is_empty() || words.iter().any(|word| word.starts_with('=')) {
        return Err(Fault::instead("ARG has no name", "write ARG NAME or ARG NAME=DEFAULT"));
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word, None),
    };
    Ok(words.into_iter().map(pair).collect())
}

fn run(line: &Line, flags: &mut Flags) -> Result<Kind, Fault> {
    let mounts = flags.all("mount").iter().map(|text| MountText::read(text)).collect::<Result<_, _>>()?;
    let network = match flags.take("network")?.as_deref() {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some(other) => {
            let instead = "write --network=default or --network=none; the build has a network policy of its own";
            return Err(Fault::instead(format!("RUN --network={other} is not supported"), instead));
        }
    };
    match flags.take("security")?.as_deref() {
        None | Some("sandbox") => {}
        Some(other) => {
            let instead = "remove it: a RUN is root in a user namespace of its own, with the rights of a box";
            return Err(Fault::instead(format!("RUN --security={other} is not supported"), instead));
        }
    }
    flags.refuse("device", "remove it: boxes have no devices")?;
    let command = command(&line.rest)?;
    if command == Command::Exec(Vec::new()) {
        return Err(Fault::instead("RUN has no command", "write RUN COMMAND"));
    }
    Ok(Kind::Run(RunText { command, heredocs: line.heredocs.clone(), mounts, network }))
}

fn copy(line: &Line, flags: &mut Flags) -> Result<CopyText, Fault> {
    let keyword = line.keyword.as_str();
    let add = keyword == "ADD";
    let mut words = words::list(&line.rest)?
        .unwrap_or_else(|| line.rest.split_whitespace().map(str::to_owned).collect::<Vec<String>>());
    let missing = || {
        Fault::instead(format!("{keyword} needs a source and a destination"), format!("write {keyword} SOURCE DEST"))
    };
    let dest = words.pop().ok_or_else(missing)?;
    if words.is_empty() {
        return Err(missing());
    }
    if heredoc_name(&dest)?.is_some() {
        return Err(Fault::instead(
            format!("the destination of {keyword} is a here-document"),
            format!("write {keyword} {dest} /PATH"),
        ));
    }
    let source = |word: String| {
        let name = if line.heredocs.is_empty() { None } else { heredoc_name(&word)? };
        Ok(match name.and_then(|name| line.heredocs.iter().find(|doc| doc.name == name)) {
            Some(doc) => SourceText::Inline(doc.clone()),
            None => SourceText::Path(word),
        })
    };
    let sources = words.into_iter().map(source).collect::<Result<Vec<_>, Fault>>()?;
    // Layers are always made apart from what is below, so `--link` changes nothing.
    flags.switch("link")?;
    let mut copy = CopyText {
        add,
        sources,
        dest,
        from: None,
        chown: flags.take("chown")?,
        chmod: flags.take("chmod")?,
        checksum: None,
        exclude: flags.all("exclude"),
        parents: false,
        unpack: None,
    };
    if add {
        copy.checksum = flags.take("checksum")?;
        copy.unpack = flags.switch("unpack")?;
        flags.refuse("keep-git-dir", "ADD takes no repositories: clone it with RUN git clone")?;
        flags.refuse("from", "write COPY --from")?;
    } else {
        copy.from = flags.take("from")?;
        copy.parents = flags.switch("parents")?.unwrap_or(false);
        flags.refuse("checksum", "it is for URLs: write ADD --checksum")?;
    }
    Ok(copy)
}

fn on_build(line: &Line) -> Result<String, Fault> {
    let keyword = line.rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    match keyword.as_str() {
        "" => return Err(Fault::instead("ONBUILD has no instruction", "write ONBUILD RUN COMMAND")),
        "ONBUILD" | "FROM" | "MAINTAINER" => {
            return Err(Fault::instead(
                format!("ONBUILD {keyword} is not allowed"),
                "ONBUILD takes any other instruction",
            ));
        }
        known if KEYWORDS.contains(&known) => {}
        other => return Err(Fault::new(format!("the instruction '{other}' of ONBUILD is not known"))),
    }
    let mut text = line.rest.clone();
    for doc in &line.heredocs {
        text.push('\n');
        text.push_str(&doc.raw);
        text.push_str(&doc.name);
    }
    Ok(text)
}
