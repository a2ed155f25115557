//! What a block device of the operator's contains.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use crate::error::{At, Cause, Error, Result, Step};
use crate::tool::Tool;

/// blkid found no signature.
const NOTHING: i32 = 2;

const BLKID: Tool = Tool {
    program: "blkid",
    missing: "there is no blkid on this machine; install the package util-linux",
    step: Step::ProbeDevice,
};

/// The signature on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// None: no file system, partition table, RAID, or volume manager.
    Empty,
    /// A file system with a label.
    Labelled {
        /// The label.
        label: String,
    },
    /// Anything else.
    Other {
        /// What blkid says.
        kind: String,
    },
}

/// Looks at the device itself, not at a cache.
pub(crate) fn content(path: &Path) -> Result<Content> {
    let mut command = BLKID.command();
    command.args(["--probe", "--output", "export"]).arg(path);
    let output = BLKID.output(&mut command, path)?;
    match output.status.code() {
        Some(0) => {}
        Some(NOTHING) if output.stderr.is_empty() => return Ok(Content::Empty),
        _ => return Err(BLKID.failed(&output, path)),
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    match (value("LABEL"), value("TYPE").or_else(|| value("PTTYPE"))) {
        (Some(label), Some(_)) => Ok(Content::Labelled { label }),
        (_, kind) => Ok(Content::Other { kind: kind.unwrap_or_else(|| "unknown".to_owned()) }),
    }
}

/// The refusal of a device that is not ours.
pub(crate) fn foreign(step: Step, path: &Path, content: &Content) -> Error {
    let found = match content {
        Content::Labelled { label } => format!("a file system with the label '{label}'"),
        Content::Other { kind } => format!("content of the type '{kind}'"),
        Content::Empty => "nothing".to_owned(),
    };
    Error::new(step, path.display().to_string(), Cause::Foreign { found })
}

/// The size of a block device.
pub(crate) fn bytes(path: &Path) -> Result<u64> {
    File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0))).at(Step::ProbeDevice, path)
}
