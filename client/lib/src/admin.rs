//! Requests of operators to one node.

use std::sync::Arc;
use std::time::Duration;

use api::v1::admin_client::AdminClient;
use api::v1::change_membership_request::Change;
use api::v1::error_detail::Kind;
use api::v1::{
    self, AddLearner, ChangeMembershipRequest, ShardsRequest, StatusResponse,
    TransferLeadershipRequest,
};
use request::Action;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;
use types::{ConfigNum, Gid, NodeId, ShardSet};

use crate::Error;
use crate::failure;
use crate::route::{ChannelError, Router, Slot, StatusError};
use crate::shards::{GroupShards, group_shards};

/// One node, asked directly, without retries and without following leaders. Made by [`crate::Client::admin`].
#[derive(Clone)]
pub struct Admin {
    router: Router,
    address: Arc<str>,
    timeout: Duration,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Admin {
    pub(crate) fn new(router: Router, address: Arc<str>, timeout: Duration) -> Self {
        Self {
            router,
            address,
            timeout,
        }
    }

    /// Returns the node's address: `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the status of the node and its group.
    pub async fn status(&self) -> Result<NodeStatus, Error> {
        let status = self.router.survey(&self.address);
        match timeout(self.timeout, status).await {
            Ok(Ok(status)) => Ok(node_status(status)),
            Ok(Err(StatusError::Channel(error))) => Err(self.unreachable(error)),
            Ok(Err(error)) => Err(self.unavailable(error.to_string(), false)),
            Err(_) => Err(failure::timeout(self.timeout, false, None)),
        }
    }

    /// Returns the states of `shards` (empty: of all) in the node's group, as the node knows them. With `exact` it counts keys and
    /// bytes by reading all of them; otherwise they are estimates that cost nothing.
    pub async fn shards(&self, shards: &ShardSet, exact: bool) -> Result<GroupShards, Error> {
        let request = ShardsRequest {
            shards: api::shards_to_wire(shards),
            exact,
        };
        let most = self.router.options().max_message_bytes;
        let shards = async |admin: AdminClient<Channel>| {
            let mut admin = admin.max_decoding_message_size(most);
            Ok(group_shards(admin.shards(request).await?.into_inner()))
        };
        self.ask(false, shards).await
    }

    /// Transfers the leadership to `target`, or to the voter with the longest log. Returns the new leader. The node that is asked
    /// must lead.
    pub async fn transfer_leadership(&self, target: Option<NodeId>) -> Result<NodeId, Error> {
        let request = TransferLeadershipRequest {
            node_id: target.map_or(0, |node| node.0),
        };
        let transfer = async |mut admin: AdminClient<Channel>| {
            let done = admin.transfer_leadership(request).await?;
            Ok(NodeId(done.into_inner().leader_id))
        };
        self.ask(true, transfer).await
    }

    /// Makes one membership change and returns the index of its committed entry. The node that is asked must lead. It refuses a
    /// change after which the voters that answer are no quorum.
    pub async fn change_membership(&self, change: MembershipChange) -> Result<u64, Error> {
        let without_live_quorum = matches!(change, MembershipChange::RemoveWithoutLiveQuorum(_));
        let change = match change {
            MembershipChange::AddLearner { node, address } => Change::AddLearner(AddLearner {
                node_id: node.0,
                address,
            }),
            MembershipChange::Promote(node) => Change::Promote(node.0),
            MembershipChange::Remove(node) | MembershipChange::RemoveWithoutLiveQuorum(node) => {
                Change::Remove(node.0)
            }
        };
        let request = ChangeMembershipRequest {
            change: Some(change),
            without_live_quorum,
        };
        let change = async |mut admin: AdminClient<Channel>| {
            Ok(admin.change_membership(request).await?.into_inner().index)
        };
        self.ask(true, change).await
    }

    /// Makes one call; `changes` is true if it may have an effect.
    async fn ask<T>(
        &self,
        changes: bool,
        call: impl AsyncFnOnce(AdminClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, Error> {
        let channel = match self.router.channel(&self.address, Slot::Control).await {
            Ok(channel) => channel,
            Err(error) => return Err(self.unreachable(error)),
        };
        match timeout(self.timeout, call(AdminClient::new(channel))).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(status)) => Err(self.refused(changes, &status)),
            Err(_) => Err(failure::timeout(self.timeout, changes, None)),
        }
    }

    fn refused(&self, changes: bool, status: &Status) -> Error {
        let detail = api::error_detail(status);
        if detail.is_none() {
            self.router.discard(&self.address, Slot::Control);
        }
        if let Some(Kind::NotLeader(it)) = detail.and_then(|detail| detail.kind) {
            return Error::NotLeader {
                leader: (!it.leader_address.is_empty()).then_some(it.leader_address),
            };
        }
        let verdict = api::refused_status(status).refusal.judge();
        let doubt = changes && verdict.doubt;
        match verdict.action {
            Action::Fail(rejection) => failure::rejected(rejection, doubt),
            Action::WrongGroup(config_num) => Error::WrongGroup { config_num },
            Action::AwaitShard(retry_after) => Error::ShardNotReady { retry_after },
            _ => self.unavailable(status.message().to_owned(), doubt),
        }
    }

    fn unreachable(&self, error: ChannelError) -> Error {
        match error {
            ChannelError::Tls(why) => Error::Tls {
                message: format!("{}: {why}", self.address),
                maybe_applied: false,
            },
            error => self.unavailable(error.to_string(), false),
        }
    }

    fn unavailable(&self, message: String, maybe_applied: bool) -> Error {
        Error::Unavailable {
            address: self.address.to_string(),
            message,
            maybe_applied,
        }
    }
}

/// One step of a membership change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Lets a node receive the log without a vote.
    AddLearner {
        /// The node.
        node: NodeId,
        /// Its address: `host:port`.
        address: String,
    },
    /// Gives a learner that has caught up a vote.
    Promote(NodeId),
    /// Removes a member.
    Remove(NodeId),
    /// Removes a member even if the voters that answer are no quorum then. The group stops until others return, perhaps for
    /// ever.
    RemoveWithoutLiveQuorum(NodeId),
}

/// The role of a node in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The node sent a value that this client does not know.
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
    /// Returns the role's name in lower case, with a hyphen between words.
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

/// The purpose of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupKind {
    /// The node sent a value that this client does not know.
    Unknown,
    /// A store of one group that owns all shards.
    Standalone,
    /// A replica group that owns the shards that the controllers give it.
    Shards,
    /// The controllers' own group.
    Controller,
}

impl GroupKind {
    /// Returns the kind's name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Standalone => "standalone",
            Self::Shards => "shards",
            Self::Controller => "controller",
        }
    }
}

impl std::fmt::Display for GroupKind {
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
    /// Its address.
    pub address: String,
    /// Its role in the group.
    pub role: Role,
    /// Its Raft term.
    pub term: u64,
    /// The leader, if it knows one.
    pub leader_id: Option<NodeId>,
    /// The address of the leader, if it knows one.
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
    /// The free bytes of the file system under its data directory.
    pub disk_free_bytes: u64,
    /// All bytes of that file system; 0 if the node can't measure it.
    pub disk_total_bytes: u64,
    /// The bytes that must stay free. With less, the node refuses writes.
    pub disk_reserve_bytes: u64,
    /// The bytes that have arrived of shards on their way to its group, without what changed while they were copied.
    pub incoming_bytes: u64,
    /// True if it refuses writes because its disk is nearly full.
    pub disk_full: bool,
    /// The reason why it can't serve, if it can't.
    pub trouble: Option<String>,
    /// The purpose of its group.
    pub kind: GroupKind,
    /// The configuration that its group has accepted; 0 without a controller.
    pub config_num: ConfigNum,
    /// The configuration up to which its group has done its part; 0 without a controller.
    pub settled: ConfigNum,
}

/// A member of a group as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its identity.
    pub node_id: NodeId,
    /// Its address.
    pub address: String,
    /// True if it votes; otherwise it is a learner.
    pub voter: bool,
    /// The greatest index that it has, as the leader knows. Only the leader reports it.
    pub match_index: Option<u64>,
    /// The mode in which the leader sends to it: `probe`, `replicate` or `snapshot`. Only the leader reports it.
    pub progress: Option<String>,
}

pub(crate) fn node_status(it: StatusResponse) -> NodeStatus {
    let (role, kind) = (it.role(), it.kind());
    let leads = role == v1::Role::Leader;
    let text = |text: String| (!text.is_empty()).then_some(text);
    let member = |it: v1::MemberStatus| MemberStatus {
        node_id: NodeId(it.node_id),
        address: it.address,
        voter: it.voter,
        match_index: leads.then_some(it.match_index),
        progress: text(it.progress),
    };
    NodeStatus {
        version: it.version,
        cluster_id: it.cluster_id,
        gid: Gid(it.gid),
        node_id: NodeId(it.node_id),
        address: it.address,
        role: match role {
            v1::Role::Unspecified => Role::Unknown,
            v1::Role::Follower => Role::Follower,
            v1::Role::PreCandidate => Role::PreCandidate,
            v1::Role::Candidate => Role::Candidate,
            v1::Role::Leader => Role::Leader,
            v1::Role::Learner => Role::Learner,
        },
        term: it.term,
        leader_id: (it.leader_id != 0).then_some(NodeId(it.leader_id)),
        leader_address: text(it.leader_address),
        commit_index: it.commit_index,
        last_applied: it.last_applied,
        first_index: it.first_index,
        last_index: it.last_index,
        members: it.members.into_iter().map(member).collect(),
        shards: it.shards,
        log_bytes: it.log_bytes,
        state_bytes: it.state_bytes,
        disk_free_bytes: it.disk_free_bytes,
        disk_total_bytes: it.disk_total_bytes,
        disk_reserve_bytes: it.disk_reserve_bytes,
        incoming_bytes: it.incoming_bytes,
        disk_full: it.disk_full,
        trouble: text(it.trouble),
        kind: match kind {
            v1::GroupKind::Unspecified => GroupKind::Unknown,
            v1::GroupKind::Standalone => GroupKind::Standalone,
            v1::GroupKind::Shards => GroupKind::Shards,
            v1::GroupKind::Controller => GroupKind::Controller,
        },
        config_num: ConfigNum(it.config_num),
        settled: ConfigNum(it.settled),
    }
}
