//! Options file of all nodes. Settings that differ between pods are environment variables instead.

use k8s_openapi::api::core::v1::ConfigMap;

use super::meta::meta;
use super::names;
use crate::validate::Cluster;

/// Name of the file in the config map, and in the folder where it is mounted.
pub(super) const FILE: &str = "node.yaml";

pub(super) fn build(cluster: &Cluster) -> ConfigMap {
    ConfigMap {
        metadata: meta(cluster, names::config(cluster), names::selector(cluster)),
        data: Some([(FILE.to_owned(), text(cluster))].into()),
        ..ConfigMap::default()
    }
}

/// Returns the file: sorted lines `option: value`. The pod template has it in an annotation too, so a change restarts the pods.
pub(super) fn text(cluster: &Cluster) -> String {
    let lines = cluster.spec.options.settings();
    let lines = lines.into_iter().map(|(key, value)| {
        // Numbers and booleans need no quotes. The schema allows no quote in the filter, the only text.
        let quote = if key == "log_filter" { "\"" } else { "" };
        format!("{key}: {quote}{value}{quote}\n")
    });
    std::iter::once("# From spec.options of the ShardKvCluster.\n".to_owned())
        .chain(lines)
        .collect()
}
