//! `sudo` without set-uid: the init binary under another name, as a client of the init.
//!
//! Every process in a box has no_new_privs, so no set-uid program can work. PID 1 is the box's root already: it starts
//! the command for the box's user, as the kernel identifies it, on the caller's own descriptors. Root in a box is the
//! user's by right (it is a user namespace of its own), so there is no password and no policy.
//!
//! Owns: the command line, the environment that goes along, forwarding of signals. Leaves out: policies, sudoedit.

mod args;
mod client;

pub(crate) use args::Mode;
pub use client::main;

use serde::{Deserialize, Serialize};

/// Where the init listens inside the box.
pub(crate) const SOCKET: &str = "/run/icebox/sudo.sock";
/// A command with its environment must fit into this.
pub(crate) const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Descriptors of a request: stdin, stdout, stderr, folder.
pub(crate) const REQUEST_FDS: usize = 4;

/// What the client asks for. Descriptors come along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SudoRequest {
    /// Program and arguments; may be empty for a shell.
    pub(crate) argv: Vec<String>,
    /// How to start it.
    pub(crate) mode: Mode,
    /// The target user; root if absent, or the caller if only a group is named.
    pub(crate) user: Option<String>,
    /// The target group; the user's own if absent.
    pub(crate) group: Option<String>,
    /// Where to run; the caller's folder if absent.
    pub(crate) folder: Option<String>,
    /// What SUDO_COMMAND says: the file as the client has found it, and the arguments.
    pub(crate) command: String,
    /// Laid over the target user's login environment.
    pub(crate) env: Vec<(String, String)>,
    /// The shell for [`Mode::Shell`]; the target user's if absent.
    pub(crate) shell: Option<String>,
    /// The command outlives the client.
    pub(crate) background: bool,
}
