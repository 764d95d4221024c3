//! The clocks of the shards' session tables: what a table has forgotten, and its time. They move with the shard, and no clock of a
//! machine does.
//!
//! - The *horizon* is the least birth that an absent session may have ([`replica::session`] has the proof). It is above the
//!   births of the sessions that were really forgotten. A clock that is ahead doesn't raise it.
//! - The *time* of a table measures how long a session was silent. It advances with the log time of the shard's owner, from where it
//!   was at the fence of the owner before. So a silence continues as an age, and the owners' log times may differ by any distance.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::StoreError;
use replica::session::SessionLimits;
use replica::{Genesis, StateReader, Table, Transaction};
use types::{DecodeError, LogTime, Reader, ShardId, Writer};

use crate::encoding::known;
use crate::{Ownership, keys, records};

const VERSION: u8 = 1;

/// The clock of a session table at the fence of its shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionClock {
    /// The least birth that an absent session may have.
    pub horizon: LogTime,
    /// The table's time.
    pub time: LogTime,
}

impl SessionClock {
    /// Converts the clock of a group with one time to live for a group with another one, so that each session has the same time left.
    /// Otherwise a session whose silence was too long for the source could come to life again.
    pub(crate) fn for_ttl(self, source_ttl_ms: u64, own_ttl_ms: u64) -> Self {
        let time = self.time.0.saturating_add(own_ttl_ms);
        Self {
            time: LogTime(time.saturating_sub(source_ttl_ms)),
            ..self
        }
    }

    pub(crate) fn encode(self, out: &mut Writer) {
        out.number(self.horizon.0).number(self.time.0);
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            horizon: LogTime(input.number("session horizon")?),
            time: LogTime(input.number("session time")?),
        })
    }
}

/// The clock of a session table in this group: at log time `arrived`, the table's time was `clock.time`. All is zero where the shard has no
/// record, so table time is log time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Clock {
    clock: SessionClock,
    arrived: LogTime,
}

impl Clock {
    fn at(self, log_time: LogTime) -> SessionClock {
        let passed = log_time.since(self.arrived);
        SessionClock {
            horizon: self.clock.horizon,
            time: LogTime(self.clock.time.0.saturating_add(passed)),
        }
    }

    fn encode(self) -> Bytes {
        let mut out = Writer::default();
        self.clock.encode(out.byte(VERSION));
        out.number(self.arrived.0);
        out.finish()
    }

    fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(record);
        known("record version", input.byte("record version")?, VERSION)?;
        let clock = SessionClock::decode(&mut input)?;
        let arrived = LogTime(input.number("log time")?);
        input.finish()?;
        Ok(Self { clock, arrived })
    }
}

/// The clocks of a group's shards.
///
/// Invariants, between batches: they are what the records of [`Table::Meta`] say; an absent shard has none; `dirty` is empty; `horizons`
/// has exactly the horizons of `by_shard`.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    by_shard: BTreeMap<ShardId, Clock>,
    /// Shards whose record is to be written at the end of the batch.
    dirty: BTreeSet<ShardId>,
    /// The horizons in order.
    horizons: BTreeSet<(LogTime, ShardId)>,
}

impl Clocks {
    /// Reads the records.
    pub(crate) fn load(state: &dyn StateReader, ownership: &Ownership) -> Result<Self, StoreError> {
        let mut loaded = Self::default();
        records::each_with_prefix(state, keys::CLOCKS, |key, record| {
            let shard = keys::split_prefixed(key, keys::CLOCKS)
                .filter(|shard| ownership.state(*shard).is_some())
                .ok_or_else(|| damaged("the shard isn't here"))?;
            let clock = Clock::decode(record).map_err(|error| unreadable(&error))?;
            loaded.set(shard, clock);
            Ok(())
        })?;
        Ok(loaded)
    }

    /// Returns the clock of a shard's table at a log time.
    pub(crate) fn at(&self, shard: ShardId, log_time: LogTime) -> SessionClock {
        self.by_shard
            .get(&shard)
            .copied()
            .unwrap_or_default()
            .at(log_time)
    }

    /// Returns the greatest horizon. A session with this birth is new at each shard.
    pub(crate) fn greatest(&self) -> LogTime {
        self.horizons.last().map_or(LogTime(0), |(last, _)| *last)
    }

    /// Returns the limits by which a table with this clock judges at a log time. A birth may lie ahead of the table's time, of log time, and of
    /// each horizon here, because this group gives births by all three, and may have got the table from a group whose log time is far behind.
    pub(crate) fn limits(
        &self,
        genesis: &Genesis,
        clock: SessionClock,
        log_time: LogTime,
    ) -> SessionLimits {
        let limits = genesis.session_limits();
        let ahead_ms = log_time.max(self.greatest()).since(clock.time);
        SessionLimits {
            max_birth_ahead_ms: limits.max_birth_ahead_ms.saturating_add(ahead_ms),
            ..limits
        }
    }

    /// Raises the horizon of a shard to at least `horizon`.
    pub(crate) fn raise(&mut self, shard: ShardId, horizon: LogTime) {
        let mut known = self.by_shard.get(&shard).copied().unwrap_or_default();
        if horizon > known.clock.horizon {
            known.clock.horizon = horizon;
            self.set(shard, known);
            self.dirty.insert(shard);
        }
    }

    /// Continues the clock of a shard that arrives at a log time.
    pub(crate) fn arrive(&mut self, shard: ShardId, clock: SessionClock, arrived: LogTime) {
        self.set(shard, Clock { clock, arrived });
        self.dirty.insert(shard);
    }

    /// Forgets the clock of a shard that goes.
    pub(crate) fn clear(&mut self, shard: ShardId) {
        if let Some(gone) = self.by_shard.remove(&shard) {
            self.horizons.remove(&(gone.clock.horizon, shard));
            self.dirty.insert(shard);
        }
    }

    fn set(&mut self, shard: ShardId, clock: Clock) {
        let horizon = clock.clock.horizon;
        if let Some(before) = self.by_shard.insert(shard, clock) {
            self.horizons.remove(&(before.clock.horizon, shard));
        }
        self.horizons.insert((horizon, shard));
    }

    /// Writes the records that the batch changed.
    pub(crate) fn finish_batch(&mut self, state: &mut Transaction<'_>) {
        for shard in std::mem::take(&mut self.dirty) {
            let key = keys::clock_record(shard);
            match self.by_shard.get(&shard) {
                Some(clock) => state.put(Table::Meta, key, clock.encode()),
                None => state.remove(Table::Meta, key),
            }
        }
    }
}

/// Reads the clock of a shard's session table at the log time `at`, from a state as of one commit.
pub fn read_session_clock(
    state: &dyn StateReader,
    shard: ShardId,
    at: LogTime,
) -> Result<SessionClock, StoreError> {
    let clock = match state.get(Table::Meta, &keys::clock_record(shard))? {
        Some(record) => Clock::decode(record).map_err(|error| unreadable(&error))?,
        None => Clock::default(),
    };
    Ok(clock.at(at))
}

const NAME: &str = "the record of a shard's clock";

fn damaged(why: &str) -> StoreError {
    StoreError::Damaged(format!("{NAME}: {why}"))
}

fn unreadable(error: &DecodeError) -> StoreError {
    StoreError::unreadable(NAME, error)
}

#[cfg(test)]
mod tests {
    use replica::memory::MemoryState;
    use replica::{Applied, StateStore};

    use super::*;

    #[test]
    fn time_continues_and_the_horizon_never_falls() {
        let shard = ShardId(3);
        let mut state = MemoryState::new();
        let mut clocks = Clocks::default();
        let fenced = SessionClock {
            horizon: LogTime(40),
            time: LogTime(1_000_000),
        };
        assert_eq!(clocks.at(shard, LogTime(7)).time, LogTime(7));
        clocks.arrive(shard, fenced, LogTime(500));
        clocks.raise(shard, LogTime(30));
        assert_eq!(clocks.at(shard, LogTime(500)), fenced);
        clocks.raise(shard, LogTime(50));
        let later = clocks.at(shard, LogTime(510));
        assert_eq!(
            (later.horizon, later.time),
            (LogTime(50), LogTime(1_000_010))
        );
        assert_eq!(clocks.greatest(), LogTime(50));
        let mut transaction = Transaction::new(&state);
        clocks.finish_batch(&mut transaction);
        let batch = transaction.into_batch();
        state.commit(batch, Applied::default()).unwrap();
        let read = read_session_clock(&state, shard, LogTime(510)).unwrap();
        assert_eq!(read, later);
        let reloaded = Clocks::load(&state, &Ownership::standalone(5)).unwrap();
        assert_eq!(reloaded.at(shard, LogTime(510)), later);
        assert_eq!(reloaded.greatest(), LogTime(50));
        let other = ShardId(1);
        for (horizon, greatest) in [(70, 70), (80, 80)] {
            clocks.raise(other, LogTime(horizon));
            assert_eq!(clocks.greatest(), LogTime(greatest));
        }
        clocks.clear(other);
        assert_eq!(clocks.greatest(), LogTime(50), "its horizon goes with it");
        assert!(Clocks::load(&state, &Ownership::standalone(3)).is_err());
        clocks.clear(shard);
        let mut transaction = Transaction::new(&state);
        clocks.finish_batch(&mut transaction);
        let batch = transaction.into_batch();
        state.commit(batch, Applied::default()).unwrap();
        let read = read_session_clock(&state, shard, LogTime(9)).unwrap();
        assert_eq!((read.horizon, read.time), (LogTime(0), LogTime(9)));
    }

    #[test]
    fn a_silence_has_the_same_time_left_whatever_the_times_to_live() {
        let clock = SessionClock {
            horizon: LogTime(7),
            time: LogTime(100_000),
        };
        for (source, own, time) in [
            (10_000, 10_000, 100_000),
            (10_000, 14_000, 104_000),
            (14_000, 10_000, 96_000),
            (200_000, 1, 0),
            (0, u64::MAX, u64::MAX),
        ] {
            let here = clock.for_ttl(source, own);
            assert_eq!(
                here,
                SessionClock {
                    time: LogTime(time),
                    ..clock
                }
            );
        }
    }

    #[test]
    fn births_are_bounded_by_whichever_time_is_ahead() {
        let genesis = Genesis {
            kind: replica::GroupKind::Shards,
            shards: 5,
            session_ttl_ms: 10_000,
            max_sessions_per_shard: 1,
            max_results_per_session: 1,
        };
        let at = |time| SessionClock {
            horizon: LogTime(0),
            time: LogTime(time),
        };
        let bound = genesis.session_limits().max_birth_ahead_ms;
        let mut clocks = Clocks::default();
        let ahead = |clocks: &Clocks, table, log_time| {
            let limits = clocks.limits(&genesis, at(table), LogTime(log_time));
            limits.max_birth_ahead_ms - bound
        };
        assert_eq!(ahead(&clocks, 500, 400), 0);
        assert_eq!(ahead(&clocks, 500, 600), 100);
        clocks.raise(ShardId(1), LogTime(900));
        assert_eq!(ahead(&clocks, 500, 600), 400);
    }
}
