//! The lines of a box's log: one place makes them, from events.

use super::{Event, Fact, RunEnd, StopCause};
use crate::domain::{LogLevel, LogSource, RunState};

/// A line, without its box and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Level.
    pub level: LogLevel,
    /// Source.
    pub source: LogSource,
    /// The text.
    pub text: String,
}

impl LogLine {
    fn system(level: LogLevel, text: impl Into<String>) -> Self {
        Self { level, source: LogSource::System, text: text.into() }
    }
}

impl Event {
    /// Its lines in the log of the box.
    #[must_use]
    pub fn log_lines(&self) -> Vec<LogLine> {
        let info = |text: String| vec![LogLine::system(LogLevel::Info, text)];
        let warn = |text: String| vec![LogLine::system(LogLevel::Warn, text)];
        match &self.fact {
            Fact::Created { warnings, .. } => with_warnings("created", warnings),
            Fact::Started { warnings, .. } => with_warnings("started again on its disk", warnings),
            Fact::Frozen { idle_seconds, .. } => info(format!("fell asleep after {idle_seconds} s without work")),
            Fact::Paused { .. } => info("paused".to_owned()),
            Fact::Thawed { .. } => info("woken".to_owned()),
            Fact::Stopped { cause: StopCause::InitKilled } => {
                warn("the box has stopped; the next request starts it again on its disk".to_owned())
            }
            Fact::Kept { until_ms } => info(match until_ms {
                Some(ms) => format!("kept awake for {} s", (ms - self.at_ms + 500).max(0) / 1000),
                None => "kept awake until its owner ends it".to_owned(),
            }),
            Fact::Released => info("no longer kept awake".to_owned()),
            Fact::Snapshotted { name, stood, .. } => info(format!(
                "snapshot '{name}' taken; its processes stood still for {:.1} ms",
                stood.as_secs_f64() * 1e3
            )),
            Fact::Undone { command, .. } => info(format!("taken back: {command}")),
            Fact::InitCommandStarted => info("init command started".to_owned()),
            Fact::Warning { text } | Fact::Denied { text } => warn(text.clone()),
            Fact::RunEnded(end) => vec![run_line(end)],
            Fact::PolicyChanged { mode } => info(format!("the network policy is {mode} now")),
            Fact::OutOfMemory { run, processes, background: true } => {
                let what = if *processes == 1 { "a background process" } else { "background processes" };
                let number = if *processes == 1 { String::new() } else { format!("{processes} ") };
                let of = run.as_ref().map(|run| format!(" of '{}'", run.command)).unwrap_or_default();
                warn(format!("the kernel killed {number}{what}{of}: out of memory"))
            }
            Fact::NetworkLost { reason } => {
                vec![LogLine::system(LogLevel::Error, format!("the box has no network: {reason}"))]
            }
            // The line of the run, of the start or of the box's last record says it.
            Fact::Stopped { .. }
            | Fact::Deleted
            | Fact::OutOfMemory { background: false, .. }
            | Fact::RunStarted { .. }
            | Fact::Metered { .. } => Vec::new(),
        }
    }
}

fn with_warnings(what: &str, warnings: &[String]) -> Vec<LogLine> {
    let warnings = warnings.iter().map(|text| LogLine::system(LogLevel::Warn, text.as_str()));
    std::iter::once(LogLine::system(LogLevel::Info, what)).chain(warnings).collect()
}

/// A finished run in one line.
fn run_line(end: &RunEnd) -> LogLine {
    let level = match (end.state, end.oom_kills) {
        (RunState::Completed, 0) => LogLevel::Info,
        _ => LogLevel::Warn,
    };
    // A run whose end is unknown belongs to a box that has stopped.
    let source = if end.hidden || end.exit_code.is_none() { LogSource::System } else { LogSource::User };
    let mut text = end.command.clone();
    let Some(exit_code) = end.exit_code else {
        text.push_str(&format!(" → {}", end.message.as_deref().unwrap_or("unknown")));
        return LogLine { level, source, text };
    };
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let cpu_ms = end.cpu_ns as f64 / 1e6;
    text.push_str(&format!(" → exit {exit_code}, {cpu_ms:.1} ms CPU"));
    if end.memory_peak_bytes > 0 {
        text.push_str(&format!(", {} KiB peak memory", end.memory_peak_bytes / 1024));
    }
    if let Some(message) = &end.message {
        text.push_str(": ");
        text.push_str(message);
    }
    LogLine { level, source, text }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::events::NamedRun;

    fn end() -> RunEnd {
        RunEnd {
            run_id: "r".into(),
            command: "sh -c hog".into(),
            state: RunState::Failed,
            exit_code: Some(137),
            signal: Some(9),
            duration_ms: 5,
            cpu_ns: 1_500_000,
            memory_peak_bytes: 2048,
            oom_kills: 1,
            message: Some("killed: out of memory".into()),
            hidden: false,
        }
    }

    fn lines(fact: Fact) -> Vec<(LogLevel, LogSource, String)> {
        let event = Event { box_id: "b".into(), account_id: "a".into(), at_ms: 1_000, fact };
        event.log_lines().into_iter().map(|line| (line.level, line.source, line.text)).collect()
    }

    #[test]
    fn a_finished_run_is_one_line_with_exact_numbers() {
        let text = "sh -c hog → exit 137, 1.5 ms CPU, 2 KiB peak memory: killed: out of memory";
        assert_eq!(lines(Fact::RunEnded(Box::new(end()))), [(LogLevel::Warn, LogSource::User, text.to_owned())]);
        let lost = RunEnd { exit_code: None, message: Some("the box stopped".into()), ..end() };
        let text = "sh -c hog → the box stopped";
        assert_eq!(lines(Fact::RunEnded(Box::new(lost))), [(LogLevel::Warn, LogSource::System, text.to_owned())]);
    }

    #[test]
    fn kills_in_the_background_are_a_line_and_those_of_a_run_are_in_its_own() {
        let run = NamedRun { run_id: "r".into(), command: "server &".into() };
        let killed = |processes, background, run: Option<NamedRun>| {
            lines(Fact::OutOfMemory { run, processes, background }).into_iter().map(|line| line.2).collect::<Vec<_>>()
        };
        assert!(killed(1, false, Some(run.clone())).is_empty());
        assert_eq!(killed(1, true, Some(run)), ["the kernel killed a background process of 'server &': out of memory"]);
        assert_eq!(killed(3, true, None), ["the kernel killed 3 background processes: out of memory"]);
    }

    #[test]
    fn warnings_of_a_start_are_lines_of_their_own() {
        let fact = Fact::Created { took: Duration::ZERO, launch: Duration::ZERO, warnings: vec!["few cores".into()] };
        let levels: Vec<LogLevel> = lines(fact).into_iter().map(|(level, ..)| level).collect();
        assert_eq!(levels, [LogLevel::Info, LogLevel::Warn]);
        let kept = lines(Fact::Kept { until_ms: Some(61_000) });
        assert_eq!(kept[0].2, "kept awake for 60 s");
    }
}
