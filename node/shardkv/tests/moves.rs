//! Shards that move between groups, step by step.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{GENESIS, Replica, SHARDS_GENESIS, append, bytes, delete, put, session};
use raft::StoreError;
use replica::memory::MemoryState;
use replica::{Applied, GroupKind, StateMachine, StateStore, Table};
use shardkv::{
    Chunk, Configure, Cursor, Genesis, KvError, Next, Ownership, Query, Response, ShardKv,
    ShardState, Step, Written, user_key,
};
use types::{
    ClusterId, ConfigDelta, ConfigNum, Gid, LogTime, ShardConfig, ShardId, ShardSet, shard_of,
};

const CONTROLLER: ClusterId = ClusterId(77);
const SHARDS: u32 = SHARDS_GENESIS.shards;
/// The shard that most tests move.
const SHARD: ShardId = ShardId(3);

/// A group, with the log time of its entries.
struct Group {
    gid: Gid,
    replica: Replica,
    time: u64,
}

impl Group {
    fn new(gid: u64, time: u64) -> Self {
        Self::with(SHARDS_GENESIS, gid, time)
    }

    fn with(genesis: Genesis, gid: u64, time: u64) -> Self {
        Self {
            gid: Gid(gid),
            replica: Replica::new(genesis),
            time,
        }
    }

    /// Returns the step by which it takes up the configuration.
    fn step_to(&self, config: &ShardConfig) -> Step {
        Step::Configure(Configure::to(
            config,
            self.gid,
            CONTROLLER,
            &self.ownership(),
        ))
    }

    /// Takes up the configuration, whatever is between.
    fn follow(&mut self, config: &ShardConfig) {
        let step = self.step_to(config);
        self.take(&step);
        assert_eq!(self.ownership().config, config.num());
    }

    /// Asserts that it refuses the configuration, for a reason with these words, and that nothing changes.
    fn refuse(&mut self, config: &ShardConfig, expected: &str) {
        let before = self.replica.state.pairs().clone();
        let step = self.step_to(config);
        let Response::Refused(KvError::Malformed(why)) = self.step(&step) else {
            panic!("it must be refused: {step:?}");
        };
        assert!(why.contains(expected), "{why}");
        assert_eq!(*self.replica.state.pairs(), before);
    }

    /// Takes a step that must not be refused.
    fn take(&mut self, step: &Step) {
        assert_eq!(self.step(step), Response::Stepped, "{step:?}");
    }

    fn step(&mut self, step: &Step) -> Response {
        self.replica.step(self.time, step)
    }

    fn write(&mut self, birth: u64, sequence: u64, write: shardkv::Write) -> Response {
        self.replica
            .apply(self.time, session(birth, sequence, 1), write)
    }

    fn ownership(&self) -> std::sync::Arc<Ownership> {
        self.replica.machine.ownership()
    }

    /// Returns the shard's state in a word, and its configuration.
    fn state(&self) -> String {
        let ownership = self.ownership();
        let Some(shard) = ownership.shards.get(&SHARD) else {
            return "absent".to_owned();
        };
        let word = match shard.state {
            ShardState::Serving { .. } => "serving",
            ShardState::Pulling { .. } => "pulling",
            ShardState::Fenced { .. } => "fenced",
            ShardState::Copying { .. } => "copying",
            ShardState::Completing { .. } => "completing",
        };
        format!("{word}{}", shard.state.config())
    }

    fn pull(&self, config: u64, after: Cursor, max_bytes: u32) -> Response {
        self.replica.query(&Query::Pull {
            shard: SHARD,
            config: ConfigNum(config),
            after,
            max_bytes,
        })
    }

    /// All parts of the shard.
    fn parts(&self, config: u64, max_bytes: u32) -> Vec<Chunk> {
        let mut parts: Vec<Chunk> = Vec::new();
        let mut after = Cursor::default();
        loop {
            let Response::Chunk(chunk) = self.pull(config, after, max_bytes) else {
                panic!("it is fenced");
            };
            let next = chunk.next.clone();
            parts.push(*chunk);
            match next {
                Next::Chunk(cursor) => after = cursor,
                Next::Done { .. } => return parts,
            }
        }
    }

    /// Takes the shard from `source`, as it travels.
    fn install_from(&mut self, source: &Self, config: u64) {
        for part in source.parts(config, 100) {
            let arrived = Chunk::decode(part.encode()).unwrap();
            self.take(&Step::Install(arrived));
        }
    }

    /// Tells `source` that the shard is here.
    fn acknowledge(&mut self, source: &mut Self, config: u64) {
        let (shard, config) = (SHARD, ConfigNum(config));
        source.take(&Step::Delete { shard, config });
        self.take(&Step::Deleted { shard, config });
    }

    /// Returns the number of stored pairs and session records of the shard.
    fn stored(&self) -> usize {
        let prefix = SHARD.0.to_be_bytes();
        let pairs = self.replica.state.pairs().keys();
        let own = pairs.filter(|(table, key)| *table != Table::Meta && key.starts_with(&prefix));
        own.count()
    }

    fn settled(&self) -> u64 {
        self.ownership().settled().0
    }
}

/// Configurations by the shards' owners, from 1 on. A group stays once it has owned something.
struct Configs(ShardConfig);

impl Configs {
    fn new() -> Self {
        Self(ShardConfig::empty(SHARDS))
    }

    fn next(&mut self, owners: [u64; SHARDS as usize]) -> ShardConfig {
        let mut groups = self.0.member_addresses();
        groups.extend(owners.map(|gid| (Gid(gid), vec![format!("g{gid}:1")])));
        let delta = ConfigDelta::between(&self.0, &groups, &owners.map(Gid));
        self.0.apply(&delta).unwrap();
        self.0.clone()
    }

    /// The next one, in which `gid` has the shard and group 1 all others.
    fn give(&mut self, gid: u64) -> ShardConfig {
        self.next([1, 1, 1, gid, 1])
    }

    /// The next one, in which owners stay and these are the targets.
    fn plan(&mut self, targets: [u64; SHARDS as usize]) -> ShardConfig {
        let mut groups = self.0.groups().clone();
        for gid in targets {
            let group = || vec![format!("g{gid}:1")].into();
            groups.entry(Gid(gid)).or_insert_with(group);
        }
        let (targets, owners) = (targets.map(Gid), self.0.owners().to_vec());
        let delta = ConfigDelta::new(&self.0, &groups, &targets, &owners);
        self.0.apply(&delta).unwrap();
        self.0.clone()
    }

    /// The next one, without a group.
    fn without(&mut self, gid: u64) -> ShardConfig {
        let mut groups = self.0.groups().clone();
        groups.remove(&Gid(gid)).unwrap();
        let (targets, owners) = (self.0.targets().to_vec(), self.0.owners().to_vec());
        let delta = ConfigDelta::new(&self.0, &groups, &targets, &owners);
        self.0.apply(&delta).unwrap();
        self.0.clone()
    }
}

/// Two groups, of which the first owns all, with their clocks.
fn two(times: [u64; 2]) -> (Group, Group, Configs) {
    let (mut a, mut b) = (Group::new(1, times[0]), Group::new(2, times[1]));
    let mut configs = Configs::new();
    let first = configs.give(1);
    a.follow(&first);
    b.follow(&first);
    (a, b, configs)
}

fn key() -> String {
    let mut keys = (0..).map(|n| format!("k{n}"));
    keys.find(|key| shard_of(key.as_bytes(), SHARDS) == SHARD)
        .unwrap()
}

/// Another of the same shard.
fn tagged(n: u32) -> String {
    format!("{{{}}}{n:02}", key())
}

fn wrong_group(config: u64) -> Response {
    Response::Refused(KvError::WrongGroup {
        shard: SHARD,
        config: ConfigNum(config),
    })
}

fn not_ready() -> Response {
    Response::Refused(KvError::ShardNotReady { shard: SHARD })
}

fn length(length: u64) -> Response {
    Response::Written(Written::Append { length })
}

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
fn a_session_that_the_source_forgot_is_not_new_where_the_clock_is_behind() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let (mut a, mut b, mut configs) = two([100_000, 97_000]);
    let birth = 100_000;
    a.write(birth, 1, append(&key(), "x"));
    a.time += ttl + 1;
    b.time += ttl + 1;
    // A's clock says that it expired, B's not yet.
    assert_eq!(
        a.write(birth, 2, append(&key(), "y")),
        Response::Refused(KvError::SessionExpired)
    );
    assert_eq!(a.replica.machine.session_count(), 0);
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    b.install_from(&a, 2);
    let expired = Response::Refused(KvError::SessionExpired);
    assert_eq!(b.write(birth, 1, append(&key(), "x")), expired);
    assert_eq!(b.write(birth, 2, append(&key(), "y")), expired);
    // Also after a restart, and after the table was dropped because it got empty.
    b.replica.restart();
    assert_eq!(b.write(birth, 1, append(&key(), "x")), expired);
    let fresh = birth + 1;
    assert_eq!(b.write(fresh, 1, append(&key(), "z")), length(2));
    assert_eq!(b.replica.machine.session_count(), 1);
    // And in the next group, whose log is still further behind.
    let mut c = Group::new(3, 50_000);
    c.follow(&Configs::new().give(1));
    let third = configs.give(3);
    b.follow(&third);
    c.follow(&second);
    c.follow(&third);
    c.install_from(&b, 3);
    assert_eq!(c.write(birth, 1, append(&key(), "x")), expired);
    assert_eq!(c.write(fresh, 1, append(&key(), "z")), length(2));
}

#[test]
fn the_clock_outlives_a_table_that_gets_empty() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let (mut a, mut b, mut configs) = two([200_000, 100_000]);
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    b.install_from(&a, 2);
    let expired = Response::Refused(KvError::SessionExpired);
    let old = 200_000 - ttl - 1;
    assert_eq!(b.write(old, 1, append(&key(), "x")), expired);
    // A table without a session isn't kept, here or over a restart.
    assert_eq!(b.replica.machine.session_count(), 0);
    assert_eq!(b.write(old, 1, append(&key(), "x")), expired);
    b.replica.restart();
    assert_eq!(b.write(old, 1, append(&key(), "x")), expired);
}

#[test]
fn groups_may_remember_sessions_for_different_times() {
    let ttl = SHARDS_GENESIS.session_ttl_ms;
    let longer = Genesis {
        session_ttl_ms: 2 * ttl,
        ..SHARDS_GENESIS
    };
    for (from, to) in [(SHARDS_GENESIS, longer), (longer, SHARDS_GENESIS)] {
        let mut a = Group::with(from, 1, 100_000);
        let mut b = Group::with(to, 2, 100_000);
        let mut configs = Configs::new();
        for config in [configs.give(1), configs.give(2)] {
            a.follow(&config);
            b.follow(&config);
        }
        b.install_from(&a, 2);
        let oldest = 100_000 - from.session_ttl_ms;
        let answer = |b: &mut Group, birth| b.write(birth, 1, put(&key(), "x"));
        if from.session_ttl_ms < to.session_ttl_ms {
            // A may have forgotten it, so B must not take it for new though it would remember one of its own.
            let expired = Response::Refused(KvError::SessionExpired);
            assert_eq!(answer(&mut b, oldest - 1), expired);
            assert_eq!(answer(&mut b, oldest), Response::Written(Written::Put));
        } else {
            let expired = Response::Refused(KvError::SessionExpired);
            let oldest = 100_000 - to.session_ttl_ms;
            assert_eq!(answer(&mut b, oldest - 1), expired);
            assert_eq!(answer(&mut b, oldest), Response::Written(Written::Put));
        }
    }
}

#[test]
fn sessions_of_a_fenced_shard_are_not_forgotten() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    a.write(900, 1, append(&key(), "x"));
    let second = configs.give(2);
    a.follow(&second);
    a.time += 10 * SHARDS_GENESIS.session_ttl_ms;
    // Each entry visits another table.
    for n in 0..u64::from(SHARDS) * 2 {
        let mut keys = (0..).map(|n| format!("o{n}"));
        let other = keys.find(|key| shard_of(key.as_bytes(), SHARDS) != SHARD);
        a.replica.apply(a.time + n, None, put(&other.unwrap(), "v"));
    }
    assert_eq!(a.stored(), 2);
    b.follow(&second);
    b.install_from(&a, 2);
    assert_eq!(b.write(900, 1, append(&key(), "x")), length(1));
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
fn pulls_are_answered_by_what_the_group_knows() {
    let (mut a, _, mut configs) = two([1_000, 1_000]);
    assert_eq!(
        a.pull(2, Cursor::default(), 100),
        not_ready(),
        "not accepted"
    );
    assert_eq!(a.pull(1, Cursor::default(), 100), not_ready(), "served");
    a.follow(&configs.give(2));
    assert_eq!(a.pull(3, Cursor::default(), 100), not_ready());
    let Response::Chunk(empty) = a.pull(2, Cursor::default(), 100) else {
        panic!("it is fenced");
    };
    let ttl_ms = SHARDS_GENESIS.session_ttl_ms;
    let clock = LogTime(1_000);
    assert_eq!(empty.next, Next::Done { clock, ttl_ms });
    let (shard, config) = (SHARD, ConfigNum(2));
    a.take(&Step::Delete { shard, config });
    assert_eq!(
        a.pull(2, Cursor::default(), 100),
        Response::Refused(KvError::ShardGone { shard, config })
    );
    let far = a.replica.query(&Query::Pull {
        shard: ShardId(SHARDS),
        config,
        after: Cursor::default(),
        max_bytes: 100,
    });
    let shard = ShardId(SHARDS);
    let shards = SHARDS;
    assert_eq!(far, Response::Refused(KvError::NoShard { shard, shards }));
}

#[test]
fn parts_are_about_as_large_as_asked() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    for n in 0..60 {
        a.write(900 + u64::from(n), 1, put(&tagged(n), &"v".repeat(50)));
    }
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    let sizes = |max_bytes| {
        let parts = a.parts(2, max_bytes).into_iter();
        parts.map(|part| part.content_bytes()).collect::<Vec<_>>()
    };
    let whole: u64 = sizes(u32::MAX).iter().sum();
    for max_bytes in [1, 60, 200, 1_000] {
        let sizes = sizes(max_bytes);
        assert_eq!(sizes.iter().sum::<u64>(), whole);
        assert!(sizes.iter().all(|size| *size <= u64::from(max_bytes) + 100));
        assert!(sizes.len() as u64 > whole / (u64::from(max_bytes) + 100));
    }
    assert_eq!(sizes(u32::MAX).len(), 1);
    b.install_from(&a, 2);
    let ShardState::Serving { config } = b.ownership().state(SHARD).unwrap().clone() else {
        panic!("it arrived");
    };
    assert_eq!(config, ConfigNum(2));
    assert_eq!(a.stored(), b.stored());
}

#[test]
fn a_shard_is_exported_counted_and_measured() {
    let (mut a, _, mut configs) = two([1_000, 1_000]);
    for n in 0..90 {
        a.write(900, 1, put(&tagged(n), "value"));
        a.replica.apply(1_000, None, put(&tagged(n), "value"));
    }
    let export = |a: &Group, start: &str, end: &str| {
        a.replica.query(&Query::Export {
            shard: SHARD,
            start: bytes(start),
            end: bytes(end),
        })
    };
    let all = |response: Response| {
        let Response::View(view) = response else {
            panic!("{response:?}");
        };
        let mut keys = Vec::new();
        while let Some(page) = view.next_page().unwrap() {
            keys.extend(page.into_iter().map(|(key, _)| user_key(key)));
        }
        keys
    };
    let whole = export(&a, "", "");
    // It stays as it was.
    a.replica.apply(1_000, None, put(&tagged(95), "later"));
    assert!(
        all(whole)
            .into_iter()
            .eq((0..90).map(|n| bytes(&tagged(n))))
    );
    let some = all(export(&a, &tagged(10), &tagged(20)));
    assert!(some.into_iter().eq((10..20).map(|n| bytes(&tagged(n)))));
    assert!(all(export(&a, &tagged(20), &tagged(10))).is_empty());

    let count = |a: &Group, after: &str| {
        let after = bytes(after);
        a.replica.query(&Query::Count {
            shard: SHARD,
            after,
        })
    };
    let bytes_each = (tagged(0).len() + "value".len()) as u64;
    let expected = |keys: u64| Response::Count {
        keys,
        bytes: keys * bytes_each,
        next: None,
    };
    assert_eq!(count(&a, ""), expected(91));
    assert_eq!(count(&a, &tagged(89)), expected(1));
    let sizes = a.replica.query(&Query::Sizes {
        shards: [SHARD, ShardId(4)].into_iter().collect(),
    });
    let stored = 91 * (bytes_each + 4);
    assert_eq!(sizes, Response::Sizes(vec![stored, 0]));

    a.follow(&configs.give(2));
    assert_eq!(export(&a, "", ""), wrong_group(2));
    assert_eq!(count(&a, ""), expected(91), "fenced, but here");
    let (shard, config) = (SHARD, ConfigNum(2));
    a.take(&Step::Delete { shard, config });
    assert_eq!(count(&a, ""), wrong_group(2));
    let far = ShardSet::all(SHARDS + 1);
    assert!(matches!(
        a.replica.query(&Query::Sizes { shards: far }),
        Response::Refused(KvError::NoShard { .. })
    ));
}

#[test]
fn large_shards_are_counted_in_pages() {
    let (mut a, _, _) = two([1_000, 1_000]);
    let keys: Vec<String> = (0..5_000).map(|n| format!("{{{}}}{n:04}", key())).collect();
    for key in &keys {
        a.replica.apply(1_000, None, put(key, "v"));
    }
    let (mut found, mut bytes, mut pages) = (0, 0, 0);
    let mut after = Bytes::new();
    loop {
        let count = Query::Count {
            shard: SHARD,
            after,
        };
        let Response::Count {
            keys,
            bytes: more,
            next,
        } = a.replica.query(&count)
        else {
            panic!("it is there");
        };
        found += keys;
        bytes += more;
        pages += 1;
        match next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!((found, pages), (5_000, 2));
    assert_eq!(bytes, 5_000 * (keys[0].len() as u64 + 1));
}

#[test]
fn scans_see_what_is_served_and_refuse_what_was_asked_and_is_not() {
    let (mut a, _, mut configs) = two([1_000, 1_000]);
    let keys: Vec<String> = (0..40).map(|n| format!("k{n:02}")).collect();
    for key in &keys {
        a.replica.apply(1_000, None, put(key, "v"));
    }
    let scan = |a: &Group, shards: Option<&[u32]>| {
        a.replica.query(&Query::Scan {
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 1_000,
            max_bytes: u32::MAX,
            shards: shards.map(|shards| shards.iter().copied().map(ShardId).collect()),
        })
    };
    let expected = |shards: &[u32]| {
        let own = keys
            .iter()
            .filter(|key| shards.contains(&shard_of(key.as_bytes(), SHARDS).0));
        let pairs = own.map(|key| (bytes(key), bytes("v"))).collect();
        Response::Page { pairs, more: false }
    };
    assert_eq!(scan(&a, None), expected(&[0, 1, 2, 3, 4]));
    for some in [&[0][..], &[1, 3], &[4], &[0, 1, 2, 3, 4], &[]] {
        assert_eq!(scan(&a, Some(some)), expected(some), "{some:?}");
    }
    assert!(matches!(
        scan(&a, Some(&[4, 5])),
        Response::Refused(KvError::NoShard { .. })
    ));
    a.follow(&configs.give(2));
    assert_eq!(scan(&a, None), expected(&[0, 1, 2, 4]));
    assert_eq!(scan(&a, Some(&[1, 3])), wrong_group(2));
    assert_eq!(scan(&a, Some(&[0, 4])), expected(&[0, 4]));
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
    let page = new.replica.query(&Query::Scan {
        start: Bytes::new(),
        end: Bytes::new(),
        limit: 9,
        max_bytes: 9,
        shards: None,
    });
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
