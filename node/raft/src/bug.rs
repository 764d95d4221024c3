//! Known bugs that the simulator puts back, one at a time, to see that its checks find them.
//!
//! The switch exists only where the feature `bugs` is on, which the product never has:
//! [`BUGS_COMPILED_IN`] lets a binary refuse to compile with it.

/// Whether this build can be told to misbehave. The product asserts at compile time that it can't.
pub const BUGS_COMPILED_IN: bool = cfg!(feature = "bugs");

/// A mistake that a known system made, each with the place in this crate or the ones above where it would sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// A vote is answered before it is on disk, and forgotten by a crash.
    VoteNotDurable,
    /// A follower acknowledges entries before they are on disk.
    AckBeforeFsync,
    /// A new leader appends no entry of its own term.
    NoOwnTermNoop,
    /// Entries of earlier terms are committed by counting replicas (Raft figure 8).
    CommitOldTermByCounting,
    /// A read is served by a leader that has not committed in its term.
    ReadBeforeOwnTermCommit,
    /// A read is served without asking a quorum whether this node still leads.
    ReadWithoutQuorum,
    /// An acknowledgement of an earlier term counts in this one.
    StaleAppendAck,
    /// The membership of a truncated entry stays in force.
    TruncatedMembershipKept,
    /// A second membership change starts before the first is committed.
    TwoChangesAtOnce,
    /// An installed snapshot keeps a log that conflicts with it.
    SnapshotKeepsConflictingLog,
    /// A candidate with a shorter log gets a vote.
    VoteIgnoresLog,
    /// The log is compacted up to what is applied, not up to what is durable.
    CompactAboveDurable,
    /// A snapshot leaves the session tables behind.
    SnapshotWithoutSessions,
    /// A session that is absent is taken for new, however old it is.
    AbsentSessionIsNew,
    /// A retried write is applied again.
    RetryAppliedTwice,
    /// Answers are matched by index alone, whatever entry got committed there.
    AnswerByIndexOnly,
    /// A wiped disk comes back under its old identity.
    WipedDiskKeepsIdentity,
    /// A shard moves without its sessions.
    SessionsStayBehind,
    /// A shard moves without its session table's clock.
    SessionClockStaysBehind,
    /// A part of a shard that arrives again is installed again.
    ChunkInstalledTwice,
    /// A shard is served before its last part has arrived.
    ServedBeforeInstalled,
    /// A step of a hand-off is taken if the shard's configuration is at least the step's, not exactly it.
    ConfigNumAtLeast,
    /// A fenced shard still takes the writes that were proposed before its leader knew.
    FenceNotLogged,
    /// A fenced shard still answers reads.
    FencedShardServesReads,
    /// Of the steps that wait for a shard only the newest is kept.
    QueueKeepsNewestOnly,
    /// The source is told to delete before the install is committed.
    DeleteBeforeInstall,
    /// A delete that got no answer is not told again.
    DeleteToldOnce,
    /// The next configuration is accepted only when all shards are settled.
    DeadGroupFreezesAll,
    /// A group that waits for shards gives none away meanwhile.
    PullingGroupServesNoPulls,
    /// The controller forgets configurations that a group has not passed.
    HistoryCutTooEarly,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 30] = [
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
        Self::CompactAboveDurable,
        Self::SnapshotWithoutSessions,
        Self::AbsentSessionIsNew,
        Self::RetryAppliedTwice,
        Self::AnswerByIndexOnly,
        Self::WipedDiskKeepsIdentity,
        Self::SessionsStayBehind,
        Self::SessionClockStaysBehind,
        Self::ChunkInstalledTwice,
        Self::ServedBeforeInstalled,
        Self::ConfigNumAtLeast,
        Self::FenceNotLogged,
        Self::FencedShardServesReads,
        Self::QueueKeepsNewestOnly,
        Self::DeleteBeforeInstall,
        Self::DeleteToldOnce,
        Self::DeadGroupFreezesAll,
        Self::PullingGroupServesNoPulls,
        Self::HistoryCutTooEarly,
    ];
}
