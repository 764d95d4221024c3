//! The table that makes writes exactly once, with many writes of a client in flight.
//!
//! A client names each write by its [`ClientId`] and a [`Sequence`], and repeats a write under the same
//! name until it knows the outcome. Copies of a write may arrive late, twice, in any order, and through
//! different leaders. The state machine keeps one [`SessionTable`] for each shard, asks it to admit every
//! write ([`SessionTable::admit`]), and records the result of an executed write ([`SessionTable::record`]).
//! The table is part of the replicated state: it is written in the same batch as the data, it is in every
//! snapshot, and it moves with its shard.
//!
//! # Why no write is executed twice
//!
//! A table can't keep results for ever, so it forgets sessions. The danger is a copy that arrives after its
//! session was forgotten: it looks like the first write of a new session. The sequence can't distinguish the
//! two cases, because a client numbers its writes over all shards, so the first number at a shard may be any.
//! Therefore a client id carries its *birth*, and the table keeps its *horizon*: the least birth that is above the births of
//! all sessions that it has forgotten.
//!
//! 1. The horizon never falls, is part of the state, and moves with the shard ([`SessionTable::raise_horizon`]).
//! 2. An executed write is recorded, always. Its session is then present until it is forgotten, and with that the horizon passes
//!    its birth.
//! 3. A write of an absent session is executed only if its birth is not below the horizon. By 2 such a session was never
//!    present, so it is new, and none of its writes was executed in this shard.
//! 4. A write of a present session is executed only if its number isn't below `acked_below` and has no
//!    result. Results are dropped only below `acked_below`, which never shrinks; so none was dropped here
//!    without the first condition catching its copies. The write was not executed before.
//!
//! No clock occurs in this argument. A table that is full refuses; it never makes room by evicting.
//!
//! # Time
//!
//! Time only decides *when* a session is forgotten: after it was silent for longer than the time to live. The time of a table never
//! runs backwards: within a log, log time doesn't, and a shard that moves takes its table's time along, which then advances with the
//! new log. (Where the time to live is another, the time is shifted by the difference, so that each session has the same time left.) A session that is present but silent for longer is refused as if it was forgotten already, and that stays so.
//! [`SessionTable::expire`] does a bounded amount of work whenever the state machine
//! calls it. The calls must depend on the log alone, because removals change the bytes of the state.
//! A log without writes gets an entry for it from its leader ([`crate::StateMachine::upkeep`]).
//!
//! # Births
//!
//! A group that opens a session gives it a birth of at least its horizons, so the session is new at each of its shards,
//! whatever the clocks of this or of other groups were. At shards of other groups it may be refused as expired; then the client
//! opens another session at the group that refused. Births follow the wall clocks of leaders, so this is rare while these agree.
//! A client that opens a new session at half the time to live, and finishes the writes in flight under
//! the old name, can repeat each write for at least half the time to live, less the distance between the leaders' clocks.
//! A write that is still unanswered then gets an error, never a second execution.
//!
//! Births that lie further ahead than [`SessionLimits::max_birth_ahead_ms`] are no births that a group gives. They are refused,
//! because they would raise the horizon beyond all that come later.
//!
//! # Refusals
//!
//! Refusals are of two kinds. [`SessionRefusal::Expired`], [`Stale`](SessionRefusal::Stale) and
//! [`BadSequence`](SessionRefusal::BadSequence) are final: by the steps above, every later copy is refused
//! too. [`FromFuture`](SessionRefusal::FromFuture) and the two limits concern this attempt only: another
//! copy may be executed later, after time has passed or room was made. So a client with copies in flight
//! must repeat the write, or it doesn't know the outcome.
//!
//! # Not done here
//!
//! The table doesn't decide which results to remember, knows no shards, and stores nothing: the state machine
//! writes the records of [`SessionTable::drain_dirty`] and reads them back with [`SessionTable::load`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use types::{ClientId, DecodeError, LogTime, Reader, Sequence, Writer, known_version};

#[cfg(test)]
mod tests;

/// The version byte of a session's record.
const RECORD_VERSION: u8 = 1;

/// The name of one write of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionRef {
    /// The session.
    pub client: ClientId,
    /// The write's number in the session, from 1.
    pub sequence: Sequence,
    /// All writes below this number were answered to the client: their results may be forgotten. At most
    /// `sequence`; zero counts as one.
    pub acked_below: Sequence,
}

impl SessionRef {
    /// Appends the session of an operation, or the absence of one, to a record.
    pub fn encode(session: Option<Self>, out: &mut Writer) {
        let Some(session) = session else {
            out.byte(0);
            return;
        };
        session.client.encode(out.byte(1));
        out.number(session.sequence.0).number(session.acked_below.0);
    }

    /// Decodes the output of [`SessionRef::encode`].
    pub fn decode(input: &mut Reader) -> Result<Option<Self>, DecodeError> {
        if !input.flag("session")? {
            return Ok(None);
        }
        Ok(Some(Self {
            client: ClientId::decode(input)?,
            sequence: Sequence(input.number("sequence")?),
            acked_below: Sequence(input.number("acknowledged bound")?),
        }))
    }
}

/// The result of an executed write that a session remembers. It should be small: a table may hold very many.
pub trait Remembered: Clone {
    /// Appends the result to a record.
    fn encode(&self, out: &mut Writer);
    /// Decodes the output of `encode`.
    fn decode(input: &mut Reader) -> Result<Self, DecodeError>;
}

/// The bounds of a table. Part of the replicated state: replicas that disagreed would diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// The time to live in milliseconds of log time: the table forgets a session that was silent for longer.
    pub ttl_ms: u64,
    /// The longest time by which a birth may lie ahead of the table's time, in milliseconds.
    pub max_birth_ahead_ms: u64,
    /// The most sessions of a table.
    pub max_sessions: u32,
    /// The most unacknowledged results of a session, and one more for its lowest unanswered write.
    pub max_results: u32,
}

/// The table's decision about a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<R> {
    /// The write was not executed before: execute it, and pass the result to [`SessionTable::record`].
    Execute(Permit),
    /// The write was executed before, with this result.
    Replay(R),
    /// The write must not be executed now.
    Refuse(SessionRefusal),
}

/// The permission to execute one write. Drop it without a record only if nothing was executed.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an executed write must be recorded, or a copy of it is executed again"]
pub struct Permit {
    write: SessionRef,
    time: LogTime,
}

/// The reason for refusing a write. The table is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionRefusal {
    /// The session is, or may be, forgotten. Final; the write may have been executed before.
    #[error("the session expired: open a new one; this write may have been applied before")]
    Expired,
    /// The session's birth lies so far ahead of the table's time that no group gave it. Another attempt may succeed.
    #[error(
        "the session was born {ahead_ms} ms ahead of this group's log: check the client's id and the nodes' clocks"
    )]
    FromFuture {
        /// The distance in milliseconds.
        ahead_ms: u64,
    },
    /// The client acknowledged the answer to this write before. Final.
    #[error("write {sequence} was acknowledged before: all below {acked_below} were")]
    Stale {
        /// The write's number.
        sequence: Sequence,
        /// The session's lowest unacknowledged number.
        acked_below: Sequence,
    },
    /// The sequence is zero, or the acknowledged bound lies beyond it. Final.
    #[error("bad session numbers: sequence {sequence}, acknowledged below {acked_below}")]
    BadSequence {
        /// The write's number.
        sequence: Sequence,
        /// The acknowledged bound.
        acked_below: Sequence,
    },
    /// The table is full. Another attempt may succeed.
    #[error("{limit} sessions are the limit: reuse sessions, or retry later")]
    TooManySessions {
        /// The bound.
        limit: u32,
    },
    /// The session has too many unacknowledged results. Another attempt may succeed.
    #[error("{limit} unacknowledged results are the limit: acknowledge some")]
    TooManyResults {
        /// The bound.
        limit: u32,
    },
}

/// The sessions of one shard.
///
/// Invariants:
/// - `horizon` never falls, and is above the births of all forgotten sessions;
/// - `by_last_used` has exactly one element `(last_used, client)` for each session;
/// - of each session: `acked_below >= 1`, and every result's number is at least `acked_below`.
///
/// Debug builds and the simulator check them after each change of a session.
#[derive(Clone, Debug)]
pub struct SessionTable<R> {
    horizon: LogTime,
    sessions: BTreeMap<ClientId, Session<R>>,
    by_last_used: BTreeSet<(LogTime, ClientId)>,
    dirty: BTreeSet<ClientId>,
}

#[derive(Clone, Debug)]
struct Session<R> {
    last_used: LogTime,
    acked_below: Sequence,
    results: BTreeMap<Sequence, R>,
}

impl<R> Default for SessionTable<R> {
    fn default() -> Self {
        Self {
            horizon: LogTime::default(),
            sessions: BTreeMap::new(),
            by_last_used: BTreeSet::new(),
            dirty: BTreeSet::new(),
        }
    }
}

impl<R: Remembered> SessionTable<R> {
    /// Decides about a write at `time`, which must never be less than at an earlier call. A replay changes the table: it counts as use, and its
    /// acknowledgement is noted. An execution changes the table only when it is recorded.
    pub fn admit(
        &mut self,
        write: SessionRef,
        time: LogTime,
        limits: &SessionLimits,
    ) -> Admission<R> {
        let write = SessionRef {
            acked_below: write.acked_below.max(Sequence(1)),
            ..write
        };
        match self.judge(write, time, limits) {
            Err(refusal) => Admission::Refuse(refusal),
            Ok(None) => Admission::Execute(Permit { write, time }),
            Ok(Some(result)) => {
                self.touch(write, time);
                self.check_invariants(write.client);
                Admission::Replay(result)
            }
        }
    }

    /// Records the result of an admitted write. Call it right after the execution, before any other call.
    // The permit is passed by value because it is used up.
    #[allow(clippy::needless_pass_by_value)]
    pub fn record(&mut self, permit: Permit, result: R) {
        let Permit { write, time } = permit;
        let session = self.touch(write, time);
        let before = session.results.insert(write.sequence, result);
        debug_assert!(before.is_none(), "a permit is given once for a write");
        self.check_invariants(write.client);
    }

    /// Forgets at most `at_most` sessions that were silent for longer than the time to live, the longest silent first.
    /// Returns the forgotten sessions, and raises the horizon above their births. Takes constant time when there is none.
    pub fn expire(
        &mut self,
        time: LogTime,
        limits: &SessionLimits,
        at_most: usize,
    ) -> Vec<ClientId> {
        let mut forgotten = Vec::new();
        while forgotten.len() < at_most
            && let Some(&(last_used, client)) = self.by_last_used.first()
            && time.since(last_used) > limits.ttl_ms
        {
            self.raise_horizon(LogTime(client.birth.0.saturating_add(1)));
            self.by_last_used.pop_first();
            self.sessions.remove(&client);
            self.dirty.insert(client);
            self.check_invariants(client);
            forgotten.push(client);
        }
        forgotten
    }

    /// Returns true if [`SessionTable::expire`] would forget a session at this time.
    pub fn has_expired(&self, time: LogTime, limits: &SessionLimits) -> bool {
        let oldest = self.by_last_used.first();
        oldest.is_some_and(|(last_used, _)| time.since(*last_used) > limits.ttl_ms)
    }

    /// Raises the horizon to at least `horizon`: after a start, and when the table moves.
    pub fn raise_horizon(&mut self, horizon: LogTime) {
        self.horizon = self.horizon.max(horizon);
    }

    /// Returns the least birth that an absent session may have. The state machine keeps it durably, in the batch of the removals
    /// that raised it.
    pub fn horizon(&self) -> LogTime {
        self.horizon
    }

    /// Returns true if the session is present.
    pub fn contains(&self, client: ClientId) -> bool {
        self.sessions.contains_key(&client)
    }

    /// Returns the number of sessions.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Returns true if the table holds no session.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Takes the sessions that changed since the last call: the record of each, or `None` for a removed session.
    pub fn drain_dirty(&mut self) -> Vec<(ClientId, Option<Bytes>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|client| (client, self.sessions.get(&client).map(Session::encode)))
            .collect()
    }

    /// Returns the records of all sessions. A shard moves with these records and with the clock.
    pub fn records(&self) -> impl Iterator<Item = (ClientId, Bytes)> + '_ {
        self.sessions
            .iter()
            .map(|(client, session)| (*client, session.encode()))
    }

    /// Loads the record of a session, in place of the table's session of this client. The session isn't dirty afterwards.
    pub fn load(&mut self, client: ClientId, record: Bytes) -> Result<(), DecodeError> {
        let session = Session::decode(record)?;
        if let Some(old) = self.sessions.get(&client) {
            self.by_last_used.remove(&(old.last_used, client));
        }
        self.by_last_used.insert((session.last_used, client));
        self.sessions.insert(client, session);
        self.check_invariants(client);
        Ok(())
    }

    /// Removes a session whose record is gone: the counterpart of [`SessionTable::load`]. The session isn't dirty afterwards.
    ///
    /// Only a table that serves no writes may lose a session this way, because its copies would look new (step 4): it is a
    /// copy that follows another table, which forgot the session, and gives its horizon with the last part.
    pub fn unload(&mut self, client: ClientId) {
        if let Some(old) = self.sessions.remove(&client) {
            self.by_last_used.remove(&(old.last_used, client));
        }
        self.dirty.remove(&client);
        self.check_invariants(client);
    }

    /// Panics if the change of one session broke an invariant of the table. Does nothing in the product's build.
    fn check_invariants(&self, changed: ClientId) {
        if !cfg!(any(debug_assertions, feature = "bugs")) {
            return;
        }
        assert!(
            self.by_last_used.len() == self.sessions.len(),
            "each session is ordered once by its last use"
        );
        let Some(session) = self.sessions.get(&changed) else {
            return;
        };
        assert!(
            self.by_last_used.contains(&(session.last_used, changed)),
            "a session is found by its last use"
        );
        assert!(session.acked_below >= Sequence(1), "sequences begin at 1");
        assert!(
            session
                .results
                .first_key_value()
                .is_none_or(|(sequence, _)| *sequence >= session.acked_below),
            "acknowledged results are dropped"
        );
    }

    /// Returns `Ok(None)` for a write to execute and `Ok(Some(_))` for a write to replay.
    fn judge(
        &self,
        write: SessionRef,
        time: LogTime,
        limits: &SessionLimits,
    ) -> Result<Option<R>, SessionRefusal> {
        let SessionRef {
            client,
            sequence,
            acked_below,
        } = write;
        if sequence == Sequence(0) || acked_below > sequence {
            return Err(SessionRefusal::BadSequence {
                sequence,
                acked_below,
            });
        }
        let Some(session) = self.sessions.get(&client) else {
            return self.judge_absent(client, time, limits).map(|()| None);
        };
        if time.since(session.last_used) > limits.ttl_ms {
            return Err(SessionRefusal::Expired);
        }
        if sequence < session.acked_below {
            return Err(SessionRefusal::Stale {
                sequence,
                acked_below: session.acked_below,
            });
        }
        if let Some(result) = session.results.get(&sequence) {
            return Ok(Some(result.clone()));
        }
        // The lowest unanswered write always has room. Otherwise the results above it, which are dropped only after it
        // is answered, could keep it out for ever.
        let is_lowest = sequence <= acked_below.max(session.acked_below);
        if !is_lowest && session.is_full(acked_below, limits.max_results) {
            return Err(SessionRefusal::TooManyResults {
                limit: limits.max_results,
            });
        }
        Ok(None)
    }

    /// Refuses a write of an absent session, unless the session is certainly new and has room.
    fn judge_absent(
        &self,
        client: ClientId,
        time: LogTime,
        limits: &SessionLimits,
    ) -> Result<(), SessionRefusal> {
        if client.birth < self.horizon {
            return Err(SessionRefusal::Expired);
        }
        let ahead_ms = client.birth.since(time);
        if ahead_ms > limits.max_birth_ahead_ms {
            return Err(SessionRefusal::FromFuture { ahead_ms });
        }
        if self.sessions.len() as u64 >= u64::from(limits.max_sessions) {
            return Err(SessionRefusal::TooManySessions {
                limit: limits.max_sessions,
            });
        }
        if limits.max_results == 0 {
            return Err(SessionRefusal::TooManyResults { limit: 0 });
        }
        Ok(())
    }

    /// Marks the session of `write` as used now, creates it if it is new, and drops the results that `write` acknowledges.
    fn touch(&mut self, write: SessionRef, now: LogTime) -> &mut Session<R> {
        let SessionRef {
            client,
            acked_below,
            ..
        } = write;
        self.dirty.insert(client);
        let session = self.sessions.entry(client).or_insert_with(|| {
            self.by_last_used.insert((now, client));
            Session {
                last_used: now,
                acked_below: Sequence(1),
                results: BTreeMap::new(),
            }
        });
        if session.last_used < now {
            self.by_last_used.remove(&(session.last_used, client));
            self.by_last_used.insert((now, client));
            session.last_used = now;
        }
        session.acked_below = session.acked_below.max(acked_below);
        while let Some(oldest) = session.results.first_entry()
            && *oldest.key() < session.acked_below
        {
            oldest.remove();
        }
        session
    }
}

impl<R: Remembered> Session<R> {
    /// Returns true if there is no room for one more result after those below `acked_below` are dropped.
    fn is_full(&self, acked_below: Sequence, max_results: u32) -> bool {
        let max_results = max_results as usize;
        // Counting is needed only in the rare case that the present results fill the table.
        self.results.len() >= max_results
            && self.results.range(acked_below..).count() >= max_results
    }

    /// Encodes the version, the last use, the acknowledged bound, and the results, each with the distance of its number
    /// from the number before.
    fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(16 + 4 * self.results.len());
        out.byte(RECORD_VERSION)
            .number(self.last_used.0)
            .number(self.acked_below.0)
            .number(self.results.len() as u64);
        let mut before = self.acked_below;
        for (sequence, result) in &self.results {
            out.number(sequence.0.saturating_sub(before.0));
            result.encode(&mut out);
            before = *sequence;
        }
        out.finish()
    }

    fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(record);
        let version = input.byte("session record version")?;
        known_version("session record version", version, RECORD_VERSION)?;
        let last_used = LogTime(input.number("session last use")?);
        let acked_below = Sequence(input.number("session acknowledged bound")?);
        if acked_below == Sequence(0) {
            return Err(DecodeError::OutOfRange("session record"));
        }
        let count = input.count("session results")?;
        let mut results = BTreeMap::new();
        let mut before = acked_below.0;
        for nth in 0..count {
            let distance = input.number("result sequence")?;
            let sequence = before
                .checked_add(distance)
                .filter(|_| nth == 0 || distance > 0)
                .ok_or(DecodeError::OutOfRange("result sequence"))?;
            results.insert(Sequence(sequence), R::decode(&mut input)?);
            before = sequence;
        }
        input.finish()?;
        Ok(Self {
            last_used,
            acked_below,
            results,
        })
    }
}
