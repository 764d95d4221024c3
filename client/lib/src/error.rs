//! What callers are told when a call fails.

use std::time::Duration;

use types::ConfigNum;

/// Why a call failed, in the terms of the one who made it.
///
/// Everything that a retry can cure was retried until the call's deadline before it gets here: lost leaders,
/// broken connections, overload. What remains answers three questions: is it worth trying again
/// ([`Error::is_retryable`]), may the write have taken effect ([`Error::maybe_applied`]), and what to do (the
/// text).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The deadline passed.
    #[error(
        "no answer within {after:?}{}; last trouble: {last}",
        if *maybe_applied { ", and the write may have been applied: read the key before you repeat it" } else { "" }
    )]
    Timeout {
        /// Whether the call is a write that may have taken effect. Never set for reads.
        maybe_applied: bool,
        /// How long the call was tried.
        after: Duration,
        /// What stood in the way at the end.
        last: String,
    },
    /// The write was sent, its answer was lost, and now its outcome can't be learnt any more. It took effect once or not at all.
    #[error(
        "the write's outcome is unknown ({reason}): it was applied once or not at all; read the key before you repeat it"
    )]
    OutcomeUnknown {
        /// Why it can't be learnt.
        reason: String,
    },
    /// A key, a value or a request exceeds a limit. Nothing was done.
    #[error("{message}")]
    TooLarge {
        /// What is too large: `key`, `value` or `request`.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
        /// What happened, for people.
        message: String,
    },
    /// The request makes no sense. Nothing was done, and repeating it won't help.
    #[error("{message}")]
    BadRequest {
        /// The field that is wrong.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The cluster's disks are nearly full. Nothing was done; reads and deletes still work.
    #[error("{message}")]
    DiskFull {
        /// What happened, for people.
        message: String,
    },
    /// The addresses belong to another cluster. Nothing was done.
    #[error("these nodes belong to cluster {actual}, not {expected}: check the addresses")]
    WrongCluster {
        /// The cluster that was meant.
        expected: String,
        /// The cluster that answered.
        actual: String,
    },
    /// What is asked for isn't there: a group, a configuration. Nothing was done.
    #[error("{message}")]
    NotFound {
        /// What isn't there.
        what: String,
        /// What happened, for people.
        message: String,
    },
    /// It contradicts how things stand: the last group leaving, an address of another group. Nothing was done.
    #[error("{message}")]
    Conflict {
        /// What it contradicts.
        what: String,
        /// What happened, for people.
        message: String,
    },
    /// Only where one node or group is asked: the shard is another group's. Nothing was done.
    #[error("the group does not own the shard: route by configuration {config_num}")]
    WrongGroup {
        /// The configuration by which the group refused.
        config_num: ConfigNum,
    },
    /// Only where one node or group is asked: the shard is on its way to the group. Nothing was done.
    #[error("the shard is being moved: try again in {retry_after:?}")]
    ShardNotReady {
        /// When to try again.
        retry_after: Duration,
    },
    /// Only from [`crate::Admin`]: the node that was asked doesn't lead. Nothing was done.
    #[error(
        "the node does not lead; {}",
        match leader { Some(leader) => format!("ask {leader}"), None => "no leader is known now: try again".to_owned() }
    )]
    NotLeader {
        /// Where the leader is reached, if the node knows.
        leader: Option<String>,
    },
    /// Only from [`crate::Admin`], which asks one node once: it is unreachable, busy, starting or stopping.
    #[error("{address}: {message}")]
    Unavailable {
        /// The node that was asked.
        address: String,
        /// What happened.
        message: String,
        /// Whether the request may have taken effect.
        maybe_applied: bool,
    },
    /// A node answered what this client doesn't understand: their versions don't match, or the address is not
    /// `ShardKV`'s.
    #[error("unexpected answer: {message}; check that client and nodes are of matching versions")]
    Protocol {
        /// What was wrong with it.
        message: String,
        /// Whether the call is a write that may have taken effect.
        maybe_applied: bool,
    },
    /// The client's runtime is shutting down.
    #[error("the client is closed")]
    Closed {
        /// Whether the call is a write that may have taken effect.
        maybe_applied: bool,
    },
}

impl Error {
    /// Whether the same call may succeed later without a change. For a write of which
    /// [`Error::maybe_applied`] holds, calling again can apply it a second time.
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

    /// Whether the write may have taken effect all the same. Always false for reads.
    pub fn maybe_applied(&self) -> bool {
        match self {
            Self::OutcomeUnknown { .. } => true,
            Self::Timeout { maybe_applied, .. }
            | Self::Protocol { maybe_applied, .. }
            | Self::Unavailable { maybe_applied, .. }
            | Self::Closed { maybe_applied } => *maybe_applied,
            _ => false,
        }
    }
}

/// Why a client could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting can't work.
    #[error("bad option: {0}")]
    Options(String),
    /// An address can't be one.
    #[error("bad address {address:?}: {reason}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A client was made outside of a tokio runtime.
    #[error("a client lives on a tokio runtime: make it within one")]
    NoRuntime,
    /// No node accepted a connection.
    #[error("no node is reachable: {0}; check the addresses and that the nodes run")]
    Unreachable(String),
}
