//! Figures of each shard of the group, looked up now and then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::v1::{ShardState, ShardStatus};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use shardkv::{GroupKind, Ownership};
use tokio::time::{sleep, timeout};
use types::ShardId;

use super::{Kind, set};
use crate::hub::Hub;
use crate::services::shards::{concerned, describe, estimate};

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

    fn count(&self, ownership: &Ownership, all: &BTreeSet<ShardId>) {
        let states = [
            (ShardState::Serving, "serving"),
            (ShardState::Pulling, "pulling"),
            (ShardState::Fenced, "fenced"),
            (ShardState::Owed, "owed"),
        ];
        for (state, kind) in states {
            let these = all
                .iter()
                .filter(|it| describe(ownership, **it).state() == state);
            set(
                &self.count.get_or_create(&Kind { kind }),
                these.count() as u64,
            );
        }
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Keeps the figures true, for as long as it is polled.
pub(crate) async fn watch_shards(hub: Arc<Hub>) {
    let mut news = hub.watch_ownership();
    let mut shown = BTreeSet::new();
    loop {
        let ownership = Arc::clone(&news.borrow_and_update());
        shown = show(&hub, &ownership, &shown).await;
        if matches!(timeout(LOOK_EVERY, news.changed()).await, Ok(Err(_))) {
            return;
        }
        sleep(LAG).await;
    }
}

async fn show(hub: &Hub, ownership: &Ownership, before: &BTreeSet<ShardId>) -> BTreeSet<ShardId> {
    let metrics = &hub.metrics.shards;
    let all = concerned(ownership);
    metrics.count(ownership, &all);
    if hub.kind() == GroupKind::Shards {
        set(&hub.metrics.handoff.config_num, ownership.config.0);
        set(&hub.metrics.handoff.settled, ownership.settled().0);
    }
    let moves = |it: &&ShardId| describe(ownership, **it).state() != ShardState::Serving;
    let (moving, still): (Vec<&ShardId>, Vec<&ShardId>) = all.iter().partition(moves);
    let shown: BTreeSet<ShardId> = moving
        .into_iter()
        .chain(still)
        .take(MAX_SHARDS)
        .copied()
        .collect();
    for gone in before.difference(&shown) {
        metrics.remove(*gone);
    }
    let here = shown.iter().filter(|it| ownership.shards.contains_key(it));
    // Without an answer there are none until the next look.
    let sizes = estimate(hub, here.copied()).await.unwrap_or_default();
    for shard in &shown {
        metrics.set(&ShardStatus {
            bytes: sizes.get(shard).copied().unwrap_or(0),
            ..describe(ownership, *shard)
        });
    }
    shown
}
