//! `icebox image build`: the context is packed here and streamed; the progress is shown as buildkit's plain output.
//!
//! Ctrl-C closes the connection, which ends the build.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use icebox_boxfile::Ignore;
use reqwest::Method;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::bytes::Bytes;

use super::args_image::BuildArgs;
use super::client::{Client, JsonLines, Patience, read};
use super::error::Error;
use super::human;
use super::output::Output;

/// The entry with the Boxfile: it may lie outside the context, or be left out of it.
const BOXFILE_ENTRY: &str = ".icebox.boxfile";
/// Names of a Boxfile, if none is given.
const NAMES: [&str; 2] = ["Boxfile", "Dockerfile"];
/// Pieces of the context on their way.
const PIECES_MAX: usize = 16;
const PIECE_BYTES: usize = 64 * 1024;

/// A line of the answer.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Record {
    Step { number: usize, stage: String, step: usize, steps: usize, text: String },
    Output { number: usize, text: String },
    Cached { number: usize },
    Done { number: usize, ms: u64 },
    Note { text: String },
    Image { id: String, names: Vec<String> },
    Error { error: String },
}

pub(crate) async fn build(client: &Client, output: &Output, args: BuildArgs) -> Result<(), Error> {
    let mut query: Vec<(&str, String)> = Vec::new();
    let context = match args.runtime.clone() {
        Some(runtime) => {
            query.push(("runtime", runtime));
            None
        }
        None => {
            let (name, text) = boxfile(&args)?;
            query.push(("file", name));
            Some((text, ignore(&args)?))
        }
    };
    query.extend(args.tag.map(|tag| ("tag", tag)));
    query.extend(args.target.map(|target| ("target", target)));
    query.extend(args.network_policy.map(|policy| ("network_policy", policy)));
    query.extend(args.size.map(|size| ("size", size)));
    query.extend(args.timeout.map(|seconds| ("step_seconds", seconds.to_string())));
    if args.no_cache {
        query.push(("no_cache", "true".to_owned()));
    }
    let mut given = HashMap::new();
    for arg in args.build_args {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            // As in Docker, the value comes from the environment then.
            None => match std::env::var(&arg) {
                Ok(value) => (arg, value),
                Err(_) => continue,
            },
        };
        given.insert(name, value);
    }
    if !given.is_empty() {
        query.push(("args", serde_json::json!(given).to_string()));
    }
    let body = context.map_or_else(reqwest::Body::default, |(text, ignore)| stream(args.context, ignore, text));
    let request = client.request(Method::POST, &["v1", "images", "build"], Patience::Work);
    let request = request.query(&query).body(body);
    follow(client, output, request).await
}

/// The context as a body that is packed while it is sent.
fn stream(context: PathBuf, ignore: Ignore, boxfile: String) -> reqwest::Body {
    let (sender, mut pieces) = mpsc::channel::<io::Result<Bytes>>(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let mut output = Pieces { to: sender.clone(), piece: Vec::with_capacity(PIECE_BYTES) };
        if let Err(error) = pack(&context, &ignore, &boxfile, &mut output) {
            // The request fails with it; the server may have ended it before.
            let _ = sender.blocking_send(Err(error));
        }
    });
    reqwest::Body::wrap_stream(futures::stream::poll_fn(move |context| pieces.poll_recv(context)))
}

/// The name of the Boxfile and its text.
fn boxfile(args: &BuildArgs) -> Result<(String, String), Error> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => {
            let found = NAMES.iter().map(|name| args.context.join(name)).find(|path| path.is_file());
            let missing =
                || Error::usage(format!("there is no Boxfile and no Dockerfile in {}", args.context.display()));
            found.ok_or_else(missing)?
        }
    };
    let text = fs::read_to_string(&path).map_err(|cause| Error::io("read", path.display().to_string(), cause))?;
    let name = path.strip_prefix(&args.context).unwrap_or(&path);
    Ok((name.display().to_string(), text))
}

/// The patterns of what is left out: those of `FILE.dockerignore` beside the Boxfile, or of `.dockerignore`.
fn ignore(args: &BuildArgs) -> Result<Ignore, Error> {
    let own = args.file.as_ref().map(|file| PathBuf::from(format!("{}.dockerignore", file.display())));
    for path in own.into_iter().chain([args.context.join(".dockerignore")]) {
        match fs::read_to_string(&path) {
            Ok(text) => return Ignore::read(&text).map_err(Error::usage),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(Error::io("read", path.display().to_string(), cause)),
        }
    }
    Ok(Ignore::default())
}

/// Writes the context as a tar archive.
fn pack(context: &Path, ignore: &Ignore, boxfile: &str, output: &mut Pieces) -> io::Result<()> {
    let mut archive = tar::Builder::new(output);
    let mut header = tar::Header::new_ustar();
    header.set_size(boxfile.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    archive.append_data(&mut header, BOXFILE_ENTRY, boxfile.as_bytes())?;
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let at = context.join(&relative);
        let named = |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", at.display()));
        let facts = fs::symlink_metadata(&at).map_err(named)?;
        let top = relative.as_os_str().is_empty();
        if facts.is_dir() && (top || !ignore.prunes(&relative)) {
            let mut names = fs::read_dir(&at).map_err(named)?.collect::<io::Result<Vec<_>>>().map_err(named)?;
            names.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
            todo.extend(names.into_iter().map(|entry| relative.join(entry.file_name())));
        }
        let kind = facts.file_type();
        // Sockets and the like are no part of a context.
        let special = kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device();
        if top || special || ignore.ignores(&relative) {
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(facts.mode() & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(u64::try_from(facts.mtime()).unwrap_or(0));
        if facts.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, &relative, fs::read_link(&at).map_err(named)?)?;
        } else if facts.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            archive.append_data(&mut header, &relative, io::empty())?;
        } else {
            header.set_size(facts.len());
            let mut file = io::Read::take(fs::File::open(&at).map_err(named)?, facts.len());
            archive.append_data(&mut header, &relative, &mut file).map_err(named)?;
            if file.limit() > 0 {
                return Err(named(io::Error::other("it became shorter while it was read")));
            }
        }
    }
    archive.into_inner()?.flush()
}

/// Hands bytes on in pieces.
struct Pieces {
    to: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES)));
        self.to.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Sends the request and shows the lines of its answer. The id of the image is the result.
async fn follow(client: &Client, output: &Output, request: reqwest::RequestBuilder) -> Result<(), Error> {
    let mut lines = JsonLines::of(client, request).await?;
    let mut shown = Shown::default();
    while let Some(value) = lines.next().await? {
        if output.is_json() {
            output.json_line(&value)?;
        }
        match read::<Record>(value)? {
            Record::Error { error } => return Err(Error::usage(human::plain(&error))),
            Record::Image { id, names } => {
                for name in names {
                    output.remark(&format!("named {}", human::plain(&name)));
                }
                return if output.is_json() { Ok(()) } else { output.line(&human::plain(&id)) };
            }
            record if !output.is_json() => shown.show(&record),
            _ => {}
        }
    }
    Err(Error::protocol("finish the build", "the answer ends before the build; the log of iceboxd has the reason"))
}

/// The progress on standard error.
#[derive(Default)]
struct Shown {
    began: Option<Instant>,
    /// The last line of output is not finished.
    open: bool,
}

impl Shown {
    fn show(&mut self, record: &Record) {
        let mut text = String::new();
        if self.open && !matches!(record, Record::Output { .. }) {
            text.push('\n');
            self.open = false;
        }
        match record {
            Record::Step { number, stage, step, steps, text: instruction } => {
                self.began = Some(Instant::now());
                text.push_str(&format!("#{number} [{stage} {step}/{steps}] {}\n", human::plain(instruction)));
            }
            Record::Output { number, text: lines } => {
                let seconds = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
                for line in lines.split_inclusive('\n') {
                    if !self.open {
                        text.push_str(&format!("#{number} {seconds:.3} "));
                    }
                    self.open = !line.ends_with('\n');
                    text.push_str(&human::plain(line.trim_end_matches(['\n', '\r'])));
                    if !self.open {
                        text.push('\n');
                    }
                }
            }
            Record::Cached { number } => text.push_str(&format!("#{number} CACHED\n\n")),
            Record::Done { number, ms } => {
                text.push_str(&format!("#{number} DONE {}.{}s\n\n", ms / 1000, ms % 1000 / 100))
            }
            Record::Note { text: note } => text.push_str(&format!("note: {}\n", human::plain(note))),
            Record::Image { .. } | Record::Error { .. } => {}
        }
        // A failed write to standard error cannot be reported.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_packed_without_what_is_ignored() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "drop/x", "drop/keep", "d/e/f", "gone/deep/x"] {
            fs::create_dir_all(at(name).parent().expect("a parent")).expect("directories");
            fs::write(at(name), name).expect("a file");
        }
        std::os::unix::fs::symlink("../outside", at("link")).expect("a link");
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("a FIFO");
        let ignore = Ignore::read("drop\n!drop/keep\ngone\n").expect("patterns");
        let (to, mut pieces) = mpsc::channel(1000);
        let mut output = Pieces { to, piece: Vec::new() };
        pack(dir.path(), &ignore, "FROM x", &mut output).expect("packed");
        drop(output);
        let mut bytes = Vec::new();
        while let Ok(piece) = pieces.try_recv() {
            bytes.extend_from_slice(&piece.expect("no error"));
        }
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names: Vec<String> = archive
            .entries()
            .expect("entries")
            .map(|entry| entry.expect("an entry").path().expect("a path").display().to_string())
            .collect();
        assert_eq!(names, [BOXFILE_ENTRY, "a", "d", "d/e", "d/e/f", "drop/keep", "link"]);
    }
}
