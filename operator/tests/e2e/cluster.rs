//! A `ShardKvCluster`, as its user sees it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use shardkv_operator::crd::{GroupPhase, GroupStatus, ShardKvCluster, ShardKvClusterStatus};

use crate::space::Space;
use crate::tools::{holds, image, until};

/// A cluster that a scenario made.
#[derive(Clone)]
pub(crate) struct Cluster {
    /// Its namespace.
    pub(crate) space: Space,
    /// Its name.
    pub(crate) name: String,
}

impl Cluster {
    /// Asks for a cluster: small, unless `spec` says otherwise, and deleted with its volumes.
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

    /// The resource as it is now.
    pub(crate) async fn get(&self) -> Result<ShardKvCluster, String> {
        let api: Api<ShardKvCluster> = self.space.api();
        api.get(&self.name).await.map_err(|error| error.to_string())
    }

    /// The status as it is now.
    pub(crate) async fn status(&self) -> Result<ShardKvClusterStatus, String> {
        self.get().await?.status.ok_or("no status".to_owned())
    }

    /// Waits until the resource says that all is as asked: this many groups, all serving, nothing moving, nothing wrong.
    pub(crate) async fn settled(&self, groups: i32) {
        until(
            &format!("{} settles with {groups} groups", self.name),
            async || {
                let resource = self.get().await?;
                settled(&resource, groups).map_err(|why| format!("{why}: {:?}", resource.status))
            },
        )
        .await;
    }

    /// Waits for a condition to be so and to mention something, said about the latest generation of the resource.
    pub(crate) async fn condition(&self, of: &str, status: &str, mentions: &str) -> Condition {
        until(
            &format!("{} of {} is {status}", of, self.name),
            async || {
                let resource = self.get().await?;
                let condition = condition(&resource, of)?;
                let found = condition.status == status && condition.message.contains(mentions);
                holds(found, format!("{condition:?}"))?;
                Ok::<_, String>(condition)
            },
        )
        .await
    }

    /// Waits until a group is in this phase, or one behind it.
    pub(crate) async fn reaches(&self, gid: i64, phase: GroupPhase) {
        until(
            &format!("group {gid} of {} is {phase:?}", self.name),
            async || {
                let status = self.status().await?;
                let found = status.groups.iter().find(|group| group.gid == gid);
                match found {
                    Some(group) => holds(group.phase >= phase, format!("{group:?}")),
                    None => holds(phase >= GroupPhase::Draining, "not there yet"),
                }
            },
        )
        .await;
    }

    /// `kubectl scale`.
    pub(crate) async fn scale(&self, groups: i32) {
        let of = format!("skv/{}", self.name);
        let to = format!("--replicas={groups}");
        self.space.kubectl(&["scale", &of, &to]).await;
    }

    /// `kubectl patch`, merging.
    pub(crate) async fn patch(&self, patch: &Value) {
        let of = format!("skv/{}", self.name);
        let patch = patch.to_string();
        self.space
            .kubectl(&["patch", &of, "--type=merge", "-p", &patch])
            .await;
    }

    /// `kubectl delete`, until it is gone.
    pub(crate) async fn delete(&self) {
        let of = format!("skv/{}", self.name);
        self.space.kubectl(&["delete", &of, "--timeout=150s"]).await;
        self.space.no_pods(&self.labels()).await;
    }

    /// What selects all of its pods.
    pub(crate) fn labels(&self) -> String {
        format!("app.kubernetes.io/instance={}", self.name)
    }

    /// What selects the pods of a group.
    pub(crate) fn group_labels(&self, gid: i64) -> String {
        format!("{},shardkv.io/gid={gid}", self.labels())
    }

    /// Where clients connect, as the status says.
    pub(crate) async fn endpoint(&self) -> String {
        let status = self
            .status()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        status.endpoint.expect("a running cluster has an endpoint")
    }

    /// Runs the command line against it in the client pod.
    pub(crate) async fn try_shardkv(&self, args: &[&str], input: &[u8]) -> Result<String, String> {
        let endpoint = self.endpoint().await;
        let global = ["--endpoints", &endpoint, "--timeout-ms", "60000"];
        self.space.shardkv(&[&global, args].concat(), input).await
    }

    /// Runs a command that must succeed.
    pub(crate) async fn shardkv(&self, args: &[&str]) -> String {
        self.try_shardkv(args, b"")
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Writes `count` pairs under `prefix`.
    pub(crate) async fn import(&self, prefix: &str, count: usize) {
        let text = pairs(prefix, count).concat();
        self.try_shardkv(&["import", "--format", "tsv", "-"], text.as_bytes())
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// Sees that exactly the pairs that [`Self::import`] wrote are there.
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

    /// The uids of the pods with these labels, by name.
    pub(crate) async fn uids(&self, labels: &str) -> Result<Vec<(String, String)>, String> {
        let pods = self.space.pods(labels).await;
        let pods = pods.map_err(|error| error.to_string())?;
        Ok(pods
            .iter()
            .map(|pod| (pod.name_any(), pod.uid().unwrap_or_default()))
            .collect())
    }
}

/// Pairs as TSV lines, in order.
fn pairs(prefix: &str, count: usize) -> Vec<String> {
    let pair = |number| format!("{prefix}{number:06}\tvalue {number} of {prefix}\n");
    (0..count).map(pair).collect()
}

/// What a condition says, if it is about the latest generation.
pub(crate) fn condition(resource: &ShardKvCluster, of: &str) -> Result<Condition, String> {
    let status = resource.status.as_ref().ok_or("no status")?;
    let condition = status.conditions.iter().find(|it| it.type_ == of);
    let condition = condition.ok_or_else(|| format!("no condition {of}"))?;
    let current = condition.observed_generation == resource.metadata.generation;
    holds(current, format!("{of} is about an older generation"))?;
    Ok(condition.clone())
}

fn settled(resource: &ShardKvCluster, groups: i32) -> Result<(), String> {
    for (of, wanted) in [
        ("Available", "True"),
        ("Progressing", "False"),
        ("Degraded", "False"),
    ] {
        let condition = condition(resource, of)?;
        holds(condition.status == wanted, format!("{condition:?}"))?;
    }
    let status = resource.status.as_ref().ok_or("no status")?;
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

/// Writes the fields of `over` into `base`, objects into objects.
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
