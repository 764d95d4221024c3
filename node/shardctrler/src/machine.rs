//! The state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use raft::StoreError;
use replica::session::{Admission, SessionRefusal, SessionTable};
use replica::{Applying, StateMachine, StateReader, Table, Transaction};
use types::{ConfigDelta, ConfigError, ConfigNum, DecodeError, Gid, ShardConfig, ShardId};

use crate::bug::{Bug, Bugs};
use crate::history::{History, HistoryLimits};
use crate::outcome::{Outcome, Refusal};
use crate::rules::{self, Plan};
use crate::{
    Change, Command, Configs, CtrlError, Genesis, GroupKind, GroupProgress, MAX_ANSWER_BYTES,
    MAX_DELTAS, Query, QueryAnswer, Response, keys,
};

/// The most forgotten sessions that one change removes: more than the one that it may add, so that the table shrinks.
const EXPIRED_PER_CHANGE: usize = 2;

/// The most records, and the approximate bytes, of one read of a reload.
const RELOAD_PAGE: (usize, usize) = (4_096, 1 << 20);

/// The controllers' configurations as a [`StateMachine`].
///
/// Invariants, between batches:
/// - all fields but `limits` are what the records say ([`crate`] tells which), and the session table has nothing that
///   isn't written;
/// - `progress` has every group of the latest configuration, with no `left_in`, and beside them only groups that left and
///   aren't drained; no `settled` is above the latest configuration or below the oldest;
/// - every shard in `moved` has an owner.
///
/// If a batch's commit fails, the caches are ahead of the state: nothing may be applied before
/// [`StateMachine::reload`].
#[derive(Debug)]
pub struct Shardctrler {
    limits: HistoryLimits,
    genesis: Option<Genesis>,
    history: History,
    progress: BTreeMap<Gid, GroupProgress>,
    moved: BTreeSet<ShardId>,
    sessions: SessionTable<Outcome>,
    bugs: Bugs,
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
            moved: BTreeSet::new(),
            sessions: SessionTable::default(),
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

    /// Returns the progress of every group that is part of the cluster, or left and is not drained yet.
    pub fn progress(&self) -> &BTreeMap<Gid, GroupProgress> {
        &self.progress
    }

    /// The shards that are where a `Move` put them, because no rebalance had to touch them since.
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
        self.history = load_history(state, shards)?;
        self.progress = load_progress(state)?;
        self.moved = load_moved(state)?;
        self.sessions = load_sessions(state)?;
        self.check()
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
        if let Change::Report { gid, settled } = change {
            return self.report(gid, settled, state);
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
        let untracked = |gid: &&Gid| !self.progress.contains_key(gid);
        if let Some(gid) = latest.groups().keys().find(untracked) {
            return Err(StoreError::Damaged(format!("{gid} has no progress")));
        }
        for (gid, it) in &self.progress {
            let member = latest.groups().contains_key(gid);
            let left = it.left_in.unwrap_or_default();
            if it.left_in.is_none() != member || it.settled.max(left) > latest.num() {
                return Err(StoreError::Damaged(format!(
                    "the progress of {gid}: {it:?}"
                )));
            }
        }
        let nobodys = |shard: &&ShardId| latest.owner(**shard) == Gid::NONE;
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
        let latest = self.latest();
        let plan = match rules::plan(change, &latest, &self.moved) {
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
        if let Some(full) = self.full() {
            return Ok(Outcome::Refused(full));
        }
        let delta = ConfigDelta::between(&latest, &plan.groups, &plan.owners);
        let moved_shards = delta.moves.iter().map(|step| step.run.count).sum();
        let num = delta.num;
        let record = self.history.push(delta).map_err(impossible)?;
        state.put(Table::Meta, keys::delta(num), record);
        self.track(&latest, &plan, state);
        self.hold(&latest, &plan, state);
        self.forget_passed(state)?;
        Ok(Outcome::Changed {
            num,
            changed: true,
            moved_shards,
        })
    }

    /// Returns the reason that there can be no further configuration now, if there is one.
    fn full(&self) -> Option<Refusal> {
        let HistoryLimits { max, max_bytes, .. } = self.limits;
        if self.history.len() < max && self.history.bytes() < max_bytes {
            return None;
        }
        let (waits_for, progress) = self.furthest_behind()?;
        Some(Refusal::HistoryFull {
            limit: self.history.len(),
            waits_for,
            settled: progress.settled,
        })
    }

    /// The group that is furthest behind, of all that are waited for.
    fn furthest_behind(&self) -> Option<(Gid, GroupProgress)> {
        let groups = self.progress.iter().map(|(gid, it)| (*gid, *it));
        groups.min_by_key(|(gid, it)| (it.settled, *gid))
    }

    /// Takes up groups that came, and notes which left.
    fn track(&mut self, before: &ShardConfig, plan: &Plan, state: &mut Transaction<'_>) {
        let num = before.num().next();
        let (old, new) = (before.groups(), &plan.groups);
        for gid in new.keys().filter(|gid| !old.contains_key(gid)) {
            // One that left and isn't drained has still to do what it had; the others have had nothing to do so far.
            let progress = self.progress.entry(*gid).or_insert(GroupProgress {
                settled: before.num(),
                left_in: None,
            });
            progress.left_in = None;
            state.put(Table::Meta, keys::group(*gid), progress.encode());
        }
        for gid in old.keys().filter(|gid| !new.contains_key(gid)) {
            let progress = self.progress.entry(*gid).or_default();
            progress.left_in = Some(num);
            state.put(Table::Meta, keys::group(*gid), progress.encode());
        }
    }

    /// Notes a shard that was moved by hand, and forgets those that a rebalance had to touch.
    fn hold(&mut self, before: &ShardConfig, plan: &Plan, state: &mut Transaction<'_>) {
        let owner = |shard: &ShardId| plan.owners.get(shard.0 as usize).copied();
        let touched = |shard: &ShardId| owner(shard) != Some(before.owner(*shard));
        let touched: Vec<ShardId> = self.moved.iter().copied().filter(touched).collect();
        for shard in touched {
            self.moved.remove(&shard);
            state.remove(Table::Meta, keys::moved(shard));
        }
        if let Some(shard) = plan.moved {
            self.moved.insert(shard);
            state.put(Table::Meta, keys::moved(shard), Bytes::new());
        }
    }

    /// Takes in how far a group is. News of a group that isn't waited for, and old news, change nothing.
    fn report(
        &mut self,
        gid: Gid,
        settled: ConfigNum,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        let latest = self.history.latest().num();
        if settled > latest {
            let num = settled;
            return Ok(Response::Refused(CtrlError::Future { num, latest }));
        }
        let Some(progress) = self.progress.get_mut(&gid) else {
            return Ok(Response::Reported);
        };
        if settled <= progress.settled {
            return Ok(Response::Reported);
        }
        progress.settled = settled;
        if progress.left_in.is_some_and(|left_in| settled >= left_in) {
            self.progress.remove(&gid);
            state.remove(Table::Meta, keys::group(gid));
        } else {
            state.put(Table::Meta, keys::group(gid), progress.encode());
        }
        self.forget_passed(state)?;
        Ok(Response::Reported)
    }

    /// Drops the configurations that no group needs, except the newest, which are kept for queries while there is room.
    fn forget_passed(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        let latest = self.history.latest().num();
        let oldest = self.history.oldest().num();
        let HistoryLimits {
            mut keep,
            mut step,
            max,
            max_bytes,
        } = self.limits;
        let mut passed = self.furthest_behind().map_or(latest, |(_, it)| it.settled);
        if self.history.len() >= max || self.history.bytes() >= max_bytes {
            (keep, step) = (0, 1);
        }
        if self.bugs.has(Bug::HistoryCutTooEarly) {
            (passed, keep, step) = (latest, 0, 1);
        }
        let target = passed.min(ConfigNum(latest.0.saturating_sub(keep)));
        if target.0.saturating_sub(oldest.0) < step.max(1) {
            return Ok(());
        }
        for gone in self.history.cut(target).map_err(impossible)? {
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
        Ok(Response::Configs(Configs {
            full,
            deltas,
            latest,
        }))
    }

    /// Returns the configuration to send whole to a caller that has `num`; `None` if deltas are enough.
    fn begin(&self, num: ConfigNum, gid: Option<Gid>) -> Option<ConfigNum> {
        let (latest, oldest) = (self.history.latest().num(), self.history.oldest().num());
        let begin = match gid {
            // An untracked group owns nothing now, and has nothing to hand over.
            Some(gid) if num == ConfigNum(0) => {
                self.progress.get(&gid).map_or(latest, |it| it.settled)
            }
            _ if num >= oldest => return None,
            Some(gid) => self.progress.get(&gid).map_or(latest, |it| it.settled),
            None => oldest,
        };
        // The clamp is for a known bug alone: no group's history is cut.
        Some(begin.max(oldest)).filter(|begin| *begin > num)
    }
}

fn load_history(state: &dyn StateReader, shards: u32) -> Result<History, StoreError> {
    let oldest = match state.get(Table::Meta, keys::OLDEST)? {
        Some(record) => ShardConfig::decode(record)
            .map_err(|error| damaged("the oldest configuration", &error))?,
        None if shards == 0 => return Ok(History::empty(0)),
        None => ShardConfig::empty(shards),
    };
    if oldest.shards() != shards {
        let what = format!(
            "the oldest configuration has {} shards, the genesis {shards}",
            oldest.shards()
        );
        return Err(StoreError::Damaged(what));
    }
    let mut deltas = Vec::new();
    each(state, Table::Meta, keys::DELTAS, |key, record| {
        let bytes = record.len();
        let delta = ConfigDelta::decode(record).map_err(|error| damaged("a delta", &error))?;
        if keys::split_u64(key) != Some(delta.num.0) {
            return Err(malformed("a delta's"));
        }
        deltas.push((delta, bytes));
        Ok(())
    })?;
    History::new(oldest, deltas)
        .map_err(|error| StoreError::Damaged(format!("the configurations: {error}")))
}

fn load_progress(state: &dyn StateReader) -> Result<BTreeMap<Gid, GroupProgress>, StoreError> {
    let mut progress = BTreeMap::new();
    each(state, Table::Meta, keys::GROUPS, |key, record| {
        let gid = keys::split_u64(key).ok_or_else(|| malformed("a group's"))?;
        let record =
            GroupProgress::decode(record).map_err(|error| damaged("a group's progress", &error))?;
        progress.insert(Gid(gid), record);
        Ok(())
    })?;
    Ok(progress)
}

fn load_moved(state: &dyn StateReader) -> Result<BTreeSet<ShardId>, StoreError> {
    let mut moved = BTreeSet::new();
    each(state, Table::Meta, keys::MOVED, |key, _| {
        let shard = keys::split_u32(key).ok_or_else(|| malformed("a moved shard's"))?;
        moved.insert(ShardId(shard));
        Ok(())
    })?;
    Ok(moved)
}

fn load_sessions(state: &dyn StateReader) -> Result<SessionTable<Outcome>, StoreError> {
    let mut sessions = SessionTable::default();
    each(state, Table::Sessions, &[], |key, record| {
        let client = keys::split_session(key).ok_or_else(|| malformed("a session's"))?;
        sessions
            .load(client, record)
            .map_err(|error| damaged("a session", &error))
    })?;
    Ok(sessions)
}

/// Reads all pairs whose keys start with `prefix`; the keys come without it.
fn each(
    state: &dyn StateReader,
    table: Table,
    prefix: &[u8],
    mut take: impl FnMut(&[u8], Bytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let (limit, max_bytes) = RELOAD_PAGE;
    let mut after = Bound::Included(Bytes::copy_from_slice(prefix));
    loop {
        let bounds = (after.as_ref().map(Bytes::as_ref), Bound::Unbounded);
        let page = state.scan(table, bounds, limit, max_bytes)?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        after = Bound::Excluded(last.clone());
        for (key, record) in page {
            let Some(rest) = key.strip_prefix(prefix) else {
                return Ok(());
            };
            take(rest, record)?;
        }
    }
}

fn damaged(what: &str, error: &DecodeError) -> StoreError {
    StoreError::Damaged(format!("the record of {what}: {error}"))
}

fn malformed(whose: &str) -> StoreError {
    StoreError::Damaged(format!("{whose} key is malformed"))
}

/// Configurations that follow the rules always fit: what doesn't was damaged in memory or is a bug, and going on would
/// spread it.
// By value, as `map_err` wants it.
#[allow(clippy::needless_pass_by_value)]
fn impossible(error: ConfigError) -> StoreError {
    StoreError::Damaged(format!("the configurations in memory: {error}"))
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
