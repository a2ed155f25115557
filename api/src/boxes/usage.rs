//! Bills: the usage of boxes. `ledger` has the prices, `http` the JSON.

use std::sync::Arc;

use super::{Boxes, Entry, Phase, Write};
use crate::clock::{self, Moment};
use crate::db::Account;
use crate::domain::{BoxStatus, DeletedBox, Snapshot, SnapshotStatus};
use crate::error::Error;
use crate::ledger::{self, Sample, Usage};

/// The usage of one box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoxBill {
    /// Id of the box.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// Its status; deleted boxes stay on the bill.
    pub status: BoxStatus,
    /// Its usage.
    pub usage: Usage,
}

/// The usage of the boxes of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountBill {
    /// Name of the account.
    pub account: String,
    /// Unix milliseconds up to which it is computed.
    pub until_ms: i64,
    /// All boxes, deleted ones too.
    pub boxes: Vec<BoxBill>,
    /// All snapshots together, deleted ones too.
    pub snapshots: KeptBill,
    /// All volumes together, deleted ones too.
    pub volumes: KeptBill,
}

/// The usage of what an account keeps beside boxes: each snapshot or volume occupies its blocks from its creation to its
/// deletion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptBill {
    /// Number of them now.
    pub count: usize,
    /// Their storage.
    pub usage: Usage,
}

impl Boxes {
    /// The bill of one box, up to this moment: reads its counters now and puts them on disk.
    pub async fn bill_of(&self, entry: &Arc<Entry>) -> Result<BoxBill, Error> {
        self.read_now(std::slice::from_ref(entry)).await?;
        Ok(bill_of_entry(entry))
    }

    /// The bill of an account, deleted boxes included.
    pub async fn account_usage(&self, account: &Account) -> Result<AccountBill, Error> {
        let mut entries = self.all();
        entries.retain(|entry| entry.account_id == account.id);
        entries.sort_by_key(|entry| (entry.created_ms, entry.id.clone()));
        self.read_now(&entries).await?;
        let mut bills: Vec<BoxBill> = entries.iter().map(|entry| bill_of_entry(entry)).collect();
        // A box in deletion may be both in the table and on disk: it counts once. The list is read before the ledger:
        // boxes in it have their last sample on disk.
        let mut deleted = self.inner.db.deleted_boxes(&account.id).await?;
        deleted.retain(|gone| entries.iter().all(|entry| entry.id != gone.id));
        let mut ledger = self.inner.db.samples_of_deleted(&account.id).await?;
        for gone in deleted {
            let samples = ledger.remove(&gone.id).unwrap_or_default();
            bills.push(bill_of_deleted(gone, &samples));
        }
        let until_ms = clock::unix_ms();
        let snapshots = bill_of_snapshots(&self.inner.db.billed_snapshots(&account.id).await?, until_ms);
        let volumes = self.bill_of_volumes(account, until_ms).await?;
        Ok(AccountBill { account: account.name.clone(), until_ms, boxes: bills, snapshots, volumes })
    }

    async fn bill_of_volumes(&self, account: &Account, until_ms: i64) -> Result<KeptBill, Error> {
        match self.measure_volumes().await {
            // The bill is correct with what was measured before.
            Err(error) if error.is_disk_full() => {}
            measured => measured?,
        }
        let mut bill = KeptBill { count: self.inner.db.volumes(&account.id).await?.len(), ..KeptBill::default() };
        for volume in self.inner.db.billed_volumes(&account.id).await? {
            bill.usage.storage_byte_ms += volume.stored.byte_ms(until_ms);
            bill.usage.storage_bytes += volume.stored.bytes;
        }
        Ok(bill)
    }

    /// Reads the counters of boxes that are awake. A sleeping box was read when it fell asleep. On return the basis of
    /// the bill is on disk: a bill that was shown never shrinks, not even by a power cut. So a reading is written even
    /// if it equals the last one, which may still be on its way.
    async fn read_now(&self, entries: &[Arc<Entry>]) -> Result<(), Error> {
        let mut samples = Vec::new();
        for entry in entries {
            if entry.view().phase == Phase::Ready && !entry.frozen() {
                let storage = self.storage_bytes(&entry.id).await;
                samples.extend(entry.meter.read(&entry.id, &entry.handle(), storage, Write::Always, "bill"));
            }
        }
        if samples.is_empty() {
            return self.inner.db.settle().await;
        }
        let insert = move |c: &rusqlite::Connection| samples.iter().try_for_each(|sample| sample.insert(c));
        match self.inner.db.write("append to the ledger", insert).await {
            // The bill is correct, and the kernel keeps the counters: a later reading includes them.
            Err(error) if error.is_disk_full() => {
                tracing::warn!("the disk is full: a bill was shown that is not on disk yet");
                Ok(())
            }
            done => done,
        }
    }
}

fn bill_of_entry(entry: &Entry) -> BoxBill {
    BoxBill { id: entry.id.clone(), name: entry.name.clone(), status: entry.status(), usage: entry.meter.usage() }
}

fn bill_of_snapshots(snapshots: &[Snapshot], until_ms: i64) -> KeptBill {
    let mut bill = KeptBill::default();
    for snapshot in snapshots {
        bill.usage.storage_byte_ms += snapshot.byte_ms(until_ms);
        if snapshot.status == SnapshotStatus::Ready {
            bill.count += 1;
            bill.usage.storage_bytes += snapshot.size_bytes;
        }
    }
    bill
}

fn bill_of_deleted(gone: DeletedBox, samples: &[Sample]) -> BoxBill {
    let usage = ledger::fold(samples, Some(&Moment::now()));
    BoxBill { id: gone.id, name: gone.name, status: BoxStatus::Deleted, usage }
}
