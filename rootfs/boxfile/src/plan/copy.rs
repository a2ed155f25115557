//! COPY and ADD in a plan.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::stage::State;
use super::{Fetched, Planner};
use crate::chmod::Chmod;
use crate::error::{Error, Fault};
use crate::expand::Lexer;
use crate::ignore::Ignore;
use crate::instruction::{CopyText, SourceText};
use crate::key::{Hasher, Key};
use crate::paths::absolute;
use crate::pattern::has_wildcards;
use crate::tree::{glob, resolve};

/// Where COPY takes files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The context of the build.
    Context,
    /// A stage, by its place in the plan.
    Stage(usize),
    /// An image, by its id.
    Image(String),
}

/// A source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Files of the origin.
    Files(String),
    /// A file whose content is in the Boxfile: its name and its content.
    Inline(String, String),
    /// A file that was fetched: the name that its URL gives it.
    Url(String, Fetched),
}

/// Files that are copied into a layer.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Where they come from.
    pub origin: Origin,
    /// Which ones.
    pub sources: Vec<Source>,
    /// The destination, absolute. A slash at its end says that it is a directory.
    pub dest: String,
    /// `USER[:GROUP]` of the copies.
    pub chown: Option<String>,
    pub(crate) chmod: Option<Chmod>,
    pub(crate) chmod_text: Option<String>,
    pub(crate) exclude: Ignore,
    /// True if directories on the way to a source are made in the destination.
    pub parents: bool,
    /// True for ADD.
    pub add: bool,
    /// Whether archives are unpacked, if the instruction says so.
    pub unpack: Option<bool>,
}

pub(super) fn plan(
    planner: &mut Planner<'_>,
    state: &mut State,
    text: &CopyText,
    number: usize,
    line: usize,
) -> Result<Copy, Error> {
    let file = planner.boxfile.file.clone();
    let at = |fault: Fault| fault.at(&file, line);
    let (origin, below) = match &text.from {
        None => (Origin::Context, None),
        Some(from) => {
            let (origin, key) = self::origin(planner, from, number, line)?;
            (origin, Some(key))
        }
    };
    let copy = read(planner, state, text, origin).map_err(at)?;
    state.key = key(planner, state, &copy, below, text).map_err(at)?;
    Ok(copy)
}

/// The stage or image that `from` names, and its key.
pub(super) fn origin(
    planner: &mut Planner<'_>,
    from: &str,
    number: usize,
    line: usize,
) -> Result<(Origin, Key), Error> {
    let file = planner.boxfile.file.clone();
    let at = |fault: Fault| fault.at(&file, line);
    if from.contains('$') {
        let what = format!("--from={from} has a variable");
        return Err(at(Fault::instead(what, format!("write FROM {from} AS NAME, and --from=NAME"))));
    }
    if let Some(earlier) = planner.boxfile.find(from) {
        if earlier >= number {
            return Err(at(Fault::instead(format!("the stage '{from}' comes later"), "copy from an earlier stage")));
        }
        let place = planner.stage(earlier)?;
        return Ok((Origin::Stage(place), planner.stages[place].key));
    }
    let base = planner.inputs.image(from).map_err(|why| at(Fault::new(why)))?;
    let key = Hasher::new("image").field(&base.id).key();
    Ok((Origin::Image(base.id), key))
}

fn read(planner: &mut Planner<'_>, state: &State, text: &CopyText, origin: Origin) -> Result<Copy, Fault> {
    let word = |text: &String| state.word(text);
    let written = word(&text.dest)?;
    let mut dest = absolute(state.workdir(), &written);
    let is_dir = written.is_empty() || written == "." || written.ends_with('/') || written.ends_with("/.");
    if is_dir && dest != "/" {
        dest.push('/');
    }
    let checksum = text.checksum.as_ref().map(word).transpose()?;
    let mut sources = Vec::new();
    for source in &text.sources {
        sources.push(match source {
            SourceText::Inline(doc) if doc.expand => {
                Source::Inline(doc.name.clone(), Lexer::of_heredoc().word(&doc.content, &state.env())?)
            }
            SourceText::Inline(doc) => Source::Inline(doc.name.clone(), doc.content.clone()),
            SourceText::Path(path) => self::source(planner, word(path)?, text.add, checksum.as_deref())?,
        });
    }
    if checksum.is_some() && !matches!(sources.as_slice(), [Source::Url(..)]) {
        return Err(Fault::instead("--checksum is for one URL", "write ADD --checksum=sha256:... URL DEST"));
    }
    let files =
        sources.iter().filter(|source| !matches!(source, Source::Files(pattern) if has_wildcards(pattern))).count();
    let chmod_text = text.chmod.as_ref().map(word).transpose()?;
    let exclude = text.exclude.iter().map(word).collect::<Result<Vec<_>, _>>()?;
    let copy = Copy {
        origin,
        dest,
        chown: text.chown.as_ref().map(word).transpose()?.filter(|owner| !owner.is_empty()),
        chmod: chmod_text.as_deref().map(Chmod::read).transpose()?,
        chmod_text,
        exclude: Ignore::new(&exclude)?,
        parents: text.parents,
        add: text.add,
        unpack: text.unpack,
        sources,
    };
    if files > 1 && !is_dir && copy.sources.iter().any(|source| !matches!(source, Source::Files(_))) {
        return Err(directory_needed(&copy.dest));
    }
    Ok(copy)
}

/// Several files have one destination that is no directory.
pub(crate) fn directory_needed(dest: &str) -> Fault {
    Fault::instead(format!("there are several sources, and {dest} is not a directory"), format!("write {dest}/"))
}

fn source(planner: &mut Planner<'_>, path: String, add: bool, checksum: Option<&str>) -> Result<Source, Fault> {
    let lower = path.to_ascii_lowercase();
    let git = lower.starts_with("git@") || lower.starts_with("git://") || lower.starts_with("ssh://");
    if git || (lower.starts_with("http") && lower.split('#').next().is_some_and(|url| url.ends_with(".git"))) {
        let instead = "clone it in a RUN with git clone, or in the context";
        return Err(Fault::instead(format!("the repository {path} cannot be added"), instead));
    }
    if !lower.starts_with("http://") && !lower.starts_with("https://") {
        return Ok(Source::Files(path));
    }
    if !add {
        return Err(Fault::instead(format!("COPY cannot take the URL {path}"), format!("write ADD {path} DEST")));
    }
    let fetched = planner.inputs.fetch(&path, checksum).map_err(|why| Fault::new(format!("{path}: {why}")))?;
    let plain = path.split(['?', '#']).next().unwrap_or_default();
    let name = plain.splitn(4, '/').nth(3).and_then(|path| path.rsplit('/').next()).filter(|name| !name.is_empty());
    Ok(Source::Url(name.unwrap_or("__unnamed__").to_owned(), fetched))
}

fn key(planner: &Planner<'_>, state: &State, copy: &Copy, below: Option<Key>, text: &CopyText) -> Result<Key, Fault> {
    let mut hasher = Hasher::new("copy").below(state.key).field(&copy.dest);
    hasher.add(copy.chown.as_deref().unwrap_or_default());
    hasher.add(copy.chmod_text.as_deref().unwrap_or_default());
    hasher.add(format!("{} {} {:?}", copy.parents, copy.add, copy.unpack));
    hasher = hasher.list(text.exclude.iter());
    if let Some(below) = below {
        hasher = hasher.below(below);
    }
    for source in &copy.sources {
        match source {
            Source::Inline(name, content) => hasher = hasher.field("inline").field(name).field(content),
            Source::Url(name, fetched) => hasher = hasher.field("url").field(name).field(&fetched.digest),
            Source::Files(pattern) if copy.origin == Origin::Context => {
                hasher.add("files");
                let found = glob(planner.context, pattern)?;
                if found.is_empty() && !has_wildcards(pattern) {
                    return Err(missing(pattern, "the context of the build"));
                }
                for path in found {
                    let target = resolve(planner.context, &path, true)?;
                    if planner.context.node(&target)?.is_none() {
                        return Err(missing(pattern, "the context of the build"));
                    }
                    let name = if copy.parents { path.as_os_str() } else { path.file_name().unwrap_or_default() };
                    hasher.add(name.as_bytes());
                    hasher.files(planner.context, Path::new(&target), &copy.exclude)?;
                }
            }
            Source::Files(pattern) => hasher = hasher.field("files").field(pattern),
        }
    }
    Ok(hasher.key())
}

/// A source does not exist.
pub(crate) fn missing(pattern: &str, place: &str) -> Fault {
    Fault::instead(format!("'{pattern}' is not in {place}"), "check its path, and .dockerignore")
}

/// What the history says of a COPY.
pub(super) fn history(add: bool, copy: &Copy) -> String {
    let mut by = if add { "ADD".to_owned() } else { "COPY".to_owned() };
    for (flag, value) in [("chown", &copy.chown), ("chmod", &copy.chmod_text)] {
        if let Some(value) = value {
            by.push_str(&format!(" --{flag}={value}"));
        }
    }
    for source in &copy.sources {
        match source {
            Source::Files(name) | Source::Url(name, _) => by.push_str(&format!(" {name}")),
            Source::Inline(name, _) => by.push_str(&format!(" <<{name}")),
        }
    }
    format!("{by} {}", copy.dest)
}
