//! Resources that a request through a public URL holds while it lasts.

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

/// Room for one request. Dropping it ends the connection into the box.
#[derive(Debug)]
pub(super) struct Passage {
    _room: OwnedSemaphorePermit,
    _room_of_box: OwnedSemaphorePermit,
    connection: Option<AbortHandle>,
}

impl Passage {
    /// Room among all requests and among those of the box; no connection yet.
    pub(super) fn new(room: OwnedSemaphorePermit, room_of_box: OwnedSemaphorePermit) -> Self {
        Self { _room: room, _room_of_box: room_of_box, connection: None }
    }

    /// The task that owns the connection into the box.
    pub(super) fn holds(&mut self, connection: AbortHandle) {
        self.connection = Some(connection);
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.abort();
        }
    }
}
