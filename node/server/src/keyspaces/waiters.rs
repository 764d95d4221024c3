//! Requests that wait for a change of a lease, found by the lease: a change wakes only those.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keyspace::{LeaseId, Place};
use tokio::sync::watch;

/// The leases that requests wait for.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<Waited>);

type Waited = BTreeMap<(Place, LeaseId), watch::Sender<()>>;

/// A request that waits for a lease.
#[derive(Debug)]
pub(crate) struct Waiting {
    waiters: Arc<Waiters>,
    of: (Place, LeaseId),
    changed: watch::Receiver<()>,
}

impl Waiters {
    /// Begins to wait for a lease. Look at the lease after that.
    pub(crate) fn wait(self: &Arc<Self>, place: Place, id: LeaseId) -> Waiting {
        let of = (place, id);
        let mut waited = self.lock();
        let sender = waited.entry(of).or_insert_with(|| watch::Sender::new(()));
        Waiting {
            waiters: Arc::clone(self),
            of,
            changed: sender.subscribe(),
        }
    }

    /// Wakes the requests that wait for a lease.
    pub(crate) fn lease_changed(&self, place: Place, id: LeaseId) {
        if let Some(sender) = self.lock().get(&(place, id)) {
            sender.send_replace(());
        }
    }

    /// Wakes the requests that wait for a lease of a keyspace.
    pub(crate) fn keyspace_changed(&self, place: Place) {
        let all = (place, LeaseId(i64::MIN))..=(place, LeaseId(i64::MAX));
        for sender in self.lock().range(all).map(|(_, sender)| sender) {
            sender.send_replace(());
        }
    }

    /// Wakes all requests.
    pub(crate) fn all_changed(&self) {
        for sender in self.lock().values() {
            sender.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waited> {
        // Each change is one call, so a poisoned lock is as good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Returns true if this waits for the lease.
    pub(crate) fn is_for(&self, place: Place, id: LeaseId) -> bool {
        self.of == (place, id)
    }

    /// Resolves when the lease may have changed since the last call.
    pub(crate) async fn changed(&mut self) {
        // The sender lives while somebody waits.
        let _ = self.changed.changed().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waited = self.waiters.lock();
        // The receiver of this one still counts.
        if waited
            .get(&self.of)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            waited.remove(&self.of);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use keyspace::KeyspaceId;
    use types::ShardId;

    use super::*;

    fn place(id: u64) -> Place {
        Place {
            shard: ShardId(1),
            id: KeyspaceId(id),
        }
    }

    #[tokio::test]
    async fn a_change_wakes_only_those_that_wait_for_its_lease() {
        let waiters = Arc::new(Waiters::default());
        let leases = [(1, -5), (1, 6), (2, 6)];
        let mut waiting = leases.map(|(at, id)| waiters.wait(place(at), LeaseId(id)));
        let mut woken = || {
            let woken = waiting.iter_mut().enumerate();
            let woken = woken.filter_map(|(at, it)| it.changed().now_or_never().map(|()| at));
            woken.collect::<Vec<_>>()
        };
        waiters.lease_changed(place(1), LeaseId(6));
        waiters.lease_changed(place(2), LeaseId(7));
        assert_eq!(woken(), [1]);
        waiters.keyspace_changed(place(1));
        assert_eq!(woken(), [0, 1]);
        waiters.all_changed();
        assert_eq!(woken(), [0, 1, 2]);
        assert!(woken().is_empty());
    }

    #[tokio::test]
    async fn nothing_is_kept_for_those_that_are_gone() {
        let waiters = Arc::new(Waiters::default());
        let first = waiters.wait(place(1), LeaseId(5));
        let mut second = waiters.wait(place(1), LeaseId(5));
        drop(first);
        waiters.lease_changed(place(1), LeaseId(5));
        assert!(second.changed().now_or_never().is_some());
        drop(second);
        assert!(waiters.lock().is_empty());
    }
}
