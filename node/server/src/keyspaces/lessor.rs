//! The timers of leases on this node, with its clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use changes::{Expiry, Remaining, Renewal, Timers};
use keyspace::{Effect, Lease, LeaseId, Place};
use raft::Term;
use shardkv::{KeyspaceChanges, Ownership};
use tokio::sync::watch;
use types::ConfigNum;

use super::waiters::{Waiters, Waiting};

/// Holds the timers. They run while this node leads its group.
pub(crate) struct Lessor {
    owned: watch::Receiver<Arc<Ownership>>,
    timers: Mutex<Timers>,
    started: Instant,
    /// The requests that wait until a lease was revoked or loaded, or until this node begins or ceases to lead.
    waiters: Arc<Waiters>,
    /// The term in which this node leads.
    term: watch::Sender<Option<Term>>,
}

impl Lessor {
    /// Creates the timers of a node that doesn't lead. `grace` is the time by which a new leader extends each lease.
    pub(crate) fn new(owned: watch::Receiver<Arc<Ownership>>, grace: Duration) -> Self {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        Self {
            owned,
            timers: Mutex::new(Timers::new(grace)),
            started: Instant::now(),
            waiters: Arc::default(),
            term: watch::Sender::new(None),
        }
    }

    /// Takes in the changes of a round. `term` is that of this node if it leads.
    pub(crate) fn note(
        &self,
        changes: &KeyspaceChanges,
        ownership: &Ownership,
        term: Option<Term>,
    ) {
        let led = *self.term.borrow();
        if led == term && (term.is_none() || changes.changes.is_empty()) {
            return;
        }
        let now = self.now();
        let mut timers = self.lock();
        timers.lead(term);
        for change in &changes.changes {
            let place = change.place;
            if let Some(config) = ownership.served_since(place.shard) {
                timers.note(place, config, &change.effects, now);
            }
        }
        drop(timers);
        if led != term {
            self.term.send_replace(term);
            self.waiters.all_changed();
            return;
        }
        for change in &changes.changes {
            for effect in &change.effects {
                match effect {
                    Effect::Revoked { id } => self.waiters.lease_changed(change.place, *id),
                    Effect::Created | Effect::Deleted => {
                        self.waiters.keyspace_changed(change.place);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Ends the timers of shards that the group doesn't serve any more, or serves since another configuration.
    pub(crate) fn keep_served(&self, ownership: &Ownership) {
        self.lock()
            .keep_served(|shard| ownership.served_since(shard));
        self.waiters.all_changed();
    }

    /// Subscribes to the term in which this node leads.
    pub(crate) fn watch_term(&self) -> watch::Receiver<Option<Term>> {
        self.term.subscribe()
    }

    /// Begins to wait for a change of a lease after which a request that had to wait may be tried again.
    pub(crate) fn wait(&self, place: Place, id: LeaseId) -> Waiting {
        self.waiters.wait(place, id)
    }

    /// Begins with a keyspace, if the group serves its shard since this configuration and this node leads in this term.
    pub(crate) fn begin(&self, term: Term, place: Place, config: ConfigNum) -> bool {
        let mut timers = self.lock();
        // Under the lock: the ownership is published before the timers that it ends are.
        let served = self.owned.borrow().served_since(place.shard);
        if served != Some(config) || timers.term() != Some(term) {
            return false;
        }
        timers.begin(place, config);
        true
    }

    /// Adds leases that were read from a state. `last` says that there are no more.
    pub(crate) fn load(&self, term: Term, place: Place, leases: &[Lease], last: bool) {
        let now = self.now();
        let mut timers = self.lock();
        if timers.term() != Some(term) {
            return;
        }
        timers.load(place, leases, now);
        if last {
            timers.loaded(place);
            drop(timers);
            self.waiters.keyspace_changed(place);
        }
    }

    /// Gives a lease its full term again. The caller has confirmed that this node led after the client's request.
    pub(crate) fn renew(&self, place: Place, id: LeaseId) -> Renewal {
        let now = self.now();
        let mut timers = self.lock();
        if self.owned.borrow().served_since(place.shard).is_none() {
            return Renewal::Elsewhere;
        }
        timers.renew(place, id, now)
    }

    /// Returns what is left of a lease, if its timer is here.
    pub(crate) fn remaining(&self, place: Place, id: LeaseId) -> Option<Remaining> {
        self.lock().remaining(place, id, self.now())
    }

    /// Takes leases that have expired, at most `max`.
    pub(crate) fn take_expired(&self, max: usize) -> Vec<Expiry> {
        self.lock().take_expired(self.now(), max)
    }

    /// Takes in the outcome of an expiry: whether the lease is gone.
    pub(crate) fn decided(&self, expiry: &Expiry, gone: bool) {
        let now = self.now();
        let mut timers = self.lock();
        if gone {
            timers.settled(expiry);
        } else {
            timers.failed(expiry, now);
        }
        drop(timers);
        self.waiters.lease_changed(expiry.place, expiry.id);
    }

    /// Returns the number of leases.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
