//! The places of requests that are being forwarded, by number and by bytes.
//!
//! A group that is frozen answers nothing until its calls time out, so each group has a share: a quarter of all places. The last
//! quarter of the places is for groups that hold few, and a group that holds none always gets one, so that any number of slow groups
//! leaves room for a healthy one. The node's own keys have the places of [`crate::budget`], which forwarded requests don't take.
//!
//! A call that waits for a shard on its way, or for a leader for long, is one of those that *wait* for the group. They are half of a
//! group's share at most, so that calls for the group's other shards find places. A call that waits for a shard on its way to this
//! node holds a place, too, because between its attempts it holds no share of the node's budget.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::errors;
use api::v1::ErrorDetail;
use types::Gid;

/// The time after which a client should try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;
/// One group may hold the whole divided by this.
const SHARES: usize = 4;
/// A group holds few places up to the whole divided by this.
const FEW: usize = 64;
/// The calls that wait for one group may be the whole divided by this.
const WAITING: usize = 2 * SHARES;

/// The places.
#[derive(Debug)]
pub(super) struct Places {
    most: Held,
    state: Mutex<State>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct State {
    all: Held,
    /// The calls and bytes of each group that holds any.
    groups: BTreeMap<Gid, Held>,
    /// The calls that wait for each group.
    waiting: BTreeMap<Gid, usize>,
}

/// A number of requests, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    calls: usize,
    bytes: usize,
}

/// The place of one request, given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    gid: Gid,
    bytes: usize,
}

/// The right of one call to wait for a group until the call's deadline, given back on drop.
#[derive(Debug)]
pub(super) struct Waiting {
    places: Arc<Places>,
    gid: Gid,
}

/// The place of a request that waits at this node, and its right to wait, given back on drop.
#[derive(Debug)]
pub(crate) struct WaitingHere {
    _place: Place,
    _right: Waiting,
}

impl Places {
    pub(super) fn new(max_calls: usize, max_bytes: usize) -> Self {
        Self {
            most: Held {
                calls: max_calls,
                bytes: max_bytes,
            },
            state: Mutex::default(),
        }
    }

    /// Takes the place of a request of `bytes` to a group, or returns `Overloaded`.
    pub(super) fn take(self: &Arc<Self>, gid: Gid, bytes: usize) -> Result<Place, ErrorDetail> {
        let mut state = self.lock();
        let all = state.all;
        let own = state.groups.get(&gid).copied().unwrap_or_default();
        let full = |what: &str, limit: usize| {
            let group = match gid {
                Gid::NONE => "the controllers".to_owned(),
                gid => gid.to_string(),
            };
            let what = format!("{what} on their way to {group} or to all groups");
            errors::overloaded(&what, limit as u64, RETRY_AFTER_MS)
        };
        if own.calls > 0 && !admits(all.calls, own.calls, 1, self.most.calls) {
            return Err(full("forwarded requests", self.most.calls));
        }
        if !admits(all.bytes, own.bytes, bytes, self.most.bytes) {
            return Err(full("bytes of forwarded requests", self.most.bytes));
        }
        state.all.add(bytes);
        state.groups.entry(gid).or_default().add(bytes);
        drop(state);
        let places = Arc::clone(self);
        Ok(Place { places, gid, bytes })
    }

    /// Returns the right to wait for a group, unless too many calls wait for it.
    pub(super) fn wait(self: &Arc<Self>, gid: Gid) -> Option<Waiting> {
        let most = (self.most.calls / WAITING).max(1);
        let mut state = self.lock();
        let waiting = state.waiting.entry(gid).or_default();
        if *waiting >= most {
            return None;
        }
        *waiting += 1;
        drop(state);
        let places = Arc::clone(self);
        Some(Waiting { places, gid })
    }

    /// Takes the place of a request of `bytes` that waits at this node, and the right to wait, unless there is none of either.
    pub(super) fn wait_here(self: &Arc<Self>, gid: Gid, bytes: usize) -> Option<WaitingHere> {
        Some(WaitingHere {
            _place: self.take(gid, bytes).ok()?,
            _right: self.wait(gid)?,
        })
    }

    /// Returns the number of places and rights to wait that are held. A call may hold one of each.
    pub(super) fn held(&self) -> usize {
        let state = self.lock();
        state.all.calls + state.waiting.values().sum::<usize>()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns true if a group that holds `own` of `all` that are held may take `more`, of `most` in all.
fn admits(all: usize, own: usize, more: usize, most: usize) -> bool {
    let wanted = own.saturating_add(more);
    let has_few = own == 0 || wanted <= most / FEW;
    let bound = if has_few { most } else { most - most / SHARES };
    let is_within_share = own == 0 || wanted <= most / SHARES;
    is_within_share && all.saturating_add(more) <= bound
}

impl Place {
    pub(super) fn gid(&self) -> Gid {
        self.gid
    }
}

impl Held {
    fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.calls = self.calls.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.all.remove(self.bytes);
        if let Entry::Occupied(mut group) = state.groups.entry(self.gid) {
            group.get_mut().remove(self.bytes);
            if group.get().calls == 0 {
                group.remove();
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        if let Entry::Occupied(mut waiting) = state.waiting.entry(self.gid) {
            *waiting.get_mut() -= 1;
            if *waiting.get() == 0 {
                waiting.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(calls: usize, bytes: usize) -> Arc<Places> {
        Arc::new(Places::new(calls, bytes))
    }

    /// Takes places until one is refused.
    fn fill(places: &Arc<Places>, gid: u64, bytes: usize) -> Vec<Place> {
        std::iter::from_fn(|| places.take(Gid(gid), bytes).ok()).collect()
    }

    #[test]
    fn one_group_holds_a_quarter_at_most() {
        let places = places(1_024, 1 << 20);
        assert_eq!(fill(&places, 3, 0).len(), 256);
        let held = fill(&places, 3, 0);
        assert_eq!(held.len(), 256, "places come back");
        assert!(places.take(Gid(2), 0).is_ok());
    }

    #[test]
    fn frozen_groups_leave_room_for_any_other() {
        let places = places(1_024, 1 << 20);
        let held: Vec<_> = (10..30).map(|gid| fill(&places, gid, 0)).collect();
        let count: usize = held.iter().map(Vec::len).sum();
        assert_eq!(count, 1_024 + 1, "the last group has one of its own");
        assert_eq!(held.first().unwrap().len(), 256);
        assert_eq!(fill(&places, 2, 0).len(), 1);
        drop(held);
        let held: Vec<_> = (10..20).map(|gid| fill(&places, gid, 0)).collect();
        assert_eq!(fill(&places, 2, 0).len(), 16);
        drop(held);
        assert_eq!(*places.lock(), State::default());
    }

    #[test]
    fn bytes_are_shared_in_the_same_way() {
        let places = places(1_024, 6_400);
        assert_eq!(fill(&places, 3, 100).len(), 16);
        let held = fill(&places, 3, 100);
        assert!(places.take(Gid(2), 4_000).is_ok(), "a large one alone");
        assert!(places.take(Gid(2), 6_401).is_err(), "larger than all");
        drop(held);
    }

    #[test]
    fn calls_that_wait_are_half_of_a_groups_share() {
        let wait = |places: &Arc<Places>, gid| -> Vec<Waiting> {
            std::iter::from_fn(|| places.wait(Gid(gid))).collect()
        };
        let places = places(1_024, 1 << 20);
        assert_eq!(wait(&places, 3).len(), 128);
        let held = wait(&places, 3);
        assert_eq!(held.len(), 128, "they come back");
        assert_eq!(wait(&places, 2).len(), 128, "each group has its own");
        assert_eq!(places.held(), 128, "those that wait here count");
        assert_eq!(fill(&places, 3, 0).len(), 256);
        let place = places.take(Gid(3), 7).unwrap();
        assert_eq!(places.held(), 129);
        drop((held, place));
        assert_eq!(*places.lock(), State::default());
        assert_eq!(places.held(), 0);
        assert_eq!(wait(&tests::places(1, 1), 3).len(), 1);
    }

    #[test]
    fn calls_that_wait_here_are_bounded_by_number_and_by_bytes() {
        let wait = |places: &Arc<Places>, bytes| -> Vec<WaitingHere> {
            std::iter::from_fn(|| places.wait_here(Gid(3), bytes)).collect()
        };
        let places = places(1_024, 6_400);
        assert_eq!(wait(&places, 1).len(), 128);
        let held = wait(&places, 400);
        assert_eq!(held.len(), 4, "a quarter of the bytes");
        assert!(places.wait_here(Gid(2), 400).is_some());
        drop(held);
        assert_eq!(*places.lock(), State::default());
    }

    #[test]
    fn each_group_has_a_place_even_of_one() {
        let places = places(1, 1);
        let first = places.take(Gid(1), 1).unwrap();
        assert!(places.take(Gid(1), 0).is_err());
        assert!(places.take(Gid(2), 0).is_ok());
        assert!(places.take(Gid(2), 1).is_err(), "no byte is left");
        drop(first);
        assert!(places.take(Gid::NONE, 1).is_ok());
    }
}
