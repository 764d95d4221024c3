//! Known bugs of the replicated log's runtime that tests and the simulator put back, one at a time, to show that their
//! checks find them.
//!
//! The switch exists only with the feature `bugs`, which the product never enables: [`BUGS_COMPILED_IN`] lets a binary
//! refuse to compile with it.

/// True if this build can be made to misbehave. The product asserts at compile time that it can't.
pub const BUGS_COMPILED_IN: bool = cfg!(feature = "bugs");

/// A mistake that a known system made, and that a replica can make again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// The log is compacted up to what is applied, not up to what is durable.
    CompactAboveDurable,
    /// A snapshot leaves the session tables behind.
    SnapshotWithoutSessions,
    /// Answers are matched by index alone, whatever entry was committed there.
    AnswerByIndexOnly,
    /// A leader cuts the log that a follower needs after its snapshot.
    LogCutUnderFollowers,
    /// A whole window of a snapshot is sent again whenever no answer came for two heartbeat intervals.
    WindowResentByClock,
    /// A membership change is answered when its index is applied, whatever entry was committed there.
    ChangeAnsweredByIndex,
    /// A restart that finishes an install forgets the vote.
    InstallForgetsVote,
    /// A leader raises the feature level although a member doesn't support it.
    LevelRaisedTooEarly,
    /// The changes of an entry depend on the replica that applies it.
    ApplyDependsOnReplica,
    /// A snapshot leaves the digest behind.
    SnapshotWithoutDigest,
    /// A node with an empty disk forms a group although peers are members of one.
    FounderFoundsAgain,
    /// A node forms a group although an initial peer is silent.
    FormsWithoutSilent,
    /// A poll applies all that is committed, and an entry has operations of any work.
    ApplyWithoutBudget,
    /// A follower answers a read before it has applied the read index.
    FollowerReadBeforeApply,
}

impl Bug {
    /// All bugs of this crate.
    pub const ALL: [Self; 14] = [
        Self::CompactAboveDurable,
        Self::SnapshotWithoutSessions,
        Self::AnswerByIndexOnly,
        Self::LogCutUnderFollowers,
        Self::WindowResentByClock,
        Self::ChangeAnsweredByIndex,
        Self::InstallForgetsVote,
        Self::LevelRaisedTooEarly,
        Self::ApplyDependsOnReplica,
        Self::SnapshotWithoutDigest,
        Self::FounderFoundsAgain,
        Self::FormsWithoutSilent,
        Self::ApplyWithoutBudget,
        Self::FollowerReadBeforeApply,
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

    /// Puts `bug` back, if there is one.
    #[cfg(feature = "bugs")]
    pub const fn new(bug: Option<Bug>) -> Self {
        Self { bug }
    }

    /// Returns true if `bug` was put back; always false in the product.
    #[cfg(feature = "bugs")]
    pub fn has(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Returns true if `bug` was put back; always false in the product.
    #[cfg(not(feature = "bugs"))]
    #[allow(clippy::unused_self)]
    pub const fn has(self, _bug: Bug) -> bool {
        false
    }
}
