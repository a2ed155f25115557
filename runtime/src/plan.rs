//! The plan: all decisions about a container, as plain data. The maker of a plan decides; the executor in
//! [`crate::launch`] acts and holds no policy. A plan can be printed, compared and tested without privileges.

use std::path::PathBuf;

use crate::{
    cgroup::{Access, CgroupPath, DeviceKind as RuleKind, DeviceRule, Limits, Manager, Unenforced},
    seccomp::Program,
};

/// A container to be made.
#[derive(Debug)]
pub struct Plan {
    /// Which namespaces are new, joined, or shared with the caller (namespaces(7)).
    pub namespaces: Namespaces,
    /// uid and gid maps of a new user namespace (user_namespaces(7)); must map id 0.
    pub id_maps: Option<IdMaps>,
    /// Clocks that count from the container's start, in a time namespace of its own, where the kernel has these. Needs a
    /// new user namespace.
    pub clocks_from_zero: bool,
    /// The root file system.
    pub root: Root,
    /// Mounts below the root, in order.
    pub mounts: Vec<Mount>,
    /// The contents of `/dev`.
    pub dev: Dev,
    /// Paths hidden behind an empty read-only object (OCI `maskedPaths`). Missing ones are passed over.
    pub masked_paths: Vec<PathBuf>,
    /// Paths made read-only (OCI `readonlyPaths`). Missing ones are passed over.
    pub readonly_paths: Vec<PathBuf>,
    /// Host name in a new uts namespace.
    pub hostname: Option<String>,
    /// NIS domain name in a new uts namespace.
    pub domainname: Option<String>,
    /// Kernel parameters, name and value. [`sysctl_path`] reads the names.
    pub sysctls: Vec<(String, String)>,
    /// `oom_score_adj` of the first process (proc(5)).
    pub oom_score_adj: Option<i32>,
    /// The cgroup; `None` leaves the process where the caller is.
    pub cgroup: Option<CgroupPlan>,
    /// The first process.
    pub process: Process,
    /// Wait for a connection on a `start` socket before `execve` (OCI create and start). The executor's caller passes
    /// the listening socket; without it the process runs at once.
    pub wait_for_start: bool,
}

/// The path below `/proc/sys` of a kernel parameter, as sysctl.d(5) reads names: the separator that comes first
/// separates, the other one stands for itself. `net.ipv4.conf.v/1.forwarding` and `net/ipv4/conf/v.1/forwarding` are
/// the same file. `None` if that is no path to a file below `/proc/sys`.
#[must_use]
pub fn sysctl_path(name: &str) -> Option<String> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let path: String = match separator {
        '/' => name.to_owned(),
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    let good = path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0');
    good.then_some(path)
}

/// The source of each namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// User namespace.
    pub user: Namespace,
    /// Mount namespace; [`Namespace::Host`] is refused, a container always has its own root.
    pub mount: Namespace,
    /// PID namespace.
    pub pid: Namespace,
    /// Network namespace.
    pub net: Namespace,
    /// IPC namespace.
    pub ipc: Namespace,
    /// UTS namespace.
    pub uts: Namespace,
    /// Cgroup namespace.
    pub cgroup: Namespace,
}

/// The source of one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Namespace {
    /// Shared with the caller.
    #[default]
    Host,
    /// Made new.
    New,
    /// Joined by path, such as `/run/netns/x`.
    Join(PathBuf),
}

impl Namespace {
    /// True if the namespace is made new.
    #[must_use]
    pub fn is_new(&self) -> bool {
        *self == Self::New
    }
}

/// The maps of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// Lines of `uid_map`.
    pub uids: Vec<IdMap>,
    /// Lines of `gid_map`.
    pub gids: Vec<IdMap>,
}

/// One line of a uid or gid map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its source.
    pub source: RootSource,
    /// Made read-only at the end (OCI `root.readonly`).
    pub readonly: bool,
}

/// The source of a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A directory, bind mounted onto itself.
    Directory(PathBuf),
    /// Read-only layers under a writable volume.
    Overlay(Overlay),
}

/// An overlay whose upper layer is a volume of its own. Layers and volume are idmapped mounts when the plan has a user
/// namespace, so ids on disk are those seen inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Read-only directories, top first.
    pub lower: Vec<PathBuf>,
    /// Block device that holds the directories `upper` and `work`.
    pub volume: PathBuf,
    /// File system on the volume, such as `ext4`.
    pub volume_fstype: String,
    /// Options of that file system, as for `fsconfig`.
    pub volume_options: Vec<(String, Option<String>)>,
    /// An existing empty directory on the host used as the mount point before `pivot_root`; nothing is mounted there
    /// in the host's own mount namespace.
    pub mount_point: PathBuf,
}

/// A mount below the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path inside.
    pub target: PathBuf,
    /// The mounted object.
    pub source: MountSource,
    /// Attributes of this mount.
    pub attributes: MountAttributes,
    /// Propagation set after it is attached.
    pub propagation: Option<Propagation>,
}

/// The source of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A new instance of a file system.
    Filesystem {
        /// Name as in `/proc/filesystems`.
        fstype: String,
        /// The `source` string, where the file system wants one.
        source: Option<String>,
        /// Options for `fsconfig`; `None` for flags.
        options: Vec<(String, Option<String>)>,
    },
    /// A file or directory of the host.
    Bind {
        /// Host path.
        path: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
    /// A file with this text, in a file system of its own: no path of the host is behind it.
    Text(String),
    /// The same; the program has the file open for reading and writing.
    KeptText {
        /// The text.
        text: String,
        /// The number of the program's descriptor.
        fd: i32,
    },
    /// A directory of the file system on a block device. It is mounted by the caller of the launch and idmapped when the plan
    /// has a user namespace, so ids on disk are those seen inside. Needs an overlay as the root.
    Device(DeviceDirectory),
    /// The cgroup hierarchies seen from the container's cgroup namespace: the v2 tree; on a hybrid host with a leaf
    /// cgroup also the v1 hierarchies in which the container has a cgroup. Skipped on a host without cgroup2.
    Cgroup2,
}

/// A directory of the file system on a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceDirectory {
    /// The block device.
    pub device: PathBuf,
    /// Its file system, such as `ext4`.
    pub fstype: String,
    /// Options of that file system, as for `fsconfig`.
    pub options: Vec<(String, Option<String>)>,
    /// The directory, relative to the root of that file system.
    pub directory: PathBuf,
}

/// Attributes of a mount (mount_setattr(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_RDONLY`.
    pub readonly: bool,
    /// `MOUNT_ATTR_NOSUID`.
    pub nosuid: bool,
    /// `MOUNT_ATTR_NODEV`.
    pub nodev: bool,
    /// `MOUNT_ATTR_NOEXEC`.
    pub noexec: bool,
    /// `MOUNT_ATTR_NOSYMFOLLOW`.
    pub nosymfollow: bool,
    /// `MOUNT_ATTR_NOATIME`.
    pub noatime: bool,
    /// `MOUNT_ATTR_STRICTATIME`.
    pub strictatime: bool,
    /// `MOUNT_ATTR_NODIRATIME`.
    pub nodiratime: bool,
    /// Apply to the mounts below as well (the OCI options `rro`, `rnosuid`, …).
    pub recursive: bool,
    /// Bits of mount_setattr(2) to take away from a bind (the OCI options `rrw`, `rsuid`, …).
    pub cleared: u64,
}

/// Mount propagation (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// `private`, with everything below if `true`.
    Private(bool),
    /// `slave`.
    Slave(bool),
    /// `shared`.
    Shared(bool),
    /// `unbindable`.
    Unbindable(bool),
}

/// The contents of `/dev` besides its mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dev {
    /// Device nodes: made by `mknod`, or bound from the host's node of the same path in a user namespace, where
    /// `mknod` is refused by the kernel.
    pub nodes: Vec<DeviceNode>,
    /// Symbolic links, name and text, such as `fd` and `/proc/self/fd`.
    pub links: Vec<(String, String)>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// Absolute path inside, below `/dev`.
    pub path: PathBuf,
    /// Kind.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// FIFO.
    Fifo,
}

/// The character devices that every container has (OCI config-linux, "Default Devices"): name, major, minor.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// `/dev/ptmx`, and the major number of the terminals that it makes.
const PTMX: (u32, u32) = (5, 2);
const TERMINAL_MAJOR: u32 = 136;

/// The nodes that every container has, root-owned, mode 0666.
#[must_use]
pub fn default_device_nodes() -> Vec<DeviceNode> {
    DEFAULT_DEVICES
        .into_iter()
        .map(|(name, major, minor)| DeviceNode {
            path: PathBuf::from("/dev").join(name),
            kind: DeviceKind::Char,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect()
}

/// The rules that let every container use its default devices and its terminals.
#[must_use]
pub fn default_device_rules() -> Vec<DeviceRule> {
    let numbers = DEFAULT_DEVICES.iter().map(|&(_, major, minor)| (major, Some(minor)));
    let terminals = [(PTMX.0, Some(PTMX.1)), (TERMINAL_MAJOR, None)];
    numbers
        .chain(terminals)
        .map(|(major, minor)| DeviceRule {
            allow: true,
            kind: RuleKind::Char,
            major: Some(major),
            minor,
            access: Access::ALL,
        })
        .collect()
}

/// The links that every container has (OCI runtime-linux, "Dev symbolic links", and `ptmx` of config-linux).
#[must_use]
pub fn default_dev_links() -> Vec<(String, String)> {
    [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .collect()
}

/// The container's place in the cgroup hierarchies, and its limits.
#[derive(Debug, Clone)]
pub struct CgroupPlan {
    /// How the cgroup is made.
    pub manager: Manager,
    /// The container's cgroup.
    pub path: CgroupPath,
    /// Limits of that cgroup.
    pub limits: Limits,
    /// The treatment of a limit that this host cannot enforce.
    pub unenforced: Unenforced,
    /// Start the first process in this child of the cgroup, and make the cgroup itself the root of its cgroup
    /// namespace. The container's later processes can then have leaf cgroups of their own.
    pub leaf: Option<String>,
    /// Owner of the cgroup's `cgroup.procs`, so that the container's root may clone into its leaves.
    pub joins_from: Option<(u32, u32)>,
}

/// The first process.
#[derive(Debug)]
pub struct Process {
    /// What is executed.
    pub executable: Executable,
    /// Argument vector.
    pub args: Vec<String>,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
    /// Absolute working directory inside; made if missing.
    pub cwd: PathBuf,
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary groups inside.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Resource limits (setrlimit(2)).
    pub rlimits: Vec<Rlimit>,
    /// The five capability sets.
    pub capabilities: CapabilitySets,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// The system call filter.
    pub seccomp: Option<Program>,
    /// Allocate a pseudo terminal of this size (rows, columns; 0 for unset) and make it the controlling one.
    pub terminal: Option<(u16, u16)>,
}

/// What is executed.
#[derive(Debug)]
pub enum Executable {
    /// `args[0]`, looked up in `PATH` inside the container.
    Search,
    /// An open file that need not exist inside: a sealed memfd.
    File(std::os::fd::OwnedFd),
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// Which (`RLIMIT_*`), as the number of the kernel.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// The five capability sets as bit masks, bit n being capability n (capabilities(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Ambient set.
    pub ambient: u64,
}
