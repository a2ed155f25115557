//! Events of the firewall: refused packets are recorded, and a packet for a sleeping box wakes it.

use std::sync::Arc;

use super::Lifecycle;
use crate::boxes::{Entry, WorkKind};
use icebox_net::nflog::Event;

impl Lifecycle {
    /// Handles the events. Returns only when the firewall's event stream ends.
    pub async fn heed_network(self) {
        let Some(mut events) = self.boxes.network_events() else { return };
        while let Some(event) = events.next().await {
            match event {
                Event::Refused(refused) => self.boxes.note_network_refusal(&refused),
                Event::Arrived { guest } => {
                    if let Some(entry) = self.boxes.box_at(guest) {
                        self.wake_for_packet(entry);
                    }
                }
            }
        }
        tracing::error!(
            "the firewall tells nothing any more: boxes sleep on when packets arrive, until a request wakes them"
        );
    }

    /// Wakes a box in the background, because a packet has arrived for it.
    pub(super) fn wake_for_packet(&self, entry: Arc<Entry>) {
        let lifecycle = self.clone();
        tokio::spawn(async move {
            entry.activity.touch();
            if let Err(refusal) = lifecycle.ensure_awake(&entry, WorkKind::Settling).await.map(drop) {
                let reason = refusal.chain();
                tracing::warn!(box_id = entry.id, reason, "a box cannot be woken for what has arrived");
            }
        });
    }
}
