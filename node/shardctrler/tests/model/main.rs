//! Random histories against a model: duplicates, restarts at any point, groups that lag, limits that are reached; and the
//! same history in other batches gives the same bytes.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

#[path = "../common/mod.rs"]
mod common;

mod checks;
mod model;
mod source;

use std::collections::BTreeMap;

use common::{GENESIS, Random, Replica};
use model::Model;
use shardctrler::HistoryLimits;
use source::Source;
use types::Gid;

const LIMITS: HistoryLimits = HistoryLimits {
    keep: 3,
    keep_cuts: 4,
    step: 2,
    max_bytes: 400,
};

/// Lives through one random history for each seed; returns how often each kind of answer was given, and the most configurations
/// that were forgotten.
fn live(
    seeds: std::ops::Range<u64>,
    new: impl Fn() -> Replica,
) -> (BTreeMap<&'static str, u32>, u64) {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let mut most_forgotten = 0;
    for seed in seeds {
        let mut replica = new();
        let mut others = [new(), new()];
        let mut model = Model::new();
        let mut source = Source {
            random: Random(seed),
            clients: Vec::new(),
            sent: Vec::new(),
            silent: Gid(8),
        };
        let mut waiting: Vec<Vec<bytes::Bytes>> = vec![Vec::new(), Vec::new()];
        for _ in 0..300 {
            if source.random.one_in(20) {
                replica.time += match source.random.below(3) {
                    0 => source.random.below(12_000),
                    _ => source.random.below(150),
                };
                for (other, waiting) in others.iter_mut().zip(&mut waiting) {
                    other.batch(waiting);
                    waiting.clear();
                    other.time = replica.time;
                }
            }
            let command = source.command(replica.time, &model);
            let response = replica.apply_bytes(command.encode());
            let kind = model.check(&command, &response, &replica);
            *seen.entry(kind).or_default() += 1;
            if source.random.one_in(10) {
                replica.restart();
            }
            if source.random.one_in(30) {
                model.check_state(&replica);
            }
            for (other, waiting) in others.iter_mut().zip(&mut waiting) {
                waiting.push(command.encode());
                if source.random.one_in(12) {
                    other.batch(waiting);
                    waiting.clear();
                    if source.random.one_in(3) {
                        other.restart();
                    }
                }
            }
        }
        model.check_state(&replica);
        for (other, waiting) in others.iter_mut().zip(&waiting) {
            other.batch(waiting);
            assert_eq!(other.stored(), replica.stored(), "seed {seed}");
        }
        most_forgotten = most_forgotten.max(replica.machine.oldest().0);
    }
    (seen, most_forgotten)
}

#[test]
fn random_histories_are_what_the_model_says() {
    let (seen, most_forgotten) = live(0..100, || Replica::with_limits(GENESIS, LIMITS));
    for kind in [
        "executed", "replayed", "refused", "reported", "stale", "expired", "cut", "void",
    ] {
        assert!(
            seen.get(kind).is_some_and(|count| *count > 50),
            "{kind}: {seen:?}"
        );
    }
    for kind in [
        "loss",
        "retired",
        "dropped",
        "forgotten",
        "returned",
        "retires",
    ] {
        assert!(
            seen.get(kind).is_some_and(|count| *count > 10),
            "{kind}: {seen:?}"
        );
    }
    assert!(most_forgotten > 20, "{most_forgotten}");
}

/// The model finds each bug of the rules of owners, targets and groups.
#[cfg(feature = "bugs")]
#[test]
fn the_model_finds_known_bugs() {
    use shardctrler::Bug;
    for bug in Bug::ALL
        .into_iter()
        .chain(Bug::OF_CUTS)
        .chain(Bug::OF_FORGETTING)
    {
        let new = || Replica::with_bug(GENESIS, LIMITS, bug);
        let found = std::panic::catch_unwind(|| live(0..20, new));
        assert!(found.is_err(), "{bug:?}");
    }
}
