//! An action whose call is pending: whom it asks, and which answers fit.

use std::time::Duration;

use request::{Jitter, Leader, Policy, Repeat, SingleCall};
use types::Gid;

use super::{Action, ActionId, Answer};

/// The rules of an action's calls. All may be repeated. The pauses don't matter: an action that needs a pause fails.
const POLICY: Policy = Policy {
    max_attempts: 4,
    reports_delays: true,
    min_backoff: Duration::from_millis(1),
    max_backoff: Duration::from_millis(1),
    doubling: true,
    bugs: request::Bugs::NONE,
};

/// An action whose call is pending.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: ActionId,
    pub(super) action: Action,
    pub(super) attempts: SingleCall,
    /// The node that was asked; `None` for a proposal.
    pub(super) node: Option<Leader>,
    /// The deadline.
    pub(super) until: u64,
}

impl Pending {
    pub(super) fn new(id: ActionId, action: Action, until: u64) -> Self {
        Self {
            id,
            action,
            attempts: attempts(),
            node: None,
            until,
        }
    }

    pub(super) fn needs_leader(&self) -> bool {
        needs_leader(&self.action)
    }

    /// Returns true for a part of a shard that was cut: nobody serves it.
    pub(super) fn is_hurried(&self) -> bool {
        matches!(&self.action, Action::Copy { request, .. } if request.fence.is_some())
    }

    /// Returns the group that is asked; none for the controllers.
    pub(super) fn gid(&self) -> Gid {
        match &self.action {
            Action::Pull { source, .. }
            | Action::Copy { source, .. }
            | Action::Journal { source, .. }
            | Action::Delete { source, .. } => *source,
            _ => Gid::NONE,
        }
    }

    /// Returns the addresses of the group that is asked.
    pub(super) fn addresses(&self) -> &[String] {
        match &self.action {
            Action::Pull { addresses, .. }
            | Action::Copy { addresses, .. }
            | Action::Journal { addresses, .. }
            | Action::Delete { addresses, .. } => addresses,
            _ => &[],
        }
    }

    /// Returns true if `answer` answers this call.
    pub(super) fn fits(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Stepped => matches!(
                self.action,
                Action::Delete { .. } | Action::Propose(_) | Action::Journal { .. }
            ),
            Answer::Configs { .. } => matches!(self.action, Action::FetchConfigs { .. }),
            Answer::Chunk { .. } => matches!(self.action, Action::Pull { .. }),
            Answer::Part(_) => matches!(self.action, Action::Copy { .. }),
            Answer::Begun { .. } => matches!(self.action, Action::Journal { .. }),
            Answer::Refused(_) => {
                matches!(self.action, Action::Copy { .. } | Action::Journal { .. })
            }
            Answer::Reported => {
                matches!(
                    self.action,
                    Action::Report { .. } | Action::ReportCut { .. }
                )
            }
        }
    }
}

pub(super) fn needs_leader(action: &Action) -> bool {
    matches!(
        action,
        Action::Delete { .. }
            | Action::Journal { .. }
            | Action::ReportCut { .. }
            | Action::Report { .. }
    )
}

fn attempts() -> SingleCall {
    SingleCall::new(Repeat::Freely, POLICY, Jitter::new(0))
}
