//! Two groups that copy a shard from each other while clients write, targets change, the controllers cut at any time, replicas cut
//! the logs differently, restart and restore snapshots, and old steps arrive late. What a group serves must begin as the shard at the fence.

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
use replica::{Applying, StateMachine, StateStore, Table, Transaction};
use shardkv::{
    Bug, CopyId, CopyRequest, CopyStep, Genesis, JOURNAL_TTL_MS, JournalError, JournalStep,
    KvError, Next, PartNext, PlannedMove, Query, Response, ShardKv, ShardState, Step, Target,
};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, LogTime, ShardConfig, ShardId};

const SHARDS: u32 = 2;
/// The shard that moves. The other one stays with the second group, whose writes forget sessions of both.
const SHARD: ShardId = ShardId(1);
const GIDS: [Gid; 2] = [Gid(1), Gid(2)];
const GENESIS: Genesis = Genesis {
    shards: SHARDS,
    ..SHARDS_GENESIS
};
const CONTROLLER: ClusterId = ClusterId(77);

/// An operation of a group's log.
#[derive(Clone, Debug)]
enum Operation {
    Encoded(Bytes),
    /// A part of the entry that brings a configuration.
    Plan(Option<PlannedMove>),
    /// An operation that clears a range of pairs.
    Clear(Bytes, Bytes),
}

#[derive(Clone, Debug)]
struct Logged {
    index: u64,
    time: u64,
    operation: Operation,
    /// True if the shard may become served by it: a batch ends there, so that the test sees the rows.
    may_serve: bool,
}

/// A replica.
struct Node {
    replica: Replica,
    applied: usize,
}

impl Node {
    fn machine(&self) -> &ShardKv {
        &self.replica.machine
    }

    fn state(&self) -> Option<ShardState> {
        self.machine().ownership().state(SHARD).cloned()
    }

    /// Applies at most `count` more operations as one batch, which ends with an entry.
    fn apply(&mut self, log: &[Logged], count: usize) {
        let mut end = (self.applied + count).min(log.len());
        if let Some(stop) = (self.applied..end).find(|at| log[*at].may_serve) {
            end = stop + 1;
        }
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
            match &logged.operation {
                Operation::Encoded(bytes) => {
                    let answer = machine.apply(at, bytes.clone(), &mut transaction).unwrap();
                    let malformed = matches!(answer, Response::Refused(KvError::Malformed(_)));
                    assert!(!malformed, "{answer:?}");
                }
                Operation::Plan(planned) => machine.plan(SHARD, *planned, &mut transaction),
                Operation::Clear(start, end) => {
                    let _ = machine.clear_range(SHARD, (start, end), &mut transaction);
                }
            }
            applied.last = at.entry;
            applied.time = at.time;
        }
        machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        state.commit(batch, applied).unwrap();
        self.applied = end;
        let rows = state.pairs().keys();
        let records = rows.filter(|(table, _)| *table == Table::Sessions).count();
        assert_eq!(machine.session_count(), records, "table and records differ");
    }

    fn restore(&mut self, other: &mut Self) {
        let state = &mut self.replica.state;
        let mut snapshot = other.replica.state.snapshot().unwrap();
        state.begin_restore(snapshot.meta()).unwrap();
        while let Some(chunk) = snapshot.next_chunk().unwrap() {
            state.restore_chunk(&chunk).unwrap();
        }
        state.finish_restore().unwrap();
        self.applied = other.applied;
        self.replica.restart();
    }

    fn rows(&self) -> Rows {
        [Table::Data, Table::Sessions].map(|table| rows(&self.replica.state, table))
    }
}

/// The pairs and the sessions of the shard.
type Rows = [BTreeMap<Bytes, Bytes>; 2];

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

struct Group {
    gid: Gid,
    log: Vec<Logged>,
    nodes: [Node; 2],
    /// The difference of the group's log time to the clients'.
    ahead: u64,
    /// Steps that may arrive again.
    sent: Vec<(Bytes, bool)>,
}

impl Group {
    fn newest(&self) -> &Node {
        &self.nodes[usize::from(self.nodes[1].applied > self.nodes[0].applied)]
    }

    fn is_current(&self) -> bool {
        self.nodes.iter().all(|node| node.applied == self.log.len())
    }
}

struct World {
    random: Random,
    clients: Source,
    groups: [Group; 2],
    config: ShardConfig,
    planned: Option<PlannedMove>,
    owner_since: ConfigNum,
    /// The shard at each fence: its rows and its clock.
    fences: BTreeMap<ConfigNum, (Rows, LogTime)>,
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random(seed);
        let ahead = [random.below(20_000), random.below(20_000)];
        let group = |at: usize| Group {
            gid: GIDS[at],
            log: Vec::new(),
            nodes: [0, 1].map(|_| Node {
                replica: Replica::with_bug(GENESIS, bug),
                applied: 0,
            }),
            ahead: ahead[at],
            sent: Vec::new(),
        };
        let mut world = Self {
            random,
            clients: Source::new(seed + 1_000_000),
            groups: [group(0), group(1)],
            config: ShardConfig::empty(SHARDS),
            planned: None,
            owner_since: ConfigNum(1),
            fences: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        for (at, gid) in GIDS.into_iter().enumerate() {
            let begin = Step::Begin {
                gid,
                controller: CONTROLLER,
                num: ConfigNum(0),
                groups: BTreeMap::new(),
            };
            world.propose(at, begin.encode());
        }
        let owner = world.random.below(2) as usize;
        world.configure(owner, None);
        world
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn log(&mut self, at: usize, operation: Operation, may_serve: bool) {
        let joins = self.random.one_in(4);
        let group = &mut self.groups[at];
        let index = group.log.last().map_or(0, |logged| logged.index);
        // Several operations may stand in one entry, unless a replica has applied a part of it.
        let begun = group
            .nodes
            .iter()
            .any(|node| node.applied == group.log.len());
        let alone = group.log.last().is_some_and(|last| last.may_serve);
        let index = index + u64::from(index == 0 || !joins || begun || alone || may_serve);
        let time = self.clients.time + group.ahead;
        group.log.push(Logged {
            index,
            time,
            operation,
            may_serve,
        });
    }

    fn propose(&mut self, at: usize, bytes: Bytes) {
        self.log(at, Operation::Encoded(bytes), false);
    }

    /// Proposes a step of the destination, which may arrive again later.
    fn step(&mut self, at: usize, step: &Step) {
        let may_serve = match step {
            Step::Install(chunk) => matches!(chunk.next, Next::Done { .. }),
            Step::Copy(CopyStep::Take(part)) => matches!(part.next, PartNext::Done { .. }),
            Step::Copy(CopyStep::Restart { .. }) => true,
            _ => false,
        };
        let bytes = step.encode();
        if self.random.one_in(3) {
            self.groups[at].sent.push((bytes.clone(), may_serve));
        }
        self.log(at, Operation::Encoded(bytes), may_serve);
    }

    fn owner(&self) -> usize {
        usize::from(self.config.owners()[SHARD.0 as usize] == GIDS[1])
    }

    /// The next configuration: its owner of the shard, and its plan. Both logs get it, and their replicas apply it when they come to it.
    fn configure(&mut self, owner: usize, planned: Option<PlannedMove>) {
        let groups = GIDS.map(|gid| (gid, vec![format!("{gid}:1")]));
        let owners = [GIDS[1], GIDS[owner]];
        let delta = ConfigDelta::between(&self.config, &groups.into(), &owners);
        self.config.apply(&delta).unwrap();
        self.planned = planned;
        let step = Step::Configure {
            controller: CONTROLLER,
            delta,
        };
        for at in 0..2 {
            self.log(at, Operation::Encoded(step.encode()), true);
            self.log(at, Operation::Plan(planned), false);
        }
    }

    /// The shard's target becomes the owner again, or it was a third group, which neither group copies for.
    fn unplan(&mut self) {
        self.configure(self.owner(), None);
    }

    fn aim(&mut self) {
        let owner = self.owner();
        let planned = PlannedMove {
            owner: GIDS[owner],
            owner_since: self.owner_since,
            target: Target {
                to: GIDS[1 - owner],
                since: self.config.num().next(),
            },
        };
        self.configure(owner, Some(planned));
    }

    /// The controllers cut, without regard to the copy's progress.
    fn cut(&mut self) {
        if self.planned.is_some() {
            let owner = self.owner();
            self.configure(1 - owner, None);
            self.owner_since = self.config.num();
        }
    }

    fn act(&mut self) {
        match self.random.below(200) {
            0..=59 => self.write(),
            60 => {
                let (start, end) = (self.clients.key(), self.clients.key());
                let end = if self.random.one_in(3) {
                    Bytes::new()
                } else {
                    end
                };
                let at = self.owner();
                self.log(at, Operation::Clear(start, end), false);
            }
            61 if self.planned.is_none() => self.aim(),
            62 if self.random.one_in(4) => {
                self.unplan();
                if self.random.one_in(2) {
                    self.aim();
                }
            }
            63 if self.random.one_in(3) => self.cut(),
            64..=119 => self.advance(),
            120 | 121 => self.disturb(),
            122..=126 => self.repeat(),
            _ => self.drive(),
        }
    }

    fn write(&mut self) {
        self.clients.time += match self.random.below(1_000) {
            0..=7 => SHARDS_GENESIS.session_ttl_ms + 1,
            8..=60 => self.random.below(3_000),
            61..=63 => JOURNAL_TTL_MS + 1,
            _ => self.random.below(20),
        };
        let command = self.clients.command().encode();
        // Clients may be behind the configurations.
        let at = if self.random.one_in(5) {
            self.random.below(2) as usize
        } else {
            self.owner()
        };
        self.propose(at, command);
    }

    fn advance(&mut self) {
        let (at, node) = (self.random.below(2) as usize, self.random.below(2) as usize);
        let count = 1 + self.random.below(9) as usize;
        self.advance_node(at, node, count);
    }

    fn advance_node(&mut self, at: usize, node: usize, count: usize) {
        let group = &mut self.groups[at];
        let before = group.nodes[node].state();
        let mut served = false;
        group.nodes[node].apply(&group.log, count);
        let here = &group.nodes[node];
        let now = here.state();
        let clock = here
            .machine()
            .ownership()
            .shards
            .get(&SHARD)
            .map(|it| it.clock);
        if let (Some(ShardState::Fenced { config, .. }), Some(clock)) = (&now, clock) {
            let fenced = (here.rows(), clock);
            let known = self.fences.entry(*config).or_insert_with(|| fenced.clone());
            assert_eq!(*known, fenced, "the fenced shard differs");
        }
        let arrives = !matches!(before, Some(ShardState::Serving { .. }));
        if arrives
            && let Some(ShardState::Serving { config }) = now
            && config > ConfigNum(1)
        {
            let (rows, clock) = &self.fences[&config];
            assert_eq!(here.rows(), *rows, "the shard differs from the fenced one");
            let copied = here
                .machine()
                .ownership()
                .shards
                .get(&SHARD)
                .map(|it| it.clock);
            assert_eq!(copied, Some(*clock));
            served = true;
        }
        if now.is_none() {
            assert_eq!(here.rows(), Rows::default(), "an absent shard has rows");
        }
        let [a, b] = &group.nodes;
        if a.applied == b.applied {
            assert_eq!(a.replica.state.pairs(), b.replica.state.pairs());
            assert_eq!(a.machine().ownership(), b.machine().ownership());
        }
        if served {
            self.count("served");
        }
    }

    /// A restart, or a snapshot for the replica that is behind.
    fn disturb(&mut self) {
        let at = self.random.below(2) as usize;
        if self.random.one_in(2) {
            let node = self.random.below(2) as usize;
            self.groups[at].nodes[node].replica.restart();
            return;
        }
        let [a, b] = &mut self.groups[at].nodes;
        match a.applied.cmp(&b.applied) {
            Ordering::Greater => b.restore(a),
            Ordering::Less => a.restore(b),
            Ordering::Equal => return,
        }
        self.count("restored");
    }

    /// A step arrives again, late.
    fn repeat(&mut self) {
        let at = self.random.below(2) as usize;
        let sent = &mut self.groups[at].sent;
        if sent.is_empty() {
            return;
        }
        let chosen = self.random.below(sent.len() as u64) as usize;
        let (bytes, may_serve) = sent.swap_remove(chosen);
        self.log(at, Operation::Encoded(bytes), may_serve);
    }

    /// A leader of a group does something for the shard, by a state that may be old.
    fn drive(&mut self) {
        let at = self.random.below(2) as usize;
        let node = self.random.below(2) as usize;
        let ownership = self.groups[at].nodes[node].machine().ownership();
        if let Some(((shard, config), _)) = ownership.pending_deletes.iter().next() {
            let (shard, config) = (*shard, *config);
            self.delete(at, shard, config);
        }
        let planned = ownership.planned.get(&SHARD).copied();
        match ownership.state(SHARD) {
            // Where it is fenced, the copy has to wait, and the machine has to know that.
            None | Some(ShardState::Fenced { .. }) => {
                if let Some(planned) = planned
                    && planned.target.to == GIDS[at]
                {
                    self.begin(at, planned);
                }
            }
            Some(ShardState::Copying { copy, cursor, .. }) => {
                if self.random.one_in(40) {
                    let copy = *copy;
                    self.step(at, &Step::Copy(CopyStep::Drop { shard: SHARD, copy }));
                } else {
                    self.steer(at, *copy, cursor);
                    self.copy(at, *copy, None);
                }
            }
            Some(ShardState::Completing { copy, config, .. }) => {
                self.copy(at, *copy, Some(*config));
            }
            Some(ShardState::Pulling { config, after, .. }) => {
                let query = Query::Pull {
                    shard: SHARD,
                    config: *config,
                    after: after.clone(),
                    max_bytes: 1 + self.random.below(200) as u32,
                };
                let source = &self.groups[1 - at].nodes[node];
                if let Response::Chunk(chunk) = source.replica.query(&query) {
                    self.step(at, &Step::Install(*chunk));
                    self.count("chunk");
                }
            }
            Some(ShardState::Serving { .. }) => {}
        }
    }

    fn delete(&mut self, at: usize, shard: ShardId, config: ConfigNum) {
        if self.random.one_in(12) {
            self.propose(1 - at, Step::Delete { shard, config }.encode());
        }
        // The source's leader has applied the delete if the shard's fence is over there.
        let source = self.groups[1 - at].newest().machine().ownership();
        let fenced = |state: &ShardState| matches!(state, ShardState::Fenced { config: by, .. } if *by == config);
        if source.config >= config && !source.state(shard).is_some_and(fenced) {
            self.propose(at, Step::Deleted { shard, config }.encode());
        }
    }

    /// Begins a journal at the source, and the copy of a journal that the source's leader has.
    fn begin(&mut self, at: usize, planned: PlannedMove) {
        let (shard, target) = (SHARD, planned.target);
        let newest = self.groups[1 - at].newest().machine().journals().get(SHARD);
        match newest.filter(|journal| journal.target == target) {
            Some(journal) => {
                let copy = CopyId {
                    since: target.since,
                    journal: journal.id,
                };
                let source = planned.owner;
                let start = CopyStep::Start {
                    shard,
                    source,
                    copy,
                };
                self.step(at, &Step::Copy(start));
                self.count("started");
            }
            None => self.propose(1 - at, JournalStep::Begin { shard, target }.encode()),
        }
    }

    /// Seals, drops and renews at the source.
    fn steer(&mut self, at: usize, copy: CopyId, cursor: &shardkv::CopyCursor) {
        let (shard, journal) = (SHARD, copy.journal);
        let newest = self.groups[1 - at].newest().machine().journals().get(SHARD);
        let open = newest.map_or(1, |journal| journal.open);
        let step = match (self.random.below(30), cursor) {
            (0..=4, _) => JournalStep::Seal {
                shard,
                journal,
                generation: open,
            },
            (5..=7, shardkv::CopyCursor::Page { generation, .. }) => JournalStep::Drop {
                shard,
                journal,
                generation: generation - 1,
            },
            (8, _) => JournalStep::Renew { shard, journal },
            _ => return,
        };
        self.propose(1 - at, step.encode());
    }

    fn copy(&mut self, at: usize, copy: CopyId, fence: Option<ConfigNum>) {
        let shard = SHARD;
        let state = self.groups[at].newest().state();
        let Some(ShardState::Copying { cursor, .. } | ShardState::Completing { cursor, .. }) =
            state
        else {
            return;
        };
        let request = CopyRequest {
            shard,
            copy,
            fence,
            after: cursor,
            max_bytes: 1 + self.random.below(200) as u32,
        };
        let source = &self.groups[1 - at];
        let node = &source.nodes[self.random.below(2) as usize];
        let leads = node.applied == source.newest().applied;
        match node.replica.query(&Query::Copy(request)) {
            Response::Part(part) => {
                let done = matches!(part.next, PartNext::Done { .. });
                self.count(if done { "done" } else { "part" });
                self.step(at, &Step::Copy(CopyStep::Take(*part)));
            }
            Response::Refused(KvError::Journal { error, .. }) => match (error, fence) {
                (JournalError::NotSealed { .. }, None) => self.count("not sealed"),
                (JournalError::Ended { .. }, Some(config)) => {
                    self.count("restarted");
                    let restart = CopyStep::Restart {
                        shard,
                        config,
                        copy,
                    };
                    self.step(at, &Step::Copy(restart));
                }
                (JournalError::Ended { .. } | JournalError::Unknown { .. }, None) if leads => {
                    self.count("dropped");
                    self.step(at, &Step::Copy(CopyStep::Drop { shard, copy }));
                }
                // A replica that is behind; or the request has one copy's name and another's cursor.
                (JournalError::Ended { .. } | JournalError::Unknown { .. }, None)
                | (JournalError::Dropped { .. } | JournalError::BadCursor, _) => {}
                other => panic!("{other:?}"),
            },
            Response::Refused(KvError::ShardNotReady { .. } | KvError::ShardGone { .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Everything ends: the shard is served by its owner, and nothing is owed.
    fn finish(&mut self) {
        let settled = |group: &Group| {
            let ownership = group.newest().machine().ownership();
            group.is_current() && ownership.settled() == ownership.config
        };
        for _ in 0..100_000 {
            if self.groups.iter().all(settled) {
                let owner = &self.groups[self.owner()];
                let state = owner.newest().state();
                assert!(
                    matches!(state, Some(ShardState::Serving { .. })),
                    "not served: {state:?}"
                );
                return;
            }
            match self.random.below(10) {
                0..=4 => self.advance(),
                5 => self.disturb(),
                _ => self.drive(),
            }
        }
        let states = self.groups.each_ref().map(|group| group.newest().state());
        panic!("the move doesn't end: {states:?}");
    }
}

fn run(seed: u64, bug: Option<Bug>) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed, bug);
    let count = 200 + world.random.below(1_500);
    for _ in 0..count {
        world.act();
    }
    world.cut();
    world.finish();
    for group in &world.groups {
        assert_eq!(group.gid, group.newest().machine().ownership().gid);
    }
    world.seen
}

#[test]
fn what_is_served_begins_as_the_shard_at_its_fence() {
    let mut seen = BTreeMap::new();
    for seed in 0..300 {
        for (what, count) in run(seed, None) {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "chunk",
        "started",
        "part",
        "done",
        "not sealed",
        "dropped",
        "restarted",
        "restored",
        "served",
    ] {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count > 30, "{what} was seen too seldom: {seen:?}");
    }
}

#[cfg(feature = "bugs")]
#[test]
fn known_bugs_are_found() {
    for bug in Bug::OF_COPIES {
        let finds = |seed| std::panic::catch_unwind(|| run(seed, Some(bug))).is_err();
        let seed = (0..600).find(|seed| finds(*seed));
        assert!(seed.is_some(), "{bug:?} shows in no world");
    }
}
