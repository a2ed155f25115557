//! One flush for all that wait for it.
//!
//! A flush of a directory makes durable what was done in it before the flush began. So callers that come while one is under
//! way need one more flush, together. With the disks in a pool a flush goes through two file systems; one each would hold up
//! what else waits for the disk.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// The state of the flushes.
#[derive(Debug, Default)]
pub(super) struct SharedFlush {
    /// Calls so far.
    calls: AtomicU64,
    /// The calls that are covered by a flush that has succeeded. Held during a flush.
    covered: Mutex<u64>,
}

impl SharedFlush {
    /// Returns after a flush that began after this call. `flush` runs unless another caller's flush is enough.
    pub(super) async fn wait<E, F: Future<Output = Result<(), E>>>(&self, flush: impl FnOnce() -> F) -> Result<(), E> {
        let mine = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let mut covered = self.covered.lock().await;
        if *covered >= mine {
            return Ok(());
        }
        // Those who have called by now wait for the lock, and what they want flushed is done.
        let all = self.calls.load(Ordering::SeqCst);
        flush().await?;
        *covered = all;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn many_calls_share_a_flush_that_begins_after_them_and_a_failure_is_its_callers_alone() {
        let (shared, flushes, may_end) =
            (Arc::new(SharedFlush::default()), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let call = |fails: bool| {
            let (shared, flushes, may_end) = (Arc::clone(&shared), Arc::clone(&flushes), Arc::clone(&may_end));
            tokio::spawn(async move {
                let flush = || async {
                    flushes.fetch_add(1, Ordering::SeqCst);
                    may_end.acquire().await.expect("open").forget();
                    if fails { Err("the disk is broken") } else { Ok(()) }
                };
                shared.wait(flush).await
            })
        };
        let first = call(true);
        while flushes.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..20).map(|_| call(false)).collect();
        while shared.calls.load(Ordering::SeqCst) < 21 {
            tokio::task::yield_now().await;
        }
        may_end.add_permits(1);
        assert_eq!(first.await.expect("ended"), Err("the disk is broken"));
        may_end.add_permits(1);
        for other in others {
            assert_eq!(other.await.expect("ended"), Ok(()));
        }
        assert_eq!(flushes.load(Ordering::SeqCst), 2, "one that failed, and one for all others");
    }
}
