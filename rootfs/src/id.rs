//! Names of volumes. Owns the one rule that keeps an id from being anything but a single harmless path component.

use crate::error::{Cause, Error, Result, Step};

/// Longest id of a volume, in bytes.
pub const VOLUME_ID_BYTES_MAX: usize = 64;

/// The ids of snapshots begin with this; those of volumes cannot.
const SNAPSHOT_PREFIX: &str = "snap_";
/// The ids of points of a volume's past begin with this.
const POINT_PREFIX: &str = "undo_";

/// Accepts `[a-z0-9][a-z0-9-]*`: no dot (so no `..`, no hidden temporary name), no slash, nothing a shell, a cgroup
/// file or a log line would read differently, and no case (file systems may fold it).
pub(crate) fn check(id: &str) -> Result<()> {
    let refuse = |why| Err(Error::new(Step::CheckId, id.escape_default().to_string(), Cause::Invalid(why)));
    if id.is_empty() {
        return refuse("an id must not be empty");
    }
    if id.len() > VOLUME_ID_BYTES_MAX {
        return refuse("an id has at most 64 bytes");
    }
    if !id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        return refuse("an id consists of the characters a-z, 0-9 and -");
    }
    if id.starts_with('-') {
        return refuse("an id must not begin with -");
    }
    Ok(())
}

/// Accepts `snap_` and what a volume may be called.
pub(crate) fn check_snapshot(id: &str) -> Result<()> {
    check_after(id, SNAPSHOT_PREFIX, "the id of a snapshot begins with snap_")
}

/// Accepts `undo_` and what a volume may be called.
pub(crate) fn check_point(id: &str) -> Result<()> {
    check_after(id, POINT_PREFIX, "the id of an undo point begins with undo_")
}

fn check_after(id: &str, prefix: &str, why: &'static str) -> Result<()> {
    match id.strip_prefix(prefix) {
        Some(rest) => check(rest),
        None => Err(Error::new(Step::CheckId, id.escape_default().to_string(), Cause::Invalid(why))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn takes_what_boxes_are_called() {
        for id in ["right-flamingo-14486", "a", "0", &"x".repeat(VOLUME_ID_BYTES_MAX)] {
            check(id).unwrap();
        }
    }

    #[test]
    fn refuses_everything_that_could_leave_the_directory() {
        let long = "x".repeat(VOLUME_ID_BYTES_MAX + 1);
        for id in ["", ".", "..", "../x", "a/b", "/a", "a\0b", "a b", "A", "ä", ".tmp-a", "a.img", "-rf", "a\n", &long]
        {
            assert_eq!(check(id).unwrap_err().kind(), ErrorKind::InvalidInput, "{id:?}");
        }
    }

    #[test]
    fn a_snapshot_is_no_volume() {
        check_snapshot("snap_1a2b").unwrap();
        for id in ["snap_", "snap_../x", "snap_A", "1a2b", "snap-1", "snap_snap_1"] {
            assert_eq!(check_snapshot(id).unwrap_err().kind(), ErrorKind::InvalidInput, "{id:?}");
        }
        check("snap_1a2b").unwrap_err();
    }
}
