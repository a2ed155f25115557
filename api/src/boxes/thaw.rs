//! Waking: a frozen box is thawed, a box without processes is restarted on its disk.
//!
//! Leaves out: when a box is woken, and the effect on its runs (`lifecycle::wake`).

use std::sync::Arc;
use std::time::Duration;

use icebox_rootfs::Check;

use super::launch::Start;
use super::{Boxes, Entry, THAW_DEADLINE, Write};
use crate::db::LogRow;
use crate::domain::BoxSettings;
use crate::error::Error;
use crate::events::Fact;
use crate::refusal::Refusal;
use icebox_net::address::Pair;

impl Boxes {
    /// Thaws a frozen box; returns true if it was frozen. The caller holds the lifecycle lock.
    pub(crate) async fn thaw(&self, entry: &Arc<Entry>) -> Result<bool, Refusal> {
        let handle = entry.handle();
        if !handle.frozen().map_err(Refusal::from)? {
            return Ok(false);
        }
        let began = std::time::Instant::now();
        entry.set_sleep_timer(None);
        handle
            .thaw(THAW_DEADLINE)
            .await
            .map_err(|cause| Refusal::Failed(Error::new("wake the box", &entry.id, cause)))?;
        let took = began.elapsed();
        self.end_watch_of_arrivals(entry).await;
        self.came_awake(entry, took);
        Ok(true)
    }

    /// Restarts a box on its disk. It has no processes any more and [`Boxes::clean_up_dead`] has been called. The
    /// caller holds the lifecycle lock.
    pub(crate) async fn start_again(&self, entry: &Arc<Entry>, check: Check) -> Result<(), Refusal> {
        let uid_base = self.range_for_restart(entry)?;
        let pair = self.addresses_for_restart(entry)?;
        let rights = entry.rights();
        let image = self.image_of(entry).await?;
        let BoxSettings { size, volumes, .. } = entry.settings();
        let start = Start { id: entry.id.clone(), size, image, root: None, uid_base, pair, rights, volumes };
        let started = match self.volume(&entry.id).await {
            Ok(volume) => match self.grow_to_record(entry, &volume).await {
                Ok(()) => self.start_checked(&start, volume, check).await,
                Err(error) => Err(error.into()),
            },
            Err(refusal) => Err(refusal),
        };
        let started = match started {
            Ok(started) => started,
            Err(refusal) => {
                let text = refusal.chain();
                tracing::error!(box_id = entry.id, reason = text, "a box could not be started");
                entry.change_view(|view| view.error = Some(text));
                return Err(refusal);
            }
        };
        entry.change_view(|view| {
            view.handle = started.handle.clone();
            view.uid_base = uid_base;
            view.incarnation = Some(started.incarnation.clone());
            view.error = None;
            view.adopted = true;
        });
        let storage = self.storage_bytes(&entry.id).await;
        let sample =
            entry.meter.read(&entry.id, &started.handle, storage, Write::Always, "start").ok_or_else(|| {
                Error::new("read the counters of", &entry.id, crate::error::Cause::Invalid("its cgroup cannot be read"))
            })?;
        let again = entry.event(Fact::Started { launch: started.took, warnings: started.warnings });
        let logs = LogRow::of(&again);
        let address = pair.map(Pair::guest);
        self.inner.db.update_incarnation(&entry.id, uid_base, address, &started.incarnation, sample, logs).await?;
        self.inner.events.publish(again);
        entry.set_asleep(false);
        entry.activity.restart(0);
        entry.activity.woken();
        self.watch_death(entry);
        self.start_clock();
        Ok(())
    }

    /// The uid range for the next start: the old one, unless another daemon has taken its block since a reboot.
    fn range_for_restart(&self, entry: &Arc<Entry>) -> Result<u32, Error> {
        let view = entry.view();
        if view.range_held {
            return Ok(view.uid_base);
        }
        let ranges = &self.inner.ranges;
        let old = view.uid_base;
        let uid_base = if ranges.keep(old)? { old } else { ranges.take(crate::clock::unix_ms())? };
        entry.change_view(|view| {
            view.uid_base = uid_base;
            view.range_held = true;
        });
        Ok(uid_base)
    }

    /// Work after any wake of a box. The caller does not wait for it: the counter has not moved.
    fn came_awake(&self, entry: &Arc<Entry>, took: Duration) {
        entry.set_asleep(false);
        let sample = entry.meter.read(&entry.id, &entry.handle(), None, Write::Always, "woken");
        let cpu_usec = sample.as_ref().map_or(0, |stored| stored.sample.cpu_usec);
        entry.activity.restart(cpu_usec);
        entry.activity.woken();
        self.inner.db.append_samples(sample.into_iter().collect());
        self.publish(entry, Fact::Thawed { took });
        self.start_clock();
    }
}
