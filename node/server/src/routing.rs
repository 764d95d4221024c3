//! The routing view of a node: the kind of its group, the configuration that it knows, and the shards that its group owns.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::errors;
use api::v1::ErrorDetail;
use shardkv::{GroupKind, Ownership};
use tokio::sync::watch;
use types::{ClusterId, ConfigNum, Gid};

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
    /// The cluster of controllers that were refused last, because the group follows others. Zero if none was, or the group's own
    /// controllers have answered since.
    refused: AtomicU64,
    metrics: Arc<Metrics>,
}

/// The group follows other controllers than those that answer. Asking again may reach the right ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "refuses the controllers of cluster {theirs}, because the group follows those of cluster {ours}: it goes on with what it knows. \
     Correct --controllers; if the controllers have lost their volumes, export the data and import them into a new cluster"
)]
pub(crate) struct Strangers {
    theirs: ClusterId,
    ours: ClusterId,
}

impl Routing {
    pub(crate) fn new(kind: GroupKind, identity: Arc<Identity>, metrics: Arc<Metrics>) -> Self {
        Self {
            kind,
            identity,
            configs: Configs::default(),
            ownership: watch::Sender::new(Arc::default()),
            refused: AtomicU64::new(0),
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

    /// Returns the cluster of the controllers that the group follows, or that this node has heard from.
    pub(crate) fn controllers(&self) -> Option<ClusterId> {
        let heard = || self.configs.known().map(|known| known.cluster);
        self.ownership.borrow().controller.or_else(heard)
    }

    /// Refuses controllers of another cluster than the group's. It changes nothing else: the group serves on.
    pub(crate) fn check_controllers(&self, theirs: ClusterId) -> Result<(), Strangers> {
        let ours = self.controllers().filter(|ours| *ours != theirs);
        let before = self
            .refused
            .swap(ours.map_or(0, |_| theirs.0), Ordering::Relaxed);
        set(
            &self.metrics.handoff.foreign_controllers,
            ours.is_some().into(),
        );
        let Some(ours) = ours else {
            return Ok(());
        };
        let strangers = Strangers { theirs, ours };
        if before != theirs.0 {
            tracing::warn!("{strangers}");
        }
        Err(strangers)
    }

    /// Resolves with a refusal once the group's state says that it follows other controllers than those of `theirs`.
    pub(crate) async fn forsaken(&self, theirs: ClusterId) -> Strangers {
        let mut ownership = self.watch_ownership();
        loop {
            let followed = ownership.borrow_and_update().controller;
            if followed.is_some_and(|ours| ours != theirs)
                && let Err(strangers) = self.check_controllers(theirs)
            {
                return strangers;
            }
            if ownership.changed().await.is_err() {
                // The sender lives in `self`.
                return std::future::pending().await;
            }
        }
    }

    /// Returns the refusal of the controllers that answered last, if they were refused.
    pub(crate) fn refused_controllers(&self) -> Option<Strangers> {
        let theirs = ClusterId(self.refused.load(Ordering::Relaxed));
        let ours = self.controllers().filter(|_| theirs.0 != 0)?;
        Some(Strangers { theirs, ours })
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
                let followed = ownership.controller;
                self.ownership.send_replace(ownership);
                if let Some(followed) = followed
                    && self.configs.follow_only(followed)
                {
                    tracing::warn!(
                        "this node had heard from other controllers than those of cluster {followed}, which its group follows: \
                         it forgets what they said. Correct --controllers"
                    );
                }
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
