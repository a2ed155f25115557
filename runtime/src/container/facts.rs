//! What is recorded about a container.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::{CgroupPath, Manager};

/// The facts recorded at create. They never change afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) pid: i32,
    /// Clock ticks since boot; with `boot_id` it tells this process from a later one of the same number.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
    /// Seconds since 1970, when it was created.
    pub(crate) created: u64,
    pub(crate) cgroup: Option<CgroupFacts>,
    /// The v1 controllers that were used.
    pub(crate) controllers: Vec<String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub(crate) struct CgroupFacts {
    pub(crate) manager: Manager,
    pub(crate) path: CgroupPath,
}

/// As it stands in the file. Earlier versions wrote the path alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Path(CgroupPath),
    Whole { manager: Manager, path: CgroupPath },
}

impl From<Stored> for CgroupFacts {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Path(path) => Self { manager: Manager::Cgroupfs, path },
            Stored::Whole { manager, path } => Self { manager, path },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_read_as_it_was_written_now_and_earlier() {
        let facts = CgroupFacts { manager: Manager::Cgroupfs, path: CgroupPath::new("icerun/x").unwrap() };
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(text, r#"{"manager":"cgroupfs","path":"icerun/x"}"#);
        for text in [text.as_str(), r#""icerun/x""#] {
            assert_eq!(serde_json::from_str::<CgroupFacts>(text).unwrap(), facts);
        }
        for text in [r#""../x""#, r#"{"manager":"cgroupfs","path":"/x"}"#, r#"{"manager":"other","path":"x"}"#] {
            assert!(serde_json::from_str::<CgroupFacts>(text).is_err(), "{text}");
        }
    }
}
