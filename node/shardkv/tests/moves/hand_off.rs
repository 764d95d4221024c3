//! Tests of the changes that steps make, of their order, and of steps that aren't due.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::StoreError;
use replica::memory::MemoryState;
use replica::{Applied, GroupKind, StateMachine, StateStore};
use shardkv::{
    Configure, Cursor, Genesis, KvError, Ownership, PageRequest, Query, Response, ShardKv,
    ShardState, Step,
};
use types::{ClusterId, ConfigNum, Gid, ShardConfig, ShardId};

use crate::common::{self, GENESIS, SHARDS_GENESIS, append, bytes, delete, put, session};
use crate::stage::{
    Configs, Group, SHARD, SHARDS, key, length, not_ready, tagged, two, wrong_group,
};

#[test]
fn a_shard_moves_with_its_data_and_sessions_and_leaves_nothing() {
    let (mut a, mut b, mut configs) = two([1_000, 60]);
    let key = key();
    assert_eq!(a.write(900, 1, append(&key, "x")), length(1));
    for n in 0..50 {
        a.replica.apply(1_000, None, put(&tagged(n), "value"));
    }
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    let get = Query::Get { key: bytes(&key) };
    assert_eq!(a.write(900, 2, append(&key, "y")), wrong_group(2));
    assert_eq!(b.write(900, 2, append(&key, "y")), not_ready());
    assert_eq!(a.replica.query(&get), wrong_group(2));

    let parts = a.parts(2, 100);
    assert!(parts.len() > 3, "{}", parts.len());
    for part in parts {
        assert_eq!(b.replica.query(&get), not_ready());
        b.take(&Step::Install(part));
    }
    assert_eq!(b.replica.get(&key).as_deref(), Some("x"));
    // The retry of what was answered at A, and the write that A refused.
    assert_eq!(b.write(900, 1, append(&key, "x")), length(1));
    assert_eq!(b.write(900, 2, append(&key, "y")), length(2));

    assert_eq!((a.settled(), b.settled()), (1, 1));
    b.acknowledge(&mut a, 2);
    assert_eq!((a.settled(), b.settled()), (2, 2));
    assert_eq!(a.state(), "absent");
    assert_eq!((a.stored(), b.stored()), (0, 52));
    assert_eq!(a.replica.machine.session_count(), 0);
    assert_eq!(a.write(900, 2, append(&key, "y")), wrong_group(2));
}

#[test]
fn a_write_behind_the_fence_in_one_batch_is_refused_and_not_remembered() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    let key = key();
    let second = configs.give(2);
    let write = |sequence| {
        shardkv::Command {
            session: session(900, sequence, 1),
            write: append(&key, "x"),
        }
        .encode()
    };
    let operations = [write(1), a.step_to(&second).encode(), write(2), write(1)];
    let steps: Vec<_> = operations
        .into_iter()
        .zip(10..)
        .map(|(operation, index)| common::Step {
            index,
            time: 1_000,
            max_value_bytes: 100,
            operation,
        })
        .collect();
    let responses = a.replica.batch(&steps);
    let expected = [length(1), Response::Stepped, wrong_group(2), wrong_group(2)];
    assert_eq!(responses, expected);
    b.follow(&second);
    b.install_from(&a, 2);
    assert_eq!(b.write(900, 1, append(&key, "x")), length(1));
    assert_eq!(b.write(900, 2, append(&key, "x")), length(2));
}

#[test]
fn only_writes_that_would_be_refused_in_the_log_are_kept_out_of_it() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    let write = shardkv::Command {
        session: session(900, 1, 1),
        write: append(&key(), "x"),
    }
    .encode();
    let early = |group: &Group| group.replica.machine.refuse_early(&write);
    assert_eq!((early(&a), early(&b)), (None, Some(wrong_group(1))));
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    let on_its_way = Response::Refused(KvError::ShardNotReady { shard: SHARD });
    assert_eq!(
        (early(&a), early(&b)),
        (Some(wrong_group(2)), Some(on_its_way))
    );
    let step = a.step_to(&configs.give(2)).encode();
    assert_eq!(a.replica.machine.refuse_early(&step), None);
    assert_eq!(
        a.replica.machine.refuse_early(&Bytes::from_static(b"?")),
        None
    );
    b.install_from(&a, 2);
    assert_eq!(early(&b), None);
}

#[test]
fn two_groups_that_pull_from_each_other_both_finish() {
    let (mut a, mut b) = (Group::new(1, 1_000), Group::new(2, 1_000));
    let mut configs = Configs::new();
    let (first, swap) = (configs.next([2, 1, 1, 1, 1]), configs.give(2));
    let back = configs.next([2, 1, 1, 1, 1]);
    a.follow(&first);
    let key = key();
    a.write(900, 1, append(&key, "x"));
    b.follow(&first);
    for group in [&mut a, &mut b] {
        group.follow(&swap);
    }
    assert_eq!(
        (a.state().as_str(), b.state().as_str()),
        ("fenced2", "pulling2")
    );
    let other = ShardId(0);
    let has_other = |group: &Group| group.ownership().state(other).cloned();
    assert!(matches!(has_other(&a), Some(ShardState::Pulling { .. })));
    assert!(matches!(has_other(&b), Some(ShardState::Fenced { .. })));
    // Nobody has moved anything, so nothing can go back yet.
    a.refuse(&back, "takes s0");
    b.refuse(&back, "gives s0");
    b.install_from(&a, 2);
    assert_eq!(b.state(), "serving2");
    assert_eq!(b.ownership().pending_deletes.len(), 1);
    a.refuse(&back, "takes s0");
    assert_eq!(
        b.pull(3, Cursor::default(), 100),
        not_ready(),
        "not accepted"
    );
    b.acknowledge(&mut a, 2);
    assert_eq!((a.state().as_str(), a.stored()), ("absent", 0));
    // A's own pull isn't done, and B's fence stands.
    a.refuse(&back, "takes s0");
    b.refuse(&back, "gives s0");
    let (shard, config) = (other, ConfigNum(2));
    let pull = Query::Pull {
        shard,
        config,
        after: Cursor::default(),
        max_bytes: 100,
    };
    let Response::Chunk(chunk) = b.replica.query(&pull) else {
        panic!("it is fenced");
    };
    a.take(&Step::Install(*chunk));
    b.take(&Step::Delete { shard, config });
    a.take(&Step::Deleted { shard, config });
    assert_eq!((a.settled(), b.settled()), (2, 2));
    for group in [&mut a, &mut b] {
        group.follow(&back);
    }
    a.install_from(&b, 3);
    a.acknowledge(&mut b, 3);
    assert_eq!(
        (a.state().as_str(), b.state().as_str()),
        ("serving3", "absent")
    );
    assert_eq!(a.write(900, 1, append(&key, "x")), length(1));
    assert_eq!(b.stored(), 0);
}

#[test]
fn a_chain_is_walked_and_late_steps_of_each_hand_off_change_nothing() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    let mut c = Group::new(3, 1_000);
    a.write(900, 1, append(&key(), "x"));
    let configs = [configs.give(2), configs.give(3)];
    let [second, third] = &configs;
    let mut steps = Vec::new();
    for group in [&mut a, &mut b] {
        steps.push(group.step_to(second));
        group.follow(second);
    }
    // B doesn't pass on what it doesn't have.
    b.refuse(third, "takes");
    assert_eq!(b.pull(3, Cursor::default(), 100), not_ready(), "to come");
    // C skips what was before.
    steps.push(c.step_to(third));
    c.follow(third);
    assert_eq!((c.state().as_str(), c.settled()), ("pulling3", 2));
    let parts = a.parts(2, 20);
    b.install_from(&a, 2);
    for group in [&mut a, &mut b] {
        steps.push(group.step_to(third));
        group.follow(third);
    }
    assert_eq!(
        (a.state().as_str(), b.state().as_str()),
        ("fenced2", "fenced3")
    );
    // B still owes A, though the shard goes on.
    assert_eq!((a.settled(), b.settled()), (1, 1));
    b.acknowledge(&mut a, 2);
    assert_eq!((a.settled(), b.settled()), (3, 2));
    c.install_from(&b, 3);
    assert_eq!(c.write(900, 1, append(&key(), "x")), length(1));
    assert_eq!(c.write(900, 2, append(&key(), "y")), length(2));
    assert_eq!((b.state().as_str(), b.settled()), ("fenced3", 2));
    c.acknowledge(&mut b, 3);
    assert_eq!((b.state().as_str(), b.settled()), ("absent", 3));

    let before: Vec<_> = [&a, &b, &c]
        .map(|group| group.replica.state.pairs().clone())
        .into();
    for group in [&mut a, &mut b, &mut c] {
        for part in &parts {
            group.take(&Step::Install(part.clone()));
        }
        for step in &steps {
            match step {
                Step::Configure(step) if step.gid != group.gid => {
                    let refused = group.step(&Step::Configure(step.clone()));
                    assert!(matches!(refused, Response::Refused(KvError::Malformed(_))));
                }
                own => group.take(own),
            }
        }
        for config in [1, 2].map(ConfigNum) {
            let shard = SHARD;
            group.take(&Step::Delete { shard, config });
            group.take(&Step::Deleted { shard, config });
        }
        let foreign = Configure::to(third, Gid(9), ClusterId(9), &Ownership::default());
        let refused = group.step(&Step::Configure(foreign));
        assert!(matches!(refused, Response::Refused(KvError::Malformed(_))));
    }
    let after = [&a, &b, &c].map(|group| group.replica.state.pairs());
    assert!(after.into_iter().eq(&before));
}

#[test]
fn a_dead_group_delays_its_own_shards_only() {
    let mut b = Group::new(2, 1_000);
    let mut a = Group::new(1, 1_000);
    let mut configs = Configs::new();
    // Group 3 never says a word.
    for owners in [[3, 1, 1, 1, 1], [2, 1, 1, 1, 1], [2, 1, 1, 2, 1]] {
        let config = configs.next(owners);
        a.follow(&config);
        b.follow(&config);
    }
    a.write(900, 1, append(&key(), "x"));
    let pulls = |group: &Group, shard| {
        matches!(
            group.ownership().state(shard),
            Some(ShardState::Pulling { .. })
        )
    };
    assert!(pulls(&b, ShardId(0)) && pulls(&b, SHARD));
    b.install_from(&a, 3);
    b.acknowledge(&mut a, 3);
    assert_eq!(b.write(900, 1, append(&key(), "x")), length(1));
    assert!(pulls(&b, ShardId(0)));
    assert_eq!(b.settled(), 1, "and it is known for what");
    // What else there is goes on, back and forth.
    let back = configs.next([2, 1, 1, 1, 1]);
    for group in [&mut a, &mut b] {
        group.follow(&back);
    }
    a.install_from(&b, 4);
    a.acknowledge(&mut b, 4);
    assert_eq!(a.write(900, 2, append(&key(), "y")), length(2));
    assert_eq!((a.settled(), b.settled()), (4, 1));
    // Only the shard that waits can't go on.
    let ownership = b.ownership();
    assert!(ownership.groups.contains_key(&Gid(3)), "{ownership:?}");
    b.refuse(&configs.next([1, 1, 1, 1, 1]), "takes");
}

#[test]
fn a_group_that_is_gone_owes_nothing_any_more() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    let second = configs.next([2, 2, 2, 2, 2]);
    a.follow(&second);
    b.follow(&second);
    for shard in (0..SHARDS).map(ShardId) {
        let config = ConfigNum(2);
        let pull = Query::Pull {
            shard,
            config,
            after: Cursor::default(),
            max_bytes: 100,
        };
        let Response::Chunk(chunk) = a.replica.query(&pull) else {
            panic!("it is fenced");
        };
        b.take(&Step::Install(*chunk));
        a.take(&Step::Delete { shard, config });
    }
    // A has deleted all, as the controllers know, but B was never told.
    assert_eq!((a.settled(), b.settled()), (2, 1));
    assert_eq!(b.ownership().pending_deletes.len(), 5);
    b.follow(&configs.without(1));
    assert_eq!(b.settled(), 3);
    let ownership = b.ownership();
    assert!(ownership.pending_deletes.is_empty());
    let groups: Vec<Gid> = ownership.groups.keys().copied().collect();
    assert_eq!(groups, [Gid(2)]);
    b.replica.restart();
    assert_eq!(b.ownership(), ownership);
}

#[test]
fn a_plan_changes_nothing_for_clients_and_may_change_at_any_time() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    let target = |group: &Group| {
        let ownership = group.ownership();
        let planned = ownership.planned.get(&SHARD);
        planned.map(|it| (it.owner.0, it.target.to.0, it.target.since.0))
    };
    let to_b = configs.plan([1, 1, 1, 2, 1]);
    a.follow(&to_b);
    b.follow(&to_b);
    assert_eq!((target(&a), target(&b)), (Some((1, 2, 2)), Some((1, 2, 2))));
    let third = configs.plan([1, 1, 1, 3, 1]);
    let again = configs.plan([1, 1, 1, 2, 1]);
    let other = configs.plan([2, 1, 1, 2, 1]);
    a.follow(&third);
    b.follow(&again);
    assert_eq!((target(&a), target(&b)), (Some((1, 3, 3)), Some((1, 2, 4))));
    a.follow(&other);
    b.follow(&other);
    assert_eq!((target(&a), target(&b)), (Some((1, 2, 4)), Some((1, 2, 4))));
    assert_eq!(
        (a.state().as_str(), b.state().as_str()),
        ("serving1", "absent")
    );
    assert_eq!(a.write(900, 1, append(&key(), "x")), length(1));
    assert_eq!(b.write(900, 1, append(&key(), "x")), wrong_group(5));
    assert_eq!((a.settled(), b.settled()), (5, 5));
    // The cut, and at the same time the call-back of the other.
    let cut = configs.give(2);
    for group in [&mut a, &mut b] {
        group.follow(&cut);
        assert_eq!(*group.ownership().planned, BTreeMap::new());
        let live = group.ownership();
        group.replica.restart();
        assert_eq!(group.ownership(), live);
    }
    b.install_from(&a, 6);
    b.acknowledge(&mut a, 6);
    assert_eq!(b.write(900, 2, append(&key(), "y")), length(2));
}

#[test]
fn what_was_deleted_stays_deleted_although_it_comes_back() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    a.replica.apply(1_000, None, put(&tagged(1), "old"));
    a.replica.apply(1_000, None, put(&tagged(2), "old"));
    for (config, to) in [(2, 2), (3, 1)] {
        let next = configs.give(to);
        a.follow(&next);
        b.follow(&next);
        let (from, to) = if to == 2 {
            (&mut a, &mut b)
        } else {
            (&mut b, &mut a)
        };
        to.install_from(from, config);
        to.acknowledge(from, config);
        to.replica.apply(1_000, None, delete(&tagged(1)));
        assert_eq!(to.stored(), 1);
    }
    assert_eq!(a.replica.get(&tagged(1)), None);
    assert_eq!(a.replica.get(&tagged(2)).as_deref(), Some("old"));
    assert_eq!(b.stored(), 0);
}

#[test]
fn a_standalone_group_serves_all_and_takes_no_step() {
    let mut alone = Group::with(GENESIS, 1, 1_000);
    for config in [ShardConfig::empty(SHARDS), Configs::new().give(1)] {
        alone.refuse(&config, "standalone");
    }
    let ownership = alone.ownership();
    assert_eq!((ownership.gid, ownership.config), (Gid::NONE, ConfigNum(0)));
    assert_eq!(ownership.shards.len(), SHARDS as usize);
    assert!((0..SHARDS).all(|shard| ownership.check_served(ShardId(shard)).is_ok()));
    assert_eq!(alone.write(900, 1, append(&key(), "x")), length(1));
}

#[test]
fn a_group_that_follows_nobody_owns_nothing() {
    let mut new = Group::new(1, 1_000);
    assert_eq!(new.write(900, 1, append(&key(), "x")), wrong_group(0));
    // A configuration that follows another one, which the group hasn't.
    let mut configs = Configs::new();
    let mut other = Group::new(1, 1_000);
    other.follow(&configs.give(1));
    let later = other.step_to(&configs.give(2));
    new.take(&later);
    assert_eq!(*new.ownership(), Ownership::default());
    let page = new.replica.query(&Query::Page(PageRequest {
        start: Bytes::new(),
        end: Bytes::new(),
        limit: 9,
        max_bytes: 9,
        keys_only: false,
        shards: None,
    }));
    let pairs = Vec::new();
    assert_eq!(page, Response::Page { pairs, more: false });
}

#[test]
fn a_controllers_state_is_not_opened() {
    let mut state = MemoryState::new();
    let genesis = Genesis {
        kind: GroupKind::Controller,
        ..SHARDS_GENESIS
    };
    state
        .commit(genesis.to_batch(), Applied::default())
        .unwrap();
    let Err(StoreError::Damaged(why)) = ShardKv::new().reload(&state) else {
        panic!("it must be refused");
    };
    assert!(why.contains("controller") && why.contains("role"), "{why}");
}
