//! Converts the client library's errors to failures with an exit code and a next step.

use shardkv_client::{ConnectError, Error};

use crate::exit::{Exit, Failure};

/// Converts an error of making a client.
pub(crate) fn connect_failure(error: &ConnectError) -> Failure {
    match error {
        ConnectError::Unreachable(_) => {
            Failure::new(Exit::Unavailable, error.to_string(), NEXT_UNREACHABLE)
        }
        ConnectError::Tls(_) => Failure::new(Exit::Refused, error.to_string(), NEXT_TLS),
        ConnectError::Certificates(_) => Failure::usage(error.to_string(), NEXT_FILES),
        _ => Failure::usage(
            error.to_string(),
            "give --endpoints or SHARDKV_ENDPOINTS as host:port, with commas between several",
        ),
    }
}

/// The next step when no agreement over TLS is possible.
const NEXT_TLS: &str = "check that --ca has this cluster's authority, and that --cert and --key are of this cluster and in force: \
     `openssl x509 -in FILE -noout -text`";
/// The next step when the files of TLS can't be used.
const NEXT_FILES: &str =
    "check the files of --ca, --cert and --key (or SHARDKV_CA, SHARDKV_CERT and SHARDKV_KEY)";

/// The next step when no node can be reached.
pub(crate) const NEXT_UNREACHABLE: &str = "check --endpoints (or SHARDKV_ENDPOINTS) and that nodes run there: `shardkv status`; \
     `shardkv playground` starts a cluster on this machine";

/// Converts the error of a call. Picks the exit code and the next step by the kind of error.
pub(crate) fn call_failure(error: &Error) -> Failure {
    let exit = if error.maybe_applied() {
        Exit::OutcomeUnknown
    } else {
        match error {
            Error::Timeout { .. }
            | Error::NotLeader { .. }
            | Error::Unavailable { .. }
            | Error::WrongGroup { .. }
            | Error::ShardNotReady { .. } => Exit::Unavailable,
            Error::BadRequest { .. }
            | Error::NotFound { .. }
            | Error::AlreadyExists { .. }
            | Error::Conflict { .. }
            | Error::TooLarge { .. }
            | Error::DiskFull { .. }
            | Error::Tls { .. }
            | Error::WrongCluster { .. }
            | Error::Unauthenticated { .. }
            | Error::PermissionDenied { .. } => Exit::Refused,
            _ => Exit::Failed,
        }
    };
    let next = match error {
        _ if exit == Exit::OutcomeUnknown => "read the key, then decide whether to write again",
        Error::Timeout { .. } | Error::Unavailable { .. } => NEXT_UNREACHABLE,
        Error::NotLeader { .. } => {
            "wait a moment and repeat the command; `shardkv status` shows who leads"
        }
        Error::TooLarge { .. } => "make it smaller, or raise the nodes' limit",
        Error::BadRequest { .. } => "correct the request; `shardkv help` shows examples",
        Error::DiskFull { .. } => {
            "delete keys, or give the nodes more disk; reads and deletes still work"
        }
        Error::Tls { .. } => NEXT_TLS,
        Error::WrongCluster { .. } => "check --endpoints",
        Error::Unauthenticated { .. } => {
            "call over TLS (--ca), with a certificate that the cluster knows (--cert and --key)"
        }
        Error::PermissionDenied { .. } => {
            "ask the cluster's administrator for a grant, or use another certificate"
        }
        Error::NotFound { .. } | Error::Conflict { .. } => {
            "`shardkv config query` shows the groups and the configurations that are kept"
        }
        Error::WrongGroup { .. } | Error::ShardNotReady { .. } => {
            "wait a moment and repeat the command; `shardkv shards` shows what is on its way"
        }
        _ => "run `shardkv status`, and compare `shardkv --version` with the nodes'",
    };
    Failure::new(exit, error.to_string(), next)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        call_failure(&error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_error_has_its_exit_code() {
        let timeout = |maybe_applied| Error::Timeout {
            maybe_applied,
            after: Duration::from_secs(1),
            last: "no leader".into(),
        };
        let message = String::from("m");
        for (error, exit) in [
            (timeout(false), Exit::Unavailable),
            (timeout(true), Exit::OutcomeUnknown),
            (
                Error::OutcomeUnknown {
                    reason: message.clone(),
                },
                Exit::OutcomeUnknown,
            ),
            (Error::NotLeader { leader: None }, Exit::Unavailable),
            (
                Error::Conflict {
                    what: "group".into(),
                    message: message.clone(),
                },
                Exit::Refused,
            ),
            (
                Error::DiskFull {
                    message: message.clone(),
                },
                Exit::Refused,
            ),
            (
                Error::Tls {
                    message: message.clone(),
                    maybe_applied: false,
                },
                Exit::Refused,
            ),
            (
                Error::BadRequest {
                    field: "key".into(),
                    message: message.clone(),
                },
                Exit::Refused,
            ),
            (
                Error::TooLarge {
                    what: "value".into(),
                    size: 2,
                    limit: 1,
                    message: message.clone(),
                },
                Exit::Refused,
            ),
            (
                Error::Unauthenticated {
                    message: message.clone(),
                },
                Exit::Refused,
            ),
            (
                Error::PermissionDenied {
                    message: message.clone(),
                },
                Exit::Refused,
            ),
            (
                Error::Protocol {
                    message,
                    maybe_applied: false,
                },
                Exit::Failed,
            ),
        ] {
            assert_eq!(call_failure(&error).exit(), exit, "{error:?}");
        }
    }
}
