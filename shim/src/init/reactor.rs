//! epoll, the tokens of its events, and the timers.
//!
//! Invariant: a token names a thing by an id that is never used again, so an event that was already fetched for
//! a thing that is gone finds nothing. Timers may be stale as well: the handler checks that a timer still matters.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 32;
/// The largest id a token can carry.
pub(crate) const ID_MAX: u64 = (1 << 56) - 1;

/// The subject of an event or a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Token {
    /// The listening control socket.
    Control,
    /// The signal descriptor.
    Signals,
    /// The listening sudo socket.
    SudoListener,
    /// A connection to the control socket.
    Connection(u64),
    /// A connection to the sudo socket.
    Sudo(u64),
    /// The start pipe of a run.
    RunStart(u64),
    /// Standard output (or the terminal) of a run.
    RunStdout(u64),
    /// Standard error of a run.
    RunStderr(u64),
    /// Standard input of a run.
    RunStdin(u64),
    /// The start pipe of a sudo command.
    SudoStart(u64),
    /// An output that outlived its run.
    Lingering(u64),
    /// Timer: the time of a run is up.
    RunTimeout(u64),
    /// Timer: kill a run that was asked to end.
    RunKill(u64),
    /// Timer: kill a sudo command that was asked to end.
    SudoKill(u64),
    /// Timer: give free memory back to the kernel.
    Trim,
    /// Timer: look at the terminal of a run again.
    RunTerminal(u64),
}

impl Token {
    fn to_u64(self) -> u64 {
        let (kind, id) = match self {
            Self::Control => (0, 0),
            Self::Signals => (1, 0),
            Self::SudoListener => (2, 0),
            Self::Connection(id) => (3, id),
            Self::Sudo(id) => (4, id),
            Self::RunStart(id) => (5, id),
            Self::RunStdout(id) => (6, id),
            Self::RunStderr(id) => (7, id),
            Self::RunStdin(id) => (8, id),
            Self::SudoStart(id) => (9, id),
            Self::Lingering(id) => (10, id),
            Self::RunTimeout(id) => (11, id),
            Self::RunKill(id) => (12, id),
            Self::SudoKill(id) => (13, id),
            Self::Trim => (14, 0),
            Self::RunTerminal(id) => (15, id),
        };
        (kind << 56) | (id & ID_MAX)
    }

    fn from_u64(raw: u64) -> Option<Self> {
        let id = raw & ID_MAX;
        Some(match raw >> 56 {
            0 => Self::Control,
            1 => Self::Signals,
            2 => Self::SudoListener,
            3 => Self::Connection(id),
            4 => Self::Sudo(id),
            5 => Self::RunStart(id),
            6 => Self::RunStdout(id),
            7 => Self::RunStderr(id),
            8 => Self::RunStdin(id),
            9 => Self::SudoStart(id),
            10 => Self::Lingering(id),
            11 => Self::RunTimeout(id),
            12 => Self::RunKill(id),
            13 => Self::SudoKill(id),
            14 => Self::Trim,
            15 => Self::RunTerminal(id),
            _ => return None,
        })
    }
}

/// The events a descriptor is watched for. Hang-ups and errors are always reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Interest {
    pub(crate) const READ: Self = Self { read: true, write: false };
    pub(crate) const WRITE: Self = Self { read: false, write: true };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// An event and its subject.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Happened {
    pub(crate) token: Token,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The other side is gone.
    pub(crate) hung_up: bool,
}

/// The epoll descriptor and the timers.
#[derive(Debug)]
pub(crate) struct Reactor {
    epoll: OwnedFd,
    timers: BTreeMap<(Instant, Token), ()>,
}

impl Reactor {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, timers: BTreeMap::new() })
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(token.to_u64());
        Ok(epoll::add(&self.epoll, fd, data, interest.flags())?)
    }

    pub(crate) fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        let data = EventData::new_u64(token.to_u64());
        Ok(epoll::modify(&self.epoll, fd, data, interest.flags())?)
    }

    /// Stops watching a descriptor. The kernel does so when the last copy is closed; this is for files that stay open,
    /// in a child for example. A descriptor that is not watched is no error.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    pub(crate) fn set_timer(&mut self, at: Instant, token: Token) {
        self.timers.insert((at, token), ());
    }

    pub(crate) fn cancel_timer(&mut self, at: Instant, token: Token) {
        self.timers.remove(&(at, token));
    }

    /// The timers that are due, removed.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Token> {
        let mut due = Vec::new();
        while let Some(entry) = self.timers.first_entry().filter(|e| e.key().0 <= now) {
            due.push(entry.remove_entry().0.1);
        }
        due
    }

    /// Waits for events until the next timer.
    pub(crate) fn wait(&self, at_once: bool) -> io::Result<Vec<Happened>> {
        let timeout = if at_once {
            Some(Duration::ZERO)
        } else {
            let next = self.timers.first_key_value().map(|((at, _), ())| *at);
            // Rounded up: waking early would spin.
            next.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut space = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_MAX];
        let count = match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(e) => return Err(e.into()),
        };
        let gone = EventFlags::HUP | EventFlags::ERR;
        Ok(space
            .iter()
            .take(count)
            .filter_map(|event| {
                let flags = event.flags;
                Some(Happened {
                    token: Token::from_u64(event.data.u64())?,
                    readable: flags.contains(EventFlags::IN),
                    writable: flags.contains(EventFlags::OUT),
                    hung_up: flags.intersects(gone),
                })
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [Token::Control, Token::Connection(ID_MAX), Token::RunStderr(7), Token::RunKill(0)] {
            assert_eq!(Token::from_u64(token.to_u64()), Some(token));
        }
        assert_eq!(Token::from_u64(200 << 56), None);
    }

    #[test]
    fn timers_come_due_in_order_and_once() {
        let mut reactor = Reactor::new().unwrap();
        let now = Instant::now();
        reactor.set_timer(now + Duration::from_secs(2), Token::RunKill(2));
        reactor.set_timer(now + Duration::from_secs(1), Token::RunKill(1));
        assert!(reactor.due(now).is_empty());
        let later = now + Duration::from_secs(3);
        assert_eq!(reactor.due(later), [Token::RunKill(1), Token::RunKill(2)]);
        assert!(reactor.due(later).is_empty());
    }
}
