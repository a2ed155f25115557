//! The ledger: the usage of every box, and its cost.
//!
//! Owns the arithmetic only: samples, the pure fold over them and the prices. Taking samples is `boxes::meter`, keeping
//! them is `db::samples`. Invariants: samples are append-only readings of counters that only grow within one
//! generation; the bill of a set of samples depends on the set alone, not on the order or number of times in which they
//! arrive; money is computed in integers and rounded once, at the end.

mod fold;
mod price;

pub use fold::{Fold, Generation, Sample, Usage, fold};
pub use price::{Cost, DOLLARS_PER_CORE_HOUR, DOLLARS_PER_GB_MONTH, MONTH_HOURS, cost, cpu_micro_dollars};
