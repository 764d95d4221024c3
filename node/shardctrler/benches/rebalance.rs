//! Measures the rebalance alone, without the log and the state.
//!
//! The benches are `rebalance/join` and `rebalance/leave`: one group joins or leaves. The parameter is shards x groups before the
//! change. `make bench` prints the same at more scales, with the bytes of the delta and the time of the whole change.
//!
//! Unit: time for one rebalance, and shards per second.

#![allow(missing_docs)] // The macros make functions.

mod cluster;

use std::collections::BTreeSet;

use cluster::{Cluster, SCALES};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shardctrler::rebalance;
use types::Gid;

fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rebalance");
    group.sample_size(20);
    for (shards, groups) in SCALES {
        let before = Cluster::new(shards, groups);
        let joined: BTreeSet<Gid> = (1..=groups + 1).map(Gid).collect();
        let mut left = before.gids.clone();
        left.remove(&Gid(groups / 2));
        group.throughput(Throughput::Elements(shards.into()));
        for (name, after) in [("join", joined), ("leave", left)] {
            let scale = format!("{shards}x{groups}");
            group.bench_function(BenchmarkId::new(name, scale), |bencher| {
                let moved = BTreeSet::new();
                bencher.iter(|| {
                    rebalance(
                        &before.owners,
                        &before.owners,
                        after.iter().copied(),
                        &moved,
                    )
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, changes);
criterion_main!(benches);
