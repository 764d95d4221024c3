//! The options file of all nodes. What differs between pods stands in their environment instead.

use k8s_openapi::api::core::v1::ConfigMap;

use super::{meta, names};
use crate::validate::Cluster;

/// The file's name in the map, and in the folder where it is mounted.
pub(super) const FILE: &str = "node.yaml";

pub(super) fn build(cluster: &Cluster) -> ConfigMap {
    ConfigMap {
        metadata: meta(cluster, names::config(cluster), names::selector(cluster)),
        data: Some([(FILE.to_owned(), text(cluster))].into()),
        ..ConfigMap::default()
    }
}

/// The file, `option: value` lines in order. Pods carry it in an annotation too: they start anew when it changes.
pub(super) fn text(cluster: &Cluster) -> String {
    let lines = cluster.spec.options.settings();
    let lines = lines.into_iter().map(|(key, value)| {
        // Numbers and booleans stand as they are; the schema admits no quote in the one text.
        let quote = if key == "log_filter" { "\"" } else { "" };
        format!("{key}: {quote}{value}{quote}\n")
    });
    std::iter::once("# What spec.options of the ShardKvCluster says.\n".to_owned())
        .chain(lines)
        .collect()
}
