//! One test for each rule of the state machine.

mod common;

use bytes::Bytes;
use common::{GENESIS, Replica, append, bytes, cas, delete, put, session};
use raft::StoreError;
use replica::memory::MemoryState;
use replica::{Applied, StateMachine, StateStore, Table, Transaction, WriteBatch};
use shardkv::{
    Command, Genesis, KvError, MAX_BIRTH_AHEAD_MS, MAX_KEY_BYTES, PageRequest, Query, Response,
    SessionRef, ShardKv, Write, Written,
};

fn too_large(size: u64) -> Response {
    Response::Refused(KvError::ValueTooLarge { size, limit: 100 })
}

#[test]
fn each_write_does_what_it_says() {
    let mut replica = Replica::new(GENESIS);
    let mut apply = |write| match replica.apply(1, None, write) {
        Response::Written(written) => (written, replica.get("k")),
        other => panic!("{other:?}"),
    };
    let some = |text: &str| Some(text.to_owned());
    let swapped = |swapped| Written::CompareAndSwap { swapped };
    let length = |length| Written::Append { length };
    assert_eq!(apply(append("k", "ab")), (length(2), some("ab")));
    assert_eq!(apply(append("k", "c")), (length(3), some("abc")));
    assert_eq!(apply(put("k", "x")), (Written::Put, some("x")));
    assert_eq!(
        apply(cas("k", None, Some("y"))),
        (swapped(false), some("x"))
    );
    assert_eq!(
        apply(cas("k", Some("y"), None)),
        (swapped(false), some("x"))
    );
    assert_eq!(
        apply(cas("k", Some("x"), Some("y"))),
        (swapped(true), some("y"))
    );
    assert_eq!(apply(cas("k", Some("y"), None)), (swapped(true), None));
    assert_eq!(apply(cas("k", None, None)), (swapped(true), None));
    assert_eq!(
        apply(delete("k")),
        (Written::Delete { existed: false }, None)
    );
    assert_eq!(apply(cas("k", None, Some(""))), (swapped(true), some("")));
    assert_eq!(
        apply(delete("k")),
        (Written::Delete { existed: true }, None)
    );
}

#[test]
fn keys_and_values_have_limits() {
    let mut replica = Replica::new(GENESIS);
    let longest = "k".repeat(MAX_KEY_BYTES);
    let longer = "k".repeat(MAX_KEY_BYTES + 1);
    for write in [
        put("", "v"),
        append(&longer, "v"),
        delete(&longer),
        cas("", None, None),
    ] {
        let Response::Refused(error) = replica.apply(1, session(1, 1, 1), write) else {
            panic!("it must be refused");
        };
        assert!(matches!(error, KvError::KeySize { .. }) && error.is_final());
    }
    let full = "v".repeat(100);
    assert_eq!(
        replica.apply(1, None, put(&longest, &full)),
        Response::Written(Written::Put)
    );
    assert_eq!(
        replica.apply(1, None, append(&longest, "")),
        Response::Written(Written::Append { length: 100 })
    );
    let over = "v".repeat(101);
    assert_eq!(
        replica.apply(1, None, append(&longest, "v")),
        too_large(101)
    );
    assert_eq!(replica.apply(1, None, put("p", &over)), too_large(101));
    // Also when the comparison would have failed.
    assert_eq!(
        replica.apply(1, None, cas("p", Some("x"), Some(&over))),
        too_large(101)
    );
    assert_eq!(replica.get("p"), None);
    assert_eq!(replica.get(&longest), Some(full));
    for key in ["", &longer] {
        assert!(matches!(
            replica.query(&Query::Get { key: bytes(key) }),
            Response::Refused(KvError::KeySize { .. })
        ));
    }
    // The least bound after the longest key has one byte more.
    let scan = |start: usize, end: usize| {
        let bound = |length| bytes(&"k".repeat(length));
        replica.query(&Query::Page(PageRequest {
            start: bound(start),
            end: bound(end),
            limit: 1,
            max_bytes: 1,
            keys_only: false,
            shards: None,
        }))
    };
    let most = MAX_KEY_BYTES + 1;
    for (start, end) in [(most + 1, 0), (0, most + 1)] {
        let refused = scan(start, end);
        let is_size = matches!(refused, Response::Refused(KvError::KeySize { .. }));
        assert!(is_size, "{refused:?}");
    }
    for (start, end) in [(most, 0), (0, most), (MAX_KEY_BYTES, most)] {
        assert!(matches!(scan(start, end), Response::Page { .. }));
    }
}

#[test]
fn a_copy_gets_the_first_answer_and_changes_nothing() {
    let mut replica = Replica::new(GENESIS);
    let first = Response::Written(Written::Append { length: 1 });
    assert_eq!(replica.apply(1, session(1, 1, 1), append("k", "a")), first);
    assert_eq!(replica.apply(2, session(1, 1, 1), append("k", "a")), first);
    replica.restart();
    assert_eq!(replica.apply(3, session(1, 1, 1), append("k", "a")), first);
    assert_eq!(replica.get("k").as_deref(), Some("a"));
    // A failed comparison is an answer too, although it would succeed now.
    let failed = Response::Written(Written::CompareAndSwap { swapped: false });
    assert_eq!(
        replica.apply(3, session(1, 2, 1), cas("k", None, Some("z"))),
        failed
    );
    replica.apply(3, None, delete("k"));
    assert_eq!(
        replica.apply(3, session(1, 2, 1), cas("k", None, Some("z"))),
        failed
    );
    assert_eq!(replica.get("k"), None);
}

#[test]
fn a_write_refused_as_too_large_does_not_take_effect_later() {
    let mut replica = Replica::new(GENESIS);
    replica.apply(1, None, put("k", &"v".repeat(99)));
    assert_eq!(
        replica.apply(1, session(1, 1, 1), append("k", "12")),
        too_large(101)
    );
    // Now it would fit; but its client was told that nothing happened.
    replica.apply(1, None, delete("k"));
    replica.restart();
    assert_eq!(
        replica.apply(1, session(1, 1, 1), append("k", "12")),
        too_large(101)
    );
    assert_eq!(replica.get("k"), None);
    // The same for a leader with a greater limit.
    let command = Command {
        session: session(1, 2, 1),
        write: put("k", &"v".repeat(101)),
    };
    assert_eq!(
        replica.apply_bytes(1, 100, command.encode()),
        too_large(101)
    );
    assert_eq!(
        replica.apply_bytes(1, 1_000, command.encode()),
        too_large(101)
    );
    assert_eq!(replica.get("k"), None);
}

/// A write that must be refused.
fn refused(replica: &mut Replica, at: u64, session: Option<SessionRef>) -> KvError {
    match replica.apply(at, session, put("k", "no")) {
        Response::Refused(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn session_refusals_are_typed() {
    let mut replica = Replica::new(GENESIS);
    let ttl = GENESIS.session_ttl_ms;
    let now = 100_000;
    let early = refused(
        &mut replica,
        now,
        session(now + MAX_BIRTH_AHEAD_MS + 3, 1, 1),
    );
    assert_eq!(
        early,
        KvError::SessionFromFuture {
            ahead_ms: MAX_BIRTH_AHEAD_MS + 3
        }
    );
    assert!(!early.is_final());
    let bad = refused(&mut replica, now, session(now, 2, 3));
    assert!(matches!(bad, KvError::BadSequence { .. }) && bad.is_final());

    for sequence in 1..=4 {
        replica.apply(now, session(now, sequence, 1), put("k", "v"));
    }
    let full = refused(&mut replica, now, session(now, 5, 1));
    assert!(matches!(full, KvError::SessionLimit { limit: 4, .. }) && !full.is_final());
    for other in 1..6 {
        replica.apply(now, session(now + other, 1, 1), put("k", "v"));
    }
    let full = refused(&mut replica, now, session(now + 6, 1, 1));
    assert!(matches!(full, KvError::SessionLimit { limit: 6, .. }) && !full.is_final());
    replica.apply(now, session(now, 5, 4), put("k", "v"));
    let stale = refused(&mut replica, now, session(now, 3, 1));
    assert!(matches!(stale, KvError::StaleSequence { .. }) && stale.is_final());
    assert_eq!(
        refused(&mut replica, now + ttl + 1, session(now, 6, 6)),
        KvError::SessionExpired
    );
    assert_eq!(replica.get("k").as_deref(), Some("v"));
}

#[test]
fn a_shard_without_writes_forgets_too() {
    let mut replica = Replica::new(GENESIS);
    for n in 0..30 {
        replica.apply(1, session(1, n + 1, 1), put(&format!("k{n}"), "v"));
    }
    assert_eq!(replica.machine.session_count(), GENESIS.shards as usize);
    // Writes to one key only, from then on.
    for n in 0..u64::from(GENESIS.shards) {
        replica.apply(2 + GENESIS.session_ttl_ms + n, None, put("one", "v"));
    }
    assert_eq!(replica.machine.session_count(), 0);
    let left = |(table, _): &&(Table, Bytes)| *table == Table::Sessions;
    assert_eq!(replica.state.pairs().keys().filter(left).count(), 0);
}

#[test]
fn what_frees_space_is_known() {
    assert!(delete("k").frees_space());
    assert!(cas("k", Some("v"), None).frees_space());
    assert!(!cas("k", Some("v"), Some("")).frees_space());
    assert!(!put("k", "").frees_space());
    assert!(!append("k", "").frees_space());
}

#[test]
fn a_genesis_is_checked_and_comes_back() {
    let fields: [fn(&mut Genesis, u64); 4] = [
        |g, v| g.shards = u32::try_from(v).unwrap(),
        |g, v| g.session_ttl_ms = v,
        |g, v| g.max_sessions_per_shard = u32::try_from(v).unwrap(),
        |g, v| g.max_results_per_session = u32::try_from(v).unwrap(),
    ];
    let year = 365 * 86_400_000;
    let ranges = [(1, 1_000_000), (1_000, year), (1, 1 << 20), (1, 1 << 16)];
    for (set, (least, most)) in fields.into_iter().zip(ranges) {
        for (value, valid) in [
            (least, true),
            (most, true),
            (least - 1, false),
            (most + 1, false),
        ] {
            let mut genesis = Genesis::default();
            set(&mut genesis, value);
            assert_eq!(genesis.validate().is_ok(), valid, "{genesis:?}");
            let mut state = MemoryState::new();
            assert_eq!(Genesis::load(&state), Ok(None));
            state
                .commit(genesis.to_batch(), Applied::default())
                .unwrap();
            let loaded = Genesis::load(&state);
            if valid {
                assert_eq!(loaded, Ok(Some(genesis)));
            } else {
                assert!(matches!(loaded, Err(StoreError::Damaged(_))));
            }
        }
    }
}

#[test]
fn a_genesis_of_another_version_is_not_damaged() {
    let mut batch = GENESIS.to_batch();
    let record = batch.changes.values_mut().next().unwrap();
    let of_now = record.clone().unwrap();
    *record = Some([&[of_now[0] + 1], &of_now[1..]].concat().into());
    let mut state = MemoryState::new();
    state.commit(batch, Applied::default()).unwrap();
    let loaded = Genesis::load(&state);
    assert!(matches!(loaded, Err(StoreError::OtherVersion(_))));
}

#[test]
fn without_a_genesis_the_node_stops_instead_of_diverging() {
    let state = MemoryState::new();
    let mut machine = ShardKv::new();
    machine.reload(&state).unwrap();
    assert_eq!(machine.genesis(), None);
    let query = Query::Get { key: bytes("k") };
    assert!(matches!(
        machine.query(&query, &state),
        Err(StoreError::Damaged(_))
    ));
    let mut transaction = Transaction::new(&state);
    let at = replica::Applying {
        entry: raft::EntryId::default(),
        time: types::LogTime(1),
        feature_level: 0,
        max_value_bytes: 1,
        awaited: true,
    };
    let write = put("k", "v");
    let operation = Command {
        session: None,
        write,
    }
    .encode();
    assert!(matches!(
        machine.apply(at, operation, &mut transaction),
        Err(StoreError::Damaged(_))
    ));
}

#[test]
fn damaged_session_records_and_later_ones_are_found_at_reload() {
    let mut replica = Replica::new(GENESIS);
    replica.apply(1, session(1, 1, 1), put("k", "v"));
    let (key, record) = replica
        .state
        .pairs()
        .iter()
        .find(|((table, _), _)| *table == Table::Sessions)
        .map(|((_, key), record)| (key.clone(), record.clone()))
        .unwrap();
    let mut far = key.to_vec();
    far[..4].copy_from_slice(&GENESIS.shards.to_be_bytes());
    let later = Bytes::from([&[record[0] + 1], &record[1..]].concat());
    let damaged = [
        (key.clone(), record.slice(..record.len() - 1), false),
        (key.slice(..key.len() - 1), record.clone(), false),
        (far.into(), record, false),
        (key, later, true),
    ];
    for (key, record, is_later) in damaged {
        let mut state = MemoryState::new();
        let mut batch: WriteBatch = GENESIS.to_batch();
        batch.put(Table::Sessions, key, record);
        state.commit(batch, Applied::default()).unwrap();
        let reloaded = ShardKv::new().reload(&state);
        if is_later {
            assert!(matches!(reloaded, Err(StoreError::OtherVersion(_))));
        } else {
            assert!(matches!(reloaded, Err(StoreError::Damaged(_))));
        }
    }
}

#[test]
fn keys_with_one_tag_scan_as_one_shard() {
    let mut replica = Replica::new(Genesis::default());
    for n in 0..500 {
        replica.apply(1, None, put(&format!("{{t}}{n:03}"), "v"));
    }
    let Response::Page { pairs, more } = replica.query(&Query::Page(PageRequest {
        start: bytes("{t}100"),
        end: bytes("{t}300"),
        limit: 200,
        max_bytes: u32::MAX,
        keys_only: false,
        shards: None,
    })) else {
        panic!("a scan gives a page");
    };
    assert!(!more, "200 pairs are all of them");
    let expected: Vec<Bytes> = (100..300).map(|n| bytes(&format!("{{t}}{n:03}"))).collect();
    assert!(pairs.into_iter().map(|(key, _)| key).eq(expected));
}

#[test]
fn large_values_are_scanned_whole() {
    let mut replica = Replica::new(GENESIS);
    let value = "v".repeat(100_000);
    for n in 0..20 {
        let write = Write::Put {
            key: bytes(&format!("k{n:02}")),
            value: bytes(&value),
        };
        let operation = Command {
            session: None,
            write,
        }
        .encode();
        replica.apply_bytes(1, 1 << 20, operation);
    }
    let Response::Page { pairs, more } = replica.query(&Query::Page(PageRequest {
        start: Bytes::new(),
        end: Bytes::new(),
        limit: 100,
        max_bytes: 450_000,
        keys_only: false,
        shards: None,
    })) else {
        panic!("a scan gives a page");
    };
    assert_eq!((pairs.len(), more), (5, true));
    assert!(pairs.iter().all(|(_, v)| *v == bytes(&value)));
}
