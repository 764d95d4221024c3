//! Installation of the operator by plain manifests instead of Helm.

use serde_json::json;

use crate::cluster::Cluster;
use crate::operator::{self, NAME, NAMESPACE, Operator};
use crate::scenario::{Company, scenario};
use crate::tools::{checkout, feed, must, run, say};

#[test]
fn plain_manifests_take_over_from_helm() {
    scenario("manifests", Company::Alone, async |space| {
        let small = json!({"replicasPerGroup": 1});
        let cluster = Cluster::create(&space, "demo", small).await;
        space.start_client(&[]).await;
        cluster.settled(1).await;
        cluster.import("kept/", 100).await;

        say("helm uninstall: the definition and the clusters stay");
        run(
            "helm",
            &["uninstall", NAME, "--namespace", NAMESPACE, "--wait"],
        )
        .await;
        cluster.shardkv(&["put", "without", "operator"]).await;
        say("kubectl apply");
        manifests("apply").await;
        #[rustfmt::skip]
        run("kubectl", &["rollout", "status", "deployment", NAME, "--namespace", NAMESPACE, "--timeout=120s"]).await;
        let from_manifests = Operator::new(&space.client).pod().await;
        assert!(from_manifests.metadata.name.is_some());
        cluster.scale(2).await;
        cluster.settled(2).await;
        cluster.holds_import("kept/", 100).await;
        let second = Cluster::create(&space, "second", json!({"replicasPerGroup": 1})).await;
        second.settled(1).await;
        second.delete().await;
        cluster.delete().await;

        say("helm again");
        manifests("delete").await;
        let args = operator::helm_install();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run("helm", &args).await;
    });
}

/// Applies or deletes `deploy/operator.yaml`, with the image under test. Never deletes the definition.
async fn manifests(verb: &str) {
    let file = checkout("deploy/operator.yaml");
    let text = std::fs::read_to_string(&file).expect("deploy/operator.yaml");
    let default = format!("shardkv-operator:{}", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&default), "{file} has no image {default}");
    let text = text.replace(&default, &operator::image());
    let documents = text
        .split("\n---\n")
        .filter(|document| verb == "apply" || !document.contains("kind: CustomResourceDefinition"));
    let text = documents.collect::<Vec<_>>().join("\n---\n");
    let mut args = vec![verb, "-f", "-"];
    if verb == "apply" {
        args.push("--server-side");
    }
    must(feed("kubectl", &args, text.as_bytes()).await);
}
