//! Options file of all nodes. Settings that differ between pods are environment variables instead.
//!
//! The config map can't be changed, and its name carries a hash of the file. Changed options are therefore another config map,
//! which only the pods see that are started with it: a rollout that stops at its first pod leaves all other pods with the
//! options that they had, also when their containers start again.

use k8s_openapi::api::core::v1::ConfigMap;

use super::meta::meta;
use super::names;
use crate::validate::Cluster;

/// Name of the file in the config map, and in the folder where it is mounted.
pub(super) const FILE: &str = "node.yaml";

pub(super) fn build(cluster: &Cluster) -> ConfigMap {
    let file = cluster.spec.options.file();
    ConfigMap {
        metadata: meta(
            cluster,
            names::config(cluster, &file),
            names::selector(cluster),
        ),
        data: Some([(FILE.to_owned(), file)].into()),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// Returns the name of the config map with the cluster's present options.
pub fn name(cluster: &Cluster) -> String {
    names::config(cluster, &cluster.spec.options.file())
}
