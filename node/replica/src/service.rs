//! The words between a replica and whoever drives it: requests, answers, refusals, and the outlet.

use bytes::Bytes;
use raft::{Envelope, Index, MembershipChange, MembershipError};
use types::NodeId;

/// The driver's name for a request; the replica only gives it back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What is asked of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<Q> {
    /// An encoded operation of the state machine, to be proposed.
    Write {
        /// The operation.
        operation: Bytes,
        /// It frees space, so a nearly full disk does not refuse it.
        frees_space: bool,
    },
    /// A linearizable question.
    Read(Q),
    /// A question about this replica's own state as of the last applied entry, whoever leads: right only for what can't
    /// become wrong, or where staleness is meant.
    ReadLocal(Q),
    /// The log time of now, for a session's birth. Leader only.
    LogTime,
    /// One membership change; answered when it is committed.
    ChangeMembership(MembershipChange),
    /// Hand leadership to a voter, or to the one whose log is furthest; answered when this replica learns that another leads.
    TransferLeadership(Option<NodeId>),
}

/// A request that was served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<R> {
    /// The state machine's response to a write or a read.
    Machine(R),
    /// The leader's log time.
    LogTime(types::LogTime),
    /// A membership change was committed here.
    MembershipChanged(Index),
    /// Leadership went to this node.
    LeadershipTransferred(NodeId),
}

/// A request that was not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This replica doesn't lead. Nothing was done; ask the leader.
    #[error("not the leader")]
    NotLeader {
        /// The leader, as far as it is known.
        leader: Option<NodeId>,
    },
    /// Leadership was lost after the write was proposed: it may or may not take effect. Retry with the
    /// same client id and sequence.
    #[error("leadership was lost before the outcome was known")]
    Unknown {
        /// The new leader, as far as it is known.
        leader: Option<NodeId>,
    },
    /// Leadership is being handed over. Nothing was done.
    #[error("leadership is being transferred")]
    Transferring,
    /// A bound is reached. Nothing was done; back off.
    #[error("overloaded: {what} is at its limit of {limit}")]
    Overloaded {
        /// Which bound.
        what: &'static str,
        /// Its value.
        limit: u64,
    },
    /// The operation is larger than a log entry may be. Nothing was done.
    #[error("an operation of {size} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The disk is nearly full: only reads and deletes are served. Nothing was done.
    #[error("the disk is nearly full: free space or delete keys")]
    DiskFull,
    /// The membership change makes no sense now.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Another membership change is not committed yet, or the leader has not committed in its term yet.
    #[error("another membership change is in progress")]
    MembershipBusy,
    /// A learner is too far behind to be made a voter: wait until it has caught up.
    #[error("the learner is {behind} entries behind: promote it when it has caught up")]
    NotCaughtUp {
        /// How many entries it lacks.
        behind: u64,
    },
    /// The transfer's target can't lead.
    #[error("can't hand over: {0}")]
    BadTransfer(&'static str),
    /// The replica stops. Nothing is known of what was proposed.
    #[error("the node is stopping")]
    Stopping,
}

/// Where a replica puts what leaves it. Called from within [`crate::Replica::poll`], so that messages that
/// needn't wait for the disk are on their way while it writes.
pub trait Outlet<R> {
    /// A message to another member. Losing it is allowed.
    fn send(&mut self, envelope: Envelope);
    /// The end of a request: called exactly once for each.
    fn answer(&mut self, request: RequestId, result: Result<Answer<R>, Refusal>);
}
