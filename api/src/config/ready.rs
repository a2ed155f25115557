//! Configuration of ready boxes.

use serde::Deserialize;

use crate::domain::BoxSize;

/// Most ready boxes of a daemon.
const READY_MAX: u64 = 256;
/// Longest name of a runtime.
const RUNTIME_BYTES_MAX: usize = 64;

/// An entry of `[[ready]]`: boxes of one kind that are started before a client asks for them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// The runtime, as a client names it; without one, the base image.
    #[serde(default)]
    pub runtime: Option<String>,
    /// The size class.
    #[serde(default)]
    pub size: BoxSize,
    /// How many are kept.
    pub count: u32,
}

impl Ready {
    /// The invalid key, and its expected value.
    pub fn check(all: &[Self]) -> Result<(), (&'static str, &'static str)> {
        if all.iter().map(|kind| u64::from(kind.count)).sum::<u64>() > READY_MAX {
            return Err(("ready.count", "must be at most 256 for all kinds together"));
        }
        let is_bad = |name: &str| name.is_empty() || name.len() > RUNTIME_BYTES_MAX;
        if all.iter().filter_map(|kind| kind.runtime.as_deref()).any(is_bad) {
            return Err(("ready.runtime", "must have 1 to 64 bytes"));
        }
        let same = |a: &Self, b: &Self| a.runtime == b.runtime && a.size == b.size;
        if all.iter().enumerate().any(|(n, kind)| all.iter().skip(n + 1).any(|other| same(kind, other))) {
            return Err(("ready", "must name each runtime and size once"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        ready: Vec<Ready>,
    }

    fn read(text: &str) -> Result<Vec<Ready>, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        Ready::check(&file.ready).map_err(|(key, _)| key.to_owned())?;
        Ok(file.ready)
    }

    #[test]
    fn kinds_are_read_and_checked() {
        let good = "[[ready]]\ncount = 3\n[[ready]]\nruntime = \"node\"\nsize = \"medium\"\ncount = 253";
        let kinds = read(good).expect("good");
        assert_eq!((kinds[0].runtime.as_deref(), kinds[0].size, kinds[0].count), (None, BoxSize::Small, 3));
        assert_eq!((kinds[1].runtime.as_deref(), kinds[1].size), (Some("node"), BoxSize::Medium));
        for (bad, key) in [
            ("[[ready]]\ncount = 257", "ready.count"),
            ("[[ready]]\ncount = 200\n[[ready]]\nsize = \"large\"\ncount = 57", "ready.count"),
            ("[[ready]]\ncount = 1\nruntime = \"\"", "ready.runtime"),
            ("[[ready]]\ncount = 1\n[[ready]]\ncount = 1", "ready"),
            ("[[ready]]\nsize = \"small\"", "count"),
            ("[[ready]]\ncount = 1\ncolour = 1", "colour"),
            ("[[ready]]\ncount = 1\nsize = \"huge\"", "huge"),
        ] {
            let refused = read(bad).expect_err(bad);
            assert!(refused.contains(key), "{bad}: {refused}");
        }
    }
}
