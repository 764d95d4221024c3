//! A `ShardKvCluster`, as its user sees it.

use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use shardkv_operator::crd::{GroupPhase, GroupStatus, ShardKvCluster, ShardKvClusterStatus};

use crate::space::Space;
use crate::tools::{holds, image, must, until};

/// A cluster that a scenario created.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// Namespace of the resource.
    pub(crate) space: Space,
    /// Name of the resource.
    pub(crate) name: String,
}

impl Cluster {
    /// Creates the resource of a small cluster, with the fields of `spec`. Its volumes are deleted with it.
    pub(crate) async fn create(space: &Space, name: &str, spec: Value) -> Self {
        let small = |memory: &str| json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": memory}});
        let mut whole = json!({
            "shards": 12,
            "image": image(),
            "storage": {"size": "1Gi", "onGroupRemoval": "Delete", "onClusterDeletion": "Delete"},
            "resources": small("1Gi"),
            "controllers": {"replicas": 1, "resources": small("512Mi")},
        });
        merge(&mut whole, spec);
        let manifest = json!({
            "apiVersion": "shardkv.io/v1alpha1",
            "kind": "ShardKvCluster",
            "metadata": {"name": name, "namespace": space.name},
            "spec": whole,
        });
        space.apply(&manifest).await;
        Self {
            space: space.clone(),
            name: name.to_owned(),
        }
    }

    /// Reads the resource.
    pub(crate) async fn get(&self) -> anyhow::Result<ShardKvCluster> {
        let api: Api<ShardKvCluster> = self.space.api();
        Ok(api.get(&self.name).await?)
    }

    /// Reads the status.
    pub(crate) async fn status(&self) -> anyhow::Result<ShardKvClusterStatus> {
        self.get().await?.status.context("no status")
    }

    /// Waits until the status reports this many groups, all serving, without moving shards or problems.
    pub(crate) async fn settled(&self, groups: i32) {
        until(
            &format!("{} settles with {groups} groups", self.name),
            async || {
                let resource = self.get().await?;
                settled(&resource, groups).with_context(|| format!("{:?}", resource.status))
            },
        )
        .await;
    }

    /// Waits until a condition of the latest generation has this status, and a message that contains `mentions`.
    pub(crate) async fn condition(&self, of: &str, status: &str, mentions: &str) -> Condition {
        until(
            &format!("{} of {} is {status}", of, self.name),
            async || {
                let resource = self.get().await?;
                let condition = condition(&resource, of)?;
                let found = condition.status == status && condition.message.contains(mentions);
                holds(found, format!("{condition:?}"))?;
                Ok(condition)
            },
        )
        .await
    }

    /// Waits until a group is in this phase or a later one.
    pub(crate) async fn reaches(&self, gid: i64, phase: GroupPhase) {
        until(
            &format!("group {gid} of {} is {phase:?}", self.name),
            async || {
                let status = self.status().await?;
                let found = status.groups.iter().find(|group| group.gid == gid);
                match found {
                    Some(group) => holds(group.phase >= phase, format!("{group:?}")),
                    None => holds(phase >= GroupPhase::Draining, "the group doesn't exist yet"),
                }
            },
        )
        .await;
    }

    /// Runs `kubectl scale`.
    pub(crate) async fn scale(&self, groups: i32) {
        let of = format!("skv/{}", self.name);
        let to = format!("--replicas={groups}");
        self.space.kubectl(&["scale", &of, &to]).await;
    }

    /// Runs `kubectl patch` with a merge patch.
    pub(crate) async fn patch(&self, patch: &Value) {
        let of = format!("skv/{}", self.name);
        let patch = patch.to_string();
        self.space
            .kubectl(&["patch", &of, "--type=merge", "-p", &patch])
            .await;
    }

    /// Runs `kubectl delete` and waits until the cluster's pods are deleted.
    pub(crate) async fn delete(&self) {
        let of = format!("skv/{}", self.name);
        self.space.kubectl(&["delete", &of, "--timeout=150s"]).await;
        self.space.no_pods(&self.labels()).await;
    }

    /// Returns the selector of all pods of the cluster.
    pub(crate) fn labels(&self) -> String {
        format!("app.kubernetes.io/instance={}", self.name)
    }

    /// Returns the selector of a group's pods.
    pub(crate) fn group_labels(&self, gid: i64) -> String {
        format!("{},shardkv.io/gid={gid}", self.labels())
    }

    /// Returns the endpoint for clients in the status.
    pub(crate) async fn endpoint(&self) -> String {
        let status = must(self.status().await);
        status.endpoint.expect("a running cluster has an endpoint")
    }

    /// Runs the CLI in the client pod, against this cluster.
    pub(crate) async fn try_shardkv(&self, args: &[&str], input: &[u8]) -> anyhow::Result<String> {
        let endpoint = self.endpoint().await;
        let global = ["--endpoints", &endpoint, "--timeout-ms", "60000"];
        self.space.shardkv(&[&global, args].concat(), input).await
    }

    /// Runs the CLI in the client pod. The command must succeed.
    pub(crate) async fn shardkv(&self, args: &[&str]) -> String {
        must(self.try_shardkv(args, b"").await)
    }

    /// Writes `count` pairs under `prefix`.
    pub(crate) async fn import(&self, prefix: &str, count: usize) {
        let text = pairs(prefix, count).concat();
        let import = ["import", "--format", "tsv", "-"];
        must(self.try_shardkv(&import, text.as_bytes()).await);
    }

    /// Checks that the store has exactly the pairs that [`Self::import`] wrote.
    pub(crate) async fn holds_import(&self, prefix: &str, count: usize) {
        let text = self
            .shardkv(&["export", "--format", "tsv", "--prefix", prefix])
            .await;
        let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        lines.sort_unstable();
        assert!(
            lines == pairs(prefix, count),
            "{} of {}: {} pairs instead of {count}, or others",
            prefix,
            self.name,
            lines.len()
        );
    }

    /// Returns names and uids of the pods with these labels.
    pub(crate) async fn uids(&self, labels: &str) -> anyhow::Result<Vec<(String, String)>> {
        let pods = self.space.pods(labels).await?;
        Ok(pods
            .iter()
            .map(|pod| (pod.name_any(), pod.uid().unwrap_or_default()))
            .collect())
    }
}

/// Returns sorted pairs as TSV lines.
fn pairs(prefix: &str, count: usize) -> Vec<String> {
    let pair = |number| format!("{prefix}{number:06}\tvalue {number} of {prefix}\n");
    (0..count).map(pair).collect()
}

/// Returns a condition. Fails if it belongs to an older generation of the resource.
pub(crate) fn condition(resource: &ShardKvCluster, of: &str) -> anyhow::Result<Condition> {
    let status = resource.status.as_ref().context("no status")?;
    let condition = status.conditions.iter().find(|it| it.type_ == of);
    let condition = condition.with_context(|| format!("no condition {of}"))?;
    let current = condition.observed_generation == resource.metadata.generation;
    holds(current, format!("{of} is about an older generation"))?;
    Ok(condition.clone())
}

fn settled(resource: &ShardKvCluster, groups: i32) -> anyhow::Result<()> {
    for (of, wanted) in [
        ("Available", "True"),
        ("Progressing", "False"),
        ("Degraded", "False"),
    ] {
        let condition = condition(resource, of)?;
        holds(condition.status == wanted, format!("{condition:?}"))?;
    }
    let status = resource.status.as_ref().context("no status")?;
    holds(status.replicas == Some(groups), "another number of groups")?;
    holds(status.shards_moving.unwrap_or(0) == 0, "shards are moving")?;
    let serving = |group: &GroupStatus| {
        group.phase == GroupPhase::Serving
            && group.ready_replicas == resource.spec.replicas_per_group
            && group.leader.is_some()
    };
    holds(
        status.groups.len() == usize::try_from(groups).unwrap_or(0)
            && status.groups.iter().all(serving),
        "not all groups serve with all nodes",
    )?;
    let shards: i32 = status.groups.iter().map(|group| group.shards).sum();
    holds(shards == resource.spec.shards, "shards without a group")
}

/// Merges the fields of `over` into `base`, recursively.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}
