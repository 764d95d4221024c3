//! What a replica tells of itself.

use raft::{EntryId, Index, Membership, ProgressState, Role, Term};
use types::NodeId;

/// A replica's view of itself and its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub node: NodeId,
    /// What it does in the group.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The greatest index known to be committed.
    pub commit_index: Index,
    /// The greatest index applied.
    pub last_applied: Index,
    /// The term of the entry there.
    pub applied_term: Term,
    /// The greatest index known to be committed in the group, be it here or not: as leader its own, else what leaders told
    /// since this replica started. `None` as long as none is known to be right.
    pub group_commit: Option<Index>,
    /// The log starts after this entry.
    pub compacted: EntryId,
    /// The log's last index.
    pub last_index: Index,
    /// The membership in force: the latest in the log.
    pub membership: Membership,
    /// The leader's view of the others; empty elsewhere.
    pub progress: Vec<(NodeId, Index, ProgressState)>,
    /// Requests that wait for an answer.
    pub pending_requests: usize,
    /// Elections that this replica started since it started.
    pub elections_started: u64,
    /// Snapshots that it sent and installed since it started.
    pub snapshots: (u64, u64),
    /// Whether it refuses writes because a disk is nearly full.
    pub disk_low: bool,
}
