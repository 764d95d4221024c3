//! The spec: the part of the resource that users write.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::amount::Amount;
use super::options::NodeOptions;
use super::status::ShardKvClusterStatus;

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
    printcolumn(name = "Groups", type_ = "integer", json_path = ".spec.groups", description = "Number of groups that the spec asks for"),
    printcolumn(name = "Joined", type_ = "integer", json_path = ".status.replicas", description = "Number of groups that are part of the cluster"),
    printcolumn(name = "Available", type_ = "string", json_path = r#".status.conditions[?(@.type=="Available")].status"#, description = "True if every key can be read and written"),
    printcolumn(name = "Degraded", type_ = "string", json_path = r#".status.conditions[?(@.type=="Degraded")].status"#, description = "True if something is wrong; the condition says what"),
    printcolumn(name = "Status", type_ = "string", json_path = r#".status.conditions[?(@.type=="Progressing")].reason"#, description = "The change that is in progress"),
    printcolumn(name = "Moving", type_ = "integer", json_path = ".status.shardsMoving", description = "Number of shards that are moving"),
    printcolumn(name = "Config", type_ = "integer", json_path = ".status.configNum", description = "Number of the controllers' latest configuration", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", description = "Address for clients", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')", "the name must begin with a letter and consist of a-z, 0-9 and '-': services are named after it"),
)]
#[serde(rename_all = "camelCase")]
pub struct ShardKvClusterSpec {
    /// Number of groups that share the data. You may change it at any time, also by `kubectl scale`: the shards move by themselves.
    #[serde(default = "defaults::groups")]
    #[schemars(range(min = 1, max = 1000))]
    pub groups: i32,

    /// Number of nodes that keep a copy of each key. 3 survive the loss of one, 5 of two. Fixed at creation.
    #[serde(default = "defaults::replicas")]
    #[schemars(range(min = 1, max = 7))]
    #[x_kube(
        validation = ("self % 2 == 1", "replicasPerGroup must be 1, 3, 5 or 7: an even number survives no more failures than one less"),
        validation = ("self == oldSelf", "replicasPerGroup can't be changed yet: create another cluster and import an export")
    )]
    pub replicas_per_group: i32,

    /// Number of shards that the keys are spread over. A shard is the unit in which data move between groups. Fixed at creation.
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

    /// Pull policy of the image.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// Secrets of the namespace that are used to pull the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<PullSecret>,

    /// Volumes: size and class, and their deletion.
    #[serde(default)]
    pub storage: StorageSpec,

    /// CPU and memory of a group's node. By default a tenth of a core and 256 MiB are reserved, and 1 GiB is the limit.
    #[serde(default = "defaults::node_resources")]
    pub resources: Resources,

    /// Settings of the nodes. A change rolls through the pods, one at a time.
    #[serde(default)]
    pub options: NodeOptions,

    /// Constraints on the machines that pods run on.
    #[serde(default)]
    pub scheduling: SchedulingSpec,

    /// Protection from evictions.
    #[serde(default)]
    pub pod_disruption_budget: DisruptionSpec,

    /// The service account of the pods. They call no Kubernetes API, so it needs no rights.
    #[serde(default)]
    pub service_account: ServiceAccountSpec,

    /// Labels and annotations for all pods.
    #[serde(default)]
    pub pod_template: PodTemplateSpec,

    /// Other namespaces whose `ShardKvKeyspace` resources may be in this cluster; `*` is all. Those of the cluster's own namespace always may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 1000),
        inner(
            length(min = 1, max = 63),
            regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")
        )
    )]
    pub keyspace_namespaces: Vec<String>,

    /// Stops the operator from changing anything but its finalizer. Pods go on serving, and the resource can still be deleted.
    #[serde(default)]
    pub paused: bool,
}

/// The controllers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ControllersSpec {
    /// Number of controllers. 3 survive the loss of one. Fixed at creation.
    #[serde(default = "defaults::replicas")]
    #[schemars(range(min = 1, max = 7))]
    #[x_kube(
        validation = ("self % 2 == 1", "controllers.replicas must be 1, 3, 5 or 7: an even number survives no more failures than one less"),
        validation = ("self == oldSelf", "controllers.replicas can't be changed yet")
    )]
    pub replicas: i32,

    /// Size of a controller's volume. Configurations are small.
    #[serde(default = "defaults::controller_size")]
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$")
    )]
    #[x_kube(validation = ("self == oldSelf", "controllers.size can't be changed yet"))]
    pub size: String,

    /// CPU and memory of a controller. By default a twentieth of a core and 128 MiB are reserved, and 512 MiB is the limit.
    #[serde(default = "defaults::controller_resources")]
    pub resources: Resources,
}

/// Volumes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(validation = ("has(self.className) == has(oldSelf.className)", "storage.className can't be changed: a volume can't change its class"))]
#[serde(rename_all = "camelCase")]
pub struct StorageSpec {
    /// Storage class of all volumes; by default the Kubernetes cluster's default class. Fixed at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("self == oldSelf", "storage.className can't be changed: a volume can't change its class"))]
    pub class_name: Option<String>,

    /// Size of each node's volume, such as 10Gi.
    #[serde(default = "defaults::size")]
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$")
    )]
    #[x_kube(validation = ("self == oldSelf", "storage.size can't be changed yet: a StatefulSet's volumes are fixed at its creation"))]
    pub size: String,

    /// Retention of a group's volumes after `groups` was lowered and all its shards have arrived elsewhere.
    #[serde(default)]
    pub on_group_removal: Retention,

    /// Retention of all volumes after the resource was deleted.
    #[serde(default)]
    pub on_cluster_deletion: Retention,
}

/// Retention of volumes that are no longer mounted.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// The volumes stay, and cost money, until somebody deletes them.
    #[default]
    Retain,
    /// The volumes are deleted with all data.
    Delete,
}

/// Pull policy of an image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// Nodes pull it if it isn't on the machine.
    #[default]
    IfNotPresent,
    /// Nodes pull it at each start.
    Always,
    /// Nodes never pull it; it must be on the machine.
    Never,
}

impl ImagePullPolicy {
    /// Returns the name that Kubernetes uses.
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
    /// Name of the secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// CPU, memory and other resources of a container.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Reserved amounts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, Amount>,

    /// Upper limits.
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

/// Constraints on the machines that pods run on. By default the nodes of a group prefer different machines, and different zones
/// where there are any.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SchedulingSpec {
    /// Affinity of the pods. Replaces the default, which prefers different machines for the nodes of a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// Taints that pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,

    /// Labels that a machine must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,

    /// Spread over zones. Replaces the default, which spreads the nodes of a group over zones as evenly as it can. A constraint
    /// without `labelSelector` counts the pods of the same group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,

    /// Priority class of all pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// Protection from evictions.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionSpec {
    /// Limits evictions (by `kubectl drain`, for example) to one node of a group, and one controller, at a time.
    #[serde(default = "defaults::yes")]
    pub enabled: bool,
}

/// The service account of the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountSpec {
    /// Name of an existing account. By default the operator makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,

    /// Annotations of the account that the operator makes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

/// Labels and annotations for all pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplateSpec {
    /// Labels of the pods. The labels that select the pods of a cluster are reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = ("self.all(key, !key.startsWith('shardkv.io/') && !key.startsWith('app.kubernetes.io/'))", "labels under shardkv.io/ and app.kubernetes.io/ are reserved for the operator"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = ("self.all(key, !key.startsWith('shardkv.io/'))", "annotations under shardkv.io/ are reserved for the operator"))]
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
            keyspace_namespaces: Vec::new(),
            paused: false,
        }
    }
}

/// Default values.
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
