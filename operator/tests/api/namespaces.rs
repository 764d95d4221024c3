//! An operator of single namespaces: a deleted namespace takes its rights away before the cluster is deleted.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::raw;
use crate::rounds::small;
use crate::world::{Round, World};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Grants rules to the account `operator` of the namespace, by a role in it, or in all namespaces.
async fn grant(world: &World, everywhere: bool, name: &str, rules: &Value) {
    let prefix = if everywhere { "Cluster" } else { "" };
    let base = if everywhere {
        RBAC.to_owned()
    } else {
        format!("{RBAC}/namespaces/{}", world.namespace)
    };
    let role = format!("{prefix}Role");
    let account =
        json!({"kind": "ServiceAccount", "name": "operator", "namespace": world.namespace});
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name});
    let binding = json!({"metadata": {"name": name}, "roleRef": reference, "subjects": [account]});
    let rules = json!({"metadata": {"name": name}, "rules": rules});
    let plural = role.to_lowercase();
    for (plural, object) in [
        (format!("{plural}s"), rules),
        (format!("{plural}bindings"), binding),
    ] {
        raw::post(&world.admin, &format!("{base}/{plural}"), &object)
            .await
            .good();
    }
}

/// Creates the account, and returns a token of it.
async fn account(world: &World) -> String {
    let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", world.namespace);
    let account = json!({"metadata": {"name": "operator"}});
    raw::post(&world.admin, &accounts, &account).await.good();
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let answer = raw::post(
        &world.admin,
        &format!("{accounts}/operator/token"),
        &request,
    )
    .await;
    answer.good()["status"]["token"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Returns the rules that the chart grants in all namespaces with `rbac.finishDeletedNamespaces`.
fn finish(world: &World) -> Value {
    json!([
        {"apiGroups": ["shardkv.io"], "resources": ["shardkvclusters"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": [world.namespace], "verbs": ["get"]},
    ])
}

/// Runs rounds until one ends as expected: the API server follows changed rights a moment later.
async fn round_until(world: &mut World, what: &str, expected: impl Fn(&Round) -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let round = world.round().await;
        if expected(&round) {
            return;
        }
        assert!(Instant::now() < end, "{what}: {round:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_namespace_can_be_deleted_with_a_cluster_whose_volumes_go() {
    let mut spec = small(1);
    spec["storage"] = json!({"onClusterDeletion": "Delete"});
    let mut world = World::new("ends", &spec).await;
    let admin = world.admin.clone();
    let namespace = format!("/api/v1/namespaces/{}", world.namespace);
    let token = account(&world).await;
    let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    grant(&world, false, "operator", &all).await;
    world.operated_by(ApiServer::shared().config(&token));
    let succeeds = |round: &Round| matches!(round, Round::Ended(Ok(())));
    round_until(&mut world, "the rights are granted", succeeds).await;
    world.settle().await;

    // As the namespace's controller does: in no order of ours.
    raw::delete(&admin, &namespace, &Value::Null).await.good();
    let binding = format!(
        "{RBAC}/namespaces/{}/rolebindings/operator",
        world.namespace
    );
    raw::delete(&admin, &binding, &Value::Null).await.good();
    world.delete().await;
    let fails = |round: &Round| matches!(round, Round::Ended(Err(_)));
    round_until(&mut world, "the rights are gone", fails).await;
    assert!(world.resource().await.is_some(), "the finalizer keeps it");

    let name = format!("finish-{}", world.namespace);
    grant(&world, true, &name, &finish(&world)).await;
    // An operator that starts only now finds the resource, too.
    world.restart();
    let end = Instant::now() + Duration::from_mins(1);
    let released = async {
        while world.resource().await.is_some() {
            assert!(Instant::now() < end, "the resource isn't released");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = world.watched() => panic!("the watches ended"),
        () = released => {}
    }
}

/// A right that is missing for another reason deletes nothing and releases nothing.
#[tokio::test]
async fn a_missing_right_alone_releases_no_cluster() {
    let mut spec = small(1);
    spec["storage"] = json!({"onClusterDeletion": "Delete"});
    let mut world = World::new("stays", &spec).await;
    world.settle().await;
    let token = account(&world).await;
    let name = format!("few-{}", world.namespace);
    grant(&world, true, &name, &finish(&world)).await;
    world.operated_by(ApiServer::shared().config(&token));
    world.delete().await;
    // The right to read the resource is there once the error is about its objects.
    let objects = |round: &Round| match round {
        Round::Ended(Err(error)) => !error.to_string().contains("cannot get resource"),
        _ => false,
    };
    round_until(&mut world, "the objects can't be listed", objects).await;
    assert!(world.resource().await.is_some(), "nothing was released");
}
