//! Deadlines and pauses.

use std::time::Duration;

/// Deadlines and pauses.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Until a connection is there.
    pub connect: Duration,
    /// Until an answer begins, and until a document has come.
    pub answer: Duration,
    /// Until an upload is acknowledged after its last byte: the registry may copy it first.
    pub acknowledge: Duration,
    /// A transfer that moves less than a minimum in this time counts as broken.
    pub stall: Duration,
    /// The pause before the second attempt; each further one is twice as long.
    pub pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            answer: Duration::from_secs(60),
            acknowledge: Duration::from_secs(600),
            stall: Duration::from_secs(60),
            pause: Duration::from_millis(400),
        }
    }
}
