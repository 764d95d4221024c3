//! Random moves between groups whose messages are lost, doubled and late, against a model; and the same logs again.
//!
//! Targets change at any time, owners only as the controllers guarantee it: once the owner serves the shard. Groups skip
//! configurations at random. Copies follow plans, but no data: each turns out to be useless at the cut.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use common::clients::{MAX_VALUE, Model, Source};
use common::{Random, Replica, SHARDS_GENESIS};
use raft::Index;
use replica::Table;
use shardkv::{
    Bug, Command, Configure, CopyId, CopyStep, Cursor, Genesis, KvError, Ownership, PlannedMove,
    Query, Response, ShardState, Step, Target,
};
use types::{
    ClusterId, ConfigDelta, ConfigNum, Gid, Group as Member, Incarnation, ShardConfig, ShardId,
    ShardSet, shard_of,
};

const CONTROLLER: ClusterId = ClusterId(77);
const SHARDS: u32 = SHARDS_GENESIS.shards;
/// The most messages that wait for a group; beyond that some are lost.
const MAX_INBOX: u64 = 40;
/// The steps that may come again: enough that a shard can be here a second time meanwhile.
const MAX_SENT: usize = 300;

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
    /// The steps that were sent lately. Any of them may come again.
    sent: Vec<Message>,
    /// All that was applied.
    log: Vec<common::Step>,
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
            sent: Vec::new(),
            log: Vec::new(),
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

    fn ownership(&self) -> Arc<Ownership> {
        self.replica.machine.ownership()
    }

    /// Returns the step to a configuration, from what it has accepted.
    fn configure(&self, config: &ShardConfig) -> Step {
        Step::Configure(Configure::to(
            config,
            self.gid,
            CONTROLLER,
            &self.ownership(),
        ))
    }

    fn served(&self) -> BTreeSet<ShardId> {
        let ownership = self.ownership();
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
    /// All configurations; the last is the latest.
    configs: Vec<ShardConfig>,
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
        Self {
            clients: Source::new(seed + 1_000_000),
            model: Model::new(ttl.min().unwrap()),
            configs: vec![ShardConfig::empty(SHARDS)],
            groups,
            seen: BTreeMap::new(),
            random,
            bug,
        }
    }

    fn config(&self) -> &ShardConfig {
        self.configs.last().unwrap()
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn pick(&mut self) -> usize {
        self.random.below(self.groups.len() as u64) as usize
    }

    fn send(&mut self, to: usize, message: Message) {
        if !matches!(message, Message::Write(_)) {
            let sent = &mut self.groups[to].sent;
            if sent.len() == MAX_SENT {
                sent.remove(0);
            }
            sent.push(message.clone());
        }
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
            0..=1 => self.reconfigure(),
            2..=4 => {
                let number = self.pick();
                self.groups[number].replica.restart();
            }
            5..=20 => {
                let number = self.pick();
                self.drive(number);
            }
            21..=25 => self.read(),
            26..=55 => self.write(),
            _ => self.batch(),
        }
        self.check_owners();
    }

    /// Returns true if a group has settled a configuration.
    fn has_settled(&self, gid: Gid, num: ConfigNum) -> bool {
        gid == Gid::NONE || self.groups[gid.0 as usize - 1].ownership().settled() >= num
    }

    /// Returns true if a shard's owner may change: it serves the shard, so the owner before has fenced it.
    fn is_served(&self, shard: ShardId) -> bool {
        let row = self.config().row(shard);
        let owner = self.groups.iter().find(|group| group.gid == row.owner);
        let config = row.owner_since;
        owner.is_some_and(|owner| {
            owner.ownership().state(shard) == Some(&ShardState::Serving { config })
        })
    }

    /// Targets change, and some shards that are served follow them.
    fn reconfigure(&mut self) {
        let before = self.config().clone();
        let change = 1 + self.random.below(4);
        let (mut targets, mut owners) = (before.targets().to_vec(), before.owners().to_vec());
        // At times one group is to have all, so that others get empty.
        let all = self.random.one_in(4);
        let one = all.then(|| self.pick());
        for target in &mut targets {
            if *target == Gid::NONE || one.is_some() || self.random.one_in(change) {
                let number = one.unwrap_or_else(|| self.pick());
                *target = self.groups[number].gid;
            }
        }
        let mut moved = false;
        for (shard, target) in (0..).map(ShardId).zip(&targets) {
            let owner = &mut owners[shard.0 as usize];
            if *owner == Gid::NONE || (self.is_served(shard) && self.random.one_in(2)) {
                moved |= *owner != *target;
                *owner = *target;
            }
        }
        if !moved {
            self.count("planned");
        }
        self.append(&targets, &owners);
    }

    fn append(&mut self, targets: &[Gid], owners: &[Gid]) {
        let before = self.config().clone();
        let mut members = BTreeMap::new();
        for number in 0..self.groups.len() {
            let gid = self.groups[number].gid;
            let known = before.groups().get(&gid).cloned();
            let is_target = targets.contains(&gid);
            // A group stays until it has given all away, and the owners after it have it.
            let owes = |row: types::Assignment| {
                row.previous == gid && !self.has_settled(gid, row.owner_since)
            };
            let holds = owners.contains(&gid) || before.owners().contains(&gid);
            let ownership = self.groups[number].ownership();
            let idle = ownership.settled() == ownership.config;
            let drained = idle && !holds && !before.rows().any(owes);
            if !is_target && ((drained || known.is_none()) && self.random.one_in(2)) {
                if known.is_some() {
                    self.count("gone");
                }
                continue;
            }
            let port = 1 + self.random.below(2);
            let incarnation = known.map_or(Incarnation(before.num().next().0), |known| {
                known.incarnation
            });
            let member = Member {
                addresses: vec![format!("{gid}:{port}")],
                incarnation,
                leaving: !is_target && self.random.one_in(2),
            };
            members.insert(gid, member);
        }
        let delta = ConfigDelta::new(&before, &members, targets, owners);
        let mut next = before;
        next.apply(&delta).unwrap();
        self.configs.push(next);
    }

    /// Does at random what a mover might do, and repeats it at times, even much later.
    fn drive(&mut self, number: usize) {
        let sent = self.groups[number].sent.len() as u64;
        if sent > 0 && self.random.one_in(2) {
            let late = self.random.below(sent) as usize;
            let message = self.groups[number].sent[late].clone();
            self.groups[number].inbox.push(message);
        }
        let ownership = self.groups[number].ownership();
        // Mostly the latest one, but whatever it is, the group takes only what follows.
        let latest = self.configs.len() as u64 - 1;
        let chosen = match self.random.below(5) {
            0 => self.random.below(latest + 1),
            1 => latest.min(ownership.config.0 + 1),
            _ => latest,
        };
        let step = self.groups[number].configure(&self.configs[chosen as usize]);
        if chosen > ownership.config.0 + 1 {
            self.count("skipped");
        }
        self.send(number, Message::Propose(step));
        for shard in (0..SHARDS).map(ShardId) {
            if self.random.one_in(2)
                && let Some(step) = self.next_step(&ownership, shard)
            {
                self.send(number, Message::Propose(step));
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

    /// Returns what a mover might propose for a shard.
    fn next_step(&mut self, ownership: &Ownership, shard: ShardId) -> Option<Step> {
        match ownership.state(shard) {
            Some(ShardState::Pulling {
                config,
                source,
                after,
                ..
            }) => self.pull(*source, shard, *config, after.clone()),
            None => {
                let planned = ownership.planned.get(&shard)?;
                let copy = CopyId {
                    since: planned.target.since,
                    journal: Index(1 + self.random.below(3)),
                };
                let source = planned.owner;
                self.count("copied");
                Some(Step::Copy(CopyStep::Start {
                    shard,
                    source,
                    copy,
                }))
            }
            Some(ShardState::Copying { copy, .. }) => {
                let copy = *copy;
                let drops = self.random.one_in(20);
                drops.then_some(Step::Copy(CopyStep::Drop { shard, copy }))
            }
            Some(ShardState::Completing { config, copy, .. }) => {
                let (config, copy) = (*config, *copy);
                self.count("restarted");
                Some(Step::Copy(CopyStep::Restart {
                    shard,
                    config,
                    copy,
                }))
            }
            Some(ShardState::Serving { .. } | ShardState::Fenced { .. }) => None,
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
        let owner = self.config().owner(shard_of(command.write.key(), SHARDS));
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

    /// A shard comes back here, and the owner between hasn't asked for the delete yet.
    fn assert_comes_back(&mut self, number: usize) {
        let group = &self.groups[number];
        let ownership = group.ownership();
        let mut shards = ownership.shards.iter();
        let comes_back = shards.any(|(shard, of)| {
            matches!(of.state, ShardState::Fenced { .. })
                && self.configs.iter().any(|config| {
                    config.num() > ownership.config && config.owner(*shard) == group.gid
                })
        });
        assert!(comes_back, "{ownership:?}");
        self.count("comes back");
    }

    fn delivered(&mut self, number: usize, message: &Message, response: &Response) {
        if let (Message::Propose(Step::Configure(_)), Response::Refused(KvError::Malformed(why))) =
            (message, response)
        {
            assert!(why.contains("gives"), "{why}");
            self.count("comes back");
            return;
        }
        assert_eq!(*response, Response::Stepped);
        self.count("stepped");
        if let Message::Delete(by, Step::Delete { shard, config }) = message {
            let (by, shard, config) = (*by, *shard, *config);
            self.count("deleted");
            let fenced = self.groups[number].ownership();
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

    /// All messages arrive from here on: everything ends, and at last nothing is planned.
    fn finish(&mut self) {
        self.settle();
        self.check_end();
        let owners = self.config().owners().to_vec();
        self.append(&owners, &owners);
        self.settle();
        let copies = |group: &Group| group.ownership().shards.len() > group.served().len();
        assert!(!self.groups.iter().any(copies), "a copy without a plan");
    }

    fn settle(&mut self) {
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
            let ownership = group.ownership();
            ownership.controller.is_some() && ownership.settled() == self.config().num()
        })
    }

    /// One round of a reliable mover.
    fn advance(&mut self, number: usize) {
        let ownership = self.groups[number].ownership();
        let step = self.groups[number].configure(self.config());
        if self.tell(number, &step) == Response::Stepped {
            let num = self.config().num();
            assert_eq!(self.groups[number].ownership().config, num);
        } else {
            self.assert_comes_back(number);
        }
        for (shard, of) in &ownership.shards {
            if let ShardState::Pulling { .. } | ShardState::Completing { .. } = &of.state
                && let Some(step) = self.next_step(&ownership, *shard)
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

    /// Returns the moves that the latest configuration plans for a group.
    fn planned(&self, gid: Gid) -> BTreeMap<ShardId, PlannedMove> {
        let rows = (0..).map(ShardId).zip(self.config().rows());
        let own = rows.filter(|(_, row)| row.is_moving() && [row.owner, row.target].contains(&gid));
        let planned = own.map(|(shard, row)| {
            let planned = PlannedMove {
                owner: row.owner,
                owner_since: row.owner_since,
                target: Target {
                    to: row.target,
                    since: row.target_since,
                },
            };
            (shard, planned)
        });
        planned.collect()
    }

    /// Each shard is with its owner, whole, and nowhere else, and only what is planned is copied.
    fn check_end(&self) {
        let mut data = BTreeMap::new();
        for group in &self.groups {
            let ownership = group.ownership();
            assert_eq!(
                group.served(),
                self.config().owned_by(group.gid).shards().collect()
            );
            assert_eq!(*ownership.planned, self.planned(group.gid));
            for (shard, of) in &ownership.shards {
                let planned = ownership.planned.get(shard).map(|it| it.target);
                match &of.state {
                    ShardState::Serving { .. } => {}
                    ShardState::Copying { copy, .. } => {
                        let (to, since) = (group.gid, copy.since);
                        assert_eq!(planned, Some(Target { to, since }));
                    }
                    other => panic!("{shard} is {other:?}"),
                }
            }
            assert!(ownership.pending_deletes.is_empty());
            assert_eq!(*ownership.groups, *self.config().groups());
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
        "planned",
        "skipped",
        "copied",
        "restarted",
        "gone",
        "comes back",
    ] {
        let count = seen.get(what).copied().unwrap_or(0);
        assert!(count > 30, "{what} was seen too seldom: {seen:?}");
    }
}
