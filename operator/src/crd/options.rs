//! Settings of the nodes.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Settings of the nodes. `shardkv-node --help` lists the defaults.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(
    validation = ("!has(self.electionTimeoutMs) || self.electionTimeoutMs >= 3 * (has(self.heartbeatIntervalMs) ? self.heartbeatIntervalMs : 100)", "electionTimeoutMs must be at least three times heartbeatIntervalMs (which is 100 by default)"),
    validation = ("!has(self.heartbeatIntervalMs) || has(self.electionTimeoutMs) || self.heartbeatIntervalMs <= 133", "electionTimeoutMs (400 by default) must be at least three times heartbeatIntervalMs: set both"),
    validation = ("has(self.sessionTtlMs) == has(oldSelf.sessionTtlMs)", "options.sessionTtlMs can't be changed: a group's replicas must agree on it"),
    validation = ("has(self.maxSessionsPerShard) == has(oldSelf.maxSessionsPerShard)", "options.maxSessionsPerShard can't be changed: a group's replicas must agree on it")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeOptions {
    /// Time to live of a silent client session, in milliseconds. Fixed at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1000, max = 86_400_000))]
    #[x_kube(validation = ("self == oldSelf", "options.sessionTtlMs can't be changed: a group's replicas must agree on it"))]
    pub session_ttl_ms: Option<i64>,

    /// Limit of client sessions that a shard remembers. When it is reached, new sessions are refused. Fixed at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    #[x_kube(validation = ("self == oldSelf", "options.maxSessionsPerShard can't be changed: a group's replicas must agree on it"))]
    pub max_sessions_per_shard: Option<i64>,

    /// Interval of a leader's heartbeats, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 10_000))]
    pub heartbeat_interval_ms: Option<i64>,

    /// Election timeout, in milliseconds. A follower that hears no leader for one to two times this long asks for votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 30, max = 60_000))]
    pub election_timeout_ms: Option<i64>,

    /// Serves reads from the leader's lease, without asking a quorum. Safe as long as no clock runs twice as fast as another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_reads: Option<bool>,

    /// Longest time that a request waits on the server, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 600_000))]
    pub request_timeout_ms: Option<i64>,

    /// Limit of unanswered requests of all clients of a node. When it is reached, requests are refused as overload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_pending_requests: Option<i64>,

    /// Limit of open connections of a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 65_536))]
    pub max_connections: Option<i64>,

    /// Limit of requests of one connection that were cancelled before the node looked at them; beyond it the connection is closed. 1024 by
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 1_048_576))]
    pub max_pending_resets: Option<i64>,

    /// Limit of streams of one connection that may break the rules of HTTP/2; beyond it the connection is closed. 1024 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_stream_errors: Option<i64>,

    /// Time for which a node may wait for its disk before Kubernetes restarts it, in milliseconds. 60000 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3000, max = 86_400_000))]
    pub stall_timeout_ms: Option<i64>,

    /// Size of a node's cache of blocks read from disk, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576, max = 1_099_511_627_776_i64))]
    pub block_cache_bytes: Option<i64>,

    /// Growth of the log after which it is compacted, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576, max = 1_099_511_627_776_i64))]
    pub compact_after_bytes: Option<i64>,

    /// Limit of the log that a leader keeps for followers that are behind, in bytes. It should be more than clients write while a snapshot is
    /// transferred, and it needs that space on the volume. 1073741824 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576, max = 1_099_511_627_776_i64))]
    pub max_kept_log_bytes: Option<i64>,

    /// Bandwidth of all outgoing snapshots of a node together, in bytes per second; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub snapshot_bytes_per_second: Option<i64>,

    /// Limit of shards that a group copies from each other group at the same time, and of those that it pulls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub handoff_max_concurrent: Option<i64>,

    /// Bandwidth of all copies and pulls of shards of a group together, in bytes per second; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_099_511_627_776_i64))]
    pub handoff_bytes_per_second: Option<i64>,

    /// Log level, or levels by module, such as `info,shardkv_server=debug`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9_:=,-]+$"))]
    pub log_filter: Option<String>,
}

impl NodeOptions {
    /// Returns the node's options file: sorted lines `option: value`.
    pub fn file(&self) -> String {
        let lines = self.settings().into_iter().map(|(key, value)| {
            // Numbers and booleans need no quotes. An older definition may let any text through, and a JSON text is one in YAML.
            let value = match key {
                "log_filter" => serde_json::Value::from(value).to_string(),
                _ => value,
            };
            format!("{key}: {value}\n")
        });
        std::iter::once("# From spec.options of the ShardKvCluster.\n".to_owned())
            .chain(lines)
            .collect()
    }

    /// Returns the lines of the node's options file: names as `shardkv-node` knows them, and values.
    ///
    /// The struct is destructured without `..`, so that no option of the resource can be forgotten here.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let Self {
            session_ttl_ms,
            max_sessions_per_shard,
            heartbeat_interval_ms,
            election_timeout_ms,
            lease_reads,
            request_timeout_ms,
            max_pending_requests,
            max_connections,
            max_pending_resets,
            max_stream_errors,
            stall_timeout_ms,
            block_cache_bytes,
            compact_after_bytes,
            max_kept_log_bytes,
            snapshot_bytes_per_second,
            handoff_max_concurrent,
            handoff_bytes_per_second,
            log_filter,
        } = self;
        let numbers = [
            ("session_ttl_ms", session_ttl_ms),
            ("max_sessions_per_shard", max_sessions_per_shard),
            ("heartbeat_interval_ms", heartbeat_interval_ms),
            ("election_timeout_ms", election_timeout_ms),
            ("request_timeout_ms", request_timeout_ms),
            ("max_pending_requests", max_pending_requests),
            ("max_connections", max_connections),
            ("max_pending_resets", max_pending_resets),
            ("max_stream_errors", max_stream_errors),
            ("stall_timeout_ms", stall_timeout_ms),
            ("block_cache_bytes", block_cache_bytes),
            ("compact_after_bytes", compact_after_bytes),
            ("max_kept_log_bytes", max_kept_log_bytes),
            ("snapshot_bytes_per_second", snapshot_bytes_per_second),
            ("handoff_max_concurrent", handoff_max_concurrent),
            ("handoff_bytes_per_second", handoff_bytes_per_second),
        ];
        let numbers = numbers
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?.to_string())));
        let lease = lease_reads.map(|on| ("lease_reads", on.to_string()));
        let filter = log_filter.as_ref().map(|text| ("log_filter", text.clone()));
        let mut settings: Vec<_> = numbers.chain(lease).chain(filter).collect();
        settings.sort_unstable();
        settings
    }
}
