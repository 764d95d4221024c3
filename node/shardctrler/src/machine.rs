//! The state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use raft::StoreError;
use replica::session::{Admission, SessionRefusal, SessionTable};
use replica::{Applying, StateMachine, StateReader, Table, Transaction};
use types::{ConfigDelta, ConfigNum, Gid, LogTime, ShardConfig, ShardId};

use crate::bug::{Bug, Bugs};
use crate::history::{History, HistoryLimits, impossible};
use crate::outcome::{Outcome, Refusal};
use crate::rules::{self, first_owners};
use crate::{
    Change, Command, Configs, CtrlError, Drained, Genesis, GroupKind, GroupProgress,
    MAX_ANSWER_BYTES, MAX_DELTAS, Query, QueryAnswer, Response, keys, load,
};

/// The most forgotten sessions that one change removes: more than the one that it may add, so that the table shrinks.
const EXPIRED_PER_CHANGE: usize = 2;

/// The controllers' configurations as a [`StateMachine`].
///
/// Invariants, between batches:
/// - all fields but `limits` are what the records say ([`crate`] tells which), and the session table has nothing that
///   isn't written;
/// - `progress` has exactly the groups of the latest configuration; no number of it is above the latest configuration;
/// - `drained` has at most [`crate::MAX_DRAINED`] gids; a group of the latest configuration is of a later incarnation;
/// - every shard in `moved` has a target.
///
/// If a batch's commit fails, the caches are ahead of the state: nothing may be applied before
/// [`StateMachine::reload`].
#[derive(Debug)]
pub struct Shardctrler {
    pub(crate) limits: HistoryLimits,
    genesis: Option<Genesis>,
    pub(crate) history: History,
    pub(crate) progress: BTreeMap<Gid, GroupProgress>,
    pub(crate) drained: BTreeMap<Gid, Drained>,
    pub(crate) moved: BTreeSet<ShardId>,
    sessions: SessionTable<Outcome>,
    /// The horizon of `sessions` in the state.
    horizon: LogTime,
    pub(crate) bugs: Bugs,
}

impl Default for Shardctrler {
    fn default() -> Self {
        Self::new()
    }
}

impl Shardctrler {
    /// A machine that knows nothing yet: [`StateMachine::reload`] comes first.
    pub fn new() -> Self {
        Self::with_limits(HistoryLimits::default())
    }

    /// A machine that keeps another part of the past. See [`HistoryLimits`]: not for the product.
    pub fn with_limits(limits: HistoryLimits) -> Self {
        Self {
            limits,
            genesis: None,
            history: History::empty(0),
            progress: BTreeMap::new(),
            drained: BTreeMap::new(),
            moved: BTreeSet::new(),
            sessions: SessionTable::default(),
            horizon: LogTime(0),
            bugs: Bugs::NONE,
        }
    }

    /// The same with a known bug put back, for the simulator.
    #[cfg(feature = "bugs")]
    #[must_use]
    pub fn with_bug(self, bug: Option<Bug>) -> Self {
        Self {
            bugs: Bugs::new(bug),
            ..self
        }
    }

    /// Returns the parameters that the group was created with; `None` while the state is empty.
    pub fn genesis(&self) -> Option<&Genesis> {
        self.genesis.as_ref()
    }

    /// The latest configuration as of the last applied entry; one without shards as long as the state is empty.
    pub fn latest(&self) -> Arc<ShardConfig> {
        Arc::clone(self.history.latest())
    }

    /// The number of the oldest configuration that is kept.
    pub fn oldest(&self) -> ConfigNum {
        self.history.oldest().num()
    }

    /// Returns the progress of every group that is part of the cluster, leaving ones included.
    pub fn progress(&self) -> &BTreeMap<Gid, GroupProgress> {
        &self.progress
    }

    /// Returns the last drained incarnation of each gid, for the groups that were drained last.
    pub fn drained(&self) -> &BTreeMap<Gid, Drained> {
        &self.drained
    }

    /// The shards whose targets are where a `Move` put them, because no rebalance had to touch them since.
    pub fn moved(&self) -> &BTreeSet<ShardId> {
        &self.moved
    }

    /// Returns the number of remembered sessions, for metrics.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// A state without a genesis has no log: its replica waits for a snapshot, after which there is one. An
    /// operation that comes all the same would be lost here and kept elsewhere, so it stops the node.
    fn created(&self) -> Result<Genesis, StoreError> {
        self.genesis
            .ok_or_else(|| StoreError::Damaged("the state has no genesis record".to_owned()))
    }
}

impl StateMachine for Shardctrler {
    type Query = Query;
    type Response = Response;

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        self.genesis = Genesis::load(state)?;
        if let Some(Genesis { kind, .. }) = self.genesis
            && kind != GroupKind::Controller
        {
            return Err(StoreError::Damaged(format!(
                "this is the data of a `{kind}` group, not of the controllers: start the node in the role that it was \
                 created with"
            )));
        }
        let shards = self.genesis.map_or(0, |genesis| genesis.shards);
        self.history = load::load_history(state, shards)?;
        self.progress = load::load_progress(state)?;
        self.drained = load::load_drained(state)?;
        self.moved = load::load_moved(state)?;
        self.sessions = load::load_sessions(state)?;
        self.horizon = self.sessions.horizon();
        self.check()
    }

    fn min_birth(&self) -> LogTime {
        self.sessions.horizon()
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        let genesis = self.created()?;
        let Command { session, change } = match Command::decode(operation) {
            Ok(command) => command,
            Err(error) => return Ok(Response::Refused(CtrlError::Malformed(error.to_string()))),
        };
        if let Err(error) = rules::check(&change, genesis.shards) {
            return Ok(Response::Refused(error));
        }
        match change {
            Change::Report { gid, settled, held } => {
                return self.report(gid, (settled, held), state);
            }
            Change::Cut { cuts } => return self.cut(&cuts, state),
            Change::Join { .. }
            | Change::Leave { .. }
            | Change::Move { .. }
            | Change::Forget { .. }
            | Change::Retire { .. } => {}
        }
        let limits = genesis.session_limits();
        self.sessions.expire(at.time, &limits, EXPIRED_PER_CHANGE);
        let Some(session) = session else {
            return self.execute(&change, state).map(Response::from);
        };
        match self.sessions.admit(session, at.time, &limits) {
            Admission::Execute(permit) => {
                let outcome = self.execute(&change, state)?;
                self.sessions.record(permit, outcome.clone());
                Ok(outcome.into())
            }
            Admission::Replay(_) if self.bugs.has(Bug::RetryAppliedTwice) => {
                self.execute(&change, state).map(Response::from)
            }
            Admission::Replay(outcome) => Ok(outcome.into()),
            Admission::Refuse(refusal) => Ok(Response::Refused(refused(refusal))),
        }
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        if self.sessions.horizon() > self.horizon {
            self.horizon = self.sessions.horizon();
            let record = Bytes::copy_from_slice(&self.horizon.0.to_be_bytes());
            state.put(Table::Meta, Bytes::from_static(keys::HORIZON), record);
        }
        for (client, record) in self.sessions.drain_dirty() {
            let key = keys::session(client);
            match record {
                Some(record) => state.put(Table::Sessions, key, record),
                None => state.remove(Table::Sessions, key),
            }
        }
        Ok(())
    }

    fn query(&self, query: &Query, _: &dyn StateReader) -> Result<Response, StoreError> {
        self.created()?;
        match query {
            Query::Config { num } => self.config(*num),
            Query::After { num, limit, gid } => self.after(*num, *limit, *gid),
        }
    }
}

impl Shardctrler {
    /// Refuses records that don't fit each other.
    fn check(&self) -> Result<(), StoreError> {
        let latest = self.history.latest();
        if !latest.groups().keys().eq(self.progress.keys()) {
            let what = "the groups with progress aren't those of the configuration";
            return Err(StoreError::Damaged(what.to_owned()));
        }
        for (gid, it) in &self.progress {
            if it.settled.max(it.due).max(it.held) > latest.num() {
                return Err(StoreError::Damaged(format!(
                    "the progress of {gid}: {it:?}"
                )));
            }
        }
        for (gid, it) in &self.drained {
            let group = latest.groups().get(gid);
            let again = group.is_some_and(|group| group.incarnation <= it.incarnation);
            if again || it.gone_in > latest.num() {
                return Err(StoreError::Damaged(format!("the end of {gid}: {it:?}")));
            }
        }
        let nobodys = |shard: &&ShardId| latest.target(**shard) == Gid::NONE;
        match self.moved.iter().find(nobodys) {
            Some(shard) => Err(StoreError::Damaged(format!("{shard} was moved to nobody"))),
            None => Ok(()),
        }
    }

    /// Makes the next configuration, or finds that it isn't needed or not allowed.
    fn execute(
        &mut self,
        change: &Change,
        state: &mut Transaction<'_>,
    ) -> Result<Outcome, StoreError> {
        match change {
            Change::Forget {
                gids,
                accept_data_loss,
            } => return self.forget(gids, *accept_data_loss, state),
            Change::Retire { gid, incarnation } => {
                return Ok(self.retire(*gid, *incarnation, state));
            }
            Change::Join { groups } => {
                if let Some(gid) = self.retired(groups.keys()) {
                    return Ok(Outcome::Refused(Refusal::Retired(gid)));
                }
            }
            _ => {}
        }
        let latest = self.latest();
        let plan = rules::plan(change, &latest, &self.moved, |gid| self.incarnation(gid));
        let plan = match plan {
            Ok(Some(plan)) => plan,
            Ok(None) => {
                return Ok(Outcome::Changed {
                    num: latest.num(),
                    changed: false,
                    moved_shards: 0,
                });
            }
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        };
        let owners = first_owners(&latest, &plan.targets);
        let delta = self.delta(&latest, &plan, &owners);
        let moved_shards = delta.targets.iter().map(|step| step.run.count).sum();
        let num = delta.num;
        self.hold(&latest, &plan, state);
        self.push(delta, state)?;
        Ok(Outcome::Changed {
            num,
            changed: true,
            moved_shards,
        })
    }

    /// Takes a group's progress. A report of a group that isn't part of the cluster, and an old one, change nothing.
    fn report(
        &mut self,
        gid: Gid,
        (settled, held): (ConfigNum, ConfigNum),
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        let latest = self.history.latest().num();
        if settled.max(held) > latest {
            let num = settled.max(held);
            return Ok(Response::Refused(CtrlError::Future { num, latest }));
        }
        let Some(progress) = self.progress.get_mut(&gid) else {
            return Ok(Response::Reported);
        };
        if settled <= progress.settled && held <= progress.held {
            return Ok(Response::Reported);
        }
        progress.settled = progress.settled.max(settled);
        progress.held = progress.held.max(held);
        state.put(Table::Meta, keys::group(gid), progress.encode());
        self.drop_if_drained(gid, state)?;
        Ok(Response::Reported)
    }

    /// Drops the configurations beyond the limits of the history.
    pub(crate) fn forget_old(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        let oldest = self.history.oldest_to_keep(self.limits);
        if oldest == self.history.oldest().num() {
            return Ok(());
        }
        for gone in self.history.cut(oldest).map_err(impossible)? {
            state.remove(Table::Meta, keys::delta(gone));
        }
        let record = self.history.oldest().encode();
        state.put(Table::Meta, Bytes::from_static(keys::OLDEST), record);
        Ok(())
    }

    fn config(&self, num: Option<ConfigNum>) -> Result<Response, StoreError> {
        let num = num.unwrap_or(self.history.latest().num());
        let config = match self.kept(num)? {
            Ok(config) => config,
            Err(refusal) => return Ok(Response::Refused(refusal)),
        };
        Ok(Response::Config(Box::new(QueryAnswer {
            config,
            latest: self.history.latest().num(),
            oldest: self.history.oldest().num(),
            progress: self.progress.clone(),
            drained: self.drained.clone(),
        })))
    }

    /// A configuration, or why it can't be had.
    fn kept(&self, num: ConfigNum) -> Result<Result<Arc<ShardConfig>, CtrlError>, StoreError> {
        let (latest, oldest) = (self.history.latest().num(), self.history.oldest().num());
        if num > latest {
            return Ok(Err(CtrlError::Future { num, latest }));
        }
        let config = self.history.at(num).map_err(impossible)?;
        Ok(config.ok_or(CtrlError::Compacted { num, oldest }))
    }

    fn after(&self, num: ConfigNum, limit: u32, gid: Option<Gid>) -> Result<Response, StoreError> {
        let latest = self.history.latest().num();
        if num > latest {
            return Ok(Response::Refused(CtrlError::Future { num, latest }));
        }
        let begin = self.begin(num, gid);
        let full = match begin {
            Some(begin) => self.history.at(begin).map_err(impossible)?,
            None => None,
        };
        let mut deltas = Vec::new();
        let mut bytes = 0;
        let following = self.history.after(begin.unwrap_or(num));
        for (delta, size) in following.take(limit.min(MAX_DELTAS) as usize) {
            if bytes + size > MAX_ANSWER_BYTES && !deltas.is_empty() {
                break;
            }
            bytes += size;
            deltas.push(ConfigDelta::clone(delta));
        }
        // A group that isn't part of the cluster owes nothing, because only drained and forgotten groups are dropped.
        let progress = gid.and_then(|gid| self.progress.get(&gid));
        Ok(Response::Configs(Configs {
            full,
            deltas,
            latest,
            settled: progress.map_or(latest, |it| it.settled),
            held: progress.map_or(ConfigNum(0), |it| it.held),
        }))
    }

    /// Returns the configuration to send whole to a caller that has `num`; `None` if deltas are enough.
    fn begin(&self, num: ConfigNum, gid: Option<Gid>) -> Option<ConfigNum> {
        let (latest, oldest) = (self.history.latest().num(), self.history.oldest().num());
        let begin = match gid {
            Some(_) if num == ConfigNum(0) || num < oldest => latest,
            None if num < oldest => oldest,
            _ => return None,
        };
        Some(begin).filter(|begin| *begin > num)
    }
}

fn refused(refusal: SessionRefusal) -> CtrlError {
    let full = |what, limit: u32| CtrlError::SessionLimit {
        what,
        limit: limit.into(),
    };
    match refusal {
        SessionRefusal::Expired => CtrlError::SessionExpired,
        SessionRefusal::FromFuture { ahead_ms } => CtrlError::SessionFromFuture { ahead_ms },
        SessionRefusal::Stale {
            sequence,
            acked_below,
        } => CtrlError::StaleSequence {
            sequence,
            acked_below,
        },
        SessionRefusal::BadSequence {
            sequence,
            acked_below,
        } => CtrlError::BadSequence {
            sequence,
            acked_below,
        },
        SessionRefusal::TooManySessions { limit } => full("the sessions", limit),
        SessionRefusal::TooManyResults { limit } => {
            full("the unacknowledged results of a session", limit)
        }
    }
}
