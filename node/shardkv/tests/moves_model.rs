//! Random moves between groups whose messages are lost, doubled and late, against a model; and the same logs again.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::clients::{MAX_VALUE, Model, Source};
use common::{Random, Replica, SHARDS_GENESIS};
use replica::Table;
use shardkv::Bug;
use shardkv::{Command, Cursor, Genesis, KvError, Query, Response, ShardState, Step};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId, ShardSet, shard_of};

const CONTROLLER: ClusterId = ClusterId(77);
const SHARDS: u32 = SHARDS_GENESIS.shards;
/// The most messages that wait for a group; beyond that some are lost.
const MAX_INBOX: u64 = 40;

/// A message in flight to a group.
#[derive(Clone)]
enum Message {
    /// A client's write.
    Write(Command),
    /// For its log.
    Propose(Step),
    /// From the group that owes the delete.
    Delete(usize, Step),
}

struct Group {
    gid: Gid,
    genesis: Genesis,
    replica: Replica,
    /// The clock's lead, in milliseconds.
    skew: u64,
    inbox: Vec<Message>,
    /// All that was applied.
    log: Vec<common::Step>,
    /// It owned something in some configuration.
    involved: bool,
}

impl Group {
    fn new(number: u64, random: &mut Random, bug: Option<Bug>) -> Self {
        let genesis = Genesis {
            session_ttl_ms: [10_000, 7_000, 14_000][random.below(3) as usize],
            ..SHARDS_GENESIS
        };
        Self {
            gid: Gid(number + 1),
            genesis,
            replica: Replica::with_bug(genesis, bug),
            skew: random.below(6_000),
            inbox: Vec::new(),
            log: Vec::new(),
            involved: false,
        }
    }

    /// Applies operations as one batch.
    fn apply(&mut self, now: u64, operations: Vec<Bytes>) -> Vec<Response> {
        let last = self.log.last();
        let (index, time) = last.map_or((0, 0), |step| (step.index, step.time));
        let time = time.max(now + self.skew);
        let steps = operations.into_iter().zip(index + 1..);
        let steps: Vec<_> = steps
            .map(|(operation, index)| common::Step {
                index,
                time,
                max_value_bytes: MAX_VALUE,
                operation,
            })
            .collect();
        self.log.extend(steps.iter().cloned());
        self.replica.batch(&steps)
    }

    fn served(&self) -> BTreeSet<ShardId> {
        let ownership = self.replica.machine.ownership();
        let shards = ownership.shards.keys().copied();
        shards
            .filter(|shard| ownership.check_served(*shard).is_ok())
            .collect()
    }
}

struct World {
    random: Random,
    clients: Source,
    model: Model,
    config: ShardConfig,
    deltas: Vec<ConfigDelta>,
    groups: Vec<Group>,
    seen: BTreeMap<&'static str, u64>,
    bug: Option<Bug>,
}

impl World {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random(seed);
        let count = 2 + random.below(2);
        let groups: Vec<_> = (0..count)
            .map(|n| Group::new(n, &mut random, bug))
            .collect();
        let ttl = groups.iter().map(|group| group.genesis.session_ttl_ms);
        let mut world = Self {
            clients: Source::new(seed + 1_000_000),
            model: Model::new(ttl.min().unwrap()),
            config: ShardConfig::empty(SHARDS),
            deltas: Vec::new(),
            groups,
            seen: BTreeMap::new(),
            random,
            bug,
        };
        // The first group is there from the start, others begin when they are.
        world.begin(0);
        world
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn pick(&mut self) -> usize {
        self.random.below(self.groups.len() as u64) as usize
    }

    fn begin(&mut self, number: usize) {
        let group = &self.groups[number];
        let late = !group.involved && self.random.one_in(2);
        let start = if late {
            self.config.clone()
        } else {
            ShardConfig::empty(SHARDS)
        };
        let step = Step::Begin {
            gid: group.gid,
            controller: CONTROLLER,
            num: start.num(),
            groups: start.member_addresses(),
        };
        self.send(number, Message::Propose(step));
    }

    fn send(&mut self, to: usize, message: Message) {
        let inbox = &mut self.groups[to].inbox;
        inbox.push(message);
        if inbox.len() as u64 > MAX_INBOX {
            let lost = self.random.below(MAX_INBOX);
            inbox.swap_remove(lost as usize);
        }
    }

    /// One thing happens.
    fn act(&mut self) {
        match self.random.below(100) {
            0 => self.reconfigure(),
            1..=3 => {
                let number = self.pick();
                self.groups[number].replica.restart();
            }
            4..=20 => {
                let number = self.pick();
                self.drive(number);
            }
            21..=25 => self.read(),
            26..=55 => self.write(),
            _ => self.batch(),
        }
        self.check_owners();
    }

    fn reconfigure(&mut self) {
        let change = 1 + self.random.below(3);
        let mut owners = self.config.owners().to_vec();
        for owner in &mut owners {
            if *owner == Gid::NONE || self.random.one_in(change) {
                *owner = Gid(1 + self.random.below(self.groups.len() as u64));
            }
        }
        let mut groups = BTreeMap::new();
        for group in &mut self.groups {
            let owns = owners.contains(&group.gid);
            group.involved |= owns;
            // A group that owns nothing may have left, and a present group's addresses may have changed.
            if owns || self.random.one_in(2) {
                let port = 1 + self.random.below(2);
                groups.insert(group.gid, vec![format!("{}:{port}", group.gid)]);
            }
        }
        let delta = ConfigDelta::between(&self.config, &groups, &owners);
        self.config.apply(&delta).unwrap();
        self.deltas.push(delta);
    }

    /// The configuration `num`, for a group's log.
    fn configure(&self, num: ConfigNum) -> Option<Step> {
        let delta = self.deltas.get((num.0 as usize).checked_sub(1)?)?;
        Some(Step::Configure {
            controller: CONTROLLER,
            delta: delta.clone(),
        })
    }

    /// Does at random what a mover might do, and repeats it at times.
    fn drive(&mut self, number: usize) {
        let ownership = self.groups[number].replica.machine.ownership();
        if ownership.controller.is_none() {
            self.begin(number);
        }
        let next = if self.random.one_in(5) {
            ConfigNum(1 + self.random.below(self.deltas.len() as u64 + 1))
        } else {
            ownership.config.next()
        };
        if let Some(step) = self.configure(next) {
            self.send(number, Message::Propose(step));
        }
        for (shard, of) in &ownership.shards {
            if let ShardState::Pulling {
                config,
                source,
                after,
                ..
            } = &of.state
                && self.random.one_in(2)
            {
                let pulled = self.pull(*source, *shard, *config, after.clone());
                if let Some(step) = pulled {
                    self.send(number, Message::Propose(step));
                }
            }
        }
        for ((shard, config), source) in &ownership.pending_deletes {
            let step = Step::Delete {
                shard: *shard,
                config: *config,
            };
            let to = source.0 as usize - 1;
            self.send(to, Message::Delete(number, step));
        }
    }

    fn pull(
        &mut self,
        source: Gid,
        shard: ShardId,
        config: ConfigNum,
        after: Cursor,
    ) -> Option<Step> {
        let max_bytes = 1 + self.random.below(120) as u32;
        let query = Query::Pull {
            shard,
            config,
            after,
            max_bytes,
        };
        match self.groups[source.0 as usize - 1].replica.query(&query) {
            Response::Chunk(chunk) => {
                self.count("pulled");
                Some(Step::Install(*chunk))
            }
            Response::Refused(KvError::ShardNotReady { .. }) => None,
            other => panic!("{query:?}: {other:?}"),
        }
    }

    /// A client sends a write, mostly to the owner that it knows of.
    fn write(&mut self) {
        self.clients.time += match self.random.below(600) {
            0 => SHARDS_GENESIS.session_ttl_ms,
            1..=6 => self.random.below(3_000),
            _ => self.random.below(20),
        };
        let command = self.clients.command();
        let owner = self.config.owner(shard_of(command.write.key(), SHARDS));
        let to = if owner == Gid::NONE || self.random.one_in(8) {
            self.pick()
        } else {
            owner.0 as usize - 1
        };
        self.send(to, Message::Write(command));
    }

    /// A group takes some of what waits for it.
    fn batch(&mut self) {
        let number = self.pick();
        let mut messages = Vec::new();
        for _ in 0..=self.random.below(8) {
            let waiting = self.groups[number].inbox.len() as u64;
            if waiting == 0 {
                break;
            }
            let chosen = self.random.below(waiting) as usize;
            let again = self.random.one_in(4);
            let inbox = &mut self.groups[number].inbox;
            messages.push(if again {
                inbox[chosen].clone()
            } else {
                inbox.swap_remove(chosen)
            });
        }
        let operations = messages.iter().map(|message| match message {
            Message::Write(command) => command.encode(),
            Message::Propose(step) | Message::Delete(_, step) => step.encode(),
        });
        let now = self.clients.time;
        let responses = self.groups[number].apply(now, operations.collect());
        for (message, response) in messages.iter().zip(responses) {
            match message {
                Message::Write(command) => self.check(command, &response),
                step => self.delivered(number, step, &response),
            }
        }
    }

    fn delivered(&mut self, number: usize, message: &Message, response: &Response) {
        assert_eq!(*response, Response::Stepped);
        self.count("stepped");
        if let Message::Delete(by, Step::Delete { shard, config }) = message {
            let (by, shard, config) = (*by, *shard, *config);
            self.count("deleted");
            let fenced = self.groups[number].replica.machine.ownership();
            let state = fenced.state(shard);
            assert_ne!(state.map(ShardState::config), Some(config), "{shard}");
            self.send(by, Message::Propose(Step::Deleted { shard, config }));
        }
    }

    fn check(&mut self, command: &Command, response: &Response) {
        if let Response::Refused(KvError::WrongGroup { .. } | KvError::ShardNotReady { .. }) =
            response
        {
            self.count("elsewhere");
            return;
        }
        let ahead = self.groups.iter().map(|group| group.skew).max().unwrap();
        let latest = self.clients.time + ahead;
        let outcome = self.model.check(command, latest, response);
        self.count(outcome);
    }

    /// Whoever answers a read answers what was last written.
    fn read(&mut self) {
        let key = self.clients.key();
        let expected = Response::Value(self.model.data.get(&key).cloned());
        for number in 0..self.groups.len() {
            let get = Query::Get { key: key.clone() };
            match self.groups[number].replica.query(&get) {
                Response::Refused(KvError::WrongGroup { .. } | KvError::ShardNotReady { .. }) => {}
                answer => {
                    assert_eq!(answer, expected, "{key:?}");
                    self.count("read");
                }
            }
        }
        let number = self.pick();
        let replica = &self.groups[number].replica;
        let served = self.groups[number].served();
        let expected = self.model.data.iter();
        let expected: Vec<_> = expected
            .filter(|(key, _)| served.contains(&shard_of(key, SHARDS)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let some: ShardSet = served.into_iter().collect();
        for shards in [None, Some(some)] {
            let scan = Query::Scan {
                start: Bytes::new(),
                end: Bytes::new(),
                limit: u32::MAX,
                max_bytes: u32::MAX,
                shards,
            };
            let pairs = expected.clone();
            assert_eq!(replica.query(&scan), Response::Page { pairs, more: false });
        }
    }

    fn check_owners(&self) {
        let mut served = BTreeSet::new();
        for group in &self.groups {
            for shard in group.served() {
                assert!(served.insert(shard), "{shard} is served twice");
            }
        }
    }

    /// All messages arrive from here on: everything ends.
    fn finish(&mut self) {
        for number in 0..self.groups.len() {
            if self.groups[number]
                .replica
                .machine
                .ownership()
                .controller
                .is_none()
            {
                self.groups[number].inbox.clear();
                self.begin(number);
                let message = self.groups[number].inbox.pop();
                let Some(Message::Propose(step)) = message else {
                    panic!("a group begins with a step");
                };
                assert_eq!(self.tell(number, &step), Response::Stepped);
            }
        }
        for _ in 0..500 {
            if self.settled() {
                return;
            }
            for number in 0..self.groups.len() {
                self.advance(number);
                self.check_owners();
            }
        }
        panic!("it doesn't come to an end");
    }

    fn tell(&mut self, number: usize, step: &Step) -> Response {
        let now = self.clients.time;
        self.groups[number]
            .apply(now, vec![step.encode()])
            .remove(0)
    }

    fn settled(&self) -> bool {
        self.groups.iter().all(|group| {
            let ownership = group.replica.machine.ownership();
            ownership.settled() == self.config.num()
        })
    }

    /// One round of a reliable mover.
    fn advance(&mut self, number: usize) {
        let ownership = self.groups[number].replica.machine.ownership();
        if let Some(step) = self.configure(ownership.config.next()) {
            assert_eq!(self.tell(number, &step), Response::Stepped);
        }
        for (shard, of) in &ownership.shards {
            if let ShardState::Pulling {
                config,
                source,
                after,
                ..
            } = &of.state
                && let Some(step) = self.pull(*source, *shard, *config, after.clone())
            {
                assert_eq!(self.tell(number, &step), Response::Stepped);
            }
        }
        for ((shard, config), source) in &ownership.pending_deletes {
            let (shard, config) = (*shard, *config);
            let to = source.0 as usize - 1;
            if self.tell(to, &Step::Delete { shard, config }) == Response::Stepped {
                self.tell(number, &Step::Deleted { shard, config });
            }
        }
    }

    /// Each shard is with its owner, whole, and nowhere else.
    fn check_end(&self) {
        let mut data = BTreeMap::new();
        for group in &self.groups {
            let ownership = group.replica.machine.ownership();
            assert_eq!(
                group.served(),
                self.config.owned_by(group.gid).shards().collect()
            );
            assert_eq!(ownership.shards.len(), group.served().len());
            assert!(ownership.pending_deletes.is_empty() && ownership.left.is_empty());
            assert_eq!(*ownership.groups, self.config.member_addresses());
            for ((table, key), value) in group.replica.state.pairs() {
                if *table == Table::Meta {
                    continue;
                }
                let shard = ShardId(u32::from_be_bytes(key[..4].try_into().unwrap()));
                assert!(group.served().contains(&shard), "{shard} was left behind");
                if *table == Table::Data {
                    data.insert(shardkv::user_key(key.clone()), value.clone());
                }
            }
        }
        assert_eq!(data, self.model.data);
    }

    /// The logs, entry by entry and without a restart, give the same state.
    fn check_again(&self) {
        for group in &self.groups {
            let mut again = Replica::with_bug(group.genesis, self.bug);
            for step in &group.log {
                again.batch(std::slice::from_ref(step));
            }
            assert_eq!(again.state.pairs(), group.replica.state.pairs());
            let (ours, theirs) = (&again.machine, &group.replica.machine);
            assert_eq!(ours.ownership(), theirs.ownership());
            assert_eq!(ours.session_count(), theirs.session_count());
            again.restart();
            assert_eq!(again.machine.ownership(), theirs.ownership());
        }
    }
}

fn run(seed: u64, bug: Option<Bug>) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed, bug);
    for _ in 0..2_500 {
        world.act();
    }
    world.finish();
    world.read();
    world.check_end();
    world.check_again();
    world.seen
}

/// Each mistake in the machine must show. That of a clock that stays behind needs a coincidence that has a test of its own,
/// among those of single moves.
#[cfg(feature = "bugs")]
#[test]
fn known_bugs_are_found() {
    for bug in [
        Bug::SessionsStayBehind,
        Bug::ChunkInstalledTwice,
        Bug::ServedBeforeInstalled,
        Bug::ConfigNumAtLeast,
        Bug::FenceNotLogged,
        Bug::FencedShardServesReads,
        Bug::QueueKeepsNewestOnly,
        Bug::PullingGroupServesNoPulls,
        Bug::RetryAppliedTwice,
        Bug::AbsentSessionIsNew,
    ] {
        let finds = |seed| std::panic::catch_unwind(|| run(seed, Some(bug))).is_err();
        let seed = (0..40).find(|seed| finds(*seed));
        assert!(seed.is_some(), "{bug:?} shows in no world");
    }
}

#[test]
fn moves_lose_nothing_and_double_nothing() {
    let mut seen = BTreeMap::new();
    for seed in 0..40 {
        for (what, count) in run(seed, None) {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "executed",
        "swapped",
        "too large",
        "replayed",
        "expired",
        "stale",
        "limit",
        "future",
        "pulled",
        "stepped",
        "deleted",
        "elsewhere",
        "read",
    ] {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count > 30, "{what} was seen too seldom: {seen:?}");
    }
}
