//! Repeats calls at other nodes while the first may still be answered.
//!
//! A call for a shard that nobody serves is repeated after [`HURRY_MS`], another call of a copy after the timeout of a call. The first
//! answer ends the action, from whichever node it comes. So a source that needs longer than the timeout makes progress as well.

use super::super::{Action, ActionId};
use super::{Driver, Leader, Pending};
use crate::Ownership;

/// The pause before a call for a shard that nobody serves is repeated at another node, in milliseconds.
const HURRY_MS: u64 = 100;
/// The time for which a copy's action waits for an answer, in timeouts of a call.
const PATIENCE: u64 = 4;
/// The most, in milliseconds. The mover gives up later.
const MAX_PATIENCE_MS: u64 = 9_500;

/// The repetitions of an action.
#[derive(Debug)]
pub(super) struct Hedge {
    /// The time of the next one.
    at: u64,
    /// The pause between two, in milliseconds.
    pause: u64,
    /// The time from which there are no more.
    pub(super) until: u64,
    /// The repetitions so far.
    sent: usize,
}

impl Hedge {
    /// Returns the repetitions of an action that starts now; `None` if its call isn't repeated.
    pub(super) fn of(action: &Action, now: u64, timeout: u64) -> Option<Self> {
        let pause = match action {
            Action::Copy { request, .. } if request.fence.is_some() => HURRY_MS.min(timeout),
            Action::Copy { .. } | Action::Journal { .. } => timeout,
            _ => return None,
        };
        let patience = timeout.saturating_mul(PATIENCE);
        let patience = patience.min(MAX_PATIENCE_MS).max(timeout);
        Some(Self {
            at: now.saturating_add(pause),
            pause,
            until: now.saturating_add(patience),
            sent: 0,
        })
    }
}

impl Driver {
    /// Returns the time of the next repetition.
    pub(super) fn next_hedge(&self) -> Option<u64> {
        let times = self.hedges.values().map(|hedge| hedge.at);
        times.min().filter(|at| *at < u64::MAX)
    }

    /// Drops the calls of copies of which the mover expects nothing any more.
    pub(super) fn drop_unexpected(&mut self) {
        let (mover, pending) = (&self.mover, &mut self.pending);
        self.hedges.retain(|id, _| {
            let expected = mover.expects(*id);
            if !expected {
                pending.retain(|_, it| it.id != *id);
            }
            expected
        });
    }

    /// Repeats the calls whose time has come.
    pub(super) fn hedge(&mut self, now: u64, ownership: &Ownership) {
        let due = self.hedges.iter().filter(|(_, hedge)| hedge.at <= now);
        let due: Vec<ActionId> = due.map(|(id, _)| *id).collect();
        for id in due {
            let Some(hedge) = self.hedges.get_mut(&id) else {
                continue;
            };
            hedge.at = now.saturating_add(hedge.pause);
            hedge.sent += 1;
            let (sent, until) = (hedge.sent, hedge.until);
            if hedge.at >= until {
                // No more.
                hedge.at = u64::MAX;
            }
            self.repeat(now, ownership, id, (sent, until));
        }
    }

    fn repeat(
        &mut self,
        now: u64,
        ownership: &Ownership,
        id: ActionId,
        (sent, until): (usize, u64),
    ) {
        let Some(last) = self.pending.values().rfind(|it| it.id == id) else {
            return;
        };
        let is_hurried = last.is_hurried();
        let action = last.action.clone();
        if let Some(silent) = last.node.clone() {
            self.silent(&action, &silent);
        }
        let until = if is_hurried {
            // Later it may be asked again.
            until.min(now.saturating_add(self.options.call_timeout_ms))
        } else {
            until
        };
        let repeated = Pending::new(id, action, until);
        let (Some(node), Some(request)) = (
            self.next_node(&repeated),
            self.request(ownership, &repeated),
        ) else {
            return;
        };
        let asked = |address: &str| {
            let mut calls = self.pending.values().filter(|it| it.id == id);
            calls.any(|it| it.node.as_ref().is_some_and(|it| &*it.address == address))
        };
        let free = repeated.addresses().iter().filter(|it| !asked(it));
        let node = if asked(&node.address) {
            let count = free.clone().count();
            let other = sent.checked_rem(count).and_then(|at| free.clone().nth(at));
            match other {
                Some(address) => Leader {
                    address: address.as_str().into(),
                    ..node
                },
                None if is_hurried => return,
                None => node,
            }
        } else {
            node
        };
        self.send(repeated, node, request);
    }

    /// Notes that a node doesn't answer, so that another is asked next.
    pub(super) fn silent(&mut self, action: &Action, node: &Leader) {
        let leader = self.leaders.guess(node.gid);
        if let (Action::Copy { .. }, Some(leader)) = (action, leader)
            && leader.address == node.address
        {
            self.leaders.failed(&leader);
        }
        self.nodes(action).failed(node);
    }
}
