//! Waiting for something that another process does.
//!
//! The only place of the tests that polls. There is no sleep as synchronisation: every wait has a condition, a deadline,
//! and a name that is printed when the deadline passes.

use std::time::{Duration, Instant};

/// How long a test waits for what has to come, and the most that may take what would otherwise hang. Never reached when
/// all is well; long, since the machine may be an emulated one that has other work too.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(4);
/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Calls `probe` until it returns a value, and panics with `what` when `deadline` has passed.
pub fn wait_for<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        let begun = Instant::now();
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {deadline:?} for {what}");
        pause_after(begun);
    }
}

/// Calls `probe` until it is true, and panics with `what` when `deadline` has passed.
pub fn wait_until(deadline: Duration, what: &str, mut probe: impl FnMut() -> bool) {
    wait_for(deadline, what, || probe().then_some(()));
}

/// The pause between two probes, of which the last began at `begun`. It is as long as the probe took: in the guest, a probe
/// by an exec takes a second of CPU, which the tested processes need too.
fn pause_after(begun: Instant) {
    std::thread::park_timeout(begun.elapsed().clamp(POLL_INTERVAL, PAUSE_MAX));
}

/// Lets `window` of wall time pass, because the test measures what happens in it (CPU time, memory, idleness).
/// Not for waiting until something has happened: that is [`wait_until`].
pub fn let_pass(window: Duration) {
    let end = Instant::now() + window;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if left.is_zero() {
            break;
        }
        std::thread::park_timeout(left);
    }
}

/// As [`wait_until`], but tells whether the condition came true, for a test that collects what is wrong.
pub fn try_until(deadline: Duration, mut probe: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        let begun = Instant::now();
        if probe() {
            return true;
        }
        if begun >= end {
            return false;
        }
        pause_after(begun);
    }
}
