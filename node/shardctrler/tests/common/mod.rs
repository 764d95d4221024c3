//! A replica without a log: a machine over a store in memory, driven entry by entry.

// Each test binary uses a part of it. A helper of tests may panic as tests do.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::missing_panics_doc
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use raft::{EntryId, Index, Term};
use replica::memory::MemoryState;
use replica::{Applied, Applying, StateMachine, StateStore, Transaction};
use shardctrler::{
    Change, Command, Configs, CtrlError, Cut, Genesis, GroupKind, HistoryLimits, Query,
    QueryAnswer, Response, SessionRef, Shardctrler,
};
use types::{ClientId, ConfigNum, Gid, JournalId, LogTime, Sequence, ShardConfig, ShardId};

/// Small controllers, so that limits are reached.
pub const GENESIS: Genesis = Genesis {
    kind: GroupKind::Controller,
    shards: 10,
    session_ttl_ms: 10_000,
    max_sessions_per_shard: 6,
    max_results_per_session: 4,
};

pub struct Replica {
    pub machine: Shardctrler,
    pub state: MemoryState,
    limits: HistoryLimits,
    #[cfg(feature = "bugs")]
    bug: Option<shardctrler::Bug>,
    pub time: u64,
}

impl Replica {
    pub fn new(genesis: Genesis) -> Self {
        Self::with_limits(genesis, HistoryLimits::default())
    }

    pub fn with_limits(genesis: Genesis, limits: HistoryLimits) -> Self {
        let mut state = MemoryState::new();
        state
            .commit(genesis.to_batch(), Applied::default())
            .unwrap();
        let mut replica = Self {
            machine: Shardctrler::with_limits(limits),
            state,
            limits,
            #[cfg(feature = "bugs")]
            bug: None,
            time: 1_000_000,
        };
        replica.restart();
        replica
    }

    /// The same with a known bug.
    #[cfg(feature = "bugs")]
    pub fn with_bug(genesis: Genesis, limits: HistoryLimits, bug: shardctrler::Bug) -> Self {
        let mut replica = Self::with_limits(genesis, limits);
        replica.bug = Some(bug);
        replica.restart();
        replica
    }

    /// Forgets all but the state.
    pub fn restart(&mut self) {
        self.machine = Shardctrler::with_limits(self.limits);
        #[cfg(feature = "bugs")]
        {
            self.machine = std::mem::take(&mut self.machine).with_bug(self.bug);
        }
        self.machine.reload(&self.state).unwrap();
    }

    /// Applies operations as one batch.
    pub fn batch(&mut self, operations: &[Bytes]) -> Vec<Response> {
        let mut applied = self.state.applied();
        let mut transaction = Transaction::new(&self.state);
        let mut responses = Vec::new();
        for operation in operations {
            let index = applied.last.index.0 + 1;
            let at = Applying {
                entry: EntryId::new(Term(1), Index(index)),
                time: LogTime(self.time),
                feature_level: 0,
                max_value_bytes: 0,
                awaited: true,
            };
            let response = self.machine.apply(at, operation.clone(), &mut transaction);
            responses.push(response.unwrap());
            applied.last = at.entry;
            applied.time = at.time;
        }
        self.machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        self.state.commit(batch, applied).unwrap();
        responses
    }

    pub fn apply_bytes(&mut self, operation: Bytes) -> Response {
        self.batch(&[operation]).remove(0)
    }

    pub fn apply(&mut self, session: Option<SessionRef>, change: Change) -> Response {
        self.apply_bytes(Command { session, change }.encode())
    }

    /// Carries a change out that must be allowed: the configuration's number and the shards that moved.
    #[track_caller]
    pub fn done(&mut self, change: &Change) -> (u64, u32) {
        match self.apply(None, change.clone()) {
            Response::Changed {
                num,
                changed: true,
                moved_shards,
            } => (num.0, moved_shards),
            other => panic!("{change:?}: {other:?}"),
        }
    }

    /// The refusal of a change that must not be allowed, which has changed nothing.
    #[track_caller]
    pub fn refused(&mut self, change: &Change) -> CtrlError {
        let before = self.machine.latest();
        match self.apply(None, change.clone()) {
            Response::Refused(error) => {
                assert_eq!(self.machine.latest(), before);
                error
            }
            other => panic!("{change:?}: {other:?}"),
        }
    }

    #[track_caller]
    pub fn report(&mut self, gid: u64, settled: u64) {
        assert_eq!(self.apply(None, report(gid, settled)), Response::Reported);
    }

    /// Lets every group settle at the latest configuration, until that makes no further configuration.
    pub fn settle(&mut self) {
        loop {
            let latest = self.machine.latest().num().0;
            let gids: Vec<Gid> = self.machine.progress().keys().copied().collect();
            for gid in gids {
                self.report(gid.0, latest);
            }
            if self.machine.latest().num().0 == latest {
                return;
            }
        }
    }

    /// Lets every shard arrive at its target, and every group settle, until nothing moves and drained groups are gone.
    #[track_caller]
    pub fn arrive(&mut self) {
        self.settle();
        while self.machine.latest().moving() > 0 {
            let rows = (0..).zip(self.machine.latest().rows().collect::<Vec<_>>());
            let moving = rows.filter(|(_, row)| row.is_moving());
            let cuts: Vec<_> = moving.map(|(shard, _)| self.cut_now(shard)).collect();
            let count = u32::try_from(cuts.len()).unwrap();
            assert_eq!(self.cut(cuts).0, count, "all were exact");
            self.settle();
        }
    }

    pub fn query(&self, query: &Query) -> Response {
        self.machine.query(query, &self.state).unwrap()
    }

    #[track_caller]
    pub fn config(&self, num: Option<u64>) -> QueryAnswer {
        let num = num.map(ConfigNum);
        match self.query(&Query::Config { num }) {
            Response::Config(answer) => *answer,
            other => panic!("{num:?}: {other:?}"),
        }
    }

    pub fn latest(&self) -> Arc<ShardConfig> {
        self.config(None).config
    }

    #[track_caller]
    pub fn after(&self, num: u64, limit: u32, gid: Option<u64>) -> Configs {
        let query = Query::After {
            num: ConfigNum(num),
            limit,
            gid: gid.map(Gid),
        };
        match self.query(&query) {
            Response::Configs(configs) => configs,
            other => panic!("{query:?}: {other:?}"),
        }
    }

    /// The cut of one shard as it is now, to its target.
    pub fn cut_now(&self, shard: u32) -> (ShardId, Cut) {
        let config = self.machine.latest();
        let shard = ShardId(shard);
        (shard, config.cut_of(shard, JournalId(7)).unwrap())
    }

    /// The shards that the cut cuts, and the latest configuration.
    #[track_caller]
    pub fn cut(&mut self, cuts: impl IntoIterator<Item = (ShardId, Cut)>) -> (u32, u64) {
        let cuts = cuts.into_iter().collect();
        match self.apply(None, Change::Cut { cuts }) {
            Response::Cut { num, cut } => (cut, num.0),
            other => panic!("{other:?}"),
        }
    }

    /// Everything that is stored.
    pub fn stored(&self) -> Vec<(Bytes, Bytes)> {
        use replica::{StateReader, Table};
        use std::ops::Bound::Unbounded;
        let all = |table| {
            let bounds = (Unbounded, Unbounded);
            self.state
                .scan(table, bounds, usize::MAX, usize::MAX)
                .unwrap()
        };
        Table::ALL.into_iter().flat_map(all).collect()
    }
}

pub fn addresses(gid: u64) -> Vec<String> {
    (0..3).map(|node| format!("g{gid}-{node}:7000")).collect()
}

pub fn groups(gids: &[u64]) -> BTreeMap<Gid, Vec<String>> {
    gids.iter()
        .map(|gid| (Gid(*gid), addresses(*gid)))
        .collect()
}

pub fn join(gids: &[u64]) -> Change {
    Change::Join {
        groups: groups(gids),
    }
}

pub fn leave(gids: &[u64]) -> Change {
    let gids: BTreeSet<Gid> = gids.iter().copied().map(Gid).collect();
    Change::Leave { gids }
}

pub fn move_shard(shard: u32, gid: u64) -> Change {
    Change::Move {
        shard: ShardId(shard),
        gid: Gid(gid),
    }
}

pub fn report(gid: u64, settled: u64) -> Change {
    Change::Report {
        gid: Gid(gid),
        settled: ConfigNum(settled),
        held: ConfigNum(0),
    }
}

// As a command has it.
#[allow(clippy::unnecessary_wraps)]
pub fn session(birth: u64, sequence: u64, acked_below: u64) -> Option<SessionRef> {
    Some(SessionRef {
        client: ClientId {
            birth: LogTime(birth),
            nonce: 7,
        },
        sequence: Sequence(sequence),
        acked_below: Sequence(acked_below),
    })
}

/// Returns the number of shards whose target is each of a configuration's groups that aren't leaving.
pub fn counts(config: &ShardConfig) -> BTreeMap<Gid, usize> {
    let mut counts: BTreeMap<Gid, usize> = config.members().map(|gid| (gid, 0)).collect();
    for target in config.targets() {
        *counts.entry(*target).or_default() += 1;
    }
    counts
}

/// Every shard's target is a group that isn't leaving, and the groups' counts differ by at most one.
#[track_caller]
pub fn assert_balanced(config: &ShardConfig) {
    let counts = counts(config);
    assert!(!counts.contains_key(&Gid::NONE), "{counts:?}");
    let (least, most) = (counts.values().min(), counts.values().max());
    assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
}

/// Returns the number of shards that change.
pub fn moves(before: &[Gid], after: &[Gid]) -> usize {
    let pairs = before.iter().zip(after);
    pairs.filter(|(before, after)| before != after).count()
}

/// `SplitMix64`: small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
