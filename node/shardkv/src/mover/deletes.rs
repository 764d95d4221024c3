//! Delete requests: sources are asked to delete shards that are installed here, until they confirm.

use std::collections::BTreeMap;

use types::Gid;

use super::backoff::Backoff;
use super::configs::refusal;
use super::outbox::{HandOff, Purpose, Turn};
use super::scheduler::Scheduler;
use super::{ASK_PATIENCE_MS, Action, ActionId, Outcome, PROPOSE_PATIENCE_MS};
use crate::bug::Bug;
use crate::{Ownership, Step};

/// The most hand-offs whose deletes are requested from each source at the same time.
const MAX_CONCURRENT: usize = 16;

#[derive(Debug)]
pub(super) struct Deletes {
    scheduler: Scheduler,
    pending: BTreeMap<HandOff, Delete>,
    log: Backoff,
}

#[derive(Debug)]
struct Delete {
    source: Gid,
    /// True if the source has confirmed.
    confirmed: bool,
    /// The pending proposal that records the confirmation.
    proposed: Option<ActionId>,
}

impl Default for Deletes {
    fn default() -> Self {
        Self {
            scheduler: Scheduler::new(MAX_CONCURRENT),
            pending: BTreeMap::new(),
            log: Backoff::default(),
        }
    }
}

fn is_pending(ownership: &Ownership, (config, shard): HandOff) -> bool {
    ownership.pending_deletes.contains_key(&(shard, config))
}

impl Deletes {
    pub(super) fn poll(&mut self, turn: &mut Turn<'_>) {
        let (scheduler, ownership) = (&mut self.scheduler, turn.ownership);
        self.pending.retain(|task, _| {
            let goes_on = is_pending(ownership, *task);
            if !goes_on {
                scheduler.finish(*task);
            }
            goes_on
        });
        if scheduler.needs_refresh(turn) {
            let pending = ownership.pending_deletes.iter();
            let tasks = pending.map(|((shard, config), source)| ((*config, *shard), *source));
            scheduler.refresh(tasks);
        }
        let still = |task| is_pending(ownership, task);
        for (task, source) in scheduler.start(turn, still) {
            let delete = Delete {
                source,
                confirmed: false,
                proposed: None,
            };
            self.pending.insert(task, delete);
        }
        let tasks: Vec<HandOff> = self.pending.keys().copied().collect();
        for task in tasks {
            self.advance(turn, task);
        }
    }

    fn advance(&mut self, turn: &mut Turn<'_>, task: HandOff) {
        let Some(delete) = self.pending.get_mut(&task) else {
            return;
        };
        let (config, shard) = task;
        if delete.confirmed {
            if delete.proposed.is_none() && turn.reached(self.log.until()) {
                let action = Action::Propose(Step::Deleted { shard, config });
                let id = turn.ask(Purpose::Deleted(task), PROPOSE_PATIENCE_MS, action);
                delete.proposed = Some(id);
            }
            return;
        }
        if self.scheduler.is_asking(task) {
            return;
        }
        let source = delete.source;
        let Some(addresses) = turn.ownership.addresses(source) else {
            let why = "its address is not known";
            self.scheduler.fail(task, turn.now, why, turn.options);
            self.pending.remove(&task);
            return;
        };
        let action = Action::Delete {
            shard,
            config,
            source,
            addresses,
        };
        let id = turn.ask(Purpose::Delete, ASK_PATIENCE_MS, action);
        self.scheduler.asked(task, id, turn.now);
    }

    /// Handles the outcome of [`Purpose::Delete`].
    pub(super) fn delete_ended(&mut self, turn: &Turn<'_>, id: ActionId, outcome: Outcome) {
        let result = match outcome {
            Outcome::Done => Ok(()),
            Outcome::Failed(_) if turn.bugs.has(Bug::DeleteSentOnce) => Ok(()),
            Outcome::Failed(why) => Err(why),
            other => Err(format!("not an answer to Delete: {other:?}")),
        };
        match result {
            Ok(()) => {
                if let Some(task) = self.scheduler.answered(id)
                    && let Some(delete) = self.pending.get_mut(&task)
                {
                    delete.confirmed = true;
                }
            }
            Err(why) => {
                if let Some(task) = self.scheduler.failed(id, turn.now, &why, turn.options) {
                    self.pending.remove(&task);
                }
            }
        }
    }

    /// Handles the outcome of [`Purpose::Deleted`].
    pub(super) fn record_ended(
        &mut self,
        turn: &Turn<'_>,
        id: ActionId,
        task: HandOff,
        outcome: &Outcome,
    ) {
        let Some(delete) = self.pending.get_mut(&task) else {
            return;
        };
        if delete
            .proposed
            .take_if(|proposed| *proposed == id)
            .is_none()
        {
            return;
        }
        if is_pending(turn.ownership, task) {
            self.log.fail(turn.now, &refusal(outcome), turn.options);
        } else {
            self.log.succeed();
        }
    }

    /// Returns the reason, for display, that a source hasn't confirmed a delete yet.
    pub(super) fn why(&self, task: HandOff, source: Gid, now: u64) -> Option<String> {
        if self.pending.get(&task).is_some_and(|it| it.confirmed) {
            return self.log.why(now).map(|why| format!("own log: {why}"));
        }
        self.scheduler.why(task, source, now)
    }
}
