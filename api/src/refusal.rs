//! Reasons for refusing a request, in terms of the product. `http::reply` turns them into a status and a text.

use std::fmt;

use icebox_shim::ErrorKind;

use crate::error::{Cause, Error};

/// The client's text when the host's disk is full.
const DISK_FULL: &str = "the disk of this host is full, so the request cannot be kept; delete boxes, or ask the \
                         operator to free space in the data directory";

/// A refused request. The text is for the client.
#[derive(Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// Invalid request.
    Invalid(String),
    /// The key is missing or wrong.
    Unauthorized,
    /// The box's user lacks permission.
    Forbidden(String),
    /// It does not exist, or it belongs to another account.
    NotFound(String),
    /// It exists already, or the state does not allow the operation.
    Conflict(String),
    /// Too large.
    TooLarge(String),
    /// Too many at once.
    Limit(String),
    /// Unavailable now; a retry may work.
    Unavailable(String),
    /// Storage is full.
    NoSpace(String),
    /// The client sent its body too slowly.
    TooSlow(String),
    /// It took too long.
    Timeout(String),
    /// A part of the public API that this version does not implement.
    NotYet(String),
    /// The daemon failed. The client learns only that; the log has the details.
    Failed(Error),
}

impl Refusal {
    /// The box with this id or name is unknown to the caller.
    #[must_use]
    pub fn unknown_box(id: &str) -> Self {
        Self::NotFound(format!("box '{}' does not exist", id.chars().take(80).collect::<String>()))
    }

    /// The refusal with its causes, for the log of the daemon.
    #[must_use]
    pub fn chain(&self) -> String {
        match self {
            Self::Failed(error) => error.chain(),
            other => other.to_string(),
        }
    }

    /// The disk of the data directory is full.
    #[must_use]
    pub fn disk_full() -> Self {
        Self::NoSpace(DISK_FULL.into())
    }

    /// A feature that is not implemented yet.
    #[must_use]
    pub fn not_yet(what: &str) -> Self {
        Self::NotYet(format!("{what} not available yet in this version of Icebox"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthorized => f.write_str("the API key is missing or wrong (header X-Box-Api-Key)"),
            Self::Failed(_) => f.write_str("internal error; the log of iceboxd has the details"),
            Self::Invalid(text)
            | Self::Forbidden(text)
            | Self::NotFound(text)
            | Self::Conflict(text)
            | Self::TooLarge(text)
            | Self::Limit(text)
            | Self::Unavailable(text)
            | Self::NoSpace(text)
            | Self::TooSlow(text)
            | Self::Timeout(text)
            | Self::NotYet(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(cause) => Some(cause),
            _ => None,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error.cause() {
            _ if error.is_disk_full() => Self::disk_full(),
            Cause::Rootfs(cause) => match cause.kind() {
                icebox_rootfs::ErrorKind::NoSpace => Self::disk_full(),
                icebox_rootfs::ErrorKind::NoDevice => Self::NoSpace(cause.cause().to_string()),
                icebox_rootfs::ErrorKind::FixedSize => Self::Invalid(cause.cause().to_string()),
                icebox_rootfs::ErrorKind::NoLoopDevice => {
                    Self::Unavailable("this host has no free loop device; delete boxes or try later".into())
                }
                icebox_rootfs::ErrorKind::PoolDown => Self::Unavailable(
                    "the disks of this host are not usable: their file system has shut down after an I/O error; the operator finds \
                     what to do in the log of iceboxd"
                        .into(),
                ),
                _ => Self::Failed(error),
            },
            Cause::Exhausted(what) => Self::Unavailable(format!("this host has no {what} left")),
            _ => Self::Failed(error),
        }
    }
}

impl From<icebox_net::error::Error> for Refusal {
    fn from(error: icebox_net::error::Error) -> Self {
        Error::from(error).into()
    }
}

/// The error of a box for an operation of its owner (a file, a command): the text may be shown.
impl From<icebox_shim::Error> for Refusal {
    fn from(error: icebox_shim::Error) -> Self {
        let mut text = without_errno(&error.report());
        if let (true, Some(reason)) = (error.causes().is_empty(), reason_of(error.kind())) {
            text = format!("{text}: {reason}");
        }
        match error.kind() {
            ErrorKind::NotFound => Self::NotFound(text),
            ErrorKind::AlreadyExists => Self::Conflict(text),
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::NotEmpty | ErrorKind::InvalidInput => {
                Self::Invalid(text)
            }
            ErrorKind::PermissionDenied => Self::Forbidden(text),
            ErrorKind::NoSpace => Self::NoSpace(text),
            ErrorKind::TooLarge => Self::TooLarge(text),
            ErrorKind::Limit => Self::Limit(text),
            ErrorKind::Timeout | ErrorKind::FreezeTimeout => Self::Timeout(text),
            ErrorKind::Unreachable => Self::Unavailable(
                "the control socket of the box has been removed from the host's run directory: `icebox restart BOX` starts \
                 the box again on its disk"
                    .into(),
            ),
            ErrorKind::Gone => Self::Unavailable("the box stopped during the request; try again".into()),
            _ => Self::Failed(Error::new("use the box", "", error)),
        }
    }
}

/// The text of an operating system error without its number, which is useless to a client.
#[must_use]
pub fn without_errno(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        plain.push_str(before);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}

/// The reason, for refusals that the box gives without a cause from the kernel.
fn reason_of(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotFound => Some("it does not exist"),
        ErrorKind::AlreadyExists => Some("it exists already"),
        ErrorKind::NotADirectory => Some("it is not a folder"),
        ErrorKind::IsADirectory => Some("it is a folder"),
        ErrorKind::NotEmpty => Some("the folder is not empty"),
        ErrorKind::InvalidInput => Some("it is not a regular file, or the request makes no sense"),
        ErrorKind::TooLarge => Some("it is too large"),
        ErrorKind::Limit => Some("a limit of the box is reached"),
        _ => None,
    }
}
