use super::*;
use serde_json::{Value, json};

#[test]
fn the_generated_files_are_fresh() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    for (name, text) in definitions().unwrap() {
        let stored = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert!(
            stored == text,
            "crds/{name} is stale: cargo run -p shardkv-operator --bin crdgen"
        );
    }
}

#[test]
fn an_empty_spec_has_all_defaults() {
    let empty: ShardKvClusterSpec = serde_json::from_value(json!({})).unwrap();
    assert_eq!(empty, ShardKvClusterSpec::default());
    assert_eq!(
        (empty.groups, empty.replicas_per_group, empty.shards),
        (1, 3, 64)
    );
    assert_eq!(empty.storage.on_cluster_deletion, Retention::Retain);
}

#[test]
fn fields_of_newer_definitions_are_ignored() {
    let newer = serde_json::from_value::<ShardKvClusterSpec>(json!({"backups": {"every": "1h"}}));
    assert_eq!(newer.unwrap(), ShardKvClusterSpec::default());
}

/// Collects all fields of a schema, with their paths. Leaves out the fields of Kubernetes' own types, which Kubernetes documents.
fn walk(path: &str, schema: &Value, found: &mut Vec<(String, Value)>) {
    const FOREIGN: [&str; 4] = [
        "affinity",
        "tolerations",
        "topologySpreadConstraints",
        "conditions",
    ];
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        found.push((path.clone(), field.clone()));
        if !FOREIGN.contains(&name.as_str()) {
            walk(&path, field, found);
            walk(&path, &field["items"], found);
        }
    }
}

#[test]
fn every_field_is_documented_and_every_list_and_text_bounded() {
    for (definition, least) in [(ShardKvCluster::crd(), 50), (ShardKvKeyspace::crd(), 15)] {
        let definition = serde_json::to_value(definition).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut fields = Vec::new();
        walk("", schema, &mut fields);
        assert!(fields.len() > least, "{}", fields.len());
        for (path, field) in fields {
            assert!(
                field["description"].is_string(),
                "{path} has no description"
            );
            assert!(is_bounded(&path, &field), "{path} is not bounded: {field}");
        }
    }
}

fn is_bounded(path: &str, field: &Value) -> bool {
    match field["type"].as_str() {
        Some("string") => field["maxLength"].is_u64() || field["enum"].is_array(),
        Some("array") => field["maxItems"].is_u64() && is_bounded(path, &field["items"]),
        Some("object") => field["properties"].is_object() || field["maxProperties"].is_u64(),
        Some("integer") if path.starts_with(".spec") => field["maximum"].is_number(),
        _ => true,
    }
}
