//! DNS limits per box: one box must neither starve the others nor get a fast tunnel.
//!
//! Owns: the questions in flight and the rate of each box. The caller supplies the time.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Average questions per second of a box.
pub(super) const QUESTIONS_PER_SECOND: f64 = 200.0;
/// Burst of questions of a box.
pub(super) const QUESTIONS_BURST: f64 = 400.0;
/// Questions in flight of a box.
pub(super) const IN_FLIGHT_MAX: u32 = 64;
/// The same limit when the proxy is busy.
pub(super) const IN_FLIGHT_WHEN_BUSY_MAX: u32 = 4;
/// Questions in flight of all boxes from which the proxy counts as busy.
pub(super) const BUSY_FROM: u32 = 512;
/// Questions in flight of all boxes.
pub(super) const IN_FLIGHT_TOTAL_MAX: u32 = 2048;
/// TCP connections of a box.
pub(super) const CONNECTIONS_MAX: u32 = 16;
/// TCP connections of all boxes.
pub(super) const CONNECTIONS_TOTAL_MAX: u32 = 1024;
/// Interval between denials about a box above its limits.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Number of accounts below which idle ones are not collected.
const ACCOUNTS_MIN: usize = 256;

#[derive(Debug)]
struct Account {
    tokens: f64,
    at: Instant,
    questions: u32,
    connections: u32,
    told: Option<Instant>,
    pinning: Arc<tokio::sync::Mutex<()>>,
}

impl Account {
    fn new(now: Instant) -> Self {
        Self { tokens: QUESTIONS_BURST, at: now, questions: 0, connections: 0, told: None, pinning: Arc::default() }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * QUESTIONS_PER_SECOND).min(QUESTIONS_BURST);
        self.at = self.at.max(now);
    }

    /// True if the account equals a new one.
    fn is_idle(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.questions == 0 && self.connections == 0 && self.tokens >= QUESTIONS_BURST
    }
}

#[derive(Debug, Default)]
struct State {
    accounts: HashMap<Ipv4Addr, Account>,
    questions: u32,
    connections: u32,
    clean_at: usize,
}

impl State {
    fn account(&mut self, of: Ipv4Addr, now: Instant) -> &mut Account {
        if self.accounts.len() >= self.clean_at.max(ACCOUNTS_MIN) && !self.accounts.contains_key(&of) {
            self.accounts.retain(|_, account| !account.is_idle(now));
            self.clean_at = self.accounts.len() * 2;
        }
        self.accounts.entry(of).or_insert_with(|| Account::new(now))
    }
}

/// A question or connection above a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMuch {
    /// True if a denial is due.
    pub(super) tell: bool,
}

/// The accounts of all boxes.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits {
    state: Arc<Mutex<State>>,
}

/// A slot for one question or one connection, released on drop.
#[derive(Debug)]
pub(super) struct Place {
    limits: Limits,
    of: Ipv4Addr,
    is_question: bool,
}

impl Limits {
    /// A slot for a question of the box at `of`.
    pub(super) fn question(&self, of: Ipv4Addr, now: Instant) -> Result<Place, TooMuch> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let total = state.questions;
        let most = match total {
            IN_FLIGHT_TOTAL_MAX.. => 0,
            BUSY_FROM.. => IN_FLIGHT_WHEN_BUSY_MAX,
            _ => IN_FLIGHT_MAX,
        };
        let account = state.account(of, now);
        account.refill(now);
        if account.tokens < 1.0 || account.questions >= most {
            let tell = account.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
            if tell {
                account.told = Some(now);
            }
            return Err(TooMuch { tell });
        }
        account.tokens -= 1.0;
        account.questions += 1;
        state.questions += 1;
        Ok(Place { limits: self.clone(), of, is_question: true })
    }

    /// A slot for a TCP connection of the box at `of`.
    pub(super) fn connection(&self, of: Ipv4Addr, now: Instant) -> Option<Place> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.connections >= CONNECTIONS_TOTAL_MAX {
            return None;
        }
        let account = state.account(of, now);
        if account.connections >= CONNECTIONS_MAX {
            return None;
        }
        account.connections += 1;
        state.connections += 1;
        Some(Place { limits: self.clone(), of, is_question: false })
    }

    /// Held while pinning for the box: the firewall pins for one box at a time, and one box must not fill its queue.
    pub(super) fn pinning(&self, of: Ipv4Addr, now: Instant) -> Arc<tokio::sync::Mutex<()>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.account(of, now).pinning)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.limits.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, is_question) = (self.of, self.is_question);
        if is_question {
            state.questions -= 1;
        } else {
            state.connections -= 1;
        }
        if let Some(account) = state.accounts.get_mut(&of) {
            if is_question {
                account.questions -= 1;
            } else {
                account.connections -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);

    fn nth(n: u32) -> Ipv4Addr {
        (ONE.to_bits() + 2 * n).into()
    }

    #[test]
    fn a_box_has_a_rate_of_its_own() {
        let (limits, now) = (Limits::default(), Instant::now());
        let ask = |of, at| limits.question(of, at).map(drop);
        for _ in 0..QUESTIONS_BURST as u32 {
            ask(ONE, now).expect("the burst");
        }
        assert_eq!(ask(ONE, now), Err(TooMuch { tell: true }));
        assert_eq!(ask(ONE, now), Err(TooMuch { tell: false }), "told once");
        ask(nth(1), now).expect("another box");
        let later = now + Duration::from_millis(100);
        assert_eq!((0..100).filter(|_| ask(ONE, later).is_ok()).count(), 20);
        assert!(ask(ONE, now).is_err(), "time does not go back");
        assert_eq!(ask(ONE, later + Duration::from_secs(3600)), Ok(()));
    }

    #[test]
    fn a_box_has_so_many_questions_at_once_and_fewer_when_many_ask() {
        let (limits, now) = (Limits::default(), Instant::now());
        let mine: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| limits.question(ONE, now).expect("a place")).collect();
        assert!(limits.question(ONE, now).is_err());
        let full = BUSY_FROM / IN_FLIGHT_MAX;
        let others: Vec<_> =
            (1..full).flat_map(|n| (0..IN_FLIGHT_MAX).map(move |_| n)).map(|n| limits.question(nth(n), now)).collect();
        assert!(others.iter().all(Result::is_ok));
        let few: Vec<_> = (0..IN_FLIGHT_MAX).filter_map(|_| limits.question(nth(full), now).ok()).collect();
        assert_eq!(few.len() as u32, IN_FLIGHT_WHEN_BUSY_MAX, "now it is busy");
        drop((mine, others, few));
        assert_eq!(limits.state.lock().unwrap().questions, 0);
        assert!(limits.question(ONE, now).is_ok());
    }

    #[test]
    fn connections_are_counted() {
        let (limits, now) = (Limits::default(), Instant::now());
        let places: Vec<_> = (0..CONNECTIONS_MAX).map(|_| limits.connection(ONE, now).expect("a place")).collect();
        assert!(limits.connection(ONE, now).is_none() && limits.connection(nth(1), now).is_some());
        drop(places);
        let all: Vec<_> =
            (0..CONNECTIONS_TOTAL_MAX).map(|n| limits.connection(nth(n), now).expect("a place")).collect();
        assert!(limits.connection(nth(5000), now).is_none());
        drop(all);
        assert!(limits.connection(ONE, now).is_some());
    }

    #[test]
    fn accounts_that_are_not_needed_go() {
        let (limits, now) = (Limits::default(), Instant::now());
        let held = limits.question(ONE, now).expect("a place");
        for n in 1..5000 {
            limits.question(nth(n), now + Duration::from_secs(n.into())).expect("a place");
        }
        let state = limits.state.lock().unwrap();
        assert!(state.accounts.len() <= 2 * ACCOUNTS_MIN, "{}", state.accounts.len());
        assert_eq!(state.accounts[&ONE].questions, 1, "one that has something in hand stays");
        drop(state);
        drop(held);
    }
}
