//! Recorded load: a pod that writes and reads until it is stopped, and the check of its history.

use std::fs;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use crate::cluster::Cluster;
use crate::dump;
use crate::tools::{checkout, holds, run, until};

/// A pod that generates load and writes its history to its log.
pub(crate) struct Load {
    cluster: Cluster,
    name: String,
}

impl Load {
    /// Starts load on a cluster, on none of these machines, and returns when it runs.
    ///
    /// A hundred operations a second are few enough that the log of three minutes isn't rotated (10 MiB), and many enough that each
    /// shard is written several times a second. An operation may take a minute with all of its retries, and none may fail.
    pub(crate) async fn start(cluster: &Cluster, name: &str, away_from: &[&str]) -> Self {
        let endpoint = cluster.endpoint().await;
        let prefix = format!("load/{name}/");
        #[rustfmt::skip]
        let command = [
            "--endpoints", &endpoint, "--timeout-ms", "60000",
            "bench", "--clients", "8", "--rate", "100", "--duration", "15m", "--warmup", "0s",
            "--read-ratio", "0.3", "--writes", "put,append,delete,cas", "--key-space", "100", "--key-prefix", &prefix,
            "--value-bytes", "24", "--max-errors", "0", "--moves", "--record", "/dev/stdout",
        ];
        let pod = cluster.space.pod(name, away_from, &command);
        cluster.space.apply(&pod).await;
        let load = Self {
            cluster: cluster.clone(),
            name: name.to_owned(),
        };
        load.goes_on().await;
        load
    }

    /// Waits until operations complete after this call.
    pub(crate) async fn goes_on(&self) {
        let before = self.last_line().await.unwrap_or_default();
        until(&format!("the load {} goes on", self.name), async || {
            self.is_running().await;
            let now = self.last_line().await?;
            holds(now != before, "no new operation")
        })
        .await;
    }

    /// Ends the load. No operation may have failed, and the checker must find the history linearizable, with every write
    /// in the store.
    pub(crate) async fn finish(self) {
        self.is_running().await;
        // The deadline stops the pod in an orderly way, and keeps its log.
        let space = &self.cluster.space;
        let end = r#"{"spec": {"activeDeadlineSeconds": 1}}"#;
        space
            .kubectl(&["patch", "pod", &self.name, "-p", end])
            .await;
        until(&format!("the load {} ends", self.name), async || {
            let phase = self.phase().await?;
            holds(phase != "Running", phase)
        })
        .await;
        let log = space.kubectl(&["logs", &self.name]).await;
        let (history, report): (Vec<&str>, Vec<&str>) =
            log.lines().partition(|line| line.starts_with('{'));
        println!("{}", report.join("\n"));
        assert!(!report.is_empty(), "the load ended without a report");
        let bad = history
            .iter()
            .find(|line| !line.contains(r#""outcome":"ok""#));
        assert!(bad.is_none(), "an operation failed: {bad:?}");
        self.check(&history.join("\n")).await;
        space.kubectl(&["delete", "pod", &self.name]).await;
    }

    /// Checks by porcupine that the history is linearizable and the store has every write.
    async fn check(&self, history: &str) {
        let prefix = format!("load/{}/", self.name);
        let pairs = self.cluster.shardkv(&["export", "--prefix", &prefix]).await;
        let folder = dump::folder(&self.cluster.space.name);
        let file = |suffix: &str, text: &str| {
            let path = folder.join(format!("{}.{suffix}", self.name));
            fs::write(&path, text).expect("target/ can be written");
            path.display().to_string()
        };
        let (pairs, history) = (file("pairs", &pairs), file("jsonl", history));
        #[rustfmt::skip]
        let args = ["-timeout", "120s", "-at-least", "1000", "-then", &pairs, &history];
        let checker = checker().display().to_string();
        println!("{}", run(&checker, &args).await.trim());
    }

    /// Fails the test if the load has ended.
    async fn is_running(&self) {
        let phase = self.phase().await.unwrap_or_default();
        if phase == "Failed" || phase == "Succeeded" {
            let log = self
                .cluster
                .space
                .kubectl(&["logs", &self.name, "--tail=200"])
                .await;
            let errors: Vec<&str> = log
                .lines()
                .filter(|line| !line.contains(r#""outcome":"ok""#))
                .collect();
            panic!("the load {} ended early: {}", self.name, errors.join("\n"));
        }
    }

    async fn phase(&self) -> anyhow::Result<String> {
        let pod = self.cluster.space.api::<Pod>().get(&self.name).await?;
        let phase = pod.status.and_then(|status| status.phase);
        Ok(phase.unwrap_or_default())
    }

    async fn last_line(&self) -> anyhow::Result<String> {
        let args = ["logs", &self.name, "--tail=1"];
        self.cluster.space.try_kubectl(&args).await
    }
}

fn checker() -> PathBuf {
    std::env::var_os("SHARDKV_CHECKER").map_or_else(
        || checkout("target/release/shardkv-porcupine").into(),
        PathBuf::from,
    )
}
