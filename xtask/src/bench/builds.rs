//! A Boxfile of ten steps, made anew and taken from the cache, beside buildah.
//!
//! Both get the same Boxfile and the same context, and keep a layer for each step. buildah runs commands in a chroot, Icebox
//! in a box each. The time is that of the command line, from its start to its end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::context::{Context, failed, make_dir, shown};
use super::server::Server;
use super::stats::{Case, Report};
use crate::error::{Result, While};
use crate::run as program;

const ROUNDS: usize = 5;
/// Files of the context.
const FILES: usize = 200;
const FILE_BYTES: usize = 10_000;
/// A cached build takes at most this part of buildah's.
const CACHED_SHARE: f64 = 0.2;

const ICEBOX: &str = "icebox image build";
const BUILDAH: &str = "buildah build --layers";

const BOXFILE: &str = r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc /tmp /srv && echo 'web:x:33:33::/srv:/bin/sh' > /etc/passwd
WORKDIR /srv
COPY src src
RUN cat src/* > all
RUN wc -c < all > size
RUN rm -r src
COPY one /etc/one
RUN chown web all size
LABEL steps=10
"#;

/// `cargo xtask bench builds`.
pub(super) fn builds(context: &Context) -> Result<Vec<Report>> {
    let home = context.scratch.join("builds");
    let (source, images) = (home.join("context"), home.join("images"));
    make_dir(&source.join("src"))?;
    make_dir(&images)?;
    let write = |path: PathBuf, bytes: &[u8]| fs::write(&path, bytes).or_fail("write", shown(&path));
    write(source.join("Boxfile"), BOXFILE.as_bytes())?;
    write(source.join("one"), b"one\n")?;
    for number in 0..FILES {
        write(source.join("src").join(number.to_string()), &vec![number.to_le_bytes()[0]; FILE_BYTES])?;
    }
    let busybox = program::find_program("busybox").ok_or_else(|| failed("find", "busybox", "it is not installed"))?;
    fs::copy(&busybox, source.join("busybox")).or_fail("copy", shown(&busybox))?;
    // The images of builds are to go with the benchmark.
    for entry in fs::read_dir(&context.image_dir).or_fail("read", shown(&context.image_dir))? {
        let path = entry.or_fail("read", shown(&context.image_dir))?.path();
        if let (true, Some(name)) = (path.join("manifest.json").is_file(), path.file_name()) {
            symlink(&path, images.join(name)).or_fail("link", shown(&path))?;
        }
    }
    let own = Context { image_dir: images, ..context.clone() };
    let server = Server::start(&own, "builds")?;
    let icebox = context.binary("icebox")?;
    let ours = |more: &[&str]| {
        let mut command = Command::new(&icebox);
        command.arg("--run-dir").arg(server.run_dir()).args(["image", "build"]).args(more).arg(&source);
        time(command)
    };
    let theirs = |more: &[&str]| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(home.join("buildah")).arg("--runroot").arg(home.join("run"));
        command.args([
            "--storage-driver",
            "overlay",
            "build",
            "--layers",
            "--isolation",
            "chroot",
            "--format",
            "docker",
        ]);
        command.args(more).arg("-f").arg(source.join("Boxfile")).arg(&source);
        time(command)
    };
    let cases = || [Case::new(ICEBOX, ""), Case::new(BUILDAH, "")];
    let (mut cold, mut cached) = (cases(), cases());
    for _ in 0..context.rounds.unwrap_or(ROUNDS) {
        cold[0].add(ours(&["--no-cache"])?);
        cold[1].add(theirs(&["--no-cache"])?);
        cached[0].add(ours(&[])?);
        cached[1].add(theirs(&[])?);
    }
    let share = cached[0].median() / cached[1].median();
    Ok(vec![
        Report::new("a Boxfile of ten steps, made anew", "ms", cold.into()).ratio_to(BUILDAH),
        Report::new("the same from the cache", "ms", cached.into()).ratio_to(BUILDAH).mark(
            "icebox / buildah, cached",
            share,
            CACHED_SHARE,
        ),
    ])
}

fn time(mut command: Command) -> Result<Duration> {
    let began = Instant::now();
    program::quiet(&mut command)?;
    Ok(began.elapsed())
}
