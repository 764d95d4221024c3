//! The task of a leader that compacts keyspaces by their options.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use changes::Compacting;
use keyspace::Write;
use tokio::time::{MissedTickBehavior, interval};

use super::leader_tasks::{LeaderTasks, SHARDS_OF_A_READ, served};
use crate::metrics::usage::Stored;

/// The interval at which keyspaces are looked at. A shorter retention has no effect.
const LOOK_EVERY: Duration = Duration::from_secs(20);

impl LeaderTasks {
    /// Compacts keyspaces by their options.
    pub(crate) async fn compact(self: Arc<Self>) {
        let mut compacting = Compacting::default();
        let mut of = None;
        let started = Instant::now();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let term = *self.lessor.watch_term().borrow();
            if of != term {
                (of, compacting) = (term, Compacting::default());
            }
            if term.is_some() {
                let now = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.compact_due(&mut compacting, now).await;
            } else {
                self.metrics.usage.publish_stored(&[]);
            }
        }
    }

    /// Looks at all keyspaces once.
    async fn compact_due(&self, compacting: &mut Compacting, now: u64) {
        let shards: Vec<_> = served(&self.routing.ownership()).collect();
        let (mut seen, mut stored, mut complete) = (BTreeSet::new(), Vec::new(), true);
        for shards in shards.chunks(SHARDS_OF_A_READ) {
            let Ok(listed) = self.list_shards(shards).await else {
                complete = false;
                continue;
            };
            for listed in listed.into_iter().filter(|listed| !listed.deleted) {
                let place = listed.place;
                seen.insert(place);
                let (bytes, revision) = (listed.bytes, listed.revision);
                stored.push((listed.name, Stored { bytes, revision }));
                let revisions = (listed.revision, listed.compacted);
                let target = compacting.look(place, listed.auto_compaction, revisions, now);
                if let Some(revision) = target {
                    let write = Write::Compact { revision };
                    if let Err(failure) = self.keyspaces.write_as_leader(place, write).await {
                        tracing::debug!(shard = %place.shard, "a keyspace was not compacted: {failure:?}");
                    }
                }
            }
        }
        self.metrics.usage.publish_stored(&stored);
        if complete {
            compacting.retain(|place| seen.contains(&place));
        }
    }
}
