//! Objects without what differs between two equal runs.

use serde_json::{Value, json};

/// Removes the fields that differ between two equal runs.
pub(super) fn timeless(mut object: Value, namespace: &str) -> Value {
    let generation = object["metadata"]["generation"].clone();
    let current = |status: &mut Value| {
        if let Some(observed) = status.get_mut("observedGeneration")
            && *observed == generation
        {
            *observed = json!("current");
        }
    };
    current(&mut object["status"]);
    let metadata = object["metadata"].as_object_mut().unwrap();
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "generation",
    ] {
        metadata.remove(field);
    }
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        // A hash that depends on the namespace.
        annotations.remove("shardkv.io/applied");
    }
    for owner in object["metadata"]["ownerReferences"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        owner["uid"] = Value::Null;
    }
    for condition in object["status"]["conditions"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        condition["lastTransitionTime"] = Value::Null;
        current(condition);
    }
    if object["status"]["configNum"].is_number() {
        // Groups that join one by one need more configurations than groups that join together.
        object["status"]["configNum"] = Value::Null;
    }
    if object["spec"]["clusterIP"] != "None" {
        object["spec"]["clusterIP"] = Value::Null;
        object["spec"]["clusterIPs"] = Value::Null;
    }
    let text = object.to_string().replace(namespace, "NAMESPACE");
    serde_json::from_str(&text).unwrap()
}
