//! The status: the part of the resource that the operator writes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// State of the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ShardKvClusterStatus {
    /// Generation of the spec that this status belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Version of the operator that wrote this status. An older operator that runs beside it leaves the status to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub operator_version: Option<String>,

    /// `Available`: every key can be read and written. `Progressing`: a change is in progress. `Degraded`: something is wrong.
    /// `Paused`: the operator changes nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// The groups, by gid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10_000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["gid".into()]))]
    pub groups: Vec<GroupStatus>,

    /// Greatest gid that was ever used. Gids are never used again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_gid: Option<i64>,

    /// Number of the controllers' latest configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_num: Option<i64>,

    /// Number of shards that are moving from one group to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards_moving: Option<i32>,

    /// Number of groups that are part of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,

    /// Selector of the first pod of each group, because autoscalers take the number of selected pods for the number of groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub selector: Option<String>,

    /// Address for clients in this Kubernetes cluster, as `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub endpoint: Option<String>,
}

/// State of a group.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Number of the group.
    pub gid: i64,

    /// Phase of its life.
    pub phase: GroupPhase,

    /// Number of its nodes that are ready.
    pub ready_replicas: i32,

    /// The leader's pod, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub leader: Option<String>,

    /// Number of shards that it owns.
    pub shards: i32,
}

/// Phase of a group's life.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum GroupPhase {
    /// The pods start; the group is not part of the cluster yet.
    Provisioning,
    /// The group is part of the cluster, and its first shards are moving to it.
    Joining,
    /// The group serves its shards.
    Serving,
    /// The group is leaving: its shards are moving to other groups.
    Draining,
    /// The group has no shards any more, and is being deleted.
    Removing,
}
