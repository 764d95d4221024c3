//! Properties of the rebalance: even, fewest moves, moved shards left alone; by brute force where that ends, and against
//! the bound that is proved in the module up to the largest clusters.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Random, moves};
use shardctrler::rebalance;
use types::{ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId};

/// Returns the number of shards of each group.
fn counts(owners: &[Gid], gids: &[Gid]) -> Vec<usize> {
    let at: BTreeMap<Gid, usize> = gids.iter().copied().zip(0..).collect();
    let mut counts = vec![0; gids.len()];
    for owner in owners {
        if let Some(at) = at.get(owner) {
            counts[*at] += 1;
        }
    }
    counts
}

/// The least number of moves, as proved: what a group has beyond what any even assignment leaves it must go.
fn fewest(owners: &[Gid], gids: &[Gid]) -> usize {
    let (quotient, rest) = (owners.len() / gids.len(), owners.len() % gids.len());
    let have = counts(owners, gids);
    let kept: usize = have.iter().map(|have| have.min(&quotient)).sum();
    let one_more = have.iter().filter(|have| **have > quotient).count();
    owners.len() - kept - one_more.min(rest)
}

/// Of the moved shards, the fewest that go in an assignment that is even, with the fewest moves.
fn fewest_touched(owners: &[Gid], gids: &[Gid], moved: &BTreeSet<ShardId>) -> usize {
    let (quotient, rest) = (owners.len() / gids.len(), owners.len() % gids.len());
    let held: Vec<Gid> = moved.iter().map(|it| owners[it.0 as usize]).collect();
    let held_by = counts(&held, gids);
    let homeless = held.len() - held_by.iter().sum::<usize>();
    let beyond: usize = held_by.iter().map(|it| it.saturating_sub(quotient)).sum();
    let saved = held_by.iter().filter(|it| **it > quotient).count();
    homeless + beyond - saved.min(rest)
}

/// Checks all that is promised, and returns the owners.
#[track_caller]
fn check(owners: &[Gid], gids: &[Gid], moved: &BTreeSet<ShardId>) -> Vec<Gid> {
    check_with(owners, owners, gids, moved)
}

/// The same, where the owners aren't the targets.
#[track_caller]
fn check_with(
    targets: &[Gid],
    owners: &[Gid],
    gids: &[Gid],
    moved: &BTreeSet<ShardId>,
) -> Vec<Gid> {
    let after = rebalance(targets, owners, gids.iter().copied(), moved);
    assert_eq!(after.len(), targets.len());
    let have = counts(&after, gids);
    assert_eq!(
        have.iter().sum::<usize>(),
        targets.len(),
        "a target is no group"
    );
    assert!(
        have.iter().max().unwrap() - have.iter().min().unwrap() <= 1,
        "{have:?}"
    );
    assert_eq!(moves(targets, &after), fewest(targets, gids));
    let touched = |it: &&ShardId| targets[it.0 as usize] != after[it.0 as usize];
    let touched = moved.iter().filter(touched).count();
    assert_eq!(touched, fewest_touched(targets, gids, moved));
    // An assignment that is already even doesn't change.
    assert_eq!(
        rebalance(&after, owners, gids.iter().copied(), moved),
        after
    );
    check_returns(targets, owners, gids, moved, &after);
    after
}

/// A shard that changes goes to its owner unless the owner has no room even for its own: it gets no other group's shard then.
#[track_caller]
fn check_returns(
    targets: &[Gid],
    owners: &[Gid],
    gids: &[Gid],
    moved: &BTreeSet<ShardId>,
    after: &[Gid],
) {
    let changed = |at: &usize| targets[*at] != after[*at];
    let got_foreign: BTreeSet<Gid> = (0..targets.len())
        .filter(changed)
        .filter(|at| after[*at] != owners[*at])
        .map(|at| after[at])
        .collect();
    let gives: BTreeSet<Gid> = (0..targets.len())
        .filter(changed)
        .map(|at| targets[at])
        .collect();
    let gives_others: BTreeSet<Gid> = (0..targets.len())
        .filter(changed)
        .filter(|at| after[*at] != owners[*at])
        .map(|at| targets[at])
        .collect();
    for at in 0..targets.len() {
        let owner = owners[at];
        if after[at] == owner || !got_foreign.contains(&owner) {
            continue;
        }
        assert!(
            targets[at] == after[at],
            "{at} could have gone home to {owner}"
        );
        // A group that kept it gave none, or had no better choice.
        let kept_by = targets[at];
        let free = !moved.contains(&ShardId(at as u32));
        let better = free && gives.contains(&kept_by) && gives_others.contains(&kept_by);
        assert!(
            !better || !gids.contains(&kept_by),
            "{kept_by} gave others than {at}"
        );
    }
}

/// Random owners: of the first `owning` gids, nobody, or one that left.
fn random_owners(random: &mut Random, shards: usize, gids: &[Gid]) -> Vec<Gid> {
    let owning = random.below(gids.len() as u64 + 1) as usize;
    let in_runs = random.one_in(2);
    let mut owners: Vec<Gid> = Vec::with_capacity(shards);
    while owners.len() < shards {
        let owner = match random.below(8) {
            0 if random.one_in(4) => Gid::NONE,
            1 => Gid(1_000_000 + random.below(3)),
            _ if owning > 0 => gids[random.below(owning as u64) as usize],
            _ => Gid::NONE,
        };
        let run = if in_runs {
            random.below(40) as usize + 1
        } else {
            1
        };
        let run = run.min(shards - owners.len());
        owners.extend(std::iter::repeat_n(owner, run));
    }
    owners
}

fn random_moved(random: &mut Random, owners: &[Gid]) -> BTreeSet<ShardId> {
    let share = [u64::MAX, 50, 4, 1][random.below(4) as usize];
    let owned = (0..).zip(owners).filter(|(_, owner)| **owner != Gid::NONE);
    let some = owned.filter(|_| random.one_in(share));
    some.map(|(shard, _)| ShardId(shard)).collect()
}

/// All even assignments, one after the other.
fn for_each_even(shards: usize, gids: &[Gid], mut visit: impl FnMut(&[Gid])) {
    let total = gids.len().pow(shards as u32);
    for number in 0..total {
        let mut rest = number;
        let owners: Vec<Gid> = (0..shards)
            .map(|_| {
                let gid = gids[rest % gids.len()];
                rest /= gids.len();
                gid
            })
            .collect();
        let have = counts(&owners, gids);
        if have.iter().max().unwrap() - have.iter().min().unwrap() <= 1 {
            visit(&owners);
        }
    }
}

#[test]
fn no_even_assignment_moves_fewer_or_touches_fewer_moved_shards() {
    let mut cases = 0;
    for seed in 0..400 {
        let mut random = Random(seed);
        let groups = random.below(4) + 1;
        let gids: Vec<Gid> = (1..=groups).map(Gid).collect();
        let shards = random.below(if groups == 4 { 6 } else { 7 }) as usize + 1;
        let owners = random_owners(&mut random, shards, &gids);
        let moved = random_moved(&mut random, &owners);
        let after = check(&owners, &gids, &moved);
        let cost = |after: &[Gid]| {
            let touched = |it: &&ShardId| owners[it.0 as usize] != after[it.0 as usize];
            (moves(&owners, after), moved.iter().filter(touched).count())
        };
        let mut best = (usize::MAX, usize::MAX);
        for_each_even(shards, &gids, |other| best = best.min(cost(other)));
        assert_eq!(cost(&after), best, "seed {seed}: {owners:?} to {after:?}");
        cases += 1;
    }
    assert_eq!(cases, 400);
}

#[test]
fn random_clusters_are_even_with_the_fewest_moves() {
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let groups = random.below(40) + 1;
        let gids: Vec<Gid> = (0..groups).map(|n| Gid(1 + n * 3)).collect();
        let shards = random.below(400) as usize + 1;
        let owners = random_owners(&mut random, shards, &gids);
        let moved = random_moved(&mut random, &owners);
        check(&owners, &gids, &moved);
    }
}

/// A life of joins, leaves and moves, each a delta that leads to what the rebalance said.
fn live(shards: u32, most_groups: u64, rounds: u32, seed: u64) {
    let mut random = Random(seed);
    let mut config = ShardConfig::empty(shards);
    let mut moved = BTreeSet::new();
    for round in 0..rounds {
        let mut groups = config.member_addresses();
        for _ in 0..=random.below(most_groups / 4) {
            let gid = Gid(1 + random.below(most_groups));
            if groups.len() > 1 && random.one_in(2) {
                groups.remove(&gid);
            } else {
                groups.insert(gid, vec![format!("node-{gid}:7000")]);
            }
        }
        if round == rounds / 2 {
            groups = (1..=most_groups)
                .map(|gid| (Gid(gid), vec![format!("node-{gid}:7000")]))
                .collect();
        }
        if groups.is_empty() {
            continue;
        }
        let gids: Vec<Gid> = groups.keys().copied().collect();
        let after = check_with(config.targets(), config.owners(), &gids, &moved);
        let delta = ConfigDelta::between(&config, &groups, &after);
        // Each run costs a few bytes; groups cost their addresses.
        let bytes = delta.encode().len();
        assert!(bytes <= 16 * delta.moves.len() + 32 * delta.groups.len() + 32);
        assert_eq!(ConfigDelta::decode(delta.encode()), Ok(delta.clone()));
        moved.retain(|it: &ShardId| after[it.0 as usize] == config.owner(*it));
        config.apply(&delta).unwrap();
        assert_eq!(config.owners(), after);
        for _ in 0..random.below(20) {
            let shard = ShardId(random.below(shards.into()) as u32);
            let to = gids[random.below(gids.len() as u64) as usize];
            if config.owner(shard) != to {
                let mut owners = config.owners().to_vec();
                owners[shard.0 as usize] = to;
                let delta = ConfigDelta::between(&config, &config.member_addresses(), &owners);
                config.apply(&delta).unwrap();
                moved.insert(shard);
            }
        }
    }
    assert!(config.num() > ConfigNum(u64::from(rounds) / 2));
}

#[test]
fn a_thousand_shards_live_long() {
    for seed in 0..20 {
        live(1_000, 40, 40, seed);
    }
}

#[test]
fn a_hundred_thousand_shards_on_three_thousand_groups() {
    live(100_000, 3_000, 6, 1);
}

#[test]
fn more_groups_than_shards() {
    for seed in 0..20 {
        live(7, 40, 40, seed);
    }
}

fn gids(range: std::ops::RangeInclusive<u64>) -> Vec<Gid> {
    range.map(Gid).collect()
}

/// Returns the number of runs that change their owner.
fn runs_moved(before: &[Gid], after: &[Gid]) -> usize {
    let config = ShardConfig::new(
        ConfigNum(1),
        before
            .iter()
            .filter(|gid| **gid != Gid::NONE)
            .map(|gid| (*gid, vec!["a:1".to_owned()]))
            .collect(),
        before.iter().map(|gid| (1, *gid)),
    );
    let delta = ConfigDelta::between(&config.unwrap(), &BTreeMap::new(), after);
    delta.moves.len()
}

#[test]
fn neighbours_go_together_where_that_costs_nothing() {
    let none = BTreeSet::new();
    let nobody = vec![Gid::NONE; 100_000];
    let of_300 = rebalance(&nobody, &nobody, gids(1..=300), &none);
    assert_eq!(runs_moved(&nobody, &of_300), 300, "one run for each group");
    // One more group: each that gives does so in one piece.
    let of_301 = rebalance(&of_300, &of_300, gids(1..=301), &none);
    let givers = (1..=300).filter(|gid| {
        let lost = |(before, after): (&Gid, &Gid)| *before == Gid(*gid) && before != after;
        of_300.iter().zip(&of_301).any(lost)
    });
    let givers = givers.count();
    assert!(givers > 1);
    assert_eq!(runs_moved(&of_300, &of_301), givers);
    // One group goes: its shards are one run, cut once for each that takes.
    let takers: BTreeSet<Gid> = {
        let after = rebalance(&of_300, &of_300, gids(2..=300), &none);
        let pairs = of_300.iter().zip(&after);
        let runs = runs_moved(&of_300, &after);
        let takers: BTreeSet<Gid> = pairs.filter(|(a, b)| a != b).map(|(_, b)| *b).collect();
        assert_eq!(runs, takers.len());
        takers
    };
    assert!(takers.len() > 1);
    // A second group in place of none: half of the shards, one run.
    let of_1 = rebalance(&nobody, &nobody, gids(1..=1), &none);
    assert_eq!(
        runs_moved(&of_1, &rebalance(&of_1, &of_1, gids(1..=2), &none)),
        1
    );
}

#[test]
fn a_group_gives_its_longest_runs() {
    // Group 1 has every other shard up to 10, and then ten in a row.
    let owner = |shard: u64| Gid(if shard < 10 { 1 + shard % 2 } else { 1 });
    let owners: Vec<Gid> = (0..20).map(owner).collect();
    let after = check(&owners, &gids(1..=2), &BTreeSet::new());
    assert_eq!(runs_moved(&owners, &after), 1);
    assert_eq!(after[15..], [Gid(2); 5]);
    // One that was moved by hand cuts the run: five others are still there.
    let moved = BTreeSet::from([ShardId(18)]);
    let after = check(&owners, &gids(1..=2), &moved);
    assert_eq!(runs_moved(&owners, &after), 1);
    assert_eq!(after[13..18], [Gid(2); 5]);
}

#[test]
fn without_groups_nobody_owns_anything() {
    let owners = [Gid(1), Gid(2)];
    let after = rebalance(&owners, &owners, [], &BTreeSet::new());
    assert_eq!(after, [Gid::NONE; 2]);
    assert!(rebalance(&[], &[], [Gid(1)], &BTreeSet::new()).is_empty());
}

/// A group that joins and leaves before anything was copied leaves no trace, and neither does one that leaves and joins.
#[test]
fn changes_that_are_taken_back_move_nothing() {
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let gids: Vec<Gid> = (1..=1 + random.below(8)).map(Gid).collect();
        let shards = random.below(100) as usize + 1;
        let moved = BTreeSet::new();
        let owners = vec![Gid::NONE; shards];
        let mut owners = check(&owners, &gids, &moved);
        // Spread, so that runs don't decide.
        for at in (1..shards).rev() {
            owners.swap(at, random.below(at as u64 + 1) as usize);
        }
        let more: Vec<Gid> = (20..=20 + random.below(3)).map(Gid).collect();
        let all = [gids.clone(), more].concat();
        let joined = check_with(&owners, &owners, &all, &moved);
        assert_eq!(
            check_with(&joined, &owners, &gids, &moved),
            owners,
            "seed {seed}"
        );
        if gids.len() > 1 {
            let some = &gids[..=random.below(gids.len() as u64 - 1) as usize];
            let left = check_with(&owners, &owners, some, &moved);
            assert_eq!(
                check_with(&left, &owners, &gids, &moved),
                owners,
                "seed {seed}"
            );
        }
    }
}

/// Targets and owners of any kind, with owners that are partly where they should be.
#[test]
fn shards_on_their_way_go_home_where_there_is_room() {
    for seed in 0..4_000 {
        let mut random = Random(seed);
        let groups = random.below(12) + 1;
        let gids: Vec<Gid> = (0..groups).map(|n| Gid(1 + n * 3)).collect();
        let shards = random.below(120) as usize + 1;
        let targets = random_owners(&mut random, shards, &gids);
        let mut owners = random_owners(&mut random, shards, &gids);
        let share = 1 + random.below(4);
        for (owner, target) in owners.iter_mut().zip(&targets) {
            if random.one_in(share) {
                *owner = *target;
            }
        }
        let moved = random_moved(&mut random, &targets);
        check_with(&targets, &owners, &gids, &moved);
    }
}
