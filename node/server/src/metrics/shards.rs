//! Figures of each shard of the group, looked up now and then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::v1::ShardStatus;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use shardkv::{GroupKind, Ownership, ShardState};
use tokio::time::{sleep, timeout};
use types::ShardId;

use super::{Kind, set};
use crate::hub::Hub;
use crate::services::shards::{describe, estimate};

/// Shards with figures of their own. Beyond it those that are on the move come first.
const MAX_SHARDS: usize = 1_024;
/// How often figures are looked up when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long they may lag behind what happens.
const LAG: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    shard: u32,
}

/// Figures of each shard.
#[derive(Debug, Default)]
pub(crate) struct ShardMetrics {
    state: Family<Label, Gauge>,
    config: Family<Label, Gauge>,
    bytes: Family<Label, Gauge>,
    age: Family<Label, Gauge>,
    count: Family<Kind, Gauge>,
}

impl ShardMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "shard_state",
            "How a shard stands: 1 serving, 2 pulling, 3 fenced, 4 gone and owed to its source",
            self.state.clone(),
        );
        registry.register(
            "shard_config",
            "The configuration of a shard's latest step",
            self.config.clone(),
        );
        registry.register(
            "shard_bytes",
            "About how many bytes a shard has",
            self.bytes.clone(),
        );
        registry.register(
            "shard_handoff_age_ms",
            "How long a shard's hand-off takes already; 0 without one",
            self.age.clone(),
        );
        registry.register(
            "shards",
            "Shards that the group has to do with, by how they stand",
            self.count.clone(),
        );
    }

    fn set(&self, status: &ShardStatus) {
        let label = Label {
            shard: status.shard,
        };
        let figures = [
            (&self.state, i64::from(status.state)),
            (&self.config, whole(status.config_num)),
            (&self.bytes, whole(status.bytes)),
            (&self.age, whole(status.handoff_age_ms)),
        ];
        for (family, value) in figures {
            family.get_or_create(&label).set(value);
        }
    }

    fn remove(&self, shard: ShardId) {
        let label = Label { shard: shard.0 };
        for family in [&self.state, &self.config, &self.bytes, &self.age] {
            family.remove(&label);
        }
    }

    fn count(&self, of: &Overview) {
        for (kind, count) in [
            ("serving", of.serving),
            ("pulling", of.pulling),
            ("fenced", of.fenced),
            ("owed", of.owed),
        ] {
            set(&self.count.get_or_create(&Kind { kind }), count);
        }
    }
}

/// What is shown of an ownership.
#[derive(Debug, Default, PartialEq, Eq)]
struct Overview {
    serving: u64,
    pulling: u64,
    fenced: u64,
    owed: u64,
    /// Shards with figures of their own.
    shown: BTreeSet<ShardId>,
}

impl Overview {
    /// One pass, because there may be very many shards.
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
                ShardState::Pulling { .. } => it.pulling += 1,
                ShardState::Fenced { .. } => it.fenced += 1,
            }
            it.show(*shard);
        }
        for (shard, _) in ownership.owed.keys() {
            if !ownership.shards.contains_key(shard) {
                it.owed += 1;
                it.show(*shard);
            }
        }
        for shard in still {
            it.show(shard);
        }
        it
    }

    fn show(&mut self, shard: ShardId) {
        if self.shown.len() < MAX_SHARDS {
            self.shown.insert(shard);
        }
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Keeps the figures true, for as long as it is polled.
pub(crate) async fn watch_shards(hub: Arc<Hub>) {
    let mut news = hub.watch_ownership();
    let mut overview = Overview::default();
    loop {
        if news.has_changed().unwrap_or(false) || overview == Overview::default() {
            let ownership = Arc::clone(&news.borrow_and_update());
            let before = std::mem::replace(&mut overview, Overview::of(&ownership));
            for gone in before.shown.difference(&overview.shown) {
                hub.metrics.shards.remove(*gone);
            }
            tell_of_group(&hub, &ownership, &overview);
        }
        show(&hub, &overview.shown).await;
        match timeout(LOOK_EVERY, news.changed()).await {
            Ok(Err(_)) => return,
            Ok(Ok(())) => {
                news.mark_changed();
                sleep(LAG).await;
            }
            Err(_) => {}
        }
    }
}

fn tell_of_group(hub: &Hub, ownership: &Ownership, overview: &Overview) {
    hub.metrics.shards.count(overview);
    if hub.kind() == GroupKind::Shards {
        set(&hub.metrics.handoff.config_num, ownership.config.0);
        set(&hub.metrics.handoff.settled, ownership.settled().0);
    }
}

async fn show(hub: &Hub, shown: &BTreeSet<ShardId>) {
    let ownership = hub.ownership();
    let here = shown.iter().filter(|it| ownership.shards.contains_key(it));
    // Without an answer there are none until the next look.
    let sizes = estimate(hub, here.copied()).await.unwrap_or_default();
    for shard in shown {
        hub.metrics.shards.set(&ShardStatus {
            bytes: sizes.get(shard).copied().unwrap_or(0),
            ..describe(&ownership, *shard)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use shardkv::Shard;
    use types::{ConfigNum, Gid, LogTime};

    use super::*;

    #[test]
    fn shards_on_the_move_are_shown_before_others() {
        let config = ConfigNum(1);
        let shard = |state| {
            Arc::new(Shard {
                state,
                queue: VecDeque::new(),
                since: LogTime(0),
                clock: LogTime(0),
            })
        };
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
        ownership.owed.insert((ShardId(6_000), config), Gid(2));
        let overview = Overview::of(&ownership);
        let counts = (overview.serving, overview.fenced, overview.owed);
        assert_eq!(counts, (5_000, 1, 1));
        assert_eq!(overview.shown.len(), MAX_SHARDS);
        assert!(overview.shown.contains(&last) && overview.shown.contains(&ShardId(6_000)));
    }
}
