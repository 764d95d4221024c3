//! Loss of machines: one for two minutes, and all at once.

use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use serde_json::json;

use crate::cluster::Cluster;
use crate::load::Load;
use crate::machines;
use crate::operator::Operator;
use crate::scenario::{Company, scenario};
use crate::tools::{holds, say, until};

#[test]
fn a_machine_is_lost_for_two_minutes() {
    if !machines::are_ours() {
        return;
    }
    scenario("machine", Company::Alone, async |space| {
        let operator = Operator::new(&space.client);
        let spec = json!({"groups": 2, "controllers": {"replicas": 3}});
        let cluster = Cluster::create(&space, "demo", spec).await;
        // The loss of the active operator's machine is the worst case.
        let machine = operator.machine().await;
        let old = operator.pod().await.name_any();
        space.start_client(&[&machine]).await;
        cluster.settled(2).await;
        cluster.import("kept/", 500).await;
        let load = Load::start(&cluster, "load", &[&machine]).await;

        say(&format!("kill {machine}"));
        machines::kill(&machine).await;
        let killed = Instant::now();
        load.goes_on().await;
        machines::is_ready(&space.client, &machine, false).await;
        load.goes_on().await;
        let seconds = killed.elapsed().as_secs();
        say(&format!("{machine} is not ready after {seconds} s"));
        // The other operator stands by on another machine, so it acts before any pod is evicted and replaced.
        until("the other operator holds the Lease", async || {
            let pod = operator.pod().await.name_any();
            holds(pod != old, pod)
        })
        .await;
        say(&format!(
            "another operator after {} s",
            killed.elapsed().as_secs()
        ));
        let degraded = cluster.condition("Degraded", "True", "Pods ready").await;
        let (reason, message) = (degraded.reason, degraded.message);
        say(&format!("Degraded: {reason}: {message}"));
        cluster.condition("Available", "True", "").await;
        let left = Duration::from_mins(2).saturating_sub(killed.elapsed());
        // The machine is lost for two minutes. Nothing below depends on the exact time.
        tokio::time::sleep(left).await;
        load.goes_on().await;

        say(&format!("start {machine} again"));
        machines::start(&machine).await;
        cluster.settled(2).await;
        load.goes_on().await;
        load.finish().await;
        cluster.holds_import("kept/", 500).await;
        cluster.delete().await;
    });
}

#[test]
fn all_of_kubernetes_loses_its_power() {
    if !machines::are_ours() {
        return;
    }
    scenario("power", Company::Alone, async |space| {
        let spec = json!({"groups": 1, "controllers": {"replicas": 3}});
        let cluster = Cluster::create(&space, "demo", spec).await;
        space.start_client(&[]).await;
        cluster.settled(1).await;
        cluster.import("kept/", 2000).await;
        machines::restart_all().await;
        say("everything starts again");
        cluster.settled(1).await;
        space
            .kubectl(&["delete", "pod", "client", "--ignore-not-found"])
            .await;
        space.start_client(&[]).await;
        cluster.holds_import("kept/", 2000).await;
        cluster.import("new/", 10).await;
        cluster.scale(2).await;
        cluster.settled(2).await;
        cluster.holds_import("new/", 10).await;
        cluster.holds_import("kept/", 2000).await;
        cluster.delete().await;
    });
}
