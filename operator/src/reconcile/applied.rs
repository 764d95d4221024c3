//! The results of the apply step, and the conclusions from them. Pure.

use crate::parts::{Component, Kind};
use crate::plan::{Action, Needs};
use crate::store::{Change, StoreError};

/// The turn of a step in a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Turn {
    /// The step doesn't wait for others.
    #[default]
    Free,
    /// Only one such step takes effect in a round, the first that can.
    Queued,
}

/// Result of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The object was created.
    Created,
    /// The object was changed or deleted.
    Changed,
    /// The controllers took a change of the configuration.
    Configured(Change),
    /// Nothing had to be changed.
    Unchanged,
    /// The object to delete was gone, or another one had its name.
    Vanished,
    /// The object or the store has changed since it was observed. The next round observes it again.
    Raced,
    /// Another object must disappear first, which happens by itself.
    Waits(String),
    /// The API server refuses, and will refuse again until a person changes something.
    Refused(String),
    /// The name belongs to an object of another owner.
    Taken(String),
    /// A newer operator applied the object last.
    Outranked(String),
    /// The `StatefulSet` differs, and its turn to change comes later.
    Held,
    /// The store's controllers refuse or don't answer.
    Store(StoreError),
}

impl Written {
    /// Returns true if the write took effect.
    pub(super) fn changed(&self) -> bool {
        matches!(self, Self::Created | Self::Changed | Self::Configured(_))
    }

    /// Returns true if the action can't do all that it is for.
    pub(super) fn failed(&self) -> bool {
        !self.changed() && !matches!(self, Self::Unchanged | Self::Vanished | Self::Held)
    }

    /// Returns true if the further writes of the action must not follow. An object that a newer operator applied is there, so a part can be
    /// made with it.
    pub(super) fn stops(&self) -> bool {
        self.failed() && !matches!(self, Self::Outranked(_))
    }

    /// Returns true if pods may be replaced because of the write: it took effect, or somebody else has written the object.
    fn may_roll(&self) -> bool {
        self.changed() || *self == Self::Raced
    }

    /// Returns true if the observed state had changed, so that the next round should follow soon.
    fn outdated(&self) -> bool {
        matches!(self, Self::Vanished | Self::Raced)
    }
}

/// Results of all actions that were begun, in their order: one for each write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) results: Vec<(Action, Vec<Written>)>,
    /// True once a part has had its turn in a rollout.
    pub(super) turn_taken: bool,
}

/// A problem that needs attention from a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Reason of the condition.
    pub(super) reason: &'static str,
    /// Description of the problem.
    pub(super) message: String,
}

impl Applied {
    /// Adds the results of a step. A change that was refused leaves the turn to the next part, or one part could hold up all others.
    pub(super) fn add(&mut self, action: Action, turn: Turn, results: Vec<Written>) {
        self.turn_taken |= turn == Turn::Queued && results.iter().any(Written::may_roll);
        self.results.push((action, results));
    }

    /// Returns true if a step has to wait for the next round, because another part has had its turn.
    pub(super) fn holds(&self, turn: Turn) -> bool {
        turn == Turn::Queued && self.turn_taken
    }

    /// Returns true if the results so far allow an action of the same plan.
    pub(super) fn allows(&self, action: &Action) -> bool {
        let failed = |results: &[Written]| results.iter().any(Written::failed);
        let mut begun = self.results.iter();
        match action.needs() {
            _ if begun.any(|(it, results)| *it == Action::AddFinalizer && failed(results)) => false,
            Needs::Nothing => true,
            Needs::Changes => self.allows_changes(),
            Needs::ChangesAndOptions => self.allows_changes() && self.has_options(),
            Needs::Untouched(part) => !self.has_touched(part),
            Needs::Options(part) => !self.has_touched(part) && self.has_options(),
            Needs::All => !self.written().any(|it| it.failed() || it.outdated()),
        }
    }

    /// Returns true if no change of groups, controllers or volumes failed, except creations.
    fn allows_changes(&self) -> bool {
        !self.results.iter().any(|(earlier, results)| {
            earlier.needs() == Needs::Changes && results.iter().any(Written::failed)
        })
    }

    /// Returns true if the config map with the options is there.
    fn has_options(&self) -> bool {
        let options = Action::UpdateShared(Kind::Config);
        !self
            .results
            .iter()
            .any(|(earlier, results)| *earlier == options && results.iter().any(Written::failed))
    }

    fn has_touched(&self, part: Component) -> bool {
        self.results.iter().any(|(earlier, results)| {
            earlier.touches() == Some(part) && results.iter().any(Written::changed)
        })
    }

    fn written(&self) -> impl Iterator<Item = &Written> {
        self.results.iter().flat_map(|(_, results)| results)
    }

    /// Returns true if anything was changed.
    pub(super) fn changed(&self) -> bool {
        self.written().any(Written::changed)
    }

    /// Returns true if the observed state had changed, so that the next round should follow soon.
    pub(super) fn outdated(&self) -> bool {
        self.written().any(Written::outdated)
    }

    /// Returns true if pods are replaced because of a change.
    pub(super) fn rolled(&self) -> bool {
        let mut results = self.results.iter();
        results.any(|(action, results)| {
            matches!(action, Action::Update(_, Kind::Set)) && results.iter().any(Written::changed)
        })
    }

    /// Returns the number of `StatefulSet`s whose turn to change comes later.
    pub(super) fn held(&self) -> usize {
        self.written().filter(|it| **it == Written::Held).count()
    }

    /// Returns true if the operator has given up the resource.
    pub(super) fn released(&self) -> bool {
        let mut results = self.results.iter();
        results.any(|(action, results)| action.releases() && results.iter().any(Written::changed))
    }

    /// Returns the objects that must disappear first, as readable text.
    pub(super) fn waits(&self) -> Vec<&str> {
        let waits = self.written().filter_map(|it| match it {
            Written::Waits(message) => Some(message.as_str()),
            _ => None,
        });
        waits.collect()
    }

    /// Returns refused changes and failed requests.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let problem = |it: &Written| {
            let (reason, message) = match it {
                Written::Refused(message) => ("ApplyRefused", message.clone()),
                Written::Taken(message) => ("NameTaken", message.clone()),
                Written::Outranked(message) => ("NewerOperator", message.clone()),
                Written::Store(error @ StoreError::Refused(_)) => ("Refused", error.to_string()),
                Written::Store(error @ StoreError::Unreachable(_)) => {
                    ("StoreUnreachable", error.to_string())
                }
                _ => return None,
            };
            Some(Problem { reason, message })
        };
        self.written().filter_map(problem).collect()
    }
}
