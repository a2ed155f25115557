//! The processors that a box is told of, as `/sys/devices/system/cpu/online` writes them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use icebox_runtime::cgroup::number_list;

use crate::error::Error;

/// Where C libraries and language runtimes look for the CPUs.
pub(crate) const CPUS_ONLINE: &str = "/sys/devices/system/cpu/online";

/// Longest list of processors, one page of sysfs.
const LIST_BYTES_MAX: usize = 4096;

/// The processors of a box on this host.
pub(crate) fn host_processors(cpuset: Option<&str>, cores: f64) -> Result<Vec<u32>, Error> {
    let online = online().map_err(|e| Error::io("read processors", CPUS_ONLINE, e))?;
    Ok(processors(&online, cpuset, cores))
}

/// The list of this moment. The file is held open: it is read for each box.
fn online() -> io::Result<String> {
    static FILE: OnceLock<File> = OnceLock::new();
    let file = match FILE.get() {
        Some(file) => file,
        None => {
            let opened = File::open(CPUS_ONLINE)?;
            FILE.get_or_init(|| opened)
        }
    };
    let mut text = [0; LIST_BYTES_MAX];
    let length = file.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// As many as its cores, rounded up, of those that it may use.
fn processors(online: &str, cpuset: Option<&str>, cores: f64) -> Vec<u32> {
    let list = |text| number_list(text).unwrap_or_default();
    let online = list(online);
    let usable: BTreeSet<u32> = match cpuset {
        Some(cpuset) => list(cpuset).intersection(&online).copied().collect(),
        None => online,
    };
    usable.into_iter().take(cores.ceil().max(1.0) as usize).collect()
}

/// A list like `0-3,7`.
pub(crate) fn list_text(numbers: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let text = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_as_many_as_cores_and_in_the_cpuset() {
        assert_eq!(processors("0-7\n", None, 2.0), [0, 1]);
        assert_eq!(processors("0-7", None, 1.5), [0, 1]);
        assert_eq!(processors("0,2-3", None, 8.0), [0, 2, 3]);
        assert_eq!(processors("0-7", Some("4-9"), 2.0), [4, 5]);
        assert_eq!(processors("0-1", Some("1"), 2.0), [1]);
        assert!(processors("", None, 1.0).is_empty());
    }

    #[test]
    fn the_list_of_this_machine_can_be_read_more_than_once() {
        let (first, second) = (host_processors(None, 1.0).unwrap(), host_processors(None, 1.0).unwrap());
        assert_eq!((first.len(), &first), (1, &second));
    }

    #[test]
    fn lists_have_ranges() {
        assert_eq!(list_text(&[0, 1, 2, 7]), "0-2,7");
        assert_eq!(list_text(&[3]), "3");
    }
}
