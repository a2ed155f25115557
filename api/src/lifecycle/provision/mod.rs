//! Icebox's own setup of a new or restarted box: git's identity, the certificate of our authority, and the owner's init
//! command.

mod git;
mod init_command;
mod machine_id;
mod script;
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

    /// Prepares a box that is a copy of another one. Its files stay, but for what must be its own.
    pub(super) async fn provision_copy(&self, entry: &Arc<Entry>, has_git: bool) {
        if let Err(refusal) = self.renew_machine_id(entry).await {
            self.warn(entry, format!("its machine-id could not be renewed: {refusal}"));
        }
        if has_git && let Err(refusal) = self.apply_git_config_now(entry).await {
            self.warn(entry, format!("git's identity could not be set: {refusal}"));
        }
        if let Err(refusal) = self.trust_certificate(entry).await {
            self.warn(entry, format!("the certificate for attach_headers could not be put in place: {refusal}"));
        }
        self.run_init_command(entry).await;
    }

    pub(super) fn warn(&self, entry: &Entry, text: String) {
        self.events.publish(entry.event(Fact::Warning { text }));
    }
}
