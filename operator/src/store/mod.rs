//! What the operator asks of a cluster's store: the only way to it, and small enough to be faked in tests of reconciliation.

mod live;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use crate::build::Component;
use crate::plan;
use crate::validate::Cluster;
pub use live::LiveStore;

/// A cluster's store, reached by its controllers' and nodes' addresses.
///
/// Every call is bounded in time, whatever hangs. A change that timed out may still take effect later, exactly once.
pub trait Store: Send + Sync + 'static {
    /// The latest configuration and how far groups are. Linearizable: asked of the controllers each time.
    fn view(&self, cluster: &Cluster) -> impl Future<Output = Result<View, StoreError>> + Send;

    /// How the nodes of each part are, as they say themselves. A node that doesn't answer is left out.
    fn health(
        &self,
        cluster: &Cluster,
        parts: &BTreeSet<Component>,
    ) -> impl Future<Output = BTreeMap<Component, Health>> + Send;

    /// Takes groups into the configuration, with the addresses that [`crate::build::names::addresses`] gives their nodes.
    fn join(
        &self,
        cluster: &Cluster,
        gids: &[u64],
    ) -> impl Future<Output = Result<Change, StoreError>> + Send;

    /// Lets groups go. The last group is refused.
    fn leave(
        &self,
        cluster: &Cluster,
        gids: &[u64],
    ) -> impl Future<Output = Result<Change, StoreError>> + Send;

    /// Closes what is open to a cluster that is gone.
    fn forget(&self, cluster: &Cluster);
}

/// What the controllers say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// For decisions: the number of the latest configuration, its groups, and how far each is.
    pub plan: plan::Progress,
    /// How many shards the configuration gives to each of its groups.
    pub shards: BTreeMap<u64, u32>,
    /// How many shards have not arrived where the configuration wants them, as far as their new owners say.
    pub moving: u32,
}

/// How the nodes of a group, or the controllers, are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The pod that leads. Set only if a majority of the part's nodes say so, in the same term: then there is a quorum.
    pub leader: Option<String>,
    /// How many nodes answered.
    pub answering: u32,
    /// What is wrong with nodes and doesn't pass by itself, by pod, for people: a full disk.
    pub troubles: BTreeMap<String, String>,
}

/// What a change of the configuration did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The configuration that it made, or the latest if it changed nothing.
    pub num: u64,
    /// How many shards have another owner now.
    pub moved: u32,
}

/// Why the store didn't do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nobody answered in time. Usual while pods start. A change may still take effect.
    #[error("the controllers don't answer: {0}")]
    Unreachable(String),
    /// The controllers refuse: the message says why, and what to do.
    #[error("the controllers refuse: {0}")]
    Refused(String),
}
