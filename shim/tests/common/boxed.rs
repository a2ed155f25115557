//! A whole box: busybox as its image, a small ext4 volume, a cgroup of its own, launched by `icebox-launch`.
#![allow(dead_code, unreachable_pub)]

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use icebox_runtime::cgroup::{CgroupPath, Controller, Hierarchy, Manager};
use icebox_shim::handle::{BoxHandle, ExecRequest};
use icebox_shim::launch::{BoxSpec, LIBEXEC_ENV, Launched, Launcher, Tools};
use icebox_shim::procfiles::{Keeper, Size};

use crate::common::{Output, PATIENCE, collect};

pub struct TestBox {
    pub dir: tempfile::TempDir,
    pub spec: BoxSpec,
    pub launched: Launched,
    pub handle: BoxHandle,
    pub keeper: Keeper,
    cgroup_root: String,
    next_run: AtomicU64,
}

const V1: [Controller; 4] = [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Devices];

/// Boxes of tests that run at the same time.
static BOXES: AtomicU64 = AtomicU64::new(0);

fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; this test needs busybox-static, e2fsprogs and util-linux"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn make_image(image: &Path) {
    for name in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/local/bin", "workspace/home"] {
        std::fs::create_dir_all(image.join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", image.join("bin/busybox")).unwrap();
    for applet in tool("/bin/busybox", &["--list"]).lines().filter(|a| *a != "busybox") {
        symlink("busybox", image.join("bin").join(applet)).unwrap();
    }
    std::fs::copy(env!("CARGO_BIN_EXE_icebox-init"), image.join("usr/local/bin/sudo")).unwrap();
    let users = "root:x:0:0::/root:/bin/sh\nboxuser:x:1000:1000::/workspace/home:/bin/sh\n";
    std::fs::write(image.join("etc/passwd"), users).unwrap();
    std::fs::write(image.join("etc/group"), "root:x:0:\ntty:x:5:\nboxuser:x:1000:\n").unwrap();
    std::fs::set_permissions(image.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    chown(image.join("workspace/home"), Some(1000), Some(1000)).unwrap();
}

fn make_volume(dir: &Path) -> String {
    let seed = dir.join("seed");
    std::fs::create_dir_all(seed.join("upper")).unwrap();
    std::fs::create_dir_all(seed.join("work")).unwrap();
    let image = dir.join("volume.img");
    std::fs::File::create(&image).unwrap().set_len(64 * 1024 * 1024).unwrap();
    let (seed, image) = (seed.to_str().unwrap(), image.to_str().unwrap());
    tool("/sbin/mkfs.ext4", &["-q", "-d", seed, image]);
    tool("/sbin/losetup", &["--find", "--show", image])
}

/// The programs of this build, or optimised ones from the directory that `ICEBOX_LIBEXEC` names.
pub fn tools() -> Tools {
    match std::env::var_os(LIBEXEC_ENV) {
        Some(_) => Tools::beside_current_exe().unwrap(),
        None => {
            Tools { init: env!("CARGO_BIN_EXE_icebox-init").into(), launch: env!("CARGO_BIN_EXE_icebox-launch").into() }
        }
    }
}

/// The cgroup of a run as the box sees it: in a group of all runs where the pids controller is on v2.
pub fn leaf_path(run: u64) -> String {
    let hierarchy = icebox_runtime::cgroup::Hierarchy::probe().unwrap();
    match hierarchy.backend(icebox_runtime::cgroup::Controller::Pids) {
        icebox_runtime::cgroup::Backend::V2 => format!("/runs/run-{run}"),
        _ => format!("/run-{run}"),
    }
}

impl TestBox {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut BoxSpec)) -> Self {
        Self::start_kept(&Keeper::start().unwrap(), change).await
    }

    /// A box whose files of `/proc` this keeper keeps.
    pub async fn start_kept(keeper: &Keeper, change: impl FnOnce(&mut BoxSpec)) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test makes a box: run it as root");
        let dir = tempfile::Builder::new().prefix("icebox-box-").tempdir().unwrap();
        let image = dir.path().join("image");
        make_image(&image);
        let run_dir = dir.path().join("run");
        std::fs::create_dir(&run_dir).unwrap();
        let number = BOXES.fetch_add(1, Ordering::Relaxed);
        let cgroup_root = format!("icebox-shimtest.{}.{number}", std::process::id());
        let mut spec = BoxSpec {
            id: "test-box-1".into(),
            hostname: "test-box-1".into(),
            run_dir,
            cgroup: format!("{cgroup_root}/test-box-1"),
            lower: vec![image],
            volume_device: make_volume(dir.path()).into(),
            volumes: Vec::new(),
            nameserver: None,
            uid_base: 0x1000_0000 + u32::try_from(number).unwrap() * 65_536,
            cores: 1.0,
            memory_bytes: 256 << 20,
            pids_max: 128,
            proc_files: Vec::new(),
            limits: icebox_shim::launch::HostLimits::default(),
            allow_unenforced_limits: false,
        };
        change(&mut spec);
        let size = Size { cores: spec.cores, cpuset: None, memory_bytes: spec.memory_bytes };
        spec.proc_files = keeper.files(size).unwrap();
        let launched = Launcher::new(tools()).launch(&spec, PATIENCE).await;
        let handle = BoxHandle::open(&spec.run_dir, &spec.cgroup, spec.uid_base).unwrap();
        match launched {
            Ok(launched) => {
                let Launched { pid, start_time_ticks, boot_id, .. } = &launched;
                handle.keep_proc_files(keeper, *pid, *start_time_ticks, boot_id).unwrap();
                let keeper = keeper.clone();
                Self { dir, spec, launched, handle, keeper, cgroup_root, next_run: 1.into() }
            }
            Err(error) => {
                // Take the loop device back before the panic.
                tool("/sbin/losetup", &["-d", spec.volume_device.to_str().unwrap()]);
                panic!("launch: {}", error.report());
            }
        }
    }

    pub fn request(&self, argv: &[&str]) -> ExecRequest {
        ExecRequest {
            run: self.next_run.fetch_add(1, Ordering::Relaxed),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            cwd: "/workspace/home".into(),
            env: Vec::new(),
            user: None,
            stdin: false,
            tty: None,
            kill_on_disconnect: false,
            timeout_ms: None,
            label: String::new(),
        }
    }

    pub async fn sh(&self, script: &str) -> Output {
        let run = self.handle.exec(self.request(&["/bin/sh", "-c", script])).await;
        collect(run.unwrap_or_else(|e| panic!("{}", e.report()))).await
    }

    /// Its directory in the v2 tree, which a hybrid machine has beside the v1 hierarchies.
    pub fn cgroup_directory(&self) -> PathBuf {
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let root = mounts.into_iter().find(|root| root.join("cgroup.controllers").exists()).unwrap();
        root.join(&self.spec.cgroup)
    }

    /// Its directory in a v1 hierarchy.
    pub fn v1_directory(&self, controller: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(controller).join(&self.spec.cgroup)
    }

    pub fn alive(&self) -> bool {
        let l = &self.launched;
        self.handle.alive(l.pid, l.start_time_ticks, &l.boot_id)
    }

    /// Memory of the init, in KiB.
    pub fn init_resident_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.launched.pid)).unwrap();
        let line = text.lines().find(|l| l.starts_with("Rss:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for TestBox {
    fn drop(&mut self) {
        let hierarchy = Hierarchy::probe().unwrap();
        for path in [&self.spec.cgroup, &self.cgroup_root] {
            let path = CgroupPath::new(path.clone()).unwrap();
            if let Ok(Some(cgroup)) = Manager::Cgroupfs.open(&hierarchy, &path, &V1) {
                let _ = cgroup.kill();
                let _ = cgroup.wait_empty(super::PATIENCE);
                let _ = cgroup.remove(super::PATIENCE);
            }
        }
        // Detached now or, if the kernel still holds the mount for a moment, when it lets go.
        let device = self.spec.volume_device.to_str().unwrap_or_default().to_owned();
        let _ = Command::new("/sbin/losetup").args(["-d", &device]).status();
    }
}
