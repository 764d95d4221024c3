//! Memory between rounds: times of shard movements to detect a stall, counts of failed and held rounds, writes without effect, and the status
//! of a newer operator. No decision of the plan depends on it; an operator that has just started has an empty memory and decides alike.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::movement::Movement;
use super::wanted::{Key, Tried, is_newer};
use crate::crd::ShardKvClusterStatus;
use crate::store::View;

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Time for which the status of a newer operator that doesn't change is left alone. It doubles each time that a newer operator writes
/// the status again.
const PATIENCE: Duration = Duration::from_mins(10);

/// Memory of all clusters. A cluster's entry is dropped when its resource is deleted.
#[derive(Debug, Default)]
pub struct Memory {
    clusters: Mutex<HashMap<(String, String), Recollection>>,
}

/// Memory of one cluster.
#[derive(Debug, Default)]
struct Recollection {
    /// Number of consecutive failed rounds.
    failures: u32,
    /// Observed movement of shards.
    movement: Movement,
    /// Applied content that changed nothing.
    fruitless: BTreeMap<Key, Tried>,
    /// Number of consecutive rounds in which parts waited for others in a rollout.
    held: u32,
    /// The status of a newer operator, and since when it is the same.
    newer: Option<(ShardKvClusterStatus, Instant)>,
    /// Number of times that this operator has replaced such a status.
    replaced: u32,
}

impl Memory {
    /// Records a failed round and returns the pause before the next.
    pub(super) fn failed(&self, namespace: &str, name: &str) -> Duration {
        self.of(namespace, name, |it| {
            let pause = FIRST_PAUSE.saturating_mul(1 << it.failures.min(16));
            it.failures = it.failures.saturating_add(1);
            pause.min(LONGEST_PAUSE)
        })
    }

    /// Resets the failure count after a successful round.
    pub(super) fn succeeded(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(it) = self.lock().get_mut(&key) {
            it.failures = 0;
        }
    }

    /// Drops the memory of a deleted cluster.
    pub(super) fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Records the controllers' report and the bytes that have arrived at each group. Returns the groups that are waited for if shards are to move and nothing has moved
    /// for too long.
    pub(super) fn stalled(
        &self,
        namespace: &str,
        name: &str,
        (view, incoming): (&View, &BTreeMap<u64, u64>),
        now: Instant,
    ) -> Option<BTreeSet<u64>> {
        self.of(namespace, name, |it| {
            it.movement.observe(view, incoming, now)
        })
    }

    /// Returns the content that was applied to a version of an object and changed nothing.
    pub(super) fn fruitless(&self, namespace: &str, name: &str) -> BTreeMap<Key, Tried> {
        let key = (namespace.to_owned(), name.to_owned());
        let clusters = self.lock();
        let found = clusters.get(&key);
        found.map(|it| it.fruitless.clone()).unwrap_or_default()
    }

    /// Records an apply: `tried` if it changed nothing, `None` if it did.
    pub(super) fn set_fruitless(
        &self,
        namespace: &str,
        name: &str,
        object: Key,
        tried: Option<Tried>,
    ) {
        self.of(namespace, name, |it| match tried {
            Some(tried) => it.fruitless.insert(object, tried),
            None => it.fruitless.remove(&object),
        });
    }

    /// Counts the rounds in which parts wait for others. Returns the number of those before this one.
    pub(super) fn held(&self, namespace: &str, name: &str, is_held: bool) -> u32 {
        self.of(namespace, name, |it| {
            let before = it.held;
            it.held = if is_held { before.saturating_add(1) } else { 0 };
            before
        })
    }

    /// Returns true if a status is to be left as it is: a newer operator wrote it, and may still be there. One that runs beside this
    /// operator would write it again, and so both by turns. One that is gone leaves a status that nobody brings up to date.
    pub(super) fn leaves_status(
        &self,
        namespace: &str,
        name: &str,
        status: Option<&ShardKvClusterStatus>,
        now: Instant,
    ) -> bool {
        let of_newer =
            |it: &&ShardKvClusterStatus| it.operator_version.as_deref().is_some_and(is_newer);
        let Some(status) = status.filter(of_newer) else {
            return false;
        };
        self.of(namespace, name, |it| {
            let since = match &it.newer {
                Some((same, since)) if same == status => *since,
                _ => now,
            };
            let patience = PATIENCE.saturating_mul(1 << it.replaced.min(7));
            let leaves = now.duration_since(since) < patience;
            it.newer = leaves.then(|| (status.clone(), since));
            it.replaced = it.replaced.saturating_add(u32::from(!leaves));
            leaves
        })
    }

    /// Reads or changes the memory of a cluster.
    fn of<T>(&self, namespace: &str, name: &str, change: impl FnOnce(&mut Recollection) -> T) -> T {
        let mut clusters = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        change(clusters.entry(key).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Recollection>> {
        // The map is consistent after every change, even after a panic.
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_minute_and_are_forgotten_after_a_success() {
        let memory = Memory::default();
        let pauses: Vec<_> = (0..40)
            .map(|_| memory.failed("ns", "a").as_secs())
            .collect();
        assert_eq!(&pauses[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses[39], 60);
        assert_eq!(memory.failed("ns", "b").as_secs(), 1, "each for itself");
        memory.succeeded("ns", "a");
        assert_eq!(memory.failed("ns", "a").as_secs(), 1);
        memory.forget("ns", "a");
        memory.forget("ns", "b");
        memory.succeeded("ns", "b");
        assert!(memory.lock().is_empty());
    }
}
