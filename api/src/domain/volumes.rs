//! Volumes: files that outlive boxes, which see them at a path.

use serde::{Deserialize, Serialize};

/// State of the record of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// It is being made.
    Creating,
    /// Boxes can have it.
    Ready,
}

impl VolumeState {
    /// Its name on disk.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
        }
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Id.
    pub id: String,
    /// The account it belongs to.
    pub account_id: String,
    /// Name, unique in the account.
    pub name: String,
    /// State of the record.
    pub state: VolumeState,
    /// Its size.
    pub size_gib: u32,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Its storage.
    pub stored: Stored,
}

/// The storage of a volume over time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes that it has occupied since `measured_ms`.
    pub bytes: u64,
    /// Unix milliseconds of the last change of `bytes`.
    pub measured_ms: i64,
    /// Byte-milliseconds until then.
    pub byte_ms: u128,
}

impl Stored {
    /// Byte-milliseconds until `now_ms`. A clock that was set back takes nothing away.
    #[must_use]
    pub fn byte_ms(&self, now_ms: i64) -> u128 {
        let since_ms = u128::try_from(now_ms - self.measured_ms).unwrap_or(0);
        self.byte_ms + u128::from(self.bytes) * since_ms
    }

    /// The same storage, with this many bytes from `now_ms` on.
    #[must_use]
    pub fn then(&self, bytes: u64, now_ms: i64) -> Self {
        Self { bytes, measured_ms: now_ms.max(self.measured_ms), byte_ms: self.byte_ms(now_ms) }
    }
}

/// A volume of a box. Stored in the settings of the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Id of the volume.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Absolute path in the box.
    pub path: String,
    /// The box can only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A volume that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRequest {
    /// Name of the volume.
    pub name: String,
    /// Absolute path in the box.
    pub path: String,
    /// The box can only read it.
    pub read_only: bool,
}

/// Most volumes of one box.
pub const VOLUMES_PER_BOX_MAX: usize = 8;
/// Longest path of a volume in a box.
const PATH_BYTES_MAX: usize = 1024;
/// Directories that a volume cannot cover, and cannot lie in.
const KERNEL_DIRECTORIES: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Directories that a volume cannot cover: the box would not start, or lose what it needs.
const SYSTEM_DIRECTORIES: [&str; 9] =
    ["/", "/bin", "/etc", "/lib", "/lib64", "/run", "/sbin", "/usr", "/usr/local/bin"];

/// Checks the paths of the volumes of one box; the error describes the problem.
pub fn check_volumes(volumes: &[VolumeRequest]) -> Result<(), String> {
    if volumes.len() > VOLUMES_PER_BOX_MAX {
        return Err(format!("a box has at most {VOLUMES_PER_BOX_MAX} volumes"));
    }
    for (index, volume) in volumes.iter().enumerate() {
        check_path(&volume.path)?;
        for other in volumes.iter().skip(index + 1) {
            if volume.name == other.name {
                return Err(format!("the volume '{}' is asked for twice", volume.name));
            }
            if is_at_or_below(&volume.path, &other.path) || is_at_or_below(&other.path, &volume.path) {
                let text = format!("'{}' and '{}' are the same path, or one below the other", volume.path, other.path);
                return Err(format!("{text}; volumes lie beside each other"));
            }
        }
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    let shown: String = path.chars().take(80).collect();
    let plain = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| !matches!(part, "" | "." | "..")) && !rest.chars().any(char::is_control)
    });
    if path != "/" && (!plain || path.len() > PATH_BYTES_MAX) {
        return Err(format!(
            "the path of a volume must be absolute, without '.', '..' or '//', and have at most {PATH_BYTES_MAX} \
             bytes: '{shown}'"
        ));
    }
    let is_kernels = KERNEL_DIRECTORIES.iter().any(|directory| is_at_or_below(path, directory));
    if is_kernels || SYSTEM_DIRECTORIES.contains(&path) {
        return Err(format!("a volume cannot be at '{shown}': the box needs what is there"));
    }
    Ok(())
}

fn is_at_or_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, path: &str) -> VolumeRequest {
        VolumeRequest { name: name.into(), path: path.into(), read_only: false }
    }

    #[test]
    fn paths_that_a_box_needs_are_refused() {
        for path in
            ["", "data", "/", "/proc", "/proc/x", "/dev/shm", "/sys", "/etc", "/usr", "/a/../b", "/a//b", "/a/", "/a\n"]
        {
            assert!(check_volumes(&[at("a", path)]).is_err(), "{path:?}");
        }
        for path in ["/data", "/process", "/workspace/home/data", "/usr/share/x", "/run/data"] {
            assert_eq!(check_volumes(&[at("a", path)]), Ok(()), "{path}");
        }
        assert!(check_volumes(&[at("a", &format!("/{}", "x".repeat(PATH_BYTES_MAX)))]).is_err());
    }

    #[test]
    fn volumes_of_a_box_lie_beside_each_other() {
        assert_eq!(check_volumes(&[at("a", "/a"), at("b", "/ab")]), Ok(()));
        for other in [at("a", "/b"), at("b", "/a"), at("b", "/a/b")] {
            assert!(check_volumes(&[at("a", "/a"), other.clone()]).is_err(), "{other:?}");
            assert!(check_volumes(&[other.clone(), at("a", "/a")]).is_err(), "{other:?}");
        }
        let many: Vec<_> = (0..=VOLUMES_PER_BOX_MAX).map(|n| at(&n.to_string(), &format!("/v{n}"))).collect();
        assert!(check_volumes(&many).is_err());
    }

    #[test]
    fn storage_adds_up_and_never_shrinks() {
        let stored = Stored { bytes: 0, measured_ms: 1000, byte_ms: 0 }.then(10, 1500);
        assert_eq!(stored.byte_ms(1600), 1000);
        let more = stored.then(20, 1700);
        assert_eq!((more.byte_ms(1700), more.byte_ms(1800)), (2000, 4000));
        assert_eq!(more.byte_ms(1), 2000, "the clock was set back");
        assert_eq!(more.then(0, 1).byte_ms(9999), 2000);
    }
}
