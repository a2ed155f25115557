//! The body of an exec stream: raw output, byte for byte, then one trailer. Both clients find the trailer at any place,
//! also in the middle of a line.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};

use crate::http::flush::FlushWatch;
use crate::http::v2::wire::{ErrorBody, ExitTrailer};
use crate::runs::{Finished, RunStream, StreamItem};

/// The body. Dropping it (the client has disconnected) does not affect the run.
#[derive(Debug)]
pub(super) struct StreamBody {
    items: RunStream,
    /// Absent in tests without a connection.
    flushes: Option<FlushWatch>,
    state: State,
}

#[derive(Debug)]
enum State {
    Output,
    /// Everything but the trailer is sent: waiting for the flush after this one.
    Flush {
        seen: u64,
        trailer: Bytes,
    },
    Over,
}

impl StreamBody {
    /// A body that ends with the run.
    pub(super) fn new(items: RunStream, flushes: Option<FlushWatch>) -> Self {
        Self { items, flushes, state: State::Output }
    }

    /// As the body of an answer.
    pub(super) fn into_body(self) -> axum::body::Body {
        axum::body::Body::new(self.map_err(|never| match never {}))
    }

    fn before_trailer(&mut self, finished: Option<Finished>) -> State {
        let seen = self.flushes.as_ref().map_or(0, FlushWatch::flushes);
        State::Flush { seen, trailer: trailer(finished) }
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            match &self.state {
                State::Over => return Poll::Ready(None),
                State::Flush { seen, trailer } => {
                    let trailer = trailer.clone();
                    if let Some(flushes) = &self.flushes {
                        ready!(flushes.poll_flushed(*seen, context));
                    }
                    self.state = State::Over;
                    return Poll::Ready(Some(Ok(Frame::data(trailer))));
                }
                State::Output => match ready!(self.items.poll_next(context)) {
                    Some(StreamItem::Output(bytes)) if bytes.is_empty() => {}
                    Some(StreamItem::Output(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                    Some(StreamItem::End(finished)) => self.state = self.before_trailer(Some(finished)),
                    // The task that read the run has failed.
                    None => self.state = self.before_trailer(None),
                },
            }
        }
    }
}

/// Mark and data in one piece.
fn trailer(finished: Option<Finished>) -> Bytes {
    let (event, data) = match finished {
        Some(finished) => {
            let exit = ExitTrailer { exit_code: finished.exit_code, cpu_ns: finished.cpu_ns };
            ("exit", serde_json::to_string(&exit))
        }
        None => {
            let error = ErrorBody { error: "the output could not be read to its end".into() };
            ("error", serde_json::to_string(&error))
        }
    };
    // Plain data of ours always serialises.
    Bytes::from(format!("event: {event}\ndata: {}\n\n", data.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::domain::RunState;

    fn finished() -> Finished {
        Finished {
            exit_code: 3,
            state: RunState::Failed,
            cpu_ns: 1000,
            error_message: None,
            out_of_memory: None,
            timed_out: false,
            lost: false,
        }
    }

    async fn frames(items: Vec<StreamItem>) -> Vec<String> {
        let (sender, receiver) = mpsc::channel(8);
        for item in items {
            sender.send(item).await.expect("room");
        }
        drop(sender);
        let mut body = StreamBody::new(receiver.into(), None);
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.expect("no errors").into_data().expect("data");
            frames.push(String::from_utf8(data.to_vec()).expect("text"));
        }
        frames
    }

    const TRAILER: &str = "event: exit\ndata: {\"exit_code\":3,\"cpu_ns\":1000}\n\n";

    #[tokio::test]
    async fn the_trailer_is_one_frame_and_nothing_is_put_before_it() {
        let output = |text: &'static str| StreamItem::Output(Bytes::from_static(text.as_bytes()));
        assert_eq!(frames(vec![output("a"), output("b\n"), StreamItem::End(finished())]).await, ["a", "b\n", TRAILER]);
        assert_eq!(frames(vec![output("a"), StreamItem::End(finished())]).await, ["a", TRAILER]);
        assert_eq!(frames(vec![StreamItem::End(finished())]).await, [TRAILER]);
    }

    #[tokio::test]
    async fn a_stream_without_an_end_says_so() {
        let last = frames(Vec::new()).await.pop().expect("a trailer");
        assert!(last.starts_with("event: error\ndata: {\"error\":") && last.ends_with("}\n\n"), "{last}");
    }

    #[tokio::test]
    async fn the_trailer_waits_for_the_flush_of_what_is_before_it() {
        let (sender, receiver) = mpsc::channel(8);
        let flushes = FlushWatch::default();
        let mut body = StreamBody::new(receiver.into(), Some(flushes.clone()));
        sender.send(StreamItem::Output(Bytes::from_static(b"x\n"))).await.expect("room");
        sender.send(StreamItem::End(finished())).await.expect("room");
        assert!(body.frame().await.is_some());
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), body.frame()).await;
        assert!(waited.is_err(), "nothing was flushed yet");
        let mut connection =
            crate::http::flush::Watched::new(tokio::io::join(tokio::io::empty(), tokio::io::sink()), flushes);
        tokio::io::AsyncWriteExt::flush(&mut connection).await.expect("a flush");
        let last = body.frame().await.expect("a frame").expect("no errors").into_data().expect("data");
        assert_eq!(last, TRAILER);
        assert!(body.frame().await.is_none());
    }
}
