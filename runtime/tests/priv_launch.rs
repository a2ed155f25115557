//! The executor against the kernel: an overlay on a volume of its own, in a user namespace, started in a leaf cgroup.
//! Needs root, loop devices, `mkfs.ext4`, `losetup` and a static busybox.

use std::{
    cell::Cell,
    fs::{self, File},
    io::Read as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use icebox_runtime::{
    Kind, Step,
    cgroup::{CgroupPath, Limits, Manager, Unenforced},
    launch::{Child, Inherit, launch},
    plan::{
        CapabilitySets, CgroupPlan, Dev, DeviceDirectory, Executable, IdMap, IdMaps, Mount, MountAttributes,
        MountSource, Namespace, Namespaces, Overlay, Plan, Process, Rlimit, Root, RootSource, default_dev_links,
        default_device_nodes,
    },
    seccomp::{compile, profile},
};

const UID_BASE: u32 = 3_000_000_000;
/// A passing test never reaches it; long, since the machine may be emulated.
const DEADLINE: Duration = Duration::from_secs(60);

/// A directory with a busybox root, a volume image on a loop device, and the mount point.
struct Bench {
    dir: tempfile::TempDir,
    device: PathBuf,
    detached: Cell<bool>,
}

impl Bench {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let bin = dir.path().join("base/bin");
        for name in ["base/proc", "base/sys", "base/dev", "base/etc", "mnt", "seed/upper", "seed/work"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).expect("the package busybox-static");
        for applet in ["sh", "id", "cat", "ls", "touch", "stat", "hostname", "true", "sleep"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        let image = dir.path().join("volume.img");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-d", &dir.path().join("seed").to_string_lossy(), &image.to_string_lossy()]);
        let device = run("losetup", &["--find", "--show", &image.to_string_lossy()]);
        Self { dir, device: device.trim().into(), detached: Cell::new(false) }
    }

    /// Detaches the volume, which is not used from here on.
    fn detach(&self) {
        if !self.detached.replace(true) {
            run("losetup", &["--detach", &self.device.to_string_lossy()]);
        }
    }

    fn plan(&self, name: &str, script: &str) -> Plan {
        let map = || vec![IdMap { inside: 0, outside: UID_BASE, count: 65_536 }];
        let caps = CapabilitySets {
            bounding: 0b1000_1001,
            effective: 0b1000_1001,
            permitted: 0b1000_1001,
            ..Default::default()
        };
        Plan {
            namespaces: Namespaces {
                user: Namespace::New,
                mount: Namespace::New,
                pid: Namespace::New,
                net: Namespace::New,
                ipc: Namespace::New,
                uts: Namespace::New,
                cgroup: Namespace::New,
            },
            id_maps: Some(IdMaps { uids: map(), gids: map() }),
            clocks_from_zero: false,
            root: Root {
                source: RootSource::Overlay(Overlay {
                    lower: vec![self.dir.path().join("base")],
                    volume: self.device.clone(),
                    volume_fstype: "ext4".into(),
                    volume_options: Vec::new(),
                    mount_point: self.dir.path().join("mnt"),
                }),
                readonly: false,
            },
            mounts: vec![filesystem("/proc", "proc"), filesystem("/dev", "tmpfs"), cgroup_mount(), text_mount()],
            dev: Dev { nodes: default_device_nodes(), links: default_dev_links() },
            masked_paths: vec!["/proc/keys".into(), "/proc/none-such".into(), "/proc/irq".into()],
            readonly_paths: vec!["/proc/sys".into()],
            hostname: Some("bench".into()),
            domainname: None,
            sysctls: vec![("net.ipv4.ip_unprivileged_port_start".into(), "0".into())],
            oom_score_adj: None,
            cgroup: Some(CgroupPlan {
                path: CgroupPath::new(format!("{}/{name}", parent())).unwrap(),
                limits: Limits { pids_max: Some(64), memory_max_bytes: Some(64 << 20), ..Limits::default() },
                unenforced: Unenforced::Refuse,
                leaf: Some("init".into()),
                manager: Manager::Cgroupfs,
                joins_from: Some((UID_BASE, UID_BASE)),
            }),
            process: Process {
                executable: Executable::Search,
                args: ["sh", "-c", script].map(str::to_owned).to_vec(),
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                uid: 0,
                gid: 0,
                groups: Vec::new(),
                umask: None,
                rlimits: Vec::new(),
                capabilities: caps,
                no_new_privs: true,
                seccomp: Some(compile(&profile::agent()).unwrap()),
                terminal: None,
            },
            wait_for_start: false,
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.detach();
    }
}

fn filesystem(target: &str, fstype: &str) -> Mount {
    let options = if fstype == "tmpfs" { vec![("mode".to_owned(), Some("0755".to_owned()))] } else { Vec::new() };
    Mount {
        target: target.into(),
        source: MountSource::Filesystem { fstype: fstype.into(), source: None, options },
        attributes: MountAttributes { nosuid: true, noexec: true, ..MountAttributes::default() },
        propagation: None,
    }
}

fn cgroup_mount() -> Mount {
    Mount { source: MountSource::Cgroup2, ..filesystem("/sys/fs/cgroup", "") }
}

fn text_mount() -> Mount {
    Mount { source: MountSource::Text("of our own\n".into()), ..filesystem("/etc/hosts", "") }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `launch` demands a single-threaded, one-shot process, and the test harness has threads: so the test
/// works in a fork of itself, which has one thread.
fn in_own_process(work: impl FnOnce()) {
    match nix_fork() {
        None => {
            // The harness would collect the output of a failed assertion in the parent's memory, where it is lost.
            std::panic::set_hook(Box::new(|info| {
                let _ = rustix::io::write(rustix::stdio::stderr(), format!("{info}\n").as_bytes());
            }));
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_ok();
            std::process::exit(i32::from(!ok));
        }
        Some(pid) => {
            let status = nix::sys::wait::waitpid(pid, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(pid, 0));
        }
    }
}

#[allow(unsafe_code)]
fn nix_fork() -> Option<nix::unistd::Pid> {
    // SAFETY: the child uses only what a forked copy of this thread owns; the harness's other threads hold no lock
    // that it needs (they wait for this test).
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => None,
        nix::unistd::ForkResult::Parent { child } => Some(child),
    }
}

fn launch_and_read(plan: &Plan) -> (Child, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    let fds = vec![(OwnedFd::from(writer.try_clone().unwrap()), 1), (OwnedFd::from(writer), 2)];
    let child = launch(plan, Inherit { fds, start_socket: None }).unwrap();
    let mut text = String::new();
    File::from(OwnedFd::from(reader)).read_to_string(&mut text).unwrap();
    (child, text)
}

fn remove(child: &Child) {
    let cgroup = child.cgroup.as_ref().unwrap();
    cgroup.kill().unwrap();
    cgroup.wait_empty(DEADLINE).unwrap();
    cgroup.remove(DEADLINE).unwrap();
    remove_parent();
}

#[test]
fn priv_overlay_in_a_user_namespace_and_a_leaf_cgroup() {
    in_own_process(|| {
        let bench = Bench::new();
        let plan = bench.plan(
            "overlay",
            "id -u; cat /proc/self/uid_map; hostname; cat /proc/self/cgroup; ls /sys/fs/cgroup/unified 2>/dev/null || ls /sys/fs/cgroup; touch /made; stat -c %u /made; \
             cat /proc/keys; (echo x > /proc/keys) 2>/dev/null || echo mask-holds; (echo 1 > /proc/sys/kernel/sysrq) \
             2>/dev/null || echo sys-holds; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /etc/hosts /proc/self/mountinfo /proc/self/status",
        );
        let (child, text) = launch_and_read(&plan);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "0");
        assert!(lines[1].split_whitespace().eq(["0", &UID_BASE.to_string(), "65536"]), "{text}");
        assert_eq!(lines[2], "bench");
        assert!(text.contains("\n0::/init\n"), "the container's cgroup is the namespace's root: {text}");
        assert!(text.contains("\ninit\n"), "the view holds the leaf: {text}");
        assert!(text.contains("\n0\nmask-holds\nsys-holds\n0\n"), "{text}");
        assert!(text.contains("\nof our own\n"), "{text}");
        let host_dir = bench.dir.path().to_string_lossy().into_owned();
        assert!(!text.contains(&host_dir), "mountinfo tells a host path: {text}");
        assert!(text.contains("CapEff:\t0000000000000089"), "{text}");
        assert!(text.contains("CapBnd:\t0000000000000089"), "{text}");
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        assert!(text.contains("Seccomp:\t2"), "{text}");
        assert!(child.cgroup.as_ref().unwrap().cpu().unwrap().usage_usec > 0);
        remove(&child);

        // The ids on the volume are those seen inside, so another range shows the same owner.
        let mount = bench.dir.path().join("look");
        fs::create_dir(&mount).unwrap();
        let script = format!(
            "mount {} {} && stat -c %u {}/upper/made; umount {}",
            bench.device.display(),
            mount.display(),
            mount.display(),
            mount.display()
        );
        assert_eq!(run("unshare", &["-m", "sh", "-c", &script]).trim(), "0");
    });
}

#[test]
fn priv_a_failed_step_says_which_and_leaves_nothing() {
    in_own_process(|| {
        let bench = Bench::new();
        let mut plan = bench.plan("fail", "true");
        plan.process.args = vec!["/bin/none-such".into()];
        let error = launch(&plan, Inherit::default()).unwrap_err();
        assert_eq!((error.step, error.errno), (Step::Exec, Some(libc::ENOENT)), "{error}");
        assert!(error.subject.contains("/bin/none-such"), "{error}");
        assert_eq!(cgroups(plan.cgroup.as_ref().unwrap().path.as_str()), [] as [PathBuf; 0], "a cgroup is left");
        remove_parent();
    });
    // The caller of a launch is one-shot.
    in_own_process(|| {
        let bench = Bench::new();
        let mut plan = bench.plan("fail", "true");
        plan.root.source = match plan.root.source {
            RootSource::Overlay(overlay) => RootSource::Overlay(Overlay { volume: "/dev/null".into(), ..overlay }),
            other => other,
        };
        let error = launch(&plan, Inherit::default()).unwrap_err();
        assert_eq!((error.step, error.kind), (Step::Root, Kind::Os), "{error}");
        assert!(error.subject.contains("/dev/null"), "{error}");
        assert_eq!(cgroups(plan.cgroup.as_ref().unwrap().path.as_str()), [] as [PathBuf; 0], "a cgroup is left");
        remove_parent();
    });
}

#[test]
fn priv_a_filter_that_the_kernel_does_not_take_fails_before_start() {
    in_own_process(|| {
        let bench = Bench::new();
        let mut plan = bench.plan("filter", "true");
        plan.wait_for_start = true;
        plan.process.seccomp.as_mut().unwrap().flags = 1 << 30;
        let socket = std::os::unix::net::UnixListener::bind(bench.dir.path().join("start")).unwrap();
        let error = launch(&plan, Inherit { start_socket: Some(socket.into()), ..Inherit::default() }).unwrap_err();
        assert_eq!((error.step, error.errno), (Step::Seccomp, Some(libc::EINVAL)), "{error}");
        remove_parent();
    });
}

#[test]
fn priv_a_directory_on_a_block_device_is_idmapped_and_read_only_if_asked() {
    let data = |other: &Bench, readonly| {
        let device = DeviceDirectory {
            device: other.device.clone(),
            fstype: "ext4".into(),
            options: Vec::new(),
            directory: "upper".into(),
        };
        let attributes = MountAttributes { nosuid: true, nodev: true, readonly, ..MountAttributes::default() };
        Mount { source: MountSource::Device(device), attributes, ..filesystem("/data", "") }
    };
    for (readonly, touched, mount) in [(false, "made", "rw,nosuid,nodev"), (true, "refused", "ro,nosuid,nodev")] {
        in_own_process(|| {
            let (bench, other) = (Bench::new(), Bench::new());
            let look =
                "stat -c %u /data; touch /data/made 2>/dev/null || echo refused; ls /data; cat /proc/self/mountinfo";
            let mut plan = bench.plan("device", look);
            plan.mounts.push(data(&other, readonly));
            let (child, text) = launch_and_read(&plan);
            assert!(text.starts_with(&format!("0\n{touched}\n")), "{text}");
            assert!(text.contains(&format!(" /upper /data {mount}")), "{text}");
            remove(&child);
        });
    }
    in_own_process(|| {
        let bench = Bench::new();
        let mut plan = bench.plan("device-plain", "true");
        plan.root.source = RootSource::Directory(bench.dir.path().join("base"));
        plan.mounts.push(data(&bench, false));
        let error = launch(&plan, Inherit::default()).unwrap_err();
        assert_eq!((error.step, error.kind), (Step::Mounts, Kind::Unsupported), "{error}");
    });
}

/// Makes one step of a plan fail.
type Fault = fn(&mut Plan);

/// One fault for each step that a plan can make fail, in the order of the steps.
const FAULTS: [(Step, Fault); 13] = [
    (Step::Cgroup, |plan| plan.cgroup.as_mut().unwrap().limits.cpuset_cpus = Some("no list".into())),
    (Step::Join, |plan| plan.namespaces.ipc = Namespace::Join("/none-such".into())),
    (Step::IdMaps, |plan| {
        let maps = plan.id_maps.as_mut().unwrap();
        maps.gids.push(IdMap { inside: 0, outside: UID_BASE + 70_000, count: 1 });
    }),
    (Step::Root, |plan| plan.root.source = RootSource::Directory("/none-such".into())),
    (Step::Mounts, |plan| {
        let source = MountSource::Bind { path: "/none-such".into(), recursive: false };
        plan.mounts.push(Mount { source, ..filesystem("/mnt", "") });
    }),
    (Step::Devices, |plan| {
        let mut node = default_device_nodes().remove(0);
        node.minor += 1;
        plan.dev.nodes.push(node);
    }),
    (Step::Names, |plan| plan.hostname = Some("x".repeat(65))),
    (Step::Terminal, |plan| plan.process.terminal = Some((0, 0))),
    (Step::Paths, |plan| plan.masked_paths.push("/proc/\0".into())),
    (Step::Exec, |plan| plan.process.args = vec!["/none-such".into()]),
    (Step::Rlimits, |plan| plan.process.rlimits.push(Rlimit { resource: libc::RLIMIT_NOFILE, soft: 2, hard: 1 })),
    (Step::Credentials, |plan| plan.process.gid = 70_000),
    (Step::Seccomp, |plan| plan.process.seccomp.as_mut().unwrap().flags = 1 << 30),
];

#[test]
fn priv_steps_begin_in_the_order_of_their_declaration() {
    assert!(FAULTS.is_sorted_by_key(|(step, _)| *step));
    in_own_process(|| {
        let bench = Bench::new();
        // The directory is the host root's, who has no id inside: nothing can be made in it there.
        fs::create_dir_all(bench.dir.path().join("base/sys/fs/cgroup")).unwrap();
        File::create(bench.dir.path().join("base/etc/hosts")).unwrap();
        // With this fault and all later ones, this one is reported: no later step has begun.
        for (first, (step, _)) in FAULTS.iter().enumerate() {
            let mut plan = bench.plan("order", "true");
            plan.root.source = RootSource::Directory(bench.dir.path().join("base"));
            for (_, fault) in &FAULTS[first..] {
                fault(&mut plan);
            }
            let error = launch(&plan, Inherit::default()).unwrap_err();
            assert_eq!(error.step, *step, "{error}");
            assert_eq!(cgroups(plan.cgroup.as_ref().unwrap().path.as_str()), [] as [PathBuf; 0], "{error}");
        }
        remove_parent();
    });
}

#[test]
fn priv_a_process_that_runs_is_killed_when_the_launch_fails_after_all() {
    in_own_process(|| {
        let bench = Bench::new();
        let mut plan = bench.plan("late", "");
        plan.root.source = RootSource::Directory(bench.dir.path().join("base"));
        (plan.namespaces.user, plan.id_maps) = (Namespace::Host, None);
        plan.cgroup.as_mut().unwrap().leaf = None;
        plan.process.args = vec!["sleep".into(), "1000000".into()];
        // The caller is in a pid namespace whose numbers its /proc does not know: the start time cannot be read.
        let most: i32 = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
        let unknown = (1000..most).rev().find(|pid| !Path::new(&format!("/proc/{pid}")).exists()).unwrap();
        // The namespace ends with its first process, and no other can be started after it.
        bench.detach();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).unwrap();
        in_own_process(|| {
            fs::write("/proc/sys/kernel/ns_last_pid", (unknown - 1).to_string()).unwrap();
            let error = launch(&plan, Inherit::default()).unwrap_err();
            assert_eq!((error.step, error.subject), (Step::Clone, format!("pid {unknown}")));
            // A cgroup that has a process cannot be removed.
            assert_eq!(cgroups(plan.cgroup.as_ref().unwrap().path.as_str()), [] as [PathBuf; 0], "a cgroup is left");
        });
        remove_parent();
    });
}

/// The cgroup above those of this process's plans.
fn parent() -> String {
    format!("icerun-test.{}", std::process::id())
}

/// Removes the parent of the plans' cgroups, and nothing else: a search of the whole tree would race with the cgroups
/// of other tests.
fn remove_parent() {
    let found = cgroups(&parent());
    assert!(!found.is_empty(), "there is no cgroup {}: is it looked for where it is?", parent());
    for dir in found {
        fs::remove_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    }
}

/// Where there is a cgroup of this path: on a machine with v1 in several hierarchies.
fn cgroups(path: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem.starts_with("cgroup").then(|| mount.split(' ').nth(4))?
    });
    points.map(|point| Path::new(point).join(path)).filter(|dir| dir.exists()).collect()
}
