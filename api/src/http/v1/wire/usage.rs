//! Bills, reasons why a box is awake, and resource usage.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boxes;
use crate::http::v2::wire::{BoxStatus, BoxVolume, Kept};
use crate::ledger::{self, DOLLARS_PER_CORE_HOUR, DOLLARS_PER_GB_MONTH, Usage};

const GB_HOUR_BYTE_MS: f64 = 1e9 * 3_600_000.0;

/// Answer of `GET /v1/boxes/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BoxView {
    /// Id of the box.
    pub id: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Status of the box.
    pub status: BoxStatus,
    /// Id of its base image. A box keeps its image for life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Volumes that it has beside its disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<BoxVolume>,
    /// Its owner keeps it awake; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// The bill of one box.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BoxBill {
    /// Id of the box.
    pub id: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Status of the box; `deleted` boxes stay on the bill.
    pub status: BoxStatus,
    /// CPU time in microseconds, exact.
    pub cpu_usec: u64,
    /// CPU time in core-seconds.
    pub core_seconds: f64,
    /// Storage in GB-hours (1 GB = 10^9 bytes).
    pub gb_hours: f64,
    /// Bytes of disk in use now.
    pub storage_bytes: u64,
    /// CPU cost in millionths of a dollar, exact.
    pub cpu_micro_dollars: u64,
    /// Storage cost in millionths of a dollar, exact.
    pub storage_micro_dollars: u64,
    /// CPU cost.
    pub cpu_dollars: f64,
    /// Storage cost.
    pub storage_dollars: f64,
    /// Total cost.
    pub total_dollars: f64,
}

/// The bill of what an account keeps beside boxes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeptBill {
    /// Number of them now.
    pub count: usize,
    /// Bytes that they occupy now.
    pub storage_bytes: u64,
    /// Storage in GB-hours.
    pub gb_hours: f64,
    /// Storage cost in millionths of a dollar, exact.
    pub storage_micro_dollars: u64,
    /// Storage cost.
    pub storage_dollars: f64,
}

/// Sum of several bills.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BillTotals {
    /// CPU time in microseconds, exact.
    pub cpu_usec: u64,
    /// CPU time in core-seconds.
    pub core_seconds: f64,
    /// Storage in GB-hours.
    pub gb_hours: f64,
    /// CPU cost.
    pub cpu_dollars: f64,
    /// Storage cost.
    pub storage_dollars: f64,
    /// Total cost.
    pub total_dollars: f64,
}

/// The prices of a bill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PriceList {
    /// Dollars for one core used for one hour.
    pub dollars_per_core_hour: f64,
    /// Dollars for one GB (10^9 bytes) kept for one month (730 hours).
    pub dollars_per_gb_month: f64,
}

/// Answer of `GET /v1/usage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccountUsage {
    /// Name of the account.
    pub account: String,
    /// Unix seconds up to which it is computed.
    pub until: i64,
    /// The prices.
    pub prices: PriceList,
    /// All boxes, deleted ones too.
    pub boxes: Vec<BoxBill>,
    /// All snapshots together, deleted ones too.
    pub snapshots: KeptBill,
    /// All volumes together, deleted ones too.
    #[serde(default)]
    pub volumes: KeptBill,
    /// The sum of boxes, snapshots and volumes.
    pub totals: BillTotals,
}

/// Answer of `GET /v1/boxes/{id}/why`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Why {
    /// Status of the box.
    pub status: BoxStatus,
    /// Reasons why it is awake now.
    pub awake_because: Vec<String>,
    /// Seconds until it falls asleep if no work arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freezes_in_seconds: Option<f64>,
    /// Events that wake a sleeping box.
    pub waiting_for: Vec<String>,
    /// Seconds without work until it sleeps.
    pub idle_seconds: u64,
    /// CPU of the box over the idle window, in percent of one core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
}

/// Body of `POST /v1/boxes/{id}/keep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeepRequest {
    /// Seconds for which the box is kept awake; `null` until it is ended.
    #[serde(default)]
    pub seconds: Option<u64>,
}

/// Body of `PUT /v1/boxes/{id}/idle` and `PUT /v1/account/idle`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IdleChange {
    /// Seconds without work until a box sleeps; `null` returns to the default of the level above.
    #[serde(default)]
    pub idle_seconds: Option<u64>,
}

/// Answer of the idle endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IdleAnswer {
    /// The seconds in force.
    pub idle_seconds: u64,
}

/// One process of a box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TopProcess {
    /// Process id inside the box.
    pub pid: i32,
    /// Its command.
    pub comm: String,
}

/// Time for which processes of the box stalled for want of a resource (the kernel's PSI).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopStall {
    /// Percent of the last 10 seconds in which at least one process stalled (PSI `some`).
    pub some_avg10: f64,
    /// Percent of the last minute.
    pub some_avg60: f64,
    /// Percent of the last 5 minutes.
    pub some_avg300: f64,
    /// Microseconds since the start.
    pub some_usec: u64,
    /// Percent of the last 10 seconds in which all non-idle processes stalled (PSI `full`).
    pub full_avg10: f64,
    /// Percent of the last minute.
    pub full_avg60: f64,
    /// Percent of the last 5 minutes.
    pub full_avg300: f64,
    /// Microseconds since the start.
    pub full_usec: u64,
}

/// Pressure by resource.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopPressure {
    /// A CPU; the CPU limit counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<TopStall>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<TopStall>,
    /// The disk; its limits count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<TopStall>,
}

/// Answer of `POST /v1/boxes/{id}/reclaim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReclaimAnswer {
    /// Bytes of memory in use before.
    pub memory_before: u64,
    /// Bytes of memory in use after.
    pub memory_after: u64,
    /// Bytes in swap before.
    pub swap_before: u64,
    /// Bytes in swap after.
    pub swap_after: u64,
    /// It ended early, because the box was woken.
    pub cut_short: bool,
}

/// Answer of `GET /v1/boxes/{id}/top`. It wakes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Top {
    /// CPU time since the box was started.
    pub cpu_usec: u64,
    /// Part of it in user mode.
    pub user_usec: u64,
    /// Part of it in the kernel.
    pub system_usec: u64,
    /// Memory in use.
    pub memory_current: u64,
    /// Most memory in use since the start.
    pub memory_peak: u64,
    /// Memory that is swapped out.
    pub memory_swap: u64,
    /// Number of times the box was throttled because it exceeded its `memory.high`.
    pub memory_high_events: u64,
    /// Number of times it was about to exceed its limit.
    pub memory_max_events: u64,
    /// Number of processes that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Pressure on its processes, where the kernel reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<TopPressure>,
    /// Processes and threads.
    pub pids: u64,
    /// True if the box is asleep (frozen).
    pub frozen: bool,
    /// The processes, where they can be listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Vec<TopProcess>>,
}

impl From<boxes::BoxBill> for BoxBill {
    fn from(bill: boxes::BoxBill) -> Self {
        let cost = ledger::cost(&bill.usage);
        Self {
            id: bill.id,
            name: bill.name,
            status: bill.status.into(),
            cpu_usec: bill.usage.cpu_usec,
            core_seconds: core_seconds(&bill.usage),
            gb_hours: gb_hours(&bill.usage),
            storage_bytes: bill.usage.storage_bytes,
            cpu_micro_dollars: cost.cpu_micro_dollars,
            storage_micro_dollars: cost.storage_micro_dollars,
            cpu_dollars: dollars(cost.cpu_micro_dollars),
            storage_dollars: dollars(cost.storage_micro_dollars),
            total_dollars: dollars(cost.total_micro_dollars()),
        }
    }
}

impl From<boxes::KeptBill> for KeptBill {
    fn from(bill: boxes::KeptBill) -> Self {
        let cost = ledger::cost(&bill.usage);
        Self {
            count: bill.count,
            storage_bytes: bill.usage.storage_bytes,
            gb_hours: gb_hours(&bill.usage),
            storage_micro_dollars: cost.storage_micro_dollars,
            storage_dollars: dollars(cost.storage_micro_dollars),
        }
    }
}

impl From<boxes::AccountBill> for AccountUsage {
    fn from(bill: boxes::AccountBill) -> Self {
        let all = bill.boxes.iter().map(|one| &one.usage).chain([&bill.snapshots.usage, &bill.volumes.usage]);
        let sum = all.fold(Usage::default(), |sum, one| Usage {
            cpu_usec: sum.cpu_usec + one.cpu_usec,
            storage_byte_ms: sum.storage_byte_ms + one.storage_byte_ms,
            storage_bytes: sum.storage_bytes + one.storage_bytes,
        });
        let cost = ledger::cost(&sum);
        Self {
            account: bill.account,
            until: bill.until_ms / 1000,
            prices: PriceList {
                dollars_per_core_hour: DOLLARS_PER_CORE_HOUR,
                dollars_per_gb_month: DOLLARS_PER_GB_MONTH,
            },
            boxes: bill.boxes.into_iter().map(BoxBill::from).collect(),
            snapshots: bill.snapshots.into(),
            volumes: bill.volumes.into(),
            totals: BillTotals {
                cpu_usec: sum.cpu_usec,
                core_seconds: core_seconds(&sum),
                gb_hours: gb_hours(&sum),
                cpu_dollars: dollars(cost.cpu_micro_dollars),
                storage_dollars: dollars(cost.storage_micro_dollars),
                total_dollars: dollars(cost.total_micro_dollars()),
            },
        }
    }
}

impl From<boxes::Why> for Why {
    fn from(why: boxes::Why) -> Self {
        Self {
            status: why.status.into(),
            awake_because: why.awake_because,
            freezes_in_seconds: why.freezes_in_seconds,
            waiting_for: why.waiting_for,
            idle_seconds: why.idle_seconds,
            cpu_percent: why.cpu_percent,
        }
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
#[expect(clippy::cast_precision_loss, reason = "for people; the exact integers stand beside it")]
fn dollars(micro: u64) -> f64 {
    micro as f64 / 1e6
}
