//! Random copies of a served shard from two replicas that cut the log differently, restart, and restore each other's snapshots.
//! In the end the copy must equal the shard at its fence.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use common::clients::{MAX_VALUE, Source};
use common::{Random, Replica, SHARDS_GENESIS};
use raft::{EntryId, Index, Term};
use replica::memory::MemoryState;
use replica::{Applying, StateMachine, StateStore, Table, Transaction, WriteBatch};
use shardkv::{
    Bug, CopyCursor, CopyId, CopyRequest, Genesis, JOURNAL_TTL_MS, JournalError, JournalStep,
    KvError, Part, PartNext, PlannedMove, Query, Response, RowChange, ShardKv, Step, Target,
};
use types::{ClientId, ClusterId, ConfigDelta, ConfigNum, Gid, LogTime, ShardConfig, ShardId};

const SHARDS: u32 = 2;
const SHARD: ShardId = ShardId(1);
const SOURCE: Gid = Gid(1);
const DESTINATION: Gid = Gid(2);
const GENESIS: Genesis = Genesis {
    shards: SHARDS,
    ..SHARDS_GENESIS
};
/// The operations of a long run before the fence. Short runs find more: a forgotten row isn't named again.
const OPERATIONS: u64 = 700;

/// An operation of the source's log.
#[derive(Clone)]
enum Operation {
    Encoded(Bytes),
    /// A part of the entry that brings a configuration.
    Target(Option<Target>),
    /// An operation that clears a range of pairs.
    Clear(Bytes, Bytes),
}

/// One operation at its place in the log.
#[derive(Clone)]
struct Logged {
    index: u64,
    time: u64,
    operation: Operation,
}

/// A replica of the source.
struct Node {
    replica: Replica,
    /// The operations of the log that it has applied.
    applied: usize,
    bug: Option<Bug>,
}

impl Node {
    fn new(bug: Option<Bug>) -> Self {
        Self {
            replica: Replica::with_bug(GENESIS, bug),
            applied: 0,
            bug,
        }
    }

    fn machine(&self) -> &ShardKv {
        &self.replica.machine
    }

    /// Applies at most `count` more operations as one batch, which ends with an entry.
    fn apply(&mut self, log: &[Logged], count: usize) {
        let mut end = (self.applied + count).min(log.len());
        while end < log.len() && end > 0 && log[end].index == log[end - 1].index {
            end += 1;
        }
        let Replica { machine, state, .. } = &mut self.replica;
        let mut applied = state.applied();
        let mut transaction = Transaction::new(&*state);
        for logged in &log[self.applied..end] {
            let at = Applying {
                entry: EntryId::new(Term(1), Index(logged.index)),
                time: LogTime(logged.time),
                max_value_bytes: MAX_VALUE,
            };
            apply(machine, at, &logged.operation, &mut transaction);
            applied.last = at.entry;
            applied.time = at.time;
        }
        machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        state.commit(batch, applied).unwrap();
        self.applied = end;
    }

    /// Replaces the state by another replica's.
    fn restore(&mut self, other: &mut Self) {
        let state = &mut self.replica.state;
        let mut snapshot = other.replica.state.snapshot().unwrap();
        state.begin_restore(snapshot.meta()).unwrap();
        while let Some(chunk) = snapshot.next_chunk().unwrap() {
            state.restore_chunk(&chunk).unwrap();
        }
        state.finish_restore().unwrap();
        if self.bug == Some(Bug::SnapshotWithoutJournal) {
            let mut batch = WriteBatch::default();
            batch.clear(Table::Journal, Bytes::new(), Bytes::from_static(&[0xff; 8]));
            let applied = state.applied();
            state.commit(batch, applied).unwrap();
        }
        self.applied = other.applied;
        self.replica.restart();
    }

    /// Returns the rows of the shard in a table, without the shard's prefix.
    fn rows(&self, table: Table) -> BTreeMap<Bytes, Bytes> {
        rows(&self.replica.state, table)
    }
}

fn rows(state: &MemoryState, table: Table) -> BTreeMap<Bytes, Bytes> {
    let prefix = SHARD.0.to_be_bytes();
    let of_shard = state
        .pairs()
        .iter()
        .filter(|((of, key), _)| *of == table && key.starts_with(&prefix));
    of_shard
        .map(|((_, key), value)| (key.slice(prefix.len()..), value.clone()))
        .collect()
}

fn apply(
    machine: &mut ShardKv,
    at: Applying,
    operation: &Operation,
    transaction: &mut Transaction<'_>,
) {
    match operation {
        Operation::Encoded(bytes) => {
            machine.apply(at, bytes.clone(), transaction).unwrap();
        }
        Operation::Target(target) => {
            let planned = target.map(|target| PlannedMove {
                owner: SOURCE,
                owner_since: ConfigNum(1),
                target,
            });
            machine.plan(SHARD, planned, transaction);
        }
        Operation::Clear(start, end) => {
            // Refused after the fence.
            let _ = machine.clear_range(SHARD, (start, end), transaction);
        }
    }
}

/// The destination.
#[derive(Default)]
struct Copy {
    journal: Option<Index>,
    since: ConfigNum,
    cursor: CopyCursor,
    pairs: BTreeMap<Bytes, Bytes>,
    sessions: BTreeMap<ClientId, Bytes>,
    clock: Option<LogTime>,
    /// Parts that may arrive again.
    sent: Vec<Part>,
}

impl Copy {
    /// Takes a part that follows exactly.
    fn take(&mut self, part: &Part) -> bool {
        if self.journal != Some(part.copy.journal)
            || self.cursor != part.after
            || self.clock.is_some()
        {
            return false;
        }
        for change in &part.changes {
            match change {
                RowChange::Pair(key, Some(value)) => {
                    self.pairs.insert(key.clone(), value.clone());
                }
                RowChange::Pair(key, None) => {
                    self.pairs.remove(key);
                }
                RowChange::Session(client, Some(record)) => {
                    self.sessions.insert(*client, record.clone());
                }
                RowChange::Session(client, None) => {
                    self.sessions.remove(client);
                }
                RowChange::Clear { start, end } => {
                    self.pairs
                        .retain(|key, _| key < start || (!end.is_empty() && key >= end));
                }
            }
        }
        match &part.next {
            PartNext::At(cursor) => {
                assert!(*cursor > part.after, "no progress: {part:?}");
                self.cursor = cursor.clone();
            }
            PartNext::Done { clock, .. } => self.clock = Some(*clock),
        }
        true
    }
}

struct World {
    random: Random,
    clients: Source,
    log: Vec<Logged>,
    nodes: [Node; 2],
    copy: Copy,
    config: ShardConfig,
    target: Option<Target>,
    targets: u64,
    seen: BTreeMap<&'static str, u64>,
    bug: Option<Bug>,
}

impl World {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut world = Self {
            random: Random(seed),
            clients: Source::new(seed + 1_000_000),
            log: Vec::new(),
            nodes: [Node::new(bug), Node::new(bug)],
            copy: Copy::default(),
            config: ShardConfig::empty(SHARDS),
            target: None,
            targets: 0,
            seen: BTreeMap::new(),
            bug,
        };
        let begin = Step::Begin {
            gid: SOURCE,
            controller: ClusterId(77),
            num: ConfigNum(0),
            groups: BTreeMap::new(),
        };
        world.propose(begin.encode());
        world.configure(&[SOURCE, SOURCE]);
        world
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn log(&mut self, operation: Operation) {
        let index = self.log.last().map_or(0, |logged| logged.index);
        // Several operations may stand in one entry.
        let index = index + u64::from(index == 0 || !self.random.one_in(4));
        // An entry isn't extended once a replica has applied a part of it.
        let begun = |node: &Node| node.applied == self.log.len();
        let index = match self.log.last() {
            Some(last) if index == last.index && self.nodes.iter().any(begun) => index + 1,
            _ => index,
        };
        let time = self.clients.time;
        self.log.push(Logged {
            index,
            time,
            operation,
        });
    }

    fn propose(&mut self, bytes: Bytes) {
        self.log(Operation::Encoded(bytes));
    }

    fn configure(&mut self, owners: &[Gid]) {
        let groups = owners.iter().map(|gid| (*gid, vec![format!("{gid}:1")]));
        let delta = ConfigDelta::between(&self.config, &groups.collect(), owners);
        self.config.apply(&delta).unwrap();
        let step = Step::Configure {
            controller: ClusterId(77),
            delta,
        };
        self.propose(step.encode());
    }

    fn retarget(&mut self, target: Option<Target>) {
        self.target = target;
        self.log(Operation::Target(target));
    }

    fn aim(&mut self) {
        if self.target.is_none_or(|target| target.to != DESTINATION) {
            self.targets += 1;
            let since = ConfigNum(self.targets);
            let to = DESTINATION;
            self.retarget(Some(Target { to, since }));
        }
    }

    /// One thing happens.
    fn act(&mut self) {
        match self.random.below(100) {
            0..=44 => self.write(),
            45 => {
                let (start, end) = (self.clients.key(), self.clients.key());
                let end = if self.random.one_in(3) {
                    Bytes::new()
                } else {
                    end
                };
                self.log(Operation::Clear(start, end));
            }
            46..=65 => self.advance(),
            66 => self.disturb(),
            67..=72 => self.steer(),
            _ => self.pull(),
        }
    }

    fn write(&mut self) {
        self.clients.time += match self.random.below(1_000) {
            0..=7 => SHARDS_GENESIS.session_ttl_ms + 1,
            8..=60 => self.random.below(3_000),
            61 if self.random.one_in(8) => JOURNAL_TTL_MS + 1,
            _ => self.random.below(20),
        };
        let command = self.clients.command();
        self.propose(command.encode());
    }

    fn advance(&mut self) {
        let (node, count) = (self.random.below(2), 1 + self.random.below(9));
        self.nodes[node as usize].apply(&self.log, count as usize);
        let [a, b] = &self.nodes;
        if self.bug.is_none() && a.applied == b.applied {
            assert_eq!(a.replica.state.pairs(), b.replica.state.pairs());
            assert_eq!(a.machine().journals(), b.machine().journals());
        }
    }

    /// A restart, or a snapshot for the replica that is behind.
    fn disturb(&mut self) {
        if self.random.one_in(2) {
            let node = self.random.below(2);
            self.nodes[node as usize].replica.restart();
            return;
        }
        let [a, b] = &mut self.nodes;
        match a.applied.cmp(&b.applied) {
            Ordering::Greater => b.restore(a),
            Ordering::Less => a.restore(b),
            Ordering::Equal => return,
        }
        self.count("restored");
    }

    /// Makes the proposals that the leaders of both groups would make.
    fn steer(&mut self) {
        let shard = SHARD;
        let Some(journal) = self.copy.journal else {
            self.aim();
            let target = self.target.unwrap();
            self.propose(JournalStep::Begin { shard, target }.encode());
            // They may be in the batch of the beginning, or not.
            for _ in 0..self.random.below(6) {
                self.write();
            }
            return;
        };
        let newest = self.newest();
        let open = self.nodes[newest].machine().journals().get(shard);
        let open = open.map_or(1, |journal| journal.open);
        let step = match (self.random.below(40), &self.copy.cursor) {
            (0..=19, _) => JournalStep::Seal {
                shard,
                journal,
                generation: open,
            },
            (20..=34, CopyCursor::Page { generation, .. }) => JournalStep::Drop {
                shard,
                journal,
                generation: generation - 1,
            },
            (35, _) => return self.retarget(None),
            (36 | 37, _) => JournalStep::Renew { shard, journal },
            _ => return,
        };
        self.propose(step.encode());
    }

    fn newest(&self) -> usize {
        usize::from(self.nodes[1].applied > self.nodes[0].applied)
    }

    fn pull(&mut self) {
        if self.random.one_in(6) && !self.copy.sent.is_empty() {
            // An old part arrives late.
            let chosen = self.random.below(self.copy.sent.len() as u64);
            let part = self.copy.sent.swap_remove(chosen as usize);
            if self.copy.take(&part) {
                self.count("late");
            }
            return;
        }
        let node = &self.nodes[self.random.below(2) as usize];
        let Some(journal) = self.copy.journal else {
            let begun = node.machine().journals().get(SHARD);
            let begun = begun.filter(|journal| Some(journal.target) == self.target);
            self.copy.journal = begun.map(|journal| journal.id);
            self.copy.since = begun.map_or(ConfigNum(0), |journal| journal.target.since);
            return;
        };
        let after = self.copy.cursor.clone();
        // A leader of the source that has sealed the generation says so.
        let newest = self.nodes[self.newest()].machine().journals().get(SHARD);
        if let CopyCursor::Page { generation, .. } = &after
            && newest.is_some_and(|journal| !journal.is_sealed(*generation))
        {
            return;
        }
        let request = CopyRequest {
            shard: SHARD,
            copy: CopyId {
                since: self.copy.since,
                journal,
            },
            fence: None,
            after,
            max_bytes: 1 + self.random.below(120) as u32,
        };
        let current = node.applied == self.log.len();
        match node.replica.query(&Query::Copy(request)) {
            Response::Part(part) => {
                if self.random.one_in(4) {
                    self.copy.sent.push((*part).clone());
                }
                if self.random.one_in(5) {
                    return;
                }
                let what = match (&part.after, &part.next) {
                    (CopyCursor::Base(_), _) => "base",
                    (_, PartNext::Done { .. }) => "done",
                    _ => "page",
                };
                let cleared = |change: &RowChange| matches!(change, RowChange::Clear { .. });
                if part.changes.iter().any(cleared) {
                    self.count("cleared");
                }
                assert!(self.copy.take(&part));
                self.count(what);
            }
            Response::Refused(KvError::Journal { error, .. }) => match error {
                JournalError::NotSealed { .. } => self.count("not sealed"),
                JournalError::Ended { .. } => self.reset(),
                JournalError::Unknown { .. } if current => self.reset(),
                JournalError::Unknown { .. } => self.count("behind"),
                other => panic!("{other}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn reset(&mut self) {
        self.copy = Copy::default();
        self.count("ended");
    }

    /// The controllers cut, and the copy becomes the shard.
    fn finish(&mut self) {
        self.aim();
        // Sessions that change just before the fence aren't named again.
        for _ in 0..self.random.below(6) {
            self.write();
        }
        self.configure(&[SOURCE, DESTINATION]);
        for _ in 0..20 {
            self.write();
        }
        for _ in 0..100_000 {
            match self.random.below(10) {
                0..=3 => self.advance(),
                4 => self.disturb(),
                _ => self.pull(),
            }
            let all = self.nodes.iter().all(|node| node.applied == self.log.len());
            if self.copy.clock.is_some() || (all && self.copy.journal.is_none()) {
                break;
            }
        }
        while self.nodes.iter().any(|node| node.applied < self.log.len()) {
            self.advance();
        }
    }

    fn check(&mut self) {
        let Some(clock) = self.copy.clock else {
            assert!(
                self.copy.journal.is_none(),
                "the copy doesn't end: {:?}",
                self.copy.cursor
            );
            self.count("fell back");
            return;
        };
        for node in &self.nodes {
            let ownership = node.machine().ownership();
            assert_eq!(ownership.shards.get(&SHARD).unwrap().clock, clock);
            assert_eq!(node.rows(Table::Data), self.copy.pairs);
            let sessions = self.copy.sessions.iter().map(|(client, record)| {
                let key = [client.birth.0.to_be_bytes(), client.nonce.to_be_bytes()].concat();
                (Bytes::from(key), record.clone())
            });
            assert_eq!(node.rows(Table::Sessions), sessions.collect());
        }
        // Deletion takes the journal along.
        let delete = Step::Delete {
            shard: SHARD,
            config: self.config.num(),
        };
        self.propose(delete.encode());
        while self.nodes.iter().any(|node| node.applied < self.log.len()) {
            self.advance();
        }
        for node in &self.nodes {
            assert_eq!(node.machine().journals().get(SHARD), None);
            for table in [Table::Data, Table::Sessions, Table::Journal] {
                assert_eq!(node.rows(table), BTreeMap::new());
            }
        }
        self.count("equal");
    }
}

fn run(seed: u64, bug: Option<Bug>) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed, bug);
    let short = !world.random.one_in(3);
    let count = if short {
        40 + world.random.below(120)
    } else {
        OPERATIONS
    };
    for _ in 0..count {
        world.act();
    }
    world.finish();
    world.check();
    world.seen
}

#[test]
fn copies_equal_the_shard_at_its_fence() {
    let mut seen = BTreeMap::new();
    for seed in 0..300 {
        for (what, count) in run(seed, None) {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "base",
        "page",
        "done",
        "late",
        "cleared",
        "not sealed",
        "behind",
        "ended",
        "restored",
        "equal",
    ] {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count > 30, "{what} was seen too seldom: {seen:?}");
    }
}

/// Each mistake must show as a copy that differs, not only as replicas that differ.
#[cfg(feature = "bugs")]
#[test]
fn known_bugs_are_found() {
    for bug in Bug::OF_JOURNALS {
        let finds = |seed| std::panic::catch_unwind(|| run(seed, Some(bug))).is_err();
        let seed = (0..600).find(|seed| finds(*seed));
        assert!(seed.is_some(), "{bug:?} shows in no world");
    }
}
