//! What a build tells of itself, and to whom.

use tokio::sync::mpsc;

/// One thing that has happened in a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A step begins.
    Step {
        /// Its number in the build, from 1.
        number: usize,
        /// Its stage; empty if the stage has no name.
        stage: String,
        /// Its number in the stage, from 1.
        step: usize,
        /// Number of steps of the stage.
        steps: usize,
        /// The instruction.
        text: String,
    },
    /// Output of the command of a step.
    Output {
        /// The step.
        number: usize,
        /// The output.
        text: String,
    },
    /// The result of a step was there.
    Cached {
        /// The step.
        number: usize,
    },
    /// A step is done.
    Done {
        /// The step.
        number: usize,
        /// Milliseconds that it took.
        ms: u64,
    },
    /// Something that is good to know.
    Note(String),
    /// The image is stored. The last record, unless there was an error.
    Image {
        /// Its id.
        id: String,
        /// Its names.
        names: Vec<String>,
        /// Bytes of its files.
        bytes: u64,
        /// Milliseconds that the build took.
        ms: u64,
    },
    /// The build has failed. The last record.
    Error {
        /// The reason, with file and line.
        error: String,
        /// The end of what the failed command has written.
        output: String,
    },
}

/// The way to the client of a build.
#[derive(Debug, Clone)]
pub(super) struct Report(pub(super) mpsc::Sender<Record>);

impl Report {
    /// From a thread that may wait. `false`: the client has gone.
    pub(super) fn send(&self, record: Record) -> bool {
        self.0.blocking_send(record).is_ok()
    }

    /// From a task.
    pub(super) async fn send_waiting(&self, record: Record) {
        // A client that has gone is noticed by `closed`.
        let _ = self.0.send(record).await;
    }

    /// True if the client has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Ends when the client has gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}
