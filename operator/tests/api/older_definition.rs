//! An older definition, without rules and bounds: the operator reports invalid resources that the API server accepts as a
//! condition.

use serde_json::{Value, json};
use shardkv_operator::crd::definitions;
use shardkv_operator::yaml;

use crate::apiserver::{ADMIN, ApiServer};
use crate::definition::{install, install_one, namespace};
use crate::rounds::small;
use crate::world::{Round, World};

/// Removes all bounds and rules from a schema; types stay.
fn without_bounds(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for bound in [
                "minimum",
                "maximum",
                "minLength",
                "maxLength",
                "maxItems",
                "maxProperties",
                "pattern",
                "enum",
                "x-kubernetes-validations",
            ] {
                map.remove(bound);
            }
            map.values_mut().for_each(without_bounds);
        }
        Value::Array(list) => list.iter_mut().for_each(without_bounds),
        _ => {}
    }
}

#[tokio::test]
async fn invalid_resources_are_reported_and_can_be_repaired_and_deleted() {
    let server = ApiServer::start();
    let config = server.config(ADMIN);
    let admin = server.admin();
    let (_, text) = definitions().unwrap().remove(0);
    let mut old: Value = yaml::read(&text).unwrap();
    without_bounds(&mut old);
    install_one(&admin, &old).await;
    namespace(&admin, "older", &json!({})).await;

    for (name, spec, problem) in [
        ("groups", json!({"groups": 0}), "spec.groups is 0"),
        (
            "replicas",
            json!({"replicasPerGroup": 4}),
            "spec.replicasPerGroup is 4",
        ),
        (
            "controllers",
            json!({"controllers": {"replicas": -1}}),
            "spec.controllers.replicas is -1",
        ),
        (
            "shards",
            json!({"shards": 2_000_000}),
            "spec.shards is 2000000",
        ),
        (
            "amounts",
            json!({"resources": {"limits": {"cpu": "many"}}}),
            "spec.resources.limits.cpu is `many`",
        ),
        (
            "sizes",
            json!({"storage": {"size": "big"}}),
            "spec.storage.size is `big`",
        ),
        ("1st", json!({}), "`1st`"),
    ] {
        let mut world = World::at(config.clone(), "older", name);
        world.create(&spec).await;
        world.settle().await;
        let (reason, status, message) = world.condition("Degraded").await;
        assert_eq!((reason.as_str(), status.as_str()), ("InvalidSpec", "True"));
        assert!(message.contains(problem), "{message}");
        assert_eq!(world.objects().await.len(), 1, "no object is created");
        let count = world.faults.count();
        for _ in 0..3 {
            world.round_succeeds().await;
        }
        assert_eq!(world.faults.count(), count, "and nothing is written again");
        if name != "1st" {
            world.patch_spec(&small(1)).await;
            let repaired = json!({"resources": null, "storage": null});
            world.patch_spec(&repaired).await;
            world.settle().await;
            assert_eq!(world.condition("Available").await.1, "True", "{name}");
        }
        world.delete().await;
        world.settle().await;
        assert!(world.resource().await.is_none(), "{name}");
    }

    // A valid resource becomes invalid: its objects stay, and it can be deleted.
    let mut world = World::at(config.clone(), "older", "demo");
    world.create(&small(2)).await;
    world.settle().await;
    let good = world.objects().await;
    world.patch_spec(&json!({"groups": 0})).await;
    world.settle().await;
    assert_eq!(world.condition("Degraded").await.0, "InvalidSpec");
    assert_eq!(world.objects().await.len(), good.len());
    // The definition with bounds is installed, then the user repairs the resource.
    install(&admin).await;
    let round = world.round().await;
    assert!(matches!(round, Round::Ended(Ok(()))), "{round:?}");
    world.patch_spec(&json!({"groups": 2})).await;
    world.settle().await;
    crate::rounds::same(&good, &world.objects().await, "repaired");
    // Kubernetes refuses a change of immutable fields, and the operator reports it.
    install_one(&admin, &old).await;
    let larger = json!({"storage": {"size": "20Gi"}});
    world.patch_spec_once_allowed(&larger).await;
    world.settle().await;
    let (reason, _, message) = world.condition("Degraded").await;
    assert_eq!(reason, "ApplyRefused");
    assert!(message.contains("updates to statefulset spec"), "{message}");
    assert_eq!(world.condition("Available").await.1, "True");
    world.patch_spec(&json!({"groups": 0})).await;
    world.delete().await;
    world.settle().await;
    assert!(world.resource().await.is_none());
}
