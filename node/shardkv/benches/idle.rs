//! Measures what a group pays although nothing changes.
//!
//! - `idle/sessions`: the number of sessions of all shards, which the replica's thread reads for the metrics at each tick. The parameter is the
//!   number of sessions, nearly each in a shard of its own.
//! - `idle/step`: a copy of the ownership, which each step of a move makes. The parameter is the number of deletes that sources haven't
//!   confirmed.

#![allow(missing_docs, clippy::unwrap_used)] // The macros make functions; a bench may panic, as a test may.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use raft::{EntryId, Index, Term};
use replica::memory::MemoryState;
use replica::{Applied, Applying, StateMachine, StateStore, Transaction};
use shardkv::{Command, Genesis, Ownership, SessionRef, ShardKv, Write};
use types::{ClientId, ConfigNum, Gid, LogTime, Sequence, ShardId};

/// A group with so many sessions.
fn busy(sessions: u64) -> ShardKv {
    let genesis = Genesis {
        shards: 1_000_000,
        ..Genesis::default()
    };
    let mut state = MemoryState::new();
    state
        .commit(genesis.to_batch(), Applied::default())
        .unwrap();
    let mut machine = ShardKv::new();
    machine.reload(&state).unwrap();
    let mut transaction = Transaction::new(&state);
    let (birth, number) = (LogTime(1_000), Sequence(1));
    for nonce in 0..sessions {
        let at = Applying {
            entry: EntryId::new(Term(1), Index(nonce + 1)),
            time: birth,
            feature_level: 0,
            max_value_bytes: 100,
            awaited: true,
        };
        let command = Command {
            session: Some(SessionRef {
                client: ClientId { birth, nonce },
                sequence: number,
                acked_below: number,
            }),
            write: Write::Put {
                key: format!("key {nonce}").into(),
                value: Bytes::from_static(b"v"),
            },
        };
        let applied = machine.apply(at, command.encode(), &mut transaction);
        applied.unwrap();
    }
    machine.finish_batch(&mut transaction).unwrap();
    machine
}

fn sessions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("idle/sessions");
    for sessions in [1_000, 76_000] {
        let machine = busy(sessions);
        assert_eq!(machine.session_count() as u64, sessions);
        group.bench_function(BenchmarkId::from_parameter(sessions), |bencher| {
            bencher.iter(|| black_box(&machine).session_count());
        });
    }
    group.finish();
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("idle/step");
    for deletes in [0, 100_000] {
        let pending = (0..deletes).map(|shard| ((ShardId(shard), ConfigNum(1)), Gid(2)));
        let pending: BTreeMap<_, _> = pending.collect();
        let ownership = Ownership {
            pending_deletes: Arc::new(pending),
            ..Ownership::default()
        };
        group.bench_function(BenchmarkId::from_parameter(deletes), |bencher| {
            bencher.iter(|| black_box(&ownership).clone());
        });
    }
    group.finish();
}

criterion_group!(benches, sessions, steps);
criterion_main!(benches);
