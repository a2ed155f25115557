//! Work that blocks.

use crate::error::{Cause, Result};

/// Does the work on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
) -> Result<T, Cause> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}
