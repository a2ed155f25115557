//! What the kernel counts, and where (docs/limits.md): one box fills a count; another box and the host still have theirs.

use std::io::Write as _;
use std::process::{Command, Stdio};

use icebox_tests::api::read_until;
use icebox_tests::{Daemon, PATIENCE, TestBox, wait_until};

/// `python3 fill.py ROW MOST`: takes one thing of a kind after the other, says how many it got and why it stopped, and
/// holds them until it is killed. With a third word it ends at once.
const FILL: &str = r"
import array, ctypes, errno, fcntl, os, signal, socket, sys
c = ctypes.CDLL(None, use_errno=True)
keep = []
def until_refused(take, most):
    for n in range(most):
        ctypes.set_errno(0)
        if take(n) < 0:
            return n, errno.errorcode.get(ctypes.get_errno(), '?')
    return most, 'more'
def instances(most):
    return until_refused(lambda _: c.inotify_init1(0), most)
def watches(most):
    count = 100 if most > 1000 else 8
    own = [c.inotify_init1(0) for _ in range(count)]
    if most <= 1000:
        names = [b'/usr/bin/' + name for name in os.listdir(b'/usr/bin')]
    else:
        names = [b'/dev/shm/%d' % n for n in range(30000)]
        for name in names:
            open(name, 'w').close()
    return until_refused(lambda n: c.inotify_add_watch(own[n % count], names[n // count], 2), min(most, count * len(names)))
def signals(most):
    signal.pthread_sigmask(signal.SIG_BLOCK, [40])
    return until_refused(lambda _: c.sigqueue(os.getpid(), 40, ctypes.c_void_p(0)), most)
class Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ('flags', 'messages', 'size', 'held', 'a', 'b', 'c', 'd')]
def queues(most):
    wanted = Attributes(0, 10, 8192, 0)
    def take(n):
        name = b'/q%d-%d' % (os.getpid(), n)
        queue = c.mq_open(name, os.O_RDWR | os.O_CREAT, 0o600, ctypes.byref(wanted))
        if queue >= 0:
            c.mq_unlink(name)
        return queue
    return until_refused(take, most)
def locked(most):
    def take(_):
        segment = c.shmget(0, 1 << 20, 0o1600)
        if segment < 0:
            return -1
        keep.append(segment)
        ctypes.set_errno(0)
        answer = c.shmctl(segment, 11, None)
        code = ctypes.get_errno()
        c.shmat.restype = ctypes.c_void_p
        c.shmat(segment, None, 0)
        c.shmctl(segment, 0, None)
        ctypes.set_errno(code)
        return answer
    return until_refused(take, most)
def aio(most):
    def take(_):
        context = ctypes.c_ulong(0)
        keep.append(context)
        return c.syscall(206, 8, ctypes.byref(context))
    return until_refused(take, most)
def terminals(most):
    return until_refused(lambda _: c.posix_openpt(2), most)
def system_v(most):
    return until_refused(lambda _: c.msgget(0, 0o1600), most)
def in_flight(most):
    one = array.array('i', [0] * 100)
    got = 0
    try:
        while got < most:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            keep.append(pair)
            pair[0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, one)])
            got += 100
    except OSError as error:
        return got, errno.errorcode[error.errno]
    return got, 'more'
def pipe_pages(most):
    for n in range(most):
        pipe = os.pipe()
        keep.append(pipe)
        if fcntl.fcntl(pipe[0], 1032) < 65536:
            return n, 'small'
        try:
            fcntl.fcntl(pipe[0], 1031, 1 << 20)
        except OSError:
            pass
    return most, 'more'
print(sys.argv[1], *globals()[sys.argv[1]](int(sys.argv[2])), 'told', flush=True)
if len(sys.argv) < 4:
    signal.pause()
";

struct Row {
    /// The function of [`FILL`].
    name: &'static str,
    /// More than one box may have.
    more: u64,
    /// What the other box and the host take then.
    few: u64,
    /// How the box is stopped.
    refusal: &'static str,
}

const fn row(name: &'static str, more: u64, few: u64, refusal: &'static str) -> Row {
    Row { name, more, few, refusal }
}

const ROWS: [Row; 9] = [
    row("instances", 100_000, 3, "EMFILE"),
    row("watches", 20_000_000, 100, "ENOSPC"),
    row("signals", 10_000_000, 5, "EAGAIN"),
    row("queues", 500, 2, "EMFILE"),
    row("locked", 100, 1, "ENOMEM"),
    row("terminals", 1000, 2, "ENOSPC"),
    row("system_v", 100_000, 2, "ENOSPC"),
    row("in_flight", 10_000_000, 100, "ETOOMANYREFS"),
    row("pipe_pages", 4000, 3, "small"),
];

/// Fills a count in a box and leaves it full: what was told, and the stream that keeps the program.
fn fill(made: &TestBox, row: &Row) -> (u64, String, reqwest::blocking::Response) {
    let mut stream = made.stream(&["python3", "/tmp/fill.py", row.name, &row.more.to_string()]);
    let told = read_until(&mut stream, "told");
    let words: Vec<&str> = told.split_whitespace().collect();
    let count = words.get(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{}: {told}", row.name));
    (count, words[2].to_owned(), stream)
}

/// The same program as the host's root, which borrows python of a box and leaves nothing in the host's IPC namespace.
fn on_host(files_of: i32, row: &Row) -> String {
    let mut command = Command::new("unshare");
    command.args(["--ipc", "nsenter", "--target", &files_of.to_string(), "--mount"]);
    command.args(["python3", "-", row.name, &row.few.to_string(), "end"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start unshare");
    child.stdin.take().expect("its standard input").write_all(FILL.as_bytes()).expect("write the program");
    let output = child.wait_with_output().expect("wait for python3");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_count_that_one_box_has_used_up_is_free_in_another_and_on_the_host() {
    let daemon = Daemon::start();
    let (full, other) = (daemon.api().create_default(), daemon.api().create_default());
    for made in [&full, &other] {
        made.write("/tmp/fill.py", FILL);
    }
    let files_of = daemon.init_pid(&other);
    let mut wrong = Vec::new();
    for row in &ROWS {
        let (count, refusal, stream) = fill(&full, row);
        println!("{}: {count}, then {refusal}", row.name);
        let wanted = format!("{} {} more told", row.name, row.few);
        let in_other = other.out(&format!("python3 /tmp/fill.py {} {} end", row.name, row.few));
        let host = on_host(files_of, row);
        if refusal != row.refusal || in_other != wanted || host != wanted {
            wrong.push(format!(
                "{}: {count} then {refusal} (wanted {}); the other box: {in_other}; the host: {host}",
                row.name, row.refusal
            ));
        }
        full.out("pkill -9 -f '[f]ill.py'; ipcrm --all=msg; true");
        drop(stream);
        let gone = || full.sh("pgrep -f '[f]ill.py'").code == 1;
        wait_until(PATIENCE, "the program that fills", gone);
    }
    // One count for the whole machine: a box gets nothing of it.
    let aio = row("aio", 10, 1, "ENOSYS");
    let (count, refusal, _stream) = fill(&full, &aio);
    if (count, refusal.as_str()) != (0, aio.refusal) || on_host(files_of, &aio) != "aio 1 more told" {
        wrong.push(format!("aio: {count}, then {refusal}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Queues bytes on a box's own loopback and says how many pages the kernel has for it; ends when it is killed.
const QUEUE: &str = r"
import signal, socket, sys
keep = []
if sys.argv[1] == 'tcp':
    for _ in range(int(sys.argv[2])):
        server = socket.create_server(('127.0.0.1', 0))
        client = socket.create_connection(server.getsockname())
        keep += [server, client, server.accept()[0]]
        client.setblocking(False)
        for end in keep[-2:]:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        try:
            while client.send(b'x' * 65536): pass
        except BlockingIOError:
            pass
else:
    for _ in range(int(sys.argv[2])):
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        own.bind(('127.0.0.1', 0))
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        own.connect(own.getsockname())
        keep.append(own)
        for _ in range(200):
            own.send(b'x' * 60000)
print('queued', flush=True)
signal.pause()
";

/// Pages that the kernel has in socket buffers of this protocol, on the whole machine (`/proc/net/sockstat`).
fn socket_pages(protocol: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").expect("sockstat");
    let line = text.lines().find_map(|l| l.strip_prefix(protocol)?.strip_prefix(": ")).expect("the protocol");
    let pages = line.split_once(" mem ").and_then(|(_, pages)| pages.trim().split(' ').next()?.parse().ok());
    pages.unwrap_or_else(|| panic!("no mem in {line}"))
}

#[test]
fn limits_can_be_read_in_the_box_and_hold_for_socket_buffers() {
    const SMALL_MEMORY_BYTES: u64 = 4 << 30;
    const PAGE_BYTES: u64 = 4096;
    const SMALLER_BYTES: u64 = 64 << 20;
    let daemon = Daemon::start_with("[limits]\ncpuset_cpus = \"0\"\n");
    let made = daemon.api().create_default();
    let is_v1 = daemon.cgroups().v1.contains_key("memory");
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get().min(2));

    // The usual paths, with the caller's own path of /proc/self/cgroup and without.
    let files: &[(&str, String)] = if is_v1 {
        &[
            ("memory/memory.limit_in_bytes", SMALL_MEMORY_BYTES.to_string()),
            (
                "memory$(sed -n 's/.*:memory://p' /proc/self/cgroup)/memory.limit_in_bytes",
                SMALL_MEMORY_BYTES.to_string(),
            ),
            ("pids$(sed -n 's/.*:pids://p' /proc/self/cgroup)/pids.max", "1024".to_owned()),
            ("cpu/cpu.cfs_quota_us", (cores * 100_000).to_string()),
            ("cpuset/cpuset.cpus", "0".to_owned()),
            ("unified/cgroup.max.depth", "2".to_owned()),
        ]
    } else {
        &[
            ("memory.max", SMALL_MEMORY_BYTES.to_string()),
            ("$(sed -n 's/^0:://p' /proc/self/cgroup)/memory.max", SMALL_MEMORY_BYTES.to_string()),
            ("runs/pids.max", "1024".to_owned()),
            ("cpu.max", format!("{} 100000", cores * 100_000)),
            ("cpuset.cpus", "0".to_owned()),
        ]
    };
    for (file, value) in files {
        assert_eq!(&made.out(&format!("cat /sys/fs/cgroup/{file}")), value, "{file}");
    }
    assert!(!made.out("cat /proc/self/cgroup").contains("/.."));
    let node = made.sh("command -v node > /dev/null && node -p 'process.constrainedMemory()'");
    if node.code == 0 && is_v1 {
        assert_eq!(node.stdout.trim(), SMALL_MEMORY_BYTES.to_string());
    }
    let written =
        made.sh("find /sys/fs/cgroup -writable -type f | head -3; sudo mkdir /sys/fs/cgroup/memory/x /sys/fs/cgroup/x");
    assert!(written.code != 0 && written.stdout.is_empty(), "{written:?}");
    assert_eq!(made.out("cat /sys/devices/system/cpu/online"), "0");
    assert_eq!(made.out("wc -l < /proc/swaps"), "1");

    // Buffers of sockets are charged, and end at a limit.
    made.write("/tmp/queue.py", QUEUE);
    let cgroup = daemon.cgroup(&made);
    let dir = daemon.cgroups().controller_dir("memory", &cgroup);
    let charged = || {
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_else(|e| panic!("read {file}: {e}"));
        if is_v1 {
            return read("memory.kmem.tcp.usage_in_bytes").trim().parse::<u64>().expect("bytes");
        }
        icebox_tests::machine::key_value(&read("memory.stat"), "sock").expect("sock")
    };
    if is_v1 {
        let limit = dir.join("memory.kmem.tcp.limit_in_bytes");
        assert_eq!(std::fs::read_to_string(&limit).expect("the limit").trim(), (256 << 20).to_string());
        // Smaller than any box has: the test need not take so much of the machine.
        std::fs::write(&limit, SMALLER_BYTES.to_string()).expect("a smaller limit");
    }
    // Linux 6.1 lets a UDP socket queue 416 KiB at most (twice rmem_max), so 16 of them are well above 4 MiB.
    let sockets = if is_v1 { "40" } else { "16" };
    for protocol in ["tcp", "udp"] {
        let name = protocol.to_uppercase();
        let before = socket_pages(&name);
        let mut stream = made.stream(&["python3", "/tmp/queue.py", protocol, sockets]);
        read_until(&mut stream, "queued");
        let grown = (socket_pages(&name).saturating_sub(before)) * PAGE_BYTES;
        let bytes = charged();
        println!("{protocol}: the kernel's buffers grew by {grown}, the box is charged {bytes}");
        assert!(grown > 4 << 20, "{protocol}: {grown} bytes");
        assert!(bytes > grown / 2, "{protocol}: grown by {grown}, charged {bytes}");
        assert!(!is_v1 || bytes <= SMALLER_BYTES + (1 << 20), "{protocol}: {bytes} with a limit of {SMALLER_BYTES}");
        made.out("pkill -9 -f '[q]ueue.py'; true");
        drop(stream);
        wait_until(PATIENCE, "the buffers to be given back", || charged() < bytes / 4);
    }
}
