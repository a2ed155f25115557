//! A pool on a block device of the operator's.

use std::path::Path;

use super::format;
use crate::device::{self, Content};
use crate::error::{At, Result, Step};
use crate::mount::{self, Mounted};

/// Label of our file system.
const LABEL: &str = "icebox-pool";

/// Formats the device if it is empty, and mounts it. A device with other content is refused.
pub(super) fn open(path: &Path, force: bool) -> Result<Mounted> {
    match device::content(path)? {
        Content::Labelled { label } if label == LABEL => {}
        Content::Empty => format::format(path, false)?,
        _ if force => format::format(path, true)?,
        content => return Err(device::foreign(Step::OpenPool, path, &content)),
    }
    let mounted = mount::xfs(path).at(Step::OpenPool, path)?;
    let size = device::bytes(path)?;
    mounted.grow_xfs(size).at(Step::OpenPool, path)?;
    Ok(mounted)
}
