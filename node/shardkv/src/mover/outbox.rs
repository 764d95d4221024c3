//! Actions that wait to be started, and pending actions with their deadlines.

use std::collections::BTreeMap;

use types::{ConfigNum, ShardId};

use super::background::Background;
use super::pace::Pace;
use super::{Action, ActionId, MoverOptions, Outcome};
use crate::Ownership;
use crate::bug::{Bug, Bugs};

/// A hand-off: of which configuration, of which shard. Ordered by age.
pub(super) type HandOff = (ConfigNum, ShardId);

/// The numbers of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReportNumbers {
    pub(super) settled: ConfigNum,
    pub(super) held: ConfigNum,
}

/// The purpose of an action.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    Fetch,
    Configure(ConfigNum),
    ProveLeadership,
    Pull {
        /// The bytes that the rate limit granted.
        paid: u32,
    },
    Install(HandOff),
    Delete,
    Deleted(HandOff),
    Report(ReportNumbers),
    ReportCut,
    /// A proposal or a request of a copy.
    Copy {
        shard: ShardId,
        /// The bytes that the rate limit granted.
        paid: u32,
    },
    /// The mover ignores the outcome.
    Ignored,
}

/// The actions to start and the pending actions.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    next_id: u64,
    actions: Vec<(ActionId, Action)>,
    /// Pending actions with their deadlines.
    pending: BTreeMap<ActionId, (Purpose, u64)>,
    due: Option<u64>,
}

/// The context that all tasks of a mover share during one poll.
pub(super) struct Turn<'a> {
    pub(super) now: u64,
    pub(super) ownership: &'a Ownership,
    /// True if the ownership has changed since the last turn.
    pub(super) news: bool,
    pub(super) options: &'a MoverOptions,
    pub(super) bugs: Bugs,
    /// The pulls and the copies that share the memory for what arrives.
    pub(super) pulls: u64,
    pub(super) copies: u64,
    /// The rate limit of all that comes from other groups.
    pub(super) pace: &'a mut Pace,
    pub(super) background: &'a mut Background,
    pub(super) out: &'a mut Outbox,
    pub(super) fatal: &'a mut Option<String>,
}

impl Turn<'_> {
    /// Adds an action. If it has no outcome after `patience` milliseconds, it counts as failed.
    pub(super) fn ask(&mut self, purpose: Purpose, patience: u64, action: Action) -> ActionId {
        let id = ActionId(self.out.next_id);
        self.out.next_id += 1;
        let deadline = self.now.saturating_add(patience);
        self.out.pending.insert(id, (purpose, deadline));
        self.out.actions.push((id, action));
        id
    }

    /// Drops a pending action, and gives back what the rate limit granted for it.
    pub(super) fn drop(&mut self, id: ActionId) {
        if let Some(Purpose::Copy { paid, .. } | Purpose::Pull { paid }) = self.out.end(id) {
            self.pace.came(paid, 0);
        }
    }

    /// Returns true if `at` is reached; otherwise schedules a turn at `at`.
    pub(super) fn reached(&mut self, at: u64) -> bool {
        if self.now < at {
            self.out.wake(at);
        }
        self.now >= at
    }
}

impl Outbox {
    /// Returns true if the action is pending.
    pub(super) fn expects(&self, id: ActionId) -> bool {
        self.pending.contains_key(&id)
    }

    /// Removes an action that ended, and returns its purpose if it was pending.
    pub(super) fn end(&mut self, id: ActionId) -> Option<Purpose> {
        self.pending.remove(&id).map(|(purpose, _)| purpose)
    }

    /// Returns a failure for each pending action whose deadline has passed.
    pub(super) fn overdue(&self, now: u64, bugs: Bugs) -> Vec<(ActionId, Outcome)> {
        if bugs.has(Bug::LostAnswerKeepsSlot) {
            return Vec::new();
        }
        let late = self.pending.iter().filter(|(_, (_, at))| *at <= now);
        late.map(|(id, _)| (*id, Outcome::Failed("no answer".to_owned())))
            .collect()
    }

    /// Forgets all pending actions.
    pub(super) fn forget(&mut self) {
        self.pending.clear();
        self.due = None;
    }

    /// Ends the turn and returns the actions to start.
    pub(super) fn take(&mut self, bugs: Bugs) -> Vec<(ActionId, Action)> {
        let deadlines = self.pending.values().map(|(_, at)| *at);
        if let Some(first) = deadlines
            .min()
            .filter(|_| !bugs.has(Bug::LostAnswerKeepsSlot))
        {
            self.wake(first);
        }
        std::mem::take(&mut self.actions)
    }

    /// Begins a turn: the tasks set the time of the next turn again.
    pub(super) fn begin_turn(&mut self) {
        self.due = None;
    }

    fn wake(&mut self, at: u64) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Returns the time of the next turn without new input.
    pub(super) fn due(&self) -> Option<u64> {
        self.due
    }
}
