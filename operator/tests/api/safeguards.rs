//! Tests of the protection of running pods and of refusals: checked options, rival operators, quotas, annotations that others removed.

use serde_json::json;

use crate::raw;
use crate::rounds::{same, settled};

/// The pods of one StatefulSet are replaced at a time, and the next ones only when all are well again.
#[tokio::test]
async fn an_upgrade_changes_one_part_after_the_other() {
    let mut world = settled("upgrade", 2).await;
    world.patch_spec(&json!({"image": "next"})).await;
    let parts = ["controller", "group-1", "group-2"];
    for changed in 1..=parts.len() {
        for _ in 0..3 {
            world.round_succeeds().await;
            let mut images = Vec::new();
            for part in parts {
                let set = world.object("statefulsets", part).await.unwrap();
                images.push(set["spec"]["template"]["spec"]["containers"][0]["image"] == "next");
            }
            let expected: Vec<bool> = (0..parts.len()).map(|part| part < changed).collect();
            assert_eq!(images, expected);
            assert_eq!(world.condition("Progressing").await.0, "RollingOut");
        }
        world.tick().await;
    }
    world.settle().await;
    assert_eq!(world.condition("Progressing").await.0, "Stable");
}

/// Pods that started with the options of before keep them, whatever the spec says now.
#[tokio::test]
async fn options_are_checked_and_never_changed_in_place() {
    let mut world = settled("options", 1).await;
    let (old, before) = (world.options(), world.objects().await);
    // The API server accepts it. The parser of the nodes doesn't, and nothing is written but the status.
    let rest = world.faults.count();
    let typo = json!({"options": {"logFilter": "info,shardkv_server=debgu"}, "image": "other"});
    world.patch_spec(&typo).await;
    world.settle().await;
    let (reason, status, message) = world.condition("Degraded").await;
    assert_eq!((reason.as_str(), status.as_str()), ("InvalidSpec", "True"));
    assert!(
        message.contains("log_filter: `info,shardkv_server=debgu`"),
        "{message}"
    );
    let written = world.faults.writes_after(rest);
    let to_children = written
        .iter()
        .filter(|it| !it.path.contains("shardkvclusters") && !it.path.contains("events"));
    assert_eq!(to_children.count(), 0, "{written:#?}");
    let good = json!({"options": {"logFilter": "info"}, "image": null});
    world.patch_spec(&good).await;
    // The controllers change first.
    world.round_succeeds().await;
    world.tick().await;
    world.round_succeeds().await;
    let new = world.options();
    let mounted = world.object("statefulsets", "group-1").await.unwrap();
    let volumes = &mounted["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["configMap"]["name"], format!("demo-{new}"));
    // Kubernetes hasn't handled the new template yet, so pods of the old one may still start.
    world.round_succeeds().await;
    assert!(world.object("configmaps", &old).await.is_some());
    // A pod that isn't replaced yet.
    let pods = format!("/api/v1/namespaces/{}/pods", world.namespace);
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "demo-group-1-0", "labels": mounted["spec"]["template"]["metadata"]["labels"]},
        "spec": {"automountServiceAccountToken": false, "serviceAccountName": "demo-node",
            "containers": [{"name": "node", "image": "shardkv"}],
            "volumes": [{"name": "options", "configMap": {"name": format!("demo-{old}")}}]}});
    raw::post(&world.admin, &pods, &pod).await.good();
    world.settle().await;
    let kept = world.object("configmaps", &old).await.expect("in use");
    assert_eq!(kept["immutable"], true);
    let now = json!({"gracePeriodSeconds": 0});
    let path = format!("{pods}/demo-group-1-0");
    raw::delete(&world.admin, &path, &now).await.good();
    world.settle().await;
    assert!(world.object("configmaps", &old).await.is_none());
    assert!(world.object("configmaps", &new).await.is_some());
    // Back to the options of before, which are made again.
    world.patch_spec(&json!({"options": null})).await;
    world.settle().await;
    same(&before, &world.objects().await, "as before");
}

/// The StatefulSet controller is refused, not the operator, and says so in an event.
#[tokio::test]
async fn pods_that_a_quota_refuses_are_reported() {
    let mut world = settled("quota", 1).await;
    let set = world.object("statefulsets", "group-1").await.unwrap();
    let few = json!({"status": {"replicas": 0, "readyReplicas": 0, "availableReplicas": 0, "currentReplicas": 0,
        "updatedReplicas": 0}});
    let path = format!("{}/status", world.path_of("statefulsets", "group-1"));
    raw::merge(&world.admin, &path, &few).await.good();
    let why = r#"pods "demo-group-1-0" is forbidden: exceeded quota: few"#;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "refused"}, "type": "Warning",
        "reason": "FailedCreate", "lastTimestamp": "2026-01-01T00:00:00Z", "firstTimestamp": "2026-01-01T00:00:00Z",
        "message": format!("create Pod demo-group-1-0 in StatefulSet demo-group-1 failed error: {why}"),
        "involvedObject": {"apiVersion": "apps/v1", "kind": "StatefulSet", "namespace": world.namespace,
            "name": "demo-group-1", "uid": set["metadata"]["uid"]}});
    let events = format!("/api/v1/namespaces/{}/events", world.namespace);
    raw::post(&world.admin, &events, &event).await.good();
    world.round_succeeds().await;
    let (reason, status, message) = world.condition("Degraded").await;
    assert_eq!((reason.as_str(), status.as_str()), ("PodsNotReady", "True"));
    assert!(message.contains(why), "{message}");
    // Pods that exist explain themselves.
    world.settle().await;
    assert_eq!(world.condition("Degraded").await.1, "False");
}

/// The stage of a group that never joined looks like that of a member which the controllers have lost, if it is removed.
#[tokio::test]
async fn a_removed_stage_is_no_lost_group() {
    let mut world = settled("stageless", 1).await;
    world.store(|it| it.unproven = "not yet".to_owned());
    world.patch_spec(&json!({"groups": 2})).await;
    world.settle().await;
    let set = world.path_of("statefulsets", "group-2");
    let none = json!({"metadata": {"annotations": {"shardkv.io/stage": null}}});
    raw::merge(&world.admin, &set, &none).await.good();
    world.restart();
    world.round_succeeds().await;
    assert_eq!(world.condition("Degraded").await.0, "Refused");
    let set = raw::get(&world.admin, &set).await.good();
    let annotations = &set["metadata"]["annotations"];
    assert_eq!(annotations["shardkv.io/stage"], "new");
    world.store(|it| it.unproven.clear());
    world.settle().await;
    assert_eq!(world.phases().await[&2], "Serving");
    assert_eq!(world.condition("Degraded").await.1, "False");
}

#[tokio::test]
async fn an_older_operator_leaves_the_pods_of_a_newer_one() {
    let mut world = settled("older", 1).await;
    let set = world.path_of("statefulsets", "group-1");
    let newer = json!({"metadata": {"annotations": {"shardkv.io/operator-version": "99.0.0"}},
        "spec": {"template": {"spec": {"terminationGracePeriodSeconds": 45}}}});
    raw::merge(&world.admin, &set, &newer).await.good();
    world.settle().await;
    let live = raw::get(&world.admin, &set).await.good();
    let grace = "/spec/template/spec/terminationGracePeriodSeconds";
    assert_eq!(live.pointer(grace), Some(&json!(45)));
    let (reason, status, message) = world.condition("Degraded").await;
    assert_eq!(
        (reason.as_str(), status.as_str()),
        ("NewerOperator", "True")
    );
    assert!(message.contains("demo-group-1 (by 99.0.0)"), "{message}");
    // Groups come and go all the same.
    world.patch_spec(&json!({"groups": 2})).await;
    world.settle().await;
    assert_eq!(world.phases().await[&2], "Serving");
    let none = json!({"metadata": {"annotations": {"shardkv.io/operator-version": null}}});
    raw::merge(&world.admin, &set, &none).await.good();
    world.settle().await;
    let live = raw::get(&world.admin, &set).await.good();
    assert_eq!(live.pointer(grace), Some(&json!(30)));
    assert_eq!(world.condition("Degraded").await.1, "False");
}
