//! The idle rule: a pure decision over plain data.
//!
//! The rule is *no work*: no request in progress, no run or session that the API started, and over the idle window no
//! more CPU than the threshold. The last part keeps a box awake that works without a waiting client (a build in the
//! background, a busy server), and lets a box sleep whose programs only wake up for timers now and then.

use std::collections::VecDeque;
use std::time::Duration;

/// Points of the CPU history of one box.
const POINTS_MAX: usize = 40;
/// Number of points per idle window.
const POINTS_PER_WINDOW: u32 = 32;

/// Readings of a box's CPU counter over the last idle window. Times are on any monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct CpuWindow {
    points: VecDeque<(Duration, u64)>,
}

impl CpuWindow {
    /// Clears the history: the counter is a different one, or the box slept.
    pub fn restart(&mut self, at: Duration, cpu_usec: u64) {
        self.points.clear();
        self.points.push_back((at, cpu_usec));
    }

    /// Adds a reading, unless it is too close to the last one to matter for a window of this length.
    pub fn record(&mut self, at: Duration, cpu_usec: u64, window: Duration) {
        let near = window / POINTS_PER_WINDOW;
        if self.points.back().is_some_and(|(last, _)| at.saturating_sub(*last) < near) {
            return;
        }
        self.points.push_back((at, cpu_usec));
        // The newest point that is older than the window is its left edge: keep that one.
        while self.points.len() > 2
            && self.points.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= window)
        {
            self.points.pop_front();
        }
        while self.points.len() > POINTS_MAX {
            self.points.pop_front();
        }
    }

    /// CPU use in percent of one core over the window that ends with this reading.
    #[must_use]
    pub fn percent(&self, at: Duration, cpu_usec: u64, window: Duration) -> f64 {
        let edge = self.points.iter().rev().find(|(point, _)| at.saturating_sub(*point) >= window);
        let Some((from, before)) = edge.or(self.points.front()) else { return 0.0 };
        let elapsed = at.saturating_sub(*from).as_secs_f64();
        if elapsed <= 0.0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 52 bits")]
        let used = cpu_usec.saturating_sub(*before) as f64 / 1e6;
        100.0 * used / elapsed
    }
}

/// Inputs of the rule for a box that is awake.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    /// Its owner has disabled sleep.
    pub keep_alive: bool,
    /// Its owner keeps it awake for now.
    pub kept: bool,
    /// Work is in progress.
    pub busy: bool,
    /// Time since the last work.
    pub quiet: Duration,
    /// CPU over the window, in percent of one core.
    pub cpu_percent: f64,
    /// The idle time in force.
    pub window: Duration,
    /// The threshold in force, in percent of one core.
    pub cpu_percent_max: f64,
}

/// Result of the rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// The box never sleeps.
    KeepAlive,
    /// Its owner keeps it awake for now.
    Kept,
    /// Work is in progress.
    Busy,
    /// Sleeps after this much more time without work.
    Wait(Duration),
    /// Processes in the box use CPU on their own.
    CpuInUse,
    /// Sleeps now.
    Sleep,
}

/// The idle rule.
#[must_use]
pub fn decide(observed: &Observed) -> Verdict {
    if observed.keep_alive {
        Verdict::KeepAlive
    } else if observed.kept {
        Verdict::Kept
    } else if observed.busy {
        Verdict::Busy
    } else if observed.quiet < observed.window {
        Verdict::Wait(observed.window - observed.quiet)
    } else if observed.cpu_percent > observed.cpu_percent_max {
        Verdict::CpuInUse
    } else {
        Verdict::Sleep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn quiet(seconds: u64) -> Observed {
        Observed {
            keep_alive: false,
            kept: false,
            busy: false,
            quiet: Duration::from_secs(seconds),
            cpu_percent: 0.0,
            window: Duration::from_secs(10),
            cpu_percent_max: 1.0,
        }
    }

    #[test]
    fn a_quiet_box_sleeps_exactly_when_its_time_is_over() {
        assert_eq!(decide(&quiet(9)), Verdict::Wait(SECOND));
        assert_eq!(decide(&quiet(10)), Verdict::Sleep);
    }

    #[test]
    fn work_keep_alive_and_cpu_keep_a_box_awake() {
        assert_eq!(decide(&Observed { busy: true, ..quiet(99) }), Verdict::Busy);
        assert_eq!(decide(&Observed { kept: true, ..quiet(99) }), Verdict::Kept);
        assert_eq!(decide(&Observed { keep_alive: true, ..quiet(99) }), Verdict::KeepAlive);
        assert_eq!(decide(&Observed { cpu_percent: 1.5, ..quiet(99) }), Verdict::CpuInUse);
        assert_eq!(decide(&Observed { cpu_percent: 1.0, ..quiet(99) }), Verdict::Sleep);
    }

    /// Plays a load (CPU microseconds per second) second by second; returns the number of seconds until the box sleeps.
    fn sleeps_after(window: Duration, load: impl Fn(u64) -> u64) -> Option<u64> {
        let mut history = CpuWindow::default();
        history.restart(Duration::ZERO, 0);
        let mut cpu = 0;
        for second in 1..100_000 {
            let now = Duration::from_secs(second);
            cpu += load(second);
            let observed = Observed { quiet: now, cpu_percent: history.percent(now, cpu, window), window, ..quiet(0) };
            if decide(&observed) == Verdict::Sleep {
                return Some(second);
            }
            history.record(now, cpu, window);
        }
        None
    }

    #[test]
    fn a_clock_watcher_lets_its_box_sleep_and_a_build_does_not() {
        let window = Duration::from_secs(60);
        assert_eq!(sleeps_after(window, |_| 0), Some(60));
        assert_eq!(sleeps_after(window, |_| 200), Some(60), "0.02 % of a core");
        assert_eq!(sleeps_after(window, |_| 1_000_000), None, "a whole core");
        // A build of five minutes: the box sleeps about one window after its end.
        let after = sleeps_after(window, |second| if second <= 300 { 1_000_000 } else { 0 }).expect("it ends");
        assert!((355..=365).contains(&after), "{after}");
    }

    #[test]
    fn a_window_of_one_second_works_too() {
        assert_eq!(sleeps_after(SECOND, |_| 0), Some(1));
        assert_eq!(sleeps_after(SECOND, |second| if second <= 3 { 500_000 } else { 0 }), Some(4));
    }

    #[test]
    fn the_history_stays_small() {
        let mut history = CpuWindow::default();
        for ms in 0..200_000_u64 {
            history.record(Duration::from_millis(ms), ms, Duration::from_secs(3600));
        }
        assert!(history.points.len() <= POINTS_MAX);
    }
}
