//! Conversion of failed attempts for the request engine.

use std::error::Error as _;

use api::v1::ErrorDetail;
use api::v1::error_detail::Kind;
use api::{error_detail, errors};
use request::{Refusal, Refused};
use tonic::Status;

/// Converts a failed call for the request engine.
pub(crate) fn refused_by(status: &Status) -> Refused {
    refused(status, error_detail(status))
}

/// Converts a failed attempt for the request engine. An answer without a typed error comes from the transport, or from
/// something that is no node.
pub(super) fn refused(status: &Status, detail: Option<ErrorDetail>) -> Refused {
    let message = status.message().to_owned();
    match detail {
        Some(detail) => api::refused(detail),
        None if was_unsent(status) => Refused {
            refusal: Refusal::NotSent,
            message,
        },
        None => Refused {
            refusal: Refusal::ConnectionLost,
            message,
        },
    }
}

/// Returns true if a call never left this node: the connection could not be made, or the connection that it was queued for ended
/// first, most often because its node announced that it closes.
fn was_unsent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_canceled();
        }
        cause = error.source();
    }
    false
}

/// Returns the error of a write whose last attempt got `error`, and an earlier one no certain answer.
pub(super) fn in_doubt(error: ErrorDetail) -> ErrorDetail {
    match error.kind {
        // These say so themselves.
        Some(Kind::SessionExpired(_) | Kind::OutcomeUnknown(_)) => error,
        _ => errors::outcome_unknown(""),
    }
}
