//! What the operator tells.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the cluster is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ShardKvClusterStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Available`: every key can be read and written. `Progressing`: something is being changed. `Degraded`: something needs
    /// a look. `Paused`: nothing is changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// The groups, by gid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10_000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["gid".into()]))]
    pub groups: Vec<GroupStatus>,

    /// The greatest gid that was ever given. Gids are never used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_gid: Option<i64>,

    /// The number of the controllers' latest configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_num: Option<i64>,

    /// How many shards are on their way from one group to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards_moving: Option<i32>,

    /// How many groups are part of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,

    /// Selects the pods of all groups, for autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,

    /// Where clients in this Kubernetes cluster connect, as `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub endpoint: Option<String>,
}

/// How a group is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Its number.
    pub gid: i64,

    /// Where it is in its life.
    pub phase: GroupPhase,

    /// How many of its nodes are ready.
    pub ready_replicas: i32,

    /// The pod that leads, if one is known to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub leader: Option<String>,

    /// How many shards the configuration gives it.
    pub shards: i32,
}

/// Where a group is in its life.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum GroupPhase {
    /// Its pods start; it is not part of the cluster yet.
    Provisioning,
    /// It is part of the cluster, and its first shards are on their way to it.
    Joining,
    /// It serves its shards.
    Serving,
    /// It is to go: its shards are on their way to other groups.
    Draining,
    /// It has nothing any more, and is being deleted.
    Removing,
}
