//! Parsers of the kernel's text files. Pure; they take any bytes without a panic and skip unknown lines.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// The highest plausible CPU or memory node number; a longer range is not expanded.
const LIST_NUMBER_MAX: u32 = 65_535;

/// The needed fields of one line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) mount_point: PathBuf,
    pub(super) fs_type: String,
    pub(super) super_options: String,
}

/// The lines that have the documented form; others are passed over.
pub(super) fn mountinfo(text: &str) -> Vec<Mount> {
    text.lines().filter_map(mountinfo_line).collect()
}

fn mountinfo_line(line: &str) -> Option<Mount> {
    // id parent major:minor root mount-point options optional-fields... - type source super-options
    // An optional field never is a lone `-`, and no other field before it can be: the first ` - ` ends them.
    let (left, right) = line.split_once(" - ")?;
    let mount_point = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    let fs_type = right.next()?;
    let super_options = right.nth(1)?;
    Some(Mount {
        mount_point: PathBuf::from(std::ffi::OsString::from_vec(unescape(mount_point))),
        fs_type: fs_type.to_owned(),
        super_options: super_options.to_owned(),
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> Vec<u8> {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let digits =
            bytes.get(i + 1..i + 4).filter(|d| bytes[i] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        let value = digits.map(|d| d.iter().fold(0_u32, |v, b| v * 8 + u32::from(b - b'0')));
        if let Some(byte) = value.and_then(|v| u8::try_from(v).ok()) {
            out.push(byte);
            i += 4;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    out
}

/// The number behind `key` in a file of `key value` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (k, v) = line.split_once(' ')?;
        if k == key { v.trim().parse().ok() } else { None }
    })
}

/// A file that holds one number; `max` is `None` inside.
pub(super) fn single(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "max" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

/// The numbers of a list like `0-3,7`, as the files of cpusets have it. An empty one is an empty set.
#[must_use]
pub fn number_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut set = BTreeSet::new();
    let text = text.trim();
    if text.is_empty() {
        return Some(set);
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (decimal(first)?, decimal(last)?);
        if first > last || last > LIST_NUMBER_MAX {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

/// Is this a list of CPUs or memory nodes that the kernel would take, like `0-3,7`? An empty one is not.
#[must_use]
pub fn is_number_list(text: &str) -> bool {
    number_list(text).is_some_and(|set| !set.is_empty())
}

/// Digits only: `u32::from_str` also takes a plus sign.
fn decimal(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// The process ids of a `cgroup.procs` file. 0 (a process outside our pid namespace) is left out.
pub(super) fn pids(text: &str) -> impl Iterator<Item = i32> {
    text.lines().filter_map(|l| l.trim().parse().ok()).filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REAL: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime master:1 propagate_from:2 - cgroup2 cgroup2 rw,nsdelegate
garbage
";

    #[test]
    fn reads_a_mount_table() {
        let mounts = mountinfo(REAL);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].super_options, "rw,cpu,cpuacct");
        assert_eq!(mounts[3].mount_point, PathBuf::from("/sys/fs/cgroup/uni fied"));
        assert_eq!(mounts[3].fs_type, "cgroup2");
    }

    #[test]
    fn keys_match_whole_words_only() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "kill"), None);
        assert_eq!(keyed("usage_usec -4\n", "usage_usec"), None);
    }

    #[test]
    fn number_lists() {
        let set = |v: &[u32]| Some(v.iter().copied().collect());
        assert_eq!(number_list("0-2,5\n"), set(&[0, 1, 2, 5]));
        assert_eq!(number_list(""), set(&[]));
        for bad in ["1-", "-1", "2-1", "+1", "0,,1", "0-99999999", "a"] {
            assert_eq!(number_list(bad), None, "{bad}");
        }
    }

    fn escape(path: &[u8]) -> String {
        let text = std::str::from_utf8(path).unwrap();
        text.chars()
            .map(|c| if " \t\n\\".contains(c) { format!("\\{:03o}", c as u32) } else { c.to_string() })
            .collect()
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = (mountinfo(&text), keyed(&text, "a"), single(&text), number_list(&text), pids(&text).count());
        }

        #[test]
        fn mount_points_survive(path in "/[a-z \t\\\\\n0-7é]{0,20}", optional in prop::collection::vec("shared:[0-9]", 0..3)) {
            let optional: String = optional.iter().map(|o| format!(" {o}")).collect();
            let line = format!("1 2 0:3 / {} rw{optional} - cgroup2 none rw\n", escape(path.as_bytes()));
            let mounts = mountinfo(&line);
            prop_assert_eq!(mounts.len(), 1);
            prop_assert_eq!(&mounts[0].mount_point, &PathBuf::from(path));
        }

        #[test]
        fn keyed_finds_what_was_printed(values in prop::collection::btree_map("[a-z_]{1,12}", any::<u64>(), 0..12)) {
            let text: String = values.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
            for (k, v) in &values {
                prop_assert_eq!(keyed(&text, k), Some(*v));
            }
        }

        #[test]
        fn number_list_round_trip(set in prop::collection::btree_set(0_u32..200, 0..40)) {
            let text = set.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            prop_assert_eq!(number_list(&text), Some(set));
        }
    }
}
