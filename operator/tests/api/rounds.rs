//! Rounds of a running cluster: they settle, revert changes by others, and leave foreign objects and fields alone.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use shardkv_operator::build::{Component, names};
use shardkv_operator::validate::validate;
use shardkv_operator::yaml;

use crate::apiserver::ApiServer;
use crate::definition::namespace;
use crate::raw;
use crate::world::{Round, World};

/// Returns the spec of a small cluster: one node per part, and a number of shards that two, three and four groups share evenly.
pub(crate) fn small(groups: u32) -> Value {
    json!({"groups": groups, "replicasPerGroup": 1, "controllers": {"replicas": 1}, "shards": 12})
}

/// Returns a settled small cluster.
pub(crate) async fn settled(test: &str, groups: u32) -> World {
    let mut world = World::new(test, &small(groups)).await;
    world.settle().await;
    world
}

#[tokio::test]
async fn a_settled_cluster_is_not_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clusters");
    let mut scenarios = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let scenario: Value = yaml::read(&text).unwrap();
        settles_and_stays(&scenario["metadata"]["name"], &scenario["spec"]).await;
        scenarios += 1;
    }
    assert!(scenarios >= 3);
    // Amounts that the API server stores in another form.
    let odd = json!({"requests": {"memory": "1024Mi", "cpu": "1000m", "ephemeral-storage": "0.5Gi"},
        "limits": {"memory": "2147483648", "cpu": "2.50", "hugepages-2Mi": "0"}});
    let odd = json!({"resources": odd, "storage": {"size": "1024Mi"}, "controllers": {"size": "2048M", "resources": odd}});
    settles_and_stays(&json!("odd"), &odd).await;
    // Fields that are set to their defaults, or to empty values.
    let wordy = json!({"scheduling": {"tolerations": [], "nodeSelector": {}, "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": []}, "imagePullSecrets": [], "podTemplate": {"labels": {"a": ""}, "annotations": {"a": ""}},
        "serviceAccount": {"annotations": {"a": "b"}}});
    settles_and_stays(&json!("wordy"), &wordy).await;
}

async fn settles_and_stays(name: &Value, spec: &Value) {
    let name = name.as_str().unwrap();
    let place = format!("rest-{}", &name[..name.len().min(10)]);
    let admin = ApiServer::shared().admin();
    namespace(&admin, &place, &json!({})).await;
    let mut world = World::empty(&place, name);
    world.create(spec).await;
    world.settle().await;
    let rest = world.faults.count();
    for _ in 0..3 {
        world.round_succeeds().await;
    }
    // A new operator without memory writes nothing either.
    world.restart();
    for _ in 0..3 {
        world.round_succeeds().await;
    }
    let more = world.faults.writes_after(rest);
    assert!(more.is_empty(), "{name}: {more:#?}");

    let resource = world.resource().await.unwrap();
    let groups = resource["spec"]["groups"].as_u64().unwrap();
    assert_eq!(
        world.condition("Available").await.1,
        "True",
        "{}",
        resource["status"]
    );
    for off in ["Progressing", "Degraded", "Paused"] {
        assert_eq!(world.condition(off).await.1, "False", "{off} of {name}");
    }
    let phases = world.phases().await;
    assert_eq!(
        phases.keys().copied().collect::<Vec<_>>(),
        (1..=groups).collect::<Vec<_>>()
    );
    assert!(
        phases.values().all(|phase| phase == "Serving"),
        "{phases:?}"
    );
    assert_eq!(resource["status"]["replicas"], json!(groups));
    assert_eq!(resource["status"]["shardsMoving"], json!(0));
    assert_eq!(
        resource["status"]["observedGeneration"],
        resource["metadata"]["generation"]
    );
    assert_eq!(
        resource["status"]["configNum"],
        json!(world.store(|it| it.num()))
    );
    let cluster = validate(&serde_json::from_value(resource).unwrap()).unwrap();
    for gid in 1..=groups {
        let addresses = names::addresses(&cluster, Component::Group(gid));
        assert_eq!(world.store(|it| it.addresses(gid)), addresses);
    }
}

#[tokio::test]
async fn changes_and_deletions_by_others_are_reverted() {
    let mut world = settled("drift", 2).await;
    let good = world.objects().await;
    let options = world.options();
    let changes = [
        (
            "statefulsets",
            "group-1",
            json!({"spec": {"replicas": 3, "template": {"spec": {"terminationGracePeriodSeconds": 5}}}}),
        ),
        (
            "statefulsets",
            "controller",
            json!({"metadata": {"labels": {"app.kubernetes.io/name": "other"}}}),
        ),
        (
            "services",
            "client",
            json!({"spec": {"selector": {"app.kubernetes.io/component": "controller"}}}),
        ),
        (
            "services",
            "group-2",
            json!({"spec": {"publishNotReadyAddresses": false}}),
        ),
        (
            "poddisruptionbudgets",
            "group-1",
            json!({"spec": {"maxUnavailable": 5}}),
        ),
        (
            "configmaps",
            options.as_str(),
            json!({"metadata": {"labels": {"app.kubernetes.io/part-of": "b"}}}),
        ),
        (
            "networkpolicies",
            "node",
            json!({"spec": {"policyTypes": ["Egress"]}}),
        ),
        (
            "serviceaccounts",
            "node",
            json!({"automountServiceAccountToken": true}),
        ),
    ];
    for (plural, suffix, change) in changes {
        let path = world.path_of(plural, suffix);
        raw::merge(&world.admin, &path, &change).await.good();
        world.settle().await;
        same(&good, &world.objects().await, &format!("{change}"));
    }
    // Deleted objects without data are created again.
    for (plural, suffix) in [
        ("services", "client"),
        ("services", "controller"),
        ("services", "group-1"),
        ("poddisruptionbudgets", "group-1"),
        ("configmaps", options.as_str()),
        ("networkpolicies", "node"),
        ("serviceaccounts", "node"),
    ] {
        let path = world.path_of(plural, suffix);
        raw::delete(&world.admin, &path, &Value::Null).await.good();
        world.settle().await;
        same(
            &good,
            &world.objects().await,
            &format!("{plural} {suffix} was deleted"),
        );
    }
}

#[tokio::test]
async fn a_deleted_stateful_set_is_created_again_with_its_volumes() {
    let mut world = settled("deleted-sets", 2).await;
    let good = world.objects().await;
    world.allow_deletions = true;
    for suffix in ["group-1", "controller"] {
        let path = world.path_of("statefulsets", suffix);
        raw::delete(&world.admin, &path, &Value::Null).await.good();
        world.settle().await;
        same(
            &good,
            &world.objects().await,
            &format!("{suffix} was deleted"),
        );
    }
}

/// Compares the objects of two runs and reports differences.
#[track_caller]
pub(crate) fn same(
    expected: &std::collections::BTreeMap<String, Value>,
    found: &std::collections::BTreeMap<String, Value>,
    what: &str,
) {
    let names = |objects: &std::collections::BTreeMap<String, Value>| {
        objects.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(expected), names(found), "{what}");
    for (name, object) in expected {
        let (expected, found) = (
            yaml::write(object).unwrap(),
            yaml::write(&found[name]).unwrap(),
        );
        let differs = expected
            .lines()
            .zip(found.lines())
            .find(|(one, two)| one != two);
        assert!(
            expected == found,
            "{what}: {name} differs at {differs:?}:\n{expected}\nfound:\n{found}"
        );
    }
}

#[tokio::test]
async fn additions_by_others_stay() {
    let mut world = settled("additions", 1).await;
    let rest = world.faults.count();
    let label = json!({"metadata": {"labels": {"example.com/team": "a"}, "annotations": {"example.com/note": "b"}}});
    let options = world.options();
    let kinds = [
        ("statefulsets", "group-1"),
        ("services", "client"),
        ("configmaps", options.as_str()),
        ("serviceaccounts", "node"),
    ];
    for (plural, suffix) in kinds {
        raw::merge(&world.admin, &world.path_of(plural, suffix), &label)
            .await
            .good();
    }
    world.settle().await;
    let written = world.faults.writes_after(rest);
    assert!(written.is_empty(), "{written:#?}");
    // They also stay when the operator writes the objects.
    world
        .patch_spec(&json!({"image": "other", "serviceAccount": {"annotations": {"x": "y"}}}))
        .await;
    world.settle().await;
    for (plural, suffix) in kinds {
        let object = world.object(plural, suffix).await.unwrap();
        assert_eq!(
            object["metadata"]["labels"]["example.com/team"], "a",
            "{plural}"
        );
        assert_eq!(
            object["metadata"]["annotations"]["example.com/note"], "b",
            "{plural}"
        );
    }
    let set = world.object("statefulsets", "group-1").await.unwrap();
    assert_eq!(
        set["spec"]["template"]["spec"]["containers"][0]["image"],
        "other"
    );
}

#[tokio::test]
async fn fields_removed_from_the_spec_are_removed_from_objects() {
    let mut world = World::new("removals", &small(1)).await;
    world
        .patch_spec(
            &json!({"podTemplate": {"labels": {"team": "a"}}, "options": {"leaseReads": true},
            "scheduling": {"nodeSelector": {"disk": "ssd"}, "priorityClassName": "high"}}),
        )
        .await;
    world.settle().await;
    let set = world.object("statefulsets", "group-1").await.unwrap();
    assert_eq!(set["spec"]["template"]["metadata"]["labels"]["team"], "a");
    world
        .patch_spec(&json!({"podTemplate": null, "options": null, "scheduling": null, "podDisruptionBudget": {"enabled": false},
            "serviceAccount": {"name": "mine"}}))
        .await;
    world.settle().await;
    let set = world.object("statefulsets", "group-1").await.unwrap();
    let template = &set["spec"]["template"];
    assert_eq!(template["metadata"]["labels"].get("team"), None);
    assert_eq!(template["spec"].get("nodeSelector"), None);
    assert_eq!(template["spec"].get("priorityClassName"), None);
    assert_eq!(template["spec"]["serviceAccountName"], "mine");
    let config = world.object("configmaps", &world.options()).await;
    let config = config.unwrap();
    assert!(!config["data"].to_string().contains("lease_reads"));
    assert!(
        world
            .object("poddisruptionbudgets", "group-1")
            .await
            .is_none()
    );
    assert!(
        world
            .object("poddisruptionbudgets", "controller")
            .await
            .is_none()
    );
}

#[tokio::test]
async fn fields_that_another_manager_takes_are_taken_back() {
    let mut world = settled("claims", 1).await;
    let good = world.objects().await;
    let path = world.path_of("statefulsets", "group-1");
    let other = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "demo-group-1"},
        "spec": {"replicas": 5, "minReadySeconds": 7}});
    let apply = format!("{path}?fieldManager=other&force=true");
    raw::apply(&world.admin, &apply, &other).await.good();
    world.settle().await;
    let set = world.object("statefulsets", "group-1").await.unwrap();
    assert_eq!(set["spec"]["replicas"], 1, "owned by the operator");
    assert_eq!(
        set["spec"]["minReadySeconds"], 7,
        "owned by the other manager"
    );
    let none = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "demo-group-1"}});
    raw::apply(&world.admin, &apply, &none).await.good();
    world.settle().await;
    same(
        &good,
        &world.objects().await,
        "after the other manager gave up its fields",
    );
}

#[tokio::test]
async fn a_concurrent_change_of_the_spec_is_not_lost() {
    let mut world = settled("moment", 1).await;
    let (admin, path) = (world.admin.clone(), world.path());
    let more = async move {
        let three = json!({"spec": {"groups": 3}});
        raw::merge(&admin, &path, &three).await.good();
    };
    // Between the round's read of the resource and its write of the status.
    world.faults.interfere("PATCH", "demo/status", more);
    world.patch_spec(&json!({"groups": 2})).await;
    world.settle().await;
    assert_eq!(world.store(|it| it.members()).len(), 3);
    let resource = world.resource().await.unwrap();
    assert_eq!(resource["spec"]["groups"], 3);
    assert_eq!(
        resource["status"]["observedGeneration"],
        resource["metadata"]["generation"]
    );
}

#[tokio::test]
async fn the_scale_subresource_changes_the_number_of_groups() {
    let mut world = settled("scaled", 1).await;
    for groups in [3, 2, 4, 1] {
        let path = format!("{}/scale", world.path());
        let scale = json!({"spec": {"replicas": groups}});
        raw::merge(&world.admin, &path, &scale).await.good();
        world.settle().await;
        let scale = raw::get(&world.admin, &path).await.good();
        assert_eq!(scale["status"]["replicas"], groups);
        let members = world.store(|it| it.members());
        assert_eq!(members.len(), groups as usize);
        assert!(
            members.values().all(|shards| *shards == 12 / groups),
            "{members:?}"
        );
        assert_eq!(
            world.phases().await.into_keys().collect::<Vec<_>>(),
            members.into_keys().collect::<Vec<_>>()
        );
    }
    // 1; 1, 2, 3; 1, 2; 1, 2, 4, 5; 1.
    let resource = world.resource().await.unwrap();
    assert_eq!(resource["status"]["lastGid"], 5);
}

#[tokio::test]
async fn a_paused_cluster_is_not_changed() {
    let mut world = settled("paused", 1).await;
    let before = world.objects().await;
    world
        .patch_spec(&json!({"paused": true, "groups": 3, "image": "other"}))
        .await;
    let path = world.path_of("services", "client");
    raw::delete(&world.admin, &path, &Value::Null).await.good();
    let rest = world.faults.count();
    world.settle().await;
    let written = world.faults.writes_after(rest);
    let to_children = written
        .iter()
        .filter(|it| !it.path.contains("shardkvclusters") && !it.path.contains("events"));
    assert_eq!(to_children.count(), 0, "{written:#?}");
    assert_eq!(world.condition("Paused").await.1, "True");
    assert_eq!(world.condition("Available").await.1, "True");
    assert!(world.object("services", "client").await.is_none());
    world
        .patch_spec(&json!({"paused": false, "groups": 1, "image": null}))
        .await;
    world.settle().await;
    same(&before, &world.objects().await, "after the pause");
    // A paused cluster can be deleted, with its volumes.
    let policy = json!({"onClusterDeletion": "Delete"});
    world.patch_spec(&json!({"paused": true})).await;
    world.settle().await;
    world.patch_spec(&json!({"storage": policy})).await;
    world.settle().await;
    world.delete().await;
    world.settle().await;
    let left: Vec<_> = world.objects().await.into_keys().collect();
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn a_cluster_that_starts_paused_has_no_objects() {
    let mut spec = small(1);
    spec["paused"] = json!(true);
    let mut world = World::new("born-paused", &spec).await;
    world.settle().await;
    let objects: Vec<_> = world.objects().await.into_keys().collect();
    assert_eq!(objects, ["resource"]);
    world.delete().await;
    world.settle().await;
    assert!(world.resource().await.is_none());
}

#[tokio::test]
async fn two_operators_at_the_same_time_do_no_harm() {
    // This happens if a holder doesn't notice that its Lease has expired.
    let mut world = World::new("rivals", &small(3)).await;
    let mut rival = World::empty(&world.namespace, "demo");
    rival.stores = Arc::clone(&world.stores);
    rival.restart();
    for groups in [3, 1, 2] {
        world.patch_spec(&json!({"groups": groups})).await;
        for _ in 0..30 {
            let (one, two) = tokio::join!(world.round(), rival.round());
            for round in [one, two] {
                assert!(matches!(round, Round::Ended(Ok(()))), "{round:?}");
            }
            world.tick().await;
        }
        world.settle().await;
        rival.settle().await;
        assert_eq!(world.store(|it| it.members()).len(), groups);
    }
    let members: Vec<u64> = world.store(|it| it.members()).into_keys().collect();
    assert_eq!(members, [1, 4]);
}
