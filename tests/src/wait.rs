//! Waiting for something that another process does.
//!
//! The only place of the tests that polls. There is no sleep as synchronisation: every wait has a condition, a deadline,
//! and a name that is printed when the deadline passes.

use std::time::{Duration, Instant};

/// How long a test waits for what has to come, and the most that may take what would otherwise hang. Never reached when
/// all is well; long, since the machine may be an emulated one that has other work too.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL_INTERVAL_MS: u64 = 4;

/// Calls `probe` until it returns a value, and panics with `what` when `deadline` has passed.
pub fn wait_for<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {deadline:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(POLL_INTERVAL_MS));
    }
}

/// Calls `probe` until it is true, and panics with `what` when `deadline` has passed.
pub fn wait_until(deadline: Duration, what: &str, mut probe: impl FnMut() -> bool) {
    wait_for(deadline, what, || probe().then_some(()));
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
    while !probe() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(POLL_INTERVAL_MS));
    }
    true
}
