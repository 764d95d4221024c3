//! Known bugs of the consensus core that tests and the simulator put back, one at a time, to show that their checks
//! find them.
//!
//! The switch exists only with the feature `bugs`, which the product never enables: [`BUGS_COMPILED_IN`] lets a binary
//! refuse to compile with it.

/// True if this build can be made to misbehave. The product asserts at compile time that it can't.
pub const BUGS_COMPILED_IN: bool = cfg!(feature = "bugs");

/// True if each input is followed by a check of all invariants: in debug builds and in the simulator's builds.
pub(crate) const CHECKS_INVARIANTS: bool = cfg!(any(debug_assertions, feature = "bugs"));

/// A mistake that a known system made, and that Raft can make again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// A vote is answered before it is on disk, and a crash forgets it.
    VoteNotDurable,
    /// A follower acknowledges entries before they are on disk.
    AckBeforeFsync,
    /// A new leader appends no entry of its own term.
    NoOwnTermNoop,
    /// A leader commits entries of earlier terms by counting replicas (Raft figure 8).
    CommitOldTermByCounting,
    /// A leader that has not committed in its term serves reads.
    ReadBeforeOwnTermCommit,
    /// A leader serves a read without asking a quorum whether it still leads.
    ReadWithoutQuorum,
    /// An acknowledgement of an earlier term counts in this term.
    StaleAppendAck,
    /// The membership of a truncated entry stays in force.
    TruncatedMembershipKept,
    /// A second membership change starts before the first is committed.
    TwoChangesAtOnce,
    /// An installed snapshot keeps a log that conflicts with it.
    SnapshotKeepsConflictingLog,
    /// A candidate with a shorter log gets a vote.
    VoteIgnoresLog,
    /// A leader that told another node to campaign goes on renewing its lease.
    LeaseAfterTimeoutNow,
    /// A follower commits as far as the leader has, beyond what its log is known to match.
    CommitBeyondMatch,
    /// An answer to an earlier heartbeat confirms a read.
    OldAnswerConfirmsRead,
    /// A leader answers a follower's question for the read index without asking a quorum whether it still leads.
    FollowerReadUnconfirmed,
    /// A leader that has not committed in its term answers a follower's question for the read index.
    FollowerReadOwnTermMissing,
    /// An answer to an earlier question confirms a follower's read that came after the question.
    FollowerReadOldAnswer,
    /// A follower takes no new entries while too many wait, committed or not, though it needs new ones to commit them.
    BacklogCountsUncommitted,
}

impl Bug {
    /// All bugs of this crate.
    pub const ALL: [Self; 18] = [
        Self::VoteNotDurable,
        Self::AckBeforeFsync,
        Self::NoOwnTermNoop,
        Self::CommitOldTermByCounting,
        Self::ReadBeforeOwnTermCommit,
        Self::ReadWithoutQuorum,
        Self::StaleAppendAck,
        Self::TruncatedMembershipKept,
        Self::TwoChangesAtOnce,
        Self::SnapshotKeepsConflictingLog,
        Self::VoteIgnoresLog,
        Self::LeaseAfterTimeoutNow,
        Self::CommitBeyondMatch,
        Self::OldAnswerConfirmsRead,
        Self::FollowerReadUnconfirmed,
        Self::FollowerReadOwnTermMissing,
        Self::FollowerReadOldAnswer,
        Self::BacklogCountsUncommitted,
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
