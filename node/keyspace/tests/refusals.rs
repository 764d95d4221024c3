//! Each refusal, its text and its class.

mod common;

use bytes::Bytes;
use common::{Keyspace, delete, key, nested, put, span, txn};
use keyspace::{
    Answer, AutoCompaction, Code, Compare, DeleteRange, KeyspaceId, KeyspaceOptions, LeaseId, Op,
    Put, Range, Refusal, Relation, Target, Txn, Write, check_name,
};
use raft::Term;
use types::ConfigNum;

fn fresh() -> Keyspace {
    Keyspace::new(KeyspaceOptions::default())
}

fn quota(quota_bytes: u64) -> KeyspaceOptions {
    KeyspaceOptions {
        quota_bytes,
        ..KeyspaceOptions::default()
    }
}

#[test]
#[allow(clippy::too_many_lines)] // A table.
fn texts_and_classes_are_etcds() {
    use Code::{FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted};
    // The texts and codes of etcd's api/v3rpc/rpctypes/error.go.
    for (refusal, code, text) in [
        (Refusal::EmptyKey, InvalidArgument, "key is not provided"),
        (Refusal::KeyNotFound, InvalidArgument, "key not found"),
        (Refusal::ValueProvided, InvalidArgument, "value is provided"),
        (Refusal::LeaseProvided, InvalidArgument, "lease is provided"),
        (
            Refusal::TooManyOps,
            InvalidArgument,
            "too many operations in txn request",
        ),
        (
            Refusal::DuplicateKey,
            InvalidArgument,
            "duplicate key given in txn request",
        ),
        (
            Refusal::InvalidSortOption,
            InvalidArgument,
            "invalid sort option",
        ),
        (
            Refusal::RequestTooLarge,
            InvalidArgument,
            "request is too large",
        ),
        (
            Refusal::Compacted { compacted: 9 },
            OutOfRange,
            "mvcc: required revision has been compacted",
        ),
        (
            Refusal::FutureRevision,
            OutOfRange,
            "mvcc: required revision is a future revision",
        ),
        (
            Refusal::NoSpace,
            ResourceExhausted,
            "mvcc: database space exceeded",
        ),
        (
            Refusal::LeaseNotFound,
            NotFound,
            "requested lease not found",
        ),
        (
            Refusal::LeaseExists,
            FailedPrecondition,
            "lease already exists",
        ),
        (Refusal::LeaseTtlTooLarge, OutOfRange, "too large lease TTL"),
        (
            Refusal::TooManyRequests,
            ResourceExhausted,
            "too many requests",
        ),
    ] {
        assert_eq!(refusal.to_string(), format!("etcdserver: {text}"));
        assert_eq!(refusal.code(), code);
    }
}

#[test]
#[allow(clippy::too_many_lines)] // A table.
fn writes_are_refused_and_change_nothing() {
    let mut keyspace = fresh();
    keyspace.put("a", "1");
    keyspace.put("a", "2");
    keyspace.grant(5, 10).unwrap();
    keyspace.compact(2).unwrap();
    let ignore_value = |name| Put {
        ignore_value: true,
        ..put(name, "")
    };
    let leased = |id| Put {
        lease: LeaseId(id),
        ..put("a", "")
    };
    let at = |revision| {
        Op::Range(Range {
            revision,
            ..Range::new(span("a", ""))
        })
    };
    let writes = vec![
        (Write::Put(put("", "v")), Refusal::EmptyKey),
        (Write::DeleteRange(delete("", "b")), Refusal::EmptyKey),
        (Write::Put(ignore_value("x")), Refusal::KeyNotFound),
        (
            Write::Put(Put {
                ignore_lease: true,
                ..put("x", "")
            }),
            Refusal::KeyNotFound,
        ),
        (
            Write::Put(Put {
                value: key("v"),
                ..ignore_value("a")
            }),
            Refusal::ValueProvided,
        ),
        (
            Write::Put(Put {
                ignore_lease: true,
                ..leased(5)
            }),
            Refusal::LeaseProvided,
        ),
        (Write::Put(leased(6)), Refusal::LeaseNotFound),
        (
            Write::Compact { revision: 2 },
            Refusal::Compacted { compacted: 2 },
        ),
        (
            Write::Compact { revision: -1 },
            Refusal::Compacted { compacted: 2 },
        ),
        (Write::Compact { revision: 4 }, Refusal::FutureRevision),
        (
            Write::Grant {
                id: LeaseId(5),
                ttl: 1,
            },
            Refusal::LeaseExists,
        ),
        (
            Write::Grant {
                id: LeaseId(0),
                ttl: 1,
            },
            Refusal::LeaseNotFound,
        ),
        (
            Write::Grant {
                id: LeaseId(5),
                ttl: 9_000_000_001,
            },
            Refusal::LeaseTtlTooLarge,
        ),
        (Write::Revoke { id: LeaseId(6) }, Refusal::LeaseNotFound),
        (Write::Txn(txn(vec![at(4)])), Refusal::FutureRevision),
        (
            Write::Txn(txn(vec![at(1)])),
            Refusal::Compacted { compacted: 2 },
        ),
        (
            Write::Txn(txn(vec![at(-1)])),
            Refusal::Compacted { compacted: 2 },
        ),
        // The first fault counts, and the writes before it are undone.
        (
            Write::Txn(txn(vec![
                Op::Put(put("b", "")),
                Op::Put(ignore_value("x")),
                at(4),
            ])),
            Refusal::KeyNotFound,
        ),
        (
            Write::Txn(txn(vec![Op::Put(put("b", "")), Op::Put(put("b", ""))])),
            Refusal::DuplicateKey,
        ),
    ];
    for (write, refusal) in writes {
        let before = keyspace.store.clone();
        assert_eq!(keyspace.refusal(write.clone()), Some(refusal), "{write:?}");
        assert!(keyspace.store == before, "{write:?}");
    }
    assert_eq!(keyspace.record().revision, 3);
}

/// etcd checks the puts of a transaction before it runs it, and panics in apply, on every member, if the key is gone by then.
#[test]
fn a_put_that_keeps_what_its_transaction_deleted_is_refused() {
    let mut keyspace = fresh();
    keyspace.put("k", "1");
    for keeps in [
        Put {
            ignore_value: true,
            ..put("k", "")
        },
        Put {
            ignore_lease: true,
            ..put("k", "2")
        },
    ] {
        let write = Write::Txn(txn(vec![
            Op::DeleteRange(delete("k", "\0")),
            Op::Put(keeps),
        ]));
        let before = keyspace.store.clone();
        assert_eq!(keyspace.refusal(write), Some(Refusal::KeyNotFound));
        assert!(keyspace.store == before);
    }
}

/// etcd's compaction at exactly the revision of this transaction removes the put, and the next read of the key ends the process.
#[test]
fn a_key_deleted_and_put_in_one_transaction_survives_compaction_there() {
    let mut keyspace = fresh();
    keyspace.put("k", "1");
    keyspace.put("m", "1");
    let write = Write::Txn(txn(vec![
        Op::DeleteRange(delete("k", "\0")),
        Op::Put(put("k", "2")),
    ]));
    assert_eq!(keyspace.write(write).events().len(), 3);
    keyspace.compact(4).unwrap();
    keyspace.clear();
    assert_eq!(keyspace.pairs("a", "\0", 0), [("k".into(), "2".into())]);
    let found = keyspace.range(&Range::new(span("k", ""))).unwrap().kvs;
    assert_eq!((found[0].create_revision, found[0].version), (4, 1));
    keyspace.put("x", "");
    keyspace.compact(5).unwrap();
    keyspace.clear();
    assert_eq!(keyspace.pairs("k", "", 0).len(), 1);
}

/// etcd's check lets a later nested transaction delete what an earlier one has put.
#[test]
fn a_key_put_and_deleted_in_one_transaction_is_gone() {
    let mut keyspace = fresh();
    let write = Write::Txn(txn(vec![
        nested(vec![Op::Put(put("k", "1"))]),
        nested(vec![Op::DeleteRange(DeleteRange {
            prev_kv: true,
            ..delete("k", "")
        })]),
        Op::Range(Range::new(span("k", ""))),
    ]));
    let outcome = keyspace.write(write);
    let deleted: Vec<bool> = outcome.events().iter().map(|event| event.deleted).collect();
    assert_eq!(deleted, [false, true]);
    keyspace.put("x", "");
    for revision in [0, 2, 3] {
        assert!(keyspace.pairs("k", "", revision).is_empty());
        assert!(keyspace.pairs("k", "l", revision).is_empty());
    }
    // A watch from the compacted revision still sees the value.
    keyspace.compact(2).unwrap();
    keyspace.clear();
    let all = (10, 10, 1_000);
    let read = keyspace::events(&keyspace.store, keyspace.place, (2, 0), |_| true, all);
    let events = read.unwrap().unwrap().events;
    assert_eq!(events[..2], outcome.events()[..]);
    keyspace.compact(3).unwrap();
    keyspace.clear();
    // The version, the key and its event, which stays.
    assert_eq!(keyspace.record().bytes, 128 + 3);
}

#[test]
fn an_unknown_compare_is_decided_as_etcd_decides_it() {
    let mut keyspace = fresh();
    keyspace.put("a", "1");
    let mut succeeded = |name, target, relation| {
        let compare = Compare {
            span: span(name, ""),
            target,
            relation,
        };
        let write = Write::Txn(Txn {
            compare: vec![compare],
            ..Txn::default()
        });
        matches!(keyspace.ok(write), Answer::Txn(answer) if answer.succeeded)
    };
    assert!(succeeded("a", Target::Mod(99), Relation::Unknown));
    assert!(succeeded("a", Target::Unknown, Relation::Equal));
    assert!(!succeeded("a", Target::Unknown, Relation::Greater));
    assert!(succeeded("x", Target::Mod(0), Relation::Equal));
    assert!(!succeeded(
        "x",
        Target::Value(Bytes::new()),
        Relation::Unknown
    ));
    assert!(succeeded("a", Target::Value(key("2")), Relation::Less));
}

#[test]
fn an_expiry_counts_only_under_the_leader_that_decided_it() {
    let mut keyspace = fresh();
    assert_eq!(keyspace.grant(1, 1), Ok(2));
    keyspace.ok(Write::Put(Put {
        lease: LeaseId(1),
        ..put("a", "")
    }));
    let expire = |term, config| Write::Expire {
        id: LeaseId(1),
        grant: 1,
        term: Term(term),
        config: ConfigNum(config),
    };
    for stale in [expire(6, 4), expire(8, 4), expire(7, 3), expire(7, 5)] {
        assert_eq!(keyspace.refusal(stale), Some(Refusal::StaleExpiry));
    }
    assert_eq!(keyspace.pairs("a", "", 0).len(), 1);
    assert_eq!(keyspace.write(expire(7, 4)).events().len(), 1);
    assert!(keyspace.pairs("a", "", 0).is_empty());
    // Without keys there is no revision.
    keyspace.grant(2, 1).unwrap();
    let before = keyspace.record().revision;
    keyspace.ok(Write::Revoke { id: LeaseId(2) });
    assert_eq!(keyspace.record().revision, before);
}

/// The expiry of a lease waits in the log while a client revokes the lease and grants it again under its id.
#[test]
fn an_expiry_counts_only_for_the_grant_that_expired() {
    let mut keyspace = fresh();
    let id = LeaseId(1);
    let granted = |keyspace: &mut Keyspace, id| match keyspace.ok(Write::Grant { id, ttl: 9 }) {
        Answer::Granted { grant, .. } => grant,
        other => panic!("{other:?}"),
    };
    let lease = |keyspace: &Keyspace| {
        let found = keyspace::read_lease(&keyspace.store, keyspace.place, id).unwrap();
        found.map(|lease| lease.grant)
    };
    let first = granted(&mut keyspace, id);
    assert_eq!(granted(&mut keyspace, LeaseId(2)), first + 1);
    keyspace.ok(Write::Revoke { id });
    let second = granted(&mut keyspace, id);
    assert_eq!(second, first + 2);
    let expire = |grant| Write::Expire {
        id,
        grant,
        term: Term(7),
        config: ConfigNum(4),
    };
    assert_eq!(keyspace.refusal(expire(first)), Some(Refusal::StaleExpiry));
    assert_eq!(lease(&keyspace), Some(second));
    keyspace.ok(expire(second));
    assert_eq!(lease(&keyspace), None);
    assert_eq!(
        keyspace.refusal(expire(second)),
        Some(Refusal::LeaseNotFound)
    );
}

#[test]
fn names_and_options_are_checked() {
    let long = "a".repeat(128);
    for name in ["a", "0", "default", "tenant-a.team-x", "a-.b", &long] {
        assert_eq!(check_name(name), Ok(()), "{name}");
    }
    let longer = "a".repeat(129);
    for name in ["", "-a", "a-", ".a", "a.", "A", "a_b", "a b", "ä", &longer] {
        assert_eq!(check_name(name), Err(Refusal::InvalidName), "{name}");
    }
    let mut keyspace = fresh();
    let compaction = |auto_compaction| KeyspaceOptions {
        auto_compaction,
        ..KeyspaceOptions::default()
    };
    for options in [
        quota(0),
        compaction(AutoCompaction::Periodic { retention_secs: 0 }),
        compaction(AutoCompaction::Revisions { retained: 0 }),
    ] {
        let refused = Some(Refusal::InvalidOption);
        assert_eq!(keyspace.create("other", options).err(), refused);
        assert_eq!(keyspace.refusal(Write::SetOptions(options)), refused);
    }
    let options = compaction(AutoCompaction::Periodic {
        retention_secs: 300,
    });
    keyspace.ok(Write::SetOptions(options));
    assert_eq!(keyspace.record().options, options);
}

#[test]
fn an_event_that_cant_be_is_damage() {
    let keyspace = fresh();
    let mut event = keyspace::Event {
        kv: keyspace::KeyValue::default(),
        deleted: true,
        position: 0,
    };
    for (revision, known) in [(0, true), (i64::MIN, false)] {
        event.kv.mod_revision = revision;
        let before = keyspace::previous(&keyspace.store, keyspace.place, &event);
        assert_eq!(before.is_ok(), known);
    }
}

#[test]
fn an_unknown_keyspace_is_refused() {
    let mut keyspace = fresh();
    keyspace.place.id = KeyspaceId(9);
    for write in [Write::Put(put("a", "")), Write::Clear, Write::Delete] {
        assert_eq!(keyspace.refusal(write), Some(Refusal::KeyspaceNotFound));
    }
    let range = Range::new(span("a", ""));
    assert_eq!(keyspace.range(&range), Err(Refusal::KeyspaceNotFound));
    let garbage = keyspace::apply(key("?"), keyspace.applying, &mut keyspace.store);
    assert_eq!(garbage.unwrap().answer, Err(Refusal::Malformed));
}
