//! `/proc/meminfo` (proc_meminfo(5)) of a box's memory controller.
//!
//! Keys, their order and their widths are the kernel's. Where a cgroup has no number for a key, the value is what is
//! certain: no swap, no huge pages, no address space of the kernel. `Committed_AS` is what is in use; a cgroup does not
//! count what was promised.

use std::fmt::Write as _;

use icebox_runtime::cgroup::MemoryParts;

/// Digits of a value, unless the box's memory has more.
const DIGITS_MIN: usize = 8;
/// Digits that the kernel gives a number of huge pages.
const HUGE_PAGES_DIGITS: usize = 7;
/// On x86 and with 4 KiB pages on arm64.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// The file of a box that may use `total` bytes and uses `used`. Every text for the same `total` has the same length.
pub(super) fn text(total: u64, used: u64, parts: &MemoryParts) -> String {
    let used = used.min(total);
    let free = total - used;
    let reclaimable = parts.active_file + parts.inactive_file + parts.slab_reclaimable;
    let slab = parts.slab_reclaimable + parts.slab_unreclaimable;
    let lines = [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free + reclaimable.min(used)),
        ("Buffers", 0),
        ("Cached", parts.file),
        ("SwapCached", 0),
        ("Active", parts.active_anon + parts.active_file),
        ("Inactive", parts.inactive_anon + parts.inactive_file),
        ("Active(anon)", parts.active_anon),
        ("Inactive(anon)", parts.inactive_anon),
        ("Active(file)", parts.active_file),
        ("Inactive(file)", parts.inactive_file),
        ("Unevictable", parts.unevictable),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", parts.dirty),
        ("Writeback", parts.writeback),
        ("AnonPages", parts.anon),
        ("Mapped", parts.mapped),
        ("Shmem", parts.shmem),
        ("KReclaimable", parts.slab_reclaimable),
        ("Slab", slab),
        ("SReclaimable", parts.slab_reclaimable),
        ("SUnreclaim", parts.slab_unreclaimable),
        ("KernelStack", parts.kernel_stack),
        ("PageTables", parts.page_tables),
        ("SecPageTables", 0),
        ("NFS_Unstable", 0),
        ("Bounce", 0),
        ("WritebackTmp", 0),
        ("CommitLimit", total),
        ("Committed_AS", parts.anon + parts.shmem),
        ("VmallocTotal", 0),
        ("VmallocUsed", 0),
        ("VmallocChunk", 0),
        ("Percpu", parts.percpu),
        ("HardwareCorrupted", 0),
        ("AnonHugePages", parts.huge_anon),
        ("ShmemHugePages", 0),
        ("ShmemPmdMapped", 0),
        ("FileHugePages", 0),
        ("FilePmdMapped", 0),
    ];
    let width = kib(total).to_string().len().max(DIGITS_MIN);
    // Counters of a cgroup are not read at one moment, and a sum may pass the limit by a little.
    let most = kib(total);
    let mut text = String::new();
    // Writing into a string does not fail.
    for (name, bytes) in lines {
        let _ = writeln!(text, "{:<16}{:>width$} kB", format!("{name}:"), kib(bytes).min(most));
    }
    for name in ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"] {
        let _ = writeln!(text, "{:<17}{:>HUGE_PAGES_DIGITS$}", format!("{name}:"), 0);
    }
    for (name, bytes) in [("Hugepagesize", HUGE_PAGE_BYTES), ("Hugetlb", 0)] {
        let _ = writeln!(text, "{:<16}{:>DIGITS_MIN$} kB", format!("{name}:"), kib(bytes));
    }
    text
}

/// The box's memory in bytes, as a text of [`text`] tells it.
pub(super) fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn kib(bytes: u64) -> u64 {
    bytes / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_file_has_the_kernels_form() {
        let parts = MemoryParts {
            anon: 100 * MIB,
            file: 50 * MIB,
            inactive_file: 30 * MIB,
            active_file: 16 * MIB,
            inactive_anon: 100 * MIB,
            active_anon: 4 * MIB,
            shmem: 4 * MIB,
            slab_reclaimable: 2 * MIB,
            slab_unreclaimable: MIB,
            ..MemoryParts::default()
        };
        let text = text(4 << 30, 170 * MIB, &parts);
        assert!(
            text.starts_with(
                "MemTotal:        4194304 kB\n\
                 MemFree:         4020224 kB\n\
                 MemAvailable:    4069376 kB\n\
                 Buffers:               0 kB\n\
                 Cached:            51200 kB\n\
                 SwapCached:            0 kB\n\
                 Active:            20480 kB\n\
                 Inactive:         133120 kB\n\
                 Active(anon):       4096 kB\n"
            ),
            "{text}"
        );
        assert!(text.contains("\nSwapTotal:             0 kB\nSwapFree:              0 kB\n"), "{text}");
        assert!(text.contains("\nSlab:               3072 kB\nSReclaimable:       2048 kB\n"), "{text}");
        assert!(text.ends_with("HugePages_Surp:        0\nHugepagesize:       2048 kB\nHugetlb:               0 kB\n"));
        assert_eq!(total(&text), Some(4 << 30));
    }

    /// The keys of the machine that runs this test come in the same order and with the same width.
    #[test]
    fn keys_and_widths_are_those_of_the_kernel_here() {
        let ours = text(4 << 30, 0, &MemoryParts::default());
        let theirs = std::fs::read_to_string("/proc/meminfo").unwrap();
        let key = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
        let (our_keys, their_keys): (Vec<_>, Vec<_>) =
            (ours.lines().map(key).collect(), theirs.lines().map(key).collect());
        let common = |keys: &[String], other: &[String]| -> Vec<String> {
            keys.iter().filter(|key| other.contains(key)).cloned().collect()
        };
        assert_eq!(common(&our_keys, &their_keys), common(&their_keys, &our_keys));
        assert!(common(&our_keys, &their_keys).len() > 20);
        let widths = |text: &str, name: &str| text.lines().find(|line| line.starts_with(name)).map(str::len);
        for name in ["SwapCached:", "HugePages_Total:", "Hugepagesize:"].iter().filter(|name| theirs.contains(**name)) {
            assert_eq!(widths(&ours, name), widths(&theirs, name), "{name}");
        }
    }

    #[test]
    fn every_text_of_a_box_has_the_same_length() {
        let huge = MemoryParts { anon: u64::MAX / 4, inactive_file: 1 << 40, ..MemoryParts::default() };
        for total in [256 * MIB, 4 << 30, 512 << 30] {
            let empty = text(total, 0, &MemoryParts::default());
            assert_eq!(text(total, total * 2, &huge).len(), empty.len(), "{total}");
        }
    }

    #[test]
    fn more_used_than_there_is_leaves_nothing() {
        let text = text(MIB, 2 * MIB, &MemoryParts { inactive_file: 1 << 30, ..MemoryParts::default() });
        assert!(text.contains("MemFree:               0 kB\nMemAvailable:       1024 kB\n"), "{text}");
    }
}
