//! The order in which a new leader reads the leases of its keyspaces.
//!
//! A *turn* is one read: of several keyspaces with few leases, or of a page of one with many, which then waits for its next turn
//! behind the others. So a keyspace with many leases holds nobody up.

use std::collections::VecDeque;

use keyspace::{Lease, LeaseId, Place};
use raft::{StoreError, Term};
use types::ShardId;

use super::lessor::Lessor;

/// The most leases of a turn.
const LEASES: usize = 1_000;
/// The most keyspaces of a turn.
const KEYSPACES: usize = 256;

/// A keyspace whose leases after one of them are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    place: Place,
    after: Option<LeaseId>,
}

/// The leases of a part that were read.
#[derive(Debug)]
pub(super) struct Loaded {
    place: Place,
    /// `None` if the state doesn't serve the shard any more. Its timers end when that is published, and until then they aren't loaded.
    leases: Option<Vec<Lease>>,
    /// True if the keyspace has no more.
    last: bool,
}

/// The keyspaces whose leases are to be read, in turn.
#[derive(Debug, Default)]
pub(super) struct Queue(VecDeque<Part>);

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a keyspace.
    pub(super) fn add(&mut self, place: Place) {
        self.0.push_back(Part { place, after: None });
    }

    /// Drops the keyspaces of a shard, which are added anew.
    pub(super) fn drop_shard(&mut self, shard: ShardId) {
        self.0.retain(|part| part.place.shard != shard);
    }

    /// Returns the parts of the next turn. They stay until [`Queue::settle`].
    pub(super) fn turn(&self) -> Vec<Part> {
        self.0.iter().take(KEYSPACES).copied().collect()
    }

    /// Takes in what the turn has read of the first parts.
    pub(super) fn settle(&mut self, loaded: &[Loaded]) {
        for part in loaded {
            self.0.pop_front();
            if !part.last {
                let after = part.leases.iter().flatten().last().map(|lease| lease.id);
                let place = part.place;
                self.0.push_back(Part { place, after });
            }
        }
    }
}

/// Reads the first of these parts, as many as a turn may. `read` returns at most so many leases of a keyspace after one of them, or `None`
/// if its shard isn't served.
pub(super) fn read_parts(
    parts: &[Part],
    mut read: impl FnMut(Place, Option<LeaseId>, usize) -> Result<Option<Vec<Lease>>, StoreError>,
) -> Result<Vec<Loaded>, StoreError> {
    let mut left = LEASES;
    let mut loaded = Vec::new();
    for &Part { place, after } in parts {
        let leases = read(place, after, left)?;
        let count = leases.as_ref().map_or(0, Vec::len);
        let last = count < left;
        left = left.saturating_sub(count);
        loaded.push(Loaded {
            place,
            leases,
            last,
        });
        if left == 0 {
            break;
        }
    }
    Ok(loaded)
}

/// Gives the timers what was read.
pub(super) fn set_timers(lessor: &Lessor, term: Term, loaded: &[Loaded]) {
    for part in loaded {
        if let Some(leases) = &part.leases {
            lessor.load(term, part.place, leases, part.last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keyspace::KeyspaceId;

    use super::*;

    fn place(id: u64) -> Place {
        Place {
            shard: ShardId(u32::try_from(id % 3).unwrap()),
            id: KeyspaceId(id),
        }
    }

    /// Returns the leases of keyspaces that have ids from 1 on.
    fn page(
        counts: &BTreeMap<Place, i64>,
        place: Place,
        after: Option<LeaseId>,
        limit: usize,
    ) -> Vec<Lease> {
        let ids = after.map_or(1, |after| after.0 + 1)..=counts[&place];
        let lease = |id| Lease {
            id: LeaseId(id),
            ttl: 60,
            keys: 0,
            grant: 1,
        };
        ids.take(limit).map(lease).collect()
    }

    #[test]
    fn keyspaces_with_many_leases_do_not_hold_up_others() {
        let mut counts = BTreeMap::new();
        let mut queue = Queue::default();
        for id in 0..500_i64 {
            let leases = match id {
                0 => 5_500,
                1 => 2_000,
                id => id % 3,
            };
            counts.insert(place(id.cast_unsigned()), leases);
            queue.add(place(id.cast_unsigned()));
        }
        let mut found: BTreeMap<Place, i64> = BTreeMap::new();
        let mut done_in = BTreeMap::new();
        let mut turn = 0;
        while !queue.is_empty() {
            turn += 1;
            let read =
                |place, after, limit| Ok::<_, StoreError>(Some(page(&counts, place, after, limit)));
            let loaded = read_parts(&queue.turn(), read).unwrap();
            let leases = loaded.iter().flat_map(|part| part.leases.iter().flatten());
            assert!(loaded.len() <= KEYSPACES && leases.count() <= LEASES);
            for part in &loaded {
                for lease in part.leases.iter().flatten() {
                    let before = found.insert(part.place, lease.id.0).unwrap_or(0);
                    assert_eq!(lease.id.0, before + 1, "each once, in order");
                }
                if part.last {
                    assert_eq!(done_in.insert(part.place, turn), None);
                }
            }
            queue.settle(&loaded);
        }
        for (place, count) in &counts {
            assert_eq!(found.get(place).copied().unwrap_or(0), *count);
        }
        let small = done_in.iter().filter(|(place, _)| place.id.0 > 1);
        assert!(small.clone().all(|(_, turn)| *turn <= 5), "{done_in:?}");
        assert_eq!(small.count(), 498);
    }

    #[test]
    fn a_shard_that_is_added_anew_is_read_from_the_beginning() {
        let mut queue = Queue::default();
        queue.add(place(0));
        let many = BTreeMap::from([(place(0), 3_000)]);
        let read =
            |place, after, limit| Ok::<_, StoreError>(Some(page(&many, place, after, limit)));
        let loaded = read_parts(&queue.turn(), read).unwrap();
        queue.settle(&loaded);
        assert!(!queue.is_empty());
        queue.drop_shard(place(0).shard);
        queue.add(place(0));
        let first = Part {
            place: place(0),
            after: None,
        };
        assert_eq!(queue.turn(), [first]);
    }
}
