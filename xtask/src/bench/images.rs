//! Images: an archive of the base image becomes layers on disk, beside `podman load` and `umoci unpack`.
//!
//! All of it is in a mount namespace of the measuring thread: podman mounts its store.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use icebox_rootfs::images::{ArchiveKind, Images};
use icebox_rootfs::oci::Reference;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::context::{Context, failed, make_dir, shown};
use super::stats::{Case, Report};
use crate::error::{Result, While};
use crate::run as program;

const ROUNDS: usize = 5;
const OURS: &str = "icebox image import";
const PODMAN: &str = "podman load";
const UMOCI: &str = "umoci unpack";

/// What a candidate makes files of, and where.
struct Paths<'a> {
    /// The image as a file.
    archive: &'a Path,
    /// The same as a directory.
    layout: &'a Path,
    /// To be made.
    to: &'a Path,
    /// For what is needed meanwhile.
    run: &'a Path,
}

type Candidate = fn(&Paths<'_>) -> Result<()>;

/// `cargo xtask bench images`.
pub(super) fn images(context: &Context) -> Result<Vec<Report>> {
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            own_mounts()?;
            measure(context)
        });
        measuring.join().map_err(|_| failed("measure", "images", "the thread panicked"))?
    })
}

fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
        .map_err(io::Error::from)
        .or_fail("make", "a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(io::Error::from).or_fail("make private", "/")
}

fn measure(context: &Context) -> Result<Vec<Report>> {
    // podman takes no longer path for what it keeps while it runs.
    let run = PathBuf::from(format!("/tmp/icebox-bench-{}", std::process::id()));
    let dir = context.scratch.join("images");
    make_dir(&dir)?;
    let (archive, layout) = (dir.join("image.tar"), dir.join("layout"));
    let bytes = make_archive(context, &dir, &archive)?;
    make_dir(&layout)?;
    program::quiet(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&layout))?;
    #[expect(clippy::cast_precision_loss, reason = "it is small")]
    let mib = bytes as f64 / f64::from(1 << 20);
    let notes = ["on disk when it ends", "overlay storage; not flushed", "one tree; not flushed"];
    let mut cases: Vec<Case> =
        [OURS, PODMAN, UMOCI].into_iter().zip(notes).map(|(name, note)| Case::new(name, note)).collect();
    let candidates: [Candidate; 3] = [ours, podman, umoci];
    // The first round fills the caches.
    for round in 0..=context.rounds.unwrap_or(ROUNDS) {
        for (case, candidate) in cases.iter_mut().zip(candidates) {
            let to = dir.join("to");
            // The writes of one candidate are not in the time of the next.
            nix::unistd::sync();
            let began = Instant::now();
            candidate(&Paths { archive: &archive, layout: &layout, to: &to, run: &run })?;
            let seconds = began.elapsed().as_secs_f64();
            // Only podman has something there.
            let _ = umount2(&to.join("root/overlay"), MntFlags::MNT_DETACH);
            for dir in [&to, &run] {
                if dir.exists() {
                    fs::remove_dir_all(dir).or_fail("remove", shown(dir))?;
                }
            }
            if round > 0 {
                case.add_value(mib / seconds);
            }
        }
    }
    let [ours, podman, umoci] = [0, 1, 2].map(|number| cases[number].median());
    let title = format!("an image of {mib:.0} MiB (one gzip layer), from its archive to files");
    Ok(vec![
        Report::new(title, "MiB/s", cases)
            .ratio_to(OURS)
            .mark("podman load / icebox image import", podman / ours, 1.0)
            .mark("umoci unpack / icebox image import", umoci / ours, 1.0),
    ])
}

/// The base image as an OCI layout in a tar. Returns the bytes of its files.
fn make_archive(context: &Context, dir: &Path, archive: &Path) -> Result<u64> {
    let of_store =
        |doing, error: icebox_rootfs::Error| failed(doing, "the base image", format!("{error}: {}", error.cause()));
    let base = icebox_rootfs::image::find(&context.image_dir).map_err(|error| of_store("find", error))?;
    let base = base.ok_or_else(|| failed("find", shown(&context.image_dir), "there is no base image in it"))?;
    let store = Images::open(&dir.join("source")).map_err(|error| of_store("store", error))?;
    let name: Reference = "localhost/bench:1".parse().map_err(|error| of_store("name", error))?;
    let image = store.import_dir(&base.rootfs, Some(&name), None).map_err(|error| of_store("import", error))?;
    let image = image.first().ok_or_else(|| failed("import", "the base image", "it is empty"))?;
    let output = BufWriter::new(File::create(archive).or_fail("make", shown(archive))?);
    store.export(image, Some(&name), output).map_err(|error| of_store("export", error))?;
    Ok(image.size_bytes)
}

fn ours(&Paths { archive, to, .. }: &Paths<'_>) -> Result<()> {
    let store = Images::open(to).map_err(io::Error::other).or_fail("open", shown(to))?;
    let file = File::open(archive).or_fail("open", shown(archive))?;
    let imported = store.import_archive(file, "bench", ArchiveKind::Images, None, None);
    imported.map(drop).map_err(io::Error::other).or_fail("import", shown(archive))
}

fn podman(&Paths { archive, to, run, .. }: &Paths<'_>) -> Result<()> {
    let mut command = Command::new("podman");
    command.arg("--root").arg(to.join("root")).arg("--runroot").arg(run);
    command.args(["--storage-driver", "overlay", "load", "-q", "-i"]).arg(archive);
    program::quiet(&mut command).map(drop)
}

fn umoci(&Paths { layout, to, .. }: &Paths<'_>) -> Result<()> {
    let image = format!("{}:1", layout.display());
    program::quiet(Command::new("umoci").args(["unpack", "--image", &image]).arg(to)).map(drop)
}
