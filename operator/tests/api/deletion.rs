//! Deletion of clusters and groups, and retention of their volumes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::definition::namespace;
use crate::faults::Write;
use crate::raw;
use crate::rounds::{same, settled, small};
use crate::world::{Round, World};

/// Returns the deletions and the removal of the resource's finalizer, in order.
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

/// Returns the spec of a small cluster whose volumes are deleted with it.
fn volatile(groups: u32) -> Value {
    let mut spec = small(groups);
    spec["storage"] = json!({"onClusterDeletion": "Delete"});
    spec
}

#[tokio::test]
async fn a_cluster_is_deleted_in_order() {
    let mut world = World::new("order", &volatile(2)).await;
    world.settle().await;
    let before = world.faults.count();
    world.delete().await;
    world.settle().await;
    assert!(world.resource().await.is_none());
    assert_eq!(*world.forgotten.lock().unwrap(), ["demo"]);
    let writes = world.faults.writes_after(before);
    let steps = steps(&writes);
    let at = |step: &str| {
        let position = steps.iter().position(|it| it == step);
        position.unwrap_or_else(|| panic!("no {step}: {steps:?}"))
    };
    assert!(at("statefulsets/demo-group-1") < at("statefulsets/demo-controller"));
    assert!(at("statefulsets/demo-group-2") < at("statefulsets/demo-controller"));
    assert_eq!(steps.last().unwrap(), "shardkvclusters/demo");
    let left: Vec<_> = world.objects().await.into_keys().collect();
    assert_eq!(left, [""; 0]);
}

/// Such as with its namespace, which takes the rights of an operator of single namespaces away first.
#[tokio::test]
async fn a_cluster_whose_volumes_stay_is_deleted_without_an_operator() {
    let mut world = settled("alone", 2).await;
    let finalizers = async |world: &World| {
        let resource = world.resource().await.unwrap();
        resource["metadata"]["finalizers"].clone()
    };
    assert_eq!(finalizers(&world).await, Value::Null);
    // The finalizer follows the policy.
    let policy = |policy: &str| json!({"storage": {"onClusterDeletion": policy}});
    world.patch_spec(&policy("Delete")).await;
    world.settle().await;
    assert_eq!(finalizers(&world).await, json!(["shardkv.io/drain"]));
    world.patch_spec(&policy("Retain")).await;
    world.settle().await;
    assert_eq!(finalizers(&world).await, Value::Null);
    let before = world.faults.count();
    let last = world.resource().await.unwrap();
    world.delete().await;
    assert!(world.resource().await.is_none(), "no round is needed");
    world.settle().await;
    assert_eq!(world.faults.count(), before);
    // An operator that sees the end tells what is left.
    world.ended(last).await;
    let reasons = world.event_reasons().await;
    assert!(reasons.contains("ClusterDeleted"), "{reasons:?}");
    let volumes: Vec<_> = world.objects().await.into_keys().collect();
    assert_eq!(
        volumes,
        [
            "persistentvolumeclaims/data-demo-controller-0",
            "persistentvolumeclaims/data-demo-group-1-0",
            "persistentvolumeclaims/data-demo-group-2-0",
        ]
    );
    // One of an older operator is removed without a look at the objects, which may be forbidden by now.
    let world = &mut World::new("released", &small(1)).await;
    world.settle().await;
    let old = json!({"metadata": {"finalizers": ["shardkv.io/drain"]}});
    raw::merge(&world.admin, &world.path(), &old).await.good();
    world.delete().await;
    assert!(world.resource().await.is_some());
    world.round_succeeds().await;
    assert!(world.resource().await.is_none());
}

#[tokio::test]
async fn deletions_have_preconditions() {
    let mut world = World::new("precise", &volatile(2)).await;
    world.settle().await;
    let before = world.faults.count();
    world.patch_spec(&json!({"groups": 1})).await;
    world.settle().await;
    world.delete().await;
    world.settle().await;
    let writes = world.faults.writes_after(before);
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
async fn a_concurrent_change_prevents_the_deletion_of_a_group() {
    let mut world = settled("last-moment", 2).await;
    world.patch_spec(&json!({"groups": 1})).await;
    let (admin, path) = (
        world.admin.clone(),
        world.path_of("statefulsets", "group-2"),
    );
    let label = json!({"metadata": {"labels": {"example.com/keep": "perhaps"}}});
    let somebody = {
        let (admin, path) = (admin.clone(), path.clone());
        async move { drop(raw::merge(&admin, &path, &label).await.good()) }
    };
    world.faults.interfere("DELETE", "statefulsets", somebody);
    // The group gets the label in the round that tries to delete it.
    for _ in 0..20 {
        let round = world.round().await;
        assert!(matches!(round, Round::Ended(Ok(()))), "{round:?}");
        let set = raw::get(&admin, &path).await;
        assert_eq!(set.status, 200, "deleted although it had changed");
        if set.body["metadata"]["labels"]["example.com/keep"].is_string() {
            world.settle().await;
            assert!(world.object("statefulsets", "group-2").await.is_none());
            return;
        }
        world.tick().await;
    }
    panic!("the operator didn't try to delete it");
}

#[tokio::test]
async fn deletion_needs_neither_the_store_nor_the_objects() {
    // The store doesn't answer.
    let mut world = World::new("deaf", &volatile(2)).await;
    world.settle().await;
    world.store(|it| it.unreachable = true);
    world.delete().await;
    world.settle().await;
    assert!(world.resource().await.is_none());
    // All objects are deleted already.
    let mut world = World::new("bare", &volatile(2)).await;
    world.settle().await;
    world.allow_deletions = true;
    for name in world.objects().await.keys() {
        let Some((plural, object)) = name.split_once('/') else {
            continue;
        };
        let path = world.path_of(plural, object.strip_prefix("demo-").unwrap_or("controller"));
        raw::delete(&world.admin, &path, &Value::Null).await;
    }
    world.delete().await;
    world.settle().await;
    assert!(world.resource().await.is_none());
    // No round has created anything.
    let mut world = World::new("unborn", &small(1)).await;
    world.delete().await;
    assert!(matches!(world.round().await, Round::NoResource));
    // A cluster is deleted right after a round.
    let mut world = World::new("half", &volatile(1)).await;
    world.settle().await;
    world.round_succeeds().await;
    world.delete().await;
    world.settle().await;
    assert!(world.resource().await.is_none());
}

#[tokio::test]
async fn foreground_deletion_completes() {
    let mut world = World::new("foreground", &volatile(2)).await;
    world.settle().await;
    let options = json!({"propagationPolicy": "Foreground"});
    raw::delete(&world.admin, &world.path(), &options)
        .await
        .good();
    world.settle().await;
    assert!(world.resource().await.is_none());
    let left: Vec<_> = world.objects().await.into_keys().collect();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn orphan_deletion_leaves_the_objects() {
    let mut world = World::new("orphans", &volatile(2)).await;
    world.settle().await;
    let before = world.objects().await.len();
    let options = json!({"propagationPolicy": "Orphan"});
    raw::delete(&world.admin, &world.path(), &options)
        .await
        .good();
    world.round_succeeds().await;
    let resource = world.resource().await.unwrap();
    assert_eq!(
        resource["metadata"]["finalizers"],
        json!(["orphan"]),
        "the garbage collector does the rest"
    );
    world.round_succeeds().await;
    assert_eq!(world.objects().await.len(), before);
}

#[tokio::test]
async fn volumes_of_removed_groups_follow_the_policy() {
    for (policy, left) in [("Retain", 4), ("Delete", 2)] {
        let mut spec = small(3);
        spec["storage"] = json!({"onGroupRemoval": policy});
        let mut world = World::new("volumes", &spec).await;
        world.settle().await;
        world.patch_spec(&json!({"groups": 1})).await;
        world.settle().await;
        let names: Vec<_> = world.objects().await.into_keys().collect();
        let volumes = names
            .iter()
            .filter(|it| it.starts_with("persistent"))
            .count();
        assert_eq!(volumes, left, "{policy}: {names:?}");
        // Gids of removed groups are never used again.
        world.patch_spec(&json!({"groups": 2})).await;
        world.settle().await;
        assert_eq!(
            world.phases().await.into_keys().collect::<Vec<_>>(),
            [1, 4],
            "{policy}"
        );
    }
}

#[tokio::test]
async fn volumes_go_only_after_the_gid_is_retired() {
    let mut spec = small(2);
    spec["storage"] = json!({"onGroupRemoval": "Delete"});
    let mut world = World::new("retired", &spec).await;
    world.settle().await;
    let rest = world.faults.count();
    world.patch_spec(&json!({"groups": 1})).await;
    world.settle().await;
    let writes = world.faults.writes_after(rest);
    let first = |verb: &str, part: &str| {
        let at = |it: &Write| it.verb == verb && it.path.contains(part);
        writes.iter().position(at).unwrap()
    };
    let retired = first("retire", "[2]");
    assert!(first("leave", "[2]") < retired);
    assert!(retired < first("DELETE", "persistentvolumeclaims"));
    assert!(retired < first("DELETE", "statefulsets"));
    let all_retired = writes.iter().filter(|it| it.verb == "retire");
    assert_eq!(all_retired.count(), 1);
}

#[tokio::test]
async fn a_forgotten_group_is_replaced_and_its_volumes_stay() {
    let mut spec = small(2);
    spec["storage"] = json!({"onGroupRemoval": "Delete"});
    let mut world = World::new("forgotten", &spec).await;
    world.settle().await;
    world.store(|it| it.forget(2));
    world.settle().await;
    let names: Vec<_> = world.objects().await.into_keys().collect();
    let has = |part: &str| names.iter().any(|it| it.contains(part));
    assert!(!has("statefulsets/demo-group-2"), "{names:?}");
    let volumes = names.iter().filter(|it| it.starts_with("persistent"));
    let kept = volumes.filter(|it| it.contains("demo-group-2-")).count();
    assert_eq!(kept, 1, "{names:?}");
    let phases = world.phases().await;
    assert_eq!(phases.into_keys().collect::<Vec<_>>(), [1, 3]);
    assert_eq!(world.condition("Degraded").await.1, "False");
    let reasons = world.event_reasons().await;
    assert!(reasons.contains("VolumesRetained"), "{reasons:?}");
    assert!(reasons.contains("Retired"), "{reasons:?}");
    assert!(!reasons.contains("Drained"), "{reasons:?}");
}

#[tokio::test]
async fn a_new_cluster_of_the_same_name_uses_the_retained_volumes() {
    let mut world = settled("again", 3).await;
    world.patch_spec(&json!({"groups": 2})).await;
    world.settle().await;
    let before = world.objects().await;
    world.delete().await;
    world.settle().await;
    assert!(world.resource().await.is_none());
    world.create(&small(2)).await;
    world.restart();
    world.settle().await;
    let (mut before, mut after) = (before, world.objects().await);
    let numbers = |objects: &mut std::collections::BTreeMap<String, Value>| {
        let status = objects.get_mut("resource").unwrap();
        std::mem::take(&mut status["status"]["lastGid"])
    };
    // The first resource knew the removed group; the second sees only its volume.
    numbers(&mut before);
    numbers(&mut after);
    same(&before, &after, "the same groups");
    world.patch_spec(&json!({"groups": 3})).await;
    world.settle().await;
    assert_eq!(
        world.phases().await.into_keys().collect::<Vec<_>>(),
        [1, 2, 4]
    );
}

#[tokio::test]
async fn other_clusters_and_their_volumes_are_not_touched() {
    let admin = ApiServer::shared().admin();
    let spec = json!({"groups": 2, "replicasPerGroup": 1, "controllers": {"replicas": 1}, "shards": 12,
        "storage": {"onGroupRemoval": "Delete", "onClusterDeletion": "Delete"}});
    // Names of resources that equal names of another resource's objects.
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
        world.settle().await;
    }
    let strangers = [
        ("data-demo-group-1-0-of-mine", json!({})),
        // Labels alone don't make a volume the operator's.
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
    demo.patch_spec(&json!({"groups": 1})).await;
    demo.settle().await;
    demo.patch_spec(&json!({"groups": 3})).await;
    demo.settle().await;
    demo.delete().await;
    demo.settle().await;
    assert!(demo.resource().await.is_none());
    for (world, before) in worlds[1..].iter().zip(&before) {
        let what = format!("{} in {}", world.name, world.namespace);
        same(before, &world.objects().await, &what);
    }
    for world in &mut worlds[1..] {
        let count = world.faults.count();
        world.settle().await;
        assert_eq!(
            world.faults.count(),
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
