//! What keeps the flushes of a disk in a pool cheap, and reading fast. Needs root.

use std::fs;
use std::path::Path;
use std::process::Command;

use icebox_rootfs::{PoolSettings, Store};

const GIB: u64 = 1 << 30;
/// In KiB, as the kernel shows it.
const READ_AHEAD: &str = "512";
/// mkfs.xfs allocates 64 MiB.
const LOG_BYTES: u64 = 64 << 20;

fn store(dir: &Path, bytes: u64) -> Store {
    assert!(rustix::process::geteuid().is_root(), "this test attaches loop devices and mounts: run it as root");
    let settings = PoolSettings { size: Some(bytes), margin: 16 << 20, ..PoolSettings::default() };
    Store::open_with(dir, &settings).unwrap()
}

#[test]
fn priv_a_device_that_uses_the_page_cache_reads_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), GIB / 2);
    let (volume, _) = store.create_volume("box-1", 1).unwrap();
    let attached = volume.attach().unwrap();
    let name = attached.device.file_name().unwrap().to_str().unwrap();
    let read = |what: &str| fs::read_to_string(format!("/sys/block/{name}/{what}")).unwrap().trim().to_owned();
    assert_eq!((read("loop/dio").as_str(), read("queue/read_ahead_kb").as_str()), ("0", READ_AHEAD));
}

/// Bytes of the file that are allocated and were never written.
fn unwritten_bytes(file: &Path) -> u64 {
    let output = Command::new("filefrag").args(["-v", "-s", "-b1"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // extent: first.. last: first.. last: length: [expected:] flags
    let unwritten = text.lines().filter(|line| line.contains("unwritten"));
    unwritten.map(|line| line.split(':').nth(3).unwrap().trim().parse::<u64>().unwrap()).sum()
}

#[test]
fn priv_the_log_of_a_large_pool_is_written_when_it_is_made() {
    let (small, large) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop((store(small.path(), GIB), store(large.path(), 32 * GIB)));
    let of = |dir: &tempfile::TempDir| unwritten_bytes(&dir.path().join("pool.xfs"));
    let (small, large) = (of(&small), of(&large));
    assert!(large < LOG_BYTES / 4, "{large} bytes are unwritten");
    assert!(small > LOG_BYTES / 2, "{small} bytes are unwritten: this test looks at the wrong thing");
}
