//! The steps of journals, as operations of the source's log.

use bytes::Bytes;
use raft::Index;
use replica::{Applying, Table, Transaction};
use types::{ConfigNum, DecodeError, Gid, LogTime, Reader, ShardId, Writer};

use super::{Journal, Journals, MAX_GENERATIONS, MAX_JOURNALS};
use crate::bug::Bug;
use crate::encoding::{self, known};
use crate::{JournalError, KvError, Ownership, Target, keys};

/// The least kind byte of these steps.
pub(crate) const FIRST_KIND: u8 = BEGIN;

const BEGIN: u8 = 32;
const SEAL: u8 = 33;
const DROP: u8 = 34;
const RENEW: u8 = 35;

/// An operation on the journal of a shard. Each is idempotent: one that arrives twice, late or out of turn changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalStep {
    /// Begins a journal for the copy of the shard's target. Refused unless the shard is served here and this is exactly the
    /// accepted target.
    Begin {
        /// The shard.
        shard: ShardId,
        /// The target.
        target: Target,
    },
    /// Closes the open generation, if it is just this one, and opens the next.
    Seal {
        /// The shard.
        shard: ShardId,
        /// The journal's id.
        journal: Index,
        /// The generation.
        generation: u64,
    },
    /// Drops this generation and all before it. The destination's log has all of them.
    Drop {
        /// The shard.
        shard: ShardId,
        /// The journal's id.
        journal: Index,
        /// The generation.
        generation: u64,
    },
    /// The destination still copies.
    Renew {
        /// The shard.
        shard: ShardId,
        /// The journal's id.
        journal: Index,
    },
}

impl JournalStep {
    /// Returns the shard of the journal.
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Begin { shard, .. }
            | Self::Seal { shard, .. }
            | Self::Drop { shard, .. }
            | Self::Renew { shard, .. } => *shard,
        }
    }

    /// Encodes the step for a proposal.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        let (kind, shard, numbers) = match *self {
            Self::Begin { shard, target } => (BEGIN, shard, [target.to.0, target.since.0]),
            Self::Seal {
                shard,
                journal,
                generation,
            } => (SEAL, shard, [journal.0, generation]),
            Self::Drop {
                shard,
                journal,
                generation,
            } => (DROP, shard, [journal.0, generation]),
            Self::Renew { shard, journal } => (RENEW, shard, [journal.0, 0]),
        };
        out.byte(encoding::VERSION)
            .byte(kind)
            .number(shard.0.into());
        for number in numbers {
            out.number(number);
        }
        out.finish()
    }

    /// Decodes the output of [`JournalStep::encode`].
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known(
            "operation version",
            input.byte("operation version")?,
            encoding::VERSION,
        )?;
        let kind = input.byte("operation kind")?;
        let shard = ShardId(input.number_u32("shard")?);
        let first = input.number("journal")?;
        let second = input.number("generation")?;
        input.finish()?;
        let (journal, generation) = (Index(first), second);
        if kind == RENEW && second != 0 {
            return Err(DecodeError::OutOfRange("generation"));
        }
        Ok(match kind {
            BEGIN => Self::Begin {
                shard,
                target: Target {
                    to: Gid(first),
                    since: ConfigNum(second),
                },
            },
            SEAL => Self::Seal {
                shard,
                journal,
                generation,
            },
            DROP => Self::Drop {
                shard,
                journal,
                generation,
            },
            RENEW => Self::Renew { shard, journal },
            value => {
                return Err(DecodeError::Unknown {
                    what: "operation kind",
                    value: value.into(),
                });
            }
        })
    }
}

impl Journals {
    /// Applies a step, if it is due.
    pub(crate) fn step(
        &mut self,
        at: Applying,
        step: JournalStep,
        ownership: &Ownership,
        state: &mut Transaction<'_>,
    ) -> Result<(), KvError> {
        let refused = |shard| move |error| KvError::Journal { shard, error };
        match step {
            JournalStep::Begin { shard, target } => {
                ownership.check_served(shard)?;
                let accepted = ownership.target_from_here(shard);
                self.begin(at, (shard, target), accepted, state)
                    .map_err(refused(shard))
            }
            JournalStep::Seal {
                shard,
                journal,
                generation,
            } => self
                .seal(shard, journal, generation, state)
                .map_err(refused(shard)),
            JournalStep::Drop {
                shard,
                journal,
                generation,
            } => {
                self.find(shard, journal).map_err(refused(shard))?;
                self.drop_through(shard, generation, state);
                Ok(())
            }
            JournalStep::Renew { shard, journal } => {
                self.find(shard, journal).map_err(refused(shard))?;
                if let Some(journal) = self.by_shard.get_mut(&shard) {
                    journal.renewed = journal.renewed.max(at.time);
                    self.dirty.insert(shard);
                }
                Ok(())
            }
        }
    }

    /// Ends the shard's journal if it was not renewed for so long before log time `now`. A fenced shard's stays.
    pub(crate) fn expire(&mut self, shard: ShardId, now: LogTime, state: &mut Transaction<'_>) {
        if self.get(shard).is_some_and(|it| self.is_silent(it, now)) {
            self.end(shard, state);
        }
    }

    /// Returns the shards whose journals end with the next write at log time `now`.
    pub(crate) fn silent(&self, now: LogTime) -> impl Iterator<Item = ShardId> + '_ {
        let journals = self.iter();
        let silent = journals.filter(move |(_, journal)| self.is_silent(journal, now));
        silent.map(|(shard, _)| shard)
    }

    fn is_silent(&self, journal: &Journal, now: LogTime) -> bool {
        journal.fence.is_none() && now.since(journal.renewed) > self.limits.ttl_ms
    }

    fn begin(
        &mut self,
        at: Applying,
        (shard, target): (ShardId, Target),
        accepted: Option<Target>,
        state: &mut Transaction<'_>,
    ) -> Result<(), JournalError> {
        if accepted != Some(target) {
            return Err(JournalError::OtherTarget { accepted });
        }
        // A journal for another target would have ended with the change of the target.
        match self.by_shard.get(&shard) {
            Some(journal) if journal.first == 1 => return Ok(()),
            // The destination begins anew, and has lost what it had dropped here.
            Some(_) => self.end(shard, state),
            None => {}
        }
        if self.by_shard.len() >= MAX_JOURNALS {
            let limit = MAX_JOURNALS;
            return Err(JournalError::TooManyJournals { limit });
        }
        let journal = Journal {
            id: at.entry.index,
            target,
            first: 1,
            open: 1,
            fence: None,
            renewed: at.time,
            named: [(1, 0)].into(),
        };
        self.by_shard.insert(shard, journal);
        self.dirty.insert(shard);
        Ok(())
    }

    fn seal(
        &mut self,
        shard: ShardId,
        id: Index,
        generation: u64,
        state: &mut Transaction<'_>,
    ) -> Result<(), JournalError> {
        self.find(shard, id)?;
        let Some(journal) = self.by_shard.get_mut(&shard) else {
            return Ok(());
        };
        if journal.open != generation || journal.fence.is_some() {
            return Ok(());
        }
        let limit = MAX_GENERATIONS;
        if journal.open - journal.first + 1 >= limit {
            return Err(JournalError::TooManyGenerations { limit });
        }
        journal.open += 1;
        journal.named.insert(journal.open, 0);
        self.dirty.insert(shard);
        if self.bugs.has(Bug::JournalDropsEarly) {
            clear_names(shard, 0, generation, state);
        }
        Ok(())
    }

    /// Drops the sealed generations up to `generation`. The last one, which a fence sealed, stays until the shard is deleted.
    fn drop_through(&mut self, shard: ShardId, generation: u64, state: &mut Transaction<'_>) {
        let Some(journal) = self.by_shard.get_mut(&shard) else {
            return;
        };
        if generation < journal.first || generation >= journal.open {
            return;
        }
        clear_names(shard, journal.first, generation + 1, state);
        journal.first = generation + 1;
        journal.named = journal.named.split_off(&journal.first);
        self.dirty.insert(shard);
    }
}

/// Removes the names of the generations of `[from, to)`.
fn clear_names(shard: ShardId, from: u64, to: u64, state: &mut Transaction<'_>) {
    let start = keys::journal_name(shard, from, &[]);
    let end = keys::journal_name(shard, to, &[]);
    state.clear(Table::Journal, start, end);
}
