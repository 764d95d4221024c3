//! Takes the outcomes of a copy's actions: what arrived, what the own log took, and what the source refused.

use super::task::{Ask, Place, stage};
use super::{Copies, RENEW_INTERVAL_MS, refusal};
use crate::mover::outbox::Turn;
use crate::mover::{ActionId, Outcome};
use crate::{CopyCursor, JournalError, PartNext, ShardState};
use types::ShardId;

impl Copies {
    /// Handles the outcome of [`Purpose::Copy`](crate::mover::outbox::Purpose::Copy): of a proposal, of a report, or of a request to the source.
    pub(in crate::mover) fn ended(
        &mut self,
        turn: &mut Turn<'_>,
        id: ActionId,
        (shard, paid): (ShardId, u32),
        outcome: Outcome,
    ) {
        let came = match &outcome {
            Outcome::Part(part) => part.content_bytes(),
            _ => 0,
        };
        turn.pace.came(paid, came);
        if let Outcome::Part(part) = &outcome
            && matches!(part.after, CopyCursor::Base(_))
        {
            turn.background.came(came);
        }
        let Some(task) = self.tasks.get_mut(&shard) else {
            return;
        };
        if task.proposal.as_ref().is_some_and(|it| it.id == id) {
            self.proposed(turn, shard, &outcome);
        } else if let Some((_, ask)) = task.ask.take_if(|(of, _)| *of == id) {
            self.answered(turn, (id, shard), ask, outcome);
        }
    }

    fn proposed(&mut self, turn: &mut Turn<'_>, shard: ShardId, outcome: &Outcome) {
        let Some(task) = self.tasks.get_mut(&shard) else {
            return;
        };
        let Some(proposal) = task.proposal.take() else {
            return;
        };
        if turn.ownership.state(shard) == proposal.before.as_ref() {
            let why = refusal(outcome);
            task.log.fail(turn.now, &why, turn.options);
            task.ready = None;
            return;
        }
        task.log.succeed();
        let was_hurried = task.rounds.are_hurried();
        task.took(turn.now, &proposal);
        self.hurried += u64::from(task.rounds.are_hurried() && !was_hurried);
        if proposal.is_base() {
            let took = turn.now.saturating_sub(proposal.since);
            turn.background.passed(turn.now, took);
        }
        let (key, source) = (task.key, task.source);
        if task.has_slot() && task.has_caught_up && self.may_do_without_slot(source) {
            self.scheduler.finish(key);
            if let Some(task) = self.tasks.get_mut(&shard) {
                task.place = Place::Free;
            }
        }
    }

    fn answered(
        &mut self,
        turn: &Turn<'_>,
        (id, shard): (ActionId, ShardId),
        ask: Ask,
        outcome: Outcome,
    ) {
        let Some(task) = self.tasks.get_mut(&shard) else {
            return;
        };
        let mut useless = false;
        match (ask, outcome) {
            (Ask::Begin, Outcome::Begun(journal)) => {
                task.journal = Some(journal);
                task.renew_at = turn.now.saturating_add(RENEW_INTERVAL_MS);
            }
            (Ask::Seal(generation), Outcome::Done) => task.sealed = generation,
            (Ask::Drop(generation), Outcome::Done) => task.dropped = generation,
            (Ask::Renew, Outcome::Done) => {
                task.renew_at = turn.now.saturating_add(RENEW_INTERVAL_MS);
            }
            (Ask::Part { after }, Outcome::Part(part)) => {
                let leads_on = match &part.next {
                    PartNext::At(next) => *next > after,
                    PartNext::Done { .. } => true,
                };
                if part.shard != shard || part.after != after || !leads_on {
                    return self.fail(turn, shard, "it sent another part than the one requested");
                }
                task.ready = Some(part);
            }
            // A journal's steps are answered by the source's log, and a later journal proves the end of an earlier one.
            (
                Ask::Seal(_) | Ask::Drop(_) | Ask::Renew,
                Outcome::Refused(JournalError::Unknown { .. } | JournalError::Ended { .. }),
            )
            | (Ask::Part { .. }, Outcome::Refused(JournalError::Ended { .. })) => useless = true,
            // The group has lost what it had dropped at the source. After the cut that would be a wrong view of the own log.
            (Ask::Part { .. }, Outcome::Refused(JournalError::Dropped { .. }))
                if matches!(
                    turn.ownership.state(shard),
                    Some(ShardState::Copying { .. })
                ) =>
            {
                useless = true;
            }
            (Ask::Part { .. }, Outcome::Refused(JournalError::Unknown { .. })) => {
                // The replica may only be behind. The source's log knows.
                let asked_just_now = turn.now.saturating_add(RENEW_INTERVAL_MS - 1_000);
                if task.renew_at > asked_just_now {
                    return self.fail(turn, shard, "the replica doesn't know the journal yet");
                }
                task.renew_at = 0;
            }
            (_, Outcome::Refused(error)) => return self.fail(turn, shard, &error.to_string()),
            (_, Outcome::Busy(why)) => {
                // It answers, so it keeps what it has, and the copy its slot.
                task.backoff.fail(turn.now, &why, turn.options);
                return self.scheduler.paused(id);
            }
            (_, Outcome::Failed(why)) => return self.fail(turn, shard, &why),
            (_, other) => {
                let why = format!("not an answer to the request of a copy: {other:?}");
                return self.fail(turn, shard, &why);
            }
        }
        if useless {
            // A leader that is behind its own log may have asked for an earlier copy.
            let present = stage(turn.ownership, shard).and_then(|stage| stage.copy());
            if present == task.asked_for {
                task.useless = present;
            }
        }
        task.backoff.succeed();
        if task.has_slot() {
            self.scheduler.answered(id);
        }
    }
}
