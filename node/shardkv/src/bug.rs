//! Known bugs of a replica group's state machine and its mover that tests and the simulator put back, one at a time, to show that their checks find them.
//!
//! The switch exists only where the feature `bugs` is on, which the product never has: [`BUGS_COMPILED_IN`] lets a binary
//! refuse to compile with it.

/// True if this build can be made to misbehave. The product asserts at compile time that it can't.
pub const BUGS_COMPILED_IN: bool = cfg!(feature = "bugs");

/// A mistake that a known system made, and that a replica group can make again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// A session that is absent is taken for new, however old it is.
    AbsentSessionIsNew,
    /// A retried write is applied again.
    RetryAppliedTwice,
    /// A shard moves without its sessions.
    SessionsStayBehind,
    /// A shard moves without its session table's clock.
    SessionClockStaysBehind,
    /// A session is judged by its age by the table's clock, not by what the table has forgotten: a clock that is ahead refuses new
    /// sessions wherever the shard goes.
    SessionsJudgedByClock,
    /// A chunk of a shard that arrives again is installed again.
    ChunkInstalledTwice,
    /// A shard is served before its last chunk has arrived.
    ServedBeforeInstalled,
    /// A step of a hand-off is taken if the shard's configuration is at least the step's, not exactly it.
    ConfigNumAtLeast,
    /// A fenced shard still takes the writes that were proposed before its leader knew of the fence.
    FenceNotLogged,
    /// A fenced shard still answers reads.
    FencedShardServesReads,
    /// The source is asked to delete before the install is committed.
    DeleteBeforeInstall,
    /// A delete that got no answer is not sent again.
    DeleteSentOnce,
    /// The next configuration is accepted only when all shards are settled.
    DeadGroupFreezesAll,
    /// A group that waits for shards gives none away meanwhile.
    PullingGroupServesNoPulls,
    /// A late answer to an abandoned call is taken for the answer to the pending call of the same kind.
    LateAnswerTaken,
    /// A leader hint is followed for ever, also after the node that it names has refused or fallen silent.
    HintFollowedForEver,
    /// An action whose answer was lost stays pending for ever.
    LostAnswerKeepsSlot,
    /// A journal doesn't name what changes later in the batch that begins it.
    JournalMissesFirstBatch,
    /// A journal doesn't name removed pairs.
    JournalMissesDeletes,
    /// A journal doesn't name cleared ranges.
    JournalMissesRangeClears,
    /// A journal names sessions when their records are written at the end of the batch, not in the entries that change them.
    JournalNamesSessionsLate,
    /// A journal doesn't name sessions that expire.
    JournalMissesExpiry,
    /// A replica that hasn't applied the beginning of a journal answers base parts of its copy.
    CopyBeginsEarly,
    /// A replica that hasn't applied the seal of a generation answers its pages.
    SealNotApplied,
    /// The seal of a generation drops those before, although the destination's log may lack them.
    JournalDropsEarly,
    /// A page that continues a generation skips a row.
    PageSkipsRow,
    /// A snapshot lacks the names of journals. Tests and the simulator take them out of the state, because snapshots are the store's.
    SnapshotWithoutJournal,
    /// A part of a copy is taken wherever the copy is.
    LatePartTaken,
    /// A part of another journal's copy is taken.
    OtherJournalsPartTaken,
    /// A source whose journal ended says at the cut that the copy is complete.
    EndedCopyUsed,
    /// A copy that turned out to be useless at the cut is served.
    UselessCopyServed,
    /// The rows of a dropped copy stay.
    DropKeepsRows,
    /// A late drop of a copy clears the rows of a shard that was cut meanwhile.
    DropHitsCompleting,
    /// A session that a part says is absent stays in the session table.
    AbsentSessionKept,
    /// Sessions of a copy expire by the destination's clock.
    SessionsExpireInCopy,
    /// A generation is dropped at the source when it was received, before the destination's log has it.
    GenerationDroppedEarly,
    /// A page of a scan is read without a look at its shards, which were served when the leader was confirmed.
    PageUnchecked,
    /// A copy begins where an earlier stay of the shard is still fenced. The mover begins such copies in the simulator only.
    CopyIntoFencedRange,
    /// A write is carried out only on the replica where somebody waits for its answer.
    EffectsOnlyWhenAwaited,
    /// A journal doesn't name rows of keyspaces.
    JournalMissesRows,
    /// The base of a copy, and a pull, have no rows of keyspaces.
    CopyLeavesRowsOut,
    /// The rows of keyspaces of a shard that goes stay.
    ClearKeepsRows,
    /// A fenced shard still takes operations of keyspaces.
    KeyspaceFenceNotLogged,
    /// An operation of a keyspace is applied below the feature level that has keyspaces.
    KeyspaceAppliedBelowLevel,
    /// An expiry of a lease is carried out whatever the term and the configuration in which it was decided.
    ExpiryOfAnyTerm,
    /// Rows of keyspaces are taken below the feature level that has them.
    RowsTakenBelowLevel,
    /// A group that lost its disks counts only what it had settled as lost, not what it served beside a shard that was late.
    UnsettledLossUnseen,
}

impl Bug {
    /// The bugs that the simulator puts back. [`Self::JournalMissesRangeClears`] isn't one: no write of clients clears a range yet, so only
    /// the model of journals can show it. Nor is [`Self::RowsTakenBelowLevel`]: the model of copies shows it, because no group of a world
    /// stays below the level for long. Neither are two that tests of the mover show: [`Self::GenerationDroppedEarly`] costs only
    /// time, because such a copy begins anew, and [`Self::UnsettledLossUnseen`] needs a group that loses all its disks.
    pub const ALL: [Self; 43] = [
        Self::AbsentSessionIsNew,
        Self::RetryAppliedTwice,
        Self::SessionsStayBehind,
        Self::SessionClockStaysBehind,
        Self::SessionsJudgedByClock,
        Self::ChunkInstalledTwice,
        Self::ServedBeforeInstalled,
        Self::ConfigNumAtLeast,
        Self::FenceNotLogged,
        Self::FencedShardServesReads,
        Self::DeleteBeforeInstall,
        Self::DeleteSentOnce,
        Self::DeadGroupFreezesAll,
        Self::PullingGroupServesNoPulls,
        Self::LateAnswerTaken,
        Self::HintFollowedForEver,
        Self::LostAnswerKeepsSlot,
        Self::JournalMissesFirstBatch,
        Self::JournalMissesDeletes,
        Self::JournalNamesSessionsLate,
        Self::JournalMissesExpiry,
        Self::CopyBeginsEarly,
        Self::SealNotApplied,
        Self::JournalDropsEarly,
        Self::PageSkipsRow,
        Self::SnapshotWithoutJournal,
        Self::LatePartTaken,
        Self::OtherJournalsPartTaken,
        Self::EndedCopyUsed,
        Self::UselessCopyServed,
        Self::DropKeepsRows,
        Self::DropHitsCompleting,
        Self::AbsentSessionKept,
        Self::SessionsExpireInCopy,
        Self::CopyIntoFencedRange,
        Self::PageUnchecked,
        Self::EffectsOnlyWhenAwaited,
        Self::JournalMissesRows,
        Self::CopyLeavesRowsOut,
        Self::ClearKeepsRows,
        Self::KeyspaceFenceNotLogged,
        Self::KeyspaceAppliedBelowLevel,
        Self::ExpiryOfAnyTerm,
    ];

    /// The bugs of journals.
    pub const OF_JOURNALS: [Self; 12] = [
        Self::JournalMissesFirstBatch,
        Self::JournalMissesDeletes,
        Self::JournalMissesRangeClears,
        Self::JournalNamesSessionsLate,
        Self::JournalMissesExpiry,
        Self::CopyBeginsEarly,
        Self::SealNotApplied,
        Self::JournalDropsEarly,
        Self::PageSkipsRow,
        Self::SnapshotWithoutJournal,
        Self::JournalMissesRows,
        Self::CopyLeavesRowsOut,
    ];

    /// The bugs of copies at the destination.
    pub const OF_COPIES: [Self; 11] = [
        Self::LatePartTaken,
        Self::OtherJournalsPartTaken,
        Self::EndedCopyUsed,
        Self::UselessCopyServed,
        Self::DropKeepsRows,
        Self::DropHitsCompleting,
        Self::AbsentSessionKept,
        Self::SessionsExpireInCopy,
        Self::CopyIntoFencedRange,
        Self::ClearKeepsRows,
        Self::RowsTakenBelowLevel,
    ];
}

/// The bug that was put back, if any. Empty in the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bugs {
    #[cfg(feature = "bugs")]
    bug: Option<Bug>,
}

impl Bugs {
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

    /// Returns the bug of the request engine that stands for [`Bug::HintFollowedForEver`]: none, in the product.
    #[cfg(feature = "bugs")]
    pub(crate) fn of_requests(self) -> request::Bugs {
        if self.has(Bug::HintFollowedForEver) {
            request::Bugs::with(request::Bug::FollowsStaleHint)
        } else {
            request::Bugs::NONE
        }
    }

    /// Returns the bug of the request engine that stands for [`Bug::HintFollowedForEver`]: none, in the product.
    #[cfg(not(feature = "bugs"))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn of_requests(self) -> request::Bugs {
        request::Bugs::NONE
    }
}
