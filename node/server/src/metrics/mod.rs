//! The node's metrics, under Prometheus' naming conventions.

mod figures;
mod keyspaces;
mod scans;
mod shards;
pub(crate) mod usage;
pub(crate) mod watch;
mod watches;

use api::error_status;
use api::v1::ErrorDetail;
use probes::telemetry;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use figures::Kind;
pub(crate) use figures::{raise, set};
use keyspaces::KeyspaceMetrics;
use scans::ScanMetrics;
use shards::ShardMetrics;
use usage::UsageMetrics;
use watches::WatchMetrics;

/// The methods whose latency is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    Get,
    Put,
    Append,
    Delete,
    CompareAndSwap,
}

impl Method {
    /// Returns the method of an item.
    pub(crate) fn of(item: &api::v1::batch_item::Request) -> Self {
        use api::v1::batch_item::Request as Item;
        match item {
            Item::Get(_) => Self::Get,
            Item::Put(_) => Self::Put,
            Item::Append(_) => Self::Append,
            Item::Delete(_) => Self::Delete,
            Item::CompareAndSwap(_) => Self::CompareAndSwap,
        }
    }
}

/// All metrics of a node.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) get_seconds: Histogram,
    pub(crate) put_seconds: Histogram,
    pub(crate) other_write_seconds: Histogram,
    pub(crate) fsync_seconds: Histogram,
    pub(crate) batch_requests: Histogram,
    pub(crate) rejections: Family<Kind, Counter>,
    log_dropped_lines: Counter,
    pub(crate) inbox_messages: Gauge,
    pub(crate) inflight_requests: Gauge,
    pub(crate) inflight_bytes: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) refused_connections: Counter,
    pub(crate) peer_disconnects: Counter,
    pub(crate) peer_dropped_messages: Counter,
    pub(crate) peer_sent_bytes: Counter,
    pub(crate) snapshot_sent_bytes: Counter,
    pub(crate) forwarded: Counter,
    pub(crate) forward_failures: Counter,
    pub(crate) replica: ReplicaMetrics,
    pub(crate) handoff: HandoffMetrics,
    pub(crate) scans: ScanMetrics,
    pub(crate) keyspaces: KeyspaceMetrics,
    pub(crate) usage: UsageMetrics,
    pub(crate) watches: WatchMetrics,
    pub(crate) shards: ShardMetrics,
}

/// Metrics of moving shards.
#[derive(Debug)]
pub(crate) struct HandoffMetrics {
    pub(crate) config_num: Gauge,
    pub(crate) settled: Gauge,
    pub(crate) foreign_controllers: Gauge,
    pub(crate) sent_bytes: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) failures: Counter,
    pub(crate) watchers: Gauge,
    pub(crate) room_bytes: Gauge,
    pub(crate) rate_bytes: Gauge,
    pub(crate) hurried: Counter,
    pub(crate) parked_requests: Counter,
    pub(crate) read_seconds: Histogram,
}

impl HandoffMetrics {
    fn new() -> Self {
        Self {
            config_num: Gauge::default(),
            settled: Gauge::default(),
            foreign_controllers: Gauge::default(),
            sent_bytes: Counter::default(),
            received_bytes: Counter::default(),
            failures: Counter::default(),
            watchers: Gauge::default(),
            room_bytes: Gauge::default(),
            rate_bytes: Gauge::default(),
            hurried: Counter::default(),
            parked_requests: Counter::default(),
            read_seconds: seconds(),
        }
    }
}

/// Metrics that are read from the replica at each tick.
#[derive(Debug, Default)]
pub(crate) struct ReplicaMetrics {
    pub(crate) is_leader: Gauge,
    pub(crate) has_leader: Gauge,
    pub(crate) term: Gauge<i64>,
    pub(crate) commit_index: Gauge,
    pub(crate) applied_index: Gauge,
    pub(crate) apply_lag_entries: Gauge,
    pub(crate) log_entries: Gauge,
    pub(crate) pending_requests: Gauge,
    pub(crate) sessions: Gauge,
    pub(crate) disk_low: Gauge,
    pub(crate) elections: Counter,
    pub(crate) leader_changes: Counter,
    pub(crate) snapshots_sent: Counter,
    pub(crate) snapshots_installed: Counter,
    pub(crate) snapshots_overtaken: Counter,
    pub(crate) kept_log_bytes: Gauge,
    pub(crate) peer_contradictions: Counter,
    pub(crate) unreadable_messages: Counter,
    pub(crate) feature_level: Gauge,
    pub(crate) states_agreed_index: Gauge,
    pub(crate) states_differing: Gauge,
    pub(crate) states_undecided: Gauge,
    pub(crate) lease_reads_disagreeing: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("shardkv"),
            get_seconds: seconds(),
            put_seconds: seconds(),
            other_write_seconds: seconds(),
            fsync_seconds: seconds(),
            batch_requests: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            rejections: Family::default(),
            log_dropped_lines: Counter::default(),
            inbox_messages: Gauge::default(),
            inflight_requests: Gauge::default(),
            inflight_bytes: Gauge::default(),
            connections: Gauge::default(),
            refused_connections: Counter::default(),
            peer_disconnects: Counter::default(),
            peer_dropped_messages: Counter::default(),
            peer_sent_bytes: Counter::default(),
            snapshot_sent_bytes: Counter::default(),
            forwarded: Counter::default(),
            forward_failures: Counter::default(),
            replica: ReplicaMetrics::default(),
            handoff: HandoffMetrics::new(),
            scans: ScanMetrics::new(),
            keyspaces: KeyspaceMetrics::new(),
            usage: UsageMetrics::default(),
            watches: WatchMetrics::default(),
            shards: ShardMetrics::default(),
        };
        metrics.register_requests();
        metrics.register_transport();
        metrics.register_replica();
        metrics.register_members();
        metrics.register_handoff();
        metrics.scans.register(&mut metrics.registry);
        metrics.keyspaces.register(&mut metrics.registry);
        metrics.usage.register(&mut metrics.registry);
        metrics.watches.register(&mut metrics.registry);
        metrics.shards.register(&mut metrics.registry);
        metrics
    }

    fn register_requests(&mut self) {
        let r = &mut self.registry;
        let mut timed = |name: &str, help: &str, histogram: &Histogram| {
            r.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        timed("get", "Latency of gets", &self.get_seconds);
        timed("put", "Latency of puts", &self.put_seconds);
        timed(
            "other_write",
            "Latency of appends, deletes and compare-and-swaps",
            &self.other_write_seconds,
        );
        timed(
            "log_fsync",
            "Latency of synced log writes",
            &self.fsync_seconds,
        );
        r.register(
            "batch_requests",
            "Requests that the replica took in together",
            self.batch_requests.clone(),
        );
        r.register(
            "rejections",
            "Requests that got an error, by kind",
            self.rejections.clone(),
        );
        r.register(
            "log_dropped_lines",
            "Log lines that standard error did not take: full, stalled or closed",
            self.log_dropped_lines.clone(),
        );
        r.register(
            "inflight_requests",
            "Unanswered requests",
            self.inflight_requests.clone(),
        );
        r.register_with_unit(
            "inflight",
            "Size of unanswered requests",
            Unit::Bytes,
            self.inflight_bytes.clone(),
        );
        r.register(
            "inbox_messages",
            "Inputs that the replica took in its last round",
            self.inbox_messages.clone(),
        );
    }

    fn register_transport(&mut self) {
        let r = &mut self.registry;
        r.register("connections", "Open connections", self.connections.clone());
        r.register(
            "refused_connections",
            "Connections closed at once because the limit was reached and the reserve was busy",
            self.refused_connections.clone(),
        );
        r.register(
            "peer_disconnects",
            "Established streams from or to peers that broke",
            self.peer_disconnects.clone(),
        );
        r.register(
            "peer_dropped_messages",
            "Messages to peers that were dropped because a queue was full or unconnected",
            self.peer_dropped_messages.clone(),
        );
        r.register_with_unit(
            "peer_sent",
            "Messages to peers, without snapshots",
            Unit::Bytes,
            self.peer_sent_bytes.clone(),
        );
        r.register_with_unit(
            "snapshot_sent",
            "Snapshot chunks to peers",
            Unit::Bytes,
            self.snapshot_sent_bytes.clone(),
        );
    }

    /// Registers what a leader finds of its members.
    fn register_members(&mut self) {
        let m = &self.replica;
        let gauges = [
            (
                "states_agreed_index",
                "The last entry up to which a quorum of the voters had equal states, as this leader found",
                &m.states_agreed_index,
            ),
            (
                "states_differing",
                "Members whose state differs from that of a quorum, as this leader found",
                &m.states_differing,
            ),
            (
                "states_undecided",
                "1 if members' states differ and no quorum of the voters agrees, as this leader found",
                &m.states_undecided,
            ),
            (
                "lease_reads_disagreeing",
                "Voters with another value of lease_reads than this leader",
                &m.lease_reads_disagreeing,
            ),
        ];
        for (name, help, gauge) in gauges {
            self.registry.register(name, help, gauge.clone());
        }
    }

    fn register_replica(&mut self) {
        let r = &mut self.registry;
        let m = &self.replica;
        let gauges = [
            ("is_leader", "1 if this node leads", &m.is_leader),
            ("has_leader", "1 if this node knows a leader", &m.has_leader),
            ("term", "The current term", &m.term),
            (
                "commit_index",
                "The highest committed index",
                &m.commit_index,
            ),
            (
                "applied_index",
                "The highest applied index",
                &m.applied_index,
            ),
            (
                "apply_lag_entries",
                "Committed entries that are not applied",
                &m.apply_lag_entries,
            ),
            (
                "log_entries",
                "Entries in the log that are not compacted",
                &m.log_entries,
            ),
            (
                "pending_requests",
                "Requests that wait in the replica",
                &m.pending_requests,
            ),
            ("sessions", "Remembered client sessions", &m.sessions),
            (
                "feature_level",
                "The feature level that all members of the group have agreed on",
                &m.feature_level,
            ),
            (
                "disk_low",
                "1 if writes are refused because a disk is nearly full",
                &m.disk_low,
            ),
        ];
        for (name, help, gauge) in gauges {
            r.register(name, help, gauge.clone());
        }
        let counters = [
            (
                "elections_started",
                "Elections that this node started",
                &m.elections,
            ),
            (
                "leader_changes",
                "Changes of the known leader",
                &m.leader_changes,
            ),
            (
                "snapshots_sent",
                "Snapshots sent to followers",
                &m.snapshots_sent,
            ),
            (
                "snapshots_installed",
                "Snapshots installed here",
                &m.snapshots_installed,
            ),
            (
                "snapshots_overtaken",
                "Snapshots to followers that were stopped because clients wrote more than max_kept_log_bytes meanwhile",
                &m.snapshots_overtaken,
            ),
            (
                "peer_contradictions",
                "Refused messages of peers that contradict a committed entry or the leader of a term",
                &m.peer_contradictions,
            ),
            (
                "unreadable_messages",
                "Refused messages of peers with entries or snapshots of a newer version",
                &m.unreadable_messages,
            ),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
        r.register_with_unit(
            "kept_log",
            "Size of the log that this leader keeps for followers that are behind",
            Unit::Bytes,
            m.kept_log_bytes.clone(),
        );
    }

    fn register_handoff(&mut self) {
        let r = &mut self.registry;
        let m = &self.handoff;
        r.register(
            "forwarded",
            "Requests forwarded to another node",
            self.forwarded.clone(),
        );
        r.register(
            "forward_failures",
            "Forwarded requests that failed",
            self.forward_failures.clone(),
        );
        let gauges = [
            (
                "foreign_controllers",
                "1 if the controllers that answered last were refused, because the group follows others",
                &m.foreign_controllers,
            ),
            (
                "config_num",
                "The configuration that the group has accepted",
                &m.config_num,
            ),
            (
                "config_settled",
                "The configuration up to which the group has finished all hand-offs",
                &m.settled,
            ),
            (
                "config_watchers",
                "Open watches of the configuration",
                &m.watchers,
            ),
        ];
        for (name, help, gauge) in gauges {
            r.register(name, help, gauge.clone());
        }
        r.register_with_unit(
            "handoff_sent",
            "Chunks of shards sent to other groups",
            Unit::Bytes,
            m.sent_bytes.clone(),
        );
        r.register_with_unit(
            "handoff_received",
            "Chunks of shards received from other groups",
            Unit::Bytes,
            m.received_bytes.clone(),
        );
        r.register_with_unit(
            "handoff_room",
            "Space for shards on the voter that has the least, as the leader knows it; 0 on other nodes",
            Unit::Bytes,
            m.room_bytes.clone(),
        );
        r.register_with_unit(
            "handoff_rate",
            "Bytes a second that the bases of all copies to this group may have now, as they yield to its clients; 0 on followers",
            Unit::Bytes,
            m.rate_bytes.clone(),
        );
        r.register(
            "handoff_hurried_copies",
            "Copies reported after the most rounds, because their shards changed faster than the copies followed",
            m.hurried.clone(),
        );
        r.register(
            "handoff_parked_requests",
            "Requests that waited at the new owner until a shard that was cut arrived, half a second at most",
            m.parked_requests.clone(),
        );
        r.register_with_unit(
            "handoff_read",
            "Latency of reading a chunk of a shard from the state",
            Unit::Seconds,
            m.read_seconds.clone(),
        );
        r.register(
            "handoff_failures",
            "Failed steps of hand-offs, which are retried",
            m.failures.clone(),
        );
    }

    /// Returns the histogram of a method.
    pub(crate) fn latency(&self, method: Method) -> &Histogram {
        match method {
            Method::Get => &self.get_seconds,
            Method::Put => &self.put_seconds,
            Method::Append | Method::Delete | Method::CompareAndSwap => &self.other_write_seconds,
        }
    }

    /// Counts an error and converts it to a gRPC status.
    pub(crate) fn reject(&self, error: &ErrorDetail) -> tonic::Status {
        self.rejected(error);
        error_status(error)
    }

    /// Counts a request that gets a typed error.
    pub(crate) fn rejected(&self, detail: &ErrorDetail) {
        let kind = error_kind(detail);
        self.rejections.get_or_create(&Kind { kind }).inc();
    }

    /// Returns all metrics in the text format.
    pub(crate) fn render(&self) -> Result<String, std::fmt::Error> {
        raise(&self.log_dropped_lines, telemetry::dropped_lines());
        let mut out = String::new();
        encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// Creates a histogram with buckets from 50 microseconds to 13 seconds.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 19))
}

fn error_kind(detail: &ErrorDetail) -> &'static str {
    use api::v1::error_detail::Kind;
    match detail.kind {
        Some(Kind::NotLeader(_)) => "not_leader",
        Some(Kind::WrongGroup(_)) => "wrong_group",
        Some(Kind::ShardNotReady(_)) => "shard_not_ready",
        Some(Kind::Overloaded(_)) => "overloaded",
        Some(Kind::TooLarge(_)) => "too_large",
        Some(Kind::SessionExpired(_)) => "session_expired",
        Some(Kind::SessionFromFuture(_)) => "session_from_future",
        Some(Kind::WrongCluster(_)) => "wrong_cluster",
        Some(Kind::BadRequest(_)) => "bad_request",
        Some(Kind::OutcomeUnknown(_)) => "outcome_unknown",
        Some(Kind::DiskFull(_)) => "disk_full",
        Some(Kind::Unavailable(_)) => "unavailable",
        Some(Kind::NotFound(_)) => "not_found",
        Some(Kind::Conflict(_)) => "conflict",
        Some(Kind::AlreadyExists(_)) => "already_exists",
        Some(Kind::Unauthenticated(_)) => "unauthenticated",
        Some(Kind::PermissionDenied(_)) => "permission_denied",
        None => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new();
        metrics.put_seconds.observe(0.001);
        metrics.rejected(&api::errors::disk_full());
        set(&metrics.replica.commit_index, 7);
        raise(&metrics.replica.elections, 3);
        raise(&metrics.replica.elections, 2);
        let text = metrics.render().unwrap();
        for line in [
            "shardkv_put_seconds_count 1",
            "shardkv_rejections_total{kind=\"disk_full\"} 1",
            "shardkv_commit_index 7",
            "shardkv_elections_started_total 3",
            "shardkv_log_fsync_seconds_count 0",
            "shardkv_inflight_bytes 0",
            "shardkv_snapshot_sent_bytes_total 0",
        ] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
    }
}
