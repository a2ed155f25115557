//! Work in threads and tasks of its own.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use tokio::runtime::Handle;

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

/// Runs `work`, even if the client that requested it disconnects.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let done = Lasting::new(std::panic::AssertUnwindSafe(work).catch_unwind()).await;
    done.unwrap_or_else(|_| Err(Refusal::Failed(Error::new("finish the operation", "", Cause::WorkerEnded))))
}

/// Work that goes on in the task that awaits it. If it is dropped before the end, a task of its own goes on with it. (A
/// task of its own from the beginning would wake another thread for each request.)
pub(crate) struct Lasting<T: Send + 'static>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T: Send + 'static> Lasting<T> {
    /// Work that has not begun.
    pub(crate) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Some(Box::pin(work)))
    }

    /// The rest of the work; none if it is done.
    pub(crate) fn take(&mut self) -> Option<Pin<Box<dyn Future<Output = T> + Send>>> {
        self.0.take()
    }
}

impl<T: Send + 'static> Future for Lasting<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Taken out for the poll: after a panic nothing is left to be done.
        let Some(mut work) = self.0.take() else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.0 = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Lasting<T> {
    fn drop(&mut self) {
        // Without a runtime the daemon has stopped. The next one finds what was begun.
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn work_goes_on_when_its_caller_goes_away() {
        let (go, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, tells) = (Arc::clone(&go), Arc::clone(&done));
        let work = to_the_end(async move {
            told.notified().await;
            tells.notify_one();
            Ok(())
        });
        let mut work = Box::pin(work);
        assert!(futures::poll!(&mut work).is_pending(), "it waits");
        drop(work);
        go.notify_one();
        done.notified().await;
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_of_the_operation() {
        let failed = to_the_end(async { if true { panic!("on purpose") } else { Ok(()) } }).await;
        assert!(matches!(failed, Err(Refusal::Failed(_))), "{failed:?}");
    }
}
