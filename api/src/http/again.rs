//! A task that is woken while it runs, by itself mostly, is polled again at once.
//!
//! A connection wakes itself with each request, when the handler asks for the body. tokio takes that for a task which gives
//! way to others: it puts the task back into its queue and wakes another worker for it. Two workers then pass each request
//! between them, and both wake and sleep for it.
//!
//! Invariant: no wake is lost. One that comes while the task is being polled is answered by another poll, any other one goes
//! to the task. After [`POLLS_MAX`] polls the task gives way in fact.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// Polls in a row before other tasks get their turn.
const POLLS_MAX: usize = 4;

/// The task is not being polled.
const IDLE: u8 = 0;
/// It is being polled.
const POLLED: u8 = 1;
/// It is being polled, and was woken meanwhile.
const WOKEN: u8 = 2;

/// A future that is polled again when it is woken while it is polled.
#[derive(Debug)]
pub(super) struct Again<F> {
    future: Pin<Box<F>>,
    state: Arc<State>,
    waker: Waker,
}

#[derive(Debug)]
struct State {
    phase: AtomicU8,
    task: AtomicWaker,
}

impl<F: Future> Again<F> {
    pub(super) fn new(future: F) -> Self {
        let state = Arc::new(State { phase: AtomicU8::new(IDLE), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&state)), state }
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let seen = self.phase.compare_exchange(POLLED, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if seen == Err(IDLE) {
            self.task.wake();
        }
    }
}

impl<F: Future> Future for Again<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, state, waker } = &mut *self;
        state.task.register(context.waker());
        for _ in 0..POLLS_MAX {
            state.phase.store(POLLED, Ordering::Release);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(output);
            }
            if state.phase.swap(IDLE, Ordering::AcqRel) == POLLED {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polls a future that wakes itself in each of its first `times` polls, once.
    fn poll_once(times: usize) -> (Poll<()>, usize) {
        let mut left = times;
        let future = poll_fn(move |context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        });
        let woken = Arc::new(Count::default());
        let polled = Pin::new(&mut Again::new(future)).poll(&mut Context::from_waker(&Waker::from(Arc::clone(&woken))));
        (polled, woken.0.load(Ordering::SeqCst))
    }

    #[test]
    fn a_task_that_wakes_itself_goes_on_and_gives_way_in_the_end() {
        assert_eq!(poll_once(0), (Poll::Ready(()), 0));
        assert_eq!(poll_once(POLLS_MAX - 1), (Poll::Ready(()), 0), "no wake of the task");
        assert_eq!(poll_once(POLLS_MAX), (Poll::Pending, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_of_another_thread_is_lost() {
        for _ in 0..2000 {
            let (send, receive) = tokio::sync::oneshot::channel();
            let task = tokio::spawn(Again::new(receive));
            std::thread::yield_now();
            send.send(7).expect("the task waits");
            let got = tokio::time::timeout(std::time::Duration::from_secs(60), task).await;
            assert_eq!(got.expect("it is woken").expect("it ends"), Ok(7));
        }
    }
}
