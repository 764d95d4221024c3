//! The reserve of connections for nodes and operators.
//!
//! Peers, other groups and operators come to the same port as clients. So a connection beyond `max_connections` isn't refused, but
//! takes a place in the reserve, over which nodes and operators are served ([`calls`]). A client's call over it is refused with a
//! status, unless a connection of a client has ended meanwhile: then this one takes its slot.
//!
//! When all places are taken, the connection that has carried no call for longest is closed. A peer's stream is a call that goes
//! on. So connections that are idle, whatever their number, keep no peer and no operator out.

pub(crate) mod calls;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places for connections beyond the limit of clients' connections.
pub(crate) struct Reserve {
    most: usize,
    /// The slots of clients' connections.
    clients: Arc<Semaphore>,
    places: Mutex<Vec<Arc<Place>>>,
}

/// The place of one connection.
pub(crate) struct Place {
    usage: Mutex<Usage>,
    closed: AtomicBool,
    reader: AtomicWaker,
}

/// The use of a connection.
struct Usage {
    /// The number of calls that are not over.
    calls: usize,
    /// The end of the last call, or the start of the connection.
    since: Instant,
    /// The slot of a client's connection, once this one has taken it.
    slot: Option<OwnedSemaphorePermit>,
}

/// A connection's hold on its place, which it leaves on drop.
#[derive(Clone)]
pub(crate) struct Seat(Arc<Taken>);

struct Taken {
    place: Arc<Place>,
    reserve: Arc<Reserve>,
}

/// A call over a connection of the reserve, which is over on drop.
pub(crate) struct Call(Arc<Place>);

impl Reserve {
    /// Creates a reserve of `most` places beside the slots of clients' connections.
    pub(crate) fn new(most: usize, clients: Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self {
            most,
            clients,
            places: Mutex::default(),
        })
    }

    /// Gives a new connection a place. If all are taken, the connection that is idle for longest loses its place and is closed.
    /// Returns `None` if each of them carries a call.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Seat> {
        let mut places = self.lock();
        if places.len() >= self.most {
            let idle = places.iter().enumerate();
            let idle = idle.filter_map(|(at, place)| Some((place.idle_since()?, at)));
            let (_, at) = idle.min()?;
            places.swap_remove(at).close();
        }
        let place = Arc::new(Place {
            usage: Mutex::new(Usage {
                calls: 0,
                since: Instant::now(),
                slot: None,
            }),
            closed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        });
        places.push(Arc::clone(&place));
        Some(Seat(Arc::new(Taken {
            place,
            reserve: Arc::clone(self),
        })))
    }

    /// Returns the number of places that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().len()
    }

    fn leave(&self, place: &Arc<Place>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, place));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Place>>> {
        // Each change under this lock is one call, so a poisoned lock is as good.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Returns the time since which the connection is idle; `None` if it carries a call.
    fn idle_since(&self) -> Option<Instant> {
        let usage = self.lock();
        (usage.calls == 0).then_some(usage.since)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.reader.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        // Each change is complete when the lock is released, also by a panic.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Returns ready when the connection has lost its place and must end.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let place = &self.0.place;
        place.reader.register(cx.waker());
        if place.closed.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Takes the slot of a client's connection and leaves the reserve. Returns false if no slot is free.
    fn become_clients(&self) -> bool {
        let Taken { place, reserve } = &*self.0;
        let mut usage = place.lock();
        if usage.slot.is_none() {
            usage.slot = Arc::clone(&reserve.clients).try_acquire_owned().ok();
        }
        let has_slot = usage.slot.is_some();
        // The reserve is locked before its places everywhere.
        drop(usage);
        if has_slot {
            reserve.leave(place);
        }
        has_slot
    }

    /// Begins a call.
    fn begin(&self) -> Call {
        let place = Arc::clone(&self.0.place);
        place.lock().calls += 1;
        Call(place)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.reserve.leave(&self.place);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut usage = self.0.lock();
        usage.calls = usage.calls.saturating_sub(1);
        usage.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::poll_fn;

    use super::*;

    fn is_closed(seat: &Seat) -> bool {
        poll_fn(|cx| seat.poll_closed(cx)).now_or_never().is_some()
    }

    fn reserve(most: usize, clients: usize) -> (Arc<Reserve>, Arc<Semaphore>) {
        let clients = Arc::new(Semaphore::new(clients));
        (Reserve::new(most, Arc::clone(&clients)), clients)
    }

    #[test]
    fn the_connection_that_is_idle_for_longest_makes_place() {
        let (reserve, _) = reserve(3, 0);
        let seats: Vec<Seat> = (0..3).map(|_| reserve.enter().unwrap()).collect();
        let call = seats[0].begin();
        drop(seats[1].begin());
        let newer = reserve.enter().unwrap();
        let closed: Vec<bool> = seats.iter().map(is_closed).collect();
        assert_eq!(
            closed,
            [false, false, true],
            "the first is busy, the second was"
        );
        let calls = [seats[1].begin(), newer.begin()];
        assert!(reserve.enter().is_none(), "all are busy");
        drop(call);
        assert!(reserve.enter().is_some());
        assert!(is_closed(&seats[0]));
        drop((calls, seats, newer));
        assert_eq!(reserve.taken(), 0);
    }

    #[test]
    fn a_closed_connection_wakes_its_reader() {
        let (reserve, _) = reserve(1, 0);
        let seat = reserve.enter().unwrap();
        let waker = futures::task::noop_waker();
        assert!(
            seat.poll_closed(&mut Context::from_waker(&waker))
                .is_pending()
        );
        let _newer = reserve.enter().unwrap();
        assert!(is_closed(&seat));
    }

    #[test]
    fn a_connection_of_the_reserve_takes_the_slot_of_a_client_that_went() {
        let (reserve, clients) = reserve(2, 0);
        let seat = reserve.enter().unwrap();
        assert!(!seat.become_clients());
        clients.add_permits(1);
        assert!(seat.become_clients() && seat.become_clients());
        assert_eq!((reserve.taken(), clients.available_permits()), (0, 0));
        // It can't be closed for a newer one any more.
        let _newer: Vec<Seat> = (0..3).map(|_| reserve.enter().unwrap()).collect();
        assert!(!is_closed(&seat));
        drop(seat);
        assert_eq!(clients.available_permits(), 1);
    }
}
