//! Measures the binary codecs of configurations.
//!
//! - `codec/delta`: the [`ConfigDelta`] of one group that joins. The controllers and every group store each delta once.
//! - `codec/config`: a whole [`ShardConfig`], which the controllers store now and then, and give to groups that begin.
//!
//! The parameter is shards x groups before the change.
//!
//! Unit: time for one delta or configuration, and bytes of the encoded form per second.

#![allow(missing_docs, clippy::unwrap_used)] // The macros make functions; a bench may panic, as a test may.

mod cluster;

use std::collections::BTreeMap;

use cluster::{Cluster, SCALES};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use types::{ConfigDelta, Gid, ShardConfig};

/// Returns the groups with three addresses each, as Kubernetes names pods.
fn addresses(cluster: &Cluster) -> BTreeMap<Gid, Vec<String>> {
    let node = |gid, node| format!("shardkv-{gid}-{node}.shardkv-{gid}.production.svc:7000");
    let group = |gid: &Gid| (*gid, (0..3).map(|n| node(gid.0, n)).collect());
    cluster.gids.iter().map(group).collect()
}

fn configs(criterion: &mut Criterion) {
    for (shards, groups) in SCALES {
        let before = Cluster::new(shards, groups);
        let mut after = before.clone();
        after.change((1..=groups + 1).map(Gid).collect());
        let mut config = ShardConfig::empty(shards);
        let first = ConfigDelta::between(&config, &addresses(&before), &before.owners);
        config.apply(&first).unwrap();
        let delta = ConfigDelta::between(&config, &addresses(&after), &after.owners);
        let scale = format!("{shards}x{groups}");

        let mut group = criterion.benchmark_group("codec/delta");
        let encoded = delta.encode();
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        group.bench_function(BenchmarkId::new("encode", &scale), |bencher| {
            bencher.iter(|| delta.encode());
        });
        group.bench_function(BenchmarkId::new("decode", &scale), |bencher| {
            bencher.iter(|| ConfigDelta::decode(encoded.clone()).unwrap());
        });
        group.finish();

        let mut group = criterion.benchmark_group("codec/config");
        group.sample_size(20);
        let encoded = config.encode();
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        group.bench_function(BenchmarkId::new("encode", &scale), |bencher| {
            bencher.iter(|| config.encode());
        });
        group.bench_function(BenchmarkId::new("decode", &scale), |bencher| {
            bencher.iter(|| ShardConfig::decode(encoded.clone()).unwrap());
        });
        group.finish();
    }
}

criterion_group!(benches, configs);
criterion_main!(benches);
