//! What operators ask of one node.

use types::{Gid, NodeId};

use crate::Error;

/// One node, asked directly: no retries, and no following of leaders.
#[derive(Clone, Debug)]
pub struct Admin {}

impl Admin {
    /// How the node and its group are.
    pub async fn status(&self) -> Result<NodeStatus, Error> {
        todo!()
    }

    /// Makes the leader hand over to `target`, or to the voter whose log is furthest. Returns the new leader. The node
    /// that is asked must lead.
    pub async fn transfer_leadership(&self, _target: Option<NodeId>) -> Result<NodeId, Error> {
        todo!()
    }

    /// Makes one membership change and returns the index of its committed entry. The node that is asked must
    /// lead.
    pub async fn change_membership(&self, _change: MembershipChange) -> Result<u64, Error> {
        todo!()
    }
}

/// One step of a membership change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Lets a node receive the log without a vote.
    AddLearner {
        /// The node.
        node: NodeId,
        /// Where it is reached: `host:port`.
        address: String,
    },
    /// Gives a learner that has caught up a vote.
    Promote(NodeId),
    /// Removes a member.
    Remove(NodeId),
}

/// What a node does in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The node said nothing that this client knows.
    Unknown,
    /// Follows a leader.
    Follower,
    /// Asks whether an election would succeed.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log without a vote.
    Learner,
}

impl Role {
    /// The role's name in lower case, with a hyphen between words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A node's view of itself and its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The program's version.
    pub version: String,
    /// The cluster's name or id, as the node shows it.
    pub cluster_id: String,
    /// Its replica group.
    pub gid: Gid,
    /// Its identity.
    pub node_id: NodeId,
    /// Where it is reached.
    pub address: String,
    /// What it does in the group.
    pub role: Role,
    /// Its Raft term.
    pub term: u64,
    /// The leader, if it knows one.
    pub leader_id: Option<NodeId>,
    /// Where the leader is reached, if it knows.
    pub leader_address: Option<String>,
    /// The greatest index known to be committed.
    pub commit_index: u64,
    /// The greatest index applied.
    pub last_applied: u64,
    /// The first index in the log.
    pub first_index: u64,
    /// The last index in the log.
    pub last_index: u64,
    /// The members, as far as it knows.
    pub members: Vec<MemberStatus>,
    /// The cluster's number of shards.
    pub shards: u32,
    /// The log's size on disk, in bytes.
    pub log_bytes: u64,
    /// The state's size on disk, in bytes.
    pub state_bytes: u64,
    /// Whether it refuses writes because its disk is nearly full.
    pub disk_full: bool,
    /// Why it takes no part, if it doesn't.
    pub trouble: Option<String>,
}

/// A member of a group as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its identity.
    pub node_id: NodeId,
    /// Where it is reached.
    pub address: String,
    /// Whether it votes; otherwise it is a learner.
    pub voter: bool,
    /// The greatest index that the leader knows it has. Only from the leader.
    pub match_index: Option<u64>,
    /// How the leader sends to it: `probe`, `replicate` or `snapshot`. Only from the leader.
    pub progress: Option<String>,
}
