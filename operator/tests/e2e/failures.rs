//! Pods that are killed, and pods that can't start.

use kube::ResourceExt;
use serde_json::json;

use crate::cluster::Cluster;
use crate::load::Load;
use crate::scenario::{Company, scenario};
use crate::tools::{holds, say, until};

#[test]
fn a_cluster_survives_the_loss_of_a_group_s_pods_and_a_bad_image() {
    scenario("failures", Company::SideBySide, async |space| {
        let spec = json!({"groups": 2, "controllers": {"replicas": 3}});
        let cluster = Cluster::create(&space, "demo", spec).await;
        space.start_client(&[]).await;
        cluster.settled(2).await;
        cluster.import("kept/", 500).await;
        let load = Load::start(&cluster, "load", &[]).await;
        group_dies(&cluster).await;
        load.goes_on().await;
        bad_image(&cluster, &load).await;
        load.finish().await;
        cluster.holds_import("kept/", 500).await;
        cluster.delete().await;
    });
}

#[test]
fn a_quota_that_refuses_pods_is_reported() {
    scenario("quota", Company::SideBySide, async |space| {
        let small = json!({"replicasPerGroup": 1});
        let cluster = Cluster::create(&space, "demo", small).await;
        cluster.settled(1).await;
        space
            .apply(&json!({
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"name": "few", "namespace": space.name},
                "spec": {"hard": {"pods": "2"}},
            }))
            .await;
        until("the quota counts the pods", async || {
            let used = "jsonpath={.status.used.pods}";
            let used = space
                .try_kubectl(&["get", "quota", "few", "-o", used])
                .await?;
            holds(used == "2", used)
        })
        .await;
        cluster.scale(2).await;
        cluster
            .condition("Degraded", "True", "exceeded quota: few")
            .await;
        space.kubectl(&["delete", "quota", "few"]).await;
        cluster.settled(2).await;
        cluster.delete().await;
    });
}

/// Kills all pods of a group at once. The other group serves meanwhile, and no acknowledged write is lost.
async fn group_dies(cluster: &Cluster) {
    say("kill all pods of group 1");
    let labels = cluster.group_labels(1);
    let before = cluster.uids(&labels).await.unwrap();
    #[rustfmt::skip]
    cluster.space.kubectl(&["delete", "pods", "--selector", &labels, "--grace-period=0", "--force"]).await;
    cluster.condition("Available", "False", "group 1").await;
    until("all pods are new", async || {
        let now = cluster.uids(&labels).await?;
        holds(
            now.len() == before.len() && now.iter().all(|pod| !before.contains(pod)),
            format!("{now:?}"),
        )
    })
    .await;
    cluster.settled(2).await;
}

/// Rolls out an image that doesn't exist: it stops one controller, no node of a group, and needs no manual repair.
async fn bad_image(cluster: &Cluster, load: &Load) {
    say("a bad image");
    let good = cluster.get().await.unwrap().spec.image;
    let bad = "shardkv:no-such-version";
    cluster.patch(&json!({"spec": {"image": bad}})).await;
    let degraded = cluster.condition("Degraded", "True", bad).await;
    let (reason, message) = (degraded.reason, degraded.message);
    say(&format!("Degraded: {reason}: {message}"));
    until("one controller waits for the bad image", async || {
        let pods = cluster.space.pods(&cluster.labels()).await?;
        let image = |pod: &&k8s_openapi::api::core::v1::Pod| {
            pod.spec
                .as_ref()
                .and_then(|spec| spec.containers[0].image.clone())
        };
        let waiting: Vec<_> = pods
            .iter()
            .filter(|pod| image(pod).as_deref() == Some(bad))
            .map(ResourceExt::name_any)
            .collect();
        let controllers = waiting.iter().all(|pod| pod.contains("-controller-"));
        assert!(controllers && waiting.len() <= 1, "{waiting:?}");
        holds(waiting.len() == 1, format!("{waiting:?}"))
    })
    .await;
    cluster.condition("Available", "True", "").await;
    load.goes_on().await;
    say("the good image again");
    cluster.patch(&json!({"spec": {"image": good}})).await;
    cluster.settled(2).await;
    load.goes_on().await;
}
