//! The mover: a group's leader runs it to move shards between groups.
//!
//! The mover is pure: a driver (the server, or the simulator) passes in the ownership, carries out the actions that the
//! mover returns, and reports their outcomes. The mover keeps nothing that must survive a crash: all that matters is in the
//! group's log, and a new leader's mover continues from there.
//!
//! # The driver's contract
//!
//! One [`Mover`] for a replica, for as long as the process lives, so that action ids are never used twice.
//!
//! - Call [`Mover::poll`] after each batch of applied entries, after [`Mover::ended`], when leadership changes, and when
//!   [`Mover::next_due`] is reached. It costs next to nothing if there is nothing to do.
//! - Pass the ownership while raft says that the replica leads, else `None`. A leader that was deposed without knowing it may
//!   still pass it: its proposals are not committed, and its other actions are harmless. After a `None`, the driver may
//!   cancel the actions that were pending.
//! - Start the actions in the order given; proposals enter the log in that order. Report the outcome of each once, by
//!   [`Mover::ended`]. An outcome after a `None`, or after the action's deadline, is ignored.
//! - The first [`Mover::poll`] after a proposal was reported as done must pass an ownership that includes its effect.
//!   Otherwise the mover concludes that the proposal had no effect, and proposes again.
//! - When [`Mover::fatal`] returns a reason, stop the node with it.
//!
//! # The mover's five tasks
//!
//! Each is in a module of its own: the latest configuration from the controllers into the log (`configs`), copies of shards that their
//! sources still serve, with the reports that they have caught up, until the shards are served here (`copies`), whole fenced shards
//! whose copy was useless (`pulls`), delete requests to the sources (`deletes`), progress reports to the controllers (`reports`).
//! Configurations never wait for the others. `scheduler` gives each other group slots of its own, so that a group that is
//! slow or doesn't answer delays only its own shards.
//!
//! Everything has a bound: deltas, chunks and parts held, pending actions, bytes a second. A shard begins only if the group's disks have
//! room for it ([`Mover::set_room`]). A failed action is retried after a
//! backoff that doubles, and an action without an outcome fails at its deadline.

mod background;
mod backoff;
mod configs;
mod copies;
mod deletes;
mod driver;
mod outbox;
mod pace;
mod pulls;
mod reports;
mod room;
mod scheduler;

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::Index;
use types::{ClusterId, ConfigDelta, ConfigNum, Cut, Gid, ShardConfig, ShardId};

#[cfg(feature = "bugs")]
use crate::bug::Bug;
use crate::bug::Bugs;
use crate::{
    Chunk, CopyRequest, Cursor, JournalError, JournalStep, Ownership, Part, ShardState, Step,
};
use background::Background;
use configs::Configs;
use copies::Copies;
use deletes::Deletes;
pub use driver::{Answer, CallId, Driver, DriverOptions, Effect, Request};
use outbox::{Outbox, Purpose, Turn};
use pace::Pace;
use pulls::Pulls;
use reports::Reports;
pub use room::{Progress, Room};

/// The deadline of `Pull`, `Delete` and `Report`, in milliseconds from their start.
const ASK_PATIENCE_MS: u64 = 10_000;
/// The bytes that the requested chunks of all pulls and the requested parts of all copies may have in memory together. Each may exceed its
/// share by one value.
const MEMORY_BYTES: u64 = 64 << 20;
/// The deadline of `Propose`, in milliseconds from its start.
const PROPOSE_PATIENCE_MS: u64 = 30_000;

/// Options of a mover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoverOptions {
    /// The most shards that are pulled from each source at the same time, and the most that are copied and haven't caught up; 0 counts
    /// as 1.
    pub max_concurrent_pulls: u32,
    /// The most bytes that all pulls and copies together receive in a second; 0 for no limit. After a pause a tenth of it, or one chunk,
    /// may come at once, and one chunk of each source that is on trial.
    pub max_bytes_per_second: u64,
    /// About how many bytes of a shard travel and are proposed at once; fewer if there are very many sources. With the largest value on top it must fit into an
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
            max_concurrent_pulls: 2,
            max_bytes_per_second: 64 << 20,
            chunk_bytes: 512 << 10,
            min_retry_ms: 10,
            max_retry_ms: 1_000,
        }
    }
}

/// The mover's identifier of an action; the driver passes it back with the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId(pub u64);

/// An action for the driver. Each ends with one [`Outcome`], at the latest with a failure after the driver's own timeout:
/// a few seconds for `Pull`, `Delete` and `Report`, which the mover itself gives 10 seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the controllers for the configurations after `after`. Ends when there are some, or in less than a minute
    /// without any.
    FetchConfigs {
        /// The latest configuration that the mover knows; 0 for none.
        after: ConfigNum,
    },
    /// Ask the source for the next chunk of a shard. Any of its nodes that has applied the fence can give it.
    Pull {
        /// The shard.
        shard: ShardId,
        /// The configuration that moves it.
        config: ConfigNum,
        /// The group that has the shard.
        source: Gid,
        /// Addresses of the source's nodes.
        addresses: Vec<String>,
        /// The cursor up to which the shard has arrived.
        after: Cursor,
        /// The approximate size of the chunk.
        max_bytes: u32,
    },
    /// Ask the source's leader to delete a shard that is installed here.
    Delete {
        /// The shard.
        shard: ShardId,
        /// The configuration that moved it.
        config: ConfigNum,
        /// The group that is to delete it.
        source: Gid,
        /// Addresses of the source's nodes.
        addresses: Vec<String>,
    },
    /// Propose a step to this group's own log. Ends when the step was applied here, can't be applied, or its outcome can't
    /// be known.
    Propose(Step),
    /// Ask the source for the next part of a copy. Any of its nodes that has applied what the request names can give it.
    Copy {
        /// The group that serves the shard, or has fenced it.
        source: Gid,
        /// Addresses of the source's nodes.
        addresses: Vec<String>,
        /// The request.
        request: CopyRequest,
    },
    /// Ask the source's leader to carry out a step of a journal.
    Journal {
        /// The group that serves the shard.
        source: Gid,
        /// Addresses of the source's nodes.
        addresses: Vec<String>,
        /// The step.
        step: JournalStep,
    },
    /// Tell the controllers that copies have caught up, so that they may cut. They compare each field with their configuration.
    ReportCut {
        /// The shards; at most [`types::MAX_CUTS`].
        cuts: BTreeMap<ShardId, Cut>,
    },
    /// Report the group's progress to the controllers.
    Report {
        /// The value of [`Ownership::settled`].
        settled: ConfigNum,
        /// The value of [`Ownership::held`].
        held: ConfigNum,
    },
}

/// The outcome of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `FetchConfigs`: the controllers' answer. An answer without news is no failure.
    Configs {
        /// The controllers' incarnation.
        controller: ClusterId,
        /// The number of shards of the cluster.
        shards: u32,
        /// The configuration that the controllers know this group to have settled.
        settled: ConfigNum,
        /// The latest configuration by which the controllers know this group to have served a shard.
        held: ConfigNum,
        /// The latest configuration, if the group named none, or if the one that follows the group's is no longer kept.
        full: Option<ShardConfig>,
        /// The configurations that follow.
        deltas: Vec<ConfigDelta>,
    },
    /// `Pull`: the chunk.
    Pulled(Chunk),
    /// `Copy`: the part.
    Part(Part),
    /// `Journal` that begins one: the journal's id.
    Begun(Index),
    /// `Copy` or `Journal`: the source's state machine refused it. For `Journal` that is the answer of its log.
    Refused(JournalError),
    /// `Delete`: the source has deleted the shard, now or before. `Propose`: applied. `Report` and `ReportCut`: accepted. `Journal`:
    /// applied.
    Done,
    /// `Copy` or `Journal`: the source has too much to do, for this reason, which is only displayed; the mover retries it after a pause.
    Busy(String),
    /// The action failed for this reason, which is only displayed; the mover retries it after a backoff.
    Failed(String),
}

/// Returns the next action for each shard that isn't settled or that is to come here. See the module's documentation.
#[derive(Debug)]
pub struct Mover {
    gid: Gid,
    shards: u32,
    options: MoverOptions,
    bugs: Bugs,
    /// The ownership of the last poll; `None` while the replica doesn't lead.
    ownership: Option<Arc<Ownership>>,
    ended: Vec<(ActionId, Outcome)>,
    outbox: Outbox,
    /// The rate limit of pulls and copies. It stays when leadership is lost, or each change of leaders would allow a burst.
    pace: Pace,
    /// The pace of the bases of copies.
    background: Background,
    configs: Configs,
    pulls: Pulls,
    copies: Copies,
    deletes: Deletes,
    reports: Reports,
    fatal: Option<String>,
}

impl Mover {
    /// Creates a mover without pending actions, for group `gid`, which was created for `shards` shards.
    pub fn new(gid: Gid, shards: u32, options: MoverOptions) -> Self {
        Self {
            gid,
            shards,
            options,
            bugs: Bugs::default(),
            ownership: None,
            ended: Vec::new(),
            outbox: Outbox::default(),
            pace: Pace::new(options.max_bytes_per_second, options.chunk_bytes.max(1)),
            background: Background::new(options.max_bytes_per_second, options.chunk_bytes.max(1)),
            configs: Configs::default(),
            pulls: Pulls::new(&options),
            copies: Copies::new(&options),
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

    /// Returns the actions to start now. `now_ms` is any monotonic clock. `ownership` is the group's as of the last
    /// applied entry, and `None` while this replica doesn't lead: then all pending actions are forgotten, and their late
    /// outcomes are ignored. Two ownerships differ if they are different allocations, so never change one in place.
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
        ended.extend(self.outbox.overdue(now_ms, self.bugs));
        self.outbox.begin_turn();
        let mut turn = Turn {
            now: now_ms,
            ownership,
            news,
            options: &self.options,
            bugs: self.bugs,
            pulls: self.pulls.takers(),
            copies: self.copies.takers(),
            pace: &mut self.pace,
            background: &mut self.background,
            out: &mut self.outbox,
            fatal: &mut self.fatal,
        };
        for (id, outcome) in ended {
            let Some(purpose) = turn.out.end(id) else {
                continue;
            };
            match purpose {
                Purpose::Fetch => self
                    .configs
                    .fetched(self.gid, self.shards, &mut turn, outcome),
                Purpose::Configure(num) => self.configs.configured(&turn, num, &outcome),
                Purpose::ProveLeadership => self.configs.proved(&mut turn, &outcome),
                Purpose::Pull { paid } => self.pulls.pulled(&mut turn, id, paid, outcome),
                Purpose::Install(task) => self.pulls.installed(&turn, id, task, &outcome),
                Purpose::Copy { shard, paid } => {
                    self.copies.ended(&mut turn, id, (shard, paid), outcome);
                }
                Purpose::Delete => self.deletes.delete_ended(&turn, id, outcome),
                Purpose::Deleted(task) => self.deletes.record_ended(&turn, id, task, &outcome),
                Purpose::ReportCut => self.copies.reported(&turn, &outcome),
                Purpose::Report(progress) => self.reports.ended(&turn, progress, &outcome),
                Purpose::Ignored => {}
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
        self.copies.poll(&mut turn);
        self.deletes.poll(&mut turn);
        self.reports.poll(&mut turn);
        self.outbox.take(self.bugs)
    }

    /// Takes the outcome of an action. Call [`Mover::poll`] next.
    pub fn ended(&mut self, id: ActionId, outcome: Outcome) {
        if self.outbox.expects(id) {
            self.ended.push((id, outcome));
        }
    }

    /// Sets the room for shards on the disks of the group; `None` while it isn't known. A shard that doesn't fit isn't begun.
    pub fn set_room(&mut self, room: Option<Room>) {
        self.copies.set_room(room.clone());
        self.pulls.set_room(room);
    }

    /// Sets the time for which the group's slowest live follower is behind the leader's log, in milliseconds. Copies slow down for it.
    pub fn set_lag(&mut self, lag_ms: u64) {
        self.background.set_lag(lag_ms);
    }

    /// Takes a source's estimate of the bytes of a shard that is to be copied.
    pub fn copy_measured(&mut self, shard: ShardId, bytes: u64) {
        self.copies.measured(shard, bytes);
    }

    /// Takes a source's estimate of the bytes of a shard that is pulled.
    pub fn shard_measured(&mut self, shard: ShardId, config: ConfigNum, bytes: u64) {
        self.pulls.measured((config, shard), bytes);
    }

    /// Returns the rate that the bases of all copies share now, in bytes a second.
    pub fn base_rate(&self) -> u64 {
        self.background.rate()
    }

    /// Returns the number of copies, since this mover exists, that were reported after the most rounds although much was left.
    pub fn hurried_copies(&self) -> u64 {
        self.copies.hurried
    }

    /// Returns the progress of a shard that is on its way here, as far as this replica drives it.
    pub fn progress(&self, now_ms: u64, shard: ShardId) -> Option<Progress> {
        let here = self.ownership.as_ref()?.shards.get(&shard)?;
        match here.state {
            ShardState::Pulling { config, bytes, .. } => {
                self.pulls.progress((config, shard), bytes, now_ms)
            }
            ShardState::Copying { .. } | ShardState::Completing { .. } => {
                Some(self.copies.progress(shard, now_ms))
            }
            ShardState::Serving { .. } | ShardState::Fenced { .. } => None,
        }
    }

    /// Returns the time at which [`Mover::poll`] has work without new input, if any.
    pub fn next_due(&self) -> Option<u64> {
        if self.ended.is_empty() {
            self.outbox.due()
        } else {
            Some(0)
        }
    }

    /// Returns the reason, for display, that a shard's hand-off makes no progress; `None` if it makes progress, if the shard has
    /// no hand-off, or if the replica doesn't lead.
    pub fn waits_for(&self, now_ms: u64, shard: ShardId) -> Option<String> {
        let ownership = self.ownership.as_ref()?;
        let waits = match ownership.state(shard) {
            Some(ShardState::Pulling { config, source, .. }) => {
                self.pulls.why((*config, shard), *source, now_ms)
            }
            Some(ShardState::Fenced { to, .. }) => {
                Some(format!("{to} has to fetch it and confirm"))
            }
            Some(ShardState::Copying { .. } | ShardState::Completing { .. }) | None => {
                self.copies.why(ownership, shard, now_ms)
            }
            Some(ShardState::Serving { .. }) => None,
        };
        if waits.is_some() {
            return waits;
        }
        let mut deletes = ownership
            .pending_deletes
            .range((shard, ConfigNum(0))..=(shard, ConfigNum(u64::MAX)));
        deletes.find_map(|((_, config), source)| {
            let why = self.deletes.why((*config, shard), *source, now_ms)?;
            Some(format!("{source} has to delete it: {why}"))
        })
    }

    /// Returns the reason, for display, that the controllers' configurations don't reach the group's log; `None` if they do.
    pub fn lags_because(&self, now_ms: u64) -> Option<String> {
        self.configs.why(now_ms)
    }

    /// Returns the reason that the group can't follow the controllers: another number of shards, another group's state, or shards given
    /// to a group that lost them. The node must stop. Controllers that the group doesn't follow are no such reason: it serves on.
    pub fn fatal(&self) -> Option<&str> {
        self.fatal.as_deref()
    }

    /// Returns true if the outcome of an action is awaited.
    fn expects(&self, id: ActionId) -> bool {
        self.outbox.expects(id)
    }

    fn forget(&mut self) {
        if self.ownership.take().is_some() {
            self.ended.clear();
            self.outbox.forget();
            self.configs = Configs::default();
            self.pulls.forget(&self.options);
            self.copies.forget(&self.options);
            self.deletes = Deletes::default();
            self.reports = Reports::default();
        }
    }
}
