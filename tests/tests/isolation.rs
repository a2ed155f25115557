//! What a box can see and reach. The host is looked at from inside, as the box's user and as its root.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use icebox_tests::{Daemon, TestBox, daemon, machine};

const NAMESPACES: [&str; 7] = ["pid", "mnt", "net", "user", "ipc", "uts", "cgroup"];

/// The box's own root through the password-less sudo, or its user.
fn both_users(line: &str) -> [String; 2] {
    [line.to_owned(), format!("sudo -n sh -c {}", quote(line))]
}

fn quote(line: &str) -> String {
    format!("'{}'", line.replace('\'', r"'\''"))
}

fn lines(made: &TestBox, line: &str) -> Vec<String> {
    made.out(line).lines().map(str::to_owned).collect()
}

#[test]
fn every_namespace_is_its_own() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.api().create_default(), daemon.api().create_default());
    for kind in NAMESPACES {
        let host = machine::namespace("self", kind).expect("host namespace");
        let in_a = a.out(&format!("readlink /proc/self/ns/{kind}"));
        let in_b = b.out(&format!("readlink /proc/self/ns/{kind}"));
        assert!(in_a.starts_with(kind), "{kind}: {in_a}");
        assert_ne!(in_a, host, "a box shares the host's {kind} namespace");
        assert_ne!(in_a, in_b, "two boxes share a {kind} namespace");
    }
    let uids = [&a, &b].map(|made| {
        let map = fs::read_to_string(format!("/proc/{}/uid_map", daemon.init_pid(made))).expect("uid_map");
        let numbers: Vec<u64> = map.split_whitespace().map(|n| n.parse().expect("number")).collect();
        assert_eq!((numbers[0], numbers[2], numbers.len()), (0, 65_536, 3), "{map}");
        numbers[1]
    });
    assert!(uids[0] >= 65_536 && uids[0].abs_diff(uids[1]) >= 65_536, "uid ranges overlap: {uids:?}");
    // The init has a leaf of its own below the root that the box sees.
    assert_eq!(a.out("cat /proc/1/cgroup | tail -1 | cut -d: -f3"), "/init", "the cgroup namespace starts at the box");
    assert!(!a.out("cat /proc/self/cgroup").contains(".."), "a run's cgroup lies outside the box's namespace");
    assert_ne!(a.out("hostname"), fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname").trim());
}

#[test]
fn the_only_links_are_loopback_and_its_own_and_they_are_up() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    assert_eq!(
        made.out("ls /sys/class/net 2>/dev/null || tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"),
        "eth0\nlo"
    );
    let ping =
        "import socket;s=socket.create_server(('127.0.0.1',0));c=socket.create_connection(s.getsockname());print('ok')";
    assert_eq!(made.python_out(ping), "ok");
    let out = "import socket;s=socket.socket();s.settimeout(2);print(s.connect_ex(('192.0.2.1',80)))";
    assert_ne!(made.python_out(out), "0");
}

#[test]
fn host_paths_are_invisible() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let name = daemon::unique("canary");
    let file = daemon::scratch_dir().join(&name);
    fs::File::create(&file).expect("canary").write_all(b"host secret").expect("canary");
    for line in both_users(&format!("find / -name {name} 2>/dev/null | head -1")) {
        assert_eq!(made.sh(&line).stdout.trim(), "", "the canary of the host is visible");
    }
    for line in both_users(&format!("cat {} 2>&1", file.display())) {
        assert!(!made.sh(&line).stdout.contains("host secret"));
    }
    fs::remove_file(&file).expect("remove the canary");
    let mounts = made.out("cat /proc/self/mountinfo");
    let run_dir = daemon.run_dir().to_string_lossy().into_owned();
    let data_dir = daemon.data_dir().to_string_lossy().into_owned();
    for needle in [run_dir.as_str(), data_dir.as_str(), "/var/lib", "trixie", "volumes", "icebox-test", "/dev/loop"] {
        assert!(!mounts.contains(needle), "mountinfo tells {needle}:\n{mounts}");
    }
    for shared in ["shared:", "master:"] {
        assert!(!mounts.contains(shared), "a mount of the box propagates:\n{mounts}");
    }
    let init = daemon.init_pid(&made).to_string();
    assert_ne!(fs::read_link(format!("/proc/{init}/root")).ok(), None);
}

#[test]
fn boxes_do_not_see_each_other() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.api().create_default(), daemon.api().create_default());
    a.write("secret-of-a.txt", "A's secret");
    a.out("nohup sleep 98765 >/dev/null 2>&1 & true");
    a.out("sleep 0.01; ps -eo args | grep -q '[s]leep 98765'");
    assert_eq!(b.sh("ps -eo args | grep '[s]leep 98765'").code, 1, "B sees A's process");
    assert_eq!(b.sh("cat secret-of-a.txt").code, 1);
    let pids = lines(&b, "ls /proc | grep -E '^[0-9]+$'");
    assert!(pids.len() < 12, "B sees too many processes: {pids:?}");
    for line in both_users("kill -9 -1; true") {
        let _ = b.sh(&line);
    }
    assert_eq!(a.out("ps -eo args | grep -c '[s]leep 98765'"), "1", "B killed a process of A");
    assert_eq!(b.out("echo still alive"), "still alive", "kill -1 inside must not end the box");
    a.out("nohup python3 -m http.server 8123 --bind 127.0.0.1 >/dev/null 2>&1 & true");
    let connect = "import socket;s=socket.socket();print(s.connect_ex(('127.0.0.1',8123)))";
    icebox_tests::wait_until(icebox_tests::PATIENCE, "A's server", || a.python_out(connect) == "0");
    assert_ne!(b.python_out(connect), "0", "B reaches A's loopback");
    a.python_out("import socket;from multiprocessing import shared_memory as m;s=m.SharedMemory('of_a',True,64);import os;os._exit(0)");
    assert_ne!(b.out("ls -A /dev/shm | wc -l"), "1", "B sees A's shared memory");
}

fn capability_set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix(&format!("{name}:"))).expect("the line");
    u64::from_str_radix(line.trim(), 16).expect("hex")
}

/// CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETFCAP: the most that anything in a box may ever have.
const CAPS_MAX: u64 = 0x8000_00fb;

#[test]
fn privileges_are_the_table_for_user_and_root() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    made.pause();
    for (root, line) in both_users("cat /proc/self/status").into_iter().enumerate() {
        let status = made.out(&line);
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let set = capability_set(&status, name);
            assert_eq!(set & !CAPS_MAX, 0, "{name} {set:016x} has more than the table");
        }
        assert_eq!(capability_set(&status, "CapInh"), 0);
        assert_eq!(capability_set(&status, "CapAmb"), 0);
        if root == 0 {
            assert_eq!(capability_set(&status, "CapEff"), 0, "boxuser has capabilities");
        } else {
            assert_eq!(capability_set(&status, "CapEff"), CAPS_MAX, "root of the box lacks what apt needs");
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    assert_eq!(made.out("id -u; id -un; sudo -n id -u").lines().collect::<Vec<_>>(), ["1000", "boxuser", "0"]);
    assert_eq!(made.out("sudo -n cat /proc/self/uid_map | wc -l"), "1");
    let setuid = "sudo -n cp /usr/bin/id /tmp/suid-id && sudo -n chmod 4755 /tmp/suid-id && /tmp/suid-id -u";
    assert_eq!(made.out(setuid), "1000", "a setuid file gave root under no_new_privs");
}

#[test]
fn the_init_cannot_be_looked_into() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    for target in ["exe", "root", "cwd", "fd/0", "ns/mnt"] {
        for line in both_users(&format!("readlink /proc/1/{target}")) {
            assert_ne!(made.sh(&line).code, 0, "{line} works");
        }
    }
    for target in ["mem", "environ", "maps", "auxv"] {
        for line in both_users(&format!("cat /proc/1/{target}")) {
            let read = made.sh(&line);
            assert!(read.code != 0 || read.stdout.is_empty(), "{line} works: {read:?}");
        }
    }
    let ptrace = "import ctypes;c=ctypes.CDLL(None,use_errno=True);print(c.ptrace(0x4206,1,0,0))";
    assert_eq!(made.python_out(ptrace), "-1", "PTRACE_SEIZE of init works");
    let exe = fs::read_link(format!("/proc/{}/exe", daemon.init_pid(&made))).expect("exe of init");
    assert!(exe.to_string_lossy().contains("memfd:"), "init runs from {}", exe.display());
}

#[test]
fn a_run_starts_with_three_descriptors_and_a_real_directory() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let list =
        "import os;print(sorted(int(f) for f in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{f}')))";
    assert_eq!(made.python_out(list), "[0, 1, 2]");
    for fd in 0..24 {
        let body = serde_json::json!({ "command": ["pwd", "-P"], "folder": format!("/proc/self/fd/{fd}") });
        let reply = made.post("/exec", &body);
        let text = reply.text();
        assert!(
            reply.status < 500 && !text.contains("unreachable") && !text.contains("icebox-test"),
            "fd {fd}: {text}"
        );
    }
}

#[test]
fn kernel_knobs_and_secrets_are_masked() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    for path in [
        "kcore",
        "keys",
        "key-users",
        "timer_list",
        "kallsyms",
        "sysrq-trigger",
        "kmsg",
        "interrupts",
        "slabinfo",
        "vmallocinfo",
        "cmdline",
        "diskstats",
        "partitions",
        "buddyinfo",
        "zoneinfo",
        "consoles",
        "modules",
        "schedstat",
    ] {
        for line in both_users(&format!("head -c 64 /proc/{path} 2>/dev/null | wc -c")) {
            assert_eq!(made.out(&line), "0", "{line}");
        }
    }
    for path in [
        "/sys/firmware",
        "/sys/kernel/debug",
        "/sys/kernel/tracing",
        "/sys/kernel/security",
        "/sys/block",
        "/sys/module",
        "/sys/devices/system/memory",
        "/sys/kernel/slab",
        "/sys/kernel/iommu_groups",
    ] {
        for line in both_users(&format!("ls -A {path} 2>/dev/null | wc -l")) {
            assert_eq!(made.out(&line), "0", "{path} shows something");
        }
    }
    for path in ["vmcoreinfo", "notes"] {
        assert_eq!(made.out(&format!("cat /sys/kernel/{path} 2>/dev/null | wc -c")), "0", "/sys/kernel/{path}");
    }
    let writable = "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/drop_caches \
                    /proc/irq/0/smp_affinity /proc/sys/kernel/sysrq /proc/sys/fs/binfmt_misc/register; \
                    do (echo 1 > $f) 2>/dev/null && echo wrote $f; done; true";
    for line in both_users(writable) {
        assert_eq!(made.out(&line), "");
    }
    // The init belongs to the box's root, who may make it a better victim of the OOM killer, and nothing else.
    assert_eq!(made.out("(echo 1 > /proc/1/oom_score_adj) 2>/dev/null && echo wrote; true"), "");
    let lowered = "sudo sh -c '(echo -1 > /proc/1/oom_score_adj) 2>/dev/null && echo lowered; true'";
    assert_eq!(made.out(lowered), "", "a box makes itself safe from the OOM killer");
    let sys = "find /sys -type f -writable 2>/dev/null | head -3; find /proc/sys /proc/irq /proc/bus -type f -writable 2>/dev/null | head -3; true";
    assert_eq!(made.out(sys), "", "a file of /proc or /sys is writable");
}

#[test]
fn devices_are_the_golden_list() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let listed = lines(&made, "ls /dev | sort");
    let golden = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    ];
    for name in &listed {
        assert!(golden.contains(&name.as_str()), "/dev has {name}");
    }
    for name in golden.iter().filter(|n| **n != "mqueue") {
        assert!(listed.iter().any(|l| l == name), "/dev lacks {name}: {listed:?}");
    }
    for line in both_users("mknod /tmp/disk b 254 0; mknod /tmp/null c 1 3; ls /tmp/disk /tmp/null 2>/dev/null") {
        assert_eq!(made.sh(&line).stdout.trim(), "", "a device node can be made");
    }
    assert_eq!(made.out("echo x > /dev/null && head -c 4 /dev/zero | wc -c && head -c 8 /dev/urandom | wc -c"), "4\n8");
}

#[test]
fn mounts_and_namespaces_cannot_be_made() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    for attempt in [
        "unshare -U true",
        "unshare -m true",
        "unshare -n true",
        "unshare -p -f true",
        "mount -t tmpfs none /mnt",
        "mount --bind / /mnt",
        "umount /proc",
        "mount -o remount,rw /sys",
        "chroot / true",
        "hostname changed",
        "nsenter -t 1 -m true",
        "mount -t cgroup2 none /mnt",
        "mount -t proc none /mnt",
        "swapoff -a && false",
        "dmesg",
    ] {
        for line in both_users(attempt) {
            assert_ne!(made.sh(&line).code, 0, "{line} works");
        }
    }
    assert_eq!(made.out("mkdir /sys/fs/cgroup/x 2>/dev/null && echo made; true"), "");
}

/// x86-64 numbers of calls that no box needs, each tried with zeros.
const DENIED: &str = r"
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
calls = dict(io_uring_setup=425, bpf=321, perf_event_open=298, userfaultfd=323, keyctl=250, add_key=248, request_key=249,
    kexec_load=246, init_module=175, finit_module=313, mount=165, umount2=166, pivot_root=155, setns=308, unshare=272,
    open_by_handle_at=304, fsopen=430, fsmount=432, open_tree=428, move_mount=429, mount_setattr=442, swapon=167, reboot=169,
    acct=163, quotactl=179, iopl=172, ioperm=173, clone3=435, pidfd_getfd=438, lookup_dcookie=212, settimeofday=164,
    clock_settime=227, syslog=103, vhangup=153, chroot=161, fanotify_init=300)
bad = []
for name, number in calls.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    code = ctypes.get_errno()
    if result != -1 or code not in (errno.EPERM, errno.ENOSYS):
        bad.append((name, result, errno.errorcode.get(code, code)))
for family, kind, protocol in ((38, 5, 0), (17, 3, 0), (40, 1, 0), (33, 2, 0), (16, 3, 6), (44, 3, 0), (2, 3, 1), (29, 3, 1)):
    if libc.socket(family, kind, protocol) != -1:
        bad.append(('socket', family, kind, protocol))
for flag in (0x20000, 0x10000000, 0x40000000, 0x20000000, 0x08000000, 0x04000000, 0x02000000):
    result = libc.syscall(56, flag | 17, 0, 0, 0, 0)
    if result == 0:
        import os; os._exit(0)
    if result != -1:
        bad.append(('clone', hex(flag)))
for request in (0x5412, 0x5412 | 1 << 32, 0x541c):
    if libc.ioctl(0, ctypes.c_ulong(request), ctypes.c_char_p(b'x')) != -1:
        bad.append(('ioctl', hex(request)))
print(bad)
";

#[test]
fn dangerous_system_calls_are_refused() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    assert_eq!(made.python_out(DENIED), "[]");
    let root = made.exec(&["sudo", "-n", "python3", "-c", DENIED]);
    assert_eq!((root.code, root.stdout.trim()), (0, "[]"), "{root:?}");
    let compat = "import ctypes,os,signal,mmap;\
                  m=mmap.mmap(-1,4096,prot=7);m.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3');\
                  f=ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)));print(f())";
    let result = made.python(compat);
    assert!(result.code != 0 || result.stdout.trim() == "-38", "a 32-bit system call works: {result:?}");
}

#[test]
fn sockets_of_the_host_cannot_be_reached() {
    let daemon = Daemon::start();
    let made = daemon.api().create_default();
    let name = daemon::unique("icebox-abstract");
    let address = SocketAddr::from_abstract_name(&name).expect("an abstract name");
    let _abstract = UnixListener::bind_addr(&address).expect("listen");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = tcp.local_addr().expect("port").port();
    let api_port = daemon.url().rsplit(':').next().expect("port").to_owned();
    let code = format!(
        "import socket\n\
         u=socket.socket(socket.AF_UNIX)\n\
         print(u.connect_ex('\\0{name}') == 0)\n\
         for p in ({port}, {api_port}):\n  s=socket.socket(); s.settimeout(2); print(s.connect_ex(('127.0.0.1', p)) == 0)\n"
    );
    assert_eq!(made.python_out(&code), "False\nFalse\nFalse");
    for line in both_users("find / -xdev -type s 2>/dev/null; find /run -type s 2>/dev/null; true") {
        for socket in made.out(&line).lines() {
            assert!(!socket.contains("ctl.sock"), "the control socket is visible: {socket}");
        }
    }
    let directory = fs::metadata(daemon.run_dir()).expect("run dir");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&directory.permissions()) & 0o777, 0o700);
}
