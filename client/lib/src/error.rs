//! The errors of calls.

use std::time::Duration;

use types::ConfigNum;

/// The reason why a call failed.
///
/// Failures that a retry can cure (lost leaders, broken connections, overload) were retried until the call's deadline. The error
/// answers three questions: may a later attempt succeed ([`Error::is_retryable`]), may the write have taken effect
/// ([`Error::maybe_applied`]), and what should the caller do (the text).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The deadline passed.
    #[error(
        "no answer within {after:?}{}; last trouble: {last}",
        if *maybe_applied { ", and the write may have been applied: read the key before you repeat it" } else { "" }
    )]
    Timeout {
        /// True if the call is a write that may have taken effect. False for reads.
        maybe_applied: bool,
        /// The time for which the call was tried.
        after: Duration,
        /// The last obstacle.
        last: String,
    },
    /// The write was sent, its answer was lost, and its outcome can't be learnt any more. It took effect once or not at all.
    #[error(
        "the write's outcome is unknown ({reason}): it was applied once or not at all; read the key before you repeat it"
    )]
    OutcomeUnknown {
        /// The reason why it can't be learnt.
        reason: String,
    },
    /// A key, a value or a request exceeds a limit. Nothing was done.
    #[error("{message}")]
    TooLarge {
        /// The thing that is too large: `key`, `value` or `request`.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
        /// The whole text of the error.
        message: String,
    },
    /// A field of the request is wrong. Nothing was done, and repeating it won't help.
    #[error("{message}")]
    BadRequest {
        /// The field that is wrong.
        field: String,
        /// The whole text of the error.
        message: String,
    },
    /// The cluster's disks are nearly full. Nothing was done; reads and deletes still work.
    #[error("{message}")]
    DiskFull {
        /// The whole text of the error.
        message: String,
    },
    /// The addresses belong to another cluster. Nothing was done.
    #[error("these nodes belong to cluster {actual}, not {expected}: check the addresses")]
    WrongCluster {
        /// The cluster that the client expects.
        expected: String,
        /// The cluster that answered.
        actual: String,
    },
    /// The object that the request is to create exists. Nothing was done.
    #[error("{message}")]
    AlreadyExists {
        /// The thing that exists.
        what: String,
        /// The whole text of the error.
        message: String,
    },
    /// The group, configuration or keyspace that the request names doesn't exist. Nothing was done.
    #[error("{message}")]
    NotFound {
        /// The thing that is missing.
        what: String,
        /// The whole text of the error.
        message: String,
    },
    /// The request contradicts the cluster's state: the last group would leave, or an address is another group's. Nothing was
    /// done.
    #[error("{message}")]
    Conflict {
        /// The state that it contradicts.
        what: String,
        /// The whole text of the error.
        message: String,
    },
    /// The nodes know no identity of this client, and the call needs one. Nothing was done. Connect over TLS with a certificate.
    #[error("{message}")]
    Unauthenticated {
        /// The whole text of the error.
        message: String,
    },
    /// This client may not make the call. Nothing was done, and repeating it won't help without another grant.
    #[error("{message}")]
    PermissionDenied {
        /// The whole text of the error.
        message: String,
    },
    /// The shard is another group's. Only from calls that ask one node or group. Nothing was done.
    #[error("the group does not own the shard: route by configuration {config_num}")]
    WrongGroup {
        /// The configuration by which the group refused.
        config_num: ConfigNum,
    },
    /// The shard is being moved to the group. Only from calls that ask one node or group. Nothing was done.
    #[error("the shard is being moved: try again in {retry_after:?}")]
    ShardNotReady {
        /// The pause before another attempt.
        retry_after: Duration,
    },
    /// The node that was asked doesn't lead. Only from [`crate::Admin`]. Nothing was done.
    #[error(
        "the node does not lead; {}",
        match leader { Some(leader) => format!("ask {leader}"), None => "no leader is known now: try again".to_owned() }
    )]
    NotLeader {
        /// The address of the leader, if the node knows one.
        leader: Option<String>,
    },
    /// No connection over TLS could be made: a certificate was refused, or nodes speak no TLS. A retry doesn't help before a certificate
    /// or an option is changed.
    #[error(
        "no connection over TLS: {message}{}",
        if *maybe_applied { "; the write may have been applied: read the key before you repeat it" } else { "" }
    )]
    Tls {
        /// The reason, and the remedy.
        message: String,
        /// True if the call is a write that may have taken effect.
        maybe_applied: bool,
    },
    /// The node is unreachable, busy, starting or stopping. Only from [`crate::Admin`], which asks one node once.
    #[error("{address}: {message}")]
    Unavailable {
        /// The node that was asked.
        address: String,
        /// The text of the node or of the transport.
        message: String,
        /// True if the request may have taken effect.
        maybe_applied: bool,
    },
    /// This client doesn't understand an answer: the versions don't match, or the address is not a node of `ShardKV`.
    #[error("unexpected answer: {message}; check that the versions of client and nodes match")]
    Protocol {
        /// The fault of the answer.
        message: String,
        /// True if the call is a write that may have taken effect.
        maybe_applied: bool,
    },
    /// The client's runtime is shutting down.
    #[error("the client is closed")]
    Closed {
        /// True if the call is a write that may have taken effect.
        maybe_applied: bool,
    },
}

impl Error {
    /// Returns true if the same call may succeed later without a change. If [`Error::maybe_applied`] is true as well, calling again
    /// can apply the write a second time.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. }
                | Self::OutcomeUnknown { .. }
                | Self::DiskFull { .. }
                | Self::NotLeader { .. }
                | Self::WrongGroup { .. }
                | Self::ShardNotReady { .. }
                | Self::Unavailable { .. }
        )
    }

    /// Returns true if the write may have taken effect all the same. Always false for reads.
    pub fn maybe_applied(&self) -> bool {
        match self {
            Self::OutcomeUnknown { .. } => true,
            Self::Timeout { maybe_applied, .. }
            | Self::Protocol { maybe_applied, .. }
            | Self::Tls { maybe_applied, .. }
            | Self::Unavailable { maybe_applied, .. }
            | Self::Closed { maybe_applied } => *maybe_applied,
            _ => false,
        }
    }
}

/// An option of [`crate::ClientOptions`] that can't work. The text says which values can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOption {
    /// There is no address.
    #[error("no address is given: give the host:port of at least one node")]
    NoAddress,
    /// The number of connections is out of range.
    #[error("connections must be from 1 to 64")]
    Connections,
    /// The timeout of requests is too short.
    #[error("request_timeout must be at least 1 ms")]
    RequestTimeout,
    /// The timeout of connecting is too short.
    #[error("connect_timeout must be at least 1 ms")]
    ConnectTimeout,
    /// The shortest pause is zero, or longer than the longest.
    #[error("min_backoff must be more than 0 and at most max_backoff")]
    Backoff,
    /// No call may be in flight.
    #[error("max_in_flight must be at least 1")]
    MaxInFlight,
    /// No byte may be in flight.
    #[error("max_in_flight_bytes must be at least 1")]
    MaxInFlightBytes,
    /// No write may be unacknowledged.
    #[error("max_unacknowledged must be at least 1")]
    MaxUnacknowledged,
    /// No call fits a message.
    #[error("max_batch_items must be at least 1")]
    MaxBatchItems,
    /// A window of HTTP/2 is out of range.
    #[error("scan_window_bytes and all_scans_window_bytes must be from 16384 to 2147483647")]
    Window,
}

/// The reason why a client could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting can't work.
    #[error("bad option: {0}")]
    Options(#[from] InvalidOption),
    /// An address is malformed.
    #[error("bad address {address:?}: {reason}")]
    Address {
        /// The address as given.
        address: String,
        /// The fault of the address.
        reason: String,
    },
    /// The user agent can't be sent.
    #[error("bad user_agent: {0}; use visible ASCII characters")]
    UserAgent(String),
    /// A client was made outside of a tokio runtime.
    #[error("a client needs a tokio runtime: make it within one")]
    NoRuntime,
    /// The options of TLS can't be used: a file is missing, or a key belongs to another certificate.
    #[error("bad certificates: {0}")]
    Certificates(String),
    /// No node accepted a connection over TLS: a certificate was refused, or nodes speak no TLS.
    #[error("no connection over TLS: {0}")]
    Tls(String),
    /// No node accepted a connection.
    #[error("no node is reachable: {0}; check the addresses and that the nodes run")]
    Unreachable(String),
}
