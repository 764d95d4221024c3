//! Known bugs that tests and the simulator put back, one at a time, to show that their checks find them.
//!
//! The switch exists only where the feature `bugs` is on, which the product never has: [`BUGS_COMPILED_IN`] lets a binary
//! refuse to compile with it.

/// True if this build can be made to misbehave. The product asserts at compile time that it can't.
pub const BUGS_COMPILED_IN: bool = cfg!(feature = "bugs");

/// A mistake that a client of an exactly-once store can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// A write without a session is sent again although an earlier attempt may have taken effect.
    RepeatsUnrepeatable,
    /// Two writes of a session get the same sequence.
    SequenceGivenTwice,
    /// A write acknowledges all writes before it, also those that are unanswered.
    AcksTooMuch,
    /// A write that is sent again after a lost connection no longer holds back what its session acknowledges.
    FenceForgotten,
    /// A hint stays believed after the node that it names has refused.
    FollowsStaleHint,
    /// An answer that arrives after the call was scheduled for another attempt ends the call, but reaches no caller.
    DropsLateAnswer,
    /// A later certain refusal hides that an earlier attempt may have taken effect.
    DoubtForgotten,
    /// A write whose session expired gets another name although an earlier attempt may have taken effect.
    RenamedInDoubt,
}

impl Bug {
    /// All bugs of this crate.
    pub const ALL: [Self; 8] = [
        Self::RepeatsUnrepeatable,
        Self::SequenceGivenTwice,
        Self::AcksTooMuch,
        Self::FenceForgotten,
        Self::FollowsStaleHint,
        Self::DropsLateAnswer,
        Self::DoubtForgotten,
        Self::RenamedInDoubt,
    ];
}

/// The bug that was put back, if any. Empty in the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bugs {
    #[cfg(feature = "bugs")]
    bug: Option<Bug>,
}

impl Bugs {
    /// No bug.
    pub const NONE: Self = Self {
        #[cfg(feature = "bugs")]
        bug: None,
    };

    /// Puts `bug` back.
    #[cfg(feature = "bugs")]
    pub const fn with(bug: Bug) -> Self {
        Self { bug: Some(bug) }
    }

    /// Returns true if `bug` was put back: never, in the product.
    #[cfg(feature = "bugs")]
    pub fn has(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Returns true if `bug` was put back: never, in the product.
    #[cfg(not(feature = "bugs"))]
    #[allow(clippy::unused_self)]
    pub const fn has(self, _bug: Bug) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
