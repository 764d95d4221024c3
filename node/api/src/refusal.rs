//! Conversion of the wire's errors to the refusals of the request engine.

use std::time::Duration;

use request::{Refusal, Refused, Rejection};
use tonic::{Code, Status};
use types::ConfigNum;

use crate::v1::ErrorDetail;
use crate::v1::error_detail::Kind;

/// Converts a typed error.
pub fn refused(detail: ErrorDetail) -> Refused {
    let message = detail.message.clone();
    let pause = |ms: u32| Duration::from_millis(ms.into());
    let hint = |address: String| (!address.is_empty()).then(|| address.into());
    let refusal = match detail.kind {
        Some(Kind::NotLeader(it)) => Refusal::NotLeader {
            hint: hint(it.leader_address),
        },
        Some(Kind::OutcomeUnknown(it)) => Refusal::OutcomeUnknown {
            hint: hint(it.leader_address),
        },
        Some(Kind::Unavailable(_)) => Refusal::Unavailable,
        Some(Kind::WrongCluster(_)) => Refusal::WrongCluster,
        Some(Kind::WrongGroup(it)) => Refusal::WrongGroup {
            config_num: ConfigNum(it.config_num),
        },
        Some(Kind::ShardNotReady(it)) => Refusal::ShardNotReady {
            retry_after: pause(it.retry_after_ms),
        },
        Some(Kind::Overloaded(it)) => Refusal::Overloaded {
            retry_after: pause(it.retry_after_ms),
        },
        Some(Kind::SessionExpired(_)) => Refusal::SessionExpired,
        Some(Kind::SessionFromFuture(_)) => Refusal::SessionFromFuture,
        Some(Kind::TooLarge(it)) => Refusal::Rejected(Rejection::TooLarge {
            what: it.what,
            size: it.size,
            limit: it.limit,
            message: detail.message,
        }),
        Some(Kind::BadRequest(it)) => Refusal::Rejected(Rejection::BadRequest {
            field: it.field,
            message: detail.message,
        }),
        Some(Kind::NotFound(it)) => Refusal::Rejected(Rejection::NotFound {
            what: it.what,
            message: detail.message,
        }),
        Some(Kind::Conflict(it)) => Refusal::Rejected(Rejection::Conflict {
            what: it.what,
            message: detail.message,
        }),
        Some(Kind::AlreadyExists(it)) => Refusal::Rejected(Rejection::AlreadyExists {
            what: it.what,
            message: detail.message,
        }),
        Some(Kind::DiskFull(_)) => Refusal::Rejected(Rejection::DiskFull {
            message: detail.message,
        }),
        Some(Kind::Unauthenticated(_)) => Refusal::Rejected(Rejection::Unauthenticated {
            message: detail.message,
        }),
        Some(Kind::PermissionDenied(_)) => Refusal::Rejected(Rejection::PermissionDenied {
            message: detail.message,
        }),
        // An error of a later version.
        None => Refusal::Unrecognised {
            message: detail.message,
        },
    };
    Refused { refusal, message }
}

/// Converts a gRPC status, which carries a typed error or comes from the transport.
pub fn refused_status(status: &Status) -> Refused {
    if let Some(detail) = crate::error_detail(status) {
        return refused(detail);
    }
    let described = || format!("{}: {}", status.code().description(), status.message());
    let refusal = match status.code() {
        // The server runs, but is not a node of this version.
        Code::Unimplemented | Code::InvalidArgument | Code::NotFound => {
            Refusal::Rejected(Rejection::Protocol {
                message: described(),
            })
        }
        Code::Unauthenticated => Refusal::Rejected(Rejection::Unauthenticated {
            message: described(),
        }),
        Code::PermissionDenied => Refusal::Rejected(Rejection::PermissionDenied {
            message: described(),
        }),
        // A message beyond a limit, in either direction.
        Code::OutOfRange => Refusal::MessageTooLarge {
            message: described(),
        },
        _ => Refusal::ConnectionLost,
    };
    let message = status.message().to_owned();
    Refused { refusal, message }
}

#[cfg(test)]
mod tests {
    use request::{Action, Verdict};

    use super::*;
    use crate::errors;

    #[test]
    fn every_typed_error_has_its_meaning() {
        let reroute = |to: Option<&str>| Action::Reroute(to.map(Into::into));
        let ms = Duration::from_millis;
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
            (errors::shard_not_ready(7), false, Action::AwaitShard(ms(7))),
            (
                errors::overloaded("requests", 1, 9),
                false,
                Action::Wait(ms(9)),
            ),
            (errors::session_expired(), false, Action::RenewSession),
            (errors::session_from_future(9), false, Action::RenewSession),
        ];
        for (detail, doubt, action) in table {
            let by_status = refused_status(&crate::error_status(&detail));
            let by_detail = refused(detail);
            assert_eq!(by_detail, by_status, "both ways of an error mean the same");
            assert_eq!(by_detail.refusal.judge(), Verdict { doubt, action });
        }
    }

    #[test]
    fn refusals_that_no_retry_cures_are_certain() {
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
            let Refused { refusal, message } = refused(detail.clone());
            assert!(matches!(refusal, Refusal::Rejected(_)), "{refusal:?}");
            assert_eq!(message, detail.message);
        }
    }

    #[test]
    fn errors_of_the_transport_are_doubtful_and_retried() {
        for code in [
            Code::Unavailable,
            Code::Unknown,
            Code::Cancelled,
            Code::Internal,
            Code::DeadlineExceeded,
            Code::ResourceExhausted,
        ] {
            let refused = refused_status(&Status::new(code, "broken"));
            assert_eq!(refused.refusal, Refusal::ConnectionLost, "{code:?}");
        }
        let foreign = refused_status(&Status::unimplemented("no such service"));
        assert!(matches!(
            foreign.refusal,
            Refusal::Rejected(Rejection::Protocol { .. })
        ));
        // Programs in between, such as proxies, refuse without a typed error.
        let unknown = refused_status(&Status::unauthenticated("who are you"));
        assert!(matches!(
            unknown.refusal,
            Refusal::Rejected(Rejection::Unauthenticated { .. })
        ));
        let denied = refused_status(&Status::permission_denied("not you"));
        assert!(matches!(
            denied.refusal,
            Refusal::Rejected(Rejection::PermissionDenied { .. })
        ));
        let newer = refused(ErrorDetail {
            message: "new".to_owned(),
            kind: None,
        });
        assert!(newer.refusal.judge().doubt, "it may mean anything");
    }
}
