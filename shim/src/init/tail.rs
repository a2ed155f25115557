//! The last bytes of an output stream, for clients that come later.
//!
//! Invariant: never holds more than its limit; dropped bytes are counted.

use std::collections::VecDeque;

/// The newest bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    bytes: VecDeque<u8>,
    total: u64,
}

impl Tail {
    /// Adds bytes, forgetting the oldest beyond `limit`.
    pub(crate) fn push(&mut self, new: &[u8], limit: usize) {
        self.total += new.len() as u64;
        let new = new.get(new.len().saturating_sub(limit)..).unwrap_or_default();
        let excess = (self.bytes.len() + new.len()).saturating_sub(limit);
        self.bytes.drain(..excess.min(self.bytes.len()));
        self.bytes.extend(new);
    }

    /// The number of bytes before the kept ones.
    pub(crate) fn dropped(&self) -> u64 {
        self.total - self.bytes.len() as u64
    }

    /// The number of kept bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The kept bytes, as two consecutive parts.
    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.as_slices()
    }

    /// Forgets the bytes, still counting them, and gives the memory back.
    pub(crate) fn discard(&mut self) {
        self.bytes = VecDeque::new();
    }

    /// Gives memory back that the kept bytes do not need: nothing more will come.
    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_suffix_of_everything(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20),
            limit in 0usize..64,
        ) {
            let mut tail = Tail::default();
            let mut all = Vec::new();
            for piece in &pieces {
                tail.push(piece, limit);
                all.extend_from_slice(piece);
            }
            let (head, rest) = tail.parts();
            let kept = [head, rest].concat();
            prop_assert!(kept.len() <= limit);
            prop_assert_eq!(tail.dropped() as usize + kept.len(), all.len());
            prop_assert!(all.ends_with(&kept));
            prop_assert_eq!(kept.len(), all.len().min(limit));
        }
    }
}
