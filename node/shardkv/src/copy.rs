//! The destination's half of a copy: takes the parts of a shard that another group still serves.
//!
//! # States
//!
//! The module [`crate::ownership`] has the table of all states. Those of a copy are:
//!
//! 1. *Copying*. [`CopyStep::Start`] begins it, only where the shard is absent, so the range is clear, and only for exactly the
//!    planned move that this group has accepted. Each [`CopyStep::Take`] stores a part's rows at their final keys, where no request
//!    sees them, because the source is the owner. A plan that changes drops the copy, and so does [`CopyStep::Drop`].
//! 2. *Completing*. The cut, a configuration, makes this group the shard's owner. The copy continues at its cursor, up to the
//!    generation that the source's fence sealed. The part that ends it makes the shard served.
//! 3. If the source has fenced the shard and its journal isn't the copy's, the copy is useless. [`CopyStep::Restart`] then clears the
//!    rows, and the whole fenced shard is pulled in chunks. The same happens if the cut finds no copy.
//!
//! # Why exactly
//!
//! A [`CopyId`] names the journal, and the target for which it began: indexes of two sources may be equal, numbers of targets never
//! are. All steps name the copy that they mean, and a part is taken only at exactly the cursor that the record has. So a part or a
//! drop that comes late, after the copy it meant, changes nothing.
//!
//! # Sessions
//!
//! The session table of a copy follows the source's: a part that says that a session is absent removes it from the table and from the
//! rows. No session expires here before the shard is served, because this group could forget what the source still
//! remembers. The session clock comes with the part that ends the copy.

mod check;
mod codec;

pub(crate) use codec::FIRST_KIND;

use replica::session::SessionTable;
use replica::{Table, Transaction};
use types::{ClientId, ConfigNum, DecodeError, Gid, LogTime, ShardId};

use crate::bug::{Bug, Bugs};
use crate::change::{Changed, Verdict, due_if, nonsense};
use crate::outcome::Outcome;
use crate::{
    CopyCursor, CopyId, Cursor, Genesis, Ownership, Part, PartNext, RowChange, ShardState, keys,
};
use check::check_part;

/// A step of a copy, in the destination's log. Each is idempotent: one that arrives twice, late or out of turn changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyStep {
    /// Begins the copy.
    Start {
        /// The shard.
        shard: ShardId,
        /// The group that serves it.
        source: Gid,
        /// The copy.
        copy: CopyId,
    },
    /// Stores the copy's next part. The part that ends a copy makes the shard served.
    Take(Part),
    /// Drops the copy: its rows and sessions go.
    Drop {
        /// The shard.
        shard: ShardId,
        /// The copy.
        copy: CopyId,
    },
    /// The copy was useless at the cut: clears its rows, and begins to pull the whole fenced shard.
    Restart {
        /// The shard.
        shard: ShardId,
        /// The configuration that gave the shard to this group.
        config: ConfigNum,
        /// The copy.
        copy: CopyId,
    },
}

impl CopyStep {
    /// Returns the shard that the step concerns.
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Take(part) => part.shard,
            Self::Start { shard, .. } | Self::Drop { shard, .. } | Self::Restart { shard, .. } => {
                *shard
            }
        }
    }
}

impl Ownership {
    /// Judges a step of a copy.
    pub(crate) fn judge_copy(&self, step: &CopyStep, genesis: &Genesis, bugs: Bugs) -> Verdict {
        let state = self.state(step.shard());
        match step {
            CopyStep::Start {
                shard,
                source,
                copy,
            } => {
                let fenced = matches!(state, Some(ShardState::Fenced { .. }));
                let clear = state.is_none() || (fenced && bugs.has(Bug::CopyIntoFencedRange));
                due_if(clear && self.plans_copy(*shard, *source, copy.since))
            }
            CopyStep::Take(part) => self.judge_part(part, genesis, bugs),
            CopyStep::Drop { copy, .. } => due_if(match state {
                Some(ShardState::Copying { copy: held, .. }) => held == copy,
                Some(ShardState::Completing { copy: held, .. }) => {
                    held == copy && bugs.has(Bug::DropHitsCompleting)
                }
                _ => false,
            }),
            CopyStep::Restart { config, copy, .. } => due_if(matches!(
                state,
                Some(ShardState::Completing { config: held_by, copy: held, .. })
                    if held_by == config && held == copy
            )),
        }
    }

    fn judge_part(&self, part: &Part, genesis: &Genesis, bugs: Bugs) -> Verdict {
        let ends = matches!(part.next, PartNext::Done { .. });
        let (copy, cursor) = match self.state(part.shard) {
            Some(ShardState::Copying { copy, cursor, .. }) if !ends => (copy, cursor),
            Some(ShardState::Completing { copy, cursor, .. }) => (copy, cursor),
            _ => return Verdict::Idle,
        };
        let same = *copy == part.copy || bugs.has(Bug::OtherJournalsPartTaken);
        let next = *cursor == part.after || bugs.has(Bug::LatePartTaken);
        if !same || !next {
            return Verdict::Idle;
        }
        match check_part(part, genesis.shards) {
            Ok(()) => Verdict::Due,
            Err(error) => nonsense(&error.to_string()),
        }
    }

    /// Carries out a step of a copy that is due.
    pub(crate) fn take_copy(
        &mut self,
        step: &CopyStep,
        time: LogTime,
        bugs: Bugs,
        changed: &mut Changed,
    ) {
        let shard = step.shard();
        let mut slot = self.slot(shard);
        match step {
            CopyStep::Start { source, copy, .. } => slot.change(
                ShardState::Copying {
                    source: *source,
                    copy: *copy,
                    cursor: CopyCursor::default(),
                    bytes: 0,
                },
                time,
            ),
            CopyStep::Take(part) => match (&mut slot.state, &part.next) {
                (
                    Some(
                        ShardState::Copying { cursor, bytes, .. }
                        | ShardState::Completing { cursor, bytes, .. },
                    ),
                    PartNext::At(next),
                ) => {
                    if next > cursor {
                        cursor.clone_from(next);
                    }
                    *bytes += part.content_bytes();
                }
                (Some(ShardState::Completing { config, source, .. }), PartNext::Done { .. }) => {
                    let (config, source) = (*config, *source);
                    slot.change(ShardState::Serving { config }, time);
                    self.owe_delete(shard, config, source, changed);
                }
                _ => {}
            },
            CopyStep::Drop { .. } => {
                if matches!(slot.state, Some(ShardState::Copying { .. })) {
                    slot.state = None;
                }
                if !bugs.has(Bug::DropKeepsRows) {
                    changed.cleared.insert(shard);
                }
            }
            CopyStep::Restart { config, .. } => {
                if let Some(ShardState::Completing { source, .. }) = slot.state {
                    let (config, after, bytes) = (*config, Cursor::default(), 0);
                    let pulling = ShardState::Pulling {
                        config,
                        source,
                        after,
                        bytes,
                    };
                    let serves = bugs.has(Bug::UselessCopyServed);
                    let next = if serves {
                        ShardState::Serving { config }
                    } else {
                        pulling
                    };
                    slot.change(next, time);
                    if !serves {
                        changed.cleared.insert(shard);
                    }
                }
            }
        }
        self.put(shard, slot, changed);
    }
}

/// Stores the changes of a part that is taken. `table` is the shard's.
pub(crate) fn store_part(
    part: Part,
    table: &mut SessionTable<Outcome>,
    state: &mut Transaction<'_>,
    bugs: Bugs,
) -> Result<(), (ClientId, DecodeError)> {
    let shard = part.shard;
    for change in part.changes {
        match change {
            RowChange::Pair(key, Some(value)) => {
                state.put(Table::Data, keys::data(shard, &key), value);
            }
            RowChange::Pair(key, None) => state.remove(Table::Data, keys::data(shard, &key)),
            RowChange::Session(client, Some(record)) => {
                let key = keys::session(shard, client);
                state.put(Table::Sessions, key, record.clone());
                table
                    .load(client, record)
                    .map_err(|error| (client, error))?;
            }
            RowChange::Session(client, None) => {
                state.remove(Table::Sessions, keys::session(shard, client));
                if !bugs.has(Bug::AbsentSessionKept) {
                    table.unload(client);
                }
            }
            RowChange::Clear { start, end } => {
                let (from, to) = keys::data_range(shard, &start, &end);
                if from < to {
                    state.clear(Table::Data, from, to);
                }
            }
            RowChange::Row(key, Some(value)) => {
                state.put(Table::Data, keys::row(shard, &key), value);
            }
            RowChange::Row(key, None) => state.remove(Table::Data, keys::row(shard, &key)),
            RowChange::ClearRows(prefix) => {
                let (from, to) = keys::rows_range(shard, &prefix);
                state.clear(Table::Data, from, to);
            }
        }
    }
    Ok(())
}
