//! Groups of two replicas for the models of copies. The replicas of a group cut its log into batches differently, restart, and
//! restore each other's snapshots.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(clippy::cast_possible_truncation, clippy::indexing_slicing)]

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::num::NonZeroU64;

use bytes::Bytes;
use keyspace::{Action, DeleteRange, KeyspaceId, KeyspaceOptions, Limits, Put, Span, Write};
use raft::{EntryId, Index, Term};
use replica::memory::MemoryState;
use replica::{Applying, StateMachine, StateStore, Table, Transaction, WriteBatch};
use shardkv::{
    Bug, Configure, Genesis, JOURNAL_TTL_MS, JournalStep, KEYSPACE_LEVEL, KvError, Response,
    SessionClock, ShardKv, ShardState, Step, Target, encode_keyspace_operation, read_session_clock,
};
use types::{Assignment, ClusterId, ConfigDelta, ConfigNum, Gid, LogTime, ShardConfig, ShardId};

use super::clients::{MAX_VALUE, Source};
use super::{Random, Replica, SHARDS_GENESIS};

/// The shard that moves. There is one more.
pub const SHARD: ShardId = ShardId(1);
pub const GENESIS: Genesis = Genesis {
    shards: 2,
    ..SHARDS_GENESIS
};
pub const CONTROLLER: ClusterId = ClusterId(77);
/// A group that is a target at times and never an owner.
pub const BYSTANDER: Gid = Gid(3);

/// Returns the configuration after `before`, of three groups. The other shard stays with the group `other`.
pub fn configuration(before: &ShardConfig, other: Gid, target: Gid, owner: Gid) -> ShardConfig {
    let groups = [1, 2, BYSTANDER.0].map(|gid| (Gid(gid), vec![format!("g{gid}:1")].into()));
    let delta = ConfigDelta::new(before, &groups.into(), &[other, target], &[other, owner]);
    let mut config = before.clone();
    config.apply(&delta).unwrap();
    config
}

/// Returns the target of the shard that moves.
pub fn target(config: &ShardConfig) -> Target {
    let Assignment {
        target,
        target_since,
        ..
    } = config.row(SHARD);
    Target {
        to: target,
        since: target_since,
    }
}

/// Lets time pass before a write: mostly little, at times so much that sessions or journals expire.
pub fn pass_time(random: &mut Random, clients: &mut Source) {
    clients.time += match random.below(1_000) {
        0..=7 => GENESIS.session_ttl_ms + 1,
        8..=60 => random.below(3_000),
        61 => JOURNAL_TTL_MS + 1,
        _ => random.below(20),
    };
}

/// An operation of a log.
#[derive(Clone, Debug)]
pub enum Operation {
    Encoded(Bytes),
    /// An operation that clears a range of pairs.
    Clear(Bytes, Bytes),
}

impl Operation {
    /// Draws a range to clear.
    pub fn clear(random: &mut Random, clients: &mut Source) -> Self {
        let (start, end) = (clients.key(), clients.key());
        let to_the_end = random.one_in(3);
        Self::Clear(start, if to_the_end { Bytes::new() } else { end })
    }

    /// Draws an operation of the shard's keyspaces. Some keys are so long that a journal names only how they begin.
    pub fn keyspace(random: &mut Random) -> Self {
        let mut key = vec![b'a' + random.below(3) as u8; 1 + random.below(2) as usize];
        if random.one_in(12) {
            let begin = [0, 7, 0xff][random.below(3) as usize];
            key.resize(16_385 + random.below(3) as usize, begin);
        }
        let key = Bytes::from(key);
        let id = KeyspaceId(1 + random.below(2));
        let write = match random.below(12) {
            0 => return Self::create(["one", "two"][random.below(2) as usize]),
            1 => Write::Compact {
                revision: 2 + i64::from(random.below(200) as u32),
            },
            2 | 3 => Write::Clear,
            4 if random.one_in(8) => Write::Delete,
            4 | 5 => Write::DeleteRange(DeleteRange {
                span: Span::Key(key),
                prev_kv: false,
            }),
            _ => Write::Put(Put {
                key,
                value: vec![7; random.below(9) as usize].into(),
                ..Put::default()
            }),
        };
        Self::of_keyspace(Action::In(id, write))
    }

    /// Returns the operation that creates a keyspace.
    pub fn create(name: &str) -> Self {
        Self::of_keyspace(Action::Create {
            name: name.to_owned(),
            options: KeyspaceOptions::default(),
            nonce: NonZeroU64::MIN,
        })
    }

    fn of_keyspace(action: Action) -> Self {
        let operation = keyspace::Operation {
            cluster_id: None,
            shard: SHARD,
            limits: Limits::default(),
            action,
        };
        Self::Encoded(encode_keyspace_operation(&operation))
    }
}

/// One operation at its place in a log.
#[derive(Clone, Debug)]
pub struct Logged {
    index: u64,
    time: u64,
    operation: Operation,
    /// The feature level of the group.
    level: u32,
    /// True if it has an entry of its own, and a batch ends there, so that the test sees the rows.
    ends_batch: bool,
}

/// The pairs, the sessions, and the rows of keyspaces of the shard, without the shard's prefix.
pub type Rows = [BTreeMap<Bytes, Bytes>; 3];

/// A replica, and the number of operations of the log that it has applied.
pub struct Node {
    pub replica: Replica,
    pub applied: usize,
    /// The feature level of the last entry that it applied.
    level: u32,
    bug: Option<Bug>,
}

impl Node {
    fn new(bug: Option<Bug>) -> Self {
        Self {
            replica: Replica::with_bug(GENESIS, bug),
            applied: 0,
            level: 0,
            bug,
        }
    }

    pub fn machine(&self) -> &ShardKv {
        &self.replica.machine
    }

    /// Returns the state of the shard.
    pub fn state(&self) -> Option<ShardState> {
        self.machine().ownership().state(SHARD).cloned()
    }

    /// Returns the clock of the shard's sessions.
    pub fn clock(&self) -> Option<SessionClock> {
        let ownership = self.machine().ownership();
        let since = ownership.shards.get(&SHARD)?.since;
        Some(read_session_clock(&self.replica.state, SHARD, since).unwrap())
    }

    pub fn rows(&self) -> Rows {
        let keyspaces = self.with_prefix(Table::Data, (SHARD.0 | 1 << 31).to_be_bytes());
        [
            self.table(Table::Data),
            self.table(Table::Sessions),
            keyspaces,
        ]
    }

    /// Returns the rows of the shard in a table, without the shard's prefix.
    pub fn table(&self, table: Table) -> BTreeMap<Bytes, Bytes> {
        self.with_prefix(table, SHARD.0.to_be_bytes())
    }

    fn with_prefix(&self, table: Table, prefix: [u8; 4]) -> BTreeMap<Bytes, Bytes> {
        let pairs = self.replica.state.pairs().iter();
        let own = pairs.filter(|((of, key), _)| *of == table && key.starts_with(&prefix));
        own.map(|((_, key), value)| (key.slice(prefix.len()..), value.clone()))
            .collect()
    }

    /// Applies at most `count` more operations as one batch, which ends with an entry.
    fn apply(&mut self, log: &[Logged], count: usize) {
        let mut end = (self.applied + count).min(log.len());
        if let Some(stop) = (self.applied..end).find(|at| log[*at].ends_batch) {
            end = stop + 1;
        }
        while end < log.len() && end > 0 && log[end].index == log[end - 1].index {
            end += 1;
        }
        let Replica { machine, state, .. } = &mut self.replica;
        let mut applied = state.applied();
        let mut transaction = Transaction::new(&*state);
        transaction.set_digest(applied.digest);
        for logged in &log[self.applied..end] {
            let at = Applying {
                entry: EntryId::new(Term(1), Index(logged.index)),
                time: LogTime(logged.time),
                feature_level: logged.level,
                max_value_bytes: MAX_VALUE,
                awaited: true,
            };
            apply(machine, at, &logged.operation, &mut transaction);
            applied.digest = transaction.end_entry(at.entry);
            applied.last = at.entry;
            applied.time = at.time;
            self.level = logged.level;
        }
        transaction.set_digest(None);
        machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        state.commit(batch, applied).unwrap();
        self.applied = end;
        let rows = state.pairs().keys();
        let records = rows.filter(|(table, _)| *table == Table::Sessions).count();
        assert_eq!(machine.session_count(), records, "table and records differ");
        let has_rows = !self.rows()[2].is_empty();
        assert!(
            !has_rows || self.level >= KEYSPACE_LEVEL,
            "rows below their level"
        );
    }

    /// Replaces the state by a snapshot of another replica's.
    fn restore(&mut self, other: &mut Self) {
        let state = &mut self.replica.state;
        let mut snapshot = other.replica.state.snapshot().unwrap();
        state.begin_restore(snapshot.meta()).unwrap();
        while let Some(chunk) = snapshot.next_chunk().unwrap() {
            state.restore_chunk(&chunk).unwrap();
        }
        state.finish_restore().unwrap();
        if self.bug == Some(Bug::SnapshotWithoutJournal) {
            forget_names(state);
        }
        self.applied = other.applied;
        self.level = other.level;
        self.replica.restart();
    }
}

fn apply(
    machine: &mut ShardKv,
    at: Applying,
    operation: &Operation,
    transaction: &mut Transaction<'_>,
) {
    match operation {
        Operation::Encoded(bytes) => {
            let answer = machine.apply(at, bytes.clone(), transaction).unwrap();
            let malformed = matches!(answer, Response::Refused(KvError::Malformed(_)));
            assert!(!malformed, "{answer:?}");
        }
        Operation::Clear(start, end) => {
            // Refused where the shard isn't served.
            let _ = machine.clear_range(SHARD, (start, end), transaction);
        }
    }
}

fn forget_names(state: &mut MemoryState) {
    let mut batch = WriteBatch::default();
    let end = Bytes::from_static(&[0xff; 8]);
    batch.clear(Table::Journal, Bytes::new(), end);
    let applied = state.applied();
    state.commit(batch, applied).unwrap();
}

/// A group of two replicas.
pub struct Group {
    pub gid: Gid,
    pub nodes: [Node; 2],
    log: Vec<Logged>,
    /// The difference of the group's log time to the clients'.
    ahead: u64,
    /// The feature level of the operations that are logged now.
    pub level: u32,
}

impl Group {
    pub fn new(gid: Gid, ahead: u64, bug: Option<Bug>) -> Self {
        Self {
            gid,
            nodes: [Node::new(bug), Node::new(bug)],
            log: Vec::new(),
            ahead,
            level: KEYSPACE_LEVEL,
        }
    }

    /// Returns the replica that has applied more than the other: the leader.
    pub fn newest(&self) -> &Node {
        &self.nodes[usize::from(self.nodes[1].applied > self.nodes[0].applied)]
    }

    /// Returns the configuration that the leader has accepted.
    pub fn accepted(&self) -> ConfigNum {
        self.newest().machine().ownership().config
    }

    /// Returns true if the replica has applied the whole log.
    pub fn is_current(&self, node: usize) -> bool {
        self.nodes[node].applied == self.log.len()
    }

    pub fn are_all_current(&self) -> bool {
        self.is_current(0) && self.is_current(1)
    }

    /// Returns true if all replicas have applied the log, and the group has done all for the configuration `num`.
    pub fn is_settled(&self, num: ConfigNum) -> bool {
        let ownership = self.newest().machine().ownership();
        self.are_all_current() && ownership.settled() == num && ownership.config == num
    }

    /// Appends an operation to the log. Several may stand in one entry, unless a replica has applied a part of it.
    pub fn log(&mut self, random: &mut Random, time: u64, operation: Operation, ends_batch: bool) {
        let joins = random.one_in(4);
        let is_begun = self.is_current(0) || self.is_current(1);
        let (last, alone) = match self.log.last() {
            Some(last) => (last.index, last.ends_batch),
            None => (0, true),
        };
        let index = last + u64::from(!joins || is_begun || alone || ends_batch);
        self.log.push(Logged {
            index,
            time: time + self.ahead,
            level: self.level,
            operation,
            ends_batch,
        });
    }

    /// Returns the step by which a replica that leads takes up `config`, whatever is between.
    pub fn take_up(&self, node: usize, config: &ShardConfig) -> Option<Step> {
        let ownership = self.nodes[node].machine().ownership();
        let step = || Configure::to(config, self.gid, CONTROLLER, &ownership);
        (ownership.config < config.num()).then(|| Step::Configure(step()))
    }

    /// Lets a replica apply at most `count` more operations.
    pub fn advance(&mut self, node: usize, count: usize) {
        self.nodes[node].apply(&self.log, count);
    }

    /// Checks that replicas which have applied the same have the same state.
    pub fn check_equal(&self) {
        let [a, b] = &self.nodes;
        if a.applied == b.applied {
            assert_eq!(a.replica.state.pairs(), b.replica.state.pairs());
            assert_eq!(a.replica.state.applied(), b.replica.state.applied());
            assert_eq!(a.machine().ownership(), b.machine().ownership());
            assert_eq!(a.machine().journals(), b.machine().journals());
        }
    }

    /// Restarts a replica, or gives a snapshot to the one that is behind. Returns true if one was restored.
    pub fn disturb(&mut self, random: &mut Random) -> bool {
        if random.one_in(2) {
            self.nodes[random.below(2) as usize].replica.restart();
            return false;
        }
        self.restore()
    }

    /// Gives a snapshot to the replica that is behind. Returns false if none is.
    pub fn restore(&mut self) -> bool {
        let [a, b] = &mut self.nodes;
        match a.applied.cmp(&b.applied) {
            Ordering::Greater => b.restore(a),
            Ordering::Less => a.restore(b),
            Ordering::Equal => return false,
        }
        true
    }

    /// Returns the step that seals the journal's open generation.
    pub fn seal(&self, journal: Index) -> JournalStep {
        let open = self.newest().machine().journals().get(SHARD);
        JournalStep::Seal {
            shard: SHARD,
            journal,
            generation: open.map_or(1, |journal| journal.open),
        }
    }
}

/// Runs `run` with many seeds, and checks that each of the events happened often.
pub fn check_seen(seeds: u64, expected: &[&str], run: impl Fn(u64) -> BTreeMap<&'static str, u64>) {
    let mut seen = BTreeMap::new();
    for (what, count) in (0..seeds).flat_map(run) {
        *seen.entry(what).or_insert(0) += count;
    }
    for what in expected {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count > 30, "{what} was seen too seldom: {seen:?}");
    }
}

/// Checks that each of the bugs makes `run` panic with some seed.
#[cfg(feature = "bugs")]
pub fn check_found(
    bugs: impl IntoIterator<Item = Bug>,
    run: impl Fn(u64, Bug) + std::panic::RefUnwindSafe,
) {
    for bug in bugs {
        let finds = |seed| std::panic::catch_unwind(|| run(seed, bug)).is_err();
        let seed = (0..600).find(|seed| finds(*seed));
        assert!(seed.is_some(), "{bug:?} shows in no world");
    }
}
