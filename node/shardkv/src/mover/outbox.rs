//! What is under way.

use std::collections::BTreeMap;

use types::{ConfigNum, ShardId};

use super::{Action, ActionId, MoverOptions, Outcome};
use crate::Ownership;
use crate::bug::Bugs;

/// A hand-off: of which configuration, of which shard. Ordered by age.
pub(super) type HandOff = (ConfigNum, ShardId);

/// What an action is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Errand {
    Fetch,
    Begin,
    Configure(ConfigNum),
    ProveLeadership,
    Pull,
    Install(HandOff),
    Delete,
    Deleted(HandOff),
    Report(ConfigNum),
    /// Nobody waits for its outcome.
    Whatever,
}

/// The actions to be carried out and those that are.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    next_id: u64,
    actions: Vec<(ActionId, Action)>,
    /// With the time at which an outcome isn't waited for any longer.
    under_way: BTreeMap<ActionId, (Errand, u64)>,
    due: Option<u64>,
}

/// What all parts of a mover see while they are polled.
pub(super) struct Turn<'a> {
    pub(super) now: u64,
    pub(super) ownership: &'a Ownership,
    /// The ownership is another one than at the last turn.
    pub(super) news: bool,
    pub(super) options: &'a MoverOptions,
    pub(super) bugs: Bugs,
    pub(super) out: &'a mut Outbox,
    pub(super) fatal: &'a mut Option<String>,
}

impl Turn<'_> {
    /// Asks for an action. If it hasn't ended after `patience` milliseconds, it counts as failed.
    pub(super) fn ask(&mut self, errand: Errand, patience: u64, action: Action) -> ActionId {
        let id = ActionId(self.out.next_id);
        self.out.next_id += 1;
        let deadline = self.now.saturating_add(patience);
        self.out.under_way.insert(id, (errand, deadline));
        self.out.actions.push((id, action));
        id
    }

    /// Whether `at` is reached; if not, there is to be a turn then.
    pub(super) fn reached(&mut self, at: u64) -> bool {
        if self.now < at {
            self.out.wake(at);
        }
        self.now >= at
    }
}

impl Outbox {
    /// Whether an action's outcome is waited for.
    pub(super) fn expects(&self, id: ActionId) -> bool {
        self.under_way.contains_key(&id)
    }

    /// An action ended: what it was for, if its outcome is waited for.
    pub(super) fn end(&mut self, id: ActionId) -> Option<Errand> {
        self.under_way.remove(&id).map(|(errand, _)| errand)
    }

    /// The actions whose outcomes have been waited for long enough.
    pub(super) fn overdue(&self, now: u64) -> Vec<(ActionId, Outcome)> {
        let late = self.under_way.iter().filter(|(_, (_, at))| *at <= now);
        late.map(|(id, _)| (*id, Outcome::Failed("no answer".to_owned())))
            .collect()
    }

    /// All that was under way is nobody's business any more.
    pub(super) fn forget(&mut self) {
        self.under_way.clear();
        self.due = None;
    }

    /// Gives out the actions; the turn is over.
    pub(super) fn take(&mut self) -> Vec<(ActionId, Action)> {
        if let Some(first) = self.under_way.values().map(|(_, at)| *at).min() {
            self.wake(first);
        }
        std::mem::take(&mut self.actions)
    }

    /// A turn begins: what is due is found out anew.
    pub(super) fn begin_turn(&mut self) {
        self.due = None;
    }

    fn wake(&mut self, at: u64) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// When the next turn is due without news.
    pub(super) fn due(&self) -> Option<u64> {
        self.due
    }
}
