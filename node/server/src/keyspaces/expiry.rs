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
/// The most expiries that are being proposed at the same time, as in etcd. All of them may be applied in one round, and one may
/// delete ten thousand keys.
const MAX_EXPIRING: usize = 16;

impl LeaderTasks {
    /// Revokes leases that have expired.
    pub(crate) async fn expire(self: Arc<Self>) {
        let room = Arc::new(Semaphore::new(MAX_EXPIRING));
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            set(&self.metrics.watches.leases, self.lessor.len() as u64);
            while let Ok(permit) = Arc::clone(&room).acquire_owned().await
                && let Some(expiry) = self.lessor.take_expired(1).pop()
            {
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
        match self.keyspaces.write_as_leader(place, write).await {
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
