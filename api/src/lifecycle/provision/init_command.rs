//! The owner's init command.

use std::sync::Arc;

use crate::boxes::{Awake, Entry, WorkKind};
use crate::events::Fact;
use crate::lifecycle::Lifecycle;
use crate::runs::{Command, stream};

impl Lifecycle {
    /// Runs the owner's init command in the background, once per start of the box. Its output is dropped; processes
    /// that it starts live on. It does not count as work for the idle rule.
    pub(in crate::lifecycle) async fn run_init_command(&self, entry: &Arc<Entry>) {
        let Some(text) = entry.settings().init_command.filter(|text| !text.trim().is_empty()) else { return };
        let argv = vec![entry.shell().to_owned(), "-c".to_owned(), text];
        let started = match Command::exec(argv, None) {
            Ok(command) => {
                // Not `ensure_awake`: the caller has just started the box and may hold its lifecycle lock.
                let awake = Awake { entry: Arc::clone(entry), work: entry.activity.begin(WorkKind::Request) };
                // Its output is dropped as it comes: a server may write for months.
                stream(&self.runs, &awake, &Command { hidden: true, ..command }).await.map(drop)
            }
            Err(refusal) => Err(refusal),
        };
        match started {
            Ok(()) => self.events.publish(entry.event(Fact::InitCommandStarted)),
            Err(refusal) => self.warn(entry, format!("the init command could not be started: {refusal}")),
        }
    }
}
