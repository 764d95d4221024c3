//! Builders of typed errors, each with a message that says what happened and what to do.

use crate::v1::error_detail::Kind;
use crate::v1::{
    AlreadyExists, BadRequest, Conflict, DiskFull, ErrorDetail, NotFound, NotLeader,
    OutcomeUnknown, Overloaded, PermissionDenied, SessionExpired, SessionFromFuture, ShardNotReady,
    TooLarge, Unauthenticated, Unavailable, WrongCluster, WrongGroup,
};

fn detail(message: String, kind: Kind) -> ErrorDetail {
    ErrorDetail {
        message,
        kind: Some(kind),
    }
}

/// Returns the error of a node that does not lead and did nothing. `leader_address` is empty when no leader is known.
pub fn not_leader(leader_address: &str) -> ErrorDetail {
    let message = if leader_address.is_empty() {
        "this node does not lead and knows no leader now: retry, or ask another node".to_owned()
    } else {
        format!("this node does not lead: ask {leader_address}")
    };
    let leader_address = leader_address.to_owned();
    detail(message, Kind::NotLeader(NotLeader { leader_address }))
}

/// Returns the error of a key whose shard another group owns since configuration `config_num`; nothing was done.
pub fn wrong_group(config_num: u64) -> ErrorDetail {
    detail(
        format!("this group does not own the key's shard: route by configuration {config_num}"),
        Kind::WrongGroup(WrongGroup { config_num }),
    )
}

/// Returns the error of a key whose shard is being moved to this group; nothing was done.
pub fn shard_not_ready(retry_after_ms: u32) -> ErrorDetail {
    detail(
        format!("the key's shard is being moved here: retry in {retry_after_ms} ms"),
        Kind::ShardNotReady(ShardNotReady { retry_after_ms }),
    )
}

/// Returns the error of `what` having reached its `limit`; nothing was done.
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

/// Returns the error of `what` with `size` bytes, more than `limit`; nothing was done.
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

/// Returns the error of a write whose session is forgotten; the write was not applied now.
pub fn session_expired() -> ErrorDetail {
    detail(
        "the session expired: open a new one; this write may have been applied before".to_owned(),
        Kind::SessionExpired(SessionExpired::default()),
    )
}

/// Returns the error of a write whose session was born `ahead_ms` ahead of the group's clock; the write was not applied now.
pub fn session_from_future(ahead_ms: u64) -> ErrorDetail {
    detail(
        format!(
            "the session was born {ahead_ms} ms in the future of this group's log: open another at a node of this group, and check the nodes' clocks"
        ),
        Kind::SessionFromFuture(SessionFromFuture { ahead_ms }),
    )
}

/// Returns the error of a request for another cluster; nothing was done.
pub fn wrong_cluster(expected: &str, actual: &str) -> ErrorDetail {
    detail(
        format!("this node belongs to cluster {actual}, not {expected}: check the addresses"),
        Kind::WrongCluster(WrongCluster {
            expected: expected.to_owned(),
            actual: actual.to_owned(),
        }),
    )
}

/// Returns the error of a wrong `field`, with the reason `why`; nothing was done, and a retry fails, too.
pub fn bad_request(field: &str, why: impl std::fmt::Display) -> ErrorDetail {
    detail(
        format!("{field}: {why}"),
        Kind::BadRequest(BadRequest {
            field: field.to_owned(),
        }),
    )
}

/// Returns the error of a write that may or may not take effect. `leader_address` is empty when no leader is known.
pub fn outcome_unknown(leader_address: &str) -> ErrorDetail {
    detail(
        "leadership was lost before the outcome was known: retry with the same session and sequence"
            .to_owned(),
        Kind::OutcomeUnknown(OutcomeUnknown {
            leader_address: leader_address.to_owned(),
        }),
    )
}

/// Returns the error of a nearly full disk; nothing was done.
pub fn disk_full() -> ErrorDetail {
    detail(
        "the disk is nearly full, so only reads and deletes are served: free space or delete keys"
            .to_owned(),
        Kind::DiskFull(DiskFull {}),
    )
}

/// Returns the error of a node that can't serve now, with the reason `why`.
pub fn unavailable(why: impl std::fmt::Display, retry_after_ms: u32) -> ErrorDetail {
    detail(
        format!("{why}: ask another node, or retry in {retry_after_ms} ms"),
        Kind::Unavailable(Unavailable { retry_after_ms }),
    )
}

/// Returns the error of a request that names `what`, which doesn't exist; nothing was done.
pub fn not_found(what: impl std::fmt::Display) -> ErrorDetail {
    let what = what.to_string();
    detail(what.clone(), Kind::NotFound(NotFound { what }))
}

/// Returns the error of a request that the present state doesn't allow, with the reason `what`; nothing was done.
pub fn conflict(what: impl std::fmt::Display) -> ErrorDetail {
    let what = what.to_string();
    detail(what.clone(), Kind::Conflict(Conflict { what }))
}

/// Returns the error of a request that creates `what`, which exists; nothing was done.
pub fn already_exists(what: &str) -> ErrorDetail {
    detail(
        format!("{what} exists already: use it, or choose another name"),
        Kind::AlreadyExists(AlreadyExists {
            what: what.to_owned(),
        }),
    )
}

/// Returns the error of a call whose caller has shown no identity, with the text `what`, which says what to do; nothing was done.
pub fn unauthenticated(what: impl std::fmt::Display) -> ErrorDetail {
    let kind = Kind::Unauthenticated(Unauthenticated {});
    detail(what.to_string(), kind)
}

/// Returns the error of a call that its caller may not make, with the text `what`, which says what to do; nothing was done.
pub fn permission_denied(what: impl std::fmt::Display) -> ErrorDetail {
    let kind = Kind::PermissionDenied(PermissionDenied {});
    detail(what.to_string(), kind)
}
