//! Uses of the resource by `kubectl` and other programs: print it, scale it, write its status, apply it with several managers.

use kube::Client;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::definition::{clusters, namespace, resource};
use crate::raw;

/// Creates a resource in its own namespace and returns its path.
async fn created(name: &str, spec: &Value) -> (Client, String) {
    let client = ApiServer::shared().admin();
    namespace(&client, name, &json!({})).await;
    let path = clusters(name);
    raw::post(&client, &path, &resource("demo", spec))
        .await
        .good();
    (client, format!("{path}/demo"))
}

fn condition(of: &str, status: &str, reason: &str) -> Value {
    json!({"type": of, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

fn status() -> Value {
    json!({
        "observedGeneration": 1,
        "conditions": [
            condition("Available", "True", "Serving"),
            condition("Degraded", "False", "AsExpected"),
            condition("Progressing", "True", "Draining"),
        ],
        "groups": [
            {"gid": 1, "phase": "Serving", "readyReplicas": 3, "leader": "demo-group-1-0", "shards": 40},
            {"gid": 2, "phase": "Draining", "readyReplicas": 3, "shards": 24},
        ],
        "lastGid": 2,
        "configNum": 7,
        "shardsMoving": 24,
        "replicas": 1,
        "selector": "app.kubernetes.io/name=shardkv",
        "endpoint": "demo-client.default.svc:7400",
    })
}

#[tokio::test]
async fn the_table_shows_the_state() {
    let (client, path) = created("table", &json!({})).await;
    let columns = |table: &Value, key: &str| -> Vec<Value> {
        let columns = table["columnDefinitions"].as_array().unwrap();
        columns.iter().map(|it| it[key].clone()).collect()
    };
    let table = raw::table(&client, &path).await.good();
    assert_eq!(
        columns(&table, "name"),
        [
            "Name",
            "Groups",
            "Joined",
            "Available",
            "Degraded",
            "Status",
            "Moving",
            "Config",
            "Endpoint",
            "Age"
        ]
    );
    let wide = columns(&table, "priority");
    let wide: Vec<_> = wide.iter().map(|it| it.as_i64().unwrap()).collect();
    assert_eq!(
        wide,
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 0],
        "columns of -o wide come last"
    );
    let cells = |table: &Value| table["rows"][0]["cells"].as_array().unwrap()[..9].to_vec();
    let nothing = Value::Null;
    assert_eq!(
        cells(&table),
        [
            json!("demo"),
            json!(1),
            nothing.clone(),
            nothing.clone(),
            nothing.clone(),
            nothing.clone(),
            nothing.clone(),
            nothing.clone(),
            nothing,
        ],
        "before the operator has seen it"
    );
    raw::merge(
        &client,
        &format!("{path}/status"),
        &json!({"status": status()}),
    )
    .await
    .good();
    let table = raw::table(&client, &path).await.good();
    assert_eq!(
        cells(&table),
        [
            json!("demo"),
            json!(1),
            json!(1),
            json!("True"),
            json!("False"),
            json!("Draining"),
            json!(24),
            json!(7),
            json!("demo-client.default.svc:7400"),
        ]
    );
}

#[tokio::test]
async fn the_resource_has_a_short_name_and_the_category_all() {
    let client = ApiServer::shared().admin();
    let list = raw::get(&client, "/apis/shardkv.io/v1alpha1").await.good();
    let names: Vec<_> = list["resources"].as_array().unwrap().iter().collect();
    assert_eq!(names[0]["name"], "shardkvclusters");
    assert_eq!(names[0]["shortNames"], json!(["skv"]));
    assert_eq!(names[0]["categories"], json!(["all"]));
    assert_eq!(names[0]["namespaced"], true);
    let others: Vec<_> = names[1..].iter().map(|it| it["name"].clone()).collect();
    let keyspaces = ["shardkvkeyspaces", "shardkvkeyspaces/status"];
    assert_eq!(
        others[..2],
        ["shardkvclusters/status", "shardkvclusters/scale"]
    );
    assert_eq!(others[2..], keyspaces);
    assert_eq!(names[3]["shortNames"], json!(["skvks"]));
}

#[tokio::test]
async fn scaling_changes_the_number_of_groups_within_its_bounds() {
    let (client, path) = created("scale", &json!({"groups": 2})).await;
    raw::merge(
        &client,
        &format!("{path}/status"),
        &json!({"status": status()}),
    )
    .await
    .good();
    let path_of_scale = format!("{path}/scale");
    let mut scale = raw::get(&client, &path_of_scale).await.good();
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(
        scale["status"],
        json!({"replicas": 1, "selector": "app.kubernetes.io/name=shardkv"})
    );
    scale["spec"]["replicas"] = json!(4);
    let scaled = raw::put(&client, &path_of_scale, &scale).await.good();
    assert_eq!(scaled["spec"]["replicas"], 4);
    let stored = raw::get(&client, &path).await.good();
    assert_eq!(stored["spec"]["groups"], 4);
    assert_eq!(stored["metadata"]["generation"], 2);
    // The version that an autoscaler read before is outdated now.
    let late = raw::put(&client, &path_of_scale, &scale).await;
    assert_eq!(late.status, 409, "{late:?}");
    for replicas in [0, -1, 1001] {
        let change = json!({"spec": {"replicas": replicas}});
        let answer = raw::merge(&client, &path_of_scale, &change).await;
        let message = answer.refused();
        assert!(
            message.contains("spec.groups") || message.contains("spec.replicas"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn status_and_spec_are_written_separately() {
    let (client, path) = created("apart", &json!({})).await;
    let both = json!({"spec": {"groups": 9}, "status": {"configNum": 5}});
    let stored = raw::merge(&client, &format!("{path}/status"), &both)
        .await
        .good();
    assert_eq!(stored["spec"]["groups"], 1);
    assert_eq!(stored["status"]["configNum"], 5);
    assert_eq!(
        stored["metadata"]["generation"], 1,
        "a status update doesn't change the generation"
    );
    let both = json!({"spec": {"groups": 3}, "status": {"configNum": 6}});
    let stored = raw::merge(&client, &path, &both).await.good();
    assert_eq!(stored["spec"]["groups"], 3);
    assert_eq!(stored["status"]["configNum"], 5);
    assert_eq!(stored["metadata"]["generation"], 2);
    // The operator must not start with a status that a user wrote.
    let mut object = resource("born", &json!({}));
    object["status"] = json!({"lastGid": 7});
    let born = raw::post(&client, &clusters("apart"), &object).await.good();
    assert_eq!(born.get("status"), None);
}

#[tokio::test]
async fn lists_of_the_status_are_merged_by_their_keys() {
    let (client, path) = created("lists", &json!({})).await;
    let path = format!("{path}/status");
    let apply = async |manager: &str, status: Value| {
        let mut object = resource("demo", &json!({}));
        object["status"] = status;
        let path = format!("{path}?fieldManager={manager}&fieldValidation=Strict");
        raw::apply(&client, &path, &object).await
    };
    let group = |gid: i64, shards: i64| json!({"gid": gid, "phase": "Serving", "readyReplicas": 1, "shards": shards});
    let available = condition("Available", "True", "Serving");
    apply(
        "one",
        json!({"conditions": [available], "groups": [group(1, 5), group(2, 5)]}),
    )
    .await
    .good();
    // Another program adds its own condition.
    let other = condition("Inspected", "True", "Fine");
    apply("two", json!({"conditions": [other]})).await.good();
    let stored = apply(
        "one",
        json!({"conditions": [available], "groups": [group(2, 6)]}),
    )
    .await
    .good();
    let names = |list: &str, key: &str| -> Vec<Value> {
        let list = stored["status"][list].as_array().unwrap();
        list.iter().map(|it| it[key].clone()).collect()
    };
    assert_eq!(names("conditions", "type"), ["Available", "Inspected"]);
    assert_eq!(names("groups", "gid"), [2]);
    assert_eq!(stored["status"]["groups"][0]["shards"], 6);
    let twice = apply("one", json!({"groups": [group(1, 5), group(1, 6)]})).await;
    assert!(
        twice.refused().contains("duplicate entries for key"),
        "{}",
        twice.message()
    );
}
