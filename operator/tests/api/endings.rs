//! How clusters end, and what of them stays.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::definition::namespace;
use crate::gate::Write;
use crate::raw;
use crate::rounds::{resting, same, small};
use crate::world::{Round, World};

/// The deletions and the last change of the resource, in their order.
fn steps(writes: &[Write]) -> Vec<String> {
    let paths = writes
        .iter()
        .filter(|it| it.verb == "DELETE" || it.body["metadata"]["finalizers"].is_array());
    let kind = |write: &Write| {
        let parts: Vec<&str> = write
            .path
            .split('?')
            .next()
            .unwrap()
            .rsplit('/')
            .take(2)
            .collect();
        format!("{}/{}", parts[1], parts[0])
    };
    paths.map(kind).collect()
}

#[tokio::test]
async fn a_cluster_goes_in_order() {
    let mut world = resting("order", 2).await;
    let before = world.gate.count();
    world.delete().await;
    world.rest().await;
    assert!(world.resource().await.is_none());
    assert_eq!(*world.forgotten.lock().unwrap(), ["demo"]);
    let writes = world.gate.writes_after(before);
    let steps = steps(&writes);
    let at = |step: &str| {
        let position = steps.iter().position(|it| it == step);
        position.unwrap_or_else(|| panic!("no {step}: {steps:?}"))
    };
    assert!(at("statefulsets/demo-group-1") < at("statefulsets/demo-controller"));
    assert!(at("statefulsets/demo-group-2") < at("statefulsets/demo-controller"));
    assert_eq!(steps.last().unwrap(), "shardkvclusters/demo");
    assert!(
        !steps.iter().any(|it| it.starts_with("persistent")),
        "{steps:?}"
    );
    let volumes: Vec<_> = world.objects().await.into_keys().collect();
    assert_eq!(
        volumes,
        [
            "persistentvolumeclaims/data-demo-controller-0",
            "persistentvolumeclaims/data-demo-group-1-0",
            "persistentvolumeclaims/data-demo-group-2-0",
        ]
    );
}

#[tokio::test]
async fn what_is_deleted_is_named_by_its_uid_and_version() {
    let mut world = resting("precise", 2).await;
    let before = world.gate.count();
    world.ask(&json!({"groups": 1})).await;
    world.rest().await;
    world.delete().await;
    world.rest().await;
    let writes = world.gate.writes_after(before);
    let deletions: Vec<_> = writes
        .iter()
        .filter(|write| write.verb == "DELETE")
        .collect();
    assert!(deletions.len() >= 6, "{deletions:?}");
    for deletion in deletions {
        let conditions = &deletion.body["preconditions"];
        assert!(conditions["uid"].is_string(), "{deletion:?}");
        if deletion.path.contains("statefulsets") {
            assert!(conditions["resourceVersion"].is_string(), "{deletion:?}");
        }
    }
}

#[tokio::test]
async fn a_group_that_changes_at_the_last_moment_is_looked_at_again() {
    let mut world = resting("last-moment", 2).await;
    world.ask(&json!({"groups": 1})).await;
    let (admin, path) = (
        world.admin.clone(),
        world.path_of("statefulsets", "group-2"),
    );
    let label = json!({"metadata": {"labels": {"example.com/keep": "perhaps"}}});
    let somebody = {
        let (admin, path) = (admin.clone(), path.clone());
        async move { drop(raw::merge(&admin, &path, &label).await.good()) }
    };
    world.gate.interfere("DELETE", "statefulsets", somebody);
    // The round in which it would be deleted is the one in which it gets the label.
    for _ in 0..20 {
        let round = world.round().await;
        assert!(matches!(round, Round::Ended(Ok(()))), "{round:?}");
        let set = raw::get(&admin, &path).await;
        assert_eq!(set.status, 200, "deleted though it had changed");
        if set.body["metadata"]["labels"]["example.com/keep"].is_string() {
            world.rest().await;
            assert!(world.object("statefulsets", "group-2").await.is_none());
            return;
        }
        world.tick().await;
    }
    panic!("nobody tried to delete it");
}

#[tokio::test]
async fn deletion_asks_nobody_and_waits_for_nobody() {
    // The store doesn't answer.
    let mut world = resting("deaf", 2).await;
    world.store(|it| it.unreachable = true);
    world.delete().await;
    world.rest().await;
    assert!(world.resource().await.is_none());
    // Everything is gone already.
    let mut world = resting("bare", 2).await;
    world.vandals = true;
    for name in world.objects().await.keys() {
        let Some((plural, object)) = name.split_once('/') else {
            continue;
        };
        let path = world.path_of(plural, object.strip_prefix("demo-").unwrap_or("controller"));
        raw::delete(&world.admin, &path, &Value::Null).await;
    }
    world.delete().await;
    world.rest().await;
    assert!(world.resource().await.is_none());
    // It was never begun.
    let mut world = World::new("unborn", &small(1)).await;
    world.delete().await;
    assert!(matches!(world.round().await, Round::Gone));
    // It makes no sense any more, as far as this operator understands it; another one has made it.
    let mut world = resting("half", 1).await;
    world.well().await;
    world.delete().await;
    world.rest().await;
    assert!(world.resource().await.is_none());
}

#[tokio::test]
async fn a_deletion_in_the_foreground_ends_too() {
    let mut world = resting("foreground", 2).await;
    let options = json!({"propagationPolicy": "Foreground"});
    raw::delete(&world.admin, &world.path(), &options)
        .await
        .good();
    world.rest().await;
    assert!(world.resource().await.is_none());
    let left: Vec<_> = world.objects().await.into_keys().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[tokio::test]
async fn objects_may_be_left_running() {
    let mut world = resting("orphans", 2).await;
    let before = world.objects().await.len();
    let options = json!({"propagationPolicy": "Orphan"});
    raw::delete(&world.admin, &world.path(), &options)
        .await
        .good();
    world.well().await;
    let resource = world.resource().await.unwrap();
    assert_eq!(
        resource["metadata"]["finalizers"],
        json!(["orphan"]),
        "the garbage collector does the rest"
    );
    world.well().await;
    assert_eq!(world.objects().await.len(), before);
}

#[tokio::test]
async fn volumes_of_groups_that_go_stay_or_go_as_is_asked() {
    for (policy, left) in [("Retain", 4), ("Delete", 2)] {
        let mut spec = small(3);
        spec["storage"] = json!({"onGroupRemoval": policy});
        let mut world = World::new("volumes", &spec).await;
        world.rest().await;
        world.ask(&json!({"groups": 1})).await;
        world.rest().await;
        let names: Vec<_> = world.objects().await.into_keys().collect();
        let volumes = names
            .iter()
            .filter(|it| it.starts_with("persistent"))
            .count();
        assert_eq!(volumes, left, "{policy}: {names:?}");
        // Whatever became of them, their numbers are used up.
        world.ask(&json!({"groups": 2})).await;
        world.rest().await;
        assert_eq!(
            world.phases().await.into_keys().collect::<Vec<_>>(),
            [1, 4],
            "{policy}"
        );
    }
}

#[tokio::test]
async fn a_cluster_of_the_same_name_takes_up_the_volumes_that_were_left() {
    let mut world = resting("again", 3).await;
    world.ask(&json!({"groups": 2})).await;
    world.rest().await;
    let before = world.objects().await;
    world.delete().await;
    world.rest().await;
    assert!(world.resource().await.is_none());
    world.create(&small(2)).await;
    world.restart();
    world.rest().await;
    let (mut before, mut after) = (before, world.objects().await);
    let numbers = |objects: &mut std::collections::BTreeMap<String, Value>| {
        let status = objects.get_mut("resource").unwrap();
        std::mem::take(&mut status["status"]["lastGid"])
    };
    // The first resource knew of the group that is gone; the second sees its volume.
    numbers(&mut before);
    numbers(&mut after);
    same(&before, &after, "the same groups");
    world.ask(&json!({"groups": 3})).await;
    world.rest().await;
    assert_eq!(
        world.phases().await.into_keys().collect::<Vec<_>>(),
        [1, 2, 4]
    );
}

#[tokio::test]
async fn neighbours_are_left_alone() {
    let admin = ApiServer::shared().admin();
    let spec = json!({"groups": 2, "replicasPerGroup": 1, "controllers": {"replicas": 1}, "shards": 12,
        "storage": {"onGroupRemoval": "Delete", "onClusterDeletion": "Delete"}});
    // Names that look like each other's objects.
    let places = [
        ("street", "demo"),
        ("street", "demo-group-1"),
        ("street", "demo-client"),
        ("other-street", "demo"),
    ];
    for place in ["street", "other-street"] {
        namespace(&admin, place, &json!({})).await;
    }
    let mut worlds = Vec::new();
    for (place, name) in places {
        let world = World::empty(place, name);
        world.create(&spec).await;
        worlds.push(world);
    }
    for world in &mut worlds {
        world.rest().await;
    }
    let strangers = [
        ("data-demo-group-1-0-of-mine", json!({})),
        // Labels alone make nothing ours.
        (
            "mine",
            json!({"app.kubernetes.io/name": "shardkv", "app.kubernetes.io/instance": "demo",
            "app.kubernetes.io/component": "group", "shardkv.io/gid": "1"}),
        ),
    ];
    let claims = "/api/v1/namespaces/street/persistentvolumeclaims";
    for (name, labels) in &strangers {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "labels": labels},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        raw::post(&admin, claims, &claim).await.good();
    }
    let mut before = Vec::new();
    for world in &worlds[1..] {
        before.push(world.objects().await);
    }
    let demo = &mut worlds[0];
    demo.ask(&json!({"groups": 1})).await;
    demo.rest().await;
    demo.ask(&json!({"groups": 3})).await;
    demo.rest().await;
    demo.delete().await;
    demo.rest().await;
    assert!(demo.resource().await.is_none());
    for (world, before) in worlds[1..].iter().zip(&before) {
        let what = format!("{} in {}", world.name, world.namespace);
        same(before, &world.objects().await, &what);
    }
    for world in &mut worlds[1..] {
        let count = world.gate.count();
        world.rest().await;
        assert_eq!(
            world.gate.count(),
            count,
            "{} had something to do",
            world.name
        );
    }
    let left = raw::get(&admin, claims).await.good();
    let left: BTreeSet<&str> = left["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["metadata"]["name"].as_str())
        .filter(|name| !name.starts_with("data-demo-group-1-group") && !name.contains("-client-"))
        .collect();
    let expected: BTreeSet<&str> = [
        "data-demo-group-1-0-of-mine",
        "data-demo-group-1-controller-0",
        "mine",
    ]
    .into();
    assert_eq!(left, expected);
}
