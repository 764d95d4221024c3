//! Limits of writes and reads, quotas and what leases may hold: at, below and above.

mod common;

use common::{Keyspace, delete, key, nested, put, span, txn};
use keyspace::{
    Action, Compare, DeleteRange, KeyspaceOptions, LeaseId, Limits, Op, Put, Range, Refusal,
    Relation, Target, Txn, Write,
};

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
fn a_write_changes_as_many_keys_as_the_limit() {
    let mut keyspace = fresh();
    for name in ["a", "b", "c"] {
        keyspace.put(name, "");
    }
    keyspace.limits.max_changes = 2;
    let write = Write::DeleteRange(delete("a", "\0"));
    assert_eq!(
        keyspace.refusal(write.clone()),
        Some(Refusal::RequestTooLarge)
    );
    let both = Write::Txn(txn(vec![
        Op::DeleteRange(delete("a", "c")),
        Op::Put(put("x", "")),
    ]));
    assert_eq!(keyspace.refusal(both), Some(Refusal::RequestTooLarge));
    assert_eq!(keyspace.record().revision, 4);
    keyspace.limits.max_changes = 3;
    keyspace.ok(write);
    assert!(keyspace.pairs("a", "\0", 0).is_empty());
}

#[test]
fn a_write_writes_and_reads_as_many_bytes_as_the_limit() {
    let mut keyspace = fresh();
    let value = &"0123456789".repeat(4);
    let size = 64 + 1 + 40;
    // The version, the event and the key.
    let written = size + 2 * (32 + 1);
    keyspace.limits.max_write_bytes = written - 1;
    let write = Write::Put(put("a", value));
    assert_eq!(
        keyspace.refusal(write.clone()),
        Some(Refusal::RequestTooLarge)
    );
    keyspace.limits.max_write_bytes = written;
    keyspace.ok(write);
    keyspace.put("b", value);
    // What a write reads for its answers counts apart from what it writes, and on every replica.
    let read = Write::Txn(txn(vec![
        Op::Range(Range::new(span("a", "c"))),
        Op::Put(put("x", "")),
    ]));
    let limited = Write::Txn(txn(vec![
        Op::Range(Range {
            limit: 2,
            ..Range::new(span("a", "c"))
        }),
        Op::Put(put("x", "")),
    ]));
    let row = 128 + 1;
    for (answer, read) in [
        (true, &read),
        (false, &read),
        (true, &limited),
        (false, &limited),
    ] {
        keyspace.applying.answer = answer;
        keyspace.limits.max_write_bytes = 2 * (row + size) - 1;
        assert_eq!(
            keyspace.refusal(read.clone()),
            Some(Refusal::RequestTooLarge)
        );
        keyspace.limits.max_write_bytes = 2 * (row + size);
        keyspace.ok(read.clone());
    }
    keyspace.limits.max_write_bytes = 2 * size - 1;
    let delete = Write::DeleteRange(DeleteRange {
        prev_kv: true,
        ..delete("a", "c")
    });
    assert_eq!(
        keyspace.refusal(delete.clone()),
        Some(Refusal::RequestTooLarge)
    );
    keyspace.limits.max_write_bytes = 2 * size;
    keyspace.ok(delete);
}

/// The rows that a lookup counts as.
const LOOKUP: u32 = 16;

/// Carries out a write that visits as much as the limit, and is refused below it.
fn only_just(keyspace: &mut Keyspace, write: &Write) {
    keyspace.limits.max_visited -= 1;
    assert_eq!(
        keyspace.refusal(write.clone()),
        Some(Refusal::RequestTooLarge),
        "{write:?}"
    );
    keyspace.limits.max_visited += 1;
    assert_eq!(keyspace.refusal(write.clone()), None, "{write:?}");
}

#[test]
fn a_write_visits_as_many_keys_as_the_limit() {
    let mut keyspace = fresh();
    for name in ["a", "b", "c"] {
        keyspace.put(name, "");
    }
    let count = Op::Range(Range {
        count_only: true,
        ..Range::new(span("a", "\0"))
    });
    let compare = Compare {
        span: span("a", "\0"),
        target: Target::Version(1),
        relation: Relation::Equal,
    };
    let write = Write::Txn(Txn {
        compare: vec![compare],
        ..txn(vec![count, Op::Put(put("x", ""))])
    });
    // Two operations; the compare and the range start a walk and visit three keys each; and the put looks its key up.
    keyspace.limits.max_visited = 2 + 2 * (LOOKUP + 3) + LOOKUP;
    only_just(&mut keyspace, &write);
}

#[test]
fn a_write_looks_up_as_much_as_the_limit() {
    let mut keyspace = fresh();
    keyspace.grant(1, 10).unwrap();
    for name in ["a", "b", "c"] {
        let leased = Put {
            lease: LeaseId(1),
            ..put(name, "1")
        };
        keyspace.ok(Write::Put(leased));
    }
    let compare = Compare {
        span: span("a", "\0"),
        target: Target::Value(key("1")),
        relation: Relation::Equal,
    };
    let compare = Write::Txn(Txn {
        compare: vec![compare],
        ..Txn::default()
    });
    let range = |keys_only| {
        Write::Txn(txn(vec![Op::Range(Range {
            keys_only,
            ..Range::new(span("a", "\0"))
        })]))
    };
    let keeps = Put {
        ignore_value: true,
        lease: LeaseId(1),
        prev_kv: true,
        ..put("a", "")
    };
    let delete = DeleteRange {
        prev_kv: true,
        ..delete("a", "\0")
    };
    for (write, visited) in [
        (compare, LOOKUP + 3 * (1 + LOOKUP)),
        (range(true), 1 + LOOKUP + 3),
        (range(false), 1 + LOOKUP + 3 * (1 + LOOKUP)),
        // The check looks up lease and key; the put the key, and its value for the answer and to keep it.
        (Write::Put(keeps), 5 * LOOKUP),
        // Each value is looked up, and the lease once.
        (
            Write::DeleteRange(delete),
            LOOKUP + 3 * (1 + LOOKUP) + LOOKUP,
        ),
    ] {
        keyspace.limits.max_visited = visited;
        only_just(&mut keyspace, &write);
    }
}

/// Deletions and ranges of a span that the transaction has emptied walk the hidden rows again.
#[test]
fn rows_that_a_draft_hides_are_visited_too() {
    let mut keyspace = fresh();
    for name in ["a", "b", "c"] {
        keyspace.put(name, "");
    }
    let all = || Op::DeleteRange(delete("a", "\0"));
    let count = Op::Range(Range {
        count_only: true,
        ..Range::new(span("a", "\0"))
    });
    let write = Write::Txn(txn(vec![all(), nested(vec![all(), all()]), count]));
    // Five operations, of which four start a walk; three rows for the first deletion, and then three times the three rows with
    // their deletions.
    keyspace.limits.max_visited = 5 + 4 * LOOKUP + 3 + 3 * 6;
    only_just(&mut keyspace, &write);
}

#[test]
fn an_old_range_visits_only_what_its_span_holds_and_held() {
    let mut keyspace = fresh();
    keyspace.put("a", "");
    keyspace.put("c", "");
    let revision = keyspace.put("d", "");
    for name in ["b", "b", "c"] {
        keyspace.put(name, "");
    }
    for _ in 0..2 {
        keyspace.delete("d", "");
        keyspace.put("d", "");
    }
    keyspace.delete("d", "");
    // Other keys of the keyspace come and go.
    for round in 0..10 {
        for name in ["Z", "a\0", "f", "z"] {
            keyspace.put(name, &round.to_string());
            keyspace.delete(name, "");
        }
    }
    let old = |end: &str| Range {
        revision,
        ..Range::new(span("a", end))
    };
    let mut write = |end: &str, visited| {
        keyspace.limits.max_visited = visited;
        let write = Write::Txn(txn(vec![Op::Range(old(end)), Op::Put(put("x", ""))]));
        only_just(&mut keyspace, &write);
    };
    // Two operations, and the put looks its key up. The range starts two walks: over three keys that exist, of which "b" and "c"
    // are looked up at the old revision, and over the deletions, three of "d" and ten of "a\0", which are looked up, too. Then
    // the values of "a", "c" and "d".
    write("e", 2 + LOOKUP + (2 + 4 + 3) * LOOKUP + 3 + 3 + 10);
    // Of a single key: it alone is looked up.
    write("", 2 + LOOKUP + 2 * LOOKUP + 1);
    let found = keyspace.range(&old("e")).unwrap();
    let keys: Vec<_> = found.kvs.iter().map(|kv| kv.key.as_ref()).collect();
    assert_eq!(keys, [b"a", b"c", b"d"]);
}

#[test]
fn a_request_is_as_large_as_the_limit() {
    let mut keyspace = fresh();
    let write = Write::Put(put("a", "0123456789"));
    let operation = keyspace::Operation {
        cluster_id: None,
        shard: keyspace.place.shard,
        limits: Limits {
            max_request_bytes: 100,
            ..Limits::default()
        },
        action: Action::In(keyspace.place.id, write.clone()),
    };
    let size = u32::try_from(operation.encode().len()).unwrap();
    keyspace.limits.max_request_bytes = size - 1;
    assert!(size < 100, "the limits are encoded in as many bytes");
    assert_eq!(
        keyspace.refusal(write.clone()),
        Some(Refusal::RequestTooLarge)
    );
    keyspace.limits.max_request_bytes = size;
    assert_eq!(keyspace.refusal(write), None);
    // In apply the size is checked before all else.
    let large = Write::Put(put("", &"v".repeat(100)));
    assert_eq!(keyspace.refusal(large), Some(Refusal::RequestTooLarge));
}

#[test]
fn a_read_has_a_budget() {
    let mut keyspace = fresh();
    keyspace.put("a", "0123456789");
    let read = |bytes| {
        let range = Range::new(span("a", "b"));
        keyspace::range(&keyspace.store, keyspace.place, &range, bytes).unwrap()
    };
    assert_eq!(read(128 + 1 + 74), Err(Refusal::TooManyRequests));
    assert_eq!(read(128 + 1 + 75).unwrap().kvs.len(), 1);
}

#[test]
fn the_quota_is_exact_and_its_alarm_ends_by_itself() {
    let (version, event, current, marks) = (64 + 2, 32 + 1, 32 + 1, 2 * (32 + 1));
    let lease = 64;
    let mut keyspace = Keyspace::new(quota(8 * (version + event) + current + lease));
    keyspace.grant(1, 10).unwrap();
    for value in 0..8 {
        keyspace.put("k", &value.to_string());
    }
    let record = keyspace.record();
    assert_eq!(record.bytes, record.options.quota_bytes);
    assert!(!record.no_space());
    let write = Write::Put(put("k", "8"));
    assert_eq!(keyspace.refusal(write.clone()), Some(Refusal::NoSpace));
    assert!(keyspace.record().no_space());
    assert_eq!(keyspace.grant(2, 10), Err(Refusal::NoSpace));
    // Deletions and compaction go on, beyond the quota. A deletion frees next to nothing until it is compacted.
    let full = keyspace.record().bytes;
    keyspace.delete("k", "");
    assert_eq!(keyspace.record().bytes, full + event + marks - current);
    assert_eq!(keyspace.refusal(write.clone()), Some(Refusal::NoSpace));
    let revision = keyspace.record().revision;
    keyspace.compact(revision).unwrap();
    assert_eq!(keyspace.refusal(write.clone()), Some(Refusal::NoSpace));
    assert!(keyspace.record().no_space());
    keyspace.clear();
    let record = keyspace.record();
    // The event of the deletion stays, because a watch may begin there.
    let rest = lease + event + marks;
    assert_eq!((record.bytes, record.no_space()), (rest, false));
    keyspace.ok(write);
    // A transaction whose puts aren't carried out needs no room.
    keyspace.ok(Write::SetOptions(quota(1)));
    let unused = Txn {
        failure: vec![Op::Put(put("a", ""))],
        ..Txn::default()
    };
    keyspace.ok(Write::Txn(unused));
    // One huge write doesn't hold the alarm.
    keyspace.ok(Write::SetOptions(quota(10_000)));
    let huge = Write::Put(put("h", &"h".repeat(20_000)));
    assert_eq!(keyspace.refusal(huge), Some(Refusal::NoSpace));
    assert!(!keyspace.record().no_space());
}

#[test]
fn a_raised_quota_ends_the_alarm() {
    let mut keyspace = Keyspace::new(quota(270));
    keyspace.put("a", "");
    keyspace.put("b", "");
    let refused = keyspace.refusal(Write::Put(put("c", "")));
    assert_eq!(refused, Some(Refusal::NoSpace));
    assert!(keyspace.record().no_space());
    keyspace.ok(Write::SetOptions(quota(400)));
    assert!(!keyspace.record().no_space());
    keyspace.put("c", "");
}

#[test]
fn a_keyspace_has_as_many_leases_as_the_limit() {
    let mut keyspace = fresh();
    keyspace.limits.max_leases = 2;
    keyspace.grant(1, 10).unwrap();
    keyspace.grant(2, 10).unwrap();
    let grant = |id| Write::Grant {
        id: LeaseId(id),
        ttl: 10,
    };
    let before = keyspace.record();
    assert_eq!(keyspace.refusal(grant(3)), Some(Refusal::TooManyRequests));
    assert_eq!(keyspace.record(), before);
    // A lease that exists is told first, and a revoke makes room.
    assert_eq!(keyspace.refusal(grant(2)), Some(Refusal::LeaseExists));
    keyspace.ok(Write::Revoke { id: LeaseId(1) });
    keyspace.ok(grant(3));
    assert_eq!(keyspace.refusal(grant(1)), Some(Refusal::TooManyRequests));
}

#[test]
fn a_lease_holds_as_many_keys_and_bytes_as_the_limit() {
    let mut keyspace = fresh();
    keyspace.grant(1, 10).unwrap();
    keyspace.limits.max_lease_keys = 2;
    let leased = |name: &str| {
        Write::Put(Put {
            lease: LeaseId(1),
            ..put(name, "")
        })
    };
    keyspace.ok(leased("a"));
    keyspace.ok(leased("b"));
    assert_eq!(
        keyspace.refusal(leased("c")),
        Some(Refusal::RequestTooLarge)
    );
    // The same key again is no further key, and a detached one makes room.
    keyspace.ok(leased("b"));
    keyspace.put("a", "");
    keyspace.ok(leased("c"));
    keyspace.limits.max_lease_keys = 100;
    keyspace.limits.max_write_bytes = 400;
    let long = "x".repeat(70);
    for name in ["1", "2", "3", "4", "5", "6"] {
        let write = leased(&format!("{long}{name}"));
        let full = name == "6";
        assert_eq!(keyspace.refusal(write).is_some(), full, "{name}");
    }
    // A revoke is never refused, though the limits have shrunk since.
    keyspace.limits = Limits {
        max_changes: 1,
        max_write_bytes: 1,
        max_visited: 1,
        ..keyspace.limits
    };
    let outcome = keyspace.write(Write::Revoke { id: LeaseId(1) });
    assert_eq!(outcome.events().len(), 7);
}
