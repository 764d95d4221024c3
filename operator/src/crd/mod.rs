//! The resource `ShardKvCluster`, as users write it and as the API server checks and stores it.
//!
//! Three layers refuse what makes no sense, each where it is seen first: the schema (types, bounds, defaults), the rules (what depends
//! on several fields, or on what was there before), and [`crate::validate`] (once more, for definitions older than the operator).
//! Every list, map and string that a rule reads is bounded, because the API server estimates the cost of a rule by the largest
//! value that the schema admits, and refuses a definition that is too dear.
//!
//! A field that an operator doesn't know is ignored by it, never an error: a newer definition must not blind an older operator.
//! Misspelt fields are refused where people make them, by the strict validation of `kubectl` and of the API server.

mod amount;
pub mod condition;
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

use kube::CustomResourceExt;

pub use amount::Amount;
pub use options::NodeOptions;
pub use spec::{
    ControllersSpec, DisruptionSpec, ImagePullPolicy, PodTemplateSpec, PullSecret, Resources,
    Retention, SchedulingSpec, ServiceAccountSpec, ShardKvCluster, ShardKvClusterSpec, StorageSpec,
};
pub use status::{GroupPhase, GroupStatus, ShardKvClusterStatus};

use crate::yaml::{self, YamlError};

/// The API group of the resource, and the prefix of our labels and annotations.
pub const GROUP: &str = "shardkv.io";

/// The definitions to install: file names and their text.
pub fn definitions() -> Result<Vec<(String, String)>, YamlError> {
    let definition = ShardKvCluster::crd();
    let header = "# Generated from operator/src/crd by `cargo run -p shardkv-operator --bin crdgen`: do not edit.\n";
    let text = yaml::write(&definition)?;
    let file = format!("{}.yaml", definition.spec.names.plural);
    Ok(vec![(file, format!("{header}---\n{text}"))])
}
