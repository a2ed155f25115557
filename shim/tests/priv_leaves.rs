//! Leaf cgroups that go from one run of a box to a later one. Needs root, busybox-static, e2fsprogs.
//!
//! Where the kernel cannot begin a new count of a peak of memory (cgroup v2 before Linux 6.12), each run has a new leaf, and
//! the tests see to that.

use std::os::unix::fs::PermissionsExt;

#[path = "common/boxed.rs"]
mod boxed;
mod common;

use boxed::TestBox;
use common::{Output, PATIENCE, collect, eventually};
use icebox_runtime::cgroup::{Backend, Controller, Hierarchy};
use icebox_shim::ErrorKind;
use icebox_shim::handle::{BoxHandle, ExecRequest, LateKills, RunUsage, Scope};

/// A run that has ended: the cgroup it was in, and what it has used.
struct Ended {
    number: u64,
    leaf: String,
    usage: RunUsage,
}

/// Prints its cgroup first.
fn telling(b: &TestBox, script: &str) -> ExecRequest {
    b.request(&["/bin/sh", "-c", &format!("grep 0:: /proc/self/cgroup; {script}")])
}

fn leaf_in(output: &Output) -> String {
    let text = output.text();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_else(|| panic!("{text}")).to_owned()
}

async fn ended(b: &TestBox, request: ExecRequest) -> Ended {
    let number = request.run;
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    Ended { number, leaf: leaf_in(&output), usage: b.handle.finish(number, output.exit.as_ref()).unwrap() }
}

async fn run(b: &TestBox, script: &str) -> Ended {
    ended(b, telling(b, script)).await
}

/// True if the kernel can begin a new count of the peak of a leaf.
fn peaks_restart(b: &TestBox) -> bool {
    let peak = format!("/sys/fs/cgroup/{}/runs/memory.peak", b.spec.cgroup);
    match Hierarchy::probe().unwrap().backend(Controller::Memory) {
        // Root can open it for writing in any case; the kernel says by the permissions that it can be written.
        Backend::V2 => std::fs::metadata(peak).is_ok_and(|file| file.permissions().mode() & 0o200 != 0),
        _ => true,
    }
}

/// Runs commands until one gets the leaf of the one before. The first ones read programs from disk, and the page cache
/// stays charged to their leaves. `None` where each run has a new leaf.
async fn settled(b: &TestBox) -> Option<Ended> {
    let mut last = run(b, "true").await;
    if !peaks_restart(b) {
        assert_ne!(run(b, "true").await.leaf, last.leaf, "its peak would be that of both runs");
        return None;
    }
    for _ in 0..50 {
        let next = run(b, "true").await;
        if next.leaf == last.leaf {
            return Some(next);
        }
        last = next;
    }
    panic!("no run got the leaf of the one before");
}

/// The directories of leaves that exist.
fn leaves(b: &TestBox) -> usize {
    let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let of_box =
        roots.iter().map(|root| format!("{root}/{}", b.spec.cgroup)).find(|path| common::exists(path)).unwrap();
    let in_folder = |path: String| std::fs::read_dir(path).into_iter().flatten().flatten();
    in_folder(of_box.clone())
        .chain(in_folder(format!("{of_box}/runs")))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("run-"))
        .count()
}

const BURN: &str = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";

#[tokio::test]
async fn priv_runs_in_one_leaf_have_their_own_bills() {
    let b = TestBox::start().await;
    let leaf = settled(&b).await.map(|run| run.leaf);
    let shared = |one: &Ended, other: &Ended| match &leaf {
        Some(leaf) => one.leaf == *leaf && other.leaf == *leaf,
        None => one.leaf != other.leaf,
    };
    let before = b.handle.usage().unwrap().cpu_usec;
    let long = run(&b, BURN).await;
    let short = run(&b, "true").await;
    assert!(shared(&long, &short), "{} {}", long.leaf, short.leaf);
    assert!(long.usage.cpu_ns > 20_000_000 && short.usage.cpu_ns > 0, "{:?} {:?}", long.usage, short.usage);
    assert!(short.usage.cpu_ns < long.usage.cpu_ns / 2, "{:?} {:?}", long.usage, short.usage);
    let whole = (b.handle.usage().unwrap().cpu_usec - before) * 1000;
    assert!(whole >= long.usage.cpu_ns + short.usage.cpu_ns, "{whole} ns");

    // On a busy machine the kernel may still have some of its memory charged when it has ended: then its leaf does not go on.
    let mut tries = 0;
    let (large, small) = loop {
        let large = run(&b, "head -c 20000000 /dev/zero | tail -c 20000000 >/dev/null").await;
        let small = run(&b, "true").await;
        tries += 1;
        if (large.leaf == small.leaf) == leaf.is_some() {
            break (large, small);
        }
        assert!(tries < 50, "{} {}", large.leaf, small.leaf);
    };
    assert!(large.usage.memory_peak_bytes > 15_000_000, "{:?}", large.usage);
    assert!(small.usage.memory_peak_bytes < 10_000_000, "{:?}", small.usage);
}

#[tokio::test]
async fn priv_a_leaf_with_anything_left_in_it_is_not_used_again() {
    let b = TestBox::start_with(|spec| spec.memory_bytes = 64 << 20).await;
    let Some(Ended { leaf, .. }) = settled(&b).await else { return };
    // Page cache.
    assert_eq!(run(&b, "head -c 8000000 /dev/zero >/workspace/home/file").await.leaf, leaf);
    let next = run(&b, "true").await;
    assert_ne!(next.leaf, leaf);
    assert!(next.usage.memory_peak_bytes < 8_000_000, "{:?}", next.usage);
    // A process in the background, which is found by the number of its run.
    let leaf = settled(&b).await.unwrap().leaf;
    let left = run(&b, "setsid sleep 1000 >/dev/null 2>&1 & exit 0").await;
    assert_eq!(left.leaf, leaf);
    assert_ne!(run(&b, "true").await.leaf, leaf);
    assert!(b.handle.has_processes(left.number).await.unwrap());
    b.handle.signal(left.number, libc::SIGKILL, Scope::Tree).await.unwrap();
    eventually("its process has ended", || b.handle.usage().unwrap().pids == 1).await;
    // A process killed for want of memory: told once.
    let leaf = settled(&b).await.unwrap().leaf;
    let hog = run(&b, "tail -c 200000000 /dev/zero; true").await;
    assert!(hog.leaf == leaf && hog.usage.oom_kills >= 1, "{:?}", hog.usage);
    let next = run(&b, "true").await;
    assert!(next.leaf != leaf && next.usage.oom_kills == 0, "{:?}", next.usage);
    assert_eq!(b.handle.usage().unwrap().oom_kills, hog.usage.oom_kills);
}

#[tokio::test]
async fn priv_a_kill_never_reaches_a_later_run() {
    let b = TestBox::start().await;
    let Some(Ended { leaf, .. }) = settled(&b).await else { return };
    let request = telling(&b, "sleep 1000");
    let number = request.run;
    let killed = b.handle.exec(request).await.unwrap();
    b.handle.signal(number, libc::SIGKILL, Scope::Tree).await.unwrap();
    let exit = collect(killed).await.exit;
    b.handle.finish(number, exit.as_ref()).unwrap();
    assert_ne!(run(&b, "true").await.leaf, leaf, "the leaf of a run that was killed");
    // The init kills a run whose time is up.
    let leaf = settled(&b).await.unwrap().leaf;
    let mut request = telling(&b, "sleep 1000");
    request.timeout_ms = Some(1);
    let number = request.run;
    let exit = collect(b.handle.exec(request).await.unwrap()).await.exit;
    assert!(exit.unwrap().timed_out);
    b.handle.finish(number, exit.as_ref()).unwrap();
    for _ in 0..3 {
        assert_ne!(run(&b, "true").await.leaf, leaf, "the leaf of a run whose time was up");
    }
    // The init kills what is left of a run that ends with its client, a while after its end.
    let leaf = settled(&b).await.unwrap().leaf;
    let mut request = telling(&b, "true");
    request.kill_on_disconnect = true;
    assert_eq!(ended(&b, request).await.leaf, leaf);
    assert_ne!(run(&b, "true").await.leaf, leaf, "the leaf of a run that ends with its client");
    // The number of an earlier run does not lead to the present one.
    let earlier = settled(&b).await.unwrap();
    let request = telling(&b, "read line; exit 7");
    let (number, mut request) = (request.run, request);
    request.stdin = true;
    let (mut events, mut input) = b.handle.exec(request).await.unwrap().split();
    let first = b.handle.signal(earlier.number, libc::SIGKILL, Scope::Tree).await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::NotFound);
    assert!(!b.handle.has_processes(earlier.number).await.unwrap());
    assert!(b.handle.has_processes(number).await.unwrap());
    input.write(b"\n").await.unwrap();
    let mut output = Output::default();
    while let Some(event) = events.next().await.unwrap() {
        output.take(event);
    }
    assert_eq!((output.code(), leaf_in(&output)), (7, earlier.leaf));
}

#[tokio::test]
async fn priv_a_run_in_a_leaf_of_an_earlier_one_survives_its_handle() {
    let b = TestBox::start().await;
    if settled(&b).await.is_none() {
        return;
    }
    let long = run(&b, BURN).await;
    let request = telling(&b, "sleep 0.3; exit 9");
    let number = request.run;
    drop(b.handle.exec(request).await.unwrap());
    // Another process that takes over has nothing but the kernel and the init.
    let again = BoxHandle::open(&b.spec.run_dir, &b.spec.cgroup, b.spec.uid_base).unwrap();
    assert_eq!(again.find_leaves().await.unwrap(), number);
    let earlier = again.signal(long.number, libc::SIGKILL, Scope::Tree).await.unwrap_err();
    assert_eq!(earlier.kind(), ErrorKind::NotFound);
    let output = collect(again.attach(number).await.unwrap()).await;
    assert_eq!((leaf_in(&output), output.code()), (long.leaf, 9));
    again.sweep_leaves(|run| run == number).unwrap();
    let usage = again.finish(number, None).unwrap();
    assert!(usage.cpu_ns > 0 && usage.cpu_ns < long.usage.cpu_ns / 2, "{usage:?} after {:?}", long.usage);
    assert_eq!(again.finish(number, None).unwrap_err().kind(), ErrorKind::NotFound);
    again.ack(number).await.unwrap();
}

#[tokio::test]
async fn priv_the_sweep_leaves_an_idle_leaf_and_sleep_removes_it() {
    let b = TestBox::start().await;
    let Some(Ended { leaf, .. }) = settled(&b).await else { return };
    b.handle.sweep_leaves(|_| false).unwrap();
    assert_eq!(run(&b, "true").await.leaf, leaf);
    b.handle.freeze(PATIENCE).await.unwrap();
    assert_eq!(leaves(&b), 0, "a cgroup of a run in a frozen box");
    b.handle.thaw(PATIENCE).await.unwrap();
    assert_ne!(run(&b, "true").await.leaf, leaf);
    assert!((1..=2).contains(&leaves(&b)), "{} leaves", leaves(&b));
}

#[tokio::test]
async fn priv_sudo_goes_to_the_leaf_whatever_its_name() {
    let b = TestBox::start().await;
    let Some(Ended { leaf, .. }) = settled(&b).await else { return };
    let request = b.request(&["/bin/sh", "-c", "sudo grep 0:: /proc/self/cgroup"]);
    let number = request.run;
    assert_ne!(leaf, boxed::leaf_path(number));
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    assert_eq!(leaf_in(&output), leaf, "{}", output.errors());
}

/// A process in the background that takes more memory than the box has once a line comes through the pipe.
struct Hog {
    /// Of the run that has left it.
    number: u64,
    pipe: String,
}

async fn leave_a_hog(b: &TestBox) -> Hog {
    let mut request = b.request(&[]);
    let number = request.run;
    let pipe = format!("/workspace/home/pipe-{number}");
    let hog =
        format!("mkfifo {pipe}; (read line <{pipe}; exec tail -c 200000000 /dev/zero) >/dev/null 2>&1 </dev/null &");
    request.argv = ["/bin/sh", "-c", &hog].map(str::to_owned).to_vec();
    let output = collect(b.handle.exec(request).await.unwrap()).await;
    assert_eq!((output.code(), b.handle.finish(number, output.exit.as_ref()).unwrap().oom_kills), (0, 0));
    Hog { number, pipe }
}

async fn release(b: &TestBox, hog: &Hog) {
    let before = b.handle.usage().unwrap().oom_kills;
    assert_eq!(run(b, &format!("echo >{}", hog.pipe)).await.usage.oom_kills, 0);
    eventually("it has been killed", || b.handle.usage().unwrap().oom_kills > before).await;
}

#[tokio::test]
async fn priv_kills_after_the_end_of_a_run_are_told_once() {
    let b = TestBox::start_with(|spec| spec.memory_bytes = 64 << 20).await;
    let hogs = [leave_a_hog(&b).await, leave_a_hog(&b).await, leave_a_hog(&b).await];
    let look = |handle: &BoxHandle| handle.late_kills(|_| false).unwrap();
    let runs = |told: &[LateKills]| told.iter().map(|kills| kills.run).collect::<Vec<u64>>();
    assert_eq!(look(&b.handle), []);
    release(&b, &hogs[0]).await;
    assert_eq!(b.handle.late_kills(|run| run == hogs[0].number).unwrap(), [], "the end of the run would tell of it");
    let told = look(&b.handle);
    assert!(runs(&told) == [hogs[0].number] && told[0].processes > 0, "{told:?}");
    assert_eq!(look(&b.handle), []);
    // Another process goes on from there.
    let again = BoxHandle::open(&b.spec.run_dir, &b.spec.cgroup, b.spec.uid_base).unwrap();
    again.find_leaves().await.unwrap();
    assert_eq!(look(&again), []);
    release(&b, &hogs[1]).await;
    assert_eq!(runs(&look(&again)), [hogs[1].number]);
    // The sweep is faster than the look.
    release(&b, &hogs[2]).await;
    eventually("its leaf is swept away", || {
        again.sweep_leaves(|_| false).unwrap();
        leaves(&b) == 0
    })
    .await;
    assert_eq!(runs(&look(&again)), [hogs[2].number]);
}
