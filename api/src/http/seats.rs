//! The connections of a listener: admission, and which one is closed when there is no room.
//!
//! Owns: the count of open connections, by address and account, and of those that serve public URLs. Invariants: a
//! connection without a request in progress never keeps a new one out: the one that has been idle longest is closed;
//! one address and one account have at most their share; public URLs and the API do not take each other's room.
//!
//! Leaves out: concurrent requests (`shares`), and the operator's socket, which has room of its own (`server`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::shares::allows;
use crate::config::Config;

/// Limits of the number of connections.
#[derive(Debug, Clone, Copy)]
pub struct SeatLimits {
    /// Of the API.
    pub api_max: u32,
    /// Of public URLs.
    pub urls_max: u32,
    /// From one address.
    pub per_address_max: u32,
    /// With the key of one account.
    pub per_account_max: u32,
}

impl SeatLimits {
    /// The limits of the configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            api_max: config.connections_max,
            urls_max: config.public_urls.connections_max,
            per_address_max: config.connections_per_address_max,
            per_account_max: config.connections_per_account_max,
        }
    }
}

/// Use of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The API, or no request yet.
    Api,
    /// A public URL.
    Url,
}

/// All connections of a listener. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    limits: SeatLimits,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    seats: HashMap<u64, Seated>,
    /// Busy connections of each account.
    busy: HashMap<String, u32>,
    /// All of them.
    busy_all: u32,
}

#[derive(Debug)]
struct Seated {
    address: IpAddr,
    used_for: Use,
    /// The account for which it counts as busy.
    account: Option<String>,
    /// Requests in progress: one at most, and its session.
    requests: u32,
    quiet_since: Instant,
    ended: CancellationToken,
}

/// One connection. The last clone that is dropped gives the room back.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    place: Arc<Place>,
}

#[derive(Debug)]
struct Place {
    seats: Seats,
    number: u64,
    ended: CancellationToken,
}

/// Ends the connection of a request at once.
#[derive(Debug, Clone)]
pub(super) struct Cut(pub CancellationToken);

/// A request in progress, or the session that it has become.
#[derive(Debug)]
pub(super) struct Busy {
    seat: Seat,
}

impl Seats {
    pub(super) fn new(limits: SeatLimits) -> Self {
        Self { limits, open: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a connection from this address, if there is any.
    pub(super) fn take(&self, address: IpAddr) -> Option<Seat> {
        let address = network_of(address);
        let mut open = self.lock();
        let of_address = |seated: &Seated| seated.address == address;
        if open.count(of_address) >= self.limits.per_address_max {
            open.close_quietest(of_address)?;
        }
        let of_api = |seated: &Seated| seated.used_for == Use::Api;
        if open.count(of_api) >= self.limits.api_max {
            open.close_quietest(of_api)?;
        }
        let (number, ended) = (open.next, CancellationToken::new());
        open.next += 1;
        let seated = Seated {
            address,
            used_for: Use::Api,
            account: None,
            requests: 0,
            quiet_since: Instant::now(),
            ended: ended.clone(),
        };
        open.seats.insert(number, seated);
        Some(Seat { place: Arc::new(Place { seats: self.clone(), number, ended }) })
    }

    /// Connections that are open.
    pub(super) fn count(&self) -> usize {
        self.lock().seats.len()
    }
}

impl Open {
    fn count(&self, which: impl Fn(&Seated) -> bool) -> u32 {
        u32::try_from(self.seats.values().filter(|seated| which(seated)).count()).unwrap_or(u32::MAX)
    }

    /// Closes the connection that has been idle longest.
    fn close_quietest(&mut self, which: impl Fn(&Seated) -> bool) -> Option<()> {
        let quiet = self.seats.iter().filter(|(_, seated)| seated.requests == 0 && which(seated));
        let number = quiet.min_by_key(|(_, seated)| seated.quiet_since).map(|(number, _)| *number)?;
        self.seats.remove(&number)?.ended.cancel();
        Some(())
    }
}

impl Seat {
    /// Completes when the connection is closed to make room.
    pub(super) fn ended(&self) -> &CancellationToken {
        &self.place.ended
    }

    /// Begins a request. Until the answer ends, the connection is not closed for want of room.
    #[must_use]
    pub(super) fn busy(&self) -> Busy {
        if let Some(seated) = self.place.seats.lock().seats.get_mut(&self.place.number) {
            seated.requests += 1;
        }
        Busy { seat: self.clone() }
    }

    /// Assigns the request in progress to this account. `false` if the account has its share of connections already.
    #[must_use]
    pub(super) fn belongs_to(&self, account: &str) -> bool {
        let limits = self.place.seats.limits;
        let mut open = self.place.seats.lock();
        let Open { seats, busy, busy_all, .. } = &mut *open;
        let Some(seated) = seats.get_mut(&self.place.number) else { return false };
        if seated.account.is_some() {
            return true;
        }
        let mine = busy.get(account).copied().unwrap_or(0);
        if !allows(*busy_all, mine, limits.api_max, limits.per_account_max) {
            return false;
        }
        seated.account = Some(account.to_owned());
        *busy.entry(account.to_owned()).or_default() += 1;
        *busy_all += 1;
        true
    }

    /// Sets the use of the connection from now on. `false` if there is no room for it.
    #[must_use]
    pub(super) fn use_for(&self, wanted: Use) -> bool {
        let limits = self.place.seats.limits;
        let mut open = self.place.seats.lock();
        if open.seats.get(&self.place.number).is_none_or(|seated| seated.used_for == wanted) {
            return true;
        }
        let most = if wanted == Use::Api { limits.api_max } else { limits.urls_max };
        if open.count(|seated| seated.used_for == wanted) >= most {
            return false;
        }
        if let Some(seated) = open.seats.get_mut(&self.place.number) {
            seated.used_for = wanted;
        }
        true
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let place = &self.seat.place;
        let mut open = place.seats.lock();
        let Open { seats, busy, busy_all, .. } = &mut *open;
        let Some(seated) = seats.get_mut(&place.number) else { return };
        seated.requests = seated.requests.saturating_sub(1);
        seated.quiet_since = Instant::now();
        if seated.requests > 0 {
            return;
        }
        if let Some(account) = seated.account.take() {
            *busy_all = busy_all.saturating_sub(1);
            if let Some(mine) = busy.get_mut(&account) {
                *mine -= 1;
                if *mine == 0 {
                    busy.remove(&account);
                }
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.seats.lock().seats.remove(&self.number);
    }
}

/// The unit that counts as one address: for IPv6 the /64 network, which one host has as a whole.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats() -> Seats {
        Seats::new(SeatLimits { api_max: 4, urls_max: 2, per_address_max: 3, per_account_max: 2 })
    }

    fn at(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_connection_makes_room_and_a_busy_one_does_not() {
        let seats = seats();
        let first = seats.take(at(1)).expect("room");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        let more: Vec<Seat> = (2..5).map(|last| seats.take(at(last)).expect("room")).collect();
        let _busy: Vec<Busy> = more.iter().map(Seat::busy).collect();
        assert_eq!(seats.count(), 4);
        let fifth = seats.take(at(5)).expect("the first makes room");
        assert!(first.ended().is_cancelled() && !more[0].ended().is_cancelled());
        let _fifth_busy = fifth.busy();
        assert!(seats.take(at(6)).is_none(), "all are busy");
        assert!(more[0].use_for(Use::Url) && more[1].use_for(Use::Url) && !more[2].use_for(Use::Url));
        assert!(seats.take(at(6)).is_some(), "public URLs have room of their own");
    }

    #[test]
    fn an_address_and_an_account_have_their_share() {
        let seats = seats();
        let mine: Vec<Seat> = (0..3).map(|_| seats.take(at(1)).expect("room")).collect();
        let busy: Vec<Busy> = mine.iter().map(Seat::busy).collect();
        assert!(seats.take(at(1)).is_none() && seats.take(at(2)).is_some());
        assert!(mine[0].belongs_to("a") && mine[1].belongs_to("a") && !mine[2].belongs_to("a"));
        assert!(mine[2].belongs_to("b") && mine[0].belongs_to("a"));
        drop(busy);
        assert!(seats.lock().busy.is_empty() && seats.lock().busy_all == 0);
        let one = "2001:db8::1".parse().expect("an address");
        let two = "2001:db8::ffff:2".parse().expect("an address");
        assert_eq!(network_of(one), network_of(two));
    }
}
