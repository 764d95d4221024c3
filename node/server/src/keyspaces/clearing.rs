//! The task of a leader that clears what compaction and deletion of keyspaces have left.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use changes::{Clearing, ClearingStep};
use keyspace::{Answer, Place, Refusal, Write};
use raft::Term;
use shardkv::{KeyspaceChange, KeyspaceChanges, Ownership};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

use super::leader_tasks::LeaderTasks;
use crate::metrics::set;
use crate::services::etcd::status::Failure;

/// The most keyspaces that are cleared at the same time, so that clearing leaves room in the log for clients.
const MAX_CLEARING: usize = 2;
/// The interval at which steps that failed are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Knows the keyspaces that have something to clear, while this node leads.
pub(crate) struct Clearer {
    state: Mutex<(Option<Term>, Clearing)>,
    started: Instant,
    news: Notify,
}

impl Clearer {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            started: Instant::now(),
            news: Notify::new(),
        }
    }

    /// Takes in the changes of a round, with the ownership after it. `term` is that of this node if it leads.
    pub(crate) fn note(
        &self,
        changes: &KeyspaceChanges,
        ownership: &Ownership,
        term: Option<Term>,
    ) {
        let mut state = self.lock();
        if state.0 != term {
            *state = (term, Clearing::default());
        }
        if term.is_none() {
            return;
        }
        let served =
            |change: &&KeyspaceChange| ownership.served_since(change.place.shard).is_some();
        for change in changes.changes.iter().filter(served) {
            if state.1.note(change.place, &change.effects) {
                self.news.notify_one();
            }
        }
    }

    /// Forgets the keyspaces of shards that the group doesn't serve any more.
    pub(crate) fn keep_served(&self, ownership: &Ownership) {
        let mut state = self.lock();
        state
            .1
            .retain(|place| ownership.served_since(place.shard).is_some());
    }

    /// Adds a keyspace that was found in the state in this term.
    pub(crate) fn add(&self, term: Term, place: Place) {
        let mut state = self.lock();
        if state.0 == Some(term) {
            state.1.add(place);
            self.news.notify_one();
        }
    }

    /// Returns the number of keyspaces that have something to clear.
    pub(crate) fn len(&self) -> usize {
        self.lock().1.len()
    }

    fn take(&self, max: usize) -> Vec<ClearingStep> {
        let now = self.now();
        self.lock().1.take(now, max)
    }

    /// Takes in the outcome of a step: whether it has left something, or `None` if it was not carried out.
    fn decided(&self, step: ClearingStep, more: Option<bool>) {
        let now = self.now();
        let mut state = self.lock();
        match more {
            Some(more) => state.1.done(step, more),
            None => state.1.failed(step, now),
        }
        self.news.notify_one();
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, (Option<Term>, Clearing)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaderTasks {
    /// Clears what compaction and deletion have left.
    pub(crate) async fn clear(self: Arc<Self>) {
        let room = Arc::new(Semaphore::new(MAX_CLEARING));
        loop {
            set(&self.metrics.watches.clearing, self.clearer.len() as u64);
            for step in self.clearer.take(room.available_permits()) {
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    self.clearer.decided(step, None);
                    continue;
                };
                let tasks = Arc::clone(&self);
                tokio::spawn(async move {
                    let more = tasks.clear_step(step.place).await;
                    drop(permit);
                    tasks.clearer.decided(step, more);
                });
            }
            // A step that failed is due after a while.
            let _ = timeout(LOOK_EVERY, self.clearer.news.notified()).await;
        }
    }

    /// Proposes a step. Returns whether it has left something; `None` if it was not carried out.
    async fn clear_step(&self, place: Place) -> Option<bool> {
        match self.keyspaces.write_as_leader(place, Write::Clear).await {
            Ok(Answer::Cleared { more }) => Some(more),
            Err(Failure::Refused(Refusal::KeyspaceNotFound)) => Some(false),
            outcome => {
                tracing::debug!(shard = %place.shard, "a step of clearing failed: {outcome:?}");
                None
            }
        }
    }
}
