//! Metrics of the operator, served at `/metrics`.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use probes::telemetry::dropped_lines;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::crd::{GroupPhase, ShardKvClusterStatus, condition};

/// The phases of groups, with their names as labels.
const PHASES: [(GroupPhase, &str); 5] = [
    (GroupPhase::Provisioning, "Provisioning"),
    (GroupPhase::Joining, "Joining"),
    (GroupPhase::Serving, "Serving"),
    (GroupPhase::Draining, "Draining"),
    (GroupPhase::Removing, "Removing"),
];

/// The types of conditions.
const CONDITIONS: [&str; 4] = [
    condition::AVAILABLE,
    condition::PROGRESSING,
    condition::DEGRADED,
    condition::PAUSED,
];

/// Outcome of a round of reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing had to change.
    Idle,
    /// The round wrote something, or a change is in progress.
    Busy,
    /// The API server refused a write.
    Refused,
    /// An error ended the round.
    Failed,
    /// The round exceeded its time limit.
    TimedOut,
    /// The round panicked: a bug of the operator.
    Panicked,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Panicked => "panicked",
        }
    }
}

/// All metrics. Updates are cheap.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    rounds: Family<OutcomeLabel, Counter>,
    round_seconds: Histogram,
    requests: Family<RequestLabels, Counter>,
    writes: Family<WriteLabels, Counter>,
    store_calls: Family<CallLabels, Counter>,
    store_seconds: Histogram,
    store_failures: Counter,
    watch_failures: Counter,
    log_dropped_lines: Counter,
    leader: Gauge,
    clusters: Gauge,
    groups: Family<GroupLabels, Gauge>,
    conditions: Family<ConditionLabels, Gauge>,
    shards_moving: Family<ClusterLabels, Gauge>,
    config_num: Family<ClusterLabels, Gauge<i64>>,
    /// The clusters that have series of their own.
    shown: Mutex<BTreeSet<ClusterLabels>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    verb: &'static str,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    call: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct ClusterLabels {
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    namespace: String,
    name: String,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    namespace: String,
    name: String,
    condition: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("shardkv_operator"),
            rounds: Family::default(),
            // Buckets from 1 ms to 65 s. The calls within a round have shorter time limits.
            round_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            requests: Family::default(),
            writes: Family::default(),
            store_calls: Family::default(),
            store_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            store_failures: Counter::default(),
            watch_failures: Counter::default(),
            log_dropped_lines: Counter::default(),
            leader: Gauge::default(),
            clusters: Gauge::default(),
            groups: Family::default(),
            conditions: Family::default(),
            shards_moving: Family::default(),
            config_num: Family::default(),
            shown: Mutex::default(),
        };
        metrics.register_work();
        metrics.register_clusters();
        metrics
    }
}

impl Metrics {
    fn register_work(&mut self) {
        let r = &mut self.registry;
        r.register(
            "reconciles",
            "Rounds of reconciliation, by outcome: idle, busy, refused, failed, timed_out, panicked",
            self.rounds.clone(),
        );
        r.register_with_unit(
            "reconcile",
            "Duration of a round of reconciliation",
            Unit::Seconds,
            self.round_seconds.clone(),
        );
        r.register(
            "api_requests",
            "Requests to the Kubernetes API, by verb, resource and HTTP status (0: no response)",
            self.requests.clone(),
        );
        r.register(
            "writes",
            "Writes of Kubernetes objects, by verb and kind",
            self.writes.clone(),
        );
        r.register(
            "store_calls",
            "Calls to stores, by call and result: ok, unreachable, refused",
            self.store_calls.clone(),
        );
        r.register_with_unit(
            "store_call",
            "Duration of a call to a store",
            Unit::Seconds,
            self.store_seconds.clone(),
        );
        r.register(
            "store_failures",
            "Rounds in which a store didn't answer, or refused a change",
            self.store_failures.clone(),
        );
        r.register(
            "watch_failures",
            "Failed watches of the Kubernetes API; the operator restarts each after a backoff",
            self.watch_failures.clone(),
        );
        r.register(
            "log_dropped_lines",
            "Log lines that standard error did not take: full, stalled or closed",
            self.log_dropped_lines.clone(),
        );
        r.register(
            "leader",
            "1 while this replica leads and acts, 0 while it stands by",
            self.leader.clone(),
        );
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "Version of the operator", Info::new(version));
    }

    fn register_clusters(&mut self) {
        let r = &mut self.registry;
        r.register(
            "clusters",
            "Number of ShardKvClusters that the operator manages",
            self.clusters.clone(),
        );
        r.register(
            "groups",
            "Groups of a cluster by phase, at its last round",
            self.groups.clone(),
        );
        r.register(
            "condition",
            "Conditions of a cluster: 1 true, 0 false, -1 unknown",
            self.conditions.clone(),
        );
        r.register(
            "shards_moving",
            "Shards of a cluster that are moving between groups",
            self.shards_moving.clone(),
        );
        r.register(
            "config_num",
            "Number of a cluster's latest configuration",
            self.config_num.clone(),
        );
    }

    /// Returns all metrics as `OpenMetrics` text.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let dropped = &self.log_dropped_lines;
        dropped.inc_by(dropped_lines().saturating_sub(dropped.get()));
        let mut out = String::new();
        encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// Counts a finished round.
    pub fn round_ended(&self, outcome: Outcome, took: Duration) {
        let outcome = outcome.name();
        self.rounds.get_or_create(&OutcomeLabel { outcome }).inc();
        self.round_seconds.observe(took.as_secs_f64());
    }

    /// Counts a write of an object. `verb` is one of `apply`, `patch`, `delete`, `status`.
    pub fn object_written(&self, verb: &'static str, kind: &str) {
        let kind = kind.to_owned();
        self.writes.get_or_create(&WriteLabels { verb, kind }).inc();
    }

    /// Counts a request to the API server. `code` is the HTTP status, or 0 if there was no response.
    pub fn request(&self, verb: &'static str, resource: String, code: u16) {
        let labels = RequestLabels {
            verb,
            resource,
            code,
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts a round in which the controllers of a store didn't answer, or refused a change.
    pub fn store_failed(&self) {
        self.store_failures.inc();
    }

    /// Counts a call to a store.
    pub fn store_call(&self, call: &'static str, result: &'static str, took: Duration) {
        self.store_calls
            .get_or_create(&CallLabels { call, result })
            .inc();
        self.store_seconds.observe(took.as_secs_f64());
    }

    /// Counts a failed watch.
    pub fn watch_failed(&self) {
        self.watch_failures.inc();
    }

    /// Records that this replica began or ceased to lead.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Updates a cluster's metrics from its status.
    pub fn cluster_seen(&self, namespace: &str, name: &str, status: &ShardKvClusterStatus) {
        let labels = ClusterLabels {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        for (phase, label) in PHASES {
            let groups = status.groups.iter().filter(|group| group.phase == phase);
            let count = i64::try_from(groups.count()).unwrap_or(i64::MAX);
            self.groups.get_or_create(&labels.group(label)).set(count);
        }
        for of in CONDITIONS {
            let condition = status.conditions.iter().find(|it| it.type_ == of);
            let value = match condition.map(|it| it.status.as_str()) {
                Some("True") => 1,
                Some("False") => 0,
                _ => -1,
            };
            self.conditions
                .get_or_create(&labels.condition(of))
                .set(value);
        }
        let moving = i64::from(status.shards_moving.unwrap_or(0));
        self.shards_moving.get_or_create(&labels).set(moving);
        let num = status.config_num.unwrap_or(0);
        self.config_num.get_or_create(&labels).set(num);
        let mut shown = self.shown();
        shown.insert(labels);
        self.count(&shown);
    }

    /// Removes the metrics of a deleted cluster.
    pub fn cluster_gone(&self, namespace: &str, name: &str) {
        self.retain(|(its_namespace, its_name)| (its_namespace, its_name) != (namespace, name));
    }

    /// Keeps only the metrics of clusters for whose namespace and name `exists` returns true.
    pub fn retain(&self, exists: impl Fn((&str, &str)) -> bool) {
        let mut shown = self.shown();
        let deleted = |labels: &&ClusterLabels| !exists((&labels.namespace, &labels.name));
        let deleted: Vec<ClusterLabels> = shown.iter().filter(deleted).cloned().collect();
        for labels in deleted {
            for (_, label) in PHASES {
                self.groups.remove(&labels.group(label));
            }
            for of in CONDITIONS {
                self.conditions.remove(&labels.condition(of));
            }
            self.shards_moving.remove(&labels);
            self.config_num.remove(&labels);
            shown.remove(&labels);
        }
        self.count(&shown);
    }

    fn count(&self, shown: &BTreeSet<ClusterLabels>) {
        self.clusters
            .set(i64::try_from(shown.len()).unwrap_or(i64::MAX));
    }

    fn shown(&self) -> MutexGuard<'_, BTreeSet<ClusterLabels>> {
        // Every change under this lock is complete, so a poisoned lock is safe to use.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClusterLabels {
    fn group(&self, phase: &'static str) -> GroupLabels {
        GroupLabels {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            phase,
        }
    }

    fn condition(&self, condition: &'static str) -> ConditionLabels {
        ConditionLabels {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            condition,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(metrics: &Metrics, needle: &str) -> Vec<String> {
        let text = metrics.render().unwrap();
        let found = text
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains(needle));
        found.map(str::to_owned).collect()
    }

    #[test]
    fn a_deleted_cluster_has_no_metrics() {
        let metrics = Metrics::default();
        let status = json!({
            "groups": [
                {"gid": 1, "phase": "Serving", "readyReplicas": 3, "shards": 32},
                {"gid": 2, "phase": "Serving", "readyReplicas": 3, "shards": 32},
            ],
            "conditions": [{
                "type": "Available", "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": "2024-01-01T00:00:00Z",
            }],
            "shardsMoving": 7,
        });
        let status = serde_json::from_value(status).unwrap();
        metrics.cluster_seen("ns", "a", &status);
        metrics.cluster_seen("ns", "b", &status);
        for line in [
            r#"shardkv_operator_groups{namespace="ns",name="a",phase="Serving"} 2"#,
            r#"shardkv_operator_groups{namespace="ns",name="a",phase="Joining"} 0"#,
            r#"shardkv_operator_condition{namespace="ns",name="a",condition="Available"} 1"#,
            r#"shardkv_operator_condition{namespace="ns",name="a",condition="Paused"} -1"#,
            r#"shardkv_operator_shards_moving{namespace="ns",name="a"} 7"#,
        ] {
            assert!(lines(&metrics, "").contains(&line.to_owned()), "{line}");
        }
        metrics.cluster_gone("ns", "a");
        assert!(lines(&metrics, r#"name="a""#).is_empty());
        assert!(!lines(&metrics, r#"name="b""#).is_empty());
        metrics.retain(|_| false);
        assert!(lines(&metrics, r#"name="b""#).is_empty());
    }

    #[test]
    fn counters_have_labels() {
        let metrics = Metrics::default();
        metrics.round_ended(Outcome::Busy, Duration::from_millis(3));
        metrics.object_written("apply", "StatefulSet");
        metrics.object_written("apply", "StatefulSet");
        metrics.request("list", "statefulsets".to_owned(), 403);
        metrics.store_call("view", "unreachable", Duration::from_secs(3));
        for line in [
            r#"shardkv_operator_reconciles_total{outcome="busy"} 1"#,
            r#"shardkv_operator_writes_total{verb="apply",kind="StatefulSet"} 2"#,
            r#"shardkv_operator_api_requests_total{verb="list",resource="statefulsets",code="403"} 1"#,
            r#"shardkv_operator_store_calls_total{call="view",result="unreachable"} 1"#,
            "shardkv_operator_reconcile_seconds_count 1",
        ] {
            assert!(
                lines(&metrics, "").contains(&line.to_owned()),
                "{line}\n{}",
                metrics.render().unwrap()
            );
        }
    }
}
