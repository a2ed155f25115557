//! Answers one question from the cache or by an upstream.
//!
//! Owns: the order in which upstreams are tried, and the merging of equal questions that boxes ask at the same time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use hickory_proto::op::ResponseCode;

use super::cache::{Cache, Key};
use super::metrics::{Metrics, count};
use super::resolved::Resolved;
use super::upstream::{Place, Upstreams, exchange};

/// Rounds over all upstreams.
const ROUNDS: usize = 2;

type Pending = Shared<BoxFuture<'static, Arc<Resolved>>>;

/// The cache and the upstreams.
#[derive(Debug)]
pub(super) struct Resolver {
    inner: Arc<Inner>,
    pending: Arc<Mutex<HashMap<Key, Pending>>>,
}

#[derive(Debug)]
struct Inner {
    place: Place,
    upstreams: Upstreams,
    /// The upstream that answered last is asked first.
    first: AtomicUsize,
    cache: Cache,
    metrics: Arc<Metrics>,
}

/// Removes a question from the list when it is answered or has no waiters left.
struct Entry {
    key: Key,
    pending: Arc<Mutex<HashMap<Key, Pending>>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Resolver {
    pub(super) fn new(place: Place, upstreams: Upstreams, metrics: Arc<Metrics>) -> Self {
        let inner = Inner { place, upstreams, first: AtomicUsize::new(0), cache: Cache::default(), metrics };
        Self { inner: Arc::new(inner), pending: Arc::default() }
    }

    /// The answer, and its remaining seconds.
    pub(super) async fn resolve(&self, key: &Key) -> (Arc<Resolved>, u32) {
        if let Some(found) = self.inner.cache.get(key, Instant::now()) {
            count(&self.inner.metrics.cache_hits);
            return found;
        }
        let answer = self.pending(key).await;
        let ttl = answer.ttl;
        (answer, ttl)
    }

    /// Joins the waiters for the same question, or begins to ask.
    fn pending(&self, key: &Key) -> Pending {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = pending.get(key) {
            return same.clone();
        }
        let entry = Entry { key: key.clone(), pending: Arc::clone(&self.pending) };
        let inner = Arc::clone(&self.inner);
        // A separate task: one waiter may leave while the others go on waiting.
        let asked = tokio::spawn(async move {
            let answer = Arc::new(inner.ask(&entry.key).await);
            inner.cache.put(entry.key.clone(), Arc::clone(&answer), Instant::now());
            drop(entry);
            answer
        });
        let answer = asked.map(|answer| answer.unwrap_or_else(|_| Arc::new(Resolved::failed()))).boxed().shared();
        pending.insert(key.clone(), answer.clone());
        answer
    }
}

impl Inner {
    /// Asks one upstream after the other.
    async fn ask(&self, key: &Key) -> Resolved {
        count(&self.metrics.upstream_questions);
        let servers = self.upstreams.servers().await;
        let first = self.first.load(Ordering::Relaxed);
        // A server that answered with a failure will fail in the next round too.
        let mut silent = vec![true; servers.len()];
        for _ in 0..ROUNDS {
            for n in 0..servers.len() {
                let at = (first + n) % servers.len();
                if !silent[at] {
                    continue;
                }
                match exchange(&self.place, servers[at], &key.0, key.1).await {
                    Ok(response) => {
                        let answer = Resolved::of(response, &key.0, key.1);
                        if answer.code != ResponseCode::ServFail {
                            self.first.store(at, Ordering::Relaxed);
                            return answer;
                        }
                        silent[at] = false;
                    }
                    Err(error) => {
                        count(&self.metrics.upstream_failures);
                        tracing::debug!(error = error.chain(), "an upstream of the DNS proxy fails");
                    }
                }
            }
        }
        Resolved::failed()
    }
}
