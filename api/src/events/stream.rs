//! The stream: publishing and subscribing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::history::{Found, History};
use super::{Event, KINDS};
use crate::clock;

/// Events kept of all accounts together, for the operator: this many times the number for one account.
const ALL_ACCOUNTS_FACTOR: usize = 4;

/// A reader that is called for every event, in the task that publishes it. It must not block.
pub trait Sink: Send + Sync + std::fmt::Debug {
    /// Takes note of an event.
    fn take(&self, event: &Event);
}

impl<S: Sink + ?Sized> Sink for Arc<S> {
    fn take(&self, event: &Event) {
        (**self).take(event);
    }
}

/// The stream of events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Distinguishes the numbers of this daemon's run from those of an earlier one.
    epoch: i64,
    kept_max: usize,
    sinks: Vec<Box<dyn Sink>>,
    histories: Mutex<Histories>,
}

#[derive(Debug)]
struct Histories {
    all: History,
    /// One per account, so that no account pushes out the events of another.
    of_account: HashMap<String, History>,
    closed: bool,
}

/// The events that a subscriber wants.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Events of this account only. `None`: of all accounts, for the operator.
    pub account_id: Option<String>,
    /// Events of this box only.
    pub box_id: Option<String>,
    /// Events of these kinds only; all kinds if empty. See [`Filter::kinds_of`].
    pub kinds: Vec<&'static str>,
}

impl Filter {
    /// The kinds that a text names: names of kinds, or their first parts (`box`), separated by commas. An error is the
    /// unknown name.
    pub fn kinds_of(text: &str) -> Result<Vec<&'static str>, String> {
        let mut kinds = Vec::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let named = KINDS.iter().filter(|kind| **kind == word || kind.split('.').next() == Some(word));
            let before = kinds.len();
            kinds.extend(named);
            if kinds.len() == before {
                return Err(word.to_owned());
            }
        }
        Ok(kinds)
    }

    fn accepts(&self, event: &Event) -> bool {
        self.account_id.as_ref().is_none_or(|account| *account == event.account_id)
            && self.box_id.as_ref().is_none_or(|id| *id == event.box_id)
            && (self.kinds.is_empty() || self.kinds.contains(&event.fact.kind()))
    }
}

/// The next item of a subscription.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// An event, and its id.
    Event(String, Arc<Event>),
    /// Events were lost: the history did not reach back to the id that the subscriber has seen last. The id names the
    /// last lost event.
    Lost(String),
    /// The daemon stops.
    Closed,
}

/// A reader of the history.
#[derive(Debug)]
pub struct Subscription {
    events: Events,
    filter: Filter,
    /// Number of the next event to look at.
    next: u64,
    changed: Arc<Notify>,
}

impl Events {
    /// A stream that keeps `kept_max` events per account and calls these sinks.
    #[must_use]
    pub fn new(kept_max: usize, sinks: Vec<Box<dyn Sink>>) -> Self {
        let all = History::new(kept_max.saturating_mul(ALL_ACCOUNTS_FACTOR));
        let histories = Mutex::new(Histories { all, of_account: HashMap::new(), closed: false });
        Self { inner: Arc::new(Inner { epoch: clock::unix_ms(), kept_max, sinks, histories }) }
    }

    fn lock(&self) -> MutexGuard<'_, Histories> {
        self.inner.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes an event. Waits for no subscriber.
    pub fn publish(&self, event: Event) {
        for sink in &self.inner.sinks {
            sink.take(&event);
        }
        if event.is_internal() {
            return;
        }
        let event = Arc::new(event);
        let mut histories = self.lock();
        match histories.of_account.get_mut(&event.account_id) {
            Some(history) => history.push(Arc::clone(&event)),
            None => {
                let mut history = History::new(self.inner.kept_max);
                history.push(Arc::clone(&event));
                histories.of_account.insert(event.account_id.clone(), history);
            }
        }
        histories.all.push(event);
    }

    /// Reads the events that the filter accepts: those after the event with the id `after`, or those from now on.
    #[must_use]
    pub fn subscribe(&self, filter: Filter, after: Option<&str>) -> Subscription {
        let mut histories = self.lock();
        let history = histories.of(&filter, self.inner.kept_max);
        let next = match after.map(|id| self.number_of(id)) {
            None => history.next(),
            // An id of an earlier daemon, or of no event: what it missed cannot be known.
            Some(None) => 0,
            Some(Some(seen)) if seen >= history.next() => 0,
            Some(Some(seen)) => seen + 1,
        };
        let changed = Arc::clone(&history.changed);
        Subscription { events: self.clone(), filter, next, changed }
    }

    /// True if the history of the account has an event of this box.
    #[must_use]
    pub fn knows_box(&self, account_id: Option<&str>, box_id: &str) -> bool {
        let histories = self.lock();
        match account_id {
            Some(account) => histories.of_account.get(account).is_some_and(|history| history.has_box(box_id)),
            None => histories.all.has_box(box_id),
        }
    }

    /// Ends all subscriptions: the daemon stops.
    pub fn close(&self) {
        let mut histories = self.lock();
        histories.closed = true;
        histories.all.changed.notify_waiters();
        histories.of_account.values().for_each(|history| history.changed.notify_waiters());
    }

    fn id_of(&self, number: u64) -> String {
        format!("{:x}-{number}", self.inner.epoch)
    }

    fn number_of(&self, id: &str) -> Option<u64> {
        let (epoch, number) = id.split_once('-')?;
        (i64::from_str_radix(epoch, 16).ok()? == self.inner.epoch).then(|| number.parse().ok()).flatten()
    }
}

impl Histories {
    fn of(&mut self, filter: &Filter, kept_max: usize) -> &mut History {
        match &filter.account_id {
            Some(account) => self.of_account.entry(account.clone()).or_insert_with(|| History::new(kept_max)),
            None => &mut self.all,
        }
    }
}

impl Subscription {
    /// The id from which the subscription goes on: that of the last event it has looked at.
    #[must_use]
    pub fn position(&self) -> String {
        self.events.id_of(self.next.saturating_sub(1))
    }

    /// The next item. Waits until there is one.
    pub async fn next(&mut self) -> Next {
        loop {
            // Created before the search: an event after it is not missed.
            let changed = self.changed.notified();
            {
                let mut histories = self.events.lock();
                let closed = histories.closed;
                let history = histories.of(&self.filter, self.events.inner.kept_max);
                match history.find(self.next, |event| self.filter.accepts(event)) {
                    Found::Event(number, event) => {
                        self.next = number + 1;
                        return Next::Event(self.events.id_of(number), event);
                    }
                    Found::Lost { oldest } => {
                        self.next = oldest;
                        return Next::Lost(self.events.id_of(oldest - 1));
                    }
                    Found::None { next } => self.next = next,
                }
                if closed {
                    return Next::Closed;
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::Fact;
    use super::*;

    fn stream() -> Events {
        Events::new(4, Vec::new())
    }

    fn denied(account: &str, box_id: &str, text: usize) -> Event {
        Event::now(box_id, account, Fact::Denied { text: text.to_string() })
    }

    fn of(account: &str) -> Filter {
        Filter { account_id: Some(account.into()), ..Filter::default() }
    }

    async fn text(subscription: &mut Subscription) -> String {
        match subscription.next().await {
            Next::Event(_, event) => match &event.fact {
                Fact::Denied { text } => text.clone(),
                other => other.kind().to_owned(),
            },
            Next::Lost(_) => "lost".to_owned(),
            Next::Closed => "closed".to_owned(),
        }
    }

    #[tokio::test]
    async fn an_account_sees_its_own_events_in_order_and_is_told_of_lost_ones() {
        let events = stream();
        let mut mine = events.subscribe(of("a"), None);
        let mut all = events.subscribe(Filter::default(), None);
        events.publish(denied("a", "x", 0));
        events.publish(denied("b", "y", 1));
        events.publish(Event::now("x", "a", Fact::Deleted));
        assert_eq!((text(&mut mine).await, text(&mut mine).await), ("0".to_owned(), "box.deleted".to_owned()));
        for wanted in ["0", "1", "box.deleted"] {
            assert_eq!(text(&mut all).await, wanted);
        }
        // Another account does not push out what this one has not read; its own events do.
        for n in 0..9 {
            events.publish(denied("b", "y", n));
        }
        events.publish(denied("a", "x", 7));
        assert_eq!(text(&mut mine).await, "7");
        for n in 10..15 {
            events.publish(denied("a", "x", n));
        }
        for wanted in ["lost", "11", "12", "13", "14"] {
            assert_eq!(text(&mut mine).await, wanted);
        }
        events.close();
        assert_eq!(mine.next().await, Next::Closed);
    }

    #[tokio::test]
    async fn a_waiting_subscriber_is_woken_by_the_event_that_it_wants() {
        let events = stream();
        let kinds = Filter::kinds_of("box.deleted,network").expect("known");
        let filter = Filter { box_id: Some("x".into()), kinds, ..of("a") };
        let mut subscription = events.subscribe(filter, None);
        let waiting = tokio::spawn(async move { subscription.next().await });
        tokio::task::yield_now().await;
        events.publish(denied("a", "other", 1));
        events.publish(Event::now("x", "a", Fact::Released));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        events.publish(Event::now("x", "a", Fact::Deleted));
        assert!(matches!(waiting.await, Ok(Next::Event(_, event)) if event.fact == Fact::Deleted));
        assert_eq!(Filter::kinds_of("box.frozen, nonsense"), Err("nonsense".to_owned()));
    }

    #[tokio::test]
    async fn a_subscriber_resumes_after_the_last_event_it_has_seen() {
        let events = stream();
        let mut first = events.subscribe(of("a"), None);
        let start = first.position();
        events.publish(denied("a", "x", 1));
        events.publish(denied("a", "x", 2));
        let Next::Event(seen, _) = first.next().await else { panic!("an event") };
        assert_eq!(text(&mut events.subscribe(of("a"), Some(&seen))).await, "2");
        assert_eq!(text(&mut events.subscribe(of("a"), Some(&start))).await, "1");
        for n in 3..6 {
            events.publish(denied("a", "x", n));
        }
        let mut late = events.subscribe(of("a"), Some(&start));
        assert_eq!((text(&mut late).await, text(&mut late).await), ("lost".to_owned(), "2".to_owned()));
        // Ids of another run of the daemon, or of no event.
        for id in ["1-1", "nonsense", &events.id_of(999)] {
            assert_eq!(text(&mut events.subscribe(of("a"), Some(id))).await, "lost", "{id}");
        }
        assert!(events.knows_box(Some("a"), "x") && !events.knows_box(Some("b"), "x"));
    }

    #[derive(Debug)]
    struct Count(Arc<AtomicUsize>);

    impl Sink for Count {
        fn take(&self, _event: &Event) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn sinks_get_every_event_and_every_kind_has_its_name() {
        let count = Arc::new(AtomicUsize::new(0));
        let events = Events::new(4, vec![Box::new(Count(Arc::clone(&count)))]);
        events.publish(denied("a", "x", 1));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert_eq!(Filter::kinds_of("box,run,network,ledger").map(|kinds| kinds.len()), Ok(KINDS.len()));
        assert!(KINDS.contains(&denied("a", "x", 1).fact.kind()));
    }
}
