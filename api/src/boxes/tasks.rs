//! Work in threads and tasks of its own.

use crate::error::{Cause, Error};
use crate::refusal::Refusal;

/// Runs blocking work of the store in a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> icebox_rootfs::Result<T> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|cause| Error::new(operation, "", cause)),
        Err(_) => Err(Error::new(operation, "", Cause::WorkerEnded)),
    }
}

/// Runs `work` in a task of its own, so that it finishes even if the client that requested it disconnects.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(_) => Err(Refusal::Failed(Error::new("finish the operation", "", Cause::WorkerEnded))),
    }
}
