//! The errors for callers, made from the failures of the request engine.

use std::time::Duration;

use request::{Failure, Rejection};

use crate::Error;

/// Returns the error of a call that was tried for `after`.
pub(crate) fn error(failure: Failure, after: Duration) -> Error {
    match failure {
        Failure::Rejected { rejection, doubt } => rejected(rejection, doubt),
        Failure::TimedOut { doubt, last } => timeout(after, doubt, last),
        Failure::SessionExpired => Error::OutcomeUnknown {
            reason: "the session expired or was refused while the write was retried".to_owned(),
        },
        Failure::Unrepeatable => Error::OutcomeUnknown {
            reason: "an attempt went unanswered, and the write has no session under which it could be repeated"
                .to_owned(),
        },
    }
}

/// Returns the error of a call that a node refused for good. `doubt` is true if an earlier attempt of a write may have taken
/// effect.
pub(crate) fn rejected(rejection: Rejection, doubt: bool) -> Error {
    let refused = match rejection {
        Rejection::Protocol { message } => {
            return Error::Protocol {
                message,
                maybe_applied: doubt,
            };
        }
        Rejection::TooLarge {
            what,
            size,
            limit,
            message,
        } => Error::TooLarge {
            what,
            size,
            limit,
            message,
        },
        Rejection::BadRequest { field, message } => Error::BadRequest { field, message },
        Rejection::NotFound { what, message } => Error::NotFound { what, message },
        Rejection::Conflict { what, message } => Error::Conflict { what, message },
        Rejection::AlreadyExists { what, message } => Error::AlreadyExists { what, message },
        Rejection::DiskFull { message } => Error::DiskFull { message },
        Rejection::Unauthenticated { message } => Error::Unauthenticated { message },
        Rejection::PermissionDenied { message } => Error::PermissionDenied { message },
    };
    if doubt {
        return Error::OutcomeUnknown {
            reason: format!("an attempt went unanswered, and the next was refused: {refused}"),
        };
    }
    refused
}

/// Returns the error of a call whose deadline passed.
pub(crate) fn timeout(after: Duration, maybe_applied: bool, last: Option<String>) -> Error {
    Error::Timeout {
        maybe_applied,
        after,
        last: last.unwrap_or_else(|| "no node answered in time".to_owned()),
    }
}

/// Returns the error of an answer of another kind than the request's: the node has a bug, or is not a node of `ShardKV`.
pub(crate) fn mismatch(maybe_applied: bool) -> Error {
    Error::Protocol {
        message: "the answer does not fit the question".to_owned(),
        maybe_applied,
    }
}

#[cfg(test)]
mod tests {
    use api::errors;
    use request::{Action, Refusal};

    use super::*;

    #[test]
    fn refusals_that_no_retry_cures_reach_the_caller_unless_in_doubt() {
        for detail in [
            errors::too_large("value", 2, 1),
            errors::bad_request("key", "is empty"),
            errors::disk_full(),
            errors::not_found("g7"),
            errors::already_exists("keyspace a"),
            errors::conflict("g1 is the last group"),
            errors::unauthenticated("pass --cert"),
            errors::permission_denied("ask for a grant"),
        ] {
            let verdict = api::refused(detail.clone()).refusal.judge();
            let (false, Action::Fail(rejection)) = (verdict.doubt, verdict.action) else {
                panic!("a plain refusal");
            };
            let error = rejected(rejection.clone(), false);
            assert!(!error.maybe_applied());
            assert!(error.to_string().contains(&detail.message));
            assert!(rejected(rejection, true).maybe_applied());
        }
    }

    #[test]
    fn doubt_reaches_the_caller() {
        let second = Duration::from_secs(1);
        for doubt in [false, true] {
            let last = None;
            let timed_out = error(Failure::TimedOut { doubt, last }, second);
            assert_eq!(timed_out.maybe_applied(), doubt);
        }
        assert!(error(Failure::SessionExpired, second).maybe_applied());
        assert!(error(Failure::Unrepeatable, second).maybe_applied());
        let message = "new".to_owned();
        let verdict = Refusal::Unrecognised { message }.judge();
        assert!(verdict.doubt, "an unknown error may mean anything");
    }
}
