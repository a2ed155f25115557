//! File operations as the box's user, each in a child of its own.
//!
//! Invariants: the child gives up every descriptor but the connection and becomes the user before it looks at a path,
//! so the kernel checks every permission and a path can be as hostile as it likes; magic links are never followed;
//! only regular files are opened for their content, and never blocking; the child ends by itself when the client or
//! the disk stalls too long. Operations of several calls work relative to directory descriptors.
//!
//! An answered change is on disk: files are flushed before they get their name, and the directory afterwards.
//!
//! Not here: ownership and extended attributes of a replaced file (it becomes the user's own).

mod change;
mod channel;
mod list;
mod path;
mod read;
mod remove;
mod write;

use icebox_runtime::process::{become_user, exit_now};
use rustix::fs::Mode;

use self::channel::Channel;
use super::conn::Connection;
use super::user::Accounts;
use crate::error::{Error, ErrorKind};
use crate::protocol::{Answer, Operation};

/// Does one operation and ends. Only in a forked child.
pub(crate) fn work(conn: Option<Connection>, operation: Operation) -> ! {
    if let Some(conn) = conn
        && let Some(mut channel) = Channel::take(conn)
    {
        let result = become_box_user().and_then(|()| perform(&mut channel, operation));
        if let Err(error) = result {
            // The client may be gone; there is no other receiver.
            let _ = channel.answer(Err(&error));
        }
    }
    exit_now(0)
}

fn become_box_user() -> Result<(), Error> {
    let identity = Accounts::read().resolve(None)?;
    become_user(&identity.user()).map_err(|failure| Error::io(failure.step.name(), "", failure.errno))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn perform(channel: &mut Channel, operation: Operation) -> Result<(), Error> {
    match operation {
        Operation::FileRead { path, range } => return read::read(channel, &path, range),
        Operation::FileWrite { path } => return write::write(channel, &path),
        Operation::FileList { path } => return list::list(channel, &path),
        Operation::FileStat { path, follow } => {
            let stat = change::stat(&path, follow)?;
            return channel.answer(Ok(Answer::Stat(stat)));
        }
        Operation::FileMkdir { path, parents } => change::mkdir(&path, parents)?,
        Operation::FileRename { from, to } => change::rename(&from, &to)?,
        Operation::FileRemove { path, recursive } => remove::remove(&path, recursive)?,
        _ => {
            return Err(Error::new(ErrorKind::InvalidInput, "read operation", ""));
        }
    }
    channel.answer(Ok(Answer::Done))
}
