//! Typed errors as a gRPC status, which carries the encoded detail in its metadata.

use prost::Message as _;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::v1::{ErrorDetail, error_detail::Kind};

/// The metadata key that carries an encoded [`ErrorDetail`].
pub const ERROR_METADATA_KEY: &str = "shardkv-error-bin";

/// Returns the status of a typed error. Its code repeats the kind of the error in gRPC's terms.
pub fn error_status(detail: &ErrorDetail) -> Status {
    let mut status = Status::new(code(detail.kind.as_ref()), detail.message.clone());
    let value = MetadataValue::from_bytes(&detail.encode_to_vec());
    status.metadata_mut().insert_bin(ERROR_METADATA_KEY, value);
    status
}

/// Returns the typed detail of a status, if it carries one.
pub fn error_detail(status: &Status) -> Option<ErrorDetail> {
    let value = status.metadata().get_bin(ERROR_METADATA_KEY)?;
    ErrorDetail::decode(value.to_bytes().ok()?).ok()
}

fn code(kind: Option<&Kind>) -> Code {
    match kind {
        Some(Kind::NotLeader(_) | Kind::ShardNotReady(_) | Kind::Unavailable(_)) => {
            Code::Unavailable
        }
        Some(Kind::OutcomeUnknown(_)) => Code::Aborted,
        Some(Kind::NotFound(_)) => Code::NotFound,
        Some(Kind::AlreadyExists(_)) => Code::AlreadyExists,
        Some(
            Kind::WrongGroup(_)
            | Kind::WrongCluster(_)
            | Kind::SessionExpired(_)
            | Kind::SessionFromFuture(_)
            | Kind::Conflict(_),
        ) => Code::FailedPrecondition,
        Some(Kind::Overloaded(_) | Kind::DiskFull(_)) => Code::ResourceExhausted,
        Some(Kind::TooLarge(_) | Kind::BadRequest(_)) => Code::InvalidArgument,
        Some(Kind::Unauthenticated(_)) => Code::Unauthenticated,
        Some(Kind::PermissionDenied(_)) => Code::PermissionDenied,
        None => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors;

    #[test]
    fn typed_errors_survive_the_journey_through_a_status() {
        let cases = [
            (errors::not_leader("a:1"), Code::Unavailable),
            (errors::not_leader(""), Code::Unavailable),
            (errors::wrong_group(7), Code::FailedPrecondition),
            (errors::shard_not_ready(5), Code::Unavailable),
            (
                errors::overloaded("requests", 9, 10),
                Code::ResourceExhausted,
            ),
            (errors::too_large("value", 9, 8), Code::InvalidArgument),
            (errors::session_expired(), Code::FailedPrecondition),
            (errors::session_from_future(9), Code::FailedPrecondition),
            (errors::wrong_cluster("a", "b"), Code::FailedPrecondition),
            (
                errors::bad_request("key", "is empty"),
                Code::InvalidArgument,
            ),
            (errors::outcome_unknown(""), Code::Aborted),
            (errors::disk_full(), Code::ResourceExhausted),
            (errors::unavailable("stopping", 20), Code::Unavailable),
            (errors::not_found("g7"), Code::NotFound),
            (errors::already_exists("keyspace a"), Code::AlreadyExists),
            (
                errors::unauthenticated("pass --cert"),
                Code::Unauthenticated,
            ),
            (
                errors::permission_denied("ask for a grant"),
                Code::PermissionDenied,
            ),
            (
                errors::conflict("g1 is the last group"),
                Code::FailedPrecondition,
            ),
        ];
        for (detail, code) in cases {
            let status = error_status(&detail);
            assert_eq!(status.code(), code);
            assert_eq!(status.message(), detail.message);
            assert_eq!(error_detail(&status), Some(detail));
        }
        assert_eq!(error_detail(&Status::internal("plain")), None);
        let mut garbage = Status::internal("garbage");
        let value = MetadataValue::from_bytes(&[0xff; 9]);
        garbage.metadata_mut().insert_bin(ERROR_METADATA_KEY, value);
        assert_eq!(error_detail(&garbage), None, "damage is no detail");
    }
}
