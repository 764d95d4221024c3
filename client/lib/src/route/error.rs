//! The reasons why no node could be found, reached or understood.

use std::sync::Arc;

use request::SearchError;
use types::{ConfigNum, Gid};

use crate::ConnectError;

/// The reason why a group's leader isn't known or can't be reached. A later attempt may succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no configuration is known ({trouble})")]
    NoConfig { trouble: String },
    #[error("configuration {num} has no group {gid}")]
    NoGroup { num: ConfigNum, gid: Gid },
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error("the leader is silent, and no other node leads")]
    NoNewerLeader,
    #[error("{address}: {error}")]
    Unreachable {
        address: Arc<str>,
        error: ChannelError,
    },
}

/// The reason why there is no connection to a node. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error(transparent)]
    Address(#[from] ConnectError),
    #[error("{0}")]
    Refused(String),
    /// The node accepted the connection, and there was no agreement over TLS.
    #[error("{0}")]
    Tls(String),
    #[error("connecting took too long")]
    TimedOut,
}

/// The reason why a node's status is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StatusError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("{0}")]
    Refused(String),
    #[error("no answer")]
    NoAnswer,
    #[error("is a node of {actual}, not of {expected}")]
    OtherGroup { actual: Gid, expected: Gid },
}
