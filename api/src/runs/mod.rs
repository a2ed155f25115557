//! Runs: commands, code and sessions in a box, from their start to their record.
//!
//! Owns: what exactly is executed (argument vector, folder, environment), the tasks that read a run's output whether or
//! not a client still listens, and the one transaction that records its end. Invariants: a run goes on when its client
//! goes away (a session does not); its exit is recorded exactly once, and the box's init forgets it only when the record
//! is on disk; output that nobody takes is dropped, never kept without a limit.
//!
//! Leaves out: HTTP and WebSocket framing (`http`), the lifecycle of boxes (`boxes`).

mod adopt;
mod code;
mod collect;
mod command;
mod finish;
mod list;
mod setup;
mod start;
mod stream;
mod table;

pub use adopt::{acknowledge_late, adopt, fail_orphans};
pub use code::code_command;
pub use collect::{Outcome, Tail, collect};
pub use command::{Command, HOME, clock_timeout, resolve_folder, resolve_path, stopped_text};
pub use finish::{Ended, Finished, ended_now};
pub use list::{cancel, runs_of};
pub use setup::{CERTIFICATE_PATH, apply_git_config, prepare_new_box, run_init_command};
pub use start::{Started, Ticket, start};
pub use stream::{StreamItem, stream};
pub use table::{LiveRun, RunTable};
