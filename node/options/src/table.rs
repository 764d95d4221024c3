//! The table of all options of the node, the one place that names them.
//!
//! Flags, environment variables, the file and `--help` are all made from this table, so that no option can exist in only
//! one of them.

/// One option.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The name in the file. The flag has dashes, and the environment variable is upper case after `SHARDKV_`.
    pub(crate) key: &'static str,
    /// The unit or kind of a value.
    pub(crate) unit: &'static str,
    /// The default as text; empty if there is none.
    pub(crate) default: &'static str,
    /// The help text, with the behaviour at the bound where that matters.
    pub(crate) help: &'static str,
    /// The heading of `--help` that the option stands under.
    pub(crate) heading: &'static str,
}

impl Row {
    /// Returns the name of the flag, without its leading dashes.
    pub(crate) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    /// Returns true if the option is fixed when the group is created. A default of such an option must not count as a
    /// choice.
    pub(crate) fn is_fixed_at_creation(&self) -> bool {
        self.heading == GENESIS
    }

    /// Returns the name of the environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("SHARDKV_{}", self.key.to_ascii_uppercase())
    }
}

const fn row(
    heading: &'static str,
    key: &'static str,
    unit: &'static str,
    default: &'static str,
    help: &'static str,
) -> Row {
    Row {
        key,
        unit,
        default,
        help,
        heading,
    }
}

const PLACE: &str = "Identity and addresses";
const GENESIS: &str = "Fixed when the group is created (refused if the stored group differs)";
const TIME: &str = "Time";
const HANDOFF: &str = "Moving shards and forwarding";
const BOUNDS: &str = "Limits for clients";
const LOG: &str = "Raft, log and snapshots";
const NETWORK: &str = "Network";
const TLS: &str = "TLS (refused: this version of the node serves none yet)";
const STORE: &str = "Disk";
const OUTPUT: &str = "Logs, metrics and process";

/// All options, in the order of `--help`.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    row(PLACE, "data_dir", "PATH", "", "The directory of the node's identity, log and state; created if missing. Required"),
    row(PLACE, "cluster_name", "NAME", "shardkv", "The cluster's name; connections with another name are refused"),
    row(PLACE, "role", "standalone|shards|controller", "standalone", "The kind of the node's group: a store of one group, a replica group that owns the shards that the controllers give it, or the controllers themselves. Fixed when the group is created"),
    row(PLACE, "gid", "NUMBER", "1, or 0 for controllers", "The replica group that this node belongs to; controllers have 0"),
    row(PLACE, "controllers", "HOST:PORT,...", "none", "The controllers' addresses; required for the role shards, and only for it"),
    row(PLACE, "listen", "HOST:PORT", "127.0.0.1:7400", "The address for clients and peers; port 0 picks a free port"),
    row(PLACE, "advertise", "HOST:PORT", "the listen address", "The address under which other nodes reach this node; required when it listens on all interfaces"),
    row(PLACE, "peers", "HOST:PORT,...", "only this node", "The advertised addresses of the group's first members, this node's own among them. A node whose own address is not in it never starts a group: it joins one"),
    row(PLACE, "fallback_keyspace", "NAME|none", "default", "The keyspace of etcd's clients that dial an address and name no keyspace; none refuses such calls"),
    row(PLACE, "keyspace_listen", "NAME=HOST:PORT,...", "none", "More addresses for etcd's clients, each bound to a keyspace: whatever they say, they mean that one"),
    row(PLACE, "service_names", "NAME,...", "none", "Names of this cluster's services, without a port: a client of etcd that dials one of them, or the node's own name, names no keyspace by it"),
    row(GENESIS, "shards", "COUNT", "64", "The number of shards that the keys are spread over"),
    row(GENESIS, "session_ttl_ms", "MS", "600000", "The time that an idle client session is remembered"),
    row(GENESIS, "max_sessions_per_shard", "COUNT", "65536", "The maximum number of client sessions that a shard remembers; beyond it new sessions are refused"),
    row(GENESIS, "max_results_per_session", "COUNT", "1024", "The maximum number of unacknowledged results that a session keeps in a shard; beyond it writes are refused"),
    row(TIME, "tick_ms", "MS", "10", "The resolution of Raft's clock"),
    row(TIME, "heartbeat_interval_ms", "MS", "100", "The maximum time between two messages of a leader to a follower"),
    row(TIME, "election_timeout_ms", "MS", "400", "A follower that hears from no leader for one to two times this long starts an election; at least 3 heartbeat intervals"),
    row(TIME, "lease_reads", "BOOL", "false", "Serve reads from the leader's lease, without asking a quorum. Correct only if no clock runs twice as fast as another"),
    row(TIME, "request_timeout_ms", "MS", "10000", "The maximum time that a request waits on the server; a shorter deadline of the client counts"),
    row(TIME, "shutdown_timeout_ms", "MS", "5000", "The maximum time for an orderly stop; after it the process ends anyway"),
    row(BOUNDS, "max_value_bytes", "BYTES", "1048576", "The maximum size of a value; a larger one is refused as TooLarge. A key always has at most 4096 bytes"),
    row(BOUNDS, "max_request_bytes", "BYTES", "8388608", "The maximum size of a request message, including a whole batch; a larger one is refused"),
    row(BOUNDS, "max_batch_items", "COUNT", "4096", "The most items in one message of a batch stream; the items beyond it are refused as TooLarge"),
    row(BOUNDS, "max_stream_inflight_items", "COUNT", "16384", "The most unanswered items of one batch stream; beyond it the stream is not read until some are answered"),
    row(BOUNDS, "max_pending_requests", "COUNT", "65536", "The most unanswered requests of all clients; beyond it they are refused as Overloaded"),
    row(BOUNDS, "max_inflight_bytes", "BYTES", "67108864", "The most bytes of unanswered requests of all clients, and of requests that are being forwarded; beyond it they are refused as Overloaded"),
    row(BOUNDS, "max_streams_per_connection", "COUNT", "1024", "The most concurrent requests of one connection; HTTP/2 makes the client wait beyond it"),
    row(BOUNDS, "max_pending_resets", "COUNT", "the value of max_streams_per_connection", "The most requests of one connection that were cancelled before the node looked at them; beyond it the connection is closed (ENHANCE_YOUR_CALM). At least max_streams_per_connection"),
    row(BOUNDS, "max_stream_errors", "COUNT", "1024", "The most streams of one connection that may break the rules of HTTP/2; beyond it the connection is closed (ENHANCE_YOUR_CALM)"),
    row(BOUNDS, "max_connections", "COUNT", "4096", "The most open connections of clients; over further ones clients are refused as Overloaded, and peers and operators are served. Reduced if the limit of open files (ulimit -n) is low"),
    row(BOUNDS, "scan_page_bytes", "BYTES", "262144", "A scan is sent in pages that end after the pair that reaches this size"),
    row(BOUNDS, "scan_page_pairs", "COUNT", "1000", "The most pairs in a page of a scan"),
    row(BOUNDS, "max_scans", "COUNT", "256", "The most open scans of this node's group, and the most over all groups; beyond it they are refused as Overloaded"),
    row(BOUNDS, "max_scan_bytes", "BYTES", "67108864", "The most bytes of scans' pages that clients have not fetched, read here and at other nodes each; beyond it pages wait, and are refused as Overloaded in the end"),
    row(BOUNDS, "max_keyspace_read_bytes", "BYTES", "268435456", "The most bytes of ranges of keyspaces that are read here, or that clients have not fetched, and of those that other nodes read; one range has so much at most that it finds room beside a keyspace that holds all it may (57 MiB by default). Beyond it reads wait, and are refused in the end"),
    row(BOUNDS, "max_keyspace_share_percent", "PERCENT", "66", "The percentage of a node's bounds (bytes of reads and of unanswered calls, watches, streams) that one keyspace may hold while no other holds anything. Beside others it may hold less, so that each finds room; beyond it calls are refused as too many requests"),
    row(BOUNDS, "max_keyspace_requests", "COUNT", "2048", "The most unanswered calls of one keyspace; beyond it they are refused as too many requests"),
    row(BOUNDS, "max_keyspace_proposals", "COUNT", "256", "The most writes of one keyspace that are in the log's queue; further ones wait behind their own, not before those of other keyspaces"),
    row(BOUNDS, "max_exports", "COUNT", "4", "The most exports that are served at the same time; beyond it they are refused as Overloaded"),
    row(BOUNDS, "max_watchers", "COUNT", "1024", "The most watchers of the configuration; beyond it they are refused as Overloaded"),
    row(HANDOFF, "handoff_max_concurrent", "COUNT", "2", "The most shards that are copied from each other group at the same time, and the most that are pulled"),
    row(HANDOFF, "handoff_bytes_per_second", "BYTES", "67108864", "The maximum bytes per second of all copies and pulls together that a node receives, and of the copies of served shards that it sends; 0 for no limit"),
    row(HANDOFF, "handoff_chunk_bytes", "BYTES", "524288", "The approximate size of a chunk of a shard, on the network and in the log; reduced automatically if max_entry_bytes is small"),
    row(HANDOFF, "handoff_min_retry_ms", "MS", "10", "The first pause before a failed step of a hand-off is retried; it doubles with each failure"),
    row(HANDOFF, "handoff_max_retry_ms", "MS", "1000", "The longest pause before a failed step of a hand-off is retried"),
    row(HANDOFF, "handoff_timeout_ms", "MS", "5000", "The maximum time that one step of a hand-off waits for another group"),
    row(HANDOFF, "max_forwarded", "COUNT", "1024", "The most requests that this node forwards at the same time, a quarter of them to one group; beyond it they are refused as Overloaded"),
    row(LOG, "max_entry_bytes", "BYTES", "8388608", "The most bytes of operations in one log entry; at most 33554432"),
    row(LOG, "max_append_bytes", "BYTES", "1048576", "The most bytes of entries in one message to a follower"),
    row(LOG, "max_inflight_appends", "COUNT", "16", "The most unanswered appends to one follower"),
    row(LOG, "max_inflight_append_bytes", "BYTES", "8388608", "The bytes of unanswered appends to one follower at which the leader pauses; the last append may exceed it"),
    row(LOG, "max_uncommitted_bytes", "BYTES", "67108864", "The most bytes of entries that are not committed yet; beyond it writes are refused as Overloaded"),
    row(LOG, "max_cached_bytes", "BYTES", "33554432", "The bytes of log entries kept in memory for followers that are a little behind"),
    row(LOG, "max_apply_bytes", "BYTES", "4194304", "The most bytes of entries applied in one step"),
    row(LOG, "compact_after_bytes", "BYTES", "67108864", "The log is compacted when it has grown by this much"),
    row(LOG, "max_kept_log_bytes", "BYTES", "1073741824", "The most bytes of the log that a leader keeps for followers that are behind; more than clients write while a snapshot is transferred"),
    row(LOG, "snapshot_bytes_per_second", "BYTES", "104857600", "The bandwidth of all outgoing snapshots together; 0 for no limit"),
    row(LOG, "snapshot_window", "COUNT", "4", "The most unanswered snapshot chunks to one follower"),
    row(LOG, "max_snapshots", "COUNT", "2", "The most snapshots that are sent at the same time"),
    row(NETWORK, "connect_timeout_ms", "MS", "1000", "The maximum time for connecting to a peer"),
    row(NETWORK, "keepalive_interval_ms", "MS", "1000", "The time between two probes of an idle connection"),
    row(NETWORK, "keepalive_timeout_ms", "MS", "2000", "A connection whose probe is not answered for this long is closed; a node waits three times as long for its callers"),
    row(NETWORK, "handshake_timeout_ms", "MS", "5000", "A connection that sends nothing for this long after it was opened is closed"),
    row(NETWORK, "stream_window_bytes", "BYTES", "1048576", "HTTP/2 flow control: bytes in flight in one stream"),
    row(NETWORK, "connection_window_bytes", "BYTES", "8388608", "HTTP/2 flow control: bytes in flight in one connection"),
    row(NETWORK, "peer_queue_bytes", "BYTES", "33554432", "The maximum bytes of messages that wait to be sent to one peer; beyond it the oldest are dropped, and Raft sends them again"),
    row(NETWORK, "peer_frame_bytes", "BYTES", "1048576", "Messages to one peer are sent together up to this size"),
    row(TLS, "tls_cert", "PATH", "none", "The PEM file of this node's certificate and the intermediate ones. Its alternative names must have the URI shardkv://<cluster>/group/<gid> or shardkv://<cluster>/controllers; clients check its DNS names and addresses."),
    row(TLS, "tls_key", "PATH", "none", "The PEM file of the certificate's private key"),
    row(TLS, "tls_peers_ca", "PATH", "none", "The PEM file of the authorities that sign the certificates of nodes"),
    row(TLS, "tls_operator_ca", "PATH", "none", "The PEM file of the authorities that sign the operator's certificate"),
    row(TLS, "tls_clients_ca", "PATH", "none", "The PEM file of the authorities that sign the certificates of clients"),
    row(TLS, "tls_plain", "accept|refuse", "refuse", "Calls over connections without TLS, on a node with TLS: served, or refused as Unauthenticated"),
    row(STORE, "disk_reserve_bytes", "BYTES", "a tenth of the disk, at most 536870912", "When less than this is free, writes are refused as DiskFull, while reads and deletes are served"),
    row(STORE, "block_cache_bytes", "BYTES", "67108864", "The cache of blocks read from disk"),
    row(STORE, "state_write_buffer_bytes", "BYTES", "33554432", "The changes of the state kept in memory before they are written to disk, for each column family"),
    row(STORE, "log_write_buffer_bytes", "BYTES", "33554432", "The log entries kept in memory, beside the synced write-ahead log, before they are written to a table"),
    row(STORE, "max_open_files", "COUNT", "512", "The most files that each of the two databases keeps open. Reduced if the limit of open files (ulimit -n) is low"),
    row(OUTPUT, "metrics_listen", "HOST:PORT", "127.0.0.1:7401", "The HTTP address of Prometheus metrics, /livez and /readyz; `off` disables it, port 0 picks a free port"),
    row(OUTPUT, "stall_timeout_ms", "MS", "60000", "When the replica's thread has waited for the disk for this long, /livez fails; /readyz fails after 3 s"),
    row(OUTPUT, "ready_file", "PATH", "none", "A JSON file with the node's id and bound addresses, written when the node serves"),
    row(OUTPUT, "log_format", "human|json", "human", "The format of log lines, which go to standard error"),
    row(OUTPUT, "log_filter", "FILTER", "info", "The log filter: a level, or levels by module such as `info,shardkv_server=debug`"),
    row(OUTPUT, "rpc_threads", "COUNT", "0", "The number of threads that serve the network; 0 chooses one on up to 3 cores, else a third of the cores, at most 8"),
];

/// Returns the row of a key.
pub(crate) fn find(key: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.key == key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_numbers_carry_their_unit() {
        let mut seen = BTreeSet::new();
        for row in ROWS {
            assert!(seen.insert(row.key), "{} stands twice", row.key);
            match row.unit {
                "MS" => assert!(row.key.ends_with("_ms"), "{}", row.key),
                "BYTES" => assert!(row.key.contains("_bytes"), "{}", row.key),
                _ => assert!(!row.key.ends_with("_ms"), "{}", row.key),
            }
        }
    }
}
