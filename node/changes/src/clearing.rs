//! The keyspaces that have something to clear, on the leader: what compaction or deletion has left.
//!
//! Clearing goes step by step, and each step is an entry of the log. One step of a keyspace is proposed at a time. A compaction
//! that comes while a step is on its way counts, although the answer to the step may say that nothing is left.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use keyspace::{Effect, Place};

/// Milliseconds of the caller's clock.
type Millis = u64;

/// The pause after a step that was not carried out.
const RETRY: Millis = 1_000;

#[derive(Debug, Default)]
struct Work {
    /// The number of times that there was news.
    news: u64,
    running: bool,
    /// The time before which no step is proposed.
    not_before: Millis,
}

/// A step of clearing that is to be proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The keyspace.
    pub place: Place,
    news: u64,
}

/// The keyspaces that have something to clear.
#[derive(Debug, Default)]
pub struct Clearing {
    work: BTreeMap<Place, Work>,
    /// The keyspace of the step that was taken last.
    last: Option<Place>,
}

impl Clearing {
    /// Takes in that a keyspace has something to clear.
    pub fn add(&mut self, place: Place) {
        self.work.entry(place).or_default().news += 1;
    }

    /// Takes in the effects of an operation. Returns true if they leave something to clear.
    pub fn note(&mut self, place: Place, effects: &[Effect]) -> bool {
        let leaves = |effect: &Effect| matches!(effect, Effect::Compacted { .. } | Effect::Deleted);
        let leaves = effects.iter().any(leaves);
        if leaves {
            self.add(place);
        }
        leaves
    }

    /// Forgets all keyspaces but those for which `keep` returns true.
    pub fn retain(&mut self, keep: impl Fn(Place) -> bool) {
        self.work.retain(|place, _| keep(*place));
    }

    /// Returns the number of keyspaces that have something to clear.
    pub fn len(&self) -> usize {
        self.work.len()
    }

    /// Returns true if there is nothing to clear.
    pub fn is_empty(&self) -> bool {
        self.work.is_empty()
    }

    /// Takes steps to propose now, at most `max`, of one keyspace after the other. Each must be done or failed.
    pub fn take(&mut self, now: Millis, max: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        while steps.len() < max
            && let Some(place) = self.next_due(now)
            && let Some(work) = self.work.get_mut(&place)
        {
            work.running = true;
            self.last = Some(place);
            let news = work.news;
            steps.push(Step { place, news });
        }
        steps
    }

    /// Returns the keyspace whose step is next, which is the first one after that of the last step.
    fn next_due(&self, now: Millis) -> Option<Place> {
        let after = self.last.map_or(Unbounded, Excluded);
        let mut round = self
            .work
            .range((after, Unbounded))
            .chain(&self.work)
            .filter(|(_, work)| !work.running && work.not_before <= now);
        round.next().map(|(place, _)| *place)
    }

    /// Takes in that a step was carried out. `more` says that it has left something.
    pub fn done(&mut self, step: Step, more: bool) {
        let Some(work) = self.work.get_mut(&step.place) else {
            return;
        };
        work.running = false;
        if !more && work.news == step.news {
            self.work.remove(&step.place);
        }
    }

    /// Takes in that a step was not carried out, or that its outcome is unknown.
    pub fn failed(&mut self, step: Step, now: Millis) {
        if let Some(work) = self.work.get_mut(&step.place) {
            work.running = false;
            work.not_before = now.saturating_add(RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use keyspace::KeyspaceId;
    use types::ShardId;

    use super::*;

    fn place(id: u64) -> Place {
        Place {
            shard: ShardId(1),
            id: KeyspaceId(id),
        }
    }

    #[test]
    fn a_keyspace_is_cleared_one_step_after_the_other_until_nothing_is_left() {
        let mut clearing = Clearing::default();
        clearing.note(place(1), &[Effect::Created]);
        assert!(clearing.is_empty());
        clearing.note(place(1), &[Effect::Compacted { compacted: 5 }]);
        clearing.note(place(2), &[Effect::Deleted]);
        assert_eq!(clearing.take(0, 1).len(), 1);
        let second = clearing.take(0, 9);
        assert_eq!(second.len(), 1, "the first is on its way");
        assert_eq!(second[0].place, place(2));
        clearing.done(second[0], true);
        let second = clearing.take(0, 9)[0];
        clearing.done(second, false);
        assert_eq!(clearing.len(), 1);
    }

    #[test]
    fn keyspaces_take_turns_although_all_stay_due() {
        let mut clearing = Clearing::default();
        for id in 1..=5 {
            clearing.add(place(id));
        }
        let mut turns = Vec::new();
        for _ in 0..5 {
            for step in clearing.take(0, 2) {
                turns.push(step.place.id.0);
                clearing.done(step, true);
            }
        }
        assert_eq!(turns, [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
        // The one whose turn was last is gone.
        clearing.retain(|place| place.id.0 < 5);
        assert_eq!(clearing.take(0, 1)[0].place, place(1));
    }

    #[test]
    fn a_compaction_during_the_last_step_is_cleared_too() {
        let mut clearing = Clearing::default();
        clearing.add(place(1));
        let step = clearing.take(0, 9)[0];
        clearing.note(place(1), &[Effect::Compacted { compacted: 9 }]);
        clearing.done(step, false);
        let step = clearing.take(0, 9)[0];
        clearing.done(step, false);
        assert!(clearing.is_empty());
    }

    #[test]
    fn a_step_that_failed_is_tried_again_after_a_pause() {
        let mut clearing = Clearing::default();
        clearing.add(place(1));
        let step = clearing.take(0, 9)[0];
        clearing.failed(step, 10);
        assert_eq!(clearing.take(1_009, 9), []);
        assert_eq!(clearing.take(1_010, 9).len(), 1);
        clearing.retain(|_| false);
        clearing.done(step, true);
        assert!(clearing.is_empty());
    }
}
