use bytes::Bytes;

use super::*;
use crate::{ShardMove, ShardRun};

fn addresses(gid: u64) -> Vec<String> {
    (0..3).map(|node| format!("g{gid}-{node}:7000")).collect()
}

fn groups(gids: &[u64]) -> BTreeMap<Gid, Vec<String>> {
    gids.iter()
        .map(|gid| (Gid(*gid), addresses(*gid)))
        .collect()
}

fn group(addresses: &[&str], incarnation: u64, leaving: bool) -> Group {
    Group {
        addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
        incarnation: Incarnation(incarnation),
        leaving,
    }
}

fn gids(owners: &[u64]) -> Vec<Gid> {
    owners.iter().copied().map(Gid).collect()
}

#[test]
fn a_delta_leads_from_one_configuration_to_the_next() {
    let mut config = ShardConfig::empty(6);
    let first = ConfigDelta::between(&config, &groups(&[1, 2]), &gids(&[1, 1, 1, 2, 2, 2]));
    assert_eq!(first.moves.len(), 2, "neighbours go together");
    config.apply(&first).unwrap();
    assert_eq!(config.num(), ConfigNum(1));
    let second = ConfigDelta::between(&config, &groups(&[2, 3]), &gids(&[3, 3, 3, 2, 2, 2]));
    assert_eq!(second.groups.get(&Gid(1)), Some(&None));
    let mut next = config.clone();
    next.apply(&second).unwrap();
    assert_eq!(next.owners(), gids(&[3, 3, 3, 2, 2, 2]));
    assert_eq!(next.owned_by(Gid(3)), ShardSet::all(3));
    assert_eq!(
        next.groups().keys().copied().collect::<Vec<_>>(),
        gids(&[2, 3])
    );
    for config in [&config, &next] {
        assert_eq!(ShardConfig::decode(config.encode()).as_ref(), Ok(config));
    }
    for delta in [first, second] {
        assert_eq!(ConfigDelta::decode(delta.encode()).as_ref(), Ok(&delta));
    }
}

#[test]
fn a_delta_that_does_not_fit_changes_nothing() {
    let mut config = ShardConfig::empty(2);
    let good = ConfigDelta::between(&config, &groups(&[1]), &gids(&[1, 1]));
    let mut far = good.clone();
    far.num = ConfigNum(7);
    let mut outside = good.clone();
    outside.moves[0].run.count = 3;
    let mut foreign = good.clone();
    foreign.moves[0].to = Gid(9);
    let mut stolen = good.clone();
    stolen.moves[0].from = Gid(5);
    let mut nameless = good.clone();
    let nowhere = group(&["nowhere"], 1, false);
    nameless.groups.insert(Gid(4), Some(nowhere));
    for bad in [far, outside, foreign, stolen, nameless] {
        assert!(config.apply(&bad).is_err(), "{bad:?}");
        assert_eq!(config, ShardConfig::empty(2));
    }
    config.apply(&good).unwrap();
    assert!(config.apply(&good).is_err(), "once only");
}

#[test]
fn bytes_that_are_cut_or_changed_never_panic() {
    let mut config = ShardConfig::empty(6);
    let delta = ConfigDelta::between(&config, &groups(&[1, 2]), &gids(&[1, 1, 1, 2, 2, 2]));
    config.apply(&delta).unwrap();
    for bytes in [config.encode(), delta.encode()] {
        for cut in 0..bytes.len() {
            assert!(ShardConfig::decode(bytes.slice(..cut)).is_err());
            assert!(ConfigDelta::decode(bytes.slice(..cut)).is_err());
            let mut changed = bytes.to_vec();
            changed[cut] ^= 0xff;
            let changed = Bytes::from(changed);
            let _ = (
                ShardConfig::decode(changed.clone()),
                ConfigDelta::decode(changed),
            );
        }
    }
}

fn step(first: u32, count: u32, from: u64, to: u64) -> ShardMove {
    let first = ShardId(first);
    ShardMove {
        run: ShardRun { first, count },
        from: Gid(from),
        to: Gid(to),
    }
}

/// Groups 1 and 2 with three shards each.
fn two() -> ShardConfig {
    let mut config = ShardConfig::empty(6);
    let owners = gids(&[1, 1, 1, 2, 2, 2]);
    let delta = ConfigDelta::between(&config, &groups(&[1, 2]), &owners);
    config.apply(&delta).unwrap();
    config
}

#[test]
fn targets_change_first_and_owners_follow_by_a_cut() {
    let mut config = two();
    let targets = ConfigDelta {
        num: ConfigNum(2),
        targets: vec![step(1, 2, 1, 2)],
        ..ConfigDelta::default()
    };
    config.apply(&targets).unwrap();
    assert_eq!(config.owners(), gids(&[1, 1, 1, 2, 2, 2]));
    assert_eq!(config.targets(), gids(&[1, 2, 2, 2, 2, 2]));
    assert_eq!(
        (config.moving(), config.reached_in(ConfigNum(2))),
        (2, None)
    );
    assert_eq!(
        config.reached_in(ConfigNum(1)),
        Some(ConfigNum(1)),
        "what was meant before"
    );
    let cut = ConfigDelta {
        num: ConfigNum(3),
        moves: vec![step(2, 1, 1, 2)],
        ..ConfigDelta::default()
    };
    assert!(cut.is_cut() && !targets.is_cut());
    config.apply(&cut).unwrap();
    let row = Assignment {
        owner: Gid(2),
        owner_since: ConfigNum(3),
        previous: Gid(1),
        target: Gid(2),
        target_since: ConfigNum(2),
    };
    assert_eq!(config.row(ShardId(2)), row);
    assert!(config.row(ShardId(1)).is_moving());
    assert_eq!(
        config.row(ShardId(6)),
        Assignment::default(),
        "no such shard"
    );
    // The shard may be wanted where it is, after all.
    let back = ConfigDelta {
        num: ConfigNum(4),
        targets: vec![step(1, 1, 2, 1)],
        ..ConfigDelta::default()
    };
    config.apply(&back).unwrap();
    assert_eq!(
        (config.moving(), config.reached_in(ConfigNum(4))),
        (0, Some(ConfigNum(4)))
    );
    assert_eq!(
        config.reached_in(ConfigNum(2)),
        Some(ConfigNum(3)),
        "the cut has to be settled"
    );
    assert_eq!(config.row(ShardId(1)).target_since, ConfigNum(4));
    assert_eq!(ShardConfig::decode(config.encode()), Ok(config));
}

#[test]
fn a_group_stays_while_it_leaves_and_keeps_its_incarnation() {
    let mut config = two();
    let known = config.groups()[&Gid(1)].clone();
    assert_eq!(known.incarnation, Incarnation(1));
    let leaving = Group {
        leaving: true,
        ..known.clone()
    };
    let leave = |targets: Vec<ShardMove>| ConfigDelta {
        num: ConfigNum(2),
        groups: [(Gid(1), Some(leaving.clone()))].into(),
        targets,
        ..ConfigDelta::default()
    };
    let before = config.clone();
    assert!(config.apply(&leave(vec![])).is_err(), "it is a target");
    assert_eq!(config, before);
    config.apply(&leave(vec![step(0, 3, 1, 2)])).unwrap();
    assert_eq!(config.members().collect::<Vec<_>>(), [Gid(2)]);
    assert_eq!(config.groups().len(), 2);
    let gone = |moves| ConfigDelta {
        num: ConfigNum(3),
        groups: [(Gid(1), None)].into(),
        moves,
        ..ConfigDelta::default()
    };
    assert!(config.apply(&gone(vec![])).is_err(), "it is an owner");
    assert!(
        config.apply(&gone(vec![step(0, 2, 1, 2)])).is_err(),
        "of one shard still"
    );
    let mut other = gone(vec![]);
    other.groups = [(Gid(1), Some(group(&["a:1"], 3, false)))].into();
    assert!(config.apply(&other).is_err(), "another group under its gid");
    let mut stranger = gone(vec![]);
    stranger.groups = [(Gid(9), None)].into();
    assert!(config.apply(&stranger).is_err(), "no such group");
    config.apply(&gone(vec![step(0, 3, 1, 2)])).unwrap();
    assert_eq!(
        config.row(ShardId(0)).previous,
        Gid(1),
        "named, though it is gone"
    );
    assert_eq!(ShardConfig::decode(config.encode()), Ok(config));
}

#[test]
fn a_delta_that_breaks_an_invariant_changes_nothing() {
    let mut config = two();
    config
        .apply(&ConfigDelta {
            num: ConfigNum(2),
            targets: vec![step(0, 1, 1, 2)],
            ..ConfigDelta::default()
        })
        .unwrap();
    let before = config.clone();
    let next = ConfigDelta {
        num: ConfigNum(3),
        ..ConfigDelta::default()
    };
    let targets = |targets| ConfigDelta {
        targets,
        ..next.clone()
    };
    let moves = |moves| ConfigDelta {
        moves,
        ..next.clone()
    };
    for bad in [
        targets(vec![step(0, 1, 1, 2)]),
        targets(vec![step(1, 1, 1, 9)]),
        targets(vec![step(5, 2, 2, 1)]),
        targets(vec![step(2, 1, 1, 2), step(1, 1, 1, 2)]),
        targets(vec![step(1, 0, 1, 2)]),
        moves(vec![step(1, 1, 1, 2)]),
        moves(vec![step(0, 1, 2, 1)]),
        moves(vec![step(0, 2, 1, 2)]),
    ] {
        assert!(config.apply(&bad).is_err(), "{bad:?}");
        assert_eq!(config, before);
    }
    let mut empty = ShardConfig::empty(2);
    let mut ownerless = ConfigDelta::between(&empty, &groups(&[1]), &gids(&[1, 1]));
    ownerless.moves[0].run.count = 1;
    assert!(empty.apply(&ownerless).is_err(), "a target and no owner");
    // A configuration without any change is fine: numbers are contiguous.
    config.apply(&next).unwrap();
    assert_eq!(config.num(), ConfigNum(3));
}

#[test]
fn a_forgotten_group_leaves_shards_to_owners_that_get_them_from_nobody() {
    let mut config = two();
    // Group 1 plans to give shard 1, and has just given shard 2 to group 2.
    for delta in [
        ConfigDelta {
            num: ConfigNum(2),
            targets: vec![step(1, 2, 1, 2)],
            ..ConfigDelta::default()
        },
        ConfigDelta {
            num: ConfigNum(3),
            moves: vec![step(2, 1, 1, 2)],
            ..ConfigDelta::default()
        },
    ] {
        config.apply(&delta).unwrap();
    }
    // Group 1 goes. Shard 0 has another target than its new owner, and shard 2 keeps its owner.
    let mut groups = config.groups().clone();
    groups.remove(&Gid(1));
    groups.insert(Gid(3), group(&["c:1"], 4, false));
    let targets = gids(&[3, 2, 2, 2, 2, 2]);
    let owners = gids(&[2, 2, 2, 2, 2, 2]);
    let resets: ShardSet = [0, 1, 2].map(ShardId).into_iter().collect();
    let delta = ConfigDelta::new(&config, &groups, &targets, &owners);
    let delta = delta.with_resets(&config, &owners, &resets);
    assert_eq!(
        (&delta.moves[..], &delta.resets[..]),
        (&[][..], &[step(0, 2, 1, 2), step(2, 1, 2, 2)][..])
    );
    assert!(!delta.is_cut());
    assert_eq!(delta.new_owner(ShardId(1)), Some(Gid(2)));
    assert_eq!(ConfigDelta::decode(delta.encode()).as_ref(), Ok(&delta));
    let before = config.clone();
    config.apply(&delta).unwrap();
    let row = |target, target_since| Assignment {
        owner: Gid(2),
        owner_since: ConfigNum(4),
        previous: Gid::NONE,
        target: Gid(target),
        target_since: ConfigNum(target_since),
    };
    assert_eq!(config.row(ShardId(0)), row(3, 4));
    assert_eq!(config.row(ShardId(1)), row(2, 2));
    assert_eq!(config.row(ShardId(2)), row(2, 2));
    assert_eq!(config.row(ShardId(3)), before.row(ShardId(3)));
    assert_eq!(ShardConfig::decode(config.encode()), Ok(config));
    // A move that was planned from the owner before is another afterwards.
    let stay = delta.with_resets(&before, &owners, &resets);
    let kept = ConfigDelta {
        groups: BTreeMap::new(),
        targets: Vec::new(),
        ..stay
    };
    let mut moving = before.clone();
    moving
        .apply(&ConfigDelta {
            resets: vec![step(0, 1, 1, 1), step(1, 1, 1, 1)],
            ..kept
        })
        .unwrap();
    assert_eq!(moving.row(ShardId(1)).target_since, ConfigNum(4));
    assert_eq!(
        moving.row(ShardId(0)).target_since,
        before.row(ShardId(0)).target_since
    );
    // Not to strangers, not from others, not twice.
    let refused = |moves: &[ShardMove], resets: &[ShardMove]| {
        let delta = ConfigDelta {
            num: ConfigNum(4),
            moves: moves.to_vec(),
            resets: resets.to_vec(),
            ..ConfigDelta::default()
        };
        assert!(before.clone().apply(&delta).is_err(), "{delta:?}");
    };
    refused(&[], &[step(0, 1, 1, 9)]);
    refused(&[], &[step(0, 1, 2, 1)]);
    refused(&[], &[step(0, 1, 1, 1), step(0, 1, 1, 1)]);
    refused(&[step(1, 1, 1, 2)], &[step(1, 1, 1, 2)]);
    let mut nobodys = ShardConfig::empty(1);
    let reset = ConfigDelta {
        num: ConfigNum(1),
        groups: [(Gid(1), Some(group(&["a:1"], 1, false)))].into(),
        resets: vec![step(0, 1, 0, 1)],
        ..ConfigDelta::default()
    };
    assert!(nobodys.apply(&reset).is_err(), "nobody owned it");
}

#[test]
fn rows_that_break_an_invariant_are_no_configuration() {
    let good = Assignment {
        owner: Gid(1),
        owner_since: ConfigNum(2),
        previous: Gid(3),
        target: Gid(2),
        target_since: ConfigNum(4),
    };
    let make = |row, leaving| {
        let groups = [
            (Gid(1), group(&["a:1"], 1, false)),
            (Gid(2), group(&["b:1"], 2, leaving)),
        ];
        ShardConfig::from_rows(ConfigNum(5), groups.into(), [(3, row)])
    };
    assert!(make(good, false).is_ok());
    assert!(make(good, true).is_err(), "a target that leaves");
    let from = |change: fn(&mut Assignment)| {
        let mut row = good;
        change(&mut row);
        make(row, false)
    };
    for bad in [
        from(|row| row.owner = Gid(9)),
        from(|row| row.owner = Gid::NONE),
        from(|row| row.target = Gid::NONE),
        from(|row| row.target_since = ConfigNum(6)),
        from(|row| row.target_since = ConfigNum(2)),
        from(|row| row.previous = Gid(1)),
    ] {
        assert!(bad.is_err(), "{bad:?}");
    }
    let late = [(Gid(1), group(&["a:1"], 6, false))];
    assert!(
        ShardConfig::from_rows(ConfigNum(5), late.into(), [(1, Assignment::default())]).is_err()
    );
}

/// A life of random targets and cuts, each a delta that survives encoding and leads to exactly what was meant.
#[test]
fn random_configurations_survive_deltas_and_encoding() {
    let mut seed = 5_u64;
    let mut below = |bound: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % bound
    };
    let mut config = two();
    for _ in 0..2_000 {
        let mut targets = config.targets().to_vec();
        for target in &mut targets {
            if below(4) == 0 {
                *target = Gid(1 + below(2));
            }
        }
        let mut owners = config.owners().to_vec();
        for (owner, target) in owners.iter_mut().zip(&targets) {
            if below(3) == 0 {
                *owner = *target;
            }
        }
        let before = config.clone();
        let delta = ConfigDelta::new(&before, before.groups(), &targets, &owners);
        assert_eq!(ConfigDelta::decode(delta.encode()).as_ref(), Ok(&delta));
        config.apply(&delta).unwrap();
        assert_eq!(
            (config.targets(), config.owners()),
            (&targets[..], &owners[..])
        );
        for (before, after) in before.rows().zip(config.rows()) {
            let num = config.num();
            let since = if before.owner == after.owner {
                (before.owner_since, before.previous)
            } else {
                (num, before.owner)
            };
            assert_eq!((after.owner_since, after.previous), since);
            let target_since = if before.target == after.target {
                before.target_since
            } else {
                num
            };
            assert_eq!(after.target_since, target_since);
        }
        assert_eq!(ShardConfig::decode(config.encode()).as_ref(), Ok(&config));
    }
}
