//! Builders of typed errors, each with a message that says what happened and what to do.

use crate::v1::error_detail::Kind;
use crate::v1::{
    BadRequest, Conflict, DiskFull, ErrorDetail, NotFound, NotLeader, OutcomeUnknown, Overloaded,
    SessionExpired, ShardNotReady, TooLarge, Unavailable, WrongCluster, WrongGroup,
};

fn detail(message: String, kind: Kind) -> ErrorDetail {
    ErrorDetail {
        message,
        kind: Some(kind),
    }
}

/// This node does not lead and did nothing. `leader_address` is empty when no leader is known.
pub fn not_leader(leader_address: &str) -> ErrorDetail {
    let message = if leader_address.is_empty() {
        "this node does not lead and knows no leader now: retry, or ask another node".to_owned()
    } else {
        format!("this node does not lead: ask {leader_address}")
    };
    let leader_address = leader_address.to_owned();
    detail(message, Kind::NotLeader(NotLeader { leader_address }))
}

/// The key's shard is another group's since configuration `config_num`; nothing was done.
pub fn wrong_group(config_num: u64) -> ErrorDetail {
    detail(
        format!("this group does not own the key's shard: route by configuration {config_num}"),
        Kind::WrongGroup(WrongGroup { config_num }),
    )
}

/// The key's shard is on its way to this group; nothing was done.
pub fn shard_not_ready(retry_after_ms: u32) -> ErrorDetail {
    detail(
        format!("the key's shard is being moved here: retry in {retry_after_ms} ms"),
        Kind::ShardNotReady(ShardNotReady { retry_after_ms }),
    )
}

/// `what` reached its `limit`; nothing was done.
pub fn overloaded(what: &str, limit: u64, retry_after_ms: u32) -> ErrorDetail {
    detail(
        format!("overloaded: {what} reached the limit of {limit}: retry in {retry_after_ms} ms"),
        Kind::Overloaded(Overloaded {
            what: what.to_owned(),
            limit,
            retry_after_ms,
        }),
    )
}

/// `what` has `size` bytes, more than `limit`; nothing was done.
pub fn too_large(what: &str, size: u64, limit: u64) -> ErrorDetail {
    detail(
        format!("{what} of {size} bytes exceeds the limit of {limit} bytes: send less"),
        Kind::TooLarge(TooLarge {
            what: what.to_owned(),
            size,
            limit,
        }),
    )
}

/// The write's session was forgotten; the write was not applied now.
pub fn session_expired() -> ErrorDetail {
    detail(
        "the session expired: open a new one; this write may have been applied before".to_owned(),
        Kind::SessionExpired(SessionExpired {}),
    )
}

/// The request is meant for another cluster; nothing was done.
pub fn wrong_cluster(expected: &str, actual: &str) -> ErrorDetail {
    detail(
        format!("this node belongs to cluster {actual}, not {expected}: check the addresses"),
        Kind::WrongCluster(WrongCluster {
            expected: expected.to_owned(),
            actual: actual.to_owned(),
        }),
    )
}

/// `field` is wrong, as `why` tells; nothing was done and repeating it won't help.
pub fn bad_request(field: &str, why: impl std::fmt::Display) -> ErrorDetail {
    detail(
        format!("{field}: {why}"),
        Kind::BadRequest(BadRequest {
            field: field.to_owned(),
        }),
    )
}

/// The write may or may not take effect. `leader_address` is empty when no leader is known.
pub fn outcome_unknown(leader_address: &str) -> ErrorDetail {
    detail(
        "leadership was lost before the outcome was known: retry with the same session and sequence"
            .to_owned(),
        Kind::OutcomeUnknown(OutcomeUnknown {
            leader_address: leader_address.to_owned(),
        }),
    )
}

/// The disk is nearly full; nothing was done.
pub fn disk_full() -> ErrorDetail {
    detail(
        "the disk is nearly full, so only reads and deletes are served: free space or delete keys"
            .to_owned(),
        Kind::DiskFull(DiskFull {}),
    )
}

/// The node can't serve now, as `why` tells.
pub fn unavailable(why: impl std::fmt::Display, retry_after_ms: u32) -> ErrorDetail {
    detail(
        format!("{why}: ask another node, or retry in {retry_after_ms} ms"),
        Kind::Unavailable(Unavailable { retry_after_ms }),
    )
}

/// `what`, which the request names, isn't there; nothing was done.
pub fn not_found(what: impl std::fmt::Display) -> ErrorDetail {
    let what = what.to_string();
    detail(what.clone(), Kind::NotFound(NotFound { what }))
}

/// The request contradicts how things stand, as `what` tells; nothing was done.
pub fn conflict(what: impl std::fmt::Display) -> ErrorDetail {
    let what = what.to_string();
    detail(what.clone(), Kind::Conflict(Conflict { what }))
}
