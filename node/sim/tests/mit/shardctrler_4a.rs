//! The controllers (lab 4A of 2024, and the controller of lab 5 before that): Basic and Multi.

use std::collections::BTreeMap;

use shardctrler::{Change, Response};
use shardkv_sim::scenario::Scenario;
use types::{ConfigNum, Gid, ShardConfig, ShardId, ShardSet};

use crate::shards::{SHARDS, Shards, gid, setting};

fn clerks(seed: u64, groups: usize, clerks: usize) -> Scenario {
    let mut scenario = setting(seed);
    scenario.hosts = 1;
    scenario.members = 1;
    scenario.clients = 1;
    if let Some(cluster) = &mut scenario.cluster {
        cluster.groups = groups;
        cluster.config_clients = clerks;
    }
    scenario
}

fn moved(before: &ShardConfig, after: &ShardConfig) -> usize {
    let pairs = before.targets().iter().zip(after.targets());
    pairs.filter(|(old, new)| old != new).count()
}

/// Checks that a group in both configurations keeps its shards on a leave, and gains none on a join.
fn check_minimal(before: &ShardConfig, after: &ShardConfig) {
    let meant_for = |config: &ShardConfig, gid: Gid| -> ShardSet {
        let shards = (0..).map(ShardId).zip(config.targets());
        let shards = shards.filter(|(_, target)| **target == gid);
        shards.map(|(shard, _)| shard).collect()
    };
    for gid in before.members() {
        if !after.members().any(|it| it == gid) {
            continue;
        }
        let (old, new) = (meant_for(before, gid), meant_for(after, gid));
        let joined = after.members().count() > before.members().count();
        let kept = if joined {
            new.shards().all(|shard| old.contains(shard))
        } else {
            old.shards().all(|shard| new.contains(shard))
        };
        assert!(kept, "{gid} had {old}, then {new}");
    }
}

/// Returns the number of people's changes that made a configuration. Groups' reports make more: owners follow targets.
fn changes_made(shards: &Shards) -> usize {
    let changes = (0..10).flat_map(|clerk| shards.script.changes(clerk));
    let responses = changes.map(|it| &it.response);
    responses
        .filter(|it| matches!(it, Some(Response::Changed { changed: true, .. })))
        .count()
}

#[test]
fn basic() {
    let mut shards = Shards::new(clerks(1, 12, 10));
    assert_eq!(shards.query(None).unwrap().config.num(), ConfigNum(0));
    let mut known: Vec<ShardConfig> = Vec::new();
    shards.join(&[0]);
    known.push((*shards.config()).clone());
    shards.check_shares(&[0]);
    shards.join(&[1]);
    known.push((*shards.config()).clone());
    shards.check_shares(&[0, 1]);
    shards.leave(&[0]);
    known.push((*shards.config()).clone());
    shards.check_shares(&[1]);

    // Queries of old configurations, also after all controllers restarted.
    for restarted in [false, true] {
        if restarted {
            shards.script.stop_group(Gid::NONE);
            shards.script.start_group(Gid::NONE).unwrap();
        }
        for config in &known {
            let answer = shards.query(Some(config.num().0)).unwrap();
            assert_eq!(*answer.config, *config);
        }
    }
    let future = shards.query(Some(100)).unwrap_err();
    assert!(matches!(future, Response::Refused(_)), "{future:?}");

    // Moves make the shares uneven, and a join evens them out.
    shards.join(&[0]);
    for shard in 0..SHARDS {
        let to = u64::from(shard >= SHARDS / 2);
        shards.move_shard(shard, to);
        assert_eq!(shards.config().target(ShardId(shard)), gid(to));
    }
    shards.leave(&[1]);
    shards.check_shares(&[0]);

    // Ten clerks join and leave concurrently.
    let before = changes_made(&shards);
    for number in 1..11 {
        let clerk = usize::try_from(number).unwrap() - 1;
        shards.script.join(clerk, &[gid(number)]);
        if number.is_multiple_of(2) {
            let gids = [gid(number)].into();
            shards.script.order(clerk, Change::Leave { gids });
        }
    }
    shards.wait(20_000, "all clerks are served", |script| {
        script.changes_are_over()
    });
    shards.check_shares(&[0, 1, 3, 5, 7, 9]);
    assert_eq!(changes_made(&shards), before + 15);

    // The fewest moves, one by one.
    for number in [2, 4] {
        let before = shards.config();
        shards.join(&[number]);
        check_minimal(&before, &shards.config());
    }
    for number in [9, 7, 5] {
        let before = shards.config();
        shards.leave(&[number]);
        check_minimal(&before, &shards.config());
    }
    shards.finish();
}

#[test]
fn multi() {
    let mut shards = Shards::new(clerks(2, 9, 4));
    shards.join(&[0, 1]);
    shards.check_shares(&[0, 1]);
    shards.join(&[2]);
    shards.check_shares(&[0, 1, 2]);
    shards.leave(&[0, 2]);
    shards.check_shares(&[1]);
    shards.finish();
}

#[test]
fn multi_concurrent_and_minimal() {
    let mut shards = Shards::new(clerks(3, 9, 4));
    shards.join(&[0]);
    for clerk in 0..4 {
        let two = [gid(2 * clerk + 1), gid(2 * clerk + 2)];
        let number = usize::try_from(clerk).unwrap();
        shards.script.join(number, &two);
        let gids = [two[0]].into();
        shards.script.order(number, Change::Leave { gids });
    }
    shards.wait(20_000, "all clerks are served", |script| {
        script.changes_are_over()
    });
    shards.check_shares(&[0, 2, 4, 6, 8]);
    let before = shards.config();
    shards.join(&[1, 3, 5]);
    check_minimal(&before, &shards.config());
    let before = shards.config();
    shards.leave(&[0, 2, 4]);
    check_minimal(&before, &shards.config());
    // A rebalance moves no more shards than it must.
    assert!(moved(&before, &shards.config()) <= 6);
    shards.finish();
}

/// Equal histories of changes give equal configurations on every controller.
#[test]
fn rebalance_is_deterministic() {
    let run = || {
        let mut shards = Shards::new(clerks(4, 6, 1));
        shards.join(&[5, 3]);
        shards.join(&[0]);
        shards.leave(&[3]);
        shards.join(&[1, 2]);
        let owned: BTreeMap<Gid, Vec<ShardId>> = shards
            .config()
            .groups()
            .keys()
            .map(|gid| (*gid, shards.config().owned_by(*gid).shards().collect()))
            .collect();
        owned
    };
    assert_eq!(run(), run());
}
