//! Runs: commands, code and sessions in a box, from their start to their record.
//!
//! Owns: the command to execute (argument vector, folder, environment), the tasks that read a run's output with or
//! without a client, and the one transaction that records its end. Invariants: a run continues when its client
//! disconnects (a session does not); its exit is recorded exactly once, and the box's init forgets it only when the
//! record is on disk; output without a reader is dropped, never kept without a limit.
//!
//! Leaves out: HTTP and WebSocket framing (`http`), the boxes themselves (`boxes`), waking them and Icebox's own
//! commands in them (`lifecycle`).

mod adopt;
mod code;
mod collect;
mod command;
mod finish;
mod lasting;
mod list;
mod service;
mod session;
mod start;
mod stream;
mod ticket;

pub use adopt::{acknowledge_late, adopt, fail_orphans};
pub use code::code_command;
pub use collect::{Collecting, Outcome, Share, collect};
pub use command::{Command, HOME, clock_timeout, resolve_folder, resolve_path, stopped_text};
pub use list::{cancel, runs_of};
pub use service::Runs;
pub use session::{ClientGone, Opened, Session, SessionEnd, SessionInput, SessionOutput, SessionStart, open_session};
pub use start::{Started, start};
pub use stream::{RunStream, StreamItem, stream};
pub use ticket::{EXEC_OUTPUT_BYTES_MAX, Ended, Finished, Ticket, ended_now};
