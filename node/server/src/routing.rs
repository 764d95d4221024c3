//! The routing view of a node: the kind of its group, the configuration that it knows, and the shards that its group owns.

use std::sync::Arc;

use api::errors;
use api::v1::ErrorDetail;
use shardkv::{GroupKind, Ownership};
use tokio::sync::watch;
use types::{ConfigNum, Gid};

use crate::configs::Configs;
use crate::identity::Identity;
use crate::machine::Published;
use crate::metrics::{Metrics, set};

/// Knows which group owns which shard, as far as this node has heard.
pub(crate) struct Routing {
    kind: GroupKind,
    identity: Arc<Identity>,
    configs: Configs,
    ownership: watch::Sender<Arc<Ownership>>,
    metrics: Arc<Metrics>,
}

impl Routing {
    pub(crate) fn new(kind: GroupKind, identity: Arc<Identity>, metrics: Arc<Metrics>) -> Self {
        Self {
            kind,
            identity,
            configs: Configs::default(),
            ownership: watch::Sender::new(Arc::default()),
            metrics,
        }
    }

    /// Returns the kind of this node's group.
    pub(crate) fn kind(&self) -> GroupKind {
        self.kind
    }

    /// Returns the id of this node's group.
    pub(crate) fn gid(&self) -> Gid {
        self.identity.gid()
    }

    /// Returns the identity of this node.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the configurations that this node knows.
    pub(crate) fn configs(&self) -> &Configs {
        &self.configs
    }

    /// Returns the group's ownership of shards as of the last entry applied here.
    pub(crate) fn ownership(&self) -> Arc<Ownership> {
        Arc::clone(&self.ownership.borrow())
    }

    /// Subscribes to changes of the ownership.
    pub(crate) fn watch_ownership(&self) -> watch::Receiver<Arc<Ownership>> {
        self.ownership.subscribe()
    }

    /// Returns true if the node can route: it has a configuration, or needs none because its group isn't configured by
    /// controllers.
    pub(crate) fn is_configured(&self) -> bool {
        self.kind != GroupKind::Shards || self.configs.has(ConfigNum(0))
    }

    /// Takes over what the state machine published.
    pub(crate) fn update(&self, published: Published) {
        match published {
            Published::Ownership(ownership) => {
                self.ownership.send_replace(ownership);
            }
            // A configuration without shards is not one yet: a joining node waits for its first snapshot.
            Published::Config(config) if config.shards() == 0 => {}
            Published::Config(config) => {
                set(&self.metrics.handoff.config_num, config.num().0);
                if let Some(cluster) = self.identity.cluster() {
                    self.configs.replace(cluster, config);
                }
            }
        }
    }

    /// Returns the error for a request about keys at a controller that must not forward it.
    pub(crate) fn wrong_group(&self) -> ErrorDetail {
        let known = self.configs.known();
        errors::wrong_group(known.map_or(0, |known| known.config.num().0))
    }
}
