//! Measures keyspaces on `RocksDB`: how long the replica's thread applies their operations, and a reader's thread reads them. No
//! consensus, no log, no network.
//!
//! All figures are the CPU time of the one thread that works, so other programs on the machine change them little. `RocksDB`'s
//! own threads aren't in them.
//!
//! - put: puts of 100 bytes to 100,000 keys, 256 in a batch, to the flat map (with a session) and to a keyspace;
//! - range: the newest 1,000 pairs of 1 KiB from one key on, with no old versions and with 10 of each key;
//! - count: the number of 100,000 keys;
//! - delete: one deletion of 10,000 keys of 1 KiB, without and with the pairs before;
//! - largest: a transaction that reads as many pairs as the limits allow, and the revoke of a lease with 10,000 keys;
//! - compact: clearing after a compaction of 1,000,000 revisions, step by step.
//!
//! An argument chooses one: put, range, count, largest or compact. Run by `cargo test`, the numbers are divided by 100 and mean nothing.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss
)]

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use keyspace::{
    Action, Answer, DeleteRange, KeyspaceId, KeyspaceOptions, Limits, Operation, Place, Put, Range,
    Span,
};
use raft::{EntryId, Index, Term};
use replica::{Applied, Applying, Digest, Genesis, StateMachine, StateStore, Transaction};
use rustix::time::{ClockId, clock_gettime};
use shardkv::{
    Command, KEYSPACE_LEVEL, Response, SessionRef, ShardKv, encode_keyspace_operation,
    read_keyspaces,
};
use shardkv_storage::StorageOptions;
use types::{ClientId, LogTime, Sequence, ShardId};

const NOW: LogTime = LogTime(1_000_000);
const SHARD: ShardId = ShardId(3);
const PLACE: Place = Place {
    shard: SHARD,
    id: KeyspaceId(1),
};
const BATCH: u64 = 256;

/// Returns the CPU time of this thread.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

/// Returns the CPU time of this thread since `start`.
fn since(start: Duration) -> Duration {
    cpu().saturating_sub(start)
}

type Measure = fn(u64);

struct Replica<S> {
    machine: ShardKv,
    state: S,
    sequence: u64,
}

impl<S: StateStore> Replica<S> {
    fn new(mut state: S) -> Self {
        let genesis = Genesis {
            shards: 64,
            ..Genesis::default()
        };
        let applied = Applied {
            digest: Some(Digest::begin(Index(1))),
            feature_level: KEYSPACE_LEVEL,
            ..Applied::default()
        };
        state.commit(genesis.to_batch(), applied).unwrap();
        let mut machine = ShardKv::new();
        machine.reload(&state).unwrap();
        let mut replica = Self {
            machine,
            state,
            sequence: 0,
        };
        let create = Action::Create {
            name: "a".to_owned(),
            options: KeyspaceOptions {
                quota_bytes: 1 << 40,
                ..KeyspaceOptions::default()
            },
            nonce: NonZeroU64::MIN,
        };
        replica.apply(vec![encoded(create)]);
        replica
    }

    /// Applies operations as one batch, each as an entry of its own. Returns the last response.
    fn apply(&mut self, operations: Vec<Bytes>) -> Response {
        self.state.start_flush().unwrap();
        let mut applied = self.state.applied();
        let mut transaction = Transaction::new(&self.state);
        transaction.set_digest(applied.digest);
        let mut last = Response::Stepped;
        for operation in operations {
            applied.last = EntryId::new(Term(1), applied.last.index.next());
            applied.time = NOW;
            let at = Applying {
                entry: applied.last,
                time: NOW,
                feature_level: KEYSPACE_LEVEL,
                max_value_bytes: 1 << 20,
                awaited: true,
            };
            last = self.machine.apply(at, operation, &mut transaction).unwrap();
            if let Response::Keyspace(outcome) = &last {
                assert!(outcome.answer.is_ok(), "{outcome:?}");
            }
            applied.digest = transaction.end_entry(applied.last);
        }
        transaction.set_digest(None);
        self.machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        self.state.commit(batch, applied).unwrap();
        last
    }

    /// Applies `count` operations in batches, and returns the CPU time of one.
    fn run(&mut self, count: u64, mut operation: impl FnMut(&mut Self, u64) -> Bytes) -> Duration {
        let mut spent = Duration::ZERO;
        for first in (0..count).step_by(usize::try_from(BATCH).unwrap()) {
            let numbers = first..count.min(first + BATCH);
            let operations = numbers.map(|number| operation(self, number)).collect();
            let start = cpu();
            self.apply(operations);
            spent += since(start);
        }
        spent / u32::try_from(count).unwrap()
    }

    fn read<T>(&self, read: impl FnOnce(&dyn replica::PairReader) -> T) -> T {
        read_keyspaces(&self.state, SHARD, |reader| Ok(read(reader)))
            .unwrap()
            .unwrap()
    }
}

fn encoded(action: Action) -> Bytes {
    encode_keyspace_operation(&Operation {
        cluster_id: None,
        shard: SHARD,
        // More than the default, to see what larger limits would cost.
        limits: Limits {
            max_visited: u32::MAX,
            ..Limits::default()
        },
        action,
    })
}

fn write(write: keyspace::Write) -> Bytes {
    encoded(Action::In(PLACE.id, write))
}

/// The key with a number. Neighbours in a batch are far apart among the keys.
fn key(number: u64, keys: u64) -> Bytes {
    let key = number.wrapping_mul(7_919) % keys;
    format!("users/{key:010}").into()
}

fn put(number: u64, keys: u64, bytes: usize) -> Bytes {
    write(keyspace::Write::Put(Put {
        key: key(number, keys),
        value: vec![b'v'; bytes].into(),
        ..Put::default()
    }))
}

fn plain_put<S>(replica: &mut Replica<S>, number: u64, keys: u64) -> Bytes {
    replica.sequence += 1;
    let sequence = Sequence(replica.sequence);
    let client = ClientId {
        birth: NOW,
        nonce: 7,
    };
    let session = SessionRef {
        client,
        sequence,
        acked_below: sequence,
    };
    Command {
        session: Some(session),
        write: shardkv::Write::Put {
            key: key(number, keys),
            value: vec![b'v'; 100].into(),
        },
    }
    .encode()
}

fn with_replica(run: impl FnOnce(&mut Replica<shardkv_storage::RocksState>)) {
    let dir = tempfile::tempdir().unwrap();
    let opened = shardkv_storage::open(dir.path(), &StorageOptions::default()).unwrap();
    run(&mut Replica::new(opened.state));
}

fn puts(scale: u64) {
    let (keys, count) = (100_000 / scale, 400_000 / scale);
    let mut plain = Duration::ZERO;
    with_replica(|replica| {
        plain = replica.run(count, |replica, number| plain_put(replica, number, keys));
    });
    let mut versioned = Duration::ZERO;
    with_replica(|replica| {
        versioned = replica.run(count, |_, number| put(number, keys, 100));
    });
    let ratio = versioned.as_secs_f64() / plain.as_secs_f64();
    println!("put: flat map {plain:?}, keyspace {versioned:?}: {ratio:.2} x");
}

fn ranges(scale: u64) {
    let keys = 20_000 / scale;
    with_replica(|replica| {
        replica.run(keys, |_, number| put(number, keys, 1_024));
        let mut range = Range::new(Span::From(key(0, keys)));
        range.limit = 1_000;
        // Bounds the walk too: a limited range still counts all keys of its span.
        let last = format!("users/{:010}", 1_000).into();
        range.span = Span::Range(key(0, keys), last);
        let read = |replica: &Replica<_>| {
            let (start, times) = (cpu(), 50);
            for _ in 0..times {
                let answer = replica.read(|reader| {
                    keyspace::range(reader, PLACE, &range, 64 << 20)
                        .unwrap()
                        .unwrap()
                });
                assert_eq!(answer.kvs.len() as u64, keys.min(1_000));
            }
            since(start) / times
        };
        let newest = read(replica);
        let times = 10;
        replica.run(keys * times, |_, number| put(number, keys, 1_024));
        let old = read(replica);
        let ratio = old.as_secs_f64() / newest.as_secs_f64();
        println!("range of 1,000: {newest:?}, with {times} old versions {old:?}: {ratio:.2} x");

        deletes(replica, keys, scale);
    });
}

fn counts(scale: u64) {
    let keys = 100_000 / scale;
    with_replica(|replica| {
        replica.run(keys, |_, number| put(number, keys, 100));
        let mut count = Range::new(Span::From(Bytes::from_static(b"\0")));
        count.count_only = true;
        let start = cpu();
        let answer = replica.read(|reader| {
            keyspace::range(reader, PLACE, &count, 1 << 20)
                .unwrap()
                .unwrap()
        });
        let spent = since(start);
        println!("count of {}: {spent:?}", answer.count);
    });
}

fn deletes<S: StateStore>(replica: &mut Replica<S>, keys: u64, scale: u64) {
    let count = 10_000 / scale;
    for (first, prev_kv) in [(0, false), (keys / 2, true)] {
        let number = |number: u64| Bytes::from(format!("users/{number:010}"));
        let delete = write(keyspace::Write::DeleteRange(DeleteRange {
            span: Span::Range(number(first), number(first + count)),
            prev_kv,
        }));
        let start = cpu();
        let response = replica.apply(vec![delete]);
        let spent = since(start);
        assert!(matches!(response, Response::Keyspace(_)));
        println!("delete of {count}, prev_kv {prev_kv}: {spent:?}");
    }
}

/// Measures the largest writes that the limits allow: they hold up the thread that ticks Raft.
fn largest(scale: u64) {
    let keys = 10_000 / scale;
    let id = keyspace::LeaseId(7);
    with_replica(|replica| {
        replica.apply(vec![write(keyspace::Write::Grant { id, ttl: 60 })]);
        replica.run(keys, |_, number| {
            write(keyspace::Write::Put(Put {
                key: key(number, keys),
                value: vec![b'v'; 1_024].into(),
                lease: id,
                ..Put::default()
            }))
        });
        // Each pair costs a lookup, so these are the most rows that one transaction may visit.
        let limits = Limits::default();
        let pairs = u64::from(limits.max_visited / 17).min(keys);
        let last = format!("users/{pairs:010}").into();
        let range = keyspace::Op::Range(Range::new(Span::Range(key(0, keys), last)));
        let txn = keyspace::Txn {
            success: vec![range],
            ..keyspace::Txn::default()
        };
        let mut measure = |what: &str, action| {
            let start = cpu();
            replica.apply(vec![write(action)]);
            println!("{what}: {:?}", since(start));
        };
        measure(
            &format!("transaction that reads {pairs} pairs"),
            keyspace::Write::Txn(txn),
        );
        measure(
            &format!("revoke with {keys} keys"),
            keyspace::Write::Revoke { id },
        );
    });
}

fn compaction(scale: u64) {
    let (keys, count) = (100_000 / scale, 1_000_000 / scale);
    with_replica(|replica| {
        replica.run(count, |_, number| put(number, keys, 100));
        let revision = i64::try_from(count).unwrap();
        replica.apply(vec![write(keyspace::Write::Compact { revision })]);
        let (mut steps, mut most, mut all) = (0, Duration::ZERO, Duration::ZERO);
        loop {
            let start = cpu();
            let response = replica.apply(vec![write(keyspace::Write::Clear)]);
            let spent = since(start);
            (steps, most, all) = (steps + 1, most.max(spent), all + spent);
            let Response::Keyspace(outcome) = response else {
                panic!("it is served: {response:?}");
            };
            if outcome.answer == Ok(Answer::Cleared { more: false }) {
                break;
            }
        }
        println!(
            "compaction of {count} revisions: {steps} steps in {all:?}, {:?} each, longest {most:?}",
            all / steps
        );
    });
}

fn main() {
    let measures = std::env::args().any(|arg| arg == "--bench");
    let scale = if measures { 1 } else { 100 };
    let wanted = |name: &str| {
        let mut filters = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
        filters.all(|filter| filter == name)
    };
    let all: [(&str, Measure); 5] = [
        ("put", puts),
        ("range", ranges),
        ("count", counts),
        ("largest", largest),
        ("compact", compaction),
    ];
    for (_, run) in all.into_iter().filter(|(name, _)| wanted(name)) {
        run(scale);
    }
}
