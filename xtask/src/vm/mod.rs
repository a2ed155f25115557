//! `cargo xtask vm`: a guest with pure cgroup v2 and Debian's kernel, for what the machine at hand can't show.
//!
//! A guest runs one command and ends. Its root disk is cached and never changed: every run starts from the same state.
//! What is brought along is seen at the same path as on the host, so that test binaries find what they were built
//! with. There is no network.

mod accelerator;
mod disks;
mod flavour;
mod guest;
mod image;
mod kvm;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Args;

use self::disks::Bringing;
pub(crate) use self::disks::{DATA_BYTES, ShortDir, Wanted, data_disk};
pub(crate) use self::flavour::Flavour;
use self::guest::Guest;
pub(crate) use self::guest::{Cut, End, Patience, Running, Terminal};
use crate::error::Result;
use crate::places::{self, Places};
use crate::{deps, run, say};

/// A forgotten shell ends some day.
const INTERACTIVE_DEADLINE: Duration = Duration::from_secs(12 * 3600);

static PREPARING: Mutex<()> = Mutex::new(());

/// Options of `vm`.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// What is PID 1
    #[arg(long, value_enum, default_value = "minimal")]
    flavour: Flavour,
    /// Keep the disk at /data for the next run with --keep
    #[arg(long)]
    keep: bool,
    /// Show this file or directory at the same path in the guest (repeatable); the built binaries and the base image
    /// are always there
    #[arg(long, value_name = "PATH")]
    bring: Vec<PathBuf>,
    /// End the guest after so many seconds
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    deadline: u64,
    /// The command; without one, a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How many processors a guest has that runs alone. Software plays each by a thread of the host; where there are more of them
/// than the host has processors, those of one guest wait for each other in loops.
pub(crate) const PROCESSORS: u32 = 2;

/// What a guest is to do.
pub(crate) struct Job<'a> {
    /// A line of shell, or a program and its arguments.
    pub(crate) command: &'a [String],
    /// What is to be seen at the same path as here.
    pub(crate) bring: &'a [PathBuf],
    pub(crate) flavour: Flavour,
    /// How many processors the guest has.
    pub(crate) processors: u32,
    /// Keep the data disk, or use the kept one.
    pub(crate) keep: bool,
    pub(crate) patience: Patience,
    /// The directory for the files it leaves.
    pub(crate) out: &'a Path,
    pub(crate) terminal: Terminal,
}

/// Runs the command in a guest, and ends this process with its exit status.
pub(crate) fn vm(args: &VmArgs) -> Result<()> {
    let places = Places::find()?;
    let shell = ["exec bash -l".to_owned()];
    let command = if args.command.is_empty() { &shell } else { args.command.as_slice() };
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let bin = places.bin();
    let mut bring = args.bring.clone();
    bring.extend(bin.is_dir().then_some(bin));
    let out = places.target.join("vm/out");
    let end = run_job(
        &places,
        Job {
            command,
            bring: &bring,
            flavour: args.flavour,
            processors: PROCESSORS,
            keep: args.keep,
            out: &out,
            patience: Patience::Whole(if interactive {
                INTERACTIVE_DEADLINE
            } else {
                Duration::from_secs(args.deadline)
            }),
            terminal: if interactive { Terminal::Own } else { Terminal::Output(Box::new(std::io::stdout())) },
        },
    )?;
    if end.files {
        say::fact(&format!("what it left in /out is in {}", out.display()));
    }
    std::process::exit(end.status)
}

/// Boots a guest for one job, and waits for its end.
pub(crate) fn run_job(places: &Places, job: Job<'_>) -> Result<End> {
    let boot = Boot {
        command: job.command,
        bring: job.bring,
        flavour: job.flavour,
        processors: job.processors,
        data: if job.keep { Wanted::Kept } else { Wanted::Fresh },
        terminal: job.terminal,
    };
    start(places, boot)?.wait(job.patience, job.out)
}

/// What a guest is started with.
pub(crate) struct Boot<'a> {
    /// A line of shell, or a program and its arguments.
    pub(crate) command: &'a [String],
    /// What is to be seen at the same path as here.
    pub(crate) bring: &'a [PathBuf],
    pub(crate) flavour: Flavour,
    /// How many processors it has.
    pub(crate) processors: u32,
    /// Its data disk.
    pub(crate) data: Wanted<'a>,
    pub(crate) terminal: Terminal,
}

/// Boots a guest and leaves it to its owner. The base images of boxes are always there. The guest ends with the thread
/// that calls this.
pub(crate) fn start(places: &Places, boot: Boot<'_>) -> Result<Running> {
    run::require_root("vm")?;
    // What is kept between runs is made by one at a time.
    let one = PREPARING.lock().unwrap_or_else(PoisonError::into_inner);
    deps::ensure(&[deps::VM])?;
    let image = image::ensure(places)?;
    let images = places::image_dir();
    let bringing = Bringing {
        command: boot.command,
        paths: boot.bring,
        images: images.is_dir().then_some(images),
        interactive: matches!(boot.terminal, Terminal::Own),
        data: boot.data,
    };
    let disks = disks::make(places, &bringing)?;
    let accelerator = kvm::choose(&places.target.join("vm"), &disks.dir, &image)?;
    drop(one);
    Guest { image: &image, disks, flavour: boot.flavour, processors: boot.processors, accelerator }.start(boot.terminal)
}
