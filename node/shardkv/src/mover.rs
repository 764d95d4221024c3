//! What a group's leader does so that shards move.
//!
//! Pure: a driver (the server, or the simulator) shows it how things stand, carries out the actions that it asks for,
//! and tells how they went. It keeps nothing that must survive: all that matters is in the group's log, and a new leader's
//! mover goes on from there.
//!
//! # How to drive it
//!
//! One [`Mover`] for a replica, for as long as the process lives, so that action ids are never used twice.
//!
//! - Call [`Mover::poll`] after each batch of applied entries, after [`Mover::ended`], when leadership changes, and when
//!   [`Mover::next_due`] is reached. It costs next to nothing if there is nothing to do.
//! - Show it the ownership while raft says that the replica leads, else `None`. It doesn't have to be true: what a leader
//!   that is deposed without knowing proposes is not committed, and all else that it asks for is harmless. Actions that
//!   were under way before a `None` may be cut short.
//! - Start the actions in the order given; proposals enter the log in that order. Tell the end of each once, by
//!   [`Mover::ended`]; what ends after a `None`, or was waited for too long, is ignored there.
//! - The first [`Mover::poll`] after a proposal was told as done must show an ownership with what it did, or the mover
//!   thinks that it did nothing and tries again.
//! - When [`Mover::fatal`] says something, stop the node with it.
//!
//! # What it does
//!
//! Four things side by side, each in a module of its own: configurations from the controllers into the log (`configs`),
//! shards from their sources into the log (`pulls`), deletes to the sources (`deletes`), news to the controllers
//! (`reports`). The first never waits for the others. What is asked of other groups goes by `lanes`, which see to it that a
//! group that doesn't answer delays its own shards alone.
//!
//! Everything has a bound: of deltas and parts held, of actions under way, of bytes a second. Everything that fails is tried
//! again after a pause that doubles, and everything that gets no answer counts as failed after a while.

mod backoff;
mod configs;
mod deletes;
mod lanes;
mod outbox;
mod pace;
mod pulls;
mod reports;

use std::sync::Arc;

use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId};

#[cfg(feature = "bugs")]
use crate::bug::Bug;
use crate::bug::Bugs;
use crate::{Chunk, Cursor, Ownership, ShardState, Step};
use configs::Configs;
use deletes::Deletes;
use outbox::{Errand, Outbox, Turn};
use pulls::Pulls;
use reports::Reports;

/// How long an outcome of `Pull`, `Delete` or `Report` is waited for, in milliseconds.
const ASK_PATIENCE_MS: u64 = 10_000;
/// How long an outcome of `Propose` is waited for, in milliseconds.
const PROPOSE_PATIENCE_MS: u64 = 30_000;

/// How a mover behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoverOptions {
    /// The most shards that are pulled at the same time; 0 counts as 1.
    pub max_concurrent_pulls: u32,
    /// The most bytes that all pulls together bring in a second; 0 for no limit. After a pause a tenth of it, or one part,
    /// may come at once.
    pub max_bytes_per_second: u64,
    /// About how many bytes of a shard travel and are proposed at once. With the largest value on top it must fit into an
    /// entry of the log.
    pub chunk_bytes: u32,
    /// The shortest pause before something that failed is tried again; it doubles with each failure.
    pub min_retry_ms: u32,
    /// The longest.
    pub max_retry_ms: u32,
}

impl Default for MoverOptions {
    fn default() -> Self {
        Self {
            max_concurrent_pulls: 4,
            max_bytes_per_second: 64 << 20,
            chunk_bytes: 512 << 10,
            min_retry_ms: 10,
            max_retry_ms: 1_000,
        }
    }
}

/// The mover's name for an action; the driver gives it back with the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId(pub u64);

/// What a driver shall do. Each ends with one [`Outcome`], a failure at the latest after the driver's own timeout: a few
/// seconds for `Pull`, `Delete` and `Report`, which the mover itself waits 10 seconds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the controllers what follows a configuration. Ends when there is something, or after a while without (less than
    /// a minute).
    FetchConfigs {
        /// What the group has.
        after: ConfigNum,
    },
    /// Ask the source for the next part of a shard. Any of its nodes that has applied the fence has it.
    Pull {
        /// Which.
        shard: ShardId,
        /// The configuration that moves it.
        config: ConfigNum,
        /// Who has it.
        source: Gid,
        /// Where the source's nodes are.
        addresses: Vec<String>,
        /// What has arrived.
        after: Cursor,
        /// About how much to send.
        max_bytes: u32,
    },
    /// Tell the source's leader to delete a shard that is installed here.
    Delete {
        /// Which.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
        /// Who shall delete it.
        source: Gid,
        /// Where the source's nodes are.
        addresses: Vec<String>,
    },
    /// Put a step into the own group's log. Ends when it was applied here, or can't be, or nobody knows.
    Propose(Step),
    /// Tell the controllers how far the group is.
    Report {
        /// As [`Ownership::settled`] has it.
        settled: ConfigNum,
    },
}

/// How an action went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `FetchConfigs`: what the controllers told. Nothing new is no failure.
    Configs {
        /// The controllers' incarnation.
        controller: ClusterId,
        /// How many shards the cluster has.
        shards: u32,
        /// The oldest configuration that is kept, when what follows the group's is not.
        full: Option<ShardConfig>,
        /// What follows.
        deltas: Vec<ConfigDelta>,
    },
    /// `Pull`: the part.
    Pulled(Chunk),
    /// `Delete`: the source has deleted it, now or before. `Propose`: applied. `Report`: taken.
    Done,
    /// It didn't work, for this reason (for people), and is tried again after a pause.
    Failed(String),
}

/// The next thing to do for each shard that isn't settled. See the module's documentation.
#[derive(Debug)]
pub struct Mover {
    gid: Gid,
    shards: u32,
    options: MoverOptions,
    bugs: Bugs,
    /// What was shown last; `None` while the replica doesn't lead.
    ownership: Option<Arc<Ownership>>,
    ended: Vec<(ActionId, Outcome)>,
    outbox: Outbox,
    configs: Configs,
    pulls: Pulls,
    deletes: Deletes,
    reports: Reports,
    fatal: Option<String>,
}

impl Mover {
    /// A mover of group `gid`, which was created for `shards` shards, with nothing under way.
    pub fn new(gid: Gid, shards: u32, options: MoverOptions) -> Self {
        Self {
            gid,
            shards,
            options,
            bugs: Bugs::default(),
            ownership: None,
            ended: Vec::new(),
            outbox: Outbox::default(),
            configs: Configs::default(),
            pulls: Pulls::new(&options),
            deletes: Deletes::default(),
            reports: Reports::default(),
            fatal: None,
        }
    }

    /// A mover with a known bug put back, for the simulator.
    #[cfg(feature = "bugs")]
    pub fn with_bug(gid: Gid, shards: u32, options: MoverOptions, bug: Option<Bug>) -> Self {
        Self {
            bugs: Bugs::new(bug),
            ..Self::new(gid, shards, options)
        }
    }

    /// What to do now. `now_ms` is any clock that doesn't run backwards. `ownership` is the group's as of the last
    /// applied entry, and `None` while this replica doesn't lead: then all that was under way is forgotten, and outcomes
    /// that come late are ignored. Two ownerships differ if they are different allocations, so don't change one in place.
    pub fn poll(
        &mut self,
        now_ms: u64,
        ownership: Option<&Arc<Ownership>>,
    ) -> Vec<(ActionId, Action)> {
        let Some(ownership) = ownership.filter(|_| self.fatal.is_none()) else {
            self.forget();
            return Vec::new();
        };
        let seen = self.ownership.as_ref();
        let news = seen.is_none_or(|seen| !Arc::ptr_eq(seen, ownership));
        let is_due = self.outbox.due().is_some_and(|due| due <= now_ms);
        if !news && !is_due && self.ended.is_empty() {
            return Vec::new();
        }
        self.ownership = Some(Arc::clone(ownership));
        let mut ended = std::mem::take(&mut self.ended);
        ended.extend(self.outbox.overdue(now_ms));
        self.outbox.begin_turn();
        let mut turn = Turn {
            now: now_ms,
            ownership,
            news,
            options: &self.options,
            bugs: self.bugs,
            out: &mut self.outbox,
            fatal: &mut self.fatal,
        };
        for (id, outcome) in ended {
            let Some(errand) = turn.out.end(id) else {
                continue;
            };
            match errand {
                Errand::Fetch => self
                    .configs
                    .fetched(self.gid, self.shards, &mut turn, outcome),
                Errand::Begin => self.configs.begun(&turn, &outcome),
                Errand::Configure(num) => self.configs.configured(&turn, num, &outcome),
                Errand::ProveLeadership => self.configs.proved(self.gid, &mut turn, &outcome),
                Errand::Pull => self.pulls.pulled(&turn, id, outcome),
                Errand::Install(task) => self.pulls.installed(&turn, id, task, &outcome),
                Errand::Delete => self.deletes.told(&turn, id, outcome),
                Errand::Deleted(task) => self.deletes.noted(&turn, id, task, &outcome),
                Errand::Report(settled) => self.reports.ended(&turn, settled, &outcome),
                Errand::Whatever => {}
            }
        }
        if ownership.controller.is_some() && ownership.gid != self.gid {
            *turn.fatal = Some(format!(
                "this is the state of {}, and the node was started as one of {}: start it as what it is",
                ownership.gid, self.gid
            ));
        }
        if turn.fatal.is_some() {
            self.forget();
            return Vec::new();
        }
        self.configs.poll(self.gid, &mut turn);
        self.pulls.poll(&mut turn);
        self.deletes.poll(&mut turn);
        self.reports.poll(&mut turn);
        self.outbox.take()
    }

    /// How an action went. [`Mover::poll`] is to be called next.
    pub fn ended(&mut self, id: ActionId, outcome: Outcome) {
        if self.outbox.expects(id) {
            self.ended.push((id, outcome));
        }
    }

    /// When [`Mover::poll`] has something to do without news, if ever.
    pub fn next_due(&self) -> Option<u64> {
        if self.ended.is_empty() {
            self.outbox.due()
        } else {
            Some(0)
        }
    }

    /// Why a shard's hand-off makes no progress, for people; `None` if it does, or has none, or the replica doesn't lead.
    pub fn waits_for(&self, now_ms: u64, shard: ShardId) -> Option<String> {
        let ownership = self.ownership.as_ref()?;
        let here = ownership.shards.get(&shard);
        let waits = here.and_then(|here| match &here.state {
            ShardState::Pulling { config, source, .. } => {
                self.pulls.why((*config, shard), *source, now_ms)
            }
            ShardState::Fenced { to, .. } => Some(format!("{to} has to fetch it and confirm")),
            ShardState::Serving { .. } => None,
        });
        let behind = here.and_then(|here| here.queue.front());
        if let Some(why) = waits {
            return Some(match behind {
                Some(step) => format!("{why}; configuration {} is queued behind", step.config),
                None => why,
            });
        }
        let mut owed = ownership
            .owed
            .range((shard, ConfigNum(0))..=(shard, ConfigNum(u64::MAX)));
        owed.find_map(|((_, config), source)| {
            let why = self.deletes.why((*config, shard), *source, now_ms)?;
            Some(format!("{source} has to delete it: {why}"))
        })
    }

    /// Why the controllers' configurations don't reach the group's log, for people; `None` if they do.
    pub fn lags_because(&self, now_ms: u64) -> Option<String> {
        self.configs.why(now_ms)
    }

    /// What makes it impossible for the group to follow the controllers: another controller, another number of shards, another
    /// group's state, or shards given to a group that lost them. The node refuses to go on.
    pub fn fatal(&self) -> Option<&str> {
        self.fatal.as_deref()
    }

    fn forget(&mut self) {
        if self.ownership.take().is_some() {
            self.ended.clear();
            self.outbox.forget();
            self.configs = Configs::default();
            self.pulls.forget(&self.options);
            self.deletes = Deletes::default();
            self.reports = Reports::default();
        }
    }
}
