//! Keeping a box awake by request of its owner, from outside. A process in a box does it by a lock (`freeze`).

use std::sync::Arc;

use super::{Boxes, Entry};
use crate::clock;
use crate::domain::Keep;
use crate::events::Fact;
use crate::refusal::Refusal;

/// Longest duration: a year. Without a duration it lasts until the owner ends it.
const KEEP_SECONDS_MAX: u64 = 365 * 24 * 3600;

impl Boxes {
    /// Keeps a box awake for this many seconds, or until [`Boxes::release`]. Replaces an earlier request. On return it
    /// is on disk and in force.
    pub async fn keep(
        &self,
        entry: &Arc<Entry>,
        account_idle: Option<u64>,
        seconds: Option<u64>,
    ) -> Result<Keep, Refusal> {
        let keep = Keep { until_ms: seconds.map(|seconds| until(seconds, clock::unix_ms())).transpose()? };
        self.change_settings(entry, account_idle, |settings| settings.keep = Some(keep)).await?;
        self.publish(entry, Fact::Kept { until_ms: keep.until_ms });
        Ok(keep)
    }

    /// Ends the request to keep a box awake. No effect if there is none.
    pub async fn release(&self, entry: &Arc<Entry>, account_idle: Option<u64>) -> Result<(), Refusal> {
        if entry.settings().keep.is_none() {
            return Ok(());
        }
        self.change_settings(entry, account_idle, |settings| settings.keep = None).await?;
        self.publish(entry, Fact::Released);
        Ok(())
    }
}

fn until(seconds: u64, now_ms: i64) -> Result<i64, Refusal> {
    match i64::try_from(seconds) {
        Ok(whole) if (1..=KEEP_SECONDS_MAX).contains(&seconds) => Ok(now_ms + whole * 1000),
        _ => Err(Refusal::Invalid(format!("seconds must be 1 to {KEEP_SECONDS_MAX}, or null"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_its_limits() {
        assert_eq!(until(60, 1_000).ok(), Some(61_000));
        assert!(until(0, 0).is_err() && until(KEEP_SECONDS_MAX + 1, 0).is_err() && until(u64::MAX, 0).is_err());
    }
}
