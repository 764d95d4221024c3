//! The trait for requests to a cluster's store, and the types of its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use shardkv_client::{Keyspace, KeyspaceOptions};

use crate::parts::Component;
use crate::plan;
use crate::validate::Cluster;

/// Client side of a cluster's store, reached at its controllers' and nodes' addresses.
///
/// Every call has a time limit, even if the store hangs. A change that timed out may still take effect later, exactly
/// once.
pub trait Store: Send + Sync + 'static {
    /// Returns the latest configuration and the progress of the groups. Linearizable: asks the controllers each time.
    fn view(&self, cluster: &Cluster) -> impl Future<Output = Result<View, StoreError>> + Send;

    /// Returns the health of each part, as its nodes report it. Leaves out nodes that don't answer.
    fn health(
        &self,
        cluster: &Cluster,
        parts: &BTreeSet<Component>,
    ) -> impl Future<Output = BTreeMap<Component, Health>> + Send;

    /// Adds groups to the configuration, with the addresses that [`crate::build::names::addresses`] gives their nodes.
    fn join(
        &self,
        cluster: &Cluster,
        gids: &[u64],
    ) -> impl Future<Output = Result<Change, StoreError>> + Send;

    /// Removes groups from the configuration. The controllers refuse to remove the last group.
    fn leave(
        &self,
        cluster: &Cluster,
        gids: &[u64],
    ) -> impl Future<Output = Result<Change, StoreError>> + Send;

    /// Retires the gid of a group that was drained or forgotten: the controllers refuse each later `join` of it. They refuse this
    /// unless the incarnation, or a later one, was removed.
    fn retire(
        &self,
        cluster: &Cluster,
        gid: u64,
        incarnation: u64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Closes connections to a cluster that the operator no longer manages.
    fn forget(&self, namespace: &str, name: &str);
}

/// The keyspaces of a cluster's store. Calls are bounded in time, like those of [`Store`].
pub trait KeyspaceStore: Send + Sync + 'static {
    /// Returns the keyspace with a name; `None` if there is none.
    fn keyspace(
        &self,
        cluster: &Cluster,
        name: &str,
    ) -> impl Future<Output = Result<Option<Keyspace>, StoreError>> + Send;

    /// Creates a keyspace. Refused if there is one with the name.
    fn create_keyspace(
        &self,
        cluster: &Cluster,
        name: &str,
        options: KeyspaceOptions,
    ) -> impl Future<Output = Result<Keyspace, StoreError>> + Send;

    /// Replaces the options of this keyspace. Another one with its name isn't changed.
    fn set_keyspace_options(
        &self,
        cluster: &Cluster,
        keyspace: &Keyspace,
        options: KeyspaceOptions,
    ) -> impl Future<Output = Result<Keyspace, StoreError>> + Send;

    /// Deletes this keyspace with all keys. Another one with its name stays. Succeeds if it was deleted before.
    fn delete_keyspace(
        &self,
        cluster: &Cluster,
        keyspace: &Keyspace,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Report of the controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Input of the plan: the number of the latest configuration, its groups, and the progress of each.
    pub plan: plan::Progress,
    /// Number of shards that each group owns: each member, and each leaving group that still owns some.
    pub shards: BTreeMap<u64, u32>,
    /// Number of shards that are to get another owner, and that their owner serves until then.
    pub copying: u32,
    /// Owners and targets of the shards that `copying` counts.
    pub copiers: BTreeSet<u64>,
    /// Number of shards that their owner doesn't serve yet, as the owners report: requests for their keys wait.
    pub unserved: u32,
}

impl View {
    /// Returns the number of shards that their target doesn't serve yet.
    pub fn moving(&self) -> u32 {
        self.copying.saturating_add(self.unserved)
    }
}

/// Health of the nodes of a group or of the controllers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Pod of the leader. Set only if a majority of the part's nodes name this leader in the same term; so there is a
    /// quorum.
    pub leader: Option<String>,
    /// Number of nodes that answered.
    pub answering: u32,
    /// True if all nodes answered, follow the leader, vote, and have caught up.
    pub whole: bool,
    /// Lasting problems of nodes as readable text, by pod: a full disk.
    pub troubles: BTreeMap<String, String>,
    /// Bytes that have arrived of shards on their way to the group, by the node that has applied most.
    pub incoming_bytes: u64,
}

/// Result of a change of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Number of the new configuration, or of the latest one if nothing changed.
    pub num: u64,
    /// Number of shards that have a new target.
    pub moved: u32,
}

/// Failure of a request to the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No controller answered in time. Usual while pods start. A change may still take effect.
    #[error("the controllers don't answer: {0}")]
    Unreachable(String),
    /// The controllers refuse; the message says why, and what to do.
    #[error("the controllers refuse: {0}")]
    Refused(String),
}
