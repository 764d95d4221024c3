//! The golden of the reports, and the arguments.

use std::time::Duration;

use shardkv_client::{AutoCompaction, Error, Gid, Keyspace, KeyspaceOptions, ShardId};

use super::view::{write_list, write_one};
use super::{OptionArgs, failure};
use crate::exit::Exit;
use crate::output::Format;

fn keyspaces() -> [Keyspace; 2] {
    let orders = Keyspace {
        name: "orders".into(),
        cluster_id: 0xa1,
        options: KeyspaceOptions {
            quota_bytes: Some(500_000_000),
            auto_compaction: AutoCompaction::Retention(Duration::from_hours(1)),
        },
        revision: 1_234,
        compacted: Some(1_000),
        bytes: 77_000,
        no_space: false,
        auth_enabled: false,
        shard: ShardId(17),
        gid: Gid(2),
    };
    let full = Keyspace {
        name: "tenant-a.team-x".into(),
        options: KeyspaceOptions {
            quota_bytes: None,
            auto_compaction: AutoCompaction::Revisions(10_000),
        },
        compacted: None,
        no_space: true,
        auth_enabled: true,
        ..orders.clone()
    };
    [orders, full]
}

#[test]
fn reports_match_the_golden() {
    let mut out = Vec::new();
    for format in [Format::Table, Format::Json, Format::Raw] {
        write_list(&keyspaces(), format, &mut out).unwrap();
        out.push(b'\n');
    }
    for keyspace in keyspaces() {
        write_one(&keyspace, Format::Table, &mut out).unwrap();
        out.push(b'\n');
    }
    crate::golden::check("keyspace.txt", std::str::from_utf8(&out).unwrap());
}

#[test]
fn options_that_are_not_given_stay() {
    let before = KeyspaceOptions {
        quota_bytes: Some(7),
        auto_compaction: AutoCompaction::Revisions(9),
    };
    let none = OptionArgs::default();
    assert_eq!(none.apply(before), before);
    assert!(none.changes_nothing());
    let quota = OptionArgs { quota: Some(8) };
    assert!(!quota.changes_nothing());
    assert_eq!(quota.apply(before).quota_bytes, Some(8));
    assert_eq!(
        quota.apply(before).auto_compaction,
        AutoCompaction::Revisions(9)
    );
}

#[test]
fn each_error_has_its_exit_code_and_next_step() {
    let text = || (String::from("w"), String::from("m"));
    let (what, message) = text();
    let missing = failure(&Error::NotFound { what, message }, "orders");
    assert_eq!(missing.exit(), Exit::NotFound);
    assert!(missing.next().contains("keyspace create orders"));
    let (what, message) = text();
    let exists = failure(&Error::AlreadyExists { what, message }, "orders");
    assert_eq!(exists.exit(), Exit::Refused);
    let reason = "m".into();
    let doubt = failure(&Error::OutcomeUnknown { reason }, "orders");
    assert_eq!(doubt.exit(), Exit::OutcomeUnknown);
    assert!(doubt.next().contains("keyspace show orders"));
}
