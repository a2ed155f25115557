//! The log of a box.

/// Level of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Normal.
    Info,
    /// Noteworthy.
    Warn,
    /// Something failed.
    Error,
}

impl LogLevel {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// Reads [`Self::as_str`] back; an unknown word counts as `info`.
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "warn" => Self::Warn,
            "error" => Self::Error,
            _ => Self::Info,
        }
    }
}

/// Source of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSource {
    /// Icebox itself.
    System,
    /// An agent.
    Agent,
    /// A request of the owner.
    User,
}

impl LogSource {
    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Agent => "agent",
            Self::User => "user",
        }
    }

    /// Reads [`Self::as_str`] back; an unknown word counts as `system`.
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "agent" => Self::Agent,
            "user" => Self::User,
            _ => Self::System,
        }
    }
}

/// One line of a box's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Unix milliseconds.
    pub written_ms: i64,
    /// Level.
    pub level: LogLevel,
    /// Source.
    pub source: LogSource,
    /// The text.
    pub message: String,
}
