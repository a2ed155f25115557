//! Notifications to the service manager (sd_notify(3)): progress of the start, readiness, number of boxes, watchdog,
//! stop. Without a service manager they cost nothing.

use std::net::SocketAddr;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior};

use crate::boxes::Boxes;
use crate::lifecycle::Lifecycle;

/// Interval between progress reports of a long start.
const START_EVERY: Duration = Duration::from_secs(5);
/// Extension of the start's time limit for each progress.
const START_EXTENSION: Duration = Duration::from_secs(120);
/// Delay between two reports of the number of boxes, which may change a thousand times a second.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Runs the start and reports its progress. A start without progress gets no extension: the service manager's own limit
/// ends it.
pub(super) async fn while_starting<T>(lifecycle: &Lifecycle, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(START_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        tokio::select! {
            biased;
            done = work.as_mut() => return done,
            _ = ticks.tick() => {
                let progress = lifecycle.progress();
                let status = progress.to_string();
                tell(&[NotifyState::Status(&status)]);
                if told.replace(status.clone()) != Some(status) {
                    let usec = u32::try_from(START_EXTENSION.as_micros()).unwrap_or(u32::MAX);
                    tell(&[NotifyState::ExtendTimeoutUsec(usec)]);
                }
            }
        }
    }
}

/// Reports that the daemon serves.
pub(super) fn ready(boxes: &Boxes, address: SocketAddr) {
    tell(&[NotifyState::Ready, NotifyState::Status(&status(boxes, address))]);
}

/// Reports changes while it serves. Never returns.
pub(super) async fn go_on_telling(boxes: Boxes, address: SocketAddr) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    // Half the manager's watchdog time: one late keepalive is tolerated.
    let every = sd_notify::watchdog_enabled().map(|patience| patience / 2);
    let mut sign = every.map(|every| Instant::now() + every);
    let mut status_due = Instant::now();
    let mut stale = false;
    loop {
        let next_sign = async {
            match sign {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = boxes.number_changed(), if !stale => stale = true,
            () = tokio::time::sleep_until(status_due), if stale => {
                stale = false;
                status_due = Instant::now() + STATUS_PAUSE;
                tell(&[NotifyState::Status(&status(&boxes, address))]);
            }
            () = next_sign => {
                // A task that holds the table for ever stops this keepalive too.
                let _ = boxes.all();
                tell(&[NotifyState::Watchdog]);
                sign = every.map(|every| Instant::now() + every);
            }
        }
    }
}

/// Reports that the daemon stops.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping; boxes go on")]);
}

fn status(boxes: &Boxes, address: SocketAddr) -> String {
    match boxes.all().len() {
        1 => format!("serving 1 box on {address}"),
        number => format!("serving {number} boxes on {address}"),
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(cause) = sd_notify::notify(state) {
        tracing::debug!(%cause, "cannot tell the service manager");
    }
}
