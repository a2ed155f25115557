//! A box in the runtime's words: the default profile, and the only file of this crate where both vocabularies meet.
//!
//! The profile is stricter than Docker's and still runs node, python, git, apt and pip: eight capabilities,
//! no_new_privs, an allow-list of system calls, a user namespace with a range of its own. Everything here is data; the
//! runtime carries it out.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use icebox_runtime::cgroup::{Access, CgroupPath, DeviceKind, DeviceRule, Limits, Manager, Unenforced};
use icebox_runtime::plan::{
    CapabilitySets, CgroupPlan, Dev, Executable, IdMap, IdMaps, Mount, MountAttributes, MountSource, Namespace,
    Namespaces, Overlay, Plan, Process, Rlimit, Root, RootSource, default_dev_links, default_device_nodes,
    default_device_rules,
};
use icebox_runtime::seccomp::{Program, compile, profile};

use crate::error::{Error, ErrorKind};
use crate::launch::{BoxSpec, PIDS_RESERVE, box_open_files};
use crate::processors::{CPUS_ONLINE, list_text};

mod disks;

/// Number of the control socket in the init.
pub(crate) const CONTROL_FD: i32 = 3;
/// Ids of a box.
const ID_COUNT: u32 = 65_536;
const CPU_PERIOD_US: u64 = 100_000;
/// Bounds of `/dev/shm`, which is half the memory between them.
const SHM_BYTES_MAX: u64 = 2 << 30;
const RUN_TMPFS_SHARE: u64 = 10;
/// Buffers of sockets where v1 counts them apart from memory: a share of it, and no more than this.
const SOCKET_MEMORY_SHARE: i64 = 16;
const SOCKET_MEMORY_BYTES_MAX: i64 = 256 << 20;
/// Boxes go before the services of the host when memory runs out (proc(5), `oom_score_adj`).
const OOM_SCORE_ADJ: i32 = 200;
/// The leaf cgroup of the init.
const INIT_LEAF: &str = "init";
/// `cpu.weight` of a box for each of its cores: with one it weighs as much as a cgroup with the kernel's default.
const CPU_WEIGHT_PER_CORE: f64 = 100.0;
/// Leaves of runs are below the cgroup of all runs and have nothing below them. A box cannot make cgroups (its view of
/// them is read-only): this holds if it ever can.
const CGROUP_DEPTH_MAX: u32 = 2;
/// Leaves: one per run that has a process left, which the limit of processes bounds, and as many again that have ended
/// and are not removed yet.
const CGROUPS_PER_PROCESS: u64 = 2;

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETFCAP. Without MKNOD, NET_RAW, SETPCAP, SYS_CHROOT,
/// AUDIT_WRITE, which Docker keeps; low ports need no capability, the sysctl below opens them.
const CAPABILITIES: [u8; 8] = [0, 1, 3, 4, 5, 6, 7, 31];

/// Kernel views that tell about the host or about other boxes.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/buddyinfo",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/consoles",
    "/proc/diskstats",
    "/proc/dma",
    "/proc/dynamic_debug",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/mtrr",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/softirqs",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
    "/sys/block",
    "/sys/bus",
    "/sys/dev",
    "/sys/devices/system/memory",
    "/sys/devices/virtual/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/fs/ext4",
    "/sys/fs/fuse",
    "/sys/fs/pstore",
    "/sys/hypervisor",
    "/sys/kernel/boot_params",
    "/sys/kernel/btf",
    "/sys/kernel/debug",
    "/sys/kernel/iommu_groups",
    "/sys/kernel/irq",
    "/sys/kernel/notes",
    "/sys/kernel/security",
    "/sys/kernel/slab",
    "/sys/kernel/vmcoreinfo",
    "/sys/module",
    "/sys/power",
];

const READ_ONLY: [&str; 7] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/driver", "/proc/tty", "/proc/pressure"];

/// `/proc/swaps` without an entry (proc_swaps(5)).
const NO_SWAP: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

/// Kernel parameters of the box's own namespaces.
const SYSCTLS: [(&str, &str); 4] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 65535"),
    ("user.max_user_namespaces", "0"),
    ("user.max_net_namespaces", "0"),
];

/// The plan of a box. `init` is the sealed init, `disks` the numbers of the devices of its volumes: needed where their rates
/// are limited. `cpus` are the processors that the box is told of.
///
/// # Errors
/// `InvalidInput` for a spec that makes no sense.
pub(crate) fn plan(spec: &BoxSpec, init: OwnedFd, disks: &[(u32, u32)], cpus: &[u32]) -> Result<Plan, Error> {
    let ids = || vec![IdMap { inside: 0, outside: spec.uid_base, count: ID_COUNT }];
    Ok(Plan {
        namespaces: Namespaces {
            user: Namespace::New,
            mount: Namespace::New,
            pid: Namespace::New,
            net: Namespace::New,
            ipc: Namespace::New,
            uts: Namespace::New,
            cgroup: Namespace::New,
        },
        id_maps: Some(IdMaps { uids: ids(), gids: ids() }),
        clocks_from_zero: true,
        root: Root { source: RootSource::Overlay(overlay(spec)), readonly: false },
        mounts: mounts(spec, cpus),
        dev: Dev { nodes: default_device_nodes(), links: default_dev_links() },
        masked_paths: MASKED.iter().map(PathBuf::from).collect(),
        readonly_paths: READ_ONLY.iter().map(PathBuf::from).collect(),
        hostname: Some(spec.hostname.clone()),
        domainname: None,
        sysctls: SYSCTLS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        oom_score_adj: Some(OOM_SCORE_ADJ),
        cgroup: Some(cgroup(spec, disks)?),
        process: process(init)?,
        wait_for_start: false,
    })
}

/// Where the box's root is attached until it is entered.
pub(crate) fn mount_point(spec: &BoxSpec) -> PathBuf {
    spec.run_dir.join("root")
}

fn overlay(spec: &BoxSpec) -> Overlay {
    Overlay {
        lower: spec.lower.clone(),
        volume: spec.volume_device.clone(),
        volume_fstype: disks::FSTYPE.to_owned(),
        volume_options: disks::options(),
        mount_point: mount_point(spec),
    }
}

fn mounts(spec: &BoxSpec, cpus: &[u32]) -> Vec<Mount> {
    let strict = MountAttributes { nosuid: true, nodev: true, noexec: true, ..MountAttributes::default() };
    let readonly = MountAttributes { readonly: true, ..strict };
    let shm_bytes = (spec.memory_bytes / 2).min(SHM_BYTES_MAX);
    let run_bytes = spec.memory_bytes / RUN_TMPFS_SHARE;
    let mut mounts = vec![
        filesystem("/proc", "proc", "", strict),
        // Not `nodev`: the nodes are here. No process in the box can make others.
        filesystem("/dev", "tmpfs", "mode=0755,size=64k", MountAttributes { nodev: false, ..strict }),
        filesystem(
            "/dev/pts",
            "devpts",
            "newinstance,ptmxmode=0666,mode=0620,gid=5,max=64",
            MountAttributes { nodev: false, ..strict },
        ),
        filesystem("/dev/shm", "tmpfs", &format!("mode=1777,size={shm_bytes}"), strict),
        filesystem("/dev/mqueue", "mqueue", "", strict),
        filesystem("/sys", "sysfs", "", readonly),
        Mount {
            target: "/sys/fs/cgroup".into(),
            source: MountSource::Cgroup2,
            attributes: readonly,
            propagation: None,
        },
        filesystem(
            "/run",
            "tmpfs",
            &format!("mode=0755,size={run_bytes}"),
            MountAttributes { noexec: false, ..strict },
        ),
        // A running box has no swap, even if the host has some.
        text("/proc/swaps", NO_SWAP.to_owned(), readonly),
        text(CPUS_ONLINE, format!("{}\n", list_text(cpus)), readonly),
        // Root of the box may add to these two, as in Docker; they are new at each start.
        text("/etc/hosts", format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {}\n", spec.hostname), strict),
        text("/etc/hostname", format!("{}\n", spec.hostname), readonly),
        text("/etc/resolv.conf", resolv_conf(spec), strict),
    ];
    mounts.extend(spec.proc_files.iter().map(|file| {
        let source = match file.kept_as {
            Some(fd) => MountSource::KeptText { text: file.text.clone(), fd },
            None => MountSource::Text(file.text.clone()),
        };
        Mount { target: format!("/proc/{}", file.name).into(), source, attributes: readonly, propagation: None }
    }));
    mounts.extend(disks::volumes(&spec.volumes));
    mounts
}

fn filesystem(target: &str, fstype: &str, options: &str, attributes: MountAttributes) -> Mount {
    let options = options
        .split(',')
        .filter(|word| !word.is_empty())
        .map(|word| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (word.to_owned(), None),
        })
        .collect();
    let source = MountSource::Filesystem { fstype: fstype.to_owned(), source: Some(fstype.to_owned()), options };
    Mount { target: target.into(), source, attributes, propagation: None }
}

/// resolv.conf(5). A box without a network gets one that says so, not the one that the image happens to have.
fn resolv_conf(spec: &BoxSpec) -> String {
    match spec.nameserver {
        Some(address) => format!("nameserver {address}\n"),
        None => "# no network\n".to_owned(),
    }
}

fn text(target: &str, text: String, attributes: MountAttributes) -> Mount {
    Mount { target: target.into(), source: MountSource::Text(text), attributes, propagation: None }
}

fn cgroup(spec: &BoxSpec, disks: &[(u32, u32)]) -> Result<CgroupPlan, Error> {
    let bad = |what: &'static str| Error::new(ErrorKind::InvalidInput, "check limits", what);
    let path = CgroupPath::new(spec.cgroup.clone())
        .map_err(|error| Error::new(ErrorKind::InvalidInput, "check cgroup path", &spec.cgroup).because(error))?;
    if !(spec.cores.is_finite() && spec.cores > 0.0) {
        return Err(bad("cores"));
    }
    spec.limits.check().map_err(|(key, expected)| bad(key).because(crate::error::Reported(expected.to_owned())))?;
    let quota = (spec.cores * CPU_PERIOD_US as f64).round() as i64;
    let weight = (spec.cores * CPU_WEIGHT_PER_CORE).round().clamp(1.0, 10_000.0) as u64;
    let memory = i64::try_from(spec.memory_bytes).map_err(|_| bad("memory_bytes"))?;
    let high = spec.limits.memory_high_percent.map(|percent| memory / 100 * i64::from(percent));
    Ok(CgroupPlan {
        path,
        limits: Limits {
            cpu_quota_us: Some(quota),
            cpu_period_us: Some(CPU_PERIOD_US),
            cpu_weight: Some(weight),
            memory_max_bytes: Some(memory),
            memory_high_bytes: high,
            // Until it is asleep: see `handle::cgroup`.
            memory_swap_max_bytes: Some(0),
            socket_memory_max_bytes: Some((memory / SOCKET_MEMORY_SHARE).min(SOCKET_MEMORY_BYTES_MAX)),
            pids_max: Some(i64::try_from(spec.pids_max + PIDS_RESERVE).map_err(|_| bad("pids_max"))?),
            cpuset_cpus: spec.limits.cpuset_cpus.clone(),
            io_max: disks::io_max(&spec.limits, disks)?,
            devices: device_rules(),
            unified: [
                ("cgroup.max.depth".to_owned(), CGROUP_DEPTH_MAX.to_string()),
                ("cgroup.max.descendants".to_owned(), (spec.pids_max * CGROUPS_PER_PROCESS).to_string()),
            ]
            .into(),
            ..Limits::default()
        },
        unenforced: if spec.allow_unenforced_limits { Unenforced::Allow } else { Unenforced::Refuse },
        leaf: Some(INIT_LEAF.to_owned()),
        manager: Manager::Cgroupfs,
        joins_from: Some((spec.uid_base, spec.uid_base)),
    })
}

/// Nothing but the six default nodes, ptmx, and terminals of devpts.
fn device_rules() -> Vec<DeviceRule> {
    let none = DeviceRule { allow: false, kind: DeviceKind::All, major: None, minor: None, access: Access::ALL };
    std::iter::once(none).chain(default_device_rules()).collect()
}

/// The init's system call filter, compiled once in the life of the process and of those that it forks.
///
/// # Errors
/// `Internal`: the profile is wrong.
pub(crate) fn filter() -> Result<&'static Program, Error> {
    static COMPILED: OnceLock<Program> = OnceLock::new();
    if let Some(known) = COMPILED.get() {
        return Ok(known);
    }
    let compiled = compile(&profile::agent_init())
        .map_err(|error| Error::new(ErrorKind::Internal, "compile system call filter", "agent").because(error))?;
    Ok(COMPILED.get_or_init(|| compiled))
}

fn process(init: OwnedFd) -> Result<Process, Error> {
    let capabilities = CAPABILITIES.iter().fold(0_u64, |mask, n| mask | 1 << n);
    let filter = filter()?.clone();
    Ok(Process {
        executable: Executable::File(init),
        args: vec!["icebox-init".to_owned(), "--ctl-fd".to_owned(), CONTROL_FD.to_string()],
        env: Vec::new(),
        cwd: "/".into(),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        umask: None,
        rlimits: rlimits(),
        capabilities: CapabilitySets {
            bounding: capabilities,
            effective: capabilities,
            permitted: capabilities,
            ..CapabilitySets::default()
        },
        no_new_privs: true,
        seccomp: Some(filter),
        terminal: None,
    })
}

fn rlimits() -> Vec<Rlimit> {
    let limit = |resource: libc::__rlimit_resource_t, soft, hard| Rlimit { resource, soft, hard };
    vec![
        // A core dump of a box must not reach the host's handler with its contents.
        limit(libc::RLIMIT_CORE, 0, 0),
        // systemd's pair: select(2) users keep working, everybody else may raise.
        limit(libc::RLIMIT_NOFILE, 1024, box_open_files()),
        limit(libc::RLIMIT_MEMLOCK, 8 << 20, 8 << 20),
        limit(libc::RLIMIT_MSGQUEUE, 819_200, 819_200),
        limit(libc::RLIMIT_NICE, 0, 0),
        limit(libc::RLIMIT_RTPRIO, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::{HostLimits, ProcFile};

    fn spec() -> BoxSpec {
        BoxSpec {
            id: "right-flamingo-14486".to_owned(),
            hostname: "right-flamingo-14486".to_owned(),
            run_dir: "/run/x".into(),
            cgroup: "icebox.0/right-flamingo-14486".to_owned(),
            lower: vec!["/base".into()],
            volume_device: "/dev/loop7".into(),
            volumes: Vec::new(),
            uid_base: 524_288,
            nameserver: Some([10, 213, 0, 2].into()),
            cores: 1.5,
            memory_bytes: 4 << 30,
            pids_max: 1024,
            proc_files: vec![ProcFile { name: "stat".to_owned(), text: "cpu\n".to_owned(), kept_as: Some(5) }],
            limits: HostLimits::default(),
            allow_unenforced_limits: false,
        }
    }

    fn any_fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn everything_that_isolates_is_on() {
        let plan = plan(&spec(), any_fd(), &[], &[0]).unwrap();
        let n = &plan.namespaces;
        assert!([&n.user, &n.mount, &n.pid, &n.net, &n.ipc, &n.uts, &n.cgroup].iter().all(|n| n.is_new()));
        assert!(plan.process.no_new_privs && plan.process.seccomp.is_some());
        assert_eq!(plan.process.capabilities.bounding.count_ones(), 8);
        assert_eq!((plan.process.capabilities.inheritable, plan.process.capabilities.ambient), (0, 0));
        let limits = &plan.cgroup.as_ref().unwrap().limits;
        assert_eq!((limits.cpu_quota_us, limits.pids_max), (Some(150_000), Some(1120)));
        assert!(!limits.devices[0].allow, "the first rule denies everything");
        assert_eq!((limits.cpu_weight, limits.memory_swap_max_bytes), (Some(150), Some(0)));
        assert_eq!((limits.memory_high_bytes, limits.io_max.len(), &limits.cpuset_cpus), (None, 0, &None));
        assert_eq!(limits.unified["cgroup.max.depth"], "2");
    }

    #[test]
    fn the_operators_limits_are_the_boxs() {
        let limits = HostLimits {
            memory_high_percent: Some(90),
            cpuset_cpus: Some("0-1".to_owned()),
            io_write_bytes_per_second: Some(1 << 20),
            ..HostLimits::default()
        };
        let spec = BoxSpec { limits, memory_bytes: 1000, ..spec() };
        assert!(plan(&spec, any_fd(), &[], &[0]).is_err(), "a rate needs the disk's number");
        let limits = plan(&spec, any_fd(), &[(7, 3)], &[0]).unwrap().cgroup.unwrap().limits;
        assert_eq!((limits.memory_high_bytes, limits.cpuset_cpus.as_deref()), (Some(900), Some("0-1")));
        assert_eq!(limits.io_max.len(), 1);
    }

    #[test]
    fn nothing_of_the_host_is_writable() {
        for mount in plan(&spec(), any_fd(), &[], &[0]).unwrap().mounts {
            assert!(!matches!(mount.source, MountSource::Bind { .. }), "no path of the host");
            if matches!(mount.source, MountSource::Cgroup2) {
                assert!(mount.attributes.readonly, "{}", mount.target.display());
            }
            if matches!(mount.source, MountSource::KeptText { .. }) {
                assert!(mount.attributes.readonly, "{}", mount.target.display());
            }
            if matches!(mount.source, MountSource::Text(_) | MountSource::KeptText { .. } | MountSource::Cgroup2) {
                assert!(mount.attributes.nosuid && mount.attributes.nodev, "{}", mount.target.display());
            }
        }
    }

    #[test]
    fn senseless_limits_are_refused() {
        for cores in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(plan(&BoxSpec { cores, ..spec() }, any_fd(), &[], &[0]).is_err(), "{cores}");
        }
        assert!(plan(&BoxSpec { cgroup: "../x".to_owned(), ..spec() }, any_fd(), &[], &[0]).is_err());
    }
}
