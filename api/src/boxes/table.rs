//! The table of boxes: entries by id, and how many each account has.
//!
//! Each creation asks for the number, so it is kept: counting would make each box the dearer the more there are.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use super::entry::Entry;

/// The table.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<String, Arc<Entry>>,
    of_account: HashMap<String, usize>,
}

impl Table {
    /// Adds a box.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) {
        let account = entry.account_id.clone();
        if self.entries.insert(entry.id.clone(), entry).is_none() {
            *self.of_account.entry(account).or_default() += 1;
        }
    }

    /// Takes a box out.
    pub(super) fn remove(&mut self, id: &str) {
        let Some(entry) = self.entries.remove(id) else { return };
        if let Some(count) = self.of_account.get_mut(&entry.account_id) {
            *count -= 1;
            if *count == 0 {
                self.of_account.remove(&entry.account_id);
            }
        }
    }

    /// The number of boxes of an account, those in creation and deletion included.
    pub(super) fn count_of(&self, account_id: &str) -> usize {
        self.of_account.get(account_id).copied().unwrap_or(0)
    }
}

impl Deref for Table {
    type Target = HashMap<String, Arc<Entry>>;

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}
