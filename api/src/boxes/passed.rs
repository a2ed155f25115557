//! Bytes that the daemon relays for a box: output of commands, files, and bytes of public URLs.
//!
//! Relaying costs CPU of the daemon, which is on no bill. So each box has a rate, and a program that writes faster
//! waits, as for any slow reader. The bytes are counted for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Minimum cost of a piece, in bytes: small pieces take as much of the daemon's time.
const PIECE_BYTES_MIN: u64 = 4096;
/// Burst after a pause, as time at the rate.
const BURST: Duration = Duration::from_secs(1);

/// The counter of one box.
#[derive(Debug)]
pub struct Passed {
    bytes_per_second: u64,
    bytes: AtomicU64,
    /// Time at which everything relayed so far is paid for at the rate.
    paid: Mutex<Option<Instant>>,
}

impl Passed {
    /// A counter at zero.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), bytes: AtomicU64::new(0), paid: Mutex::new(None) }
    }

    /// Bytes since this daemon took charge of the box.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts a piece. Returns how long the box must wait before the next one.
    #[must_use]
    pub fn count(&self, bytes: usize) -> Option<Duration> {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let cost = (bytes as u64).max(PIECE_BYTES_MIN);
        let time = Duration::from_nanos(cost.saturating_mul(1_000_000_000) / self.bytes_per_second);
        let now = Instant::now();
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let until = paid.map_or(now, |paid| paid.max(now)) + time;
        *paid = Some(until);
        until.checked_duration_since(now + BURST).filter(|wait| !wait.is_zero())
    }

    /// Counts a piece and waits as long as the rate requires.
    pub async fn pass(&self, bytes: usize) {
        if let Some(wait) = self.count(bytes) {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_after_a_burst_and_small_pieces_cost_more() {
        let passed = Passed::new(65_536);
        let begun = Instant::now();
        for _ in 0..16 {
            passed.pass(65_536).await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(15), "a second's worth is free");
        assert_eq!(passed.bytes(), 16 * 65_536);
        tokio::time::advance(Duration::from_secs(60)).await;
        let begun = Instant::now();
        for _ in 0..32 {
            passed.pass(1).await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }
}
