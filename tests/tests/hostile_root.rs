//! Hostile root file systems: each name that the runtime touches may be a link or another type of file, and nothing
//! outside is touched.
//!
//! Most escapes of container runtimes were one mistake: a privileged process acted on a path inside a tree that the
//! attacker made. So every such path is tried with every kind of file that could stand there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use icebox_tests::daemon::{scratch_dir, unique};
use icebox_tests::oci::Bundle;
use icebox_tests::{PATIENCE, machine};
use serde_json::json;

/// What the runtime mounts on, makes, or enters.
const PATHS: [&str; 14] = [
    "proc",
    "sys",
    "dev",
    "dev/null",
    "dev/pts",
    "dev/ptmx",
    "dev/shm",
    "dev/mqueue",
    "dev/console",
    "etc",
    "work",
    "vol/deep",
    "bin/true",
    "sys/fs",
];
const KINDS: [&str; 9] = ["absolute", "upwards", "looping", "magic", "dangling", "fifo", "file", "closed", "hardlink"];

/// A directory of the host that must stay as it is.
struct Canary {
    dir: PathBuf,
}

impl Canary {
    fn new() -> Self {
        let dir = scratch_dir().join(unique("icebox-canary"));
        for sub in ["null", "pts", "shm", "fs", "deep"] {
            fs::create_dir_all(dir.join(sub)).expect("canary");
        }
        fs::write(dir.join("file"), "untouched").expect("canary");
        fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640)).expect("canary");
        Self { dir }
    }

    /// Names, kinds, owners, modes, sizes and times of everything in it.
    fn picture(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for path in machine::tree(&self.dir) {
            let data = fs::symlink_metadata(self.dir.join(&path)).expect("canary");
            let times = (data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec());
            lines.push(format!("{path:?} {:o} {} {} {} {times:?}", data.mode(), data.uid(), data.gid(), data.size()));
        }
        lines.push(fs::read_to_string(self.dir.join("file")).expect("canary"));
        lines
    }

    fn mounts(&self) -> usize {
        let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        text.lines().filter(|l| l.contains(&*self.dir.to_string_lossy())).count()
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Puts something hostile in the place of `path`.
fn plant(root: &Path, path: &str, kind: &str, canary: &Path) {
    let at = root.join(path);
    fs::create_dir_all(at.parent().expect("parent")).expect("parent");
    let _ = fs::remove_dir_all(&at);
    let _ = fs::remove_file(&at);
    let up = format!("{}{}", "../".repeat(40), canary.display());
    match kind {
        "absolute" => symlink(canary, &at).expect("plant"),
        "upwards" => symlink(up, &at).expect("plant"),
        "looping" => symlink(at.file_name().expect("name"), &at).expect("plant"),
        "magic" => symlink("/proc/self/fd/5", &at).expect("plant"),
        "dangling" => symlink("/no/such/place", &at).expect("plant"),
        "fifo" => nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRWXU).expect("plant"),
        "file" => fs::write(&at, "").expect("plant"),
        "closed" => {
            fs::create_dir(&at).expect("plant");
            fs::set_permissions(&at, fs::Permissions::from_mode(0o000)).expect("plant");
        }
        "hardlink" => fs::hard_link(canary.join("file"), &at).expect("plant"),
        other => panic!("unknown kind {other}"),
    }
}

#[test]
fn no_root_file_system_makes_the_runtime_touch_the_host() {
    let canary = Canary::new();
    let mut started = 0;
    for path in PATHS {
        // Each kind takes the place of the one before it, so one root serves them all.
        let bundle = Bundle::new(&["/bin/true"]);
        bundle.edit(|spec| {
            spec["root"]["readonly"] = json!(false);
            spec["process"]["cwd"] = json!("/work");
            let volume =
                json!({ "destination": "/vol/deep", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"] });
            spec["mounts"].as_array_mut().expect("mounts").push(volume);
        });
        fs::create_dir_all(bundle.dir().join("rootfs/work")).expect("work");
        for kind in KINDS {
            plant(&bundle.dir().join("rootfs"), path, kind, &canary.dir);
            let before = canary.picture();
            let begin = Instant::now();
            let ran = bundle.icerun(&["run", "hostile"]);
            let name = format!("{path} as {kind}: exit {} {}", ran.code, ran.stderr.trim());
            // Nothing here waits for anything; only what hangs takes as long, even where the processor is software.
            assert!(begin.elapsed() < PATIENCE, "{name}: took {:?}", begin.elapsed());
            assert!(!ran.stderr.contains("panicked"), "{name}");
            assert!(ran.code >= 0 && (ran.code == 0) == ran.stderr.is_empty(), "neither done nor refused: {name}");
            started += usize::from(ran.code == 0);
            assert_eq!(canary.picture(), before, "{name}: the host was touched");
            assert_eq!(canary.mounts(), 0, "{name}: something is mounted on the host");
            println!("{name}");
        }
    }
    assert!(started > 20, "only {started} of these roots could be used: is the runtime refusing everything?");
}

#[test]
fn a_working_directory_cannot_lead_out() {
    for cwd in [
        "/proc/self/fd/5",
        "/proc/self/fd/7",
        "/proc/self/fd/9",
        "/proc/1/root",
        "/proc/self/cwd/..",
        "../../..",
        "relative",
    ] {
        let bundle = Bundle::new(&["sh", "-c", "pwd -P; ls -di ."]);
        bundle.edit(|spec| spec["process"]["cwd"] = json!(cwd));
        let ran = bundle.icerun(&["run", "cwd"]);
        assert!(!ran.stdout.contains("unreachable") && !ran.stdout.contains("icebox-oci"), "{cwd}: {ran:?}");
        if ran.code != 0 {
            ran.failed();
        }
    }
}

#[test]
fn nothing_of_the_runtime_is_open_in_the_container() {
    let bundle = Bundle::new(&["sh", "-c", "ls -l /proc/self/fd; readlink /proc/1/exe; readlink /proc/1/cwd"]);
    let out = bundle.icerun(&["run", "fds"]).ok();
    let open = out.lines().filter(|l| l.contains(" -> ")).count();
    assert!(open <= 4, "{out}");
    for needle in ["icebox-oci", "icerun", "memfd"] {
        assert!(!out.contains(needle), "the container sees {needle}: {out}");
    }
}

#[test]
fn the_program_cannot_be_a_descriptor_of_the_runtime() {
    let binary = icebox_tests::daemon::binary("icerun");
    let before = fs::read(&binary).expect("icerun");
    let mut programs: Vec<String> = (3..20).map(|fd| format!("/proc/self/fd/{fd}")).collect();
    programs.push("/proc/self/exe".to_owned());
    for program in programs {
        let bundle = Bundle::new(&[&program, "--version"]);
        let ran = bundle.icerun_detached(&["run", "magic"]);
        // Nothing that the runtime holds open may run; its own file may, as any program of the host's that is shown.
        assert!(!ran.stdout.contains("icerun") || program.ends_with("exe"), "{program}: {ran:?}");
        if ran.code != 0 {
            ran.failed();
        }
    }
    // The same by the interpreter line of a script, which the kernel opens itself (CVE-2019-5736).
    let bundle = Bundle::new(&["/script"]);
    let script = bundle.dir().join("rootfs/script");
    fs::write(&script, "#!/proc/self/exe\n").expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("script");
    let _ = bundle.icerun_detached(&["run", "script"]);
    assert!(fs::read(&binary).expect("icerun") == before, "the runtime's own file was changed");
}
