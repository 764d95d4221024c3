//! Random moves between groups whose messages are lost, doubled and late, against a model; and the same logs again.
//!
//! Targets change at any time, owners only as the controllers guarantee it: once the owner serves the shard. Groups skip
//! configurations at random. Copies follow plans, but no data: each turns out to be useless at the cut.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

#[path = "../common/mod.rs"]
mod common;

mod end;
mod group;
mod world;

use std::collections::BTreeMap;

use shardkv::Bug;
use world::World;

fn run(seed: u64, bug: Option<Bug>) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed, bug);
    for _ in 0..2_500 {
        world.act();
    }
    world.finish();
    world.read();
    world.check_end();
    world.check_again();
    world.seen
}

/// Each mistake in the machine must show. That of a clock that stays behind needs a coincidence that has a test of its own,
/// among those of single moves.
#[cfg(feature = "bugs")]
#[test]
fn known_bugs_are_found() {
    for bug in [
        Bug::SessionsStayBehind,
        Bug::ChunkInstalledTwice,
        Bug::ServedBeforeInstalled,
        Bug::ConfigNumAtLeast,
        Bug::FenceNotLogged,
        Bug::FencedShardServesReads,
        Bug::PullingGroupServesNoPulls,
        Bug::RetryAppliedTwice,
        Bug::AbsentSessionIsNew,
    ] {
        let finds = |seed| std::panic::catch_unwind(|| run(seed, Some(bug))).is_err();
        let seed = (0..40).find(|seed| finds(*seed));
        assert!(seed.is_some(), "{bug:?} shows in no world");
    }
}

#[test]
fn moves_lose_nothing_and_double_nothing() {
    let mut seen = BTreeMap::new();
    for seed in 0..60 {
        for (what, count) in run(seed, None) {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "executed",
        "swapped",
        "too large",
        "replayed",
        "expired",
        "stale",
        "limit",
        "pulled",
        "stepped",
        "deleted",
        "elsewhere",
        "read",
        "planned",
        "skipped",
        "copied",
        "restarted",
        "gone",
        "comes back",
    ] {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count > 30, "{what} was seen too seldom: {seen:?}");
    }
}
