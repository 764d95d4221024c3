//! Requests to a replica, their answers and refusals, and the outlet through which the replica gives them to its driver.

use bytes::Bytes;
use raft::{Envelope, Index, MembershipChange, MembershipError};
use types::NodeId;

/// The driver's id of a request, which the replica returns with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A request to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<Q> {
    /// Proposes an encoded operation of the state machine.
    Write {
        /// The operation.
        operation: Bytes,
        /// True if the operation frees space, so that a nearly full disk does not refuse it.
        frees_space: bool,
    },
    /// Answers a query linearizably.
    Read(Q),
    /// Answers a query linearizably, on the leader and on followers. A follower that can't refuses it with `NotLeader`, at once or within
    /// an election timeout.
    ReadHere(Q),
    /// Answers a query from this replica's own state as of the last applied entry, on the leader and on followers. Use it
    /// only for facts that never change, or where a stale answer is acceptable.
    ReadLocal(Q),
    /// Returns the birth of a new session. Only the leader answers.
    Birth {
        /// The least birth that the caller asks for. Ignored if tables might refuse it.
        at_least: types::LogTime,
    },
    /// Changes the membership by one step; answered when the change is committed.
    ChangeMembership(MembershipChange),
    /// Transfers leadership to this voter, or else to the voter with the longest log; answered when this replica learns that
    /// another node leads.
    TransferLeadership(Option<NodeId>),
}

/// A request that was served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<R> {
    /// The state machine's response to a write or a read.
    Machine(R),
    /// The birth of a new session.
    Birth(types::LogTime),
    /// A membership change was committed here.
    MembershipChanged(Index),
    /// This other node leads now.
    LeadershipTransferred(NodeId),
}

/// A request that was not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This replica doesn't lead. Nothing was done; send the request to the leader.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if this replica knows it.
        leader: Option<NodeId>,
    },
    /// Leadership was lost after the write was proposed: it may or may not take effect. Retry with the
    /// same client id and sequence.
    #[error("leadership was lost before the outcome was known")]
    Unknown {
        /// The new leader, if this replica knows it.
        leader: Option<NodeId>,
    },
    /// The leader is transferring leadership. Nothing was done; retry.
    #[error("leadership is being transferred")]
    Transferring,
    /// A bound is reached. Nothing was done; back off.
    #[error("overloaded: {what} is at its limit of {limit}")]
    Overloaded {
        /// The bound, such as `pending requests`.
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
    /// The present membership doesn't allow the change.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Another membership change is not committed yet, or the leader has not committed in its term yet.
    #[error("another membership change is in progress")]
    MembershipBusy,
    /// A learner is too far behind to be made a voter: wait until it has caught up.
    #[error("the learner is {behind} entries behind: promote it when it has caught up")]
    NotCaughtUp {
        /// The number of entries that it lacks.
        behind: u64,
    },
    /// After the change, the voters that answer now would be no quorum, and the group would stop.
    #[error(
        "{live} of the voters that would remain answer, and {quorum} are needed: restore the others first, or force the \
         change without a live quorum"
    )]
    NoLiveQuorum {
        /// The number of voters after the change that answer now.
        live: usize,
        /// The number that is a quorum after the change.
        quorum: usize,
    },
    /// The transfer's target can't lead.
    #[error("can't hand over: {0}")]
    BadTransfer(&'static str),
    /// The replica stops. A write that was proposed may or may not take effect.
    #[error("the node is stopping")]
    Stopping,
}

/// Takes the messages and answers of a replica. [`crate::Replica::poll`] calls it while it works, so that messages that
/// needn't wait for the disk leave before the write.
pub trait Outlet<R> {
    /// Sends a message to another member. The message may be lost.
    fn send(&mut self, envelope: Envelope);
    /// Answers a request. The replica calls it exactly once for each request.
    fn answer(&mut self, request: RequestId, result: Result<Answer<R>, Refusal>);
}
