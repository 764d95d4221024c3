//! The status of a replica.

use raft::{EntryId, Index, Membership, ProgressState, Role, Term};
use types::{LogTime, NodeId};

use crate::StateComparison;

/// A replica's view of itself and its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub node: NodeId,
    /// Its role in the group.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader, if this replica knows it.
    pub leader: Option<NodeId>,
    /// The greatest index known to be committed.
    pub commit_index: Index,
    /// The greatest index applied.
    pub last_applied: Index,
    /// The term of the entry at `last_applied`.
    pub applied_term: Term,
    /// The greatest index known to be committed in the group, even beyond this replica's log: on the leader its own commit
    /// index, on others the greatest in a leader's appends since this replica started. `None` while none is known.
    pub group_commit: Option<Index>,
    /// The last compacted entry, after which the log starts.
    pub compacted: EntryId,
    /// The log's last index.
    pub last_index: Index,
    /// The membership in force: the latest in the log.
    pub membership: Membership,
    /// The match index and the state of each follower on the leader; empty on other replicas.
    pub progress: Vec<(NodeId, Index, ProgressState)>,
    /// Requests that wait for an answer.
    pub pending_requests: usize,
    /// The number of elections that this replica has begun since its process started.
    pub elections_started: u64,
    /// The numbers of snapshots that it sent, installed, and stopped sending because the log after them was cut, since its
    /// process started.
    pub snapshots: (u64, u64, u64),
    /// The bytes of the log that this leader keeps for followers that are behind.
    pub kept_log_bytes: u64,
    /// True if it refuses writes because a disk is nearly full.
    pub disk_low: bool,
    /// This replica's present measure of log time, in whole seconds: a status is published whenever it changes.
    pub log_time: LogTime,
    /// The group's feature level, as far as it is applied here.
    pub feature_level: u32,
    /// The result of this leader's comparisons of states; the default on other replicas.
    pub comparison: StateComparison,
    /// The voters that have another value of `lease_reads` than this leader; empty on other replicas.
    pub lease_disagreement: Vec<NodeId>,
}
