//! One shard's copy: what the mover knows of it, and its next step.

use raft::Index;
use types::{ConfigNum, Cut, Gid, JournalId, ShardId};

use super::super::ActionId;
use super::super::backoff::Backoff;
use super::super::outbox::{HandOff, Turn};
use super::rounds::Rounds;
use super::{CLOSE_FOR_MS, ROUND_INTERVAL_MS};
use crate::bug::Bug;
use crate::{
    CopyCursor, CopyId, CopyStep, JournalStep, Ownership, Part, PartNext, PlannedMove, ShardState,
};

/// The stage of a shard's copy, by the ownership.
pub(super) enum Stage<'a> {
    /// It is planned, and the shard is absent.
    Absent(PlannedMove),
    /// It follows the source.
    Copying {
        planned: PlannedMove,
        copy: CopyId,
        cursor: &'a CopyCursor,
    },
    /// The controllers have cut.
    Completing {
        config: ConfigNum,
        source: Gid,
        copy: CopyId,
        cursor: &'a CopyCursor,
    },
}

/// Returns the stage of a shard's copy; `None` if there is nothing to copy.
pub(super) fn stage(ownership: &Ownership, shard: ShardId) -> Option<Stage<'_>> {
    let planned = ownership.planned.get(&shard);
    let planned = planned.filter(|planned| planned.target.to == ownership.gid);
    match ownership.state(shard) {
        None => planned.copied().map(Stage::Absent),
        Some(ShardState::Copying { copy, cursor, .. }) => Some(Stage::Copying {
            planned: *planned?,
            copy: *copy,
            cursor,
        }),
        Some(ShardState::Completing {
            config,
            source,
            copy,
            cursor,
            ..
        }) => Some(Stage::Completing {
            config: *config,
            source: *source,
            copy: *copy,
            cursor,
        }),
        Some(
            ShardState::Serving { .. } | ShardState::Pulling { .. } | ShardState::Fenced { .. },
        ) => None,
    }
}

impl Stage<'_> {
    /// Returns the name of the copy's task: a target has its number for itself.
    pub(super) fn key(&self, shard: ShardId) -> HandOff {
        let since = match self {
            Self::Absent(planned) => planned.target.since,
            Self::Copying { copy, .. } | Self::Completing { copy, .. } => copy.since,
        };
        (since, shard)
    }

    /// Returns the copy that the group has, if it has one.
    pub(super) fn copy(&self) -> Option<CopyId> {
        match self {
            Self::Absent(_) => None,
            Self::Copying { copy, .. } | Self::Completing { copy, .. } => Some(*copy),
        }
    }

    /// Returns the cut that gives the shard to this group, if the copy isn't cut yet.
    pub(super) fn cut(&self, ownership: &Ownership) -> Option<Cut> {
        let Self::Copying { planned, copy, .. } = self else {
            return None;
        };
        let incarnation = |gid| ownership.groups.get(&gid).map(|group| group.incarnation);
        let target = planned.target;
        Some(Cut {
            owner: planned.owner,
            owner_incarnation: incarnation(planned.owner)?,
            owner_since: planned.owner_since,
            target: target.to,
            target_incarnation: incarnation(target.to)?,
            target_since: target.since,
            journal: JournalId(copy.journal.0),
        })
    }

    pub(super) fn source(&self) -> Gid {
        match self {
            Self::Absent(planned) | Self::Copying { planned, .. } => planned.owner,
            Self::Completing { source, .. } => *source,
        }
    }
}

/// A request to the source.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Begin,
    Seal(u64),
    Drop(u64),
    Renew,
    Part { after: CopyCursor },
}

/// A step in the own log that is pending.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) id: ActionId,
    /// The time of the proposal.
    pub(super) since: u64,
    /// The shard's state before. If it is the same afterwards, the step had no effect.
    pub(super) before: Option<ShardState>,
    /// Of a part: its continuation and its bytes.
    pub(super) take: Option<(PartNext, u64)>,
}

impl Proposal {
    /// Returns true if the step takes a part of a copy's base, while the shard is served by its owner.
    pub(super) fn is_base(&self) -> bool {
        let Some(ShardState::Copying { cursor, .. }) = &self.before else {
            return false;
        };
        self.take.is_some() && matches!(cursor, CopyCursor::Base(_))
    }
}

/// The place of a copy among those of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has one of the source's slots.
    Slot,
    /// It has begun, and waits for a slot.
    Parked,
    /// It has caught up or was cut, and needs no slot.
    Free,
}

/// A copy that is driven.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) key: HandOff,
    pub(super) source: Gid,
    pub(super) place: Place,
    is_cut: bool,
    /// Failures of requests to the source.
    pub(super) backoff: Backoff,
    /// Failures of proposals to the own log.
    pub(super) log: Backoff,
    /// Looks at the disks that found no room for the rest of its base.
    pub(super) full: Backoff,
    /// The journal that the source has begun.
    pub(super) journal: Option<Index>,
    /// The copy whose journal has ended.
    pub(super) useless: Option<CopyId>,
    pub(super) ask: Option<(ActionId, Ask)>,
    /// The copy that the group had at the last request.
    pub(super) asked_for: Option<CopyId>,
    pub(super) proposal: Option<Proposal>,
    /// A part that waits for the one before it, or for the cut.
    pub(super) ready: Option<Part>,
    /// The generation that the source has sealed on request.
    pub(super) sealed: u64,
    /// The generation that the source has dropped on request.
    pub(super) dropped: u64,
    pub(super) has_caught_up: bool,
    pub(super) renew_at: u64,
    pub(super) round_at: u64,
    /// The time from which the last round is too old for a report.
    close_until: u64,
    started: u64,
    /// The bytes that arrived since `started`.
    bytes: u64,
    pub(super) rounds: Rounds,
}

impl Task {
    pub(super) fn new(key: HandOff, source: Gid, place: Place, now: u64) -> Self {
        Self {
            key,
            source,
            place,
            is_cut: false,
            backoff: Backoff::default(),
            log: Backoff::default(),
            full: Backoff::default(),
            journal: None,
            useless: None,
            ask: None,
            asked_for: None,
            proposal: None,
            ready: None,
            sealed: 0,
            dropped: 0,
            has_caught_up: false,
            // A new leader doesn't know how long the journal lives.
            renew_at: now,
            round_at: now,
            close_until: 0,
            started: now,
            bytes: 0,
            rounds: Rounds::default(),
        }
    }

    pub(super) fn has_slot(&self) -> bool {
        self.place == Place::Slot
    }

    pub(super) fn is_parked(&self) -> bool {
        self.place == Place::Parked
    }

    /// Drops the call and the pause from before the cut, because nobody serves the shard any more.
    pub(super) fn is_now_cut(&mut self, turn: &mut Turn<'_>) {
        if !self.is_cut {
            self.is_cut = true;
            if self.is_parked() {
                self.place = Place::Free;
            }
            self.backoff.succeed();
            if let Some((id, _)) = self.ask.take() {
                turn.drop(id);
            }
        }
    }

    /// Returns the next step for the own log, if one is due.
    pub(super) fn next_step(&mut self, shard: ShardId, stage: &Stage<'_>) -> Option<CopyStep> {
        match stage {
            Stage::Absent(planned) => {
                let copy = CopyId {
                    since: planned.target.since,
                    journal: self.journal?,
                };
                let source = planned.owner;
                Some(CopyStep::Start {
                    shard,
                    source,
                    copy,
                })
            }
            Stage::Copying { copy, .. } if self.useless == Some(*copy) => {
                self.journal = None;
                let copy = *copy;
                Some(CopyStep::Drop { shard, copy })
            }
            Stage::Completing { config, copy, .. } if self.useless == Some(*copy) => {
                let (config, copy) = (*config, *copy);
                Some(CopyStep::Restart {
                    shard,
                    config,
                    copy,
                })
            }
            Stage::Copying { copy, cursor, .. } | Stage::Completing { copy, cursor, .. } => {
                let cut = matches!(stage, Stage::Completing { .. });
                let part = self.ready.take()?;
                let ends = matches!(part.next, PartNext::Done { .. });
                if part.copy != *copy || part.after != **cursor {
                    return None;
                }
                // The end comes before the cut if the source is ahead.
                if ends && !cut {
                    self.ready = Some(part);
                    return None;
                }
                Some(CopyStep::Take(part))
            }
        }
    }

    /// Returns the cursor of the next part to request; `None` if it has to wait, or there is none.
    pub(super) fn next_cursor(&self, arrived: &CopyCursor) -> Option<CopyCursor> {
        if self.ready.is_some() {
            return None;
        }
        let taking = self.proposal.as_ref().and_then(|it| it.take.as_ref());
        match taking {
            Some((PartNext::At(next), _)) => Some(next.clone()),
            Some((PartNext::Done { .. }, _)) => None,
            None => Some(arrived.clone()),
        }
    }

    /// Returns the step at the source that keeps its journal alive and small, if one is due. Only what the own log has is dropped.
    pub(super) fn next_upkeep(
        &self,
        turn: &mut Turn<'_>,
        shard: ShardId,
        journal: Index,
        arrived: &CopyCursor,
    ) -> Option<(Ask, JournalStep)> {
        if turn.reached(self.renew_at) {
            return Some((Ask::Renew, JournalStep::Renew { shard, journal }));
        }
        let next = self.next_cursor(arrived);
        let early = turn.bugs.has(Bug::GenerationDroppedEarly);
        let held = next.as_ref().filter(|_| early).unwrap_or(arrived);
        let CopyCursor::Page { generation, .. } = held else {
            return None;
        };
        let generation = generation.saturating_sub(1);
        let step = JournalStep::Drop {
            shard,
            journal,
            generation,
        };
        (generation > self.dropped).then_some((Ask::Drop(generation), step))
    }

    /// Returns true if little is left to do at a cut now: the copy has caught up, and its last round was not long ago.
    pub(super) fn is_close_behind(&self, now: u64) -> bool {
        self.has_caught_up && now < self.close_until
    }

    /// Counts a step that the own log has.
    pub(super) fn took(&mut self, now: u64, proposal: &Proposal) {
        let Some((next, bytes)) = &proposal.take else {
            return;
        };
        self.bytes += bytes;
        let Some(ShardState::Copying { cursor, .. } | ShardState::Completing { cursor, .. }) =
            &proposal.before
        else {
            return;
        };
        let CopyCursor::Page { generation, .. } = cursor else {
            return;
        };
        self.rounds.add(*bytes);
        let PartNext::At(CopyCursor::Page {
            generation: next, ..
        }) = next
        else {
            return;
        };
        if next > generation {
            self.end_round(now);
        }
    }

    /// Returns the bytes that arrived per second, on average since the copy got its slot.
    pub(super) fn bytes_per_second(&self, now: u64) -> u64 {
        self.bytes.saturating_mul(1_000) / now.saturating_sub(self.started).max(1)
    }

    fn end_round(&mut self, now: u64) {
        // The bytes that arrived a millisecond, on the whole.
        let pace = self.bytes / now.saturating_sub(self.started).max(1);
        self.has_caught_up = self.rounds.end(pace);
        if self.has_caught_up {
            self.round_at = now.saturating_add(ROUND_INTERVAL_MS);
            self.close_until = now.saturating_add(CLOSE_FOR_MS);
        }
    }
}
