//! The memory of one call's attempts, which goes with the call to whichever group gets it next.

use std::time::Duration;

use crate::Time;
use crate::bug::{Bug, Bugs};
use crate::refusal::{Failure, Rejection, Repeat};
use crate::sequences::Name;

/// The facts known of a call that is being tried.
#[derive(Debug, Default)]
pub struct Attempts {
    /// The name of a write, once it has one. Every retry keeps it, at any group, unless no attempt can have taken effect.
    pub name: Option<Name>,
    /// True if an attempt that ended without a certain answer may have taken effect. False for reads.
    pub doubt: bool,
    /// The text of the latest failed attempt.
    pub last: Option<String>,
    /// The moment since which the shard keeps the call waiting.
    pub turned_away: Option<Time>,
}

impl Attempts {
    /// Notes a failed attempt.
    pub(crate) fn failed(&mut self, repeat: Repeat, doubt: bool, message: String, bugs: Bugs) {
        if bugs.has(Bug::DoubtForgotten) {
            self.doubt = false;
        }
        self.doubt |= doubt && repeat != Repeat::Freely;
        self.last = Some(message);
    }

    /// Gives back the name of a write that was never in doubt and has to wait, so that it doesn't hold up the writes that were
    /// named after it.
    pub(crate) fn give_name_back(&mut self) {
        if !self.doubt {
            self.name = None;
        }
    }

    /// Notes that the shard wasn't served at the node, so that certainly nothing was done. A write that was never in doubt
    /// gives its name back. Returns how long the call has been waiting for its shard.
    pub fn turn_away(&mut self, now: Time) -> Duration {
        self.give_name_back();
        now.saturating_sub(*self.turned_away.get_or_insert(now))
    }

    /// Takes the name of a write whose session was refused, so that the next attempt gets another name. Fails if an earlier
    /// attempt may have taken effect: another name could apply the write twice.
    pub fn rename(&mut self, bugs: Bugs) -> Result<(), Failure> {
        let name = self.name.take();
        if let Some(name) = &name {
            name.expire();
        }
        if name.is_some() && (!self.doubt || bugs.has(Bug::RenamedInDoubt)) {
            return Ok(());
        }
        Err(Failure::SessionExpired)
    }

    /// Returns the failure of a call that a node refused for good.
    pub(crate) fn rejected(&self, rejection: Rejection) -> Failure {
        Failure::Rejected {
            rejection,
            doubt: self.doubt,
        }
    }
}
