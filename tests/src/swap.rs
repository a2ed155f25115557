//! Swap in compressed memory, for as long as a test needs it. Only in a guest: it is the whole machine's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const CONTROL: &str = "/sys/class/zram-control";
/// Held by the test that has the swap: the kernel chooses among all devices, so two tests could not tell theirs apart.
const LOCK: &str = "/run/icebox-tests-swap.lock";

/// A swap device of its own, on until this is dropped.
#[derive(Debug)]
pub struct ZramSwap {
    number: u32,
    _turn: File,
}

impl ZramSwap {
    /// Makes a zram device of this size and swaps on it. Panics where that cannot be: the test would show nothing.
    pub fn on(bytes: u64) -> Self {
        if !Path::new(CONTROL).is_dir() {
            run("modprobe", &["zram"]);
        }
        let turn = File::create(LOCK).expect("make the lock of the swap");
        turn.lock().expect("wait for the swap of another test");
        // Reading this file makes a device and tells its number.
        let number = fs::read_to_string(Path::new(CONTROL).join("hot_add")).expect("add a zram device");
        let swap = Self { number: number.trim().parse().expect("a number"), _turn: turn };
        fs::write(swap.sysfs("disksize"), bytes.to_string()).expect("set the size of the zram device");
        run("mkswap", &[&swap.device()]);
        run("swapon", &[&swap.device()]);
        swap
    }

    /// Bytes of memory that hold what is swapped out, compressed.
    pub fn stored_bytes(&self) -> u64 {
        let text = fs::read_to_string(self.sysfs("mm_stat")).expect("read mm_stat");
        text.split_whitespace().nth(2).and_then(|n| n.parse().ok()).expect("a number")
    }

    fn device(&self) -> String {
        format!("/dev/zram{}", self.number)
    }

    fn sysfs(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}/{file}", self.number))
    }
}

impl Drop for ZramSwap {
    fn drop(&mut self) {
        // Best effort: the guest ends with its tests.
        let _ = Command::new("swapoff").arg(self.device()).status();
        let _ = fs::write(Path::new(CONTROL).join("hot_remove"), self.number.to_string());
    }
}

fn run(program: &str, args: &[&str]) {
    let ran = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("start {program}: {e}"));
    assert!(ran.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
}
