//! Several clusters do not affect each other, and example applications use them.

use serde_json::json;

use crate::cluster::Cluster;
use crate::machines;
use crate::scenario::{Company, scenario};
use crate::space::Space;
use crate::tools::{checkout, feed, holds, must, say, until};

#[test]
fn clusters_in_one_and_in_two_namespaces_are_isolated() {
    scenario("isolation", Company::SideBySide, async |space| {
        let other = space.another("other").await;
        let small = json!({"replicasPerGroup": 1});
        // The examples use a cluster `demo`. The second cluster has the name of an object of the first.
        let clusters = [
            Cluster::create(&space, "demo", small.clone()).await,
            Cluster::create(&space, "demo-group-1", small.clone()).await,
            Cluster::create(&other, "demo", small).await,
        ];
        space.start_client(&[]).await;
        other.start_client(&[]).await;
        for cluster in &clusters {
            cluster.settled(1).await;
        }
        for (number, cluster) in clusters.iter().enumerate() {
            cluster.shardkv(&["put", "id", &number.to_string()]).await;
        }
        // Pods of other namespaces reach a service by its full name.
        for (number, cluster) in clusters.iter().enumerate() {
            assert_eq!(id(cluster, cluster).await, number.to_string());
            assert_eq!(id(cluster, &clusters[0]).await, number.to_string());
        }
        // One cluster scales and one is deleted; the others are not affected.
        let [scaled, deleted, left] = clusters;
        scaled.scale(2).await;
        deleted.delete().await;
        scaled.settled(2).await;
        left.settled(1).await;
        assert_eq!(id(&scaled, &scaled).await, "0");
        assert_eq!(id(&left, &left).await, "2");
        let claims = ["get", "pvc", "-o", "name", "--selector", &deleted.labels()];
        until("the deleted cluster's volumes are deleted", async || {
            let left = space.try_kubectl(&claims).await?;
            holds(left.is_empty(), left)
        })
        .await;
        for language in ["rust", "python"] {
            application(&space, language).await;
        }
        scaled.delete().await;
        left.delete().await;
    });
}

/// Reads a cluster's key `id` from the client pod in the namespace of `from`.
async fn id(of: &Cluster, from: &Cluster) -> String {
    let endpoint = of.endpoint().await;
    let args = ["--endpoints", &endpoint, "get", "id"];
    let answer = must(from.space.shardkv(&args, b"").await);
    answer.trim().to_owned()
}

/// Runs an example application as its documentation says, in the namespace of the cluster `demo`.
async fn application(space: &Space, language: &str) {
    let variable = format!("EXAMPLE_{}_IMAGE", language.to_uppercase());
    let default = format!("shardkv-example-{language}:{}", env!("CARGO_PKG_VERSION"));
    let image = match std::env::var(&variable) {
        Ok(image) => image,
        Err(_) if machines::are_ours() => default.clone(),
        Err(_) => return say(&format!("skipped: {variable} is not set")),
    };
    let file = checkout(&format!("deploy/examples/{language}/job.yaml"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert!(text.contains(&default), "{file} has no image {default}");
    let text = text.replace(&default, &image);
    let args = ["apply", "--namespace", &space.name, "-f", "-"];
    must(feed("kubectl", &args, text.as_bytes()).await);
    let job = format!("job/example-{language}");
    until(&format!("the example in {language} ends"), async || {
        let ended = "jsonpath={.status.succeeded} {.status.failed}";
        let ended = space.try_kubectl(&["get", &job, "-o", ended]).await?;
        holds(!ended.trim().is_empty(), "the example still runs")
    })
    .await;
    let log = space.kubectl(&["logs", &job]).await;
    say(log.trim());
    #[rustfmt::skip]
    space.kubectl(&["wait", &job, "--for=condition=Complete", "--timeout=10s"]).await;
}
