//! `icebox cp`: files and directories into and out of a box.
//!
//! The rules are those of cp: into a directory that exists, else under the new name. Symbolic links to files are
//! followed. The copy leaves out links to directories, link loops, pipes, devices, sockets, and what can't be read or
//! written. It names each of them on standard error, copies the rest, and ends with a failure. A name that a box reports
//! becomes a local name only if it is one plain part, so a box can not write beside the destination.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, StreamExt, TryStreamExt};
use reqwest::Body;
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::client::Client;
use super::error::{Error, STDOUT};
use super::files::Files;
use super::human;
use super::names;
use super::output::{Output, stream as open_standard};
use super::place::{Place, Remote, base_name, is_plain_name, join};

/// Transfers at a time.
const TRANSFERS_MAX: usize = 4;
/// Files and directories of one copy; more belong into an archive.
const ENTRIES_MAX: usize = 1_000_000;
/// Directories below each other.
const DEPTH_MAX: usize = 256;

/// What was copied so far.
#[derive(Debug, Default)]
struct Tally {
    files: AtomicU64,
    bytes: AtomicU64,
    left_out: AtomicU64,
}

impl Tally {
    fn add(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn leave_out(&self, what: &str, why: &str) {
        eprintln!("icebox: left out {}: {why}", human::plain(what));
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    fn finish(&self, output: &Output) -> Result<(), Error> {
        let [files, bytes, left_out] = [&self.files, &self.bytes, &self.left_out].map(|n| n.load(Ordering::Relaxed));
        if output.is_json() {
            output.json(&json!({ "files": files, "bytes": bytes, "left_out": left_out }))?;
        } else {
            output.remark(&format!("{files} files, {}", human::bytes(bytes)));
        }
        match left_out {
            0 => Ok(()),
            count => Err(Error::usage(format!("entries left out of the copy: {count}"))),
        }
    }
}

/// Copies from one place to another; exactly one of them must be in a box.
pub(crate) async fn copy(client: &Client, output: &Output, source: &Place, destination: &Place) -> Result<(), Error> {
    let tally = Tally::default();
    match (source, destination) {
        (Place::Remote(_), Place::Remote(_)) => {
            return Err(Error::usage_with_hint(
                "one end of a copy must be on this machine",
                "from box to box: icebox cp a:file - | icebox cp - b:file",
            ));
        }
        (Place::Local { path, content_only, .. }, Place::Remote(remote)) => {
            let files = Files::of(client, box_name(remote)?.as_str()).await?;
            upload(&files, &tally, path, *content_only, remote).await?;
        }
        (Place::Stream, Place::Remote(remote)) => {
            let files = Files::of(client, box_name(remote)?.as_str()).await?;
            if remote.directory {
                return Err(Error::usage("standard input has no name: write BOX:PATH with a file name"));
            }
            let body = Body::wrap_stream(ReaderStream::new(open_standard(std::io::stdin(), "standard input")?));
            files.upload(&remote.path, body, None).await?;
            tally.add(0);
        }
        (Place::Remote(remote), Place::Stream) => {
            let files = Files::of(client, box_name(remote)?.as_str()).await?;
            download_to(&files, &remote.path, &mut open_standard(std::io::stdout(), STDOUT)?, STDOUT).await?;
            // Standard output holds the file: no JSON may follow it.
            return Ok(());
        }
        (Place::Remote(remote), Place::Local { path, directory, .. }) => {
            let files = Files::of(client, box_name(remote)?.as_str()).await?;
            download(&files, &tally, remote, path, *directory).await?;
        }
        _ => {
            return Err(Error::usage_with_hint("neither end of the copy is in a box", "a path in a box is BOX:PATH"));
        }
    }
    tally.finish(output)
}

fn box_name(remote: &Remote) -> Result<String, Error> {
    match &remote.name {
        Some(name) => Ok(name.clone()),
        None => std::env::var("BOX_ID")
            .ok()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Error::usage(format!("`:{}` means the box of $BOX_ID, which is not set", remote.path))),
    }
}

/// A local file and where it goes.
#[derive(Debug, PartialEq, Eq)]
struct LocalFile {
    path: PathBuf,
    target: String,
    executable: bool,
}

async fn upload(files: &Files<'_>, tally: &Tally, source: &Path, content_only: bool, to: &Remote) -> Result<(), Error> {
    let metadata = std::fs::metadata(source).map_err(|cause| Error::io("read", source.display(), cause))?;
    let existing = files.stat(&to.path, true).await?;
    let into = existing.as_ref().is_some_and(|stat| stat.is_directory()) || (!metadata.is_dir() && to.directory);
    let target = match source.file_name() {
        _ if !into || content_only => to.path.clone(),
        Some(name) => join(&to.path, &names::to_text(name)),
        None => {
            return Err(Error::usage(format!("{} has no name to copy it under", source.display())));
        }
    };
    if !metadata.is_dir() {
        let file = LocalFile { path: source.to_owned(), target, executable: is_executable(&metadata) };
        tally.add(upload_file(files, &file).await?);
        let executable: Vec<_> = file.executable.then_some(file.target).into_iter().collect();
        return files.make_executable(&executable).await;
    }
    if existing.is_some_and(|stat| !stat.is_directory()) {
        return Err(Error::usage(format!("{} is a file in the box, {} a directory here", to.path, source.display())));
    }
    let (directories, found) = walk(source, &target, tally)?;
    for directory in directories {
        files.make_directory(&directory).await?;
    }
    upload_all(files, tally, found).await
}

/// Uploads each file that can be read here and written there.
async fn upload_all(files: &Files<'_>, tally: &Tally, found: Vec<LocalFile>) -> Result<(), Error> {
    let executable = stream::iter(found)
        .map(|file| async move {
            match upload_file(files, &file).await {
                Ok(bytes) => tally.add(bytes),
                Err(error) if error.is_of_one_path() || error.is_of_local_file() => {
                    tally.leave_out(&file.path.display().to_string(), &error.to_string());
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            Ok(file.executable.then_some(file.target))
        })
        .buffer_unordered(TRANSFERS_MAX)
        .try_filter_map(|target| std::future::ready(Ok(target)))
        .try_collect::<Vec<_>>()
        .await?;
    files.make_executable(&executable).await
}

/// Uploads one file and returns its length.
async fn upload_file(files: &Files<'_>, file: &LocalFile) -> Result<u64, Error> {
    let failed = |cause| Error::io("read", file.path.display(), cause);
    let opened = tokio::fs::File::open(&file.path).await.map_err(failed)?;
    let metadata = opened.metadata().await.map_err(failed)?;
    // The length of a pipe, such as a shell's <(command), is not known.
    let length = metadata.is_file().then_some(metadata.len());
    files.upload(&file.target, Body::wrap_stream(ReaderStream::new(opened)), length).await?;
    Ok(metadata.len())
}

fn is_executable(metadata: &std::fs::Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

/// The directories and files below `root`, as they will be called in the box.
fn walk(root: &Path, target: &str, tally: &Tally) -> Result<(Vec<String>, Vec<LocalFile>), Error> {
    let (mut directories, mut found) = (Vec::new(), Vec::new());
    let mut ahead = vec![(root.to_owned(), target.to_owned(), 0)];
    while let Some((directory, target, depth)) = ahead.pop() {
        let failed = |cause| Error::io("read", directory.display(), cause);
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(cause) if depth > 0 => {
                tally.leave_out(&directory.display().to_string(), &cause.to_string());
                continue;
            }
            Err(cause) => return Err(failed(cause)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let shown = path.display().to_string();
            let name = names::to_text(&entry.file_name());
            let is_link = entry.file_type().map_err(failed)?.is_symlink();
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(cause) => {
                    tally.leave_out(&shown, &cause.to_string());
                    continue;
                }
            };
            let target = join(&target, &name);
            if metadata.is_file() {
                found.push(LocalFile { path, target, executable: is_executable(&metadata) });
            } else if metadata.is_dir() && !is_link && depth < DEPTH_MAX {
                ahead.push((path, target, depth + 1));
            } else {
                tally.leave_out(&shown, "neither a file nor a plain directory");
            }
        }
        directories.push(target);
        if directories.len() + found.len() > ENTRIES_MAX {
            return Err(Error::usage(format!("{} holds more than {ENTRIES_MAX} entries", root.display())));
        }
    }
    Ok((directories, found))
}

async fn download(files: &Files<'_>, tally: &Tally, from: &Remote, to: &Path, directory: bool) -> Result<(), Error> {
    let missing = || Error::Server { status: 404, text: format!("{}: no such file in the box", from.path), hint: None };
    let stat = files.stat(&from.path, true).await?.ok_or_else(missing)?;
    let into = to.is_dir() || (directory && !stat.is_directory());
    let target = match base_name(&from.path) {
        _ if !into || from.content_only => to.to_owned(),
        Some(name) => to.join(names::to_name(name)),
        None => {
            return Err(Error::usage(format!("{} has no name to copy it under", from.path)));
        }
    };
    if stat.is_directory() {
        let found = list_tree(files, tally, &from.path, &target).await?;
        return stream::iter(found.into_iter().map(Ok))
            .try_for_each_concurrent(TRANSFERS_MAX, |(source, target)| async move {
                match download_file(files, &source, &target).await {
                    Ok(bytes) => tally.add(bytes),
                    // A pipe, a dangling link, a file that is closed to the box or went away meanwhile.
                    Err(error) if error.is_of_one_path() => tally.leave_out(&source, &error.to_string()),
                    Err(error) => return Err(error),
                }
                Ok(())
            })
            .await;
    }
    tally.add(download_file(files, &from.path, &target).await?);
    Ok(())
}

/// Makes the local directories and returns the files that go into them.
async fn list_tree(
    files: &Files<'_>,
    tally: &Tally,
    root: &str,
    target: &Path,
) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut found = Vec::new();
    let mut entries = 0;
    let mut ahead = vec![(root.to_owned(), target.to_owned(), 0)];
    while let Some((directory, target, depth)) = ahead.pop() {
        std::fs::create_dir_all(&target).map_err(|cause| Error::io("make the directory", target.display(), cause))?;
        let listed = match files.list(&directory).await {
            Err(error) if depth > 0 && error.is_of_one_path() => {
                tally.leave_out(&directory, &error.to_string());
                continue;
            }
            other => other?,
        };
        for entry in listed {
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(Error::usage(format!("{root} holds more than {ENTRIES_MAX} entries")));
            }
            let path = join(&directory, &entry.name);
            if !is_plain_name(&entry.name) {
                tally.leave_out(&path, "its name leads elsewhere");
            } else if !entry.is_dir {
                found.push((path, target.join(names::to_name(&entry.name))));
            } else if depth < DEPTH_MAX && files.stat(&path, false).await?.is_some_and(|stat| stat.is_directory()) {
                ahead.push((path, target.join(names::to_name(&entry.name)), depth + 1));
            } else {
                tally.leave_out(&path, "not a plain directory");
            }
        }
    }
    Ok(found)
}

/// Writes beside the destination and renames, so that a broken copy leaves what was there before.
async fn download_file(files: &Files<'_>, source: &str, target: &Path) -> Result<u64, Error> {
    let failed = |cause| Error::io("write", target.display(), cause);
    let before = std::fs::metadata(target).ok();
    if before.as_ref().is_some_and(|metadata| !metadata.is_file()) {
        // A device or a pipe, such as /dev/null: it is written, not replaced.
        let mut file = tokio::fs::OpenOptions::new().write(true).open(target).await.map_err(failed)?;
        return download_to(files, source, &mut file, &target.display().to_string()).await;
    }
    let path = partial_path(target);
    let mut file =
        tokio::fs::File::create_new(&path).await.map_err(|cause| Error::io("write", path.display(), cause))?;
    // From here on the file is ours to remove.
    let partial = Partial(path);
    let bytes = download_to(files, source, &mut file, &partial.0.display().to_string()).await?;
    if let Some(before) = before {
        file.set_permissions(before.permissions()).await.map_err(failed)?;
    }
    std::fs::rename(&partial.0, target).map_err(failed)?;
    Ok(bytes)
}

/// A file that is still being written. Dropping it removes the file, if it has not been renamed: also when the copy ends
/// because another file failed.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It is gone after the rename.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A name beside the target that no other copy uses.
fn partial_path(target: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    target.with_file_name(format!(".icebox-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

async fn download_to(
    files: &Files<'_>,
    source: &str,
    writer: &mut (impl AsyncWrite + Unpin),
    name: &str,
) -> Result<u64, Error> {
    let mut answer = files.download(source).await?;
    let expected = answer.content_length();
    let mut bytes = 0;
    while let Some(chunk) =
        answer.chunk().await.map_err(|cause| Error::transport("read the file", source, cause.without_url()))?
    {
        writer.write_all(&chunk).await.map_err(|cause| Error::io("write", name, cause))?;
        bytes += chunk.len() as u64;
    }
    writer.flush().await.map_err(|cause| Error::io("write", name, cause))?;
    match expected {
        Some(expected) if expected != bytes => {
            Err(Error::protocol("read the file", format!("{source}: {bytes} of {expected} bytes arrived")))
        }
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_walked_with_links_to_files_but_not_to_directories() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path();
        std::fs::create_dir_all(path.join("sub/empty")).expect("made");
        std::fs::write(path.join("sub/run.sh"), "#!/bin/sh\n").expect("written");
        std::fs::set_permissions(path.join("sub/run.sh"), PermissionsExt::from_mode(0o755)).expect("set");
        std::os::unix::fs::symlink("sub/run.sh", path.join("link")).expect("linked");
        std::os::unix::fs::symlink("..", path.join("sub/up")).expect("linked");
        std::os::unix::fs::symlink("nowhere", path.join("dangling")).expect("linked");
        let tally = Tally::default();
        let (mut directories, mut found) = walk(path, "/t", &tally).expect("walked");
        directories.sort();
        found.sort_by(|a, b| a.target.cmp(&b.target));
        assert_eq!(directories, ["/t", "/t/sub", "/t/sub/empty"]);
        let targets: Vec<_> = found.iter().map(|file| (file.target.as_str(), file.executable)).collect();
        assert_eq!(targets, [("/t/link", true), ("/t/sub/run.sh", true)]);
        assert_eq!(tally.left_out.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn partial_files_stand_beside_their_target_and_never_collide() {
        let (a, b) = (partial_path(Path::new("/x/y")), partial_path(Path::new("/x/y")));
        assert_ne!(a, b);
        assert_eq!(a.parent(), Some(Path::new("/x")));
    }

    #[test]
    fn a_copy_with_gaps_is_a_failure() {
        let tally = Tally::default();
        tally.add(5);
        assert!(tally.finish(&Output::new(false)).is_ok());
        tally.leave_out("x", "a test");
        assert!(tally.finish(&Output::new(false)).is_err());
    }
}
