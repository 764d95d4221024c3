//! Refusals as etcd's clients see them: the code and the text of etcd where it has the case.
//!
//! Between nodes a refusal must say more. One by the keyspace itself is final, and the node that forwards the call passes it on as it
//! is: a mark in its metadata tells it from errors of the network. One by a node, such as `NotLeader`, carries our own detail, and
//! the node that forwards the call follows it.

use api::v1::ErrorDetail;
use api::v1::error_detail::Kind;
use keyspace::Refusal;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Marks the refusal of a keyspace.
const FINAL_METADATA_KEY: &str = "shardkv-refused";

/// The reason why a call was not answered here.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The keyspace refused it. It has changed nothing, and no other node would answer otherwise.
    Refused(Refusal),
    /// This node refused it, or the outcome is unknown. Another node may answer it.
    Node(ErrorDetail),
    /// Another node answered with this status, which is final.
    Status(Box<Status>),
}

impl Failure {
    /// Returns true if too many calls, bytes or reads were the reason.
    pub(crate) fn is_overload(&self) -> bool {
        match self {
            Self::Refused(refusal) => *refusal == Refusal::TooManyRequests,
            Self::Node(error) => matches!(error.kind, Some(Kind::Overloaded(_))),
            Self::Status(status) => status.message() == Refusal::TooManyRequests.to_string(),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ErrorDetail> for Failure {
    fn from(error: ErrorDetail) -> Self {
        Self::Node(error)
    }
}

/// Returns true for a status that is the answer to a call, and no failure to reach the node that answers.
pub(crate) fn is_final(status: &Status) -> bool {
    status.metadata().contains_key(FINAL_METADATA_KEY)
}

/// Marks a status as final.
pub(crate) fn finally(code: Code, text: impl Into<String>) -> Status {
    let mut status = Status::new(code, text);
    let mark = MetadataValue::from_static("1");
    status.metadata_mut().insert(FINAL_METADATA_KEY, mark);
    status
}

/// Returns the status of a refusal by the keyspace with this name.
pub(crate) fn refused(refusal: Refusal, name: &str) -> Status {
    let code = match refusal.code() {
        keyspace::Code::InvalidArgument => Code::InvalidArgument,
        keyspace::Code::NotFound => Code::NotFound,
        keyspace::Code::AlreadyExists => Code::AlreadyExists,
        keyspace::Code::FailedPrecondition => Code::FailedPrecondition,
        keyspace::Code::OutOfRange => Code::OutOfRange,
        keyspace::Code::ResourceExhausted => Code::ResourceExhausted,
        keyspace::Code::PermissionDenied => Code::PermissionDenied,
        keyspace::Code::Unauthenticated => Code::Unauthenticated,
        keyspace::Code::Unknown => Code::Unknown,
    };
    match refusal {
        Refusal::KeyspaceNotFound | Refusal::KeyspaceExists => {
            finally(code, format!("keyspace `{name}`: {refusal}"))
        }
        _ => finally(code, refusal.to_string()),
    }
}

/// Returns the status of a refusal by a node, for a client of etcd.
pub(crate) fn failed(error: &ErrorDetail) -> Status {
    match &error.kind {
        Some(Kind::OutcomeUnknown(_)) => Status::unavailable("etcdserver: request timed out"),
        Some(Kind::NotLeader(_)) => Status::unavailable("etcdserver: no leader"),
        Some(Kind::Overloaded(_)) => Status::resource_exhausted("etcdserver: too many requests"),
        Some(Kind::TooLarge(_)) => Status::invalid_argument("etcdserver: request is too large"),
        Some(Kind::DiskFull(_)) => {
            Status::resource_exhausted("etcdserver: mvcc: database space exceeded")
        }
        Some(Kind::BadRequest(_)) => Status::invalid_argument(&error.message),
        Some(Kind::ShardNotReady(_) | Kind::WrongGroup(_) | Kind::Unavailable(_)) => {
            Status::unavailable(&error.message)
        }
        Some(Kind::WrongCluster(_) | Kind::Conflict(_)) => {
            Status::failed_precondition(&error.message)
        }
        Some(Kind::NotFound(_)) => Status::not_found(&error.message),
        // Its clients tell errors apart by the text.
        Some(Kind::PermissionDenied(_)) => {
            Status::permission_denied("etcdserver: permission denied")
        }
        // It has no such error: it refuses connections without a certificate.
        Some(Kind::Unauthenticated(_)) => Status::unauthenticated(&error.message),
        _ => Status::internal(&error.message),
    }
}

#[cfg(test)]
mod tests {
    use api::errors;

    use super::*;

    #[test]
    fn a_refusal_has_etcds_code_and_text_and_is_final() {
        let table = [
            (
                Refusal::Compacted { compacted: 7 },
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                Refusal::EmptyKey,
                Code::InvalidArgument,
                "etcdserver: key is not provided",
            ),
            (
                Refusal::NoSpace,
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            (
                Refusal::LeaseExists,
                Code::FailedPrecondition,
                "etcdserver: lease already exists",
            ),
        ];
        for (refusal, code, text) in table {
            let status = refused(refusal, "x");
            assert_eq!((status.code(), status.message()), (code, text));
            assert!(is_final(&status));
        }
        let unknown = refused(Refusal::KeyspaceNotFound, "tenant-a");
        assert!(unknown.message().contains("`tenant-a`"), "{unknown}");
    }

    #[test]
    fn a_nodes_refusal_is_told_in_etcds_words_and_is_not_final() {
        let table = [
            (
                errors::outcome_unknown("a:1"),
                Code::Unavailable,
                "etcdserver: request timed out",
            ),
            (
                errors::not_leader("a:1"),
                Code::Unavailable,
                "etcdserver: no leader",
            ),
            (
                errors::overloaded("x", 1, 1),
                Code::ResourceExhausted,
                "etcdserver: too many requests",
            ),
            (
                errors::too_large("x", 2, 1),
                Code::InvalidArgument,
                "etcdserver: request is too large",
            ),
            (
                errors::permission_denied("x"),
                Code::PermissionDenied,
                "etcdserver: permission denied",
            ),
            (errors::unauthenticated("x"), Code::Unauthenticated, "x"),
        ];
        for (error, code, text) in table {
            let status = failed(&error);
            assert_eq!((status.code(), status.message()), (code, text));
            assert!(!is_final(&status));
        }
        let moving = failed(&errors::shard_not_ready(20));
        assert_eq!(moving.code(), Code::Unavailable);
    }
}
