//! Known bugs of the controllers' state machine that tests and the simulator put back, one at a time, to show that their checks find them.
//!
//! The switch exists only where the feature `bugs` is on, which the product never has: [`BUGS_COMPILED_IN`] lets a binary
//! refuse to compile with it.

/// True if this build can be made to misbehave. The product asserts at compile time that it can't.
pub const BUGS_COMPILED_IN: bool = cfg!(feature = "bugs");

/// A mistake that a known system made, and that the controllers can make again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// A retried change is applied again.
    RetryAppliedTwice,
    /// A leaving group counts as drained as soon as it owns nothing, although it has not handed everything over.
    LeavingCountsAsDrained,
    /// A group that joins after it was drained gets the incarnation that it had before.
    IncarnationReused,
    /// A cut that was meant for an older target gives the shard to the present one.
    CutForOlderTarget,
    /// A shard begins empty that was on its way to a forgotten group, although the group before has it still.
    ForgottenShardBeginsEmpty,
}

impl Bug {
    /// The bugs that the simulator puts back.
    pub const ALL: [Self; 3] = [
        Self::RetryAppliedTwice,
        Self::LeavingCountsAsDrained,
        Self::IncarnationReused,
    ];

    /// The bugs of cuts, which the tests of this crate put back.
    pub const OF_CUTS: [Self; 1] = [Self::CutForOlderTarget];

    /// The bugs of forgotten groups, likewise.
    pub const OF_FORGETTING: [Self; 1] = [Self::ForgottenShardBeginsEmpty];
}

/// The bug that was put back, if any. Empty in the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bugs {
    #[cfg(feature = "bugs")]
    bug: Option<Bug>,
}

impl Bugs {
    /// No bug.
    pub(crate) const NONE: Self = Self {
        #[cfg(feature = "bugs")]
        bug: None,
    };

    /// Puts `bug` back, if there is one.
    #[cfg(feature = "bugs")]
    pub(crate) const fn new(bug: Option<Bug>) -> Self {
        Self { bug }
    }

    /// Returns true if `bug` was put back: never, in the product.
    #[cfg(feature = "bugs")]
    pub(crate) fn has(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Returns true if `bug` was put back: never, in the product.
    #[cfg(not(feature = "bugs"))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn has(self, _bug: Bug) -> bool {
        false
    }
}
