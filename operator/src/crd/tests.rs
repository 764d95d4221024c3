use super::*;
use serde_json::{Value, json};

fn cluster(spec: Value) -> ShardKvCluster {
    let spec = serde_json::from_value(spec).unwrap();
    ShardKvCluster::new("demo", spec)
}

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
fn fields_of_newer_definitions_stop_no_older_operator() {
    let newer = serde_json::from_value::<ShardKvClusterSpec>(json!({"backups": {"every": "1h"}}));
    assert_eq!(newer.unwrap(), ShardKvClusterSpec::default());
}

#[test]
fn good_objects_pass_the_rules() {
    for good in [
        json!({}),
        json!({"groups": 7, "replicasPerGroup": 5, "controllers": {"replicas": 1}}),
        json!({"options": {"heartbeatIntervalMs": 200, "electionTimeoutMs": 600}}),
        json!({"podTemplate": {"labels": {"team": "a"}, "annotations": {"b": "c"}}}),
    ] {
        let result = cluster(good.clone()).validate_cel();
        assert!(result.is_ok(), "{good}: {result:?}");
    }
}

#[test]
fn each_rule_of_creation_refuses_its_bad_object_with_a_message() {
    for (bad, message) in [
        (
            json!({"replicasPerGroup": 4}),
            "replicasPerGroup must be 1, 3, 5 or 7",
        ),
        (
            json!({"controllers": {"replicas": 2}}),
            "controllers.replicas must be 1, 3, 5 or 7",
        ),
        (
            json!({"options": {"electionTimeoutMs": 299}}),
            "at least three times",
        ),
        (json!({"options": {"heartbeatIntervalMs": 134}}), "set both"),
        (
            json!({"podTemplate": {"labels": {"app.kubernetes.io/name": "x"}}}),
            "the operator's",
        ),
        (
            json!({"podTemplate": {"annotations": {"shardkv.io/x": "x"}}}),
            "the operator's",
        ),
    ] {
        let refused = cluster(bad.clone()).validate_cel();
        let text = format!("{:?}", refused.expect_err(&bad.to_string()));
        assert!(text.contains(message), "{bad}: {text}");
    }
    let mut named = cluster(json!({}));
    for (name, good) in [
        ("demo-1", true),
        ("1demo", false),
        ("de.mo", false),
        ("demo-", false),
    ] {
        named.metadata.name = Some(name.to_owned());
        assert_eq!(named.validate_cel().is_ok(), good, "{name}");
    }
}

#[test]
fn what_can_t_be_changed_is_refused_with_a_message() {
    for (old, new, message) in [
        (json!({}), json!({"shards": 65}), "shards can't be changed"),
        (
            json!({}),
            json!({"replicasPerGroup": 5}),
            "replicasPerGroup can't be changed",
        ),
        (
            json!({}),
            json!({"controllers": {"replicas": 5}}),
            "controllers.replicas can't",
        ),
        (
            json!({}),
            json!({"controllers": {"size": "2Gi"}}),
            "controllers.size can't",
        ),
        (
            json!({}),
            json!({"storage": {"size": "20Gi"}}),
            "storage.size can't",
        ),
        (
            json!({}),
            json!({"storage": {"className": "a"}}),
            "storage.className can't",
        ),
        (
            json!({"storage": {"className": "a"}}),
            json!({"storage": {"className": "b"}}),
            "storage.className can't",
        ),
        (
            json!({}),
            json!({"options": {"sessionTtlMs": 1000}}),
            "sessionTtlMs can't",
        ),
        (
            json!({"options": {"maxSessionsPerShard": 5}}),
            json!({"options": {"maxSessionsPerShard": 6}}),
            "maxSessionsPerShard can't",
        ),
    ] {
        let refused = cluster(new.clone()).validate_cel_update(&cluster(old));
        let text = format!("{:?}", refused.expect_err(&new.to_string()));
        assert!(text.contains(message), "{new}: {text}");
    }
    let more = cluster(
        json!({"groups": 4, "paused": true, "image": "b", "options": {"leaseReads": true}}),
    );
    assert!(more.validate_cel_update(&cluster(json!({}))).is_ok());
}

/// All objects of a schema that are ours: what Kubernetes itself defines is not ours to document or to bound.
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
fn every_field_is_explained_and_every_list_and_text_bounded() {
    let definition = serde_json::to_value(ShardKvCluster::crd()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut fields = Vec::new();
    walk("", schema, &mut fields);
    assert!(fields.len() > 50, "{}", fields.len());
    for (path, field) in fields {
        assert!(field["description"].is_string(), "{path} is not explained");
        let bounded = match field["type"].as_str() {
            Some("string") => field["maxLength"].is_u64() || field["enum"].is_array(),
            Some("array") => field["maxItems"].is_u64(),
            Some("object") => field["properties"].is_object() || field["maxProperties"].is_u64(),
            Some("integer") if path.starts_with(".spec") => field["maximum"].is_number(),
            _ => true,
        };
        assert!(bounded, "{path} is not bounded: {field}");
    }
}
