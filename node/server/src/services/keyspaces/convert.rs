//! Conversion of keyspaces and of refusals.

use api::errors;
use api::v1::keyspace_options::AutoCompaction as WireCompaction;
use api::v1::{self, ErrorDetail};
use keyspace::{AutoCompaction, KeyspaceOptions, Record, Refusal};
use types::{Gid, ShardId};

use crate::services::etcd::status::Failure;

/// Converts the options of a request. Options that are not set are the default.
pub(super) fn options(wire: Option<v1::KeyspaceOptions>) -> KeyspaceOptions {
    let mut options = KeyspaceOptions::default();
    let wire = wire.unwrap_or_default();
    if wire.quota_bytes != 0 {
        options.quota_bytes = wire.quota_bytes;
    }
    options.auto_compaction = match wire.auto_compaction {
        None => AutoCompaction::None,
        Some(WireCompaction::RetentionSeconds(retention_secs)) => {
            AutoCompaction::Periodic { retention_secs }
        }
        Some(WireCompaction::RetainedRevisions(retained)) => AutoCompaction::Revisions { retained },
    };
    options
}

/// Converts a keyspace of a shard that a group owns.
pub(super) fn keyspace(shard: ShardId, gid: Gid, record: &Record) -> v1::Keyspace {
    let auto_compaction = match record.options.auto_compaction {
        AutoCompaction::None => None,
        AutoCompaction::Periodic { retention_secs } => {
            Some(WireCompaction::RetentionSeconds(retention_secs))
        }
        AutoCompaction::Revisions { retained } => Some(WireCompaction::RetainedRevisions(retained)),
    };
    v1::Keyspace {
        name: record.name.clone(),
        cluster_id: record.cluster_id(),
        options: Some(v1::KeyspaceOptions {
            quota_bytes: record.options.quota_bytes,
            auto_compaction,
        }),
        revision: record.revision,
        compacted_revision: record.compacted,
        bytes: record.bytes,
        no_space: record.no_space(),
        shard: shard.0,
        gid: gid.0,
        auth_enabled: record.auth.enabled,
    }
}

/// Returns the error of a call about the keyspace with this name that was not carried out.
pub(super) fn failed(failure: Failure, name: &str) -> ErrorDetail {
    match failure {
        Failure::Refused(refusal) => refused(refusal, name),
        Failure::Node(error) => error,
        Failure::Status(status) => errors::unavailable(status.message(), 100),
    }
}

/// Returns the error of a refusal by the keyspace's state machine.
pub(super) fn refused(refusal: Refusal, name: &str) -> ErrorDetail {
    // A name that isn't allowed may be long, or hold anything.
    let name: String = name.escape_debug().take(128).collect();
    match refusal {
        Refusal::KeyspaceExists => errors::already_exists(&format!("keyspace {name}")),
        Refusal::KeyspaceNotFound => errors::not_found(format!(
            "there is no keyspace {name}: create it first, or check the name"
        )),
        Refusal::InvalidName => errors::bad_request("name", refusal),
        Refusal::InvalidOption => errors::bad_request("options", refusal),
        _ => errors::conflict(refusal),
    }
}

#[cfg(test)]
mod tests {
    use api::v1::error_detail::Kind;

    use super::*;

    #[test]
    fn options_that_are_not_set_are_the_default() {
        assert_eq!(options(None), KeyspaceOptions::default());
        let empty = v1::KeyspaceOptions::default();
        assert_eq!(options(Some(empty)), KeyspaceOptions::default());
        let small = v1::KeyspaceOptions {
            quota_bytes: 7,
            auto_compaction: None,
        };
        assert_eq!(options(Some(small)).quota_bytes, 7);
        let kept = v1::KeyspaceOptions {
            auto_compaction: Some(WireCompaction::RetainedRevisions(9)),
            ..small
        };
        let retained = 9;
        let kept = options(Some(kept)).auto_compaction;
        assert_eq!(kept, AutoCompaction::Revisions { retained });
        let retention_secs = 60;
        let timed = v1::KeyspaceOptions {
            auto_compaction: Some(WireCompaction::RetentionSeconds(retention_secs)),
            ..small
        };
        let timed = options(Some(timed)).auto_compaction;
        assert_eq!(timed, AutoCompaction::Periodic { retention_secs });
    }

    #[test]
    fn each_refusal_has_its_error() {
        let kind = |refusal| refused(refusal, "orders").kind.unwrap();
        assert!(matches!(
            kind(Refusal::KeyspaceExists),
            Kind::AlreadyExists(_)
        ));
        assert!(matches!(kind(Refusal::KeyspaceNotFound), Kind::NotFound(_)));
        assert!(matches!(kind(Refusal::InvalidName), Kind::BadRequest(it) if it.field == "name"));
        assert!(
            matches!(kind(Refusal::InvalidOption), Kind::BadRequest(it) if it.field == "options")
        );
        assert!(matches!(kind(Refusal::TooManyKeyspaces), Kind::Conflict(_)));
        let long = "x".repeat(9_000);
        assert!(refused(Refusal::InvalidName, &long).message.len() < 500);
    }
}
