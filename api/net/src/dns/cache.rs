//! Upstream answers, kept for their TTL.
//!
//! Owns: the size of the cache. Its content comes from upstreams and is the same for all boxes; each answer is filtered
//! for the box when it is given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::rr::{Name, RecordType};

use super::resolved::Resolved;

/// Approximate bytes of all kept answers.
const CACHE_BYTES_MAX: usize = 8 << 20;
/// Largest answer that is kept, in bytes: some 500 addresses.
const ENTRY_BYTES_MAX: usize = 256 << 10;
/// Without room, one entry in this many is evicted.
const EVICTED_SHARE: usize = 8;

/// The key: name and type. Names compare without case.
pub(super) type Key = (Name, RecordType);

#[derive(Debug)]
struct Entry {
    answer: Arc<Resolved>,
    end: Instant,
    bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    state: Mutex<State>,
}

impl Cache {
    /// A valid answer, and its remaining seconds.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<(Arc<Resolved>, u32)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = state.entries.get(key)?;
        // Whole seconds, rounded down: otherwise an answer would outlive its TTL.
        let left = entry.end.checked_duration_since(now)?.as_secs() as u32;
        (left > 0).then(|| (Arc::clone(&entry.answer), left))
    }

    /// Keeps an answer if it is cacheable.
    pub(super) fn put(&self, key: Key, answer: Arc<Resolved>, now: Instant) {
        let bytes = size_of::<(Key, Entry)>() + key.0.len() + answer.bytes();
        if answer.ttl == 0 || bytes > ENTRY_BYTES_MAX {
            return;
        }
        let end = now + Duration::from_secs(answer.ttl.into());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.bytes + bytes > CACHE_BYTES_MAX {
            state.evict(now);
        }
        state.bytes += bytes;
        if let Some(old) = state.entries.insert(key, Entry { answer, end, bytes }) {
            state.bytes -= old.bytes;
        }
    }
}

impl State {
    /// Evicts expired entries; if those are few, also the ones that expire soonest.
    fn evict(&mut self, now: Instant) {
        let before = self.bytes;
        self.keep_after(now);
        if self.bytes > before - before / EVICTED_SHARE {
            let mut ends: Vec<Instant> = self.entries.values().map(|e| e.end).collect();
            let at = ends.len() / EVICTED_SHARE;
            if at < ends.len() {
                let (_, end, _) = ends.select_nth_unstable(at);
                let end = *end;
                self.keep_after(end);
            }
        }
    }

    fn keep_after(&mut self, end: Instant) {
        self.entries.retain(|_, e| e.end > end);
        self.bytes = self.entries.values().map(|e| e.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::rdata::TXT;
    use hickory_proto::rr::{RData, Record};

    use super::*;

    fn key(text: &str) -> Key {
        (Name::from_ascii(text).expect(text), RecordType::TXT)
    }

    fn answer(ttl: u32, bytes: usize) -> Arc<Resolved> {
        // A record has at most 64 KiB, so a large answer has several.
        let record = |bytes: usize| {
            let text = TXT::new((0..bytes.div_ceil(250)).map(|_| "x".repeat(250)).collect());
            Record::from_rdata(key("a.example.").0, ttl, RData::TXT(text))
        };
        let whole = std::iter::repeat_n(50_000, bytes / 50_000);
        let records = whole.chain([bytes % 50_000]).map(record).collect();
        Arc::new(Resolved { code: ResponseCode::NoError, records, authority: None, ttl })
    }

    #[test]
    fn an_answer_is_good_for_its_time_and_counts_down() {
        let (cache, now) = (Cache::default(), Instant::now());
        cache.put(key("A.example."), answer(10, 1), now);
        cache.put(key("b.example."), answer(0, 1), now);
        let left =
            |text: &str, seconds| cache.get(&key(text), now + Duration::from_secs(seconds)).map(|(_, left)| left);
        assert_eq!((left("a.EXAMPLE.", 0), left("a.example.", 4)), (Some(10), Some(6)));
        assert_eq!((left("a.example.", 10), left("b.example.", 0), left("c.example.", 0)), (None, None, None));
        let other = (key("a.example.").0, RecordType::A);
        assert!(cache.get(&other, now).is_none());
    }

    #[test]
    fn it_stays_small_however_much_is_put_in() {
        let (cache, now) = (Cache::default(), Instant::now());
        cache.put(key("big.example."), answer(100, ENTRY_BYTES_MAX), now);
        assert!(cache.get(&key("big.example."), now).is_none());
        for n in 0..4000u32 {
            let ttl = if n == 0 { 300 } else { 10 + n % 200 };
            cache.put(key(&format!("n{n}.example.")), answer(ttl, 10_000), now);
            assert!(cache.state.lock().unwrap().bytes <= CACHE_BYTES_MAX, "after {n}");
        }
        assert!(cache.get(&key("n0.example."), now).is_some(), "what is good for longest stays");
        let kept = cache.state.lock().unwrap().entries.len();
        assert!((400..1000).contains(&kept), "{kept} are kept");
    }
}
