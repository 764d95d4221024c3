//! The resources `ShardKvCluster` and `ShardKvKeyspace`, as users write them and as the API server checks and stores them.
//!
//! Three layers check a resource: the schema (types, bounds, defaults), the rules (conditions on several fields, or on the old
//! and the new value), and the operator before it acts (all of it again, for a definition older than the operator). Every list, map and
//! string that a rule reads is bounded, because the API server estimates the cost of a rule by the largest value that the schema
//! allows, and refuses a definition whose rules cost too much.
//!
//! The operator ignores fields that it doesn't know: with a newer definition, an older operator must still read the resource.
//! The strict validation of `kubectl` and of the API server refuses misspelt fields.

mod amount;
pub mod condition;
#[expect(
    unreachable_pub,
    reason = "kube's derive repeats each struct inside of a function"
)]
mod keyspace;
#[expect(
    unreachable_pub,
    reason = "kube's derive repeats each struct inside of a function"
)]
mod options;
#[expect(
    unreachable_pub,
    reason = "kube's derive repeats each struct inside of a function"
)]
mod spec;
#[expect(
    unreachable_pub,
    reason = "kube's derive repeats each struct inside of a function"
)]
mod status;
#[cfg(test)]
mod tests;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use amount::Amount;
pub use keyspace::{
    ClusterRef, CompactionSpec, DeletionPolicy, ShardKvKeyspace, ShardKvKeyspaceSpec,
    ShardKvKeyspaceStatus,
};
pub use options::NodeOptions;
pub use spec::{
    ControllersSpec, DisruptionSpec, ImagePullPolicy, PodTemplateSpec, PullSecret, Resources,
    Retention, SchedulingSpec, ServiceAccountSpec, ShardKvCluster, ShardKvClusterSpec, StorageSpec,
};
pub use status::{GroupPhase, GroupStatus, ShardKvClusterStatus};

use crate::yaml::{self, YamlError};

/// API group of the resource, and prefix of the operator's labels and annotations.
pub const GROUP: &str = "shardkv.io";

/// Returns the definitions to install: file names with their text.
pub fn definitions() -> Result<Vec<(String, String)>, YamlError> {
    let definitions = [ShardKvCluster::crd(), ShardKvKeyspace::crd()];
    let header = "# Generated from operator/src/crd by `cargo run -p shardkv-operator --bin crdgen`: do not edit.\n";
    let file = |definition: &CustomResourceDefinition| {
        let text = yaml::write(definition)?;
        let file = format!("{}.yaml", definition.spec.names.plural);
        Ok((file, format!("{header}---\n{text}")))
    };
    definitions.iter().map(file).collect()
}
