//! `run` of /bin/true, to completion: the whole life of a container, by every runtime that is installed.

use std::path::Path;
use std::process::{Command, Stdio};

use super::bundle;
use super::context::{Context, WARM_UP_ROUNDS};
use super::stats::{Case, Report};
use super::view::{Kind, View, hybrid_points};
use crate::error::{Result, While};
use crate::run;

const ROUNDS: usize = 40;
/// What `icerun run` shall take at most, as a share of crun's time.
const RUN_RATIO_MAX: f64 = 0.6;

/// Something that can run /bin/true.
struct Candidate {
    case: Case,
    view: View,
    argv: Vec<String>,
}

/// With the namespaces of `runc spec` and seccomp.
pub(super) fn run(context: &Context) -> Result<Vec<Report>> {
    measure(context, false, "run /bin/true to completion: pid, net, ipc, uts, mount namespaces and seccomp")
}

/// The same with a user namespace.
pub(super) fn run_userns(context: &Context) -> Result<Vec<Report>> {
    measure(context, true, "run /bin/true to completion: as run, with a user namespace")
}

fn measure(context: &Context, userns: bool, title: &str) -> Result<Vec<Report>> {
    let scratch = context.scratch.join(if userns { "run-userns" } else { "run" });
    let root = bundle::root(&scratch)?;
    let mut candidates = Vec::new();
    for (name, program, kind) in runtimes(context)? {
        let dir = scratch.join(name);
        bundle::bundle(&dir, &root, &["/bin/true"], userns)?;
        let id = format!("bench-{name}");
        let state = scratch.join(format!("{name}-state"));
        let argv = [program.as_str(), "--root", &path(&state), "run", "--bundle", &path(&dir), &id];
        candidates.push(Candidate { case: Case::new(name, ""), view: View::new(kind)?, argv: owned(&argv) });
    }
    let mut notes = Vec::new();
    match bubblewrap(&root, userns)? {
        Some(candidate) => candidates.push(candidate),
        None => notes.push("bwrap is not installed"),
    }
    let docker = if userns { None } else { Docker::prepare(&root)? };
    match &docker {
        Some(docker) => candidates.push(docker.candidate()?),
        None if !userns => notes.push("docker does not run here"),
        None => {}
    }
    interleave(&mut candidates, context.rounds.unwrap_or(ROUNDS))?;
    let median = |name: &str| candidates.iter().find(|c| c.case.name == name).map_or(f64::NAN, |c| c.case.median());
    let ratio = median("icerun") / median("crun");
    let mut report = Report::new(title, "ms", candidates.into_iter().map(|c| c.case).collect()).ratio_to("crun");
    report = report.mark("icerun as a share of crun", ratio, RUN_RATIO_MAX);
    for note in notes.into_iter().chain(view_note()) {
        report = report.note(note);
    }
    Ok(vec![report])
}

/// Runs each candidate once per round, starting with another one each time.
fn interleave(candidates: &mut [Candidate], rounds: usize) -> Result<()> {
    for round in 0..rounds + WARM_UP_ROUNDS {
        let count = candidates.len();
        for step in 0..count {
            let candidate = &mut candidates[(round + step) % count];
            let wall = candidate.view.must(&candidate.argv)?;
            if round >= WARM_UP_ROUNDS {
                candidate.case.add(wall);
            }
        }
    }
    Ok(())
}

/// The OCI runtimes: name, program, and the view that each works in.
pub(super) fn runtimes(context: &Context) -> Result<Vec<(&'static str, String, Kind)>> {
    let icerun = context.binary("icerun")?;
    let mut found = vec![("icerun", path(&icerun), Kind::Machine)];
    for (name, kind) in [("crun", Kind::WithoutV2), ("runc", Kind::Machine)] {
        if installed(name) {
            found.push((name, name.to_owned(), kind));
        } else {
            eprintln!("{name} is not installed: apt-get install {name}");
        }
    }
    Ok(found)
}

/// What the reader must know about the views, if they differ.
pub(super) fn view_note() -> Option<&'static str> {
    (!hybrid_points().is_empty()).then_some(
        "cgroups are hybrid here; crun refuses that and runs in a mount namespace without cgroup2; \
         icerun and runc run in the machine's own view",
    )
}

fn bubblewrap(root: &Path, userns: bool) -> Result<Option<Candidate>> {
    if !installed("bwrap") {
        return Ok(None);
    }
    let root = path(root);
    let mut argv = owned(&["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]);
    if userns {
        argv.push("--unshare-user".to_owned());
    }
    let tail = [
        "--ro-bind",
        &root,
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "/bin/true",
    ];
    argv.extend(owned(&tail));
    let case = Case::new("bwrap", "no cgroup, no seccomp, no masked paths");
    Ok(Some(Candidate { case, view: View::new(Kind::Machine)?, argv }))
}

/// Docker, if its daemon runs. Removes its image on drop.
struct Docker;

/// Name of the imported image.
const DOCKER_IMAGE: &str = "icebox-bench:busybox";

impl Docker {
    fn prepare(root: &Path) -> Result<Option<Self>> {
        let quiet = |args: &[&str]| {
            let command = Command::new("docker").args(args).stdin(Stdio::null()).output();
            command.is_ok_and(|o| o.status.success())
        };
        if !installed("docker") || !quiet(&["info", "--format", "{{.ServerVersion}}"]) {
            return Ok(None);
        }
        let tar = Command::new("tar").args(["-C", &path(root), "-c", "."]).stdout(Stdio::piped()).spawn();
        let mut tar = tar.or_fail("start", "tar")?;
        let input = tar.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let import = Command::new("docker").args(["import", "-", DOCKER_IMAGE]).stdin(input).output();
        let import = import.or_fail("start", "docker")?;
        let _ = tar.wait();
        Ok(import.status.success().then_some(Self))
    }

    fn candidate(&self) -> Result<Candidate> {
        let argv = ["docker", "run", "--rm", "--network", "none", "--read-only", DOCKER_IMAGE, "/bin/true"];
        let case = Case::new("docker", "through its daemon");
        Ok(Candidate { case, view: View::new(Kind::Machine)?, argv: owned(&argv) })
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["image", "rm", DOCKER_IMAGE]).output();
    }
}

fn installed(program: &str) -> bool {
    run::find_program(program).is_some()
}

pub(super) fn path(path: &Path) -> String {
    path.display().to_string()
}

pub(super) fn owned(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|&a| a.to_owned()).collect()
}
