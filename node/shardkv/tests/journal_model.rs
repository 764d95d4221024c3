//! Random copies of a served shard from two replicas that cut the log differently, restart, and restore each other's snapshots.
//! In the end the copy must equal the shard at its fence.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::Random;
use common::clients::Source;
use common::replicas::{
    BYSTANDER, Group, Operation, Rows, SHARD, check_seen, configuration, pass_time, target,
};
use replica::Table;
use shardkv::{
    Bug, CopyCursor, CopyId, CopyRequest, JournalError, JournalStep, KvError, Part, PartNext,
    Query, Response, RowChange, SessionClock, Step,
};
use types::{ClientId, Gid, ShardConfig};

const SOURCE: Gid = Gid(1);
const DESTINATION: Gid = Gid(2);
/// The operations of a long run before the fence. Short runs find more: a forgotten row isn't named again.
const OPERATIONS: u64 = 700;

/// The destination.
#[derive(Default)]
struct Copy {
    id: Option<CopyId>,
    cursor: CopyCursor,
    pairs: BTreeMap<Bytes, Bytes>,
    sessions: BTreeMap<ClientId, Bytes>,
    rows: BTreeMap<Bytes, Bytes>,
    clock: Option<SessionClock>,
    /// Parts that may arrive again.
    sent: Vec<Part>,
}

impl Copy {
    /// Takes a part that follows exactly.
    fn take(&mut self, part: &Part) -> bool {
        if self.id != Some(part.copy) || self.cursor != part.after || self.clock.is_some() {
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
                RowChange::Row(key, Some(value)) => {
                    self.rows.insert(key.clone(), value.clone());
                }
                RowChange::Row(key, None) => {
                    self.rows.remove(key);
                }
                RowChange::ClearRows(prefix) => {
                    self.rows.retain(|key, _| !key.starts_with(prefix));
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
    /// Draws changes of rows of keyspaces.
    rows: Random,
    clients: Source,
    source: Group,
    copy: Copy,
    config: ShardConfig,
    seen: BTreeMap<&'static str, u64>,
    bug: Option<Bug>,
}

impl World {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut world = Self {
            random: Random(seed),
            rows: Random(seed + 2_000_000),
            clients: Source::new(seed + 1_000_000),
            source: Group::new(SOURCE, 0, bug),
            copy: Copy::default(),
            config: ShardConfig::empty(2),
            seen: BTreeMap::new(),
            bug,
        };
        world.configure(SOURCE, SOURCE);
        world.take_up();
        world.log(Operation::create("one"));
        world
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn log(&mut self, operation: Operation) {
        let time = self.clients.time;
        self.source.log(&mut self.random, time, operation, false);
    }

    fn propose(&mut self, bytes: Bytes) {
        self.log(Operation::Encoded(bytes));
    }

    fn configure(&mut self, target: Gid, owner: Gid) {
        self.config = configuration(&self.config, SOURCE, target, owner);
    }

    /// A replica proposes to take up the latest configuration.
    fn take_up(&mut self) {
        let node = self.random.below(2) as usize;
        if let Some(step) = self.source.take_up(node, &self.config) {
            self.propose(step.encode());
        }
    }

    fn aim(&mut self) {
        if target(&self.config).to != DESTINATION {
            self.configure(DESTINATION, SOURCE);
        }
    }

    /// One thing happens.
    fn act(&mut self) {
        if self.rows.one_in(3) {
            self.change_row();
        }
        match self.random.below(100) {
            0..=44 => self.write(),
            45 => {
                let clear = Operation::clear(&mut self.random, &mut self.clients);
                self.log(clear);
            }
            46..=65 => self.advance(),
            66 => self.disturb(),
            67..=72 => self.steer(),
            73..=75 => self.take_up(),
            _ => self.pull(),
        }
    }

    fn write(&mut self) {
        pass_time(&mut self.random, &mut self.clients);
        let command = self.clients.command();
        self.propose(command.encode());
    }

    fn change_row(&mut self) {
        let (time, operation) = (self.clients.time, Operation::keyspace(&mut self.rows));
        self.source.log(&mut self.rows, time, operation, false);
    }

    fn advance(&mut self) {
        let (node, count) = (self.random.below(2), 1 + self.random.below(9));
        self.source.advance(node as usize, count as usize);
        if self.bug.is_none() {
            self.source.check_equal();
        }
    }

    fn disturb(&mut self) {
        if self.source.disturb(&mut self.random) {
            self.count("restored");
        }
    }

    /// Makes the proposals that the leaders of both groups would make.
    fn steer(&mut self) {
        let shard = SHARD;
        let Some(CopyId { journal, .. }) = self.copy.id else {
            self.aim();
            self.take_up();
            let target = target(&self.config);
            self.propose(JournalStep::Begin { shard, target }.encode());
            // They may be in the batch of the beginning, or not.
            for _ in 0..self.random.below(6) {
                self.write();
            }
            return;
        };
        let step = match (self.random.below(40), &self.copy.cursor) {
            (0..=19, _) => self.source.seal(journal),
            (20..=34, CopyCursor::Page { generation, .. }) => JournalStep::Drop {
                shard,
                journal,
                generation: generation - 1,
            },
            (35, _) => {
                let to = if self.random.one_in(2) {
                    SOURCE
                } else {
                    BYSTANDER
                };
                return self.configure(to, SOURCE);
            }
            (36 | 37, _) => JournalStep::Renew { shard, journal },
            _ => return,
        };
        self.propose(step.encode());
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
        let chosen = self.random.below(2) as usize;
        let node = &self.source.nodes[chosen];
        let Some(copy) = self.copy.id else {
            let begun = node.machine().journals().get(SHARD);
            let begun = begun.filter(|journal| journal.target == target(&self.config));
            self.copy.id = begun.map(|journal| CopyId {
                since: journal.target.since,
                journal: journal.id,
            });
            return;
        };
        let after = self.copy.cursor.clone();
        // A leader of the source that has sealed the generation says so.
        let newest = self.source.newest().machine().journals().get(SHARD);
        if let CopyCursor::Page { generation, .. } = &after
            && newest.is_some_and(|journal| !journal.is_sealed(*generation))
        {
            return;
        }
        let request = CopyRequest {
            shard: SHARD,
            copy,
            fence: None,
            after,
            max_bytes: 1 + self.random.below(120) as u32,
        };
        let current = self.source.is_current(chosen);
        match node.replica.query(&Query::Copy(request)) {
            Response::Part(part) => self.receive(&part),
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

    /// A part arrives, or is lost, or arrives once more later.
    fn receive(&mut self, part: &Part) {
        if self.random.one_in(4) {
            self.copy.sent.push(part.clone());
        }
        if self.random.one_in(5) {
            return;
        }
        let what = match (&part.after, &part.next) {
            (CopyCursor::Base(_), _) => "base",
            (_, PartNext::Done { .. }) => "done",
            _ => "page",
        };
        for change in &part.changes {
            match change {
                RowChange::Clear { .. } => self.count("cleared"),
                RowChange::ClearRows(_) => self.count("rows cleared"),
                RowChange::Row(_, Some(_)) => self.count("row"),
                RowChange::Row(_, None) => self.count("no row"),
                _ => {}
            }
        }
        assert!(self.copy.take(part));
        self.count(what);
    }

    fn reset(&mut self) {
        let sent = std::mem::take(&mut self.copy.sent);
        self.copy = Copy {
            sent,
            ..Copy::default()
        };
        self.count("ended");
    }

    /// The controllers cut, and the copy becomes the shard.
    fn finish(&mut self) {
        self.aim();
        while self.source.accepted() < self.config.num() {
            self.take_up();
            self.advance();
        }
        // Sessions that change just before the fence aren't named again.
        for _ in 0..self.random.below(6) {
            self.write();
        }
        for _ in 0..self.rows.below(4) {
            self.change_row();
        }
        self.configure(DESTINATION, DESTINATION);
        let newest = usize::from(self.source.nodes[1].applied > self.source.nodes[0].applied);
        let cut = self.source.take_up(newest, &self.config).unwrap();
        self.propose(cut.encode());
        for _ in 0..20 {
            self.write();
            self.change_row();
        }
        for _ in 0..100_000 {
            match self.random.below(10) {
                0..=3 => self.advance(),
                4 => self.disturb(),
                _ => self.pull(),
            }
            let falls_back = self.source.are_all_current() && self.copy.id.is_none();
            if self.copy.clock.is_some() || falls_back {
                break;
            }
        }
        self.apply_all();
    }

    fn apply_all(&mut self) {
        while !self.source.are_all_current() {
            self.advance();
        }
    }

    fn check(&mut self) {
        let Some(clock) = self.copy.clock else {
            let cursor = &self.copy.cursor;
            assert_eq!(self.copy.id, None, "the copy doesn't end: {cursor:?}");
            self.count("fell back");
            return;
        };
        let sessions = self.copy.sessions.iter().map(|(client, record)| {
            let key = [client.birth.0.to_be_bytes(), client.nonce.to_be_bytes()].concat();
            (Bytes::from(key), record.clone())
        });
        let copied = [
            self.copy.pairs.clone(),
            sessions.collect(),
            self.copy.rows.clone(),
        ];
        for node in &self.source.nodes {
            assert_eq!(node.clock(), Some(clock));
            assert_eq!(node.rows(), copied);
        }
        // Deletion takes the journal along.
        let delete = Step::Delete {
            shard: SHARD,
            config: self.config.num(),
        };
        self.propose(delete.encode());
        self.apply_all();
        for node in &self.source.nodes {
            assert_eq!(node.machine().journals().get(SHARD), None);
            assert_eq!(node.rows(), Rows::default());
            assert_eq!(node.table(Table::Journal), BTreeMap::new());
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
    let expected = [
        "base",
        "page",
        "done",
        "late",
        "cleared",
        "row",
        "no row",
        "rows cleared",
        "not sealed",
        "behind",
        "ended",
        "restored",
        "equal",
    ];
    check_seen(300, &expected, |seed| run(seed, None));
}

/// Each mistake must show as a copy that differs, not only as replicas that differ.
#[cfg(feature = "bugs")]
#[test]
fn known_bugs_are_found() {
    common::replicas::check_found(Bug::OF_JOURNALS, |seed, bug| {
        run(seed, Some(bug));
    });
}
