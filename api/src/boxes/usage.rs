//! Bills.

use std::sync::Arc;

use super::{Boxes, Entry, Phase, Write};
use crate::clock::{self, Moment};
use crate::db::{Account, DeletedBox};
use crate::error::Error;
use crate::ledger::{self, DOLLARS_PER_CORE_HOUR, DOLLARS_PER_GB_MONTH, Sample, Usage};
use crate::wire::{AccountUsage, BillTotals, BoxBill, BoxStatus, PriceList};

const GB_HOUR_BYTE_MS: f64 = 1e9 * 3_600_000.0;

impl Boxes {
    /// The bill of one box, up to this moment: its counters are read now and put on disk.
    pub async fn bill_of(&self, entry: &Arc<Entry>) -> Result<BoxBill, Error> {
        self.read_now(std::slice::from_ref(entry)).await?;
        Ok(bill_of_entry(entry))
    }

    /// The bill of an account, deleted boxes included.
    pub async fn account_usage(&self, account: &Account) -> Result<AccountUsage, Error> {
        let mut entries = self.all();
        entries.retain(|entry| entry.account_id == account.id);
        entries.sort_by_key(|entry| (entry.created_ms, entry.id.clone()));
        self.read_now(&entries).await?;
        let mut usages: Vec<(BoxBill, Usage)> =
            entries.iter().map(|entry| (bill_of_entry(entry), entry.meter.usage())).collect();
        // A box that is just being deleted may be in the table and on disk: it counts once. The list is read before
        // the ledger: what it names has its last sample on disk.
        let mut deleted = self.db().deleted_boxes(&account.id).await?;
        deleted.retain(|gone| entries.iter().all(|entry| entry.id != gone.id));
        let mut ledger = self.db().samples_of_deleted(&account.id).await?;
        for gone in deleted {
            let samples = ledger.remove(&gone.id).unwrap_or_default();
            usages.push(bill_of_deleted(&gone, &samples));
        }
        let sum = usages.iter().fold(Usage::default(), |sum, (_, usage)| Usage {
            cpu_usec: sum.cpu_usec + usage.cpu_usec,
            storage_byte_ms: sum.storage_byte_ms + usage.storage_byte_ms,
            storage_bytes: sum.storage_bytes + usage.storage_bytes,
        });
        Ok(AccountUsage {
            account: account.name.clone(),
            until: clock::unix_ms() / 1000,
            prices: PriceList {
                dollars_per_core_hour: DOLLARS_PER_CORE_HOUR,
                dollars_per_gb_month: DOLLARS_PER_GB_MONTH,
            },
            boxes: usages.into_iter().map(|(bill, _)| bill).collect(),
            totals: totals(&sum),
        })
    }

    /// Reads the counters of boxes that are awake. A sleeping box has been read when it fell asleep. Afterwards what the
    /// bill rests on is on disk: a bill that was shown never shrinks, not even by a power cut. So a reading is written
    /// even if it equals the last one, which may still be on its way.
    async fn read_now(&self, entries: &[Arc<Entry>]) -> Result<(), Error> {
        let mut samples = Vec::new();
        for entry in entries {
            if entry.view().phase == Phase::Ready && !entry.frozen() {
                let storage = self.storage_bytes(&entry.id).await;
                samples.extend(entry.meter.read(&entry.id, &entry.handle(), storage, Write::Always, "bill"));
            }
        }
        if samples.is_empty() {
            return self.db().settle().await;
        }
        let insert = move |c: &rusqlite::Connection| samples.iter().try_for_each(|sample| sample.insert(c));
        match self.db().write("append to the ledger", insert).await {
            // The bill is right, and the kernel still has the counters: a later reading has them too.
            Err(error) if error.is_disk_full() => {
                tracing::warn!("the disk is full: a bill was shown that is not on disk yet");
                Ok(())
            }
            done => done,
        }
    }
}

fn bill_of_entry(entry: &Entry) -> BoxBill {
    bill(&entry.id, entry.name.as_deref(), entry.status(), &entry.meter.usage())
}

fn bill_of_deleted(gone: &DeletedBox, samples: &[Sample]) -> (BoxBill, Usage) {
    let usage = ledger::fold(samples, Some(&Moment::now()));
    (bill(&gone.id, gone.name.as_deref(), BoxStatus::Deleted, &usage), usage)
}

/// A usage as a bill.
#[must_use]
pub fn bill(id: &str, name: Option<&str>, status: BoxStatus, usage: &Usage) -> BoxBill {
    let cost = ledger::cost(usage);
    BoxBill {
        id: id.to_owned(),
        name: name.map(str::to_owned),
        status,
        cpu_usec: usage.cpu_usec,
        core_seconds: core_seconds(usage),
        gb_hours: gb_hours(usage),
        storage_bytes: usage.storage_bytes,
        cpu_micro_dollars: cost.cpu_micro_dollars,
        storage_micro_dollars: cost.storage_micro_dollars,
        cpu_dollars: dollars(cost.cpu_micro_dollars),
        storage_dollars: dollars(cost.storage_micro_dollars),
        total_dollars: dollars(cost.total_micro_dollars()),
    }
}

fn totals(usage: &Usage) -> BillTotals {
    let cost = ledger::cost(usage);
    BillTotals {
        cpu_usec: usage.cpu_usec,
        core_seconds: core_seconds(usage),
        gb_hours: gb_hours(usage),
        cpu_dollars: dollars(cost.cpu_micro_dollars),
        storage_dollars: dollars(cost.storage_micro_dollars),
        total_dollars: dollars(cost.total_micro_dollars()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people; the exact integers stand beside it")]
fn core_seconds(usage: &Usage) -> f64 {
    usage.cpu_usec as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "for people; the exact integers stand beside it")]
fn gb_hours(usage: &Usage) -> f64 {
    usage.storage_byte_ms as f64 / GB_HOUR_BYTE_MS
}

/// Millionths of a dollar as dollars.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "for people; the exact integers stand beside it")]
pub(super) fn dollars(micro: u64) -> f64 {
    micro as f64 / 1e6
}
