//! Unpacking the archive of a box: one file of facts, then the changes of the box in a directory.

use std::io::Read;
use std::path::PathBuf;

use super::apply::{Layer, Unpacked};
use super::fault::{Fault, Reason, refuse};
use super::frames::{Entry, Frames, Kind};
use super::limits::Limits;
use super::stream::{self, Pieces};

/// Most bytes of the facts.
const FACTS_BYTES_MAX: u64 = 4 << 20;

/// Why the archive of a box was not unpacked.
#[derive(Debug)]
pub(crate) enum Unfit<E> {
    /// The facts are refused, or there is no place for the files.
    Facts(E),
    /// The archive is not acceptable, or this machine failed.
    Fault(Fault),
}

impl<E> From<Fault> for Unfit<E> {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Unpacks what is in the directory `below` of the archive into the directory that `open` gives for the content of the file
/// `facts`, the first entry.
pub(crate) fn unpack_box<E>(
    blob: impl Read + Send,
    (facts, below): (&str, &str),
    limits: Limits,
    open: impl FnOnce(&[u8]) -> Result<PathBuf, E>,
) -> Result<Unpacked, Unfit<E>> {
    std::thread::scope(|scope| {
        let (pieces, pump) = stream::spawn(scope, blob, limits);
        let mut frames = Frames::new(pieces, limits, None);
        let done = entries(&mut frames, (facts, below), limits, open);
        let (mut pieces, _) = frames.into_parts();
        // A failure of the other thread is the cause of one here.
        let done = done.map_err(|unfit| match (unfit, pieces.take_fault()) {
            (Unfit::Fault(fault), Some(cause)) => Fault { entry: fault.entry, ..cause }.into(),
            (unfit, _) => unfit,
        });
        drop(pieces);
        let ended = pump.join().is_ok_and(|passed| passed.is_some());
        match done {
            Ok(_) if !ended => Err(Fault::from(std::io::Error::other("the archive was not read to its end")).into()),
            done => done,
        }
    })
}

fn entries<E>(
    frames: &mut Frames<Pieces>,
    (facts, below): (&str, &str),
    limits: Limits,
    open: impl FnOnce(&[u8]) -> Result<PathBuf, E>,
) -> Result<Unpacked, Unfit<E>> {
    let content = first(frames, facts)?;
    let root = open(&content).map_err(Unfit::Facts)?;
    let mut layer = Layer::new(&root, limits, false)?;
    while let Some(mut entry) = frames.next()? {
        lift(&mut entry, below).map_err(|fault| fault.in_entry(&entry.path))?;
        layer.take(&entry, frames)?;
    }
    let unpacked = layer.finish()?;
    if unpacked.opaque_root {
        return Err(Fault::refused("it hides the whole image").into());
    }
    Ok(unpacked)
}

/// The content of the first entry, which must be the file `name`.
fn first(frames: &mut Frames<Pieces>, name: &str) -> Result<Vec<u8>, Fault> {
    let entry = match frames.next()? {
        Some(entry) if entry.kind == Kind::File && without_dot(&entry.path) == name.as_bytes() => entry,
        _ => refuse!("it is no archive of a box: its first entry is not the file {name}"),
    };
    if entry.size > FACTS_BYTES_MAX || entry.segments.is_some() {
        refuse!("its {name} has {} bytes; at most {FACTS_BYTES_MAX} are allowed", entry.size);
    }
    let mut content = vec![0; usize::try_from(entry.size).unwrap_or(0)];
    let mut filled = 0;
    while filled < content.len() {
        match frames.read(&mut content[filled..])? {
            0 => refuse!("the archive is truncated"),
            got => filled += got,
        }
    }
    Ok(content)
}

/// Takes the directory away from the names of an entry.
fn lift(entry: &mut Entry, below: &str) -> Result<(), Fault> {
    let Some(path) = lifted(&entry.path, below) else { refuse!("it is neither the first file nor in {below}/") };
    if entry.kind == Kind::Hardlink {
        let Some(link) = lifted(&entry.link, below) else { refuse!("it is a hard link out of {below}/") };
        entry.link = link;
    }
    entry.path = path;
    Ok(())
}

fn lifted(path: &[u8], below: &str) -> Option<Vec<u8>> {
    match without_dot(path).strip_prefix(below.as_bytes())? {
        [] => Some(b"./".to_vec()),
        [b'/', rest @ ..] => Some([b"./", rest].concat()),
        _ => None,
    }
}

fn without_dot(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"./").unwrap_or(path)
}

impl<E> Unfit<E> {
    /// The fault, if it is not one of the facts.
    pub(crate) fn parts(self) -> Result<(Option<String>, Reason), E> {
        match self {
            Self::Facts(error) => Err(error),
            Self::Fault(Fault { entry, reason }) => Ok((entry, reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lifted_out_of_the_directory_and_others_are_not() {
        let text = |path: &str| lifted(path.as_bytes(), "changes").map(|path| String::from_utf8(path).unwrap());
        for (path, wanted) in [
            ("changes", Some("./")),
            ("changes/", Some("./")),
            ("./changes/a/b", Some("./a/b")),
            // Refused later, as in any archive.
            ("changes/../x", Some("./../x")),
            ("changes2/x", None),
            ("x/changes/y", None),
            ("/changes/x", None),
            ("box.json", None),
            ("", None),
        ] {
            assert_eq!(text(path).as_deref(), wanted, "{path}");
        }
    }
}
