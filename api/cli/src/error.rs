//! The one error type of the command line: what was being done, to what, and why it failed.
//!
//! `Display` never repeats the source; [`report`] prints the whole chain, once, with a hint where there is one.

use std::fmt;

/// A failure of the command line.
#[derive(Debug)]
pub(crate) enum Error {
    /// What was asked for makes no sense or is not offered.
    Usage {
        /// The reason, a whole sentence without a full stop.
        text: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// The server answered, and said no.
    Server {
        /// HTTP status.
        status: u16,
        /// The server's own words.
        text: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The server could not be reached, or the connection broke.
    Transport {
        /// The step, as in "could not {step}".
        step: &'static str,
        /// The URL in question.
        subject: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server said something that the protocol does not allow.
    Protocol {
        /// The step, as in "could not {step}".
        step: &'static str,
        /// What was wrong.
        detail: String,
    },
    /// A local file, the terminal or a stream failed.
    Io {
        /// The step, as in "could not {step}".
        step: &'static str,
        /// Path or name of the stream.
        subject: String,
        /// Why.
        source: std::io::Error,
    },
}

/// The subject that an error about standard output carries.
pub(crate) const STDOUT: &str = "standard output";

impl Error {
    /// A request that makes no sense.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage { text: text.into(), hint: None }
    }

    /// A request that makes no sense, and what to ask for instead.
    pub(crate) fn usage_with_hint(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { text: text.into(), hint: Some(hint.into()) }
    }

    /// A local failure.
    pub(crate) fn io(step: &'static str, subject: impl fmt::Display, source: std::io::Error) -> Self {
        Self::Io { step, subject: subject.to_string(), source }
    }

    /// A broken connection.
    pub(crate) fn transport(
        step: &'static str,
        subject: impl fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Transport { step, subject: subject.to_string(), source: source.into() }
    }

    /// A server that breaks the protocol.
    pub(crate) fn protocol(step: &'static str, detail: impl Into<String>) -> Self {
        Self::Protocol { step, detail: detail.into() }
    }

    /// Whether the reader of our standard output went away.
    pub(crate) fn is_closed_stdout(&self) -> bool {
        matches!(self, Self::Io { subject, source, .. }
            if subject == STDOUT && source.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// Whether the server says that the thing does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Server { status: 404, .. })
    }

    /// Whether the server refuses one path: it is no regular file, it is closed to the box, or it is gone. The same request
    /// for another path may succeed.
    pub(crate) fn is_of_one_path(&self) -> bool {
        matches!(self, Self::Server { status: 400 | 403 | 404, .. })
    }

    /// Whether a local file could not be read or written.
    pub(crate) fn is_of_local_file(&self) -> bool {
        matches!(self, Self::Io { .. })
    }

    fn hint(&self) -> Option<&str> {
        match self {
            Self::Usage { hint, .. } | Self::Server { hint, .. } => hint.as_deref(),
            Self::Transport { step: "reach the server", .. } => {
                Some("is iceboxd running, and is this its address? `cargo xtask up` starts one")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage { text, .. } => f.write_str(text),
            Self::Server { text, status, .. } if text.is_empty() => {
                write!(f, "the server answered with status {status}")
            }
            Self::Server { text, .. } => f.write_str(text),
            Self::Transport { step, subject, .. } => write!(f, "could not {step} at {subject}"),
            Self::Protocol { step, detail } => write!(f, "could not {step}: {detail}"),
            Self::Io { step, subject, .. } => write!(f, "could not {step}: {subject}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Transport { source, .. } => Some(source.as_ref()),
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Prints an error with its causes and its hint to standard error.
pub(crate) fn report(error: &Error) {
    eprintln!("icebox: {}", describe(error));
    if let Some(hint) = error.hint() {
        eprintln!("  hint: {hint}");
    }
}

fn describe(error: &Error) -> String {
    let mut text = super::human::plain(&error.to_string());
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let words = next.to_string();
        // reqwest and hyper repeat their cause's text in their own: say it once.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_the_step_and_are_not_repeated() {
        let cause = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = Error::io("read", "/tmp/x", cause);
        assert_eq!(describe(&error), "could not read: /tmp/x: no such file");
    }

    #[test]
    fn only_a_closed_standard_output_is_forgiven() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(Error::io("write", STDOUT, broken()).is_closed_stdout());
        assert!(!Error::io("write", "/tmp/x", broken()).is_closed_stdout());
    }

    #[test]
    fn an_empty_server_text_still_says_something() {
        let error = Error::Server { status: 502, text: String::new(), hint: None };
        assert_eq!(error.to_string(), "the server answered with status 502");
    }
}
