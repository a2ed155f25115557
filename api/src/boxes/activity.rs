//! The activity of a box, which keeps it awake: work that is counted while it lasts, and the CPU history.
//!
//! Invariant: a caller that begins work holds a [`Work`] from before the box is checked or thawed until the work is over; a
//! freeze looks at the counters under the box's lifecycle lock. So a box cannot be frozen under a request that has
//! just found it awake.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::idle::{CpuWindow, Observed};
use crate::clock;

/// Kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// A request that needs the box, in progress.
    Request,
    /// A command or code.
    Run,
    /// An interactive session.
    Session,
    /// Icebox settles a run that has ended: not visible to the owner, and a pause does not wait for it.
    Settling,
    /// A request through a public URL that the box has received and has not begun to answer.
    Url,
    /// Bytes of a client on their way into the box, through a public URL. Lasts as long as one write.
    Arriving,
}

/// The work of one box.
#[derive(Debug)]
pub struct Activity {
    state: Mutex<State>,
    began: Instant,
    /// Notified when the last request has ended.
    no_requests: Notify,
}

#[derive(Debug)]
struct State {
    requests: u32,
    runs: u32,
    sessions: u32,
    settling: u32,
    urls: u32,
    arriving: u32,
    /// Number of writes that have ended: a pause uses it to detect a write in between.
    arrivals: u64,
    /// Time of the last thaw or restart.
    woken: Option<Instant>,
    /// Bytes on its network at the last reading of the kernel's counters.
    traffic: Option<u64>,
    /// Time when these bytes were last seen to change.
    traffic_at: Option<Instant>,
    quiet_since: Instant,
    /// True if, at the last check (when it would have fallen asleep), a process held the lock that keeps it awake.
    kept: bool,
    last_work_ms: i64,
    cpu: CpuWindow,
}

/// Counts of the work in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Requests in progress.
    pub requests: u32,
    /// Runs in flight.
    pub runs: u32,
    /// Sessions open.
    pub sessions: u32,
    /// Requests through public URLs in progress.
    pub urls: u32,
}

/// A piece of work; it ends when this is dropped.
#[derive(Debug)]
pub struct Work {
    activity: Arc<Activity>,
    kind: WorkKind,
}

impl Activity {
    /// No work yet; the last work was at `last_work_ms`.
    #[must_use]
    pub fn new(last_work_ms: i64) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            requests: 0,
            runs: 0,
            sessions: 0,
            settling: 0,
            urls: 0,
            arriving: 0,
            arrivals: 0,
            woken: None,
            traffic: None,
            traffic_at: None,
            quiet_since: now,
            kept: false,
            last_work_ms,
            cpu: CpuWindow::default(),
        };
        Arc::new(Self { state: Mutex::new(state), began: now, no_requests: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a piece of work.
    #[must_use]
    pub fn begin(self: &Arc<Self>, kind: WorkKind) -> Work {
        *self.lock().counter(kind) += 1;
        Work { activity: Arc::clone(self), kind }
    }

    /// The counts of the work in progress.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let state = self.lock();
        Counts { requests: state.requests, runs: state.runs, sessions: state.sessions, urls: state.urls }
    }

    /// Unix milliseconds of the last work; now if some is in progress.
    #[must_use]
    pub fn last_work_ms(&self) -> i64 {
        let state = self.lock();
        if state.requests + state.runs + state.sessions + state.urls > 0 {
            clock::unix_ms()
        } else {
            state.last_work_ms
        }
    }

    /// Restarts the idle time: the box was just started or woken.
    pub fn restart(&self, cpu_usec: u64) {
        let at = self.began.elapsed();
        let mut state = self.lock();
        state.quiet_since = Instant::now();
        state.cpu.restart(at, cpu_usec);
    }

    /// Records whether a process held the lock that keeps the box awake when it would have fallen asleep. If so, the
    /// idle time restarts.
    pub fn found_lock(&self, kept: bool) {
        let mut state = self.lock();
        state.kept = kept;
        if kept {
            state.quiet_since = Instant::now();
        }
    }

    /// True if a process held the lock that keeps the box awake at the last check.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.lock().kept
    }

    /// Records traffic just now: work of no duration.
    pub fn touch(&self) {
        let mut state = self.lock();
        state.quiet_since = Instant::now();
        state.last_work_ms = clock::unix_ms();
    }

    /// Records the kernel's byte counter of the box's network. Returns true if it changed since the last call.
    pub fn saw_traffic(&self, bytes: u64) -> bool {
        let mut state = self.lock();
        let changed = state.traffic.replace(bytes).is_some_and(|before| before != bytes);
        if changed {
            let now = Instant::now();
            state.traffic_at = Some(now);
            state.quiet_since = now;
            state.last_work_ms = clock::unix_ms();
        }
        changed
    }

    /// Bytes on its network at the last reading of the kernel's counters.
    #[must_use]
    pub fn traffic(&self) -> Option<u64> {
        self.lock().traffic
    }

    /// Time since traffic was last seen on its network, if any was.
    #[must_use]
    pub fn since_traffic(&self) -> Option<Duration> {
        self.lock().traffic_at.map(|at| at.elapsed())
    }

    /// Records that the box was just woken or restarted on its disk.
    pub fn woken(&self) {
        self.lock().woken = Some(Instant::now());
    }

    /// Time since it was woken or restarted, if that was in this run of the daemon.
    #[must_use]
    pub fn since_woken(&self) -> Option<Duration> {
        self.lock().woken.map(|at| at.elapsed())
    }

    /// A counter that changes when bytes of clients go into the box.
    #[must_use]
    pub fn arrivals(&self) -> u64 {
        self.lock().arrivals
    }

    /// Adds a reading of the CPU counter.
    pub fn record_cpu(&self, cpu_usec: u64, window: Duration) {
        let at = self.began.elapsed();
        self.lock().cpu.record(at, cpu_usec, window);
    }

    /// All inputs of the idle rule, but for the owner's request to keep the box awake.
    #[must_use]
    pub fn observe(&self, cpu_usec: u64, window: Duration, keep_alive: bool, cpu_percent_max: f64) -> Observed {
        let at = self.began.elapsed();
        let state = self.lock();
        Observed {
            keep_alive,
            kept: false,
            busy: state.busy(),
            quiet: state.quiet_since.elapsed(),
            cpu_percent: state.cpu.percent(at, cpu_usec, window),
            window,
            cpu_percent_max,
        }
    }

    /// True while a short request needs the box, while bytes are on their way into it, or if some have gone into it
    /// since [`Activity::arrivals`] returned `arrivals`.
    pub fn is_needed(&self, arrivals: u64) -> bool {
        let state = self.lock();
        state.requests + state.arriving > 0 || state.arrivals != arrivals
    }

    /// Waits until no request is in progress, at most for `limit`.
    pub async fn requests_over(&self, limit: Duration) {
        let wait = async {
            loop {
                let over = self.no_requests.notified();
                if self.lock().answering() == 0 {
                    return;
                }
                over.await;
            }
        };
        // After the limit the pause goes ahead; `Lifecycle::pause` describes the effect on the request.
        let _ = tokio::time::timeout(limit, wait).await;
    }
}

impl State {
    fn counter(&mut self, kind: WorkKind) -> &mut u32 {
        match kind {
            WorkKind::Request => &mut self.requests,
            WorkKind::Run => &mut self.runs,
            WorkKind::Session => &mut self.sessions,
            WorkKind::Settling => &mut self.settling,
            WorkKind::Url => &mut self.urls,
            WorkKind::Arriving => &mut self.arriving,
        }
    }

    fn busy(&self) -> bool {
        self.requests + self.runs + self.sessions + self.settling + self.urls + self.arriving > 0
    }

    /// Requests whose answer a client waits for.
    fn answering(&self) -> u32 {
        self.requests + self.urls
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        let counter = state.counter(self.kind);
        *counter = counter.saturating_sub(1);
        state.quiet_since = Instant::now();
        state.last_work_ms = clock::unix_ms();
        if self.kind == WorkKind::Arriving {
            state.arrivals += 1;
        }
        if state.answering() == 0 {
            self.activity.no_requests.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_is_counted_and_quiet_time_begins_at_its_end() {
        let activity = Activity::new(0);
        let window = Duration::from_secs(10);
        let run = activity.begin(WorkKind::Run);
        let request = activity.begin(WorkKind::Request);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(activity.observe(0, window, false, 1.0).busy);
        drop(request);
        assert_eq!(activity.counts(), Counts { requests: 0, runs: 1, sessions: 0, urls: 0 });
        drop(run);
        let observed = activity.observe(0, window, false, 1.0);
        assert!(!observed.busy && observed.quiet.is_zero(), "{observed:?}");
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(activity.observe(0, window, false, 1.0).quiet, Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_requests_ends_with_the_last_one_or_the_limit() {
        let activity = Activity::new(0);
        assert!(!activity.is_needed(0));
        let request = activity.begin(WorkKind::Request);
        assert!(activity.is_needed(0));
        let begun = Instant::now();
        activity.requests_over(Duration::from_secs(2)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        let waiting = {
            let activity = Arc::clone(&activity);
            tokio::spawn(async move { activity.requests_over(Duration::from_secs(60)).await })
        };
        tokio::task::yield_now().await;
        drop(request);
        waiting.await.expect("it ends");
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_arrive_are_noticed_and_begin_the_idle_time_anew() {
        let activity = Activity::new(0);
        let before = activity.arrivals();
        tokio::time::advance(Duration::from_secs(5)).await;
        let arriving = activity.begin(WorkKind::Arriving);
        let observed = activity.observe(0, Duration::from_secs(9), false, 1.0);
        assert!(observed.busy && activity.is_needed(before));
        drop(arriving);
        assert!(activity.is_needed(before) && !activity.is_needed(activity.arrivals()));
        tokio::time::advance(Duration::from_secs(5)).await;
        activity.touch();
        let observed = activity.observe(0, Duration::from_secs(9), false, 1.0);
        assert!(!observed.busy && observed.quiet.is_zero(), "{observed:?}");
        assert_eq!(activity.counts(), Counts { requests: 0, runs: 0, sessions: 0, urls: 0 });
    }
}
