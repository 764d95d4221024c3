//! Random events of the model: configurations, movers' steps, clients' requests, restarts.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::Index;
use shardkv::{
    Bug, Command, CopyId, CopyStep, Cursor, KvError, Ownership, PageRequest, Query, Response,
    ShardState, Step,
};
use types::{
    ConfigDelta, ConfigNum, Gid, Group as Member, Incarnation, ShardConfig, ShardId, ShardSet,
    shard_of,
};

use crate::common::clients::{Model, Source};
use crate::common::{Random, SHARDS_GENESIS};
use crate::group::{Group, MAX_INBOX, MAX_SENT, Message, SHARDS};

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) clients: Source,
    pub(crate) model: Model,
    /// All configurations; the last is the latest.
    pub(crate) configs: Vec<ShardConfig>,
    /// The deltas that lead from the first to each.
    pub(crate) deltas: Vec<ConfigDelta>,
    pub(crate) groups: Vec<Group>,
    pub(crate) seen: BTreeMap<&'static str, u64>,
    pub(crate) bug: Option<Bug>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut random = Random(seed);
        let count = 2 + random.below(2);
        let groups: Vec<_> = (0..count)
            .map(|n| Group::new(n, &mut random, bug))
            .collect();
        Self {
            clients: Source::new(seed + 1_000_000),
            model: Model::new(None),
            configs: vec![ShardConfig::empty(SHARDS)],
            deltas: Vec::new(),
            groups,
            seen: BTreeMap::new(),
            random,
            bug,
        }
    }

    pub(crate) fn config(&self) -> &ShardConfig {
        self.configs.last().unwrap()
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    pub(crate) fn pick(&mut self) -> usize {
        self.random.below(self.groups.len() as u64) as usize
    }

    pub(crate) fn send(&mut self, to: usize, message: Message) {
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
    pub(crate) fn act(&mut self) {
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
    pub(crate) fn has_settled(&self, gid: Gid, num: ConfigNum) -> bool {
        gid == Gid::NONE || self.groups[gid.0 as usize - 1].ownership().settled() >= num
    }

    /// Returns true if a shard's owner may change: it serves the shard, so the owner before has fenced it.
    pub(crate) fn is_served(&self, shard: ShardId) -> bool {
        let row = self.config().row(shard);
        let owner = self.groups.iter().find(|group| group.gid == row.owner);
        let config = row.owner_since;
        owner.is_some_and(|owner| {
            owner.ownership().state(shard) == Some(&ShardState::Serving { config })
        })
    }

    /// Targets change, and some shards that are served follow them.
    pub(crate) fn reconfigure(&mut self) {
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

    pub(crate) fn append(&mut self, targets: &[Gid], owners: &[Gid]) {
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
                addresses: vec![format!("{gid}:{port}"), format!("{gid}:3")],
                incarnation,
                leaving: !is_target && self.random.one_in(2),
            };
            members.insert(gid, member);
        }
        let delta = ConfigDelta::new(&before, &members, targets, owners);
        let mut next = before;
        next.apply(&delta).unwrap();
        self.configs.push(next);
        self.deltas.push(delta);
    }

    /// Does at random what a mover might do, and repeats it at times, even much later.
    pub(crate) fn drive(&mut self, number: usize) {
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
        let chosen_config = &self.configs[chosen as usize];
        let deltas = &self.deltas[..chosen as usize];
        let step = self.groups[number].configure(chosen_config, deltas);
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
        for ((shard, config), source) in ownership.pending_deletes.iter() {
            let step = Step::Delete {
                shard: *shard,
                config: *config,
            };
            let to = source.0 as usize - 1;
            self.send(to, Message::Delete(number, step));
        }
    }

    /// Returns what a mover might propose for a shard.
    pub(crate) fn next_step(&mut self, ownership: &Ownership, shard: ShardId) -> Option<Step> {
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

    pub(crate) fn pull(
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
    pub(crate) fn write(&mut self) {
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
    pub(crate) fn batch(&mut self) {
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
    pub(crate) fn assert_comes_back(&mut self, number: usize) {
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

    pub(crate) fn delivered(&mut self, number: usize, message: &Message, response: &Response) {
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

    pub(crate) fn check(&mut self, command: &Command, response: &Response) {
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
    pub(crate) fn read(&mut self) {
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
            let scan = Query::Page(PageRequest {
                start: Bytes::new(),
                end: Bytes::new(),
                limit: u32::MAX,
                max_bytes: u32::MAX,
                keys_only: false,
                shards,
            });
            let pairs = expected.clone();
            assert_eq!(replica.query(&scan), Response::Page { pairs, more: false });
        }
    }

    pub(crate) fn check_owners(&self) {
        let mut served = BTreeSet::new();
        for group in &self.groups {
            for shard in group.served() {
                assert!(served.insert(shard), "{shard} is served twice");
            }
        }
    }
}
