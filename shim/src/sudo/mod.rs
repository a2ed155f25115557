//! `sudo` without set-uid: the init binary under another name, as a client of the init.
//!
//! Every process in a box has no_new_privs, so no set-uid program can work. PID 1 is the box's root already: it starts
//! the command for the box's user, as the kernel identifies it, on the caller's own descriptors. Root in a box is the
//! user's by right (it is a user namespace of its own), so there is no password and no policy.
//!
//! Owns: the command line, the environment that is passed on, forwarding of signals. Leaves out: policies, sudoedit.

mod args;
mod client;

pub(crate) use args::Mode;
pub use client::main;

use serde::{Deserialize, Serialize};

/// The init's sudo socket inside the box.
pub(crate) const SOCKET: &str = "/run/icebox/sudo.sock";
/// Largest request: a command with its environment.
pub(crate) const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Descriptors of a request: stdin, stdout, stderr, folder.
pub(crate) const REQUEST_FDS: usize = 4;

/// The client's request. Descriptors are passed with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SudoRequest {
    /// Program and arguments; may be empty for a shell.
    pub(crate) argv: Vec<String>,
    /// The way to start it.
    pub(crate) mode: Mode,
    /// The target user; root if absent, or the caller if only a group is named.
    pub(crate) user: Option<String>,
    /// The target group; the user's own if absent.
    pub(crate) group: Option<String>,
    /// The working directory; the caller's if absent.
    pub(crate) folder: Option<String>,
    /// The value of SUDO_COMMAND: the file as found by the client, and the arguments.
    pub(crate) command: String,
    /// Variables that override the target user's login environment.
    pub(crate) env: Vec<(String, String)>,
    /// The shell for [`Mode::Shell`]; the target user's if absent.
    pub(crate) shell: Option<String>,
    /// The command outlives the client.
    pub(crate) background: bool,
}
