//! Automatic compaction: which revision of a keyspace is to be compacted, by its options and its age.
//!
//! The caller looks at each keyspace now and then. For a retention of time, what it sees is sampled: a revision that was the newest a
//! retention ago can go. A new leader has no samples, so it keeps revisions longer, never shorter.

use std::collections::{BTreeMap, VecDeque};

use keyspace::{AutoCompaction, Place};

/// Milliseconds of the caller's clock.
type Millis = u64;

/// The samples of a retention. With one more, the oldest is always old enough.
const SAMPLES: u64 = 10;

/// The revisions that keyspaces had at earlier times.
#[derive(Debug, Default)]
pub struct Compacting {
    samples: BTreeMap<Place, VecDeque<(Millis, i64)>>,
}

impl Compacting {
    /// Looks at a keyspace. Returns the revision that is to be compacted, if there is one.
    pub fn look(
        &mut self,
        place: Place,
        option: AutoCompaction,
        (revision, compacted): (i64, i64),
        now: Millis,
    ) -> Option<i64> {
        let target = match option {
            AutoCompaction::None => {
                self.samples.remove(&place);
                None
            }
            AutoCompaction::Revisions { retained } => {
                self.samples.remove(&place);
                let retained = i64::try_from(retained).unwrap_or(i64::MAX);
                let target = revision.saturating_sub(retained);
                // A tenth more is kept at times, so that not each look makes an entry in the log.
                let more = target.saturating_sub(compacted.max(0));
                (more >= retained / 10).then_some(target)
            }
            AutoCompaction::Periodic { retention_secs } => {
                let retention = retention_secs.saturating_mul(1_000);
                self.sample(place, revision, retention, now)
            }
        };
        target.filter(|target| *target > compacted.max(0))
    }

    /// Forgets the samples of keyspaces but those for which `keep` returns true.
    pub fn retain(&mut self, keep: impl Fn(Place) -> bool) {
        self.samples.retain(|place, _| keep(*place));
    }

    /// Notes the newest revision. Returns the one that was the newest a retention ago.
    fn sample(
        &mut self,
        place: Place,
        revision: i64,
        retention: Millis,
        now: Millis,
    ) -> Option<i64> {
        let samples = self.samples.entry(place).or_default();
        let old = |sample: &(Millis, i64)| now.saturating_sub(sample.0) >= retention;
        let mut found = None;
        while let Some(sample) = samples.front().copied().filter(old) {
            found = Some(sample.1);
            samples.pop_front();
        }
        let due = samples
            .back()
            .is_none_or(|(at, _)| now.saturating_sub(*at) >= retention / SAMPLES);
        if due {
            samples.push_back((now, revision));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use keyspace::KeyspaceId;
    use types::ShardId;

    use super::*;

    const PLACE: Place = Place {
        shard: ShardId(1),
        id: KeyspaceId(1),
    };

    #[test]
    fn a_number_of_revisions_is_kept() {
        let mut compacting = Compacting::default();
        let mut look = |retained, revision, compacted| {
            let option = AutoCompaction::Revisions { retained };
            compacting.look(PLACE, option, (revision, compacted), 0)
        };
        assert_eq!(look(100, 109, -1), None, "less than a tenth is saved");
        assert_eq!(look(100, 110, -1), Some(10));
        assert_eq!(look(10, 10, -1), None);
        assert_eq!(look(10, 11, -1), Some(1));
        assert_eq!(look(10, 15, 5), None);
        assert_eq!(look(10, 16, 5), Some(6));
        assert_eq!(look(u64::MAX, i64::MAX, -1), None);
    }

    #[test]
    fn revisions_are_kept_for_a_time() {
        let mut compacting = Compacting::default();
        let option = AutoCompaction::Periodic { retention_secs: 60 };
        let mut compacted = -1;
        for minute in 0..200_u64 {
            // One revision a second, looked at every five seconds.
            let now = minute * 5_000;
            let revision = i64::try_from(minute * 5).unwrap();
            let target = compacting.look(PLACE, option, (revision, compacted), now);
            if let Some(target) = target {
                assert!(revision - target >= 60, "{target} is too young");
                assert!(revision - target <= 75, "{target} is too old");
                compacted = target;
            }
        }
        assert!(compacted > 900);
        assert!(compacting.samples[&PLACE].len() <= 12);
        compacting.look(PLACE, AutoCompaction::None, (1_000, compacted), 1_000_000);
        assert!(compacting.samples.is_empty());
    }

    #[test]
    fn a_new_leader_keeps_revisions_for_the_whole_time_again() {
        let mut compacting = Compacting::default();
        let option = AutoCompaction::Periodic { retention_secs: 60 };
        let mut look = |now| compacting.look(PLACE, option, (500, -1), now);
        assert_eq!(look(1_000_000), None);
        assert_eq!(look(1_059_999), None);
        assert_eq!(look(1_060_000), Some(500));
    }
}
