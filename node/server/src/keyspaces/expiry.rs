//! The task of a leader that revokes leases which have expired.

use std::sync::Arc;
use std::time::Duration;

use changes::Expiry;
use keyspace::{Refusal, Write};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval};

use super::leader_tasks::LeaderTasks;
use crate::metrics::set;
use crate::services::etcd::status::Failure;

/// The interval at which expired leases are looked for. A lease lives two seconds at least.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The most expiries that are being proposed at the same time.
const MAX_EXPIRING: usize = 256;

impl LeaderTasks {
    /// Revokes leases that have expired.
    pub(crate) async fn expire(self: Arc<Self>) {
        let room = Arc::new(Semaphore::new(MAX_EXPIRING));
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            set(&self.metrics.watches.leases, self.lessor.len() as u64);
            for expiry in self.lessor.take_expired(room.available_permits()) {
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    self.lessor.decided(&expiry, false);
                    continue;
                };
                let tasks = Arc::clone(&self);
                tokio::spawn(async move {
                    let gone = tasks.revoke(&expiry).await;
                    tasks.lessor.decided(&expiry, gone);
                    drop(permit);
                });
            }
        }
    }

    /// Proposes an expiry. Returns true if the lease is gone.
    async fn revoke(&self, expiry: &Expiry) -> bool {
        let &Expiry {
            place,
            id,
            grant,
            term,
            config,
        } = expiry;
        let write = Write::Expire {
            id,
            grant,
            term,
            config,
        };
        match self.keyspaces.write_in(place, write).await {
            Ok(_) => {
                self.metrics.watches.expired_leases.inc();
                true
            }
            Err(Failure::Refused(Refusal::LeaseNotFound | Refusal::KeyspaceNotFound)) => true,
            Err(failure) => {
                tracing::debug!(%id, "the expiry of a lease was not carried out: {failure:?}");
                false
            }
        }
    }
}
