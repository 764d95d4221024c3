//! Measures how a replica applies committed writes, without consensus and without the log.
//!
//! One iteration applies a batch of puts to the state machine [`ShardKv`] and commits it to a store, as a replica does with the
//! entries that were committed since the last round. The puts are of one session, have values of 100 bytes, and go to 100,000
//! keys in 64 shards.
//!
//! - `apply/memory`: the store in memory that the simulator and the tests use, an ordered map.
//! - `apply/rocksdb`: `RocksDB` in a temporary directory, as a node uses it. Nothing waits for the disk, because the state has no
//!   write-ahead log.
//!
//! - `apply/without-digest`: as `apply/rocksdb`, but the state has no digest, as below its feature level.
//!
//! The parameter is the number of puts in a batch.
//!
//! Unit: time for one batch, and puts per second.

#![allow(missing_docs, clippy::unwrap_used)] // The macros make functions; a bench may panic, as a test may.

use std::cell::RefCell;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raft::{EntryId, Index, Term};
use replica::memory::MemoryState;
use replica::{Applied, Applying, Digest, Genesis, StateMachine, StateStore, Transaction};
use shardkv::{Command, Response, SessionRef, ShardKv, Write};
use shardkv_storage::StorageOptions;
use types::{ClientId, LogTime, Sequence};

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 100;

/// The log time of all entries, and the birth of the session.
const NOW: LogTime = LogTime(1_000_000);

/// A state machine over a store.
struct Replica<S> {
    machine: ShardKv,
    state: S,
    /// The sequence of the last put of the session.
    sequence: u64,
}

impl<S: StateStore> Replica<S> {
    fn new(mut state: S, digest: Option<Digest>) -> Self {
        let genesis = Genesis {
            shards: 64,
            ..Genesis::default()
        };
        state
            .commit(
                genesis.to_batch(),
                Applied {
                    digest,
                    ..Applied::default()
                },
            )
            .unwrap();
        let mut machine = ShardKv::new();
        machine.reload(&state).unwrap();
        Self {
            machine,
            state,
            sequence: 0,
        }
    }

    /// Returns the next `count` puts, encoded as in the log.
    fn next_puts(&mut self, count: u64) -> Vec<Bytes> {
        let put = |sequence: u64| {
            let client = ClientId {
                birth: NOW,
                nonce: 7,
            };
            let session = SessionRef {
                client,
                sequence: Sequence(sequence),
                acked_below: Sequence(sequence),
            };
            // Neighbours in a batch are far apart among the keys: the factor has no divisor in common with their number.
            let key = sequence.wrapping_mul(7_919) % KEYS;
            let write = Write::Put {
                key: format!("users/{key:010}").into(),
                value: vec![b'v'; VALUE_BYTES].into(),
            };
            Command {
                session: Some(session),
                write,
            }
            .encode()
        };
        let first = self.sequence + 1;
        self.sequence += count;
        (first..=self.sequence).map(put).collect()
    }

    /// Applies `puts` as one batch, each as an entry of its own.
    fn apply(&mut self, puts: Vec<Bytes>) {
        let mut applied = self.state.applied();
        let mut transaction = Transaction::new(&self.state);
        transaction.set_digest(applied.digest);
        for put in puts {
            applied.last = EntryId::new(Term(1), applied.last.index.next());
            applied.time = NOW;
            let at = Applying {
                entry: applied.last,
                time: NOW,
                feature_level: 0,
                max_value_bytes: 1 << 20,
                awaited: true,
            };
            let response = self.machine.apply(at, put, &mut transaction).unwrap();
            assert!(matches!(response, Response::Written(_)), "{response:?}");
            applied.digest = transaction.end_entry(applied.last);
        }
        transaction.set_digest(None);
        self.machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        self.state.commit(batch, applied).unwrap();
    }
}

fn measure<S: StateStore>(
    criterion: &mut Criterion,
    store: &str,
    state: S,
    digest: Option<Digest>,
) {
    let mut group = criterion.benchmark_group("apply");
    // Both closures of the bencher use it, one after the other.
    let replica = RefCell::new(Replica::new(state, digest));
    for count in [1, 16, 256] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new(store, count), |bencher| {
            let next = || {
                let mut replica = replica.borrow_mut();
                // The store in memory keeps all commits until they are flushed.
                replica.state.start_flush().unwrap();
                replica.next_puts(count)
            };
            let apply = |puts| replica.borrow_mut().apply(puts);
            bencher.iter_batched(next, apply, BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn memory(criterion: &mut Criterion) {
    measure(criterion, "memory", MemoryState::new(), begun());
}

fn rocksdb(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let opened = shardkv_storage::open(dir.path(), &StorageOptions::default()).unwrap();
    measure(criterion, "rocksdb", opened.state, begun());
}

fn without_digest(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let opened = shardkv_storage::open(dir.path(), &StorageOptions::default()).unwrap();
    measure(criterion, "without-digest", opened.state, None);
}

/// The digest of a new state.
#[expect(clippy::unnecessary_wraps, reason = "the argument of `measure`")]
fn begun() -> Option<Digest> {
    Some(Digest::begin(Index(1)))
}

criterion_group!(benches, memory, rocksdb, without_digest);
criterion_main!(benches);
