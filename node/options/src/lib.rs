//! The options of a node: from flags, else environment variables, else a YAML file, else defaults.
//!
//! A crate of its own, without the node, so that the operator checks options with the node's own parser before it writes
//! them. Only the types and functions here are public; [`table`] is the one place that names the options.

mod file;
mod groups;
mod keyspaces;
mod read;
mod suggest;
mod table;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use probes::telemetry::{self, LogFormat};
use shardkv::GroupKind;
use types::Gid;

pub use read::OptionError;
use read::Values;
pub use tls::Tls;

/// The maximum size of a frame between peers, in bytes. It is a constant and not an option, so that nodes with different
/// options never refuse each other's entries.
pub const MAX_FRAME_BYTES: usize = 64 << 20;
/// The upper limit of `max_entry_bytes`: an entry and an append must fit in a frame.
const MAX_ENTRY_BYTES: usize = 32 << 20;

/// The least window of a stream of pages between nodes, in bytes. Smaller ones would be of no use.
pub const MIN_PAGE_WINDOW_BYTES: u32 = 16 << 10;

/// All options of a node, checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the table explains each option")]
pub struct Options {
    pub data_dir: PathBuf,
    pub cluster_name: String,
    pub gid: Gid,
    /// The controllers' addresses. Not empty exactly for groups of the kind shards.
    pub controllers: Vec<String>,
    pub listen: String,
    pub advertise: Option<String>,
    /// As given: empty means only this node.
    pub peers: Vec<String>,
    pub keyspaces: KeyspaceNames,
    pub genesis: GenesisOptions,
    /// The replica's options. Its address is set when it is known.
    pub replica: replica::Options,
    pub limits: Limits,
    pub network: Network,
    /// `None`: no TLS.
    pub tls: Option<Tls>,
    pub disk: Disk,
    pub handoff: Handoff,
    pub max_forwarded: usize,
    pub request_timeout: Duration,
    pub shutdown_timeout: Duration,
    pub metrics_listen: Option<String>,
    pub stall_timeout: Duration,
    pub ready_file: Option<PathBuf>,
    pub log_format: LogFormat,
    pub log_filter: String,
    pub rpc_threads: usize,
}

/// The names that etcd's clients dial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table explains each option")]
pub struct KeyspaceNames {
    /// `None`: a call must name its keyspace.
    pub fallback: Option<String>,
    pub services: Vec<String>,
    /// Keyspaces with the addresses of listeners that are bound to them.
    pub listen: Vec<(String, String)>,
}

/// The values that a group is created with. Values that are not given are not compared with the stored ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table explains each option")]
pub struct GenesisOptions {
    /// The kind of the group. It always has a value.
    pub kind: GroupKind,
    pub shards: Option<u32>,
    pub session_ttl_ms: Option<u64>,
    pub max_sessions_per_shard: Option<u32>,
    pub max_results_per_session: Option<u32>,
}

/// Bounds of clients' requests.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the table explains each option")]
pub struct Limits {
    pub max_value_bytes: usize,
    pub max_request_bytes: usize,
    pub max_batch_items: usize,
    pub max_stream_inflight_items: usize,
    pub max_pending_requests: usize,
    pub max_inflight_bytes: usize,
    pub max_streams_per_connection: u32,
    pub max_pending_resets: usize,
    pub max_stream_errors: usize,
    pub max_connections: usize,
    pub scan_page_bytes: u32,
    pub scan_page_pairs: u32,
    pub max_scans: usize,
    pub max_scan_bytes: usize,
    pub max_keyspace_read_bytes: usize,
    pub max_keyspace_share_percent: u32,
    pub max_keyspace_requests: usize,
    pub max_keyspace_proposals: usize,
    pub max_exports: usize,
    pub max_watchers: usize,
}

/// Options of hand-offs.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the table explains each option")]
pub struct Handoff {
    pub mover: shardkv::MoverOptions,
    /// The maximum time that one step waits for another group.
    pub timeout: Duration,
}

/// Options of the network.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the table explains each option")]
pub struct Network {
    pub connect_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    pub handshake_timeout: Duration,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
    pub peer_queue_bytes: usize,
    pub peer_frame_bytes: usize,
    /// Zero means no limit.
    pub snapshot_bytes_per_second: u64,
}

/// Options of the disk.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the table explains each option")]
pub struct Disk {
    /// `None`: the store chooses.
    pub reserve_bytes: Option<u64>,
    pub block_cache_bytes: usize,
    pub state_write_buffer_bytes: usize,
    pub log_write_buffer_bytes: usize,
    pub max_open_files: i32,
}

/// The result of reading a command line.
#[derive(Debug)]
pub enum Invocation {
    /// Run a node.
    Run(Box<Options>),
    /// Print this text on standard output and exit with success.
    Print(String),
}

/// Reads a command line, with the environment and the options file. `footer` is the end of the text of `--help`.
pub fn parse(
    args: impl IntoIterator<Item = std::ffi::OsString>,
    footer: &'static str,
) -> Result<Invocation, OptionError> {
    let command = read::command().after_help(footer);
    let matches = match command.try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            let text = error.render().to_string();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(Invocation::Print(text)),
                _ => Err(OptionError {
                    place: "command line".to_owned(),
                    reason: text.trim_start_matches("error: ").trim_end().to_owned(),
                }),
            };
        }
    };
    let path = matches.get_one::<String>("config").cloned();
    let settings = match &path {
        None => Vec::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| OptionError {
                place: path.clone(),
                reason: format!("can't be read: {error}"),
            })?;
            settings(path, &text)?
        }
    };
    let mut values = Values::new(path.as_deref().unwrap_or_default(), settings);
    values.add_matches(&matches);
    let options = build(&mut values)?;
    if matches.get_flag("print_options") {
        return Ok(Invocation::Print(values.report()));
    }
    Ok(Invocation::Run(Box::new(options)))
}

/// Checks an options file as a node does that starts with these environment variables and no flags. `path` names the file in
/// errors.
pub fn check<'a>(
    path: &str,
    text: &str,
    environment: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), OptionError> {
    let mut values = Values::new(path, settings(path, text)?);
    values.add_environment(environment);
    build(&mut values).map(|_| ())
}

fn settings(path: &str, text: &str) -> Result<Vec<file::Setting>, OptionError> {
    file::parse(text).map_err(|error| OptionError {
        place: path.to_owned(),
        reason: error.to_string(),
    })
}

fn build(values: &mut Values) -> Result<Options, OptionError> {
    let Some(data_dir) = values.text("data_dir").filter(|text| !text.is_empty()) else {
        return Err(values.error(
            "data_dir",
            "is required: give the directory for the node's data",
        ));
    };
    let limits = limits(values)?;
    let replica = replica_options(values, &limits)?;
    let kind = groups::role(values)?;
    let tls = tls::tls(values)?;
    if tls.is_some() {
        // A node that is to have TLS must not serve without it.
        let reason = "this version of the node serves no TLS yet: leave the options of TLS out";
        return Err(values.error("tls_cert", reason));
    }
    Ok(Options {
        data_dir: data_dir.into(),
        cluster_name: cluster_name(values)?,
        gid: groups::gid(values, kind)?,
        controllers: groups::controllers(values, kind)?,
        listen: address(values, "listen")?,
        advertise: optional_address(values, "advertise")?,
        peers: peers(values)?,
        keyspaces: keyspaces::names(values)?,
        genesis: genesis(values, kind)?,
        handoff: groups::handoff(values, &limits, replica.max_entry_bytes)?,
        max_forwarded: values.number("max_forwarded", 1, 1 << 20)?,
        replica,
        limits,
        network: network(values)?,
        tls,
        disk: disk(values)?,
        request_timeout: millis(values, "request_timeout_ms", 1, 3_600_000)?,
        shutdown_timeout: millis(values, "shutdown_timeout_ms", 1, 600_000)?,
        metrics_listen: metrics_listen(values)?,
        stall_timeout: millis(values, "stall_timeout_ms", 3_000, 86_400_000)?,
        ready_file: values.text("ready_file").map(PathBuf::from),
        log_format: log_format(values)?,
        log_filter: log_filter(values)?,
        rpc_threads: rpc_threads(values)?,
    })
}

fn genesis(values: &mut Values, kind: GroupKind) -> Result<GenesisOptions, OptionError> {
    Ok(GenesisOptions {
        kind,
        shards: values.optional_number("shards", 1, 1_000_000)?,
        session_ttl_ms: values.optional_number("session_ttl_ms", 1_000, 30 * 86_400_000)?,
        max_sessions_per_shard: values.optional_number("max_sessions_per_shard", 1, 1 << 24)?,
        max_results_per_session: values.optional_number("max_results_per_session", 1, 1 << 20)?,
    })
}

fn limits(values: &mut Values) -> Result<Limits, OptionError> {
    let streams = values.number("max_streams_per_connection", 1, 1 << 20)?;
    let limits = Limits {
        max_value_bytes: values.number("max_value_bytes", 1, MAX_ENTRY_BYTES / 4)?,
        max_request_bytes: values.number("max_request_bytes", 1_024, 256 << 20)?,
        max_batch_items: values.number("max_batch_items", 1, 1 << 20)?,
        max_stream_inflight_items: values.number("max_stream_inflight_items", 1, 1 << 20)?,
        max_pending_requests: values.number("max_pending_requests", 1, 1 << 24)?,
        max_inflight_bytes: values.number("max_inflight_bytes", 1 << 20, 1 << 40)?,
        max_streams_per_connection: streams,
        max_pending_resets: max_pending_resets(values, streams)?,
        max_stream_errors: values.number("max_stream_errors", 1, 1 << 20)?,
        max_connections: values.number("max_connections", 1, 1 << 20)?,
        scan_page_bytes: values.number("scan_page_bytes", 1, shardkv::MAX_SCAN_BYTES)?,
        scan_page_pairs: values.number("scan_page_pairs", 1, shardkv::MAX_SCAN_PAIRS)?,
        max_scans: values.number("max_scans", 1, 1 << 20)?,
        max_scan_bytes: values.number("max_scan_bytes", 1 << 20, 1 << 40)?,
        max_keyspace_read_bytes: keyspaces::max_read_bytes(values)?,
        max_keyspace_share_percent: values.number("max_keyspace_share_percent", 1, 100)?,
        max_keyspace_requests: values.number("max_keyspace_requests", 1, 1 << 24)?,
        max_keyspace_proposals: values.number("max_keyspace_proposals", 1, 1 << 24)?,
        max_exports: values.number("max_exports", 1, 1_024)?,
        max_watchers: values.number("max_watchers", 1, 1 << 20)?,
    };
    let largest = largest_operation(&limits);
    if limits.max_request_bytes < largest {
        let reason = format!("must be at least {largest}, so that two of the largest values fit");
        return Err(values.error("max_request_bytes", reason));
    }
    if limits.max_inflight_bytes < limits.max_request_bytes {
        return Err(values.error("max_inflight_bytes", "must be at least max_request_bytes"));
    }
    check_scans(values, &limits)?;
    Ok(limits)
}

/// Refuses bounds by which the windows of all open scans take more than half of the budget of pages.
fn check_scans(values: &Values, limits: &Limits) -> Result<(), OptionError> {
    let windows = limits.max_scans * MIN_PAGE_WINDOW_BYTES as usize;
    let least = 2 * windows;
    if limits.max_scan_bytes >= least {
        return Ok(());
    }
    let scans = limits.max_scans;
    let reason = format!(
        "must be at least {least}, 32 KiB for each of the {scans} open scans that max_scans allows"
    );
    Err(values.error("max_scan_bytes", reason))
}

/// Reads the limit of cancelled requests. A client that cancels all its requests at once must keep its connection, because
/// another user of the connection may wait for an answer.
fn max_pending_resets(values: &mut Values, streams: u32) -> Result<usize, OptionError> {
    let key = "max_pending_resets";
    let resets = values.optional_number(key, 1, 1 << 20)?.unwrap_or(streams);
    if resets < streams {
        let reason = format!("must be at least max_streams_per_connection, {streams}");
        return Err(values.error(key, reason));
    }
    Ok(usize::try_from(resets).unwrap_or(usize::MAX))
}

/// Returns the size of the largest operation: a compare-and-swap between two of the largest values under the longest key,
/// with some room for the fields around them.
fn largest_operation(limits: &Limits) -> usize {
    2 * limits.max_value_bytes + shardkv::MAX_KEY_BYTES + 1_024
}

fn replica_options(values: &mut Values, limits: &Limits) -> Result<replica::Options, OptionError> {
    let tick_ms: u32 = values.number("tick_ms", 1, 1_000)?;
    let heartbeat_ms: u32 = values.number("heartbeat_interval_ms", 1, 60_000)?;
    let election_ms: u32 = values.number("election_timeout_ms", 3, 600_000)?;
    if heartbeat_ms < tick_ms {
        return Err(values.error("heartbeat_interval_ms", "must be at least tick_ms"));
    }
    if election_ms < heartbeat_ms.saturating_mul(3) {
        let reason = "must be at least 3 times heartbeat_interval_ms";
        return Err(values.error("election_timeout_ms", reason));
    }
    let max_entry_bytes = values.number("max_entry_bytes", 1_024, MAX_ENTRY_BYTES)?;
    let largest = largest_operation(limits);
    if max_entry_bytes < largest {
        let reason = format!("must be at least {largest}, so that two of the largest values fit");
        return Err(values.error("max_entry_bytes", reason));
    }
    let max_inflight_append_bytes: u64 = values.number("max_inflight_append_bytes", 1, 1 << 30)?;
    let compact_after_bytes: u64 = values.number("compact_after_bytes", 4_096, 1 << 40)?;
    let raft = raft::Options {
        election_ticks: election_ms.div_ceil(tick_ms),
        heartbeat_ticks: heartbeat_ms / tick_ms,
        max_append_bytes: values.number("max_append_bytes", 1, MAX_ENTRY_BYTES)?,
        max_inflight_appends: values.number("max_inflight_appends", 1, 1 << 16)?,
        max_inflight_bytes: usize::try_from(max_inflight_append_bytes).unwrap_or(usize::MAX),
        max_uncommitted_bytes: values.number("max_uncommitted_bytes", 1, 1 << 40)?,
        max_cached_bytes: values.number("max_cached_bytes", 0, 1 << 40)?,
        max_apply_bytes: values.number("max_apply_bytes", 1, 1 << 30)?,
        // More than a restart replays, which is about what is written between two flushes of the state, and than a leader has under way.
        max_backlog_bytes: compact_after_bytes
            .max(max_inflight_append_bytes)
            .saturating_mul(4),
        check_quorum: true,
        lease_reads: values.flag("lease_reads")?,
        keeps_leases: true,
        tick_ms,
        feature_level: replica::FEATURE_LEVEL,
        bugs: raft::Bugs::NONE,
    };
    let options = replica::Options {
        raft,
        tick_ms,
        max_entry_bytes,
        max_pending_requests: limits.max_pending_requests,
        max_pending_bytes: limits.max_inflight_bytes,
        max_value_bytes: u32::try_from(limits.max_value_bytes).unwrap_or(u32::MAX),
        compact_after_bytes,
        max_kept_log_bytes: values.number("max_kept_log_bytes", 4_096, 1 << 40)?,
        snapshot_window: values.number("snapshot_window", 1, 1_024)?,
        max_snapshots: values.number("max_snapshots", 1, 1_024)?,
        // A stand-in, so that the check below covers the other options.
        address: "unknown".to_owned(),
        checkpoint_every: replica::Options::default().checkpoint_every,
        max_apply_work: replica::Options::default().max_apply_work,
        bugs: replica::Bugs::NONE,
    };
    match options.validate() {
        Ok(()) => Ok(options),
        Err(error) => Err(OptionError {
            place: "options".to_owned(),
            reason: error.to_string(),
        }),
    }
}

fn network(values: &mut Values) -> Result<Network, OptionError> {
    Ok(Network {
        connect_timeout: millis(values, "connect_timeout_ms", 1, 600_000)?,
        keepalive_interval: millis(values, "keepalive_interval_ms", 10, 3_600_000)?,
        keepalive_timeout: millis(values, "keepalive_timeout_ms", 10, 3_600_000)?,
        handshake_timeout: millis(values, "handshake_timeout_ms", 10, 3_600_000)?,
        // HTTP/2 windows have 31 bits and at least 65,535 bytes.
        stream_window_bytes: values.number("stream_window_bytes", 65_535, (1 << 31) - 1)?,
        connection_window_bytes: values.number("connection_window_bytes", 65_535, (1 << 31) - 1)?,
        peer_queue_bytes: values.number("peer_queue_bytes", 65_536, 1 << 40)?,
        peer_frame_bytes: values.number("peer_frame_bytes", 1, MAX_ENTRY_BYTES / 2)?,
        snapshot_bytes_per_second: values.number("snapshot_bytes_per_second", 0, u64::MAX)?,
    })
}

fn disk(values: &mut Values) -> Result<Disk, OptionError> {
    Ok(Disk {
        reserve_bytes: values.optional_number("disk_reserve_bytes", 0, u64::MAX)?,
        block_cache_bytes: values.number("block_cache_bytes", 1 << 20, 1 << 40)?,
        state_write_buffer_bytes: values.number("state_write_buffer_bytes", 1 << 16, 1 << 36)?,
        log_write_buffer_bytes: values.number("log_write_buffer_bytes", 1 << 16, 1 << 36)?,
        max_open_files: values.number("max_open_files", 16, 1 << 20)?,
    })
}

fn millis(
    values: &mut Values,
    key: &'static str,
    least: u64,
    most: u64,
) -> Result<Duration, OptionError> {
    values.number(key, least, most).map(Duration::from_millis)
}

fn cluster_name(values: &mut Values) -> Result<String, OptionError> {
    let name = values.text_or_default("cluster_name");
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if name.is_empty() || name.len() > 253 || !name.chars().all(fine) {
        let reason =
            format!("`{name}` is not a name: 1 to 253 letters, digits, and any of - _ . /");
        return Err(values.error("cluster_name", reason));
    }
    Ok(name)
}

fn address(values: &mut Values, key: &'static str) -> Result<String, OptionError> {
    let text = values.text_or_default(key);
    check_address(&text).map_err(|reason| values.error(key, reason))
}

fn optional_address(values: &mut Values, key: &'static str) -> Result<Option<String>, OptionError> {
    match values.text(key) {
        None => Ok(None),
        Some(text) => match check_address(&text) {
            Ok(address) => Ok(Some(address)),
            Err(reason) => Err(values.error(key, reason)),
        },
    }
}

fn metrics_listen(values: &mut Values) -> Result<Option<String>, OptionError> {
    if values.text_or_default("metrics_listen") == "off" {
        return Ok(None);
    }
    address(values, "metrics_listen").map(Some)
}

fn peers(values: &mut Values) -> Result<Vec<String>, OptionError> {
    addresses(values, "peers")
}

/// Reads a list of distinct addresses. It is empty when the option is not given.
fn addresses(values: &mut Values, key: &'static str) -> Result<Vec<String>, OptionError> {
    let Some(text) = values.text(key) else {
        return Ok(Vec::new());
    };
    let mut addresses = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let address = check_address(part).map_err(|reason| values.error(key, reason))?;
        if addresses.contains(&address) {
            return Err(values.error(key, format!("`{address}` is given twice")));
        }
        addresses.push(address);
    }
    if addresses.len() > raft::MAX_MEMBERS {
        let reason = format!("a group has at most {} members", raft::MAX_MEMBERS);
        return Err(values.error(key, reason));
    }
    Ok(addresses)
}

/// A text that is not an address. The option must be corrected.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an address such as db-0.db:7400 or 10.0.0.1:7400")]
struct InvalidAddress(String);

/// Checks `host:port`. The host is a name, an IPv4 address, or an IPv6 address in brackets.
fn check_address(text: &str) -> Result<String, InvalidAddress> {
    let text = text.trim();
    let wrong = || InvalidAddress(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let numbered = port.parse::<u16>().is_ok();
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = !host.is_empty()
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let short = text.len() <= raft::MAX_ADDRESS_BYTES;
    let is_ipv6 = || {
        host.trim_matches(['[', ']'])
            .parse::<std::net::Ipv6Addr>()
            .is_ok()
    };
    if numbered && short && (plain || (bracketed && is_ipv6())) {
        Ok(text.to_owned())
    } else {
        Err(wrong())
    }
}

fn log_format(values: &mut Values) -> Result<LogFormat, OptionError> {
    match values.text_or_default("log_format").as_str() {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        other => Err(values.error(
            "log_format",
            format!("`{other}` is not a log format: use human or json"),
        )),
    }
}

fn log_filter(values: &mut Values) -> Result<String, OptionError> {
    let text = values.text_or_default("log_filter");
    match telemetry::check_filter(&text) {
        Ok(()) => Ok(text),
        Err(error) => Err(values.error("log_filter", format!("`{text}`: {error}"))),
    }
}

fn rpc_threads(values: &mut Values) -> Result<usize, OptionError> {
    let threads = values.number("rpc_threads", 0, 256)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // The replica's thread, the store's background threads and the network share the cores.
    Ok(if threads == 0 {
        (cores / 3).clamp(1, 8)
    } else {
        threads
    })
}

#[cfg(test)]
mod tests;
