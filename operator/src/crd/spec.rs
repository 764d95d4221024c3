//! What users ask for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::amount::Amount;
use super::{NodeOptions, ShardKvClusterStatus};

/// A sharded, linearizable key-value store.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "shardkv.io",
    version = "v1alpha1",
    kind = "ShardKvCluster",
    plural = "shardkvclusters",
    shortname = "skv",
    category = "all",
    namespaced,
    status = "ShardKvClusterStatus",
    derive = "PartialEq",
    doc = "A sharded, linearizable key-value store: controllers that say which group owns which shard, and groups that keep the data.",
    scale(
        spec_replicas_path = ".spec.groups",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Groups", type_ = "integer", json_path = ".spec.groups", description = "How many groups are asked for"),
    printcolumn(name = "Joined", type_ = "integer", json_path = ".status.replicas", description = "How many groups are part of the cluster"),
    printcolumn(name = "Available", type_ = "string", json_path = r#".status.conditions[?(@.type=="Available")].status"#, description = "Whether every key can be read and written"),
    printcolumn(name = "Degraded", type_ = "string", json_path = r#".status.conditions[?(@.type=="Degraded")].status"#, description = "Whether something needs a look"),
    printcolumn(name = "Status", type_ = "string", json_path = r#".status.conditions[?(@.type=="Progressing")].reason"#, description = "What is going on"),
    printcolumn(name = "Moving", type_ = "integer", json_path = ".status.shardsMoving", description = "How many shards are on their way"),
    printcolumn(name = "Config", type_ = "integer", json_path = ".status.configNum", description = "The number of the configuration", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", description = "Where clients connect", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')", "the name begins with a letter and consists of a-z, 0-9 and '-': services are named after it"),
)]
#[serde(rename_all = "camelCase")]
pub struct ShardKvClusterSpec {
    /// How many groups share the data. Raise or lower it at any time, also by `kubectl scale`: shards move by themselves.
    #[serde(default = "defaults::groups")]
    #[schemars(range(min = 1, max = 1000))]
    pub groups: i32,

    /// How many nodes keep a copy of each key. 3 survive the loss of one, 5 of two. Fixed at creation.
    #[serde(default = "defaults::replicas")]
    #[schemars(range(min = 1, max = 7))]
    #[x_kube(
        validation = ("self % 2 == 1", "replicasPerGroup must be 1, 3, 5 or 7: an even number survives no more failures than one less"),
        validation = ("self == oldSelf", "replicasPerGroup can't be changed yet: create another cluster and import an export")
    )]
    pub replicas_per_group: i32,

    /// How many shards the keys are spread over: the grain in which data move between groups. Fixed at creation.
    #[serde(default = "defaults::shards")]
    #[schemars(range(min = 1, max = 1_000_000))]
    #[x_kube(validation = ("self == oldSelf", "shards can't be changed: the shard of each key depends on it"))]
    pub shards: i32,

    /// The controllers, which keep the configuration: which group owns which shard.
    #[serde(default)]
    pub controllers: ControllersSpec,

    /// The image of all nodes.
    #[serde(default = "defaults::image")]
    #[schemars(length(min = 1, max = 512))]
    pub image: String,

    /// When nodes pull the image.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// Secrets of the namespace with which the image is pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<PullSecret>,

    /// The volumes of the groups' nodes, and what becomes of all volumes in the end.
    #[serde(default)]
    pub storage: StorageSpec,

    /// What a node of a group may use. By default a tenth of a core and 256 MiB are reserved, and 1 GiB is the limit.
    #[serde(default = "defaults::node_resources")]
    pub resources: Resources,

    /// What may be tuned about nodes. Each change rolls through the pods, one at a time in each group.
    #[serde(default)]
    pub options: NodeOptions,

    /// Where pods may run.
    #[serde(default)]
    pub scheduling: SchedulingSpec,

    /// Protection from evictions.
    #[serde(default)]
    pub pod_disruption_budget: DisruptionSpec,

    /// The account that pods run as. They call no Kubernetes API, so it needs no rights.
    #[serde(default)]
    pub service_account: ServiceAccountSpec,

    /// Labels and annotations for all pods.
    #[serde(default)]
    pub pod_template: PodTemplateSpec,

    /// Leave everything as it is until this is false again. Pods go on serving; deleting the resource still works.
    #[serde(default)]
    pub paused: bool,
}

/// The controllers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ControllersSpec {
    /// How many. 3 survive the loss of one. Fixed at creation.
    #[serde(default = "defaults::replicas")]
    #[schemars(range(min = 1, max = 7))]
    #[x_kube(
        validation = ("self % 2 == 1", "controllers.replicas must be 1, 3, 5 or 7: an even number survives no more failures than one less"),
        validation = ("self == oldSelf", "controllers.replicas can't be changed yet")
    )]
    pub replicas: i32,

    /// The size of a controller's volume. Configurations are small.
    #[serde(default = "defaults::controller_size")]
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$")
    )]
    #[x_kube(validation = ("self == oldSelf", "controllers.size can't be changed yet"))]
    pub size: String,

    /// What a controller may use. By default a twentieth of a core and 128 MiB are reserved, and 512 MiB is the limit.
    #[serde(default = "defaults::controller_resources")]
    pub resources: Resources,
}

/// Volumes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = ("has(self.className) == has(oldSelf.className)", "storage.className can't be changed: volumes don't wander between classes"))]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// The storage class of all volumes; without it the Kubernetes cluster's default. Fixed at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("self == oldSelf", "storage.className can't be changed: volumes don't wander between classes"))]
    pub class_name: Option<String>,

    /// The size of each node's volume, such as 10Gi.
    #[serde(default = "defaults::size")]
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$")
    )]
    #[x_kube(validation = ("self == oldSelf", "storage.size can't be changed yet: a StatefulSet's volumes are fixed at its creation"))]
    pub size: String,

    /// What becomes of a group's volumes when `groups` is lowered and all its shards have gone elsewhere.
    #[serde(default)]
    pub on_group_removal: Retention,

    /// What becomes of all volumes when the resource is deleted.
    #[serde(default)]
    pub on_cluster_deletion: Retention,
}

/// What becomes of volumes that nobody mounts any more.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// They stay, and cost what they cost, until a person deletes them.
    #[default]
    Retain,
    /// They are deleted with all data.
    Delete,
}

/// When nodes pull the image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// When it isn't there.
    #[default]
    IfNotPresent,
    /// At each start.
    Always,
    /// Not at all: somebody else brings it.
    Never,
}

impl ImagePullPolicy {
    /// As Kubernetes spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::IfNotPresent => "IfNotPresent",
            Self::Always => "Always",
            Self::Never => "Never",
        }
    }
}

/// A secret with credentials for a registry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What a container may use, by resource: `cpu`, `memory` and others.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What is reserved for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, Amount>,

    /// The most that it gets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, Amount>,
}

impl From<&Resources> for ResourceRequirements {
    fn from(resources: &Resources) -> Self {
        use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
        let map = |map: &BTreeMap<String, Amount>| {
            let map = map
                .iter()
                .map(|(name, amount)| (name.clone(), Quantity(amount.0.clone())));
            Some(map.collect())
        };
        Self {
            requests: map(&resources.requests),
            limits: map(&resources.limits),
            ..Self::default()
        }
    }
}

/// Where pods may run. By default the nodes of a group keep away from each other, on different machines and in different zones
/// where there are any.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SchedulingSpec {
    /// Instead of the default, which prefers to keep the nodes of a group on different machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// Taints that pods bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,

    /// Labels that a machine must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,

    /// Instead of the default, which spreads the nodes of a group over zones as evenly as it can. A constraint without
    /// `labelSelector` counts the pods of the same group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,

    /// The priority class of all pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// Protection from evictions.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionSpec {
    /// Whether evictions (of `kubectl drain`, say) may take only one node of a group, and one controller, at a time.
    #[serde(default = "defaults::yes")]
    pub enabled: bool,
}

/// The account that pods run as.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountSpec {
    /// An account that exists already; without it one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,

    /// Annotations of the account that is made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

/// Labels and annotations for all pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplateSpec {
    /// Labels; those that select the pods of a cluster are taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = ("self.all(key, !key.startsWith('shardkv.io/') && !key.startsWith('app.kubernetes.io/'))", "labels under shardkv.io/ and app.kubernetes.io/ are the operator's"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = ("self.all(key, !key.startsWith('shardkv.io/'))", "annotations under shardkv.io/ are the operator's"))]
    pub annotations: BTreeMap<String, String>,
}

impl Default for ControllersSpec {
    fn default() -> Self {
        Self {
            replicas: defaults::replicas(),
            size: defaults::controller_size(),
            resources: defaults::controller_resources(),
        }
    }
}

impl Default for StorageSpec {
    fn default() -> Self {
        Self {
            class_name: None,
            size: defaults::size(),
            on_group_removal: Retention::default(),
            on_cluster_deletion: Retention::default(),
        }
    }
}

impl Default for DisruptionSpec {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for ShardKvClusterSpec {
    fn default() -> Self {
        Self {
            groups: defaults::groups(),
            replicas_per_group: defaults::replicas(),
            shards: defaults::shards(),
            controllers: ControllersSpec::default(),
            image: defaults::image(),
            image_pull_policy: ImagePullPolicy::default(),
            image_pull_secrets: Vec::new(),
            storage: StorageSpec::default(),
            resources: defaults::node_resources(),
            options: NodeOptions::default(),
            scheduling: SchedulingSpec::default(),
            pod_disruption_budget: DisruptionSpec::default(),
            service_account: ServiceAccountSpec::default(),
            pod_template: PodTemplateSpec::default(),
            paused: false,
        }
    }
}

/// What holds where the user says nothing.
mod defaults {
    use super::{Amount, Resources};

    pub(super) fn groups() -> i32 {
        1
    }

    pub(super) fn replicas() -> i32 {
        3
    }

    pub(super) fn shards() -> i32 {
        64
    }

    pub(super) fn image() -> String {
        format!("shardkv:{}", env!("CARGO_PKG_VERSION"))
    }

    pub(super) fn size() -> String {
        "10Gi".to_owned()
    }

    pub(super) fn controller_size() -> String {
        "1Gi".to_owned()
    }

    pub(super) fn yes() -> bool {
        true
    }

    pub(super) fn node_resources() -> Resources {
        resources("100m", "256Mi", "1Gi")
    }

    pub(super) fn controller_resources() -> Resources {
        resources("50m", "128Mi", "512Mi")
    }

    fn resources(cpu: &str, memory: &str, most_memory: &str) -> Resources {
        let pair = |name: &str, amount: &str| (name.to_owned(), Amount(amount.to_owned()));
        Resources {
            requests: [pair("cpu", cpu), pair("memory", memory)].into(),
            limits: [pair("memory", most_memory)].into(),
        }
    }
}
