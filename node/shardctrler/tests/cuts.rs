//! A cut alone changes the owner of a shard, in exactly the state that it names; groups leave when they are drained.

// Helpers of tests may panic as tests do.
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{GENESIS, Replica, join, leave, move_shard, report};
use shardctrler::{Change, CtrlError, Cut, Drained, HistoryLimits, MAX_CUTS, Query, Response};
use types::{Assignment, ConfigNum, Gid, Incarnation, JournalId, ShardConfig, ShardId};

/// Groups 1 and 2 have five shards each and have settled, in configuration 1.
fn two() -> Replica {
    let mut replica = Replica::new(GENESIS);
    replica.done(&join(&[1, 2]));
    replica.settle();
    replica
}

/// The same, and shard 0 is to go from group 1 to group 2.
fn moving() -> Replica {
    let mut replica = two();
    replica.done(&move_shard(0, 2));
    replica
}

/// The same, and shard 0 has gone to group 2 in configuration 3, and is to go back; but neither group has settled.
fn unsettled() -> Replica {
    let mut replica = moving();
    let cut = replica.cut_now(0);
    assert_eq!(replica.cut([cut]), (1, 3));
    replica.done(&move_shard(0, 1));
    replica
}

#[test]
fn shards_that_nobody_has_owned_get_their_owner_at_once() {
    let mut replica = Replica::new(GENESIS);
    assert_eq!(replica.done(&join(&[1, 2])), (1, 10));
    let config = replica.latest();
    assert_eq!(config.owners(), config.targets());
    let first = |row: Assignment| (row.previous, row.owner_since, row.target_since);
    let expected = (Gid::NONE, ConfigNum(1), ConfigNum(1));
    assert!(config.rows().all(|row| first(row) == expected));
}

#[test]
fn only_a_cut_changes_an_owner() {
    let mut replica = two();
    assert_eq!(replica.done(&move_shard(0, 2)), (2, 1));
    replica.settle();
    replica.done(&join(&[3]));
    replica.settle();
    let row = replica.latest().row(ShardId(0));
    assert_eq!((row.owner, row.owner_since), (Gid(1), ConfigNum(1)));
    assert_eq!(
        (row.target, row.target_since),
        (Gid(2), ConfigNum(2)),
        "it was moved by hand"
    );
    let due = |replica: &Replica, gid| replica.machine.progress()[&Gid(gid)].due;
    assert_eq!(due(&replica, 1), ConfigNum(1), "nothing to do since");
    let cut = replica.cut_now(0);
    assert_eq!(replica.cut([cut]), (1, 4));
    let row = replica.latest().row(ShardId(0));
    assert_eq!((row.owner, row.owner_since), (Gid(2), ConfigNum(4)));
    assert_eq!((row.previous, row.target_since), (Gid(1), ConfigNum(2)));
    for (gid, expected) in [(1, 4), (2, 4), (3, 2)] {
        assert_eq!(due(&replica, gid), ConfigNum(expected), "group {gid}");
    }
    let configs = replica.after(1, 9, None);
    assert!(configs.deltas[0].moves.is_empty(), "targets alone");
    assert!(configs.deltas[2].is_cut(), "owners alone");
}

/// The journal that a report names proves that the owner serves the shard, so a group that owes a confirmation holds nothing up.
#[test]
fn a_cut_waits_for_no_report() {
    let mut replica = unsettled();
    let progress = |replica: &Replica, gid| {
        let it = replica.machine.progress()[&Gid(gid)];
        (it.settled.0, it.due.0, it.is_settled())
    };
    for gid in [1, 2] {
        assert_eq!(progress(&replica, gid), (1, 3, false));
    }
    let cut = replica.cut_now(0);
    replica.restart();
    assert_eq!(replica.cut([cut]), (1, 5));
    let row = replica.latest().row(ShardId(0));
    assert_eq!((row.owner, row.owner_since), (Gid(1), ConfigNum(5)));
    assert_eq!((row.previous, row.target_since), (Gid(2), ConfigNum(4)));
    // Reports settle the latest change of each group, and change no owner.
    for gid in [1, 2] {
        replica.report(gid, 4);
        assert_eq!(progress(&replica, gid), (4, 5, false));
        replica.report(gid, 5);
        assert_eq!(progress(&replica, gid), (5, 5, true));
    }
    assert_eq!(replica.machine.latest().num(), ConfigNum(5));
}

#[test]
fn a_target_that_returns_to_the_owner_ends_the_move() {
    let mut replica = moving();
    let cut = replica.cut_now(0);
    replica.done(&move_shard(0, 1));
    assert_eq!(replica.cut([cut]), (0, 3));
    replica.settle();
    let row = replica.latest().row(ShardId(0));
    assert_eq!((row.owner, row.owner_since), (Gid(1), ConfigNum(1)));
    assert_eq!(row.target_since, ConfigNum(3));
    let cut = replica.cut_now(0);
    assert_eq!(replica.cut([cut]), (0, 3), "nothing to cut");
}

/// Every field counts, and nothing else does.
#[test]
fn a_cut_is_compared_field_by_field() {
    let (shard, good) = moving().cut_now(0);
    let more = |num: ConfigNum| ConfigNum(num.0 + 1);
    let wrong: [Cut; 6] = [
        Cut {
            owner: Gid(2),
            ..good
        },
        Cut {
            owner_incarnation: Incarnation(9),
            ..good
        },
        Cut {
            owner_since: more(good.owner_since),
            ..good
        },
        Cut {
            target: Gid(1),
            ..good
        },
        Cut {
            target_incarnation: Incarnation(0),
            ..good
        },
        Cut {
            target_since: ConfigNum(good.target_since.0 - 1),
            ..good
        },
    ];
    let mut replica = moving();
    let stored = replica.stored();
    for wrong in wrong {
        assert_eq!(replica.cut([(shard, wrong)]), (0, 2), "{wrong:?}");
    }
    assert_eq!(replica.cut([(ShardId(1), good)]), (0, 2), "another shard's");
    assert_eq!(replica.cut([]), (0, 2));
    assert_eq!(replica.stored(), stored);
    let other_journal = Cut {
        journal: JournalId(good.journal.0 + 1),
        ..good
    };
    assert_eq!(replica.cut([(shard, other_journal)]), (1, 3));
    let row = replica.latest().row(shard);
    assert_eq!((row.owner, row.owner_since), (Gid(2), ConfigNum(3)));
    assert_eq!(row.target_since, good.target_since);
    assert_eq!(replica.cut([(shard, good)]), (0, 3), "once only");
}

#[test]
fn a_cut_that_comes_after_the_target_changed_is_void() {
    let mut replica = moving();
    let (shard, stale) = replica.cut_now(0);
    replica.done(&join(&[3]));
    replica.done(&move_shard(0, 3));
    assert_eq!(replica.cut([(shard, stale)]).0, 0);
    // Back at the same target, but since another configuration: the copy that the cut speaks of was dropped.
    replica.done(&move_shard(0, 2));
    assert_eq!(replica.cut([(shard, stale)]).0, 0);
    let now = replica.cut_now(0);
    assert_eq!(replica.cut([now]).0, 1);
}

#[test]
fn cuts_come_in_batches_and_at_any_time() {
    let mut replica = two();
    for shard in 0..4 {
        replica.done(&move_shard(shard, 2));
    }
    let cuts: Vec<(ShardId, Cut)> = (0..4).map(|shard| replica.cut_now(shard)).collect();
    let num = replica.machine.latest().num().0;
    let mut stale = cuts[1];
    stale.1.owner_since = ConfigNum(0);
    assert_eq!(
        replica.cut([cuts[0], stale]),
        (1, num + 1),
        "the others of a batch count"
    );
    // Log time stands still, as it does while a leader's clock is behind it.
    assert_eq!(
        replica.cut(cuts),
        (3, num + 2),
        "three, in one configuration"
    );
    assert_eq!(replica.latest().moving(), 0);
}

#[test]
fn cuts_that_make_no_sense_are_refused() {
    let mut replica = moving();
    let (_, cut) = replica.cut_now(0);
    let cuts = BTreeMap::from([(ShardId(10), cut)]);
    let error = CtrlError::NoShard {
        shard: ShardId(10),
        shards: 10,
    };
    assert_eq!(replica.refused(&Change::Cut { cuts }), error);
    let many = (0..=u32::try_from(MAX_CUTS).unwrap()).map(|shard| (ShardId(shard), cut));
    let cuts = many.collect();
    let limit = MAX_CUTS as u64;
    let error = CtrlError::TooManyCuts { limit };
    assert_eq!(replica.refused(&Change::Cut { cuts }), error);
}

#[test]
fn a_group_that_joins_and_leaves_swaps_nothing() {
    let mut replica = two();
    let before = replica.latest();
    for _ in 0..2 {
        replica.done(&join(&[3]));
        assert!(replica.latest().moving() > 0);
        replica.done(&leave(&[3]));
        assert_eq!(replica.latest().targets(), before.targets());
        assert_eq!(replica.latest().owners(), before.owners());
        let gone = !replica.latest().groups().contains_key(&Gid(3));
        assert!(gone, "it had nothing");
        // Again, while all shards are on their way: then some stay where they are.
        for shard in 0..10 {
            let to = 3 - replica.latest().target(ShardId(shard)).0;
            replica.done(&move_shard(shard, to));
        }
        replica.done(&join(&[3]));
        replica.done(&leave(&[3]));
        assert!(replica.latest().moving() < 10);
        assert_eq!(replica.latest().owners(), before.owners());
        for shard in 0..10 {
            let owner = before.owner(ShardId(shard)).0;
            replica.apply(None, move_shard(shard, owner));
        }
    }
}

#[test]
fn a_leaving_group_stays_until_it_owns_fences_and_owes_nothing() {
    let mut replica = two();
    replica.done(&leave(&[2]));
    let config = replica.latest();
    assert!(config.groups()[&Gid(2)].leaving);
    assert_eq!(config.members().collect::<Vec<_>>(), [Gid(1)]);
    assert_eq!(config.owned_by(Gid(2)).len(), 5, "no copy has caught up");
    let drained = |replica: &Replica| replica.config(None).is_drained(Gid(2), Incarnation(1));
    replica.settle();
    assert!(!drained(&replica), "it owns shards");
    let rows = (0..).zip(config.rows());
    let moving = rows.filter(|(_, row)| row.is_moving());
    let cuts: Vec<_> = moving.map(|(shard, _)| replica.cut_now(shard)).collect();
    let (last, rest) = cuts.split_last().unwrap();
    assert_eq!(replica.cut(rest.to_vec()), (4, 3));
    replica.settle();
    assert!(!drained(&replica), "it owns one");
    assert_eq!(replica.cut([*last]), (1, 4));
    assert_eq!(replica.latest().owners(), [Gid(1); 10]);
    replica.report(1, 4);
    replica.report(2, 3);
    replica.restart();
    assert!(!drained(&replica), "it has one fenced");
    replica.report(2, 4);
    assert!(drained(&replica));
    let config = replica.latest();
    assert_eq!(config.num(), ConfigNum(5));
    assert!(!config.groups().contains_key(&Gid(2)));
    assert!(!replica.machine.progress().contains_key(&Gid(2)));
    let expected = Drained {
        forgotten: false,
        retired: false,
        incarnation: Incarnation(1),
        gone_in: ConfigNum(5),
    };
    replica.restart();
    assert_eq!(replica.machine.drained()[&Gid(2)], expected);
    // Its last word may come twice.
    replica.report(2, 5);
    assert_eq!(replica.machine.latest().num(), ConfigNum(5));
}

/// A leaving group that has given everything away, but hasn't settled that, may still have a shard fenced, or owe a confirmation.
#[test]
fn a_leaving_group_that_owes_a_confirmation_stays() {
    let mut replica = unsettled();
    // Group 2 has shard 0 since configuration 3, which it hasn't settled: it may still wait for group 1 to delete its copy.
    replica.done(&leave(&[2]));
    replica.report(1, 5);
    let cuts: Vec<_> = (0..10)
        .filter(|shard| replica.latest().row(ShardId(*shard)).is_moving())
        .map(|shard| replica.cut_now(shard))
        .collect();
    assert_eq!(cuts.len(), 6);
    assert_eq!(replica.cut(cuts), (6, 6), "shard 0 too");
    assert_eq!(replica.latest().owners(), [Gid(1); 10]);
    let drained = |replica: &Replica| replica.config(None).is_drained(Gid(2), Incarnation(1));
    // What group 1 settles says nothing of group 2.
    replica.report(1, 6);
    for settled in 2..6 {
        replica.report(2, settled);
        replica.restart();
        assert!(!drained(&replica), "{settled}");
        assert!(replica.latest().groups().contains_key(&Gid(2)));
    }
    replica.report(2, 6);
    assert!(drained(&replica));
    assert!(!replica.latest().groups().contains_key(&Gid(2)));
}

/// Group 3 is to get shards, but has none: its copies don't count.
#[test]
fn a_target_that_leaves_before_a_cut_is_drained_at_once() {
    let mut replica = two();
    replica.done(&join(&[3]));
    let at = replica.latest().rows().position(|row| row.is_moving());
    let (shard, cut) = replica.cut_now(u32::try_from(at.unwrap()).unwrap());
    replica.done(&leave(&[3]));
    assert!(replica.config(None).is_drained(Gid(3), Incarnation(2)));
    assert_eq!(replica.latest().moving(), 0);
    assert_eq!(replica.cut([(shard, cut)]), (0, 3));
}

#[test]
fn a_group_that_is_unknown_is_not_drained() {
    let replica = two();
    let answer = replica.config(None);
    assert!(
        !answer.is_drained(Gid(9), Incarnation(1)),
        "absence proves nothing"
    );
    assert!(!answer.is_drained(Gid(1), Incarnation(1)));
}

#[test]
fn a_leaving_group_that_joins_again_is_the_same_and_one_that_was_drained_is_not() {
    let mut replica = two();
    replica.done(&leave(&[2]));
    replica.done(&join(&[2]));
    let group = replica.latest().groups()[&Gid(2)].clone();
    assert_eq!((group.incarnation, group.leaving), (Incarnation(1), false));
    replica.arrive();
    replica.done(&leave(&[2]));
    replica.arrive();
    let num = replica.machine.latest().num().0;
    assert!(replica.config(None).is_drained(Gid(2), Incarnation(1)));
    replica.done(&join(&[2]));
    let incarnation = replica.latest().groups()[&Gid(2)].incarnation;
    assert_eq!(incarnation, Incarnation(num + 1));
    let answer = replica.config(None);
    assert!(
        answer.is_drained(Gid(2), Incarnation(1)),
        "the earlier one still is"
    );
    assert!(!answer.is_drained(Gid(2), incarnation));
    replica.restart();
    // A cut that names the earlier one is void.
    let at = replica.latest().rows().position(|row| row.is_moving());
    let (shard, cut) = replica.cut_now(u32::try_from(at.unwrap()).unwrap());
    let of_earlier = Cut {
        target_incarnation: Incarnation(1),
        ..cut
    };
    replica.settle();
    assert_eq!(replica.cut([(shard, of_earlier)]).0, 0);
    assert_eq!(replica.cut([(shard, cut)]).0, 1);
}

#[test]
fn peoples_changes_are_kept_longer_than_cuts() {
    let limits = HistoryLimits {
        keep: 3,
        keep_cuts: 2,
        step: 1,
        ..HistoryLimits::default()
    };
    let mut replica = Replica::with_limits(GENESIS, limits);
    replica.done(&join(&[1, 2]));
    replica.settle();
    let mut peoples = Vec::new();
    for _ in 0..6 {
        // One cut for both.
        for shard in 0..2 {
            let to = 3 - replica.latest().target(ShardId(shard)).0;
            peoples.push(replica.done(&move_shard(shard, to)).0);
        }
        replica.arrive();
    }
    let kept = peoples.iter().rev().take(3);
    for num in kept {
        assert_eq!(replica.config(Some(*num)).config.num(), ConfigNum(*num));
    }
    let gone = Query::Config {
        num: Some(ConfigNum(peoples[2])),
    };
    assert!(matches!(
        replica.query(&gone),
        Response::Refused(CtrlError::Compacted { .. })
    ));
}

#[test]
fn reports_that_settle_nothing_make_no_configuration() {
    let mut replica = unsettled();
    let num = replica.machine.latest().num();
    assert_eq!(replica.apply(None, report(1, 2)), Response::Reported);
    assert_eq!(replica.apply(None, report(1, 2)), Response::Reported);
    assert_eq!(replica.apply(None, report(9, 2)), Response::Reported);
    assert_eq!(replica.machine.latest().num(), num);
    assert_eq!(
        ShardConfig::decode(replica.latest().encode()),
        Ok((*replica.latest()).clone())
    );
}
