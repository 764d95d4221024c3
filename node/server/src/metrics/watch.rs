//! The task that updates the gauges of single shards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::v1::ShardStatus;
use shardkv::{GroupKind, Ownership, ShardState};
use tokio::time::{sleep, timeout};
use types::ShardId;

use super::{Metrics, set};
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;
use crate::services::shards::{describe, estimate, log_time};

/// The maximum number of shards with gauges of their own. Shards that move come first.
const MAX_SHARDS: usize = 1_024;
/// The pause between two updates when nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The maximum delay of the gauges after a change.
const LAG: Duration = Duration::from_secs(1);

/// A summary of an ownership for the gauges.
#[derive(Debug, Default, PartialEq, Eq)]
struct Overview {
    serving: u64,
    copying: u64,
    pulling: u64,
    fenced: u64,
    pending_deletes: u64,
    /// Shards with gauges of their own.
    shown: BTreeSet<ShardId>,
}

impl Overview {
    /// Summarises in one pass, because there may be very many shards.
    fn of(ownership: &Ownership) -> Self {
        let mut it = Self::default();
        let mut still = Vec::new();
        for (shard, here) in &ownership.shards {
            match here.state {
                ShardState::Serving { .. } => {
                    it.serving += 1;
                    if still.len() < MAX_SHARDS {
                        still.push(*shard);
                    }
                    continue;
                }
                ShardState::Copying { .. } => it.copying += 1,
                ShardState::Pulling { .. } | ShardState::Completing { .. } => it.pulling += 1,
                ShardState::Fenced { .. } => it.fenced += 1,
            }
            it.show(*shard);
        }
        for (shard, _) in ownership.pending_deletes.keys() {
            if !ownership.shards.contains_key(shard) {
                it.pending_deletes += 1;
                it.show(*shard);
            }
        }
        for shard in still {
            it.show(shard);
        }
        it
    }

    fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("serving", self.serving),
            ("pulling", self.pulling),
            ("fenced", self.fenced),
            ("copying", self.copying),
            ("owed", self.pending_deletes),
        ]
    }

    fn show(&mut self, shard: ShardId) {
        if self.shown.len() < MAX_SHARDS {
            self.shown.insert(shard);
        }
    }
}

/// Updates the gauges of single shards.
pub(crate) struct ShardWatch {
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) metrics: Arc<Metrics>,
}

impl ShardWatch {
    /// Updates the gauges for as long as the future is polled.
    pub(crate) async fn run(self) {
        let mut changes = self.routing.watch_ownership();
        let mut overview = Overview::default();
        loop {
            if changes.has_changed().unwrap_or(false) || overview == Overview::default() {
                let ownership = Arc::clone(&changes.borrow_and_update());
                let before = std::mem::replace(&mut overview, Overview::of(&ownership));
                for removed in before.shown.difference(&overview.shown) {
                    self.metrics.shards.remove(*removed);
                }
                self.update_group(&ownership, &overview);
            }
            self.update_shards(&overview.shown).await;
            match timeout(LOOK_EVERY, changes.changed()).await {
                Ok(Err(_)) => return,
                Ok(Ok(())) => {
                    changes.mark_changed();
                    sleep(LAG).await;
                }
                Err(_) => {}
            }
        }
    }

    fn update_group(&self, ownership: &Ownership, overview: &Overview) {
        self.metrics.shards.count(overview.counts());
        if self.routing.kind() == GroupKind::Shards {
            set(&self.metrics.handoff.config_num, ownership.config.0);
            set(&self.metrics.handoff.settled, ownership.settled().0);
        }
    }

    async fn update_shards(&self, shown: &BTreeSet<ShardId>) {
        let ownership = self.routing.ownership();
        let here = shown.iter().filter(|it| ownership.shards.contains_key(it));
        // Without an answer the sizes are zero until the next update.
        let sizes = estimate(&self.replica, here.copied())
            .await
            .unwrap_or_default();
        let now = log_time(&self.replica);
        for shard in shown {
            self.metrics.shards.set(&ShardStatus {
                bytes: sizes.get(shard).copied().unwrap_or(0),
                ..describe(&ownership, *shard, now)
            });
        }
    }
}

#[cfg(test)]
mod tests {

    use shardkv::Shard;
    use types::{ConfigNum, Gid, LogTime};

    use super::*;

    #[test]
    fn shards_on_the_move_are_shown_before_others() {
        let config = ConfigNum(1);
        let shard = |state| Arc::new(Shard::new(state, LogTime(0)));
        let serving = shard(ShardState::Serving { config });
        let fenced = shard(ShardState::Fenced { config, to: Gid(2) });
        let last = ShardId(5_000);
        let mut ownership = Ownership::default();
        for number in 0..5_000 {
            ownership
                .shards
                .insert(ShardId(number), Arc::clone(&serving));
        }
        ownership.shards.insert(last, fenced);
        Arc::make_mut(&mut ownership.pending_deletes).insert((ShardId(6_000), config), Gid(2));
        let overview = Overview::of(&ownership);
        let counts = (overview.serving, overview.fenced, overview.pending_deletes);
        assert_eq!(counts, (5_000, 1, 1));
        assert_eq!(overview.shown.len(), MAX_SHARDS);
        assert!(overview.shown.contains(&last) && overview.shown.contains(&ShardId(6_000)));
    }
}
