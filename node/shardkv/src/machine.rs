//! The state machine.

mod expiry;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use raft::StoreError;
use replica::session::{Admission, SessionRefusal};
use replica::{Applying, GroupKind, StateMachine, StateReader, Table, Transaction};
use types::{LogTime, ShardId, shard_of};

use crate::bug::{Bug, Bugs};
use crate::change::{Changed, Verdict};
use crate::clocks::Clocks;
use crate::codec::Operation;
use crate::copy::store_part;
use crate::execute::execute;
use crate::journal::{Journals, Rows};
use crate::keyspaces::{self, Collector};
use crate::query::{Asked, check_bound, check_key};
use crate::records::{self, each_pair};
use crate::sessions::{Tables, bad_record};
use crate::{
    AUTH_LEVEL, Chunk, Command, CopyStep, Genesis, JournalLimits, JournalStep, KEYSPACE_LEVEL,
    KeyspaceChanges, KvError, Next, Ownership, Part, PartNext, Query, Response, ShardState, Step,
    keys,
};

/// The sharded key-value store as a [`StateMachine`].
///
/// Invariants, between batches:
/// - `sessions` holds exactly the records of [`Table::Sessions`], and no empty table; each table has at most the horizon of
///   `clocks`;
/// - `ownership`, `journals` and `clocks` are what the records of [`Table::Meta`] say;
/// - an absent shard has neither data nor sessions nor rows of keyspaces, nor a clock;
/// - `dirty` is empty.
///
/// If a batch's commit fails, the caches are ahead of the state: nothing may be applied before
/// [`StateMachine::reload`].
#[derive(Debug, Default)]
pub struct ShardKv {
    genesis: Option<Genesis>,
    sessions: Tables,
    clocks: Clocks,
    dirty: BTreeSet<ShardId>,
    /// The shard at which the next search for expired sessions begins.
    search_from: ShardId,
    ownership: Arc<Ownership>,
    journals: Journals,
    journal_limits: JournalLimits,
    keyspace_changes: Collector,
    bugs: Bugs,
}

impl ShardKv {
    /// Creates an empty machine. Call [`StateMachine::reload`] before anything else.
    pub fn new() -> Self {
        Self::default()
    }

    /// A machine with a known bug put back, for the simulator.
    #[cfg(feature = "bugs")]
    pub fn with_bug(bug: Option<Bug>) -> Self {
        Self {
            bugs: Bugs::new(bug),
            ..Self::default()
        }
    }

    /// A machine with other limits of journals. See [`JournalLimits`]: not for the product.
    #[must_use]
    pub fn with_journal_limits(self, journal_limits: JournalLimits) -> Self {
        Self {
            journal_limits,
            ..self
        }
    }

    /// Makes the machine collect the changes of keyspaces. The caller takes them after each batch
    /// ([`ShardKv::take_keyspace_changes`]).
    #[must_use]
    pub fn collecting_keyspace_changes(mut self) -> Self {
        self.keyspace_changes.start();
        self
    }

    /// Returns the changes of keyspaces since the last call. Call it only after a commit, or they may be lost with it.
    pub fn take_keyspace_changes(&mut self) -> KeyspaceChanges {
        self.keyspace_changes.take()
    }

    /// Returns the parameters that the group was created with; `None` while the state is empty.
    pub fn genesis(&self) -> Option<&Genesis> {
        self.genesis.as_ref()
    }

    /// Returns the number of sessions that all shards remember, for metrics.
    pub fn session_count(&self) -> usize {
        self.sessions.count()
    }

    /// Returns the group's ownership of shards as of the last applied entry.
    pub fn ownership(&self) -> Arc<Ownership> {
        Arc::clone(&self.ownership)
    }

    /// Returns the journals of shards that are copied from here, as of the last applied entry.
    pub fn journals(&self) -> &Journals {
        &self.journals
    }

    /// Returns true for a write to a shard that was cut for this group and isn't served yet: it would be refused now, and served soon.
    pub fn awaits_write(&self, operation: &Bytes) -> bool {
        matches!(
            self.refuse_early(operation),
            Some(Response::Refused(KvError::ShardNotReady { .. }))
        )
    }

    /// Returns true for a read of one key of such a shard.
    pub fn awaits_read(&self, query: &Query) -> bool {
        let (Query::Get { key }, Some(genesis)) = (query, self.genesis) else {
            return false;
        };
        let served = self.ownership.check_served(shard_of(key, genesis.shards));
        matches!(served, Err(KvError::ShardNotReady { .. }))
    }

    /// Removes the pairs of `[start, end)` of a shard that is served here, by one change of the state; an empty `end` is the
    /// shard's end. For operations that remove many pairs; no write of clients does.
    pub fn clear_range(
        &mut self,
        shard: ShardId,
        (start, end): (&Bytes, &Bytes),
        state: &mut Transaction<'_>,
    ) -> Result<(), KvError> {
        check_bound(start)?;
        check_bound(end)?;
        self.ownership.check_served(shard)?;
        Rows::new(shard, &mut self.journals, state).clear(start, end);
        Ok(())
    }

    /// Returns the genesis, or an error that stops the node. A state without a genesis has no log: its replica waits for a
    /// snapshot, which contains one. If an operation arrived before that and were refused, this replica would lose what other
    /// replicas keep.
    fn created(&self) -> Result<Genesis, StoreError> {
        self.genesis
            .ok_or_else(|| StoreError::Damaged("the state has no genesis record".to_owned()))
    }
}

impl StateMachine for ShardKv {
    type Query = Query;
    type Response = Response;

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        self.sessions = Tables::default();
        self.dirty.clear();
        self.keyspace_changes.replace();
        self.genesis = Genesis::load(state)?;
        let Some(genesis) = self.genesis else {
            self.ownership = Arc::default();
            self.clocks = Clocks::default();
            self.journals = Journals::default();
            return Ok(());
        };
        self.ownership = Arc::new(records::load(state, &genesis)?);
        self.clocks = Clocks::load(state, &self.ownership)?;
        self.journals = Journals::load(state, genesis.shards, self.journal_limits, self.bugs)?;
        let whole = (Bound::Unbounded, Bound::Unbounded);
        each_pair(state, Table::Sessions, whole, |key, record| {
            self.load_session(key, record)
        })
    }

    fn min_birth(&self) -> LogTime {
        self.clocks.greatest()
    }

    fn most_work(&self, operation: &Bytes, max_value_bytes: u32) -> u64 {
        keyspaces::operation_in(operation).map_or_else(
            || Command::most_work(operation, max_value_bytes),
            keyspace::Operation::most_work,
        )
    }

    fn answer_bytes(&self, response: &Response) -> usize {
        match response {
            Response::Value(Some(value)) => value.len(),
            _ => 0,
        }
    }

    fn upkeep(&mut self, now: LogTime) -> Option<Bytes> {
        self.search(now).map(|expire| expire.encode())
    }

    /// Refuses a write to a shard that isn't served here before it is proposed. Clients repeat such writes, and while a shard
    /// is pulled the repetitions would fill the log ahead of the steps that install it.
    fn refuse_early(&self, operation: &Bytes) -> Option<Response> {
        let genesis = self.genesis.as_ref()?;
        if genesis.kind != GroupKind::Shards {
            return None;
        }
        if let Some(operation) = keyspaces::operation_in(operation) {
            let shard = keyspace::Operation::shard_of(operation)?;
            let refusal = self.check_keyspace_write(shard, genesis);
            return refusal.err().map(Response::Refused);
        }
        // The first bytes tell a write from a step.
        let command = Command::decode(operation.clone()).ok()?;
        let key = command.write.key();
        check_key(key).ok()?;
        let refusal = self.check_write(shard_of(key, genesis.shards), genesis);
        refusal.err().map(Response::Refused)
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        let genesis = self.created()?;
        let command = match Operation::decode(operation) {
            Ok(Operation::Command(command)) => command,
            Ok(Operation::Step(step)) => return self.step(at, step, &genesis, state),
            Ok(Operation::Journal(step)) => {
                let stepped = self.journals.step(at, step, &self.ownership, state);
                return Ok(match (stepped, step) {
                    (Err(error), _) => Response::Refused(error),
                    (Ok(()), JournalStep::Begin { shard, .. }) => self.begun(shard),
                    (Ok(()), _) => Response::Stepped,
                });
            }
            Ok(Operation::Keyspace(operation)) => {
                return self.apply_keyspace(at, operation, &genesis, state);
            }
            Ok(Operation::Expire(expire)) => {
                self.expire(&expire, at, &genesis, state);
                return Ok(Response::Stepped);
            }
            Err(error) => return Ok(Response::Refused(KvError::Malformed(error.to_string()))),
        };
        let key = command.write.key();
        if let Err(error) = check_key(key) {
            return Ok(Response::Refused(error));
        }
        let shard = shard_of(key, genesis.shards);
        if let Err(error) = self.check_write(shard, &genesis) {
            return Ok(Response::Refused(error));
        }
        if !at.awaited && self.bugs.has(Bug::EffectsOnlyWhenAwaited) {
            return Ok(Response::Stepped);
        }
        self.forget_some(shard, at, &genesis, state);
        let mut rows = Rows::new(shard, &mut self.journals, state);
        let Some(session) = command.session else {
            return execute(&command.write, at.max_value_bytes, &mut rows).map(Response::from);
        };
        self.dirty.insert(shard);
        let doubles = self.bugs.has(Bug::RetryAppliedTwice);
        let forgets = self.bugs.has(Bug::AbsentSessionIsNew);
        let clock = self.clocks.at(shard, at.time);
        let limits = self.clocks.limits(&genesis, clock, at.time);
        let judges_by_clock = self.bugs.has(Bug::SessionsJudgedByClock);
        self.sessions.change(shard, clock.horizon, |table| {
            let age_ms = clock.time.since(session.client.birth);
            let refuses = judges_by_clock
                && age_ms > genesis.session_ttl_ms
                && !table.contains(session.client);
            let admission = table.admit(session, clock.time, &limits);
            // A replay changes the session, too: it counts as use.
            if !matches!(admission, Admission::Refuse(_)) {
                rows.name_session(session.client);
            }
            if refuses {
                return Ok(Response::Refused(KvError::SessionExpired));
            }
            let mut run = || execute(&command.write, at.max_value_bytes, &mut rows);
            match admission {
                Admission::Execute(permit) => {
                    let outcome = run()?;
                    table.record(permit, outcome);
                    Ok(outcome.into())
                }
                Admission::Replay(_) if doubles => run().map(Response::from),
                Admission::Refuse(SessionRefusal::Expired) if forgets => run().map(Response::from),
                Admission::Replay(outcome) => Ok(outcome.into()),
                Admission::Refuse(refusal) => {
                    Ok(Response::Refused(KvError::of_session(refusal, shard)))
                }
            }
        })
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        for shard in std::mem::take(&mut self.dirty) {
            for (client, record) in self.sessions.drain_dirty(shard) {
                let key = keys::session(shard, client);
                if self.bugs.has(Bug::JournalNamesSessionsLate) {
                    self.journals.name_session_late(shard, client, state);
                }
                match record {
                    Some(record) => state.put(Table::Sessions, key, record),
                    None => state.remove(Table::Sessions, key),
                }
            }
        }
        self.journals.finish_batch(state);
        self.clocks.finish_batch(state);
        Ok(())
    }

    fn query(&self, query: &Query, state: &dyn StateReader) -> Result<Response, StoreError> {
        let genesis = self.created()?;
        let asked = Asked {
            state,
            ownership: &self.ownership,
            genesis: &genesis,
            bugs: self.bugs,
        };
        asked.answer(query)
    }
}

/// Refuses what some member of the group may not be able to apply.
fn check_level(at: Applying, needed: u32) -> Result<(), KvError> {
    let level = at.feature_level;
    if level < needed {
        return Err(KvError::FeatureLevel { level, needed });
    }
    Ok(())
}

impl ShardKv {
    /// Refuses a write to a shard that isn't served at this entry, although it may have been served when the write was
    /// proposed. A refused write is neither carried out nor remembered: its copy at the new owner is then the first.
    fn check_write(&self, shard: ShardId, genesis: &Genesis) -> Result<(), KvError> {
        if genesis.kind == GroupKind::Standalone {
            return Ok(());
        }
        let late = match self.ownership.state(shard) {
            Some(ShardState::Fenced { .. }) => self.bugs.has(Bug::FenceNotLogged),
            Some(ShardState::Pulling { .. }) => self.bugs.has(Bug::ServedBeforeInstalled),
            _ => false,
        };
        if late {
            return Ok(());
        }
        self.ownership.check_served(shard)
    }

    /// As [`Self::check_write`], for an operation of a keyspace.
    fn check_keyspace_write(&self, shard: ShardId, genesis: &Genesis) -> Result<(), KvError> {
        let fenced = matches!(self.ownership.state(shard), Some(ShardState::Fenced { .. }));
        if fenced && self.bugs.has(Bug::KeyspaceFenceNotLogged) {
            return Ok(());
        }
        self.check_write(shard, genesis)
    }

    /// Applies an operation of a keyspace, if its shard is served at this entry.
    fn apply_keyspace(
        &mut self,
        at: Applying,
        operation: Bytes,
        genesis: &Genesis,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        let has_auth = keyspace::Operation::needs_auth_level(&operation);
        let needed = if has_auth { AUTH_LEVEL } else { KEYSPACE_LEVEL };
        if let Err(error) = check_level(at, needed)
            && !self.bugs.has(Bug::KeyspaceAppliedBelowLevel)
        {
            return Ok(Response::Refused(error));
        }
        let Some(shard) = keyspace::Operation::shard_of(operation.clone()) else {
            let why = "no operation of a keyspace".to_owned();
            return Ok(Response::Refused(KvError::Malformed(why)));
        };
        let shards = genesis.shards;
        if shard.0 >= shards {
            return Ok(Response::Refused(KvError::NoShard { shard, shards }));
        }
        if let Err(error) = self.check_keyspace_write(shard, genesis) {
            return Ok(Response::Refused(error));
        }
        let mut applying = keyspace::Applying {
            term: at.entry.term,
            config: self.ownership.served_since(shard).unwrap_or_default(),
            answer: at.awaited,
        };
        if self.bugs.has(Bug::ExpiryOfAnyTerm)
            && let Some(decided) = keyspaces::decided(operation.clone())
        {
            (applying.term, applying.config) = decided;
        }
        let mut rows = Rows::new(shard, &mut self.journals, state);
        let outcome = keyspace::apply(operation, applying, &mut rows)?;
        self.keyspace_changes.note(&outcome);
        Ok(Response::Keyspace(Box::new(outcome)))
    }

    /// Applies a step of a move, if it is due.
    fn step(
        &mut self,
        at: Applying,
        step: Step,
        genesis: &Genesis,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        if genesis.kind != GroupKind::Shards {
            let why = format!("the shards of a {} group don't move", genesis.kind);
            return Ok(Response::Refused(KvError::Malformed(why)));
        }
        if let Some(needed) = step.needed_level()
            && let Err(error) = check_level(at, needed)
            && !self.bugs.has(Bug::RowsTakenBelowLevel)
        {
            return Ok(Response::Refused(error));
        }
        match self.ownership.judge(&step, genesis, self.bugs) {
            Verdict::Due => {}
            Verdict::Idle => return Ok(Response::Stepped),
            Verdict::Refused(error) => return Ok(Response::Refused(error)),
        }
        let ownership = Arc::make_mut(&mut self.ownership);
        let changed = ownership.take(&step, at.time, self.bugs);
        self.follow(&changed, at, genesis, state)?;
        self.take_clock(&step, at.time, genesis);
        match step {
            Step::Install(chunk) => self.install(chunk, state)?,
            Step::Copy(CopyStep::Take(part)) => self.take_part(part, state)?,
            Step::Configure(_)
            | Step::ConfigurePart(_)
            | Step::Delete { .. }
            | Step::Deleted { .. }
            | Step::Copy(_) => {}
        }
        Ok(Response::Stepped)
    }

    /// Returns the answer to a step that began a journal, now or before.
    fn begun(&self, shard: ShardId) -> Response {
        let journal = self.journals.get(shard);
        journal.map_or(Response::Stepped, |journal| Response::Begun {
            journal: journal.id,
        })
    }

    /// Brings records, rows and journals in line with an ownership that changed.
    fn follow(
        &mut self,
        changed: &Changed,
        at: Applying,
        genesis: &Genesis,
        state: &mut Transaction<'_>,
    ) -> Result<(), StoreError> {
        records::store(&self.ownership, changed, state);
        for shard in &changed.cleared {
            self.clear(*shard, at.feature_level, state);
        }
        for shard in &changed.lost {
            // Writes of sessions that this group doesn't know may have been applied by the group that was forgotten.
            let oldest = at.time.0.saturating_sub(genesis.session_ttl_ms);
            self.clocks.raise(*shard, LogTime(oldest));
        }
        if at.feature_level >= KEYSPACE_LEVEL {
            for shard in &changed.lost {
                let since = self.ownership.served_since(*shard).unwrap_or_default();
                let mut rows = Rows::new(*shard, &mut self.journals, state);
                keyspace::renew(*shard, since.0, &mut rows)?;
            }
        }
        self.journals.follow(changed, &self.ownership, state);
        Ok(())
    }

    /// Continues the session clock of a shard with whose last part or chunk it arrived.
    fn take_clock(&mut self, step: &Step, time: LogTime, genesis: &Genesis) {
        let (shard, clock, ttl_ms) = match step {
            Step::Install(Chunk {
                shard,
                next: Next::Done { clock, ttl_ms },
                ..
            })
            | Step::Copy(CopyStep::Take(Part {
                shard,
                next: PartNext::Done { clock, ttl_ms },
                ..
            })) => (*shard, *clock, *ttl_ms),
            _ => return,
        };
        if !self.bugs.has(Bug::SessionClockStaysBehind) {
            let clock = clock.for_ttl(ttl_ms, genesis.session_ttl_ms);
            self.clocks.arrive(shard, clock, time);
        }
    }

    /// Stores a part of a copy among the shard's data and sessions. Clients can't see them until the shard is served.
    fn take_part(&mut self, part: Part, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        let shard = part.shard;
        let bugs = self.bugs;
        let stored = self.sessions.change(shard, LogTime(0), |table| {
            store_part(part, table, state, bugs)
        });
        stored.map_err(|(client, error)| bad_record(shard, client, &error))?;
        self.sessions.drop_if_empty(shard);
        Ok(())
    }

    /// Stores a chunk among the shard's data and sessions. Clients can't see them until the shard is served.
    fn install(&mut self, chunk: Chunk, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        let shard = chunk.shard;
        for (key, value) in chunk.pairs {
            state.put(Table::Data, keys::data(shard, &key), value);
        }
        for (client, record) in chunk.sessions {
            let key = keys::session(shard, client);
            state.put(Table::Sessions, key, record.clone());
            self.sessions.load(shard, client, record)?;
        }
        for (key, value) in chunk.rows {
            state.put(Table::Data, keys::row(shard, &key), value);
        }
        Ok(())
    }

    /// Deletes all of a shard's data, sessions and rows of keyspaces, including what this batch wrote.
    fn clear(&mut self, shard: ShardId, feature_level: u32, state: &mut Transaction<'_>) {
        for table in [Table::Data, Table::Sessions] {
            let end = keys::shard_start(ShardId(shard.0 + 1));
            state.clear(table, keys::shard_start(shard), end);
        }
        // Below the level there are no rows, and older members, with which this one compares digests, clear nothing more.
        if feature_level >= KEYSPACE_LEVEL && !self.bugs.has(Bug::ClearKeepsRows) {
            let [_, (start, end)] = keys::ranges(shard);
            state.clear(Table::Data, start, end);
        }
        self.sessions.remove(shard);
        self.clocks.clear(shard);
    }

    fn load_session(&mut self, key: &[u8], record: Bytes) -> Result<(), StoreError> {
        let shards = self.created()?.shards;
        let (shard, client) = keys::split_session(key)
            .filter(|(shard, _)| shard.0 < shards)
            .ok_or_else(|| StoreError::Damaged("a session's key is malformed".to_owned()))?;
        if self.ownership.state(shard).is_none() {
            let why = format!("there are sessions of {shard}, which isn't here");
            return Err(StoreError::Damaged(why));
        }
        self.sessions.load(shard, client, record)
    }
}
