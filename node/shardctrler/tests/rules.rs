//! Tests of the effect of each change, and of each typed refusal.

mod common;

use std::collections::BTreeMap;

use common::{
    GENESIS, Replica, addresses, assert_balanced, counts, groups, join, leave, move_shard, moves,
    report, session,
};
use replica::memory::MemoryState;
use replica::{Applied, MAX_BIRTH_AHEAD_MS, StateMachine, StateStore};
use shardctrler::{
    Change, Command, CtrlError, Genesis, GroupKind, GroupProgress, Query, Response, Shardctrler,
};
use types::{ConfigNum, Gid, MAX_GROUP_ADDRESSES, MAX_GROUPS, Sequence, ShardConfig, ShardId};

/// Groups 1, 2 and 3 have joined, as configuration 1.
fn three() -> Replica {
    let mut replica = Replica::new(GENESIS);
    assert_eq!(replica.done(&join(&[1, 2, 3])), (1, 10));
    replica
}

fn unchanged(num: u64) -> Response {
    Response::Changed {
        num: ConfigNum(num),
        changed: false,
        moved_shards: 0,
    }
}

fn join_as(gid: u64, addresses: &[&str]) -> Change {
    let addresses = addresses.iter().map(|it| (*it).to_owned()).collect();
    let groups = BTreeMap::from([(Gid(gid), addresses)]);
    Change::Join { groups }
}

#[test]
fn the_first_join_gives_all_shards() {
    let mut replica = Replica::new(GENESIS);
    let empty = replica.config(None);
    assert_eq!((empty.latest, empty.oldest), (ConfigNum(0), ConfigNum(0)));
    assert_eq!(*empty.config, ShardConfig::empty(10));
    assert_eq!(replica.done(&join(&[4])), (1, 10));
    let answer = replica.config(None);
    assert_eq!(answer.config.member_addresses(), groups(&[4]));
    assert_eq!(answer.config.owners(), [Gid(4); 10]);
    assert_eq!(answer.config.targets(), [Gid(4); 10]);
    let progress = GroupProgress {
        settled: ConfigNum(0),
        held: ConfigNum(0),
        due: ConfigNum(1),
    };
    let progress = BTreeMap::from([(Gid(4), progress)]);
    assert_eq!(answer.progress, progress);
}

#[test]
fn joins_and_leaves_spread_shards_with_the_fewest_moves() {
    let mut replica = three();
    let of_three = replica.latest();
    assert_eq!(
        counts(&of_three).into_values().collect::<Vec<_>>(),
        [4, 3, 3]
    );
    assert_eq!(replica.done(&join(&[4])), (2, 2));
    assert_balanced(&replica.latest());
    assert_eq!(replica.done(&leave(&[4])), (3, 2));
    assert_balanced(&replica.latest());
    assert_eq!(replica.done(&leave(&[1, 3])), (4, 7));
    assert_eq!(replica.latest().targets(), [Gid(2); 10]);
}

#[test]
fn with_more_groups_than_shards_none_has_two() {
    let mut replica = Replica::new(GENESIS);
    let many: Vec<u64> = (1..=14).collect();
    replica.done(&join(&many));
    assert_balanced(&replica.latest());
    let idle = counts(&replica.latest());
    let idle = idle.into_iter().find(|(_, count)| *count == 0).unwrap().0;
    // Whom nobody misses costs nobody a shard.
    assert_eq!(replica.done(&leave(&[idle.0])), (2, 0));
}

#[test]
fn what_is_so_already_changes_nothing() {
    let mut replica = three();
    assert_eq!(replica.apply(None, join(&[1, 3])), unchanged(1));
    let mut turned = groups(&[2]);
    turned.get_mut(&Gid(2)).unwrap().reverse();
    let turned = Change::Join { groups: turned };
    assert_eq!(replica.apply(None, turned), unchanged(1));
    let owner = replica.latest().target(ShardId(0));
    assert_eq!(replica.apply(None, move_shard(0, owner.0)), unchanged(1));
    assert_eq!(replica.latest().member_addresses(), groups(&[1, 2, 3]));
    assert!(replica.machine.moved().is_empty());
}

#[test]
fn other_addresses_move_no_shard() {
    let mut replica = three();
    let before = replica.latest();
    // Unbalanced, which a join of new addresses is no reason to mend.
    replica.done(&move_shard(9, 1));
    replica.done(&move_shard(8, 1));
    let moved = replica.latest();
    assert_eq!(moves(before.targets(), moved.targets()), 2);
    assert_eq!(replica.done(&join_as(2, &["new:1", "g2-0:7000"])), (4, 0));
    let after = replica.latest();
    assert_eq!(after.targets(), moved.targets());
    assert_eq!(after.addresses(Gid(2)), ["new:1", "g2-0:7000"]);
    assert_eq!(after.addresses(Gid(1)), addresses(1));
}

#[test]
fn groups_may_swap_addresses_in_one_change() {
    let mut replica = three();
    let swapped = BTreeMap::from([(Gid(1), addresses(2)), (Gid(2), addresses(1))]);
    let swap = Change::Join {
        groups: swapped.clone(),
    };
    assert_eq!(replica.done(&swap), (2, 0));
    assert_eq!(replica.latest().addresses(Gid(1)), swapped[&Gid(1)]);
}

#[test]
fn a_move_is_honoured_until_a_rebalance_must_touch_it() {
    let mut replica = three();
    let was = replica.latest().target(ShardId(0));
    let to = if was == Gid(2) { 3 } else { 2 };
    assert_eq!(replica.done(&move_shard(0, to)), (2, 1));
    // A new group: the others give, but not this shard.
    replica.done(&join(&[4]));
    assert_balanced(&replica.latest());
    assert_eq!(replica.latest().target(ShardId(0)), Gid(to));
    replica.done(&join(&[5]));
    replica.done(&leave(&[4, 5]));
    assert_eq!(replica.latest().target(ShardId(0)), Gid(to));
    assert!(replica.machine.moved().contains(&ShardId(0)));
    // Its group goes: it must be touched, and nobody holds it where it lands.
    replica.done(&leave(&[to]));
    assert_ne!(replica.latest().target(ShardId(0)), Gid(to));
    assert!(replica.machine.moved().is_empty());
}

#[test]
fn moved_shards_give_way_when_their_group_has_too_many() {
    let mut replica = three();
    for shard in 0..10 {
        let owner = replica.latest().target(ShardId(shard));
        if owner != Gid(1) {
            replica.done(&move_shard(shard, 1));
        }
    }
    assert_eq!(replica.latest().targets(), [Gid(1); 10]);
    assert_eq!(replica.machine.moved().len(), 6);
    replica.done(&join(&[4]));
    assert_balanced(&replica.latest());
    // Group 1 keeps as many as it may, all of them moved by hand.
    let latest = replica.latest();
    let held = (0..10)
        .map(ShardId)
        .filter(|shard| latest.target(*shard) == Gid(1));
    let held: Vec<ShardId> = held.collect();
    assert_eq!(held.len(), 3);
    assert!(
        held.iter()
            .all(|shard| replica.machine.moved().contains(shard))
    );
    assert_eq!(replica.machine.moved().len(), 3);
}

#[test]
fn joins_that_make_no_sense_are_refused() {
    let mut replica = three();
    let none = Change::Join {
        groups: BTreeMap::new(),
    };
    assert_eq!(replica.refused(&none), CtrlError::NoGroups);
    assert_eq!(replica.refused(&join(&[0, 4])), CtrlError::GidZero);
    let many: Vec<String> = (0..=MAX_GROUP_ADDRESSES)
        .map(|n| format!("a:{n}"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let bad: [&[&str]; 7] = [
        &[],
        &[""],
        &["host"],
        &["host:port"],
        &[":1"],
        &["a:1", "a:1"],
        &many,
    ];
    for bad in bad {
        match replica.refused(&join_as(4, bad)) {
            CtrlError::BadAddresses { gid, reason } => {
                assert_eq!(gid, Gid(4));
                assert!(!reason.to_string().is_empty());
            }
            other => panic!("{bad:?}: {other:?}"),
        }
    }
}

#[test]
fn a_node_is_part_of_one_group() {
    let mut replica = three();
    let taken = |address: &str, owner| CtrlError::AddressTaken {
        address: address.to_owned(),
        owner: Gid(owner),
    };
    let theirs = join_as(4, &["new:1", "g2-1:7000"]);
    assert_eq!(replica.refused(&theirs), taken("g2-1:7000", 2));
    let update = join_as(1, &["g3-0:7000"]);
    assert_eq!(replica.refused(&update), taken("g3-0:7000", 3));
    let mut twice = groups(&[4, 5]);
    twice.insert(Gid(6), addresses(5));
    let twice = Change::Join { groups: twice };
    assert_eq!(replica.refused(&twice), taken("g5-0:7000", 5));
    // While its group leaves, the address is in use; when it is drained, it is free.
    replica.done(&leave(&[2]));
    assert_eq!(replica.refused(&theirs), taken("g2-1:7000", 2));
    replica.arrive();
    replica.done(&theirs);
}

#[test]
fn too_many_groups_are_refused() {
    let genesis = Genesis {
        shards: 10,
        ..GENESIS
    };
    let mut replica = Replica::new(genesis);
    let limit = MAX_GROUPS as u64;
    let error = CtrlError::TooManyGroups { limit };
    let all: Vec<u64> = (1..=limit).collect();
    let more: Vec<u64> = (1..=limit + 1).collect();
    assert_eq!(replica.refused(&join(&more)), error);
    replica.done(&join(&all));
    assert_eq!(replica.refused(&join(&[limit + 1])), error);
    assert_eq!(replica.apply(None, join(&[limit])), unchanged(1));
}

#[test]
fn leaves_that_make_no_sense_are_refused() {
    let mut replica = Replica::new(GENESIS);
    assert_eq!(
        replica.refused(&leave(&[1])),
        CtrlError::UnknownGroup(Gid(1))
    );
    replica.done(&join(&[1, 2, 3]));
    assert_eq!(replica.refused(&leave(&[])), CtrlError::NoGroups);
    assert_eq!(replica.refused(&leave(&[0, 1])), CtrlError::GidZero);
    assert_eq!(
        replica.refused(&leave(&[1, 9])),
        CtrlError::UnknownGroup(Gid(9))
    );
    assert_eq!(replica.refused(&leave(&[1, 2, 3])), CtrlError::LastGroup);
    replica.done(&leave(&[1, 2]));
    assert_eq!(replica.refused(&leave(&[3])), CtrlError::LastGroup);
    assert_eq!(
        replica.apply(None, leave(&[1])),
        unchanged(2),
        "it leaves already"
    );
    assert_eq!(
        replica.refused(&move_shard(0, 1)),
        CtrlError::Leaving(Gid(1))
    );
    replica.arrive();
    assert_eq!(
        replica.refused(&leave(&[1])),
        CtrlError::UnknownGroup(Gid(1))
    );
}

#[test]
fn moves_that_make_no_sense_are_refused() {
    let mut replica = Replica::new(GENESIS);
    assert_eq!(
        replica.refused(&move_shard(0, 1)),
        CtrlError::UnknownGroup(Gid(1))
    );
    replica.done(&join(&[1, 2]));
    assert_eq!(replica.refused(&move_shard(0, 0)), CtrlError::GidZero);
    assert_eq!(
        replica.refused(&move_shard(0, 7)),
        CtrlError::UnknownGroup(Gid(7))
    );
    for shard in [10, u32::MAX] {
        let error = CtrlError::NoShard {
            shard: ShardId(shard),
            shards: 10,
        };
        assert_eq!(replica.refused(&move_shard(shard, 1)), error);
    }
}

#[test]
fn news_of_groups_only_adds() {
    let mut replica = three();
    assert_eq!(replica.refused(&report(0, 1)), CtrlError::GidZero);
    let settled = |replica: &Replica, gid| {
        let progress = replica.machine.progress();
        progress.get(&Gid(gid)).map(|it| it.settled.0)
    };
    replica.report(1, 1);
    replica.done(&join(&[4]));
    assert_eq!(
        settled(&replica, 4),
        Some(1),
        "nothing was asked of it before"
    );
    replica.report(1, 2);
    replica.report(1, 1);
    assert_eq!(settled(&replica, 1), Some(2));
    replica.report(9, 2);
    assert_eq!(settled(&replica, 9), None);
}

#[test]
fn a_retry_is_answered_as_the_first_time() {
    let mut replica = three();
    let first = replica.apply(session(1_000_000, 1, 1), move_shard(0, 3));
    assert_eq!(
        first,
        Response::Changed {
            num: ConfigNum(2),
            changed: true,
            moved_shards: 1
        }
    );
    replica.done(&move_shard(0, 2));
    for _ in 0..2 {
        assert_eq!(
            replica.apply(session(1_000_000, 1, 1), move_shard(0, 3)),
            first
        );
        assert_eq!(replica.latest().target(ShardId(0)), Gid(2));
        replica.restart();
    }
    // A refusal is an answer as well, also when the reason is gone.
    let taken = join_as(7, &["g2-0:7000"]);
    let refusal = replica.apply(session(1_000_000, 2, 1), taken.clone());
    assert!(matches!(
        refusal,
        Response::Refused(CtrlError::AddressTaken { .. })
    ));
    replica.done(&leave(&[2]));
    replica.arrive();
    replica.restart();
    assert_eq!(replica.apply(session(1_000_000, 2, 1), taken), refusal);
    assert_eq!(replica.machine.session_count(), 1);
}

#[test]
fn sessions_that_make_no_sense_are_refused() {
    let mut replica = three();
    let birth = replica.time;
    let mut refused = |time: u64, session, change: &Change| {
        replica.time = time;
        match replica.apply(session, change.clone()) {
            Response::Refused(error) => error,
            other => panic!("{other:?}"),
        }
    };
    let change = join(&[1]);
    let bad = |sequence, acked_below| CtrlError::BadSequence {
        sequence: Sequence(sequence),
        acked_below: Sequence(acked_below),
    };
    assert_eq!(refused(birth, session(birth, 0, 0), &change), bad(0, 1));
    assert_eq!(refused(birth, session(birth, 2, 3), &change), bad(2, 3));
    let ahead_ms = MAX_BIRTH_AHEAD_MS + 1;
    let future = CtrlError::SessionFromFuture { ahead_ms };
    assert_eq!(
        refused(birth, session(birth + ahead_ms, 1, 1), &change),
        future
    );

    assert_eq!(
        replica.apply(session(birth, 3, 3), change.clone()),
        unchanged(1)
    );
    let stale = CtrlError::StaleSequence {
        sequence: Sequence(2),
        acked_below: Sequence(3),
    };
    let late = replica.apply(session(birth, 2, 1), change.clone());
    assert_eq!(late, Response::Refused(stale));
    for sequence in 4..=6 {
        assert_eq!(
            replica.apply(session(birth, sequence, 3), change.clone()),
            unchanged(1)
        );
    }
    let limit = CtrlError::SessionLimit {
        what: "the unacknowledged results of a session",
        limit: 4,
    };
    let full = replica.apply(session(birth, 7, 3), change.clone());
    assert_eq!(full, Response::Refused(limit));
    for more in 1..6 {
        assert_eq!(
            replica.apply(session(birth + more, 1, 1), change.clone()),
            unchanged(1)
        );
    }
    let limit = CtrlError::SessionLimit {
        what: "the sessions",
        limit: 6,
    };
    let full = replica.apply(session(birth + 6, 1, 1), change.clone());
    assert_eq!(full, Response::Refused(limit));
    // The silent ones are forgotten, and make room.
    replica.time = birth + 20_000;
    assert_eq!(
        replica.apply(session(birth + 20_000, 1, 1), change.clone()),
        unchanged(1)
    );
    assert!(replica.machine.session_count() < 6);
    for restarted in [false, true] {
        if restarted {
            replica.restart();
        }
        assert_eq!(
            replica.apply(session(birth, 8, 8), change.clone()),
            Response::Refused(CtrlError::SessionExpired)
        );
    }
}

#[test]
fn reports_need_no_session_and_use_none() {
    let mut replica = three();
    let first = session(1, 1, 1);
    assert_eq!(replica.apply(first, report(1, 1)), Response::Reported);
    assert_eq!(replica.machine.session_count(), 0);
    assert_eq!(replica.machine.progress()[&Gid(1)].settled, ConfigNum(1));
}

#[test]
fn only_controllers_data_is_taken() {
    for kind in [GroupKind::Standalone, GroupKind::Shards] {
        let mut state = MemoryState::new();
        let genesis = Genesis { kind, ..GENESIS };
        state
            .commit(genesis.to_batch(), Applied::default())
            .unwrap();
        let error = Shardctrler::new().reload(&state).unwrap_err().to_string();
        assert!(error.contains(kind.name()), "{error}");
    }
}

#[test]
fn a_state_that_is_not_created_is_not_used() {
    let state = MemoryState::new();
    let mut machine = Shardctrler::new();
    machine.reload(&state).unwrap();
    assert_eq!(machine.genesis(), None);
    assert_eq!(machine.latest().shards(), 0);
    assert!(machine.query(&Query::Config { num: None }, &state).is_err());
}

#[test]
fn malformed_operations_change_nothing() {
    let mut replica = three();
    let stored = replica.stored();
    let good = Command {
        session: None,
        change: join(&[9]),
    };
    let good = good.encode();
    for bad in [
        good.slice(..good.len() - 1),
        good.slice(1..),
        bytes::Bytes::new(),
    ] {
        let response = replica.apply_bytes(bad);
        assert!(matches!(
            response,
            Response::Refused(CtrlError::Malformed(_))
        ));
    }
    assert_eq!(replica.stored(), stored);
}
