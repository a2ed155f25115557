//! The reasons why a box is awake, or the events that wake it.

use std::sync::Arc;
use std::time::Duration;

use super::{Boxes, Entry, Verdict, decide};
use crate::clock;
use crate::domain::{BoxSettings, BoxStatus};
use crate::error::Error;

/// Traffic older than the last work by less than this was the last work.
const TRAFFIC_SLACK: Duration = Duration::from_millis(50);

/// The reasons why a box is awake, or the events that wake it.
#[derive(Debug, Clone, PartialEq)]
pub struct Why {
    /// Status of the box.
    pub status: BoxStatus,
    /// Reasons why it is awake now.
    pub awake_because: Vec<String>,
    /// Seconds until it falls asleep if no work arrives.
    pub freezes_in_seconds: Option<f64>,
    /// Events that a sleeping box waits for.
    pub waiting_for: Vec<String>,
    /// Seconds without work until it sleeps.
    pub idle_seconds: u64,
    /// CPU of the box over the idle window, in percent of one core.
    pub cpu_percent: Option<f64>,
}

impl Boxes {
    /// The idle time in force for these settings.
    #[must_use]
    pub fn idle_in_force(&self, settings: &BoxSettings, account: Option<u64>) -> Duration {
        Duration::from_secs(settings.idle_seconds.or(account).unwrap_or(self.inner.config.idle_seconds))
    }

    /// Applies a new idle time of an account to the boxes without one of their own.
    pub fn account_idle_changed(&self, account_id: &str, account: Option<u64>) {
        for entry in self.of_account(account_id) {
            let idle = self.idle_in_force(&entry.settings(), account);
            entry.change_config(|config| config.idle = idle);
        }
        self.inner.awake.notify_one();
    }

    /// Changes the settings of a box: on disk first, then in force.
    pub async fn change_settings(
        &self,
        entry: &Arc<Entry>,
        account_idle: Option<u64>,
        change: impl FnOnce(&mut BoxSettings),
    ) -> Result<(), Error> {
        // Serialises concurrent changes: none may overwrite another.
        let _changing = entry.changing.lock().await;
        let mut record = entry.record();
        change(&mut record.settings);
        record.updated_ms = clock::unix_ms();
        self.inner.db.update_settings(&record).await?;
        let idle = self.idle_in_force(&record.settings, account_idle);
        entry.change_config(|config| {
            config.settings = record.settings;
            config.updated_ms = record.updated_ms;
            config.idle = idle;
        });
        self.inner.awake.notify_one();
        Ok(())
    }

    /// Explains the state of a box. Wakes nothing.
    #[must_use]
    pub fn why(&self, entry: &Arc<Entry>) -> Why {
        let status = entry.status();
        let mut why = Why {
            status,
            awake_because: Vec::new(),
            freezes_in_seconds: None,
            waiting_for: Vec::new(),
            idle_seconds: entry.idle().as_secs(),
            cpu_percent: None,
        };
        match status {
            BoxStatus::Idle | BoxStatus::Running => self.explain_awake(entry, &mut why),
            BoxStatus::Paused => {
                why.waiting_for.push("the next request that needs it, or data on one of its connections".into())
            }
            BoxStatus::Stopped => {
                why.waiting_for.push("the next request, which starts it again on its disk".into());
            }
            BoxStatus::Creating => why.waiting_for.push("the end of its creation".into()),
            BoxStatus::Deleted => why.waiting_for.push("the end of its deletion".into()),
            BoxStatus::Error => why.waiting_for.extend(entry.view().error),
        }
        why
    }

    fn explain_awake(&self, entry: &Arc<Entry>, why: &mut Why) {
        let counts = entry.activity.counts();
        let mut count = |number: u32, one: &str, many: &str| match number {
            0 => {}
            1 => why.awake_because.push(format!("1 {one}")),
            n => why.awake_because.push(format!("{n} {many}")),
        };
        count(counts.runs, "command is running", "commands are running");
        count(counts.sessions, "session is open", "sessions are open");
        count(counts.requests, "request is in progress", "requests are in progress");
        count(counts.urls, "public URL request is in progress", "public URL requests are in progress");
        let cpu_usec = entry.handle().cpu().map_or(0, |reading| reading.cpu_usec);
        let config = &self.inner.config;
        let observed = self.observe(entry, cpu_usec);
        if entry.activity.is_kept() {
            why.awake_because.push("a process in it held a lock on /run/icebox/keep".into());
        }
        why.cpu_percent = Some((observed.cpu_percent * 100.0).round() / 100.0);
        match decide(&observed) {
            Verdict::KeepAlive => why.awake_because.push("it is a keep-alive box".into()),
            Verdict::Kept => why.awake_because.push(kept_text(entry)),
            Verdict::Busy => {}
            Verdict::CpuInUse => why.awake_because.push(format!(
                "its programs used {:.1} % of a core in the last {} s (limit {} %)",
                observed.cpu_percent,
                entry.idle().as_secs(),
                config.idle_cpu_percent
            )),
            Verdict::Wait(left) => {
                let quiet = observed.quiet;
                // Each was recorded with its own reading of the clock: the same moment up to some microseconds.
                let by_traffic = entry.activity.since_traffic().is_some_and(|at| at <= quiet + TRAFFIC_SLACK);
                let what = if by_traffic { "its network was used" } else { "its last work was" };
                why.awake_because.push(format!("{what} {:.0} s ago", quiet.as_secs_f64()));
                why.freezes_in_seconds = Some((left.as_secs_f64() * 10.0).round() / 10.0);
            }
            Verdict::Sleep => why.freezes_in_seconds = Some(0.0),
        }
    }
}

fn kept_text(entry: &Entry) -> String {
    let now = clock::unix_ms();
    match entry.settings().kept(now).and_then(|keep| keep.until_ms) {
        Some(until_ms) => format!("its owner keeps it awake for another {} s", (until_ms - now + 999) / 1000),
        None => "its owner keeps it awake".to_owned(),
    }
}
