//! Measures the binary codecs of the state machine's operations.
//!
//! - `codec/put`: one [`Command`] that puts a value under a session. The server encodes each write of a client once, and every
//!   replica decodes it once. The parameter is the size of the value in bytes.
//! - `codec/chunk`: one [`Chunk`] of a shard in transfer, with values of 1,000 bytes. The parameter is the number of pairs.
//!
//! Unit: time for one operation or chunk, and bytes of the encoded form per second.

#![allow(missing_docs, clippy::unwrap_used)] // The macros make functions; a bench may panic, as a test may.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shardkv::{Chunk, Command, Cursor, Next, SessionRef, Write};
use types::{ClientId, ConfigNum, LogTime, Sequence, ShardId};

/// The pairs of a chunk, which make about 1 MB.
const PAIRS: u32 = 1_000;

fn put(value_bytes: usize) -> Command {
    let client = ClientId {
        birth: LogTime(1_700_000_000_000),
        nonce: 0x9e37_79b9_7f4a_7c15,
    };
    Command {
        session: Some(SessionRef {
            client,
            sequence: Sequence(1_000_000),
            acked_below: Sequence(999_900),
        }),
        write: Write::Put {
            key: Bytes::from_static(b"users/0123456789"),
            value: vec![b'v'; value_bytes].into(),
        },
    }
}

fn chunk(pairs: u32) -> Chunk {
    let pair = |n| (format!("users/{n:010}").into(), vec![b'v'; 1_000].into());
    Chunk {
        shard: ShardId(17),
        config: ConfigNum(300),
        after: Cursor::default(),
        pairs: (0..pairs).map(pair).collect(),
        sessions: Vec::new(),
        rows: Vec::new(),
        next: Next::Chunk(Cursor::Sessions(None)),
    }
}

fn puts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec/put");
    for value_bytes in [100, 10_000] {
        let command = put(value_bytes);
        let encoded = command.encode();
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        group.bench_function(BenchmarkId::new("encode", value_bytes), |bencher| {
            bencher.iter(|| command.encode());
        });
        group.bench_function(BenchmarkId::new("decode", value_bytes), |bencher| {
            bencher.iter(|| Command::decode(encoded.clone()).unwrap());
        });
    }
    group.finish();
}

fn chunks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec/chunk");
    let chunk = chunk(PAIRS);
    let encoded = chunk.encode();
    group.throughput(Throughput::Bytes(encoded.len() as u64));
    group.bench_function(BenchmarkId::new("encode", PAIRS), |bencher| {
        bencher.iter(|| chunk.encode());
    });
    group.bench_function(BenchmarkId::new("decode", PAIRS), |bencher| {
        bencher.iter(|| Chunk::decode(encoded.clone()).unwrap());
    });
    group.finish();
}

criterion_group!(benches, puts, chunks);
criterion_main!(benches);
