//! What the API server, the store or the owner of an object refuses: it is told, nothing is forced, and rounds go on when it is mended.

use serde_json::{Value, json};
use shardkv_operator::build::config_name;
use shardkv_operator::validate::validate;

use crate::raw;
use crate::rounds::{same, settled, small};
use crate::world::World;

#[tokio::test]
async fn foreign_objects_are_never_touched() {
    let mut world = World::new("taken", &small(1)).await;
    let resource = world.resource().await.unwrap();
    let cluster = validate(&serde_json::from_value(resource).unwrap()).unwrap();
    let name = config_name(&cluster);
    let own = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name,
        "labels": {"app.kubernetes.io/name": "shardkv", "app.kubernetes.io/instance": "demo"}}, "data": {"mine": "yes"}});
    let path = format!("/api/v1/namespaces/{}/configmaps", world.namespace);
    raw::post(&world.admin, &path, &own).await.good();
    let set = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "demo-client"}, "spec": {"ports": [{"port": 1}]}});
    let services = format!("/api/v1/namespaces/{}/services", world.namespace);
    raw::post(&world.admin, &services, &set).await.good();
    for _ in 0..4 {
        world.round_succeeds().await;
        world.tick().await;
    }
    let found = world.object("configmaps", &world.options()).await.unwrap();
    assert_eq!(found["data"], json!({"mine": "yes"}));
    assert!(found["metadata"].get("ownerReferences").is_none());
    // Pods would start with these options.
    for set in ["controller", "group-1"] {
        assert!(world.object("statefulsets", set).await.is_none());
    }
    let (reason, status, message) = world.condition("Degraded").await;
    assert_eq!((reason.as_str(), status.as_str()), ("NameTaken", "True"));
    assert!(
        message.contains(&format!("ConfigMap {name}")) && message.contains("Service demo-client"),
        "{message}"
    );
    // The operator doesn't repeat its writes.
    let rest = world.faults.count();
    for _ in 0..3 {
        world.round_succeeds().await;
    }
    assert_eq!(world.faults.count(), rest);
    raw::delete(&world.admin, &format!("{path}/{name}"), &Value::Null)
        .await
        .good();
    raw::delete(
        &world.admin,
        &format!("{services}/demo-client"),
        &Value::Null,
    )
    .await
    .good();
    world.settle().await;
    assert_eq!(world.condition("Degraded").await.1, "False");
    assert_eq!(world.condition("Available").await.1, "True");
}

#[tokio::test]
async fn a_refused_write_is_reported_until_the_spec_is_repaired() {
    let mut world = settled("refused", 1).await;
    let before = world.objects().await;
    let more_than_the_limit = json!({"resources": {"requests": {"memory": "2Gi"}}});
    world.patch_spec(&more_than_the_limit).await;
    world.settle().await;
    let (reason, status, message) = world.condition("Degraded").await;
    assert_eq!((reason.as_str(), status.as_str()), ("ApplyRefused", "True"));
    assert!(message.contains("memory limit"), "{message}");
    assert_eq!(
        world.condition("Available").await.1,
        "True",
        "running pods go on"
    );
    world
        .patch_spec(&json!({"resources": {"requests": {"memory": "256Mi"}}}))
        .await;
    world.settle().await;
    same(&before, &world.objects().await, "as before");
}

#[tokio::test]
async fn an_unreachable_store_is_reported() {
    let mut world = settled("unreachable", 2).await;
    let before = world.objects().await;
    world.store(|it| it.unreachable = true);
    world.patch_spec(&json!({"groups": 3})).await;
    let rest = world.faults.count();
    world.settle().await;
    // The operator reports it once and writes nothing else.
    let written = world.faults.writes_after(rest);
    assert!(
        written
            .iter()
            .all(|it| it.path.contains("/status") || it.path.contains("events")),
        "{written:#?}"
    );
    let (reason, status, message) = world.condition("Degraded").await;
    assert_eq!(
        (reason.as_str(), status.as_str()),
        ("StoreUnreachable", "True"),
        "{message}"
    );
    assert_eq!(world.condition("Available").await.1, "Unknown");
    world.store(|it| it.unreachable = false);
    world.patch_spec(&json!({"groups": 2})).await;
    world.settle().await;
    same(
        &before,
        &world.objects().await,
        "after the store answers again",
    );
}

#[tokio::test]
async fn a_refused_join_is_reported_and_tried_again() {
    let mut world = settled("unproven", 1).await;
    let why = "g2 doesn't join: demo-group-2-0:7400: no answer within 1s.";
    world.store(|it| it.unproven = why.to_owned());
    world.patch_spec(&json!({"groups": 2})).await;
    world.settle().await;
    let (reason, status, message) = world.condition("Degraded").await;
    assert_eq!((reason.as_str(), status.as_str()), ("Refused", "True"));
    assert!(message.contains(why), "{message}");
    assert_eq!(world.phases().await[&2], "Provisioning");
    assert!(world.event_reasons().await.contains("Refused"));
    world.store(|it| it.unproven.clear());
    world.settle().await;
    assert_eq!(world.phases().await[&2], "Serving");
    assert_eq!(world.condition("Degraded").await.1, "False");
}
