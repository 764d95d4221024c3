//! The documented commands for a backup, in the pods of the store, with shards that don't fit into memory.

use serde_json::json;

use crate::cluster::Cluster;
use crate::scenario::{Company, scenario};
use crate::space::Space;
use crate::tools::{must, say};

/// Pairs of one shard, because they share a tag: twice of what `export` holds in memory.
fn large_shard() -> String {
    let value = "x".repeat(1_000_000);
    let pairs = (0..16).map(|number| format!("{{large}}/{number:02}\t{value}\n"));
    pairs.collect()
}

#[test]
fn a_large_shard_is_exported_and_imported_in_a_node_s_own_pod() {
    scenario("backup", Company::SideBySide, async |space| {
        let small = json!({"groups": 2, "replicasPerGroup": 1});
        let cluster = Cluster::create(&space, "demo", small).await;
        cluster.settled(2).await;
        let large = large_shard();
        shardkv(&space, &["import", "--format", "tsv"], &large).await;

        say("the documented commands");
        for group in ["demo-group-1-0", "demo-group-2-0"] {
            for command in ["status", "shards"] {
                let told = must(exec(&space, group, &[command], "").await);
                assert!(!told.is_empty(), "{command} in {group}");
            }
        }
        let backup = shardkv(&space, &["export"], "").await;
        assert_eq!(backup.lines().count(), 16);
        shardkv(&space, &["import"], &backup).await;
        let found = shardkv(&space, &["export", "--format", "tsv"], "").await;
        assert!(found == large, "{} bytes of {}", found.len(), large.len());
        cluster.delete().await;
    });
}

/// Runs the CLI in the first pod of group 1. The command must succeed.
async fn shardkv(space: &Space, args: &[&str], input: &str) -> String {
    must(exec(space, "demo-group-1-0", args, input).await)
}

/// Runs the CLI in a pod of the store.
async fn exec(space: &Space, pod: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
    let command = ["exec", "--stdin", pod, "--", "shardkv"];
    space
        .feed_kubectl(&[&command, args].concat(), input.as_bytes())
        .await
}
