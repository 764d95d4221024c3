//! The check of the invariants of [`PendingCalls`].

use std::collections::BTreeMap;

use super::{Call, PendingCalls};
use crate::refusal::Repeat;

/// Up to this many calls the invariants are checked after every mutation, beyond it after every so many mutations.
const CHECKED_EACH_TIME: usize = 128;

impl<C: Call> PendingCalls<C> {
    /// Panics if an invariant is broken, in debug builds and in the simulator.
    pub(super) fn check_invariants(&mut self) {
        if !cfg!(any(debug_assertions, feature = "bugs")) {
            return;
        }
        self.mutations += 1;
        if self.pending.len() > CHECKED_EACH_TIME
            && !self.mutations.is_multiple_of(CHECKED_EACH_TIME)
        {
            return;
        }
        let mut queued_in: BTreeMap<u64, usize> = BTreeMap::new();
        let delayed = self.delayed.iter().map(|(_, id)| id);
        let queued = self.ready.iter().chain(&self.unnamed).chain(delayed);
        let queued = queued.chain(self.stalls.iter());
        for id in queued.filter(|id| self.pending.contains_key(id)) {
            *queued_in.entry(*id).or_default() += 1;
        }
        let mut on_wire = 0;
        for (id, pending) in &self.pending {
            let places = queued_in.get(id).copied().unwrap_or(0);
            let expected = usize::from(!pending.on_wire);
            assert_eq!(places, expected, "call {id} is in {places} queues");
            assert!(
                pending.on_wire || self.is_ours(&pending.it.call),
                "call {id} waits at a group that does not own its shard"
            );
            let named = pending.it.call.repeat() == Repeat::ByName;
            assert!(
                !pending.on_wire || !named || pending.it.attempts.name.is_some(),
                "call {id} was sent without its name"
            );
            on_wire += usize::from(pending.on_wire);
        }
        assert_eq!(on_wire, self.on_wire, "the count of sent calls is wrong");
        self.stalls.check_invariants();
        assert!(
            on_wire <= self.limits.max_in_flight,
            "too many calls in flight"
        );
    }
}
