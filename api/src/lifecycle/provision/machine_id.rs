//! The machine-id of a box that is a copy of another one.

use std::sync::Arc;

use crate::boxes::{Entry, WorkKind};
use crate::lifecycle::Lifecycle;
use crate::refusal::Refusal;

/// machine-id(5). The base image has an empty one; a program of the owner may have filled it in.
const MACHINE_ID: &str = "/etc/machine-id";
/// Writes a new one. `$0` is the file.
const RENEW_SCRIPT: &str = "set -e; tr -d - < /proc/sys/kernel/random/uuid > \"$0.new\"; chmod 444 \"$0.new\"; \
                            mv \"$0.new\" \"$0\"";

impl Lifecycle {
    /// Gives the box a machine-id of its own if the copied box had one.
    pub(super) async fn renew_machine_id(&self, entry: &Arc<Entry>) -> Result<(), Refusal> {
        let awake = self.ensure_awake(entry, WorkKind::Request).await?;
        match entry.handle().file_stat(MACHINE_ID, true).await {
            Ok(stat) if stat.size > 0 => self.run_script(&awake, RENEW_SCRIPT, &[MACHINE_ID]).await,
            Ok(_) => Ok(()),
            Err(error) if error.kind() == icebox_shim::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
