//! The disks of one run: what is brought along, the base images of boxes, and an empty one for data.
//!
//! They are found by their labels. Only the data disk is changed; what a guest writes to the others is forgotten. The
//! data disk is kept on request only.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::image::filesystem;
use crate::error::{Cause, Error, Result, While};
use crate::places::Places;
use crate::{run, say};

/// The size of a data disk, where nothing else is wished.
pub(crate) const DATA_BYTES: u64 = 30 << 30;
/// Room for what a guest writes beside what was brought.
const SPARE_BYTES: u64 = 256 << 20;
/// An ext4 file system is larger than its files: so many percent of their size.
const OVERHEAD_PERCENT: u64 = 130;

/// Guests of this process so far.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// What a run brings along.
#[derive(Debug)]
pub(super) struct Bringing<'a> {
    pub(super) command: &'a [String],
    pub(super) paths: &'a [PathBuf],
    /// The directory of base images.
    pub(super) images: Option<PathBuf>,
    pub(super) interactive: bool,
    pub(super) data: Wanted<'a>,
}

/// Which data disk a run has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// An empty one, forgotten afterwards.
    Fresh,
    /// The one of the last run that kept it.
    Kept,
    /// This file, made where it is missing, and kept.
    File(&'a Path),
    /// What a server of ours offers on this socket.
    Served(&'a Path),
}

/// Where the data disk is.
#[derive(Debug)]
pub(super) enum Data {
    /// A file.
    File(PathBuf),
    /// The socket of a server.
    Served(PathBuf),
}

/// The disks, and the directory of this run, which goes with them.
#[derive(Debug)]
pub(super) struct Disks {
    pub(super) dir: PathBuf,
    sockets: ShortDir,
    pub(super) carry: PathBuf,
    pub(super) images: Option<PathBuf>,
    pub(super) data: Data,
}

impl Disks {
    /// The socket of one of the guest's ports.
    pub(super) fn socket(&self, port: &str) -> PathBuf {
        self.sockets.join(port)
    }

    /// What the guest's console said.
    pub(super) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// The files that the command left.
    pub(super) fn archive(&self) -> PathBuf {
        self.dir.join("files.tar")
    }
}

/// A directory by a name that is short wherever it is: the name of a socket may have 107 bytes (unix(7)).
#[derive(Debug)]
pub(crate) struct ShortDir(File);

impl ShortDir {
    pub(crate) fn open(dir: &Path) -> Result<ShortDir> {
        File::open(dir).map(ShortDir).or_fail("open", dir.display().to_string())
    }

    /// The path of a file in it, for this process and its children, as long as this exists.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}/{name}", std::process::id(), self.0.as_raw_fd()))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        // It is named after this process; what can't be removed now is removed by a later run.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub(super) fn make(places: &Places, bringing: &Bringing<'_>) -> Result<Disks> {
    let vm = places.target.join("vm");
    remove_left(&vm);
    let dir = vm.join(format!("run-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&dir).or_fail("make", dir.display().to_string())?;
    let data = match bringing.data {
        Wanted::Fresh => Data::File(dir.join("data.img")),
        Wanted::Kept => Data::File(vm.join("data.img")),
        Wanted::File(path) => Data::File(path.to_owned()),
        Wanted::Served(socket) => Data::Served(socket.to_owned()),
    };
    let sockets = ShortDir::open(&dir)?;
    let mut disks = Disks { carry: dir.join("carry.img"), images: None, data, dir, sockets };
    if let Data::File(path) = &disks.data
        && !path.exists()
    {
        data_disk(path, DATA_BYTES)?;
    }
    let tree = disks.dir.join("carry");
    carry(&tree, bringing)?;
    filesystem(&disks.carry, room_for(&tree)?, "carry", Some(&tree))?;
    fs::remove_dir_all(&tree).or_fail("remove", tree.display().to_string())?;
    if let Some(from) = &bringing.images {
        disks.images = Some(images(&vm, from)?);
    }
    Ok(disks)
}

/// Makes an empty data disk of this size.
pub(crate) fn data_disk(path: &Path, bytes: u64) -> Result<()> {
    filesystem(path, bytes, "data", None)
}

/// Removes the directories of processes that were killed.
fn remove_left(vm: &Path) {
    for entry in fs::read_dir(vm).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("run-")?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // It only takes space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Lays out what job.sh reads.
fn carry(tree: &Path, bringing: &Bringing<'_>) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = tree.join(name);
        fs::write(&path, text).or_fail("write", path.display().to_string())
    };
    fs::create_dir_all(tree).or_fail("make", tree.display().to_string())?;
    write("command", &script(bringing.command))?;
    if bringing.interactive {
        // Rows and columns; a terminal that doesn't know them has the size that the guest supposes.
        let size = Command::new("stty").arg("size").stdin(Stdio::inherit()).output();
        let size = size.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let name = std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
        write("interactive", &format!("{name} {}\n", size.trim()))?;
    }
    if let Some(images) = &bringing.images {
        write("images", &format!("{}\n", images.display()))?;
    }
    let mut list = String::new();
    for path in bringing.paths {
        let path = fs::canonicalize(path).or_fail("bring", path.display().to_string())?;
        let text = path.to_str().filter(|text| !text.contains('\n')).ok_or_else(|| {
            Error::new("bring", path.display().to_string(), Cause::Unexpected("its name is no line of text".into()))
        })?;
        // One slash less, or join would forget the tree.
        let to = tree.join("tree").join(text.trim_start_matches('/'));
        let parent = to.parent().unwrap_or(tree);
        fs::create_dir_all(parent).or_fail("make", parent.display().to_string())?;
        // Debug information is most of a test binary.
        let stripped = path.is_file()
            && run::quiet(Command::new("strip").arg("--strip-debug").arg("-o").arg(&to).arg(&path)).is_ok();
        if !stripped {
            run::quiet(Command::new("cp").arg("-a").arg(&path).arg(&to))?;
        }
        let _ = writeln!(list, "{text}");
    }
    write("paths", &list)
}

/// The command as a script: one argument is a line of shell, more are one program with its arguments.
fn script(command: &[String]) -> String {
    match command {
        [line] => format!("{line}\n"),
        words => {
            let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
            format!("exec {}\n", quoted.join(" "))
        }
    }
}

/// The disk of base images, kept while the directory holds the same ones.
fn images(vm: &Path, from: &Path) -> Result<PathBuf> {
    let mut key = Vec::new();
    for entry in fs::read_dir(from).or_fail("read", from.display().to_string())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // iceboxd makes the layer with the tools by itself, from its own binaries.
        if entry.path().is_dir() && !name.starts_with("tools-") && !name.starts_with('.') {
            let made = entry.metadata().or_fail("read", entry.path().display().to_string())?.mtime();
            key.push(format!("{name} {made}"));
        }
    }
    key.sort_unstable();
    let key = key.join("\n");
    let (disk, stamp) = (vm.join("images.img"), vm.join("images.key"));
    if disk.exists() && run::read_if_there(&stamp)?.is_some_and(|old| old == key) {
        return Ok(disk);
    }
    let wait = say::wait("copying the base image to a disk");
    let temp = vm.join(format!("images.{}.new", std::process::id()));
    filesystem(&temp, room_for(from)?, "images", Some(from))?;
    fs::rename(&temp, &disk).or_fail("write", disk.display().to_string())?;
    fs::write(&stamp, key).or_fail("write", stamp.display().to_string())?;
    wait.done("the base image is on a disk");
    Ok(disk)
}

fn room_for(tree: &Path) -> Result<u64> {
    let text = run::quiet(Command::new("du").args(["-s", "-B1", "--apparent-size"]).arg(tree))?;
    let used: u64 = text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
    Ok((used * OVERHEAD_PERCENT / 100 + SPARE_BYTES).next_multiple_of(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_a_line_and_more_are_a_program() {
        assert_eq!(script(&["echo a | wc".to_owned()]), "echo a | wc\n");
        assert_eq!(script(&["echo".to_owned(), "it's".to_owned()]), "exec 'echo' 'it'\\''s'\n");
    }
}
