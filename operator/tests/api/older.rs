//! A definition that is older than the operator, which has no rules and no bounds: what slips through becomes a condition.

use serde_json::{Value, json};
use shardkv_operator::crd::definitions;
use shardkv_operator::yaml;

use crate::apiserver::{ADMIN, ApiServer};
use crate::definition::{install, install_one, namespace};
use crate::rounds::small;
use crate::world::{Round, World};

/// Takes all bounds and rules from a schema; types stay.
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
async fn what_an_older_definition_lets_through_is_told_and_can_be_mended_and_deleted() {
    let server = ApiServer::start();
    let config = server.config(ADMIN);
    let admin = server.admin();
    let (_, text) = definitions().unwrap().remove(0);
    let mut old: Value = yaml::read(&text).unwrap();
    without_bounds(&mut old);
    install_one(&admin, &old).await;
    namespace(&admin, "older", &json!({})).await;

    for (name, spec, told) in [
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
        world.rest().await;
        let (reason, status, message) = world.condition("Degraded").await;
        assert_eq!((reason.as_str(), status.as_str()), ("InvalidSpec", "True"));
        assert!(message.contains(told), "{message}");
        assert_eq!(world.objects().await.len(), 1, "nothing is made of it");
        let count = world.gate.count();
        for _ in 0..3 {
            world.well().await;
        }
        assert_eq!(world.gate.count(), count, "and nothing is written again");
        if name != "1st" {
            world.ask(&small(1)).await;
            let repaired = json!({"resources": null, "storage": null});
            world.ask(&repaired).await;
            world.rest().await;
            assert_eq!(world.condition("Available").await.1, "True", "{name}");
        }
        world.delete().await;
        world.rest().await;
        assert!(world.resource().await.is_none(), "{name}");
    }

    // One that was good and is made bad: what runs goes on, and it can be deleted.
    let mut world = World::at(config.clone(), "older", "demo");
    world.create(&small(2)).await;
    world.rest().await;
    let good = world.objects().await;
    world.ask(&json!({"groups": 0})).await;
    world.rest().await;
    assert_eq!(world.condition("Degraded").await.0, "InvalidSpec");
    assert_eq!(world.objects().await.len(), good.len());
    // A definition with bounds comes, and then the user mends it.
    install(&admin).await;
    let round = world.round().await;
    assert!(matches!(round, Round::Ended(Ok(()))), "{round:?}");
    world.ask(&json!({"groups": 2})).await;
    world.rest().await;
    crate::rounds::same(&good, &world.objects().await, "mended");
    // What Kubernetes can't change is refused, and told.
    install_one(&admin, &old).await;
    world.ask(&json!({"storage": {"size": "20Gi"}})).await;
    world.rest().await;
    let (reason, _, message) = world.condition("Degraded").await;
    assert_eq!(reason, "ApplyRefused");
    assert!(message.contains("updates to statefulset spec"), "{message}");
    assert_eq!(world.condition("Available").await.1, "True");
    world.ask(&json!({"groups": 0})).await;
    world.delete().await;
    world.rest().await;
    assert!(world.resource().await.is_none());
}
