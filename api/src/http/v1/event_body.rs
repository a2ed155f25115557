//! The body of an event stream: Server-Sent Events, a heartbeat, and the end of a reader that is too slow.
//!
//! A task reads the subscription and hands records to the body through a short queue. While the client does not read,
//! the queue is full and the task waits; the publisher never does. A client that has read nothing for [`SLOW_MAX`], or
//! that the history has overtaken, is told the reason in a last record; if it does not read that one either, its
//! connection is closed.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::events::{Next, Subscription};
use crate::http::v1::wire::{EventRecord, EventsEnd, EventsLost};

/// Time without a record after which a comment is sent.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Longest time for which a client may read nothing.
const SLOW_MAX: Duration = Duration::from_secs(30);
/// Longest wait until a client has read the last record.
const END_MAX: Duration = Duration::from_secs(10);
/// Records on their way to a client.
const RECORDS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct EventBody {
    records: mpsc::Receiver<Bytes>,
    /// The last record.
    end: Option<oneshot::Receiver<Bytes>>,
    /// Dropped with the body.
    _gone: oneshot::Sender<()>,
}

/// Ends the connection of the client.
pub(super) type Cut = Option<CancellationToken>;

impl EventBody {
    /// A body of these events. With `resumed`, lost events are a record; without, they are the end.
    pub(super) fn of(subscription: Subscription, resumed: bool, cut: Cut) -> axum::body::Body {
        let (sender, records) = mpsc::channel(RECORDS_MAX);
        let (end_sender, end) = oneshot::channel();
        let (gone, is_gone) = oneshot::channel();
        // There is room for it: it tells the client from which id it can resume.
        let _ = sender.try_send(Bytes::from(format!(": events follow\nid: {}\n\n", subscription.position())));
        tokio::spawn(async move {
            let reason = tokio::select! {
                reason = feed(subscription, resumed, &sender) => reason,
                () = sender.closed() => return,
            };
            drop(sender);
            // The client may have gone.
            let _ = end_sender.send(record("end", None, &EventsEnd { reason: reason.to_owned() }));
            if tokio::time::timeout(END_MAX, is_gone).await.is_err()
                && let Some(cut) = cut
            {
                tracing::info!(reason, "a reader of events is cut");
                cut.cancel();
            }
        });
        axum::body::Body::new(Self { records, end: Some(end), _gone: gone }.map_err(|never| match never {}))
    }
}

/// Hands records on until the stream must end; returns the reason.
async fn feed(mut subscription: Subscription, resumed: bool, sender: &mpsc::Sender<Bytes>) -> &'static str {
    const SLOW: &str = "this reader is too slow; connect again with Last-Event-ID";
    let mut may_have_lost = resumed;
    loop {
        let piece = match tokio::time::timeout(HEARTBEAT, subscription.next()).await {
            Err(_) => Bytes::from_static(b":\n\n"),
            Ok(Next::Closed) => return "the daemon stops; connect again with Last-Event-ID",
            Ok(Next::Lost(_)) if !may_have_lost => return SLOW,
            Ok(Next::Lost(up_to)) => record("lost", Some(&up_to), &EventsLost { up_to: up_to.clone() }),
            Ok(Next::Event(id, event)) => record(event.fact.kind(), Some(&id), &EventRecord::new(id.clone(), &event)),
        };
        may_have_lost = false;
        match tokio::time::timeout(SLOW_MAX, sender.send(piece)).await {
            Ok(Ok(())) => {}
            // The client is gone: no reason is needed.
            Ok(Err(_)) => return "",
            Err(_) => return SLOW,
        }
    }
}

/// One record. JSON has no line breaks, so its data is one line.
fn record(name: &str, id: Option<&str>, data: &impl Serialize) -> Bytes {
    // Plain data of ours always serialises.
    let data = serde_json::to_string(data).unwrap_or_default();
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    Bytes::from(format!("{id}event: {name}\ndata: {data}\n\n"))
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(piece) = std::task::ready!(self.records.poll_recv(context)) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(end) = &mut self.end else { return Poll::Ready(None) };
        let last = std::task::ready!(Pin::new(end).poll(context));
        self.end = None;
        Poll::Ready(last.ok().map(|last| Ok(Frame::data(last))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Event, Events, Fact, Filter};

    fn events() -> Events {
        Events::new(100, Vec::new())
    }

    fn publish(events: &Events, text: impl Into<String>) {
        events.publish(Event::now("b", "a", Fact::Warning { text: text.into() }));
    }

    async fn next(body: &mut axum::body::Body) -> Option<String> {
        let data = body.frame().await?.expect("no errors").into_data().expect("data");
        Some(String::from_utf8(data.to_vec()).expect("text"))
    }

    fn filter() -> Filter {
        Filter { account_id: Some("a".into()), ..Filter::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn records_come_as_they_happen_and_a_heartbeat_when_nothing_does() {
        let events = events();
        let mut body = EventBody::of(events.subscribe(filter(), None), false, None);
        assert!(next(&mut body).await.expect("a start").starts_with(": events follow\nid: "));
        publish(&events, "one\ntwo");
        let one = next(&mut body).await.expect("an event");
        assert!(one.contains("\nevent: box.warning\ndata: {") && one.contains("one\\ntwo"), "{one}");
        assert_eq!(one.matches('\n').count(), 4, "{one}");
        assert_eq!(next(&mut body).await.as_deref(), Some(":\n\n"));
        events.close();
        let end = next(&mut body).await.expect("an end");
        assert!(end.starts_with("event: end\ndata: {\"reason\":\"the daemon stops"), "{end}");
        assert_eq!(next(&mut body).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_reads_nothing_is_told_and_cut_and_the_publisher_goes_on() {
        let events = events();
        let cut = CancellationToken::new();
        let mut body = EventBody::of(events.subscribe(filter(), None), false, Some(cut.clone()));
        for n in 0..80 {
            publish(&events, n.to_string());
            tokio::task::yield_now().await;
        }
        // The paused clock moves on only when every task waits.
        tokio::time::sleep(SLOW_MAX + END_MAX / 2).await;
        assert!(!cut.is_cancelled(), "it may still read the reason");
        tokio::time::sleep(END_MAX).await;
        assert!(cut.is_cancelled());
        let mut last = String::new();
        while let Some(piece) = next(&mut body).await {
            last = piece;
        }
        assert!(last.contains("event: end") && last.contains("too slow"), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn lost_events_are_a_record_for_a_reader_that_resumes_and_the_end_for_one_that_was_overtaken() {
        let events = events();
        let start = events.subscribe(filter(), None).position();
        for n in 0..150 {
            publish(&events, n.to_string());
        }
        let mut body = EventBody::of(events.subscribe(filter(), Some(&start)), true, None);
        next(&mut body).await;
        assert!(next(&mut body).await.expect("a record").contains("event: lost\ndata: {\"up_to\":"));
        assert!(next(&mut body).await.expect("a record").contains("\"text\":\"50\""));
        // It stops reading and is overtaken; what is in the queue is read, then it ends.
        for n in 0..300 {
            publish(&events, n.to_string());
            tokio::task::yield_now().await;
        }
        let mut last = String::new();
        while let Some(piece) = next(&mut body).await {
            last = piece;
        }
        assert!(last.contains("event: end") && last.contains("too slow"), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_its_client() {
        let events = events();
        let cut = CancellationToken::new();
        drop(EventBody::of(events.subscribe(filter(), None), false, Some(cut.clone())));
        tokio::time::sleep(SLOW_MAX + END_MAX * 2).await;
        assert!(!cut.is_cancelled());
    }
}
