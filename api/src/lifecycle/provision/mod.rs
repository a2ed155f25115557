//! Icebox's own setup of a new or restarted box: git's identity, the certificate of our authority, and the owner's init
//! command.

mod git;
mod init_command;
mod trust;

use std::sync::Arc;

use super::Lifecycle;
use crate::boxes::Entry;
use crate::events::Fact;

pub(super) use trust::TRUST_ENV;

impl Lifecycle {
    /// Prepares a new box. A failure is a warning in its log, not a failed creation.
    pub(super) async fn provision(&self, entry: &Arc<Entry>) {
        if let Err(refusal) = self.write_git_config(entry).await {
            self.warn(entry, format!("git's identity could not be set: {refusal}"));
        }
        if let Err(refusal) = self.trust_certificate(entry).await {
            self.warn(entry, format!("the certificate for attach_headers could not be put in place: {refusal}"));
        }
        self.run_init_command(entry).await;
    }

    fn warn(&self, entry: &Entry, text: String) {
        self.events.publish(entry.event(Fact::Warning { text }));
    }
}
