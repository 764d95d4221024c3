//! The resource `ShardKvKeyspace`: a keyspace of a cluster, and the service by which clients reach it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A keyspace: a named store that etcd's clients use.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "shardkv.io",
    version = "v1alpha1",
    kind = "ShardKvKeyspace",
    plural = "shardkvkeyspaces",
    shortname = "skvks",
    category = "all",
    namespaced,
    status = "ShardKvKeyspaceStatus",
    derive = "PartialEq",
    doc = "A keyspace of a ShardKvCluster: a store with its own revisions, watches, leases and quota, for any client of etcd. Clients dial the service with the resource's name.",
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name", description = "The cluster that the keyspace is in"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "True if clients can read and write"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "The reason of the condition Ready"),
    printcolumn(name = "Group", type_ = "integer", json_path = ".status.group", description = "Group that owns the keyspace's shard"),
    printcolumn(name = "Shard", type_ = "integer", json_path = ".status.shard", description = "Shard in which the keyspace lives", priority = 1),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision", description = "Newest revision, as of the last look"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.bytes", description = "Bytes that count against the quota, as of the last look"),
    printcolumn(name = "Quota", type_ = "string", json_path = ".spec.quota", description = "The quota that the spec asks for", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", description = "Address for clients", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63", "the name must begin with a letter, consist of a-z, 0-9 and '-', and have at most 63 characters: a service is named after it"),
)]
#[serde(rename_all = "camelCase")]
pub struct ShardKvKeyspaceSpec {
    /// The cluster that the keyspace is in. Fixed at creation.
    #[x_kube(validation = ("self == oldSelf", "clusterRef can't be changed: a keyspace doesn't move between clusters. Create another resource, and copy the keys"))]
    pub cluster_ref: ClusterRef,

    /// The most bytes of keys, values and versions that are not compacted, such as 512Mi. Each put counts its key twice and 96 bytes more.
    /// Beyond it puts are refused; deletions and compactions go on.
    #[serde(default = "default_quota")]
    #[schemars(
        length(min = 1, max = 16),
        regex(pattern = r"^[1-9][0-9]{0,11}(Ki|Mi|Gi|Ti|k|M|G|T)?$")
    )]
    pub quota: String,

    /// The automatic compaction. By default there is none: a kube-apiserver, for example, compacts its own keyspace.
    #[serde(default)]
    pub compaction: CompactionSpec,

    /// The end of the keyspace when this resource is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// A cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Name of the `ShardKvCluster`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Namespace of the `ShardKvCluster`; by default the namespace of this resource. In another namespace, the cluster must list the
    /// namespace of this resource in its `spec.keyspaceNamespaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

/// Automatic compaction: old revisions are removed. At most one field may be set.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = ("!(has(self.retention) && has(self.revisions))", "compaction is by retention or by revisions, not by both"))]
#[serde(rename_all = "camelCase")]
pub struct CompactionSpec {
    /// Keeps the revisions of this time, such as 30m or 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 8), regex(pattern = r"^[1-9][0-9]{0,6}(s|m|h)$"))]
    pub retention: Option<String>,

    /// Keeps this many revisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_i64))]
    pub revisions: Option<i64>,
}

/// The end of a keyspace whose resource is deleted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// The keyspace stays in the store, with all keys. A new resource of the same name and namespace takes it over.
    #[default]
    Retain,
    /// The keyspace is deleted with all keys.
    Delete,
}

/// State of the keyspace. Figures are those of the last look, which is at most every minute.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ShardKvKeyspaceStatus {
    /// Generation of the spec that this status belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Ready`: the keyspace exists as the spec asks for, and clients can read and write by its service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Name of the keyspace in the store: the name and the namespace of this resource, with a dot between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub keyspace: Option<String>,

    /// Cluster id in the headers of the keyspace's answers, in hexadecimal. No other keyspace has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub id: Option<String>,

    /// Group that owns the keyspace's shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<i64>,

    /// Shard in which the keyspace lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<i64>,

    /// Newest revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,

    /// Bytes that count against the quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,

    /// Address for clients in this Kubernetes cluster, as `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub endpoint: Option<String>,
}

/// etcd's default quota.
fn default_quota() -> String {
    "2Gi".to_owned()
}
