//! The processors that a box is told of, as `/sys/devices/system/cpu/online` writes them.

use std::collections::BTreeSet;

use icebox_runtime::cgroup::number_list;

use crate::error::Error;

/// Where C libraries and language runtimes look for the CPUs.
pub(crate) const CPUS_ONLINE: &str = "/sys/devices/system/cpu/online";

/// The processors of a box on this host.
pub(crate) fn host_processors(cpuset: Option<&str>, cores: f64) -> Result<Vec<u32>, Error> {
    let online = std::fs::read_to_string(CPUS_ONLINE).map_err(|e| Error::io("read processors", CPUS_ONLINE, e))?;
    Ok(processors(&online, cpuset, cores))
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
    fn lists_have_ranges() {
        assert_eq!(list_text(&[0, 1, 2, 7]), "0-2,7");
        assert_eq!(list_text(&[3]), "3");
    }
}
