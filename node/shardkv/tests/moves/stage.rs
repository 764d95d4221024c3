//! Groups of one replica that take up configurations and hand shards over.

use replica::Table;
use shardkv::{
    Chunk, Configure, Cursor, Genesis, KvError, Next, Ownership, Query, Response, ShardState, Step,
    Written,
};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId, shard_of};

use crate::common::{Replica, SHARDS_GENESIS, session};

pub(crate) const CONTROLLER: ClusterId = ClusterId(77);
pub(crate) const SHARDS: u32 = SHARDS_GENESIS.shards;
/// The shard that most tests move.
pub(crate) const SHARD: ShardId = ShardId(3);

/// A group, with the log time of its entries.
pub(crate) struct Group {
    pub(crate) gid: Gid,
    pub(crate) replica: Replica,
    pub(crate) time: u64,
}

impl Group {
    pub(crate) fn new(gid: u64, time: u64) -> Self {
        Self::with(SHARDS_GENESIS, gid, time)
    }

    pub(crate) fn with(genesis: Genesis, gid: u64, time: u64) -> Self {
        Self {
            gid: Gid(gid),
            replica: Replica::new(genesis),
            time,
        }
    }

    /// Returns the step by which it takes up the configuration.
    pub(crate) fn step_to(&self, config: &ShardConfig) -> Step {
        Step::Configure(Configure::to(
            config,
            self.gid,
            CONTROLLER,
            &self.ownership(),
        ))
    }

    /// Takes up the configuration, whatever is between.
    pub(crate) fn follow(&mut self, config: &ShardConfig) {
        let step = self.step_to(config);
        self.take(&step);
        assert_eq!(self.ownership().config, config.num());
    }

    /// Asserts that it refuses the configuration, for a reason with these words, and that nothing changes.
    pub(crate) fn refuse(&mut self, config: &ShardConfig, expected: &str) {
        let before = self.replica.state.pairs().clone();
        let step = self.step_to(config);
        let Response::Refused(KvError::Malformed(why)) = self.step(&step) else {
            panic!("it must be refused: {step:?}");
        };
        assert!(why.contains(expected), "{why}");
        assert_eq!(*self.replica.state.pairs(), before);
    }

    /// Takes a step that must not be refused.
    pub(crate) fn take(&mut self, step: &Step) {
        assert_eq!(self.step(step), Response::Stepped, "{step:?}");
    }

    pub(crate) fn step(&mut self, step: &Step) -> Response {
        self.replica.step(self.time, step)
    }

    pub(crate) fn write(&mut self, birth: u64, sequence: u64, write: shardkv::Write) -> Response {
        self.replica
            .apply(self.time, session(birth, sequence, 1), write)
    }

    pub(crate) fn ownership(&self) -> std::sync::Arc<Ownership> {
        self.replica.machine.ownership()
    }

    /// Returns the shard's state in a word, and its configuration.
    pub(crate) fn state(&self) -> String {
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

    pub(crate) fn pull(&self, config: u64, after: Cursor, max_bytes: u32) -> Response {
        self.replica.query(&Query::Pull {
            shard: SHARD,
            config: ConfigNum(config),
            after,
            max_bytes,
        })
    }

    /// All parts of the shard.
    pub(crate) fn parts(&self, config: u64, max_bytes: u32) -> Vec<Chunk> {
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
    pub(crate) fn install_from(&mut self, source: &Self, config: u64) {
        for part in source.parts(config, 100) {
            let arrived = Chunk::decode(part.encode()).unwrap();
            self.take(&Step::Install(arrived));
        }
    }

    /// Tells `source` that the shard is here.
    pub(crate) fn acknowledge(&mut self, source: &mut Self, config: u64) {
        let (shard, config) = (SHARD, ConfigNum(config));
        source.take(&Step::Delete { shard, config });
        self.take(&Step::Deleted { shard, config });
    }

    /// Returns the number of stored pairs and session records of the shard.
    pub(crate) fn stored(&self) -> usize {
        let prefix = SHARD.0.to_be_bytes();
        let pairs = self.replica.state.pairs().keys();
        let own = pairs.filter(|(table, key)| *table != Table::Meta && key.starts_with(&prefix));
        own.count()
    }

    pub(crate) fn settled(&self) -> u64 {
        self.ownership().settled().0
    }
}

/// Configurations by the shards' owners, from 1 on. A group stays once it has owned something.
pub(crate) struct Configs(ShardConfig);

impl Configs {
    pub(crate) fn new() -> Self {
        Self(ShardConfig::empty(SHARDS))
    }

    pub(crate) fn next(&mut self, owners: [u64; SHARDS as usize]) -> ShardConfig {
        let mut groups = self.0.member_addresses();
        groups.extend(owners.map(|gid| (Gid(gid), vec![format!("g{gid}:1")])));
        let delta = ConfigDelta::between(&self.0, &groups, &owners.map(Gid));
        self.0.apply(&delta).unwrap();
        self.0.clone()
    }

    /// The next one, in which `gid` has the shard and group 1 all others.
    pub(crate) fn give(&mut self, gid: u64) -> ShardConfig {
        self.next([1, 1, 1, gid, 1])
    }

    /// The next one, in which owners stay and these are the targets.
    pub(crate) fn plan(&mut self, targets: [u64; SHARDS as usize]) -> ShardConfig {
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

    /// The next one, without a group that is forgotten. Its shards go to these owners.
    pub(crate) fn forget(&mut self, gone: u64, owners: [u64; SHARDS as usize]) -> ShardConfig {
        let mut groups = self.0.groups().clone();
        groups.remove(&Gid(gone)).unwrap();
        for gid in owners {
            let group = || vec![format!("g{gid}:1")].into();
            groups.entry(Gid(gid)).or_insert_with(group);
        }
        let shards = (0..SHARDS).map(ShardId);
        let lost = shards.filter(|shard| self.0.owner(*shard) == Gid(gone));
        let (owners, lost) = (owners.map(Gid), lost.collect());
        let delta = ConfigDelta::new(&self.0, &groups, &owners, &owners);
        let delta = delta.with_resets(&self.0, &owners, &lost);
        self.0.apply(&delta).unwrap();
        self.0.clone()
    }

    /// The next one, without a group.
    pub(crate) fn without(&mut self, gid: u64) -> ShardConfig {
        let mut groups = self.0.groups().clone();
        groups.remove(&Gid(gid)).unwrap();
        let (targets, owners) = (self.0.targets().to_vec(), self.0.owners().to_vec());
        let delta = ConfigDelta::new(&self.0, &groups, &targets, &owners);
        self.0.apply(&delta).unwrap();
        self.0.clone()
    }
}

/// Two groups, of which the first owns all, with their clocks.
pub(crate) fn two(times: [u64; 2]) -> (Group, Group, Configs) {
    let (mut a, mut b) = (Group::new(1, times[0]), Group::new(2, times[1]));
    let mut configs = Configs::new();
    let first = configs.give(1);
    a.follow(&first);
    b.follow(&first);
    (a, b, configs)
}

pub(crate) fn key() -> String {
    let mut keys = (0..).map(|n| format!("k{n}"));
    keys.find(|key| shard_of(key.as_bytes(), SHARDS) == SHARD)
        .unwrap()
}

/// Another of the same shard.
pub(crate) fn tagged(n: u32) -> String {
    format!("{{{}}}{n:02}", key())
}

pub(crate) fn wrong_group(config: u64) -> Response {
    Response::Refused(KvError::WrongGroup {
        shard: SHARD,
        config: ConfigNum(config),
    })
}

pub(crate) fn not_ready() -> Response {
    Response::Refused(KvError::ShardNotReady { shard: SHARD })
}

pub(crate) fn length(length: u64) -> Response {
    Response::Written(Written::Append { length })
}
