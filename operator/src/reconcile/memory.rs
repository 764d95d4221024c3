//! What is remembered between rounds: times, so that one can say that nothing moves, and how often a cluster's rounds failed.
//! Nothing that is done depends on it; an operator that has just started knows nothing and decides alike.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::movement::Movement;
use super::objects::Kind;

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// The memory of all clusters. Each is forgotten when its resource is gone.
#[derive(Debug, Default)]
pub struct Memory {
    clusters: Mutex<HashMap<(String, String), Recollection>>,
}

/// What is remembered of one cluster.
#[derive(Debug, Default)]
pub(super) struct Recollection {
    /// How many rounds have failed since one didn't.
    failures: u32,
    /// What shards did.
    pub(super) movement: Movement,
    /// What was applied without changing anything: the hash, and the version of the object.
    fruitless: BTreeMap<(Kind, String), (String, String)>,
}

impl Recollection {
    /// Whether this was applied to this very object, and changed nothing.
    pub(super) fn is_fruitless(&self, key: &(Kind, String), tried: &(String, String)) -> bool {
        self.fruitless.get(key) == Some(tried)
    }

    /// Something was applied: if it changed nothing, what it was.
    pub(super) fn set_fruitless(&mut self, key: (Kind, String), tried: Option<(String, String)>) {
        match tried {
            Some(tried) => self.fruitless.insert(key, tried),
            None => self.fruitless.remove(&key),
        };
    }
}

impl Memory {
    /// A round for a cluster failed: how long to wait for the next.
    pub(super) fn failed(&self, namespace: &str, name: &str) -> Duration {
        self.of(namespace, name, |it| {
            let pause = FIRST_PAUSE.saturating_mul(1 << it.failures.min(16));
            it.failures = it.failures.saturating_add(1);
            pause.min(LONGEST_PAUSE)
        })
    }

    /// A round went well.
    pub(super) fn succeeded(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(it) = self.lock().get_mut(&key) {
            it.failures = 0;
        }
    }

    /// A cluster is gone.
    pub(super) fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// Looks at, and changes, what is remembered of a cluster.
    pub(super) fn of<T>(
        &self,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Recollection) -> T,
    ) -> T {
        let mut clusters = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        change(clusters.entry(key).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Recollection>> {
        // What is in there is whole after every change, also after one that panicked.
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
