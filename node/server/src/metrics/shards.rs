//! The gauges of single shards.

use api::v1::ShardStatus;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use types::ShardId;

use super::figures::{Kind, set};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    shard: u32,
}

/// Gauges of each shard.
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
            "The state of a shard: 1 serving, 2 pulling, 3 fenced, 4 gone and owed to its source, 5 copied here while its owner serves it",
            self.state.clone(),
        );
        registry.register(
            "shard_config",
            "The configuration of a shard's latest step",
            self.config.clone(),
        );
        registry.register(
            "shard_bytes",
            "Approximate bytes of a shard",
            self.bytes.clone(),
        );
        registry.register(
            "shard_handoff_age_ms",
            "Time since a shard's hand-off began; 0 without one",
            self.age.clone(),
        );
        registry.register(
            "shards",
            "Shards of the group, by state",
            self.count.clone(),
        );
    }

    pub(super) fn set(&self, status: &ShardStatus) {
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

    pub(super) fn remove(&self, shard: ShardId) {
        let label = Label { shard: shard.0 };
        for family in [&self.state, &self.config, &self.bytes, &self.age] {
            family.remove(&label);
        }
    }

    /// Sets the number of shards by state.
    pub(super) fn count(&self, counts: [(&'static str, u64); 5]) {
        for (kind, count) in counts {
            set(&self.count.get_or_create(&Kind { kind }), count);
        }
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
