//! Builds of images.

use serde::Serialize;
use utoipa::ToSchema;

use crate::builds::Record;

/// A record of the stream that a build answers with: one JSON object per line.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum BuildProgress {
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
    Note {
        /// For people.
        text: String,
    },
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

impl From<Record> for BuildProgress {
    fn from(record: Record) -> Self {
        match record {
            Record::Step { number, stage, step, steps, text } => Self::Step { number, stage, step, steps, text },
            Record::Output { number, text } => Self::Output { number, text },
            Record::Cached { number } => Self::Cached { number },
            Record::Done { number, ms } => Self::Done { number, ms },
            Record::Note(text) => Self::Note { text },
            Record::Image { id, names, bytes, ms } => Self::Image { id, names, bytes, ms },
            Record::Error { error, output } => Self::Error { error, output },
        }
    }
}
