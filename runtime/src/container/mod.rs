//! OCI containers: the verbs and the state directory.
//!
//! The disk holds facts only: the first process (pid, start time, boot id) and the paths of the bundle and the cgroup.
//! The status is read from the kernel each time. One directory per container below the state root:
//!
//! ```text
//! <root>/<id>/state.json    facts, written by temp + rename
//! <root>/<id>/config.json   the configuration as it was at create
//! <root>/<id>/start.sock    exists from create until start has gone through
//! ```

mod create;
mod delete;
mod exec;
mod facts;
mod foreground;
mod signal;
mod state;
mod store;

pub use self::{
    create::{CreateOptions, create, run},
    delete::delete,
    exec::{ExecOptions, exec},
    foreground::RunResult,
    signal::{kill, pause, processes, resume, start},
    state::{State, Status, list, state},
    store::Store,
};
