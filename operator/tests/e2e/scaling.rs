//! Groups are added and removed under load, while the operator is killed repeatedly.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::ListParams;
use serde_json::json;
use shardkv_operator::crd::GroupPhase;

use crate::cluster::Cluster;
use crate::load::Load;
use crate::operator::Operator;
use crate::scenario::{Company, scenario};
use crate::tools::{holds, say, until};

#[test]
fn groups_scale_under_load_while_the_operator_is_killed() {
    scenario("scaling", Company::SideBySide, async |space| {
        let operator = Operator::new(&space.client);
        let spec = json!({"groups": 2, "controllers": {"replicas": 3}});
        let cluster = Cluster::create(&space, "demo", spec).await;
        space.start_client(&[]).await;
        // Kills the operator while the pods of the first groups start.
        operator.kill().await;
        cluster.settled(2).await;
        cluster.import("kept/", 500).await;
        let load = Load::start(&cluster, "load", &[]).await;

        say("scale out to 3 groups");
        cluster.scale(3).await;
        for phase in [GroupPhase::Provisioning, GroupPhase::Joining] {
            cluster.reaches(3, phase).await;
            operator.kill().await;
        }
        cluster.settled(3).await;
        // An autoscaler takes the number of these pods for the number of groups.
        let selector = cluster.status().await.unwrap().selector.unwrap();
        assert_eq!(space.pods(&selector).await.unwrap().len(), 3, "{selector}");
        load.goes_on().await;

        say("scale in to 2 groups");
        cluster.scale(2).await;
        for phase in [GroupPhase::Draining, GroupPhase::Removing] {
            cluster.reaches(3, phase).await;
            operator.kill().await;
        }
        cluster.settled(2).await;
        space.no_pods(&cluster.group_labels(3)).await;
        no_volumes(&cluster, 3).await;

        load.goes_on().await;
        load.finish().await;
        cluster.holds_import("kept/", 500).await;
        // Gids are never used again.
        assert_eq!(cluster.status().await.unwrap().last_gid, Some(3));
        cluster.delete().await;
    });
}

/// Waits until the volumes of a removed group are deleted, as the spec asks.
async fn no_volumes(cluster: &Cluster, gid: i64) {
    let labels = ListParams::default().labels(&cluster.group_labels(gid));
    until("the group's volumes are deleted", async || {
        let claims = cluster
            .space
            .api::<PersistentVolumeClaim>()
            .list(&labels)
            .await;
        let left = claims?.items.len();
        holds(left == 0, format!("{left} are left"))
    })
    .await;
}
