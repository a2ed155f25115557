//! Events: facts about boxes, runs, the network and the ledger, as they happen, in one stream.
//!
//! Owns: the type [`Event`], the text that an event gets in the log of its box (`log`), and the bounded history that
//! subscribers read (`history`). Invariants: publishing waits for no subscriber and writes nothing to disk by itself; an
//! account's subscriber sees events of the account's boxes only; a subscriber that falls behind learns that it has lost
//! events.
//!
//! Two kinds of readers: a [`Sink`] is called for every event (the log of boxes, the counters); a [`Subscription`] reads
//! the history at its own speed (`GET /v1/events`).
//!
//! Leaves out: the database and the counters, which are sinks (`db`, `metrics`), and the JSON of events
//! (`http::v1::wire`).

mod event;
mod history;
mod log;
mod stream;

pub use event::{Event, Fact, KINDS, NamedRun, RunEnd, StopCause};
pub use log::LogLine;
pub use stream::{Events, Filter, Next, Sink, Subscription};
