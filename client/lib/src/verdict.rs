//! What to do about a failure: the one table that both modes follow.
//!
//! Two questions are kept apart. *May this attempt have taken effect?* (`doubt`) And *what now?* (`action`).
//! A refusal that a node gives before it proposes leaves no doubt; a broken connection does, and so does a node
//! that stops. Doubt sticks to a write until an answer under the same name removes it.

use std::time::Duration;

use api::v1::ErrorDetail;
use api::v1::error_detail::Kind;
use tonic::{Code, Status};
use types::ConfigNum;

use crate::Error;

/// What a failed attempt means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Whether the attempt may have taken effect.
    pub(crate) doubt: bool,
    /// What to do.
    pub(crate) action: Action,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask another node: this one if it is named, else whoever leads.
    Reroute(Option<String>),
    /// The shard is another group's, as this configuration says; ask that one. Waits if the configuration is no news: then the
    /// owner doesn't know yet.
    WrongGroup(ConfigNum),
    /// The shard is on its way: ask again after about this many milliseconds.
    NotReady(u32),
    /// Ask the same node again after about this many milliseconds; 0 leaves it to us.
    Wait(u32),
    /// The session is no more: see [`expired`].
    NewSession,
    /// Tell the caller.
    Fail(Error),
}

/// Judges a typed error.
pub(crate) fn of_detail(detail: ErrorDetail) -> Verdict {
    let message = detail.message;
    let certain = |action| Verdict {
        doubt: false,
        action,
    };
    let doubtful = |action| Verdict {
        doubt: true,
        action,
    };
    match detail.kind {
        // The address is another cluster's by now: ours is elsewhere.
        Some(Kind::WrongCluster(_)) => certain(Action::Reroute(None)),
        Some(Kind::NotLeader(it)) => certain(Action::Reroute(named(it.leader_address))),
        Some(Kind::OutcomeUnknown(it)) => doubtful(Action::Reroute(named(it.leader_address))),
        // A node that stops can't tell what became of what it proposed.
        Some(Kind::Unavailable(_)) => doubtful(Action::Reroute(None)),
        Some(Kind::WrongGroup(it)) => certain(Action::WrongGroup(ConfigNum(it.config_num))),
        Some(Kind::ShardNotReady(it)) => certain(Action::NotReady(it.retry_after_ms)),
        Some(Kind::Overloaded(it)) => certain(Action::Wait(it.retry_after_ms)),
        Some(Kind::SessionExpired(_)) => certain(Action::NewSession),
        Some(Kind::TooLarge(it)) => certain(Action::Fail(Error::TooLarge {
            what: it.what,
            size: it.size,
            limit: it.limit,
            message,
        })),
        Some(Kind::BadRequest(it)) => certain(Action::Fail(Error::BadRequest {
            field: it.field,
            message,
        })),
        Some(Kind::NotFound(it)) => certain(Action::Fail(Error::NotFound {
            what: it.what,
            message,
        })),
        Some(Kind::Conflict(it)) => certain(Action::Fail(Error::Conflict {
            what: it.what,
            message,
        })),
        Some(Kind::DiskFull(_)) => certain(Action::Fail(Error::DiskFull { message })),
        // An error of a later version: it may mean anything.
        None => doubtful(Action::Fail(Error::Protocol {
            message,
            maybe_applied: true,
        })),
    }
}

/// Judges a gRPC status, which carries a typed error or comes from the transport.
pub(crate) fn of_status(status: &Status) -> Verdict {
    if let Some(detail) = api::error_detail(status) {
        return of_detail(detail);
    }
    let message = || format!("{}: {}", status.code().description(), status.message());
    match status.code() {
        Code::Unimplemented
        | Code::InvalidArgument
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::NotFound => Verdict {
            doubt: false,
            action: Action::Fail(Error::Protocol {
                message: message(),
                maybe_applied: false,
            }),
        },
        // A message beyond a limit, in either direction.
        Code::OutOfRange => Verdict {
            doubt: true,
            action: Action::Fail(Error::Protocol {
                message: message(),
                maybe_applied: true,
            }),
        },
        _ => Verdict {
            doubt: true,
            action: Action::Reroute(None),
        },
    }
}

/// What a write gets whose session expired and that can't be proven unapplied.
pub(crate) fn expired() -> Error {
    Error::OutcomeUnknown {
        reason: "the session expired while the write was retried".to_owned(),
    }
}

/// The error for the caller, given that an earlier attempt of the write was in doubt.
pub(crate) fn with_doubt(error: Error, doubt: bool) -> Error {
    match error {
        Error::Protocol { message, .. } => Error::Protocol {
            message,
            maybe_applied: doubt,
        },
        refused if doubt => Error::OutcomeUnknown {
            reason: format!("an attempt went unanswered, and the next was refused: {refused}"),
        },
        refused => refused,
    }
}

/// What a call gets whose deadline passed.
pub(crate) fn timeout(after: Duration, doubt: bool, last: Option<String>) -> Error {
    Error::Timeout {
        maybe_applied: doubt,
        after,
        last: last.unwrap_or_else(|| "no node answered in time".to_owned()),
    }
}

fn named(address: String) -> Option<String> {
    (!address.is_empty()).then_some(address)
}

#[cfg(test)]
mod tests {
    use api::errors;

    use super::*;

    #[test]
    fn every_typed_error_has_its_row() {
        let reroute = |to: Option<&str>| Action::Reroute(to.map(str::to_owned));
        let table = [
            (errors::not_leader("a:1"), false, reroute(Some("a:1"))),
            (errors::not_leader(""), false, reroute(None)),
            (errors::outcome_unknown("a:1"), true, reroute(Some("a:1"))),
            (errors::outcome_unknown(""), true, reroute(None)),
            (errors::unavailable("stopping", 10), true, reroute(None)),
            (
                errors::wrong_group(3),
                false,
                Action::WrongGroup(ConfigNum(3)),
            ),
            (errors::wrong_cluster("a", "b"), false, reroute(None)),
            (errors::shard_not_ready(7), false, Action::NotReady(7)),
            (errors::overloaded("requests", 1, 9), false, Action::Wait(9)),
            (errors::session_expired(), false, Action::NewSession),
        ];
        for (detail, doubt, action) in table {
            let by_status = of_status(&api::error_status(&detail));
            let judged = of_detail(detail);
            assert_eq!(judged, by_status, "both ways of an error mean the same");
            assert_eq!(judged, Verdict { doubt, action });
        }
    }

    #[test]
    fn refusals_that_no_retry_cures_reach_the_caller_unless_in_doubt() {
        for detail in [
            errors::too_large("value", 2, 1),
            errors::bad_request("key", "is empty"),
            errors::disk_full(),
            errors::not_found("g7"),
            errors::conflict("g1 is the last group"),
        ] {
            let Verdict {
                doubt: false,
                action: Action::Fail(error),
            } = of_detail(detail)
            else {
                panic!("a plain refusal");
            };
            assert!(!error.maybe_applied());
            assert_eq!(with_doubt(error.clone(), false), error);
            assert!(with_doubt(error, true).maybe_applied());
        }
    }

    #[test]
    fn what_the_transport_says_is_doubtful_and_retried() {
        for code in [
            Code::Unavailable,
            Code::Unknown,
            Code::Cancelled,
            Code::Internal,
            Code::DeadlineExceeded,
            Code::ResourceExhausted,
        ] {
            let verdict = of_status(&Status::new(code, "broken"));
            assert_eq!(
                verdict,
                Verdict {
                    doubt: true,
                    action: Action::Reroute(None)
                },
                "{code:?}"
            );
        }
        let foreign = of_status(&Status::unimplemented("no such service"));
        assert!(matches!(
            foreign.action,
            Action::Fail(Error::Protocol {
                maybe_applied: false,
                ..
            })
        ));
        let newer = of_detail(ErrorDetail {
            message: "new".to_owned(),
            kind: None,
        });
        assert!(newer.doubt, "an unknown kind may mean anything");
    }
}
