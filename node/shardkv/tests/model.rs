//! Random histories against a model, and the same history in other batches.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(clippy::cast_possible_truncation, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::clients::{MAX_VALUE, Model, Source};
use common::{GENESIS, Replica, Step};
use replica::StateStore;
use shardkv::{Command, Genesis, PageRequest, Query, Response, Write};

fn check_reads(replica: &Replica, model: &Model, source: &mut Source) {
    let key = source.key();
    assert_eq!(
        replica.query(&Query::Get { key: key.clone() }),
        Response::Value(model.data.get(&key).cloned())
    );
    let whole = source.random.one_in(3);
    let start = if whole { Bytes::new() } else { source.key() };
    let end = if source.random.one_in(2) {
        Bytes::new()
    } else {
        source.key()
    };
    let limit = source.random.below(50) as u32;
    let max_bytes = source.random.below(400) as u32;
    let expected = if !end.is_empty() && start >= end {
        let pairs = Vec::new();
        Response::Page { pairs, more: false }
    } else {
        model.page(&start, &end, limit, max_bytes)
    };
    let scan = Query::Page(PageRequest {
        start,
        end,
        limit,
        max_bytes,
        keys_only: false,
        shards: None,
    });
    assert_eq!(replica.query(&scan), expected, "{scan:?}");
}

#[test]
fn random_histories_agree_with_the_model() {
    let mut seen = BTreeMap::new();
    for seed in 0..60 {
        let shards = [1, 5, 1_000][seed as usize % 3];
        let mut replica = Replica::new(Genesis { shards, ..GENESIS });
        let mut model = Model::new(Some(GENESIS.session_ttl_ms));
        let mut source = Source::new(seed);
        for _ in 0..150 {
            let size = 1 + source.random.below(12);
            let (commands, steps): (Vec<_>, Vec<_>) = (0..size).map(|_| source.step()).unzip();
            let responses = replica.batch(&steps);
            for ((command, step), response) in commands.iter().zip(&steps).zip(&responses) {
                *seen
                    .entry(model.check(command, step.time, response))
                    .or_insert(0) += 1;
            }
            check_reads(&replica, &model, &mut source);
            if source.random.one_in(20) {
                replica.restart();
            }
        }
    }
    for outcome in [
        "executed",
        "swapped",
        "too large",
        "replayed",
        "expired",
        "stale",
        "limit",
    ] {
        let count = seen.get(outcome).copied().unwrap_or(0);
        assert!(count > 50, "{outcome} was seen too seldom: {seen:?}");
    }
}

#[test]
fn bytes_do_not_depend_on_batches_or_restarts() {
    for seed in 0..25 {
        let mut source = Source::new(1_000 + seed);
        let steps: Vec<Step> = (0..1_500).map(|_| source.step().1).collect();
        let mut one_by_one = Replica::new(GENESIS);
        let mut grouped = Replica::new(GENESIS);
        let mut rest = steps.as_slice();
        while !rest.is_empty() {
            let size = 1 + source.random.below(100) as usize;
            let (group, after) = rest.split_at(size.min(rest.len()));
            let expected: Vec<_> = group
                .iter()
                .flat_map(|step| one_by_one.batch(std::slice::from_ref(step)))
                .collect();
            assert_eq!(grouped.batch(group), expected);
            assert_eq!(grouped.state.pairs(), one_by_one.state.pairs());
            assert_eq!(grouped.state.applied(), one_by_one.state.applied());
            if source.random.one_in(4) {
                grouped.restart();
            }
            assert_eq!(
                grouped.machine.session_count(),
                one_by_one.machine.session_count()
            );
            rest = after;
        }
    }
}

#[test]
fn pages_put_together_are_the_whole() {
    for shards in [1, 64, 100_000] {
        let mut replica = Replica::new(Genesis {
            shards,
            ..Genesis::default()
        });
        let mut model = Model::new(Some(GENESIS.session_ttl_ms));
        let mut source = Source::new(u64::from(shards));
        for n in 0..3_000 {
            let key = Bytes::from(format!("{:05}", source.random.below(100_000)));
            let value = Bytes::from(format!("{n}"));
            let write = Write::Put { key, value };
            model.apply(&write);
            let operation = Command {
                session: None,
                write,
            }
            .encode();
            replica.apply_bytes(1, MAX_VALUE, operation);
        }
        let mut found = Vec::new();
        let mut start = Bytes::new();
        loop {
            let scan = Query::Page(PageRequest {
                start,
                end: Bytes::new(),
                limit: 700,
                max_bytes: u32::MAX,
                keys_only: false,
                shards: None,
            });
            let Response::Page { pairs, more } = replica.query(&scan) else {
                panic!("a scan gives a page");
            };
            found.extend(pairs);
            if !more {
                break;
            }
            let (last, _) = found.last().expect("a page with more isn't empty");
            start = [last.as_ref(), &[0]].concat().into();
        }
        assert!(found.into_iter().eq(model.data));
    }
}
