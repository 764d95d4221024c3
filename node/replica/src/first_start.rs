//! Decides how a node without a log becomes a member of a group, so that no second group is formed beside the first.
//!
//! A node with a log continues with it. A node with an empty disk asks all initial peers for their [`Introduction`], again
//! and again, until it can [decide](fn@decide): adopt the first membership that names it, wait until a group without it adds
//! it, or form the group if that is its task.
//!
//! Two groups can't both get a quorum. Only one node, the one with the smallest address, makes a first membership, and each
//! node durably adopts at most one. If that node loses its disk after it made a first membership and before the others
//! adopted it, it may make another one. But then the first group has lost a member: of two nodes that adopted different
//! first memberships at most one is in a quorum, and the other one is refused because of its cluster id.
//!
//! The driver asks, waits and writes. This module only decides, so the simulator runs exactly these decisions.

use std::collections::BTreeSet;

use raft::{MAX_ADDRESS_BYTES, MAX_MEMBERS, Membership};
use types::{ClusterId, NodeId};

use crate::bug::{Bug, Bugs};
use crate::genesis::Genesis;

/// The values and members that a group is formed with.
///
/// Invariants: the cluster id isn't zero; there are 1 to [`MAX_MEMBERS`] members with distinct ids that aren't zero and
/// distinct addresses of 1 to [`MAX_ADDRESS_BYTES`] bytes without blanks; the genesis is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstMembership {
    /// The incarnation of the cluster.
    pub cluster: ClusterId,
    /// The members, each with its address.
    pub members: Vec<(NodeId, String)>,
    /// The settings that never change.
    pub genesis: Genesis,
}

/// A first membership that is not valid. Reading or sending it again gives the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the first membership is not valid: {0}")]
pub struct BadFirstMembership(pub String);

impl FirstMembership {
    /// Returns true if the node is one of the first members.
    pub fn contains(&self, node: NodeId) -> bool {
        self.members.iter().any(|(member, _)| *member == node)
    }

    /// Returns the members as voters.
    pub fn membership(&self) -> Membership {
        Membership::of_voters(self.members.iter().cloned())
    }

    /// Checks the invariants.
    pub fn checked(self) -> Result<Self, BadFirstMembership> {
        let bad = |reason: String| Err(BadFirstMembership(reason));
        let ids: BTreeSet<NodeId> = self.members.iter().map(|(node, _)| *node).collect();
        let addresses: BTreeSet<&str> = self.members.iter().map(|(_, at)| at.as_str()).collect();
        let count = self.members.len();
        if self.cluster.0 == 0 {
            return bad("cluster id 0".to_owned());
        }
        if count == 0 || count > MAX_MEMBERS {
            return bad(format!("{count} members"));
        }
        if ids.len() != count || addresses.len() != count || ids.contains(&NodeId(0)) {
            return bad("a member is zero or not distinct".to_owned());
        }
        let fits = |at: &str| {
            !at.is_empty() && at.len() <= MAX_ADDRESS_BYTES && !at.contains(char::is_whitespace)
        };
        if !addresses.iter().all(|at| fits(at)) {
            return bad("an address that is empty, too long or has blanks".to_owned());
        }
        match self.genesis.validate() {
            Ok(()) => Ok(self),
            Err(error) => bad(error.to_string()),
        }
    }
}

/// The record on the disk of a node, as far as it concerns its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The node's id: random, made with the disk, never changed.
    pub node: NodeId,
    /// The first membership that the node adopted. It is written before the log is initialised.
    pub first: Option<FirstMembership>,
    /// The cluster that the node belongs to, once it is known.
    pub cluster: Option<ClusterId>,
    /// True if the node's log was ever written.
    pub has_log: bool,
}

/// The way in which a node without a log starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstStart {
    /// The node adopted a first membership, and its start was interrupted: it initialises its stores with it.
    Continue(FirstMembership),
    /// The node heard from a group before: it waits until the group adds it.
    Join,
    /// The node knows nothing: it asks its peers, and decides by their answers.
    Ask,
}

impl NodeRecord {
    /// Returns the record of an empty disk.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            first: None,
            cluster: None,
            has_log: false,
        }
    }

    /// Decides how the node starts, if its log holds no entry and no snapshot.
    pub fn first_start(&self) -> FirstStart {
        match &self.first {
            Some(first) => FirstStart::Continue(first.clone()),
            None if self.cluster.is_some() || self.has_log => FirstStart::Join,
            None => FirstStart::Ask,
        }
    }

    /// Returns the answer to a peer. A node that knows its cluster counts as a member, even while its first snapshot is still on
    /// the way, so that no other group is formed with it.
    pub fn introduce(&self) -> Introduction {
        if self.has_log || self.first.is_some() || self.cluster.is_some() {
            Introduction::Member(self.first.clone())
        } else {
            Introduction::Empty(self.node)
        }
    }
}

/// Returns true if two nodes, each of a cluster or of none yet, must not talk: they know that they belong to different clusters.
pub fn are_strangers(own: Option<ClusterId>, theirs: Option<ClusterId>) -> bool {
    matches!((own, theirs), (Some(own), Some(theirs)) if own != theirs)
}

/// One initial peer's answer in a round of questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Introduction {
    /// The peer did not answer, or its answer is not valid.
    Silent,
    /// The peer has neither a group nor data.
    Empty(NodeId),
    /// The peer is or was a member of a group. Without a first membership it joined later.
    Member(Option<FirstMembership>),
}

/// The next action of a node that asked its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The group has been formed, and this node is one of its first members.
    Adopt(FirstMembership),
    /// A group without this node exists, or this node may not form one: wait until the group adds this node.
    Join,
    /// All initial peers are empty, and this node forms the group.
    Form(Vec<(NodeId, String)>),
    /// The node can't decide yet, for this reason.
    Wait(String),
}

/// Decides from the answers of the initial `peers`, each at its position. This node's own answer is among them. `own` is
/// this node's id.
///
/// A node forms a group only if *every* initial peer answered and is empty. Otherwise a node that lost its disk could help
/// to form a second group beside the one that it forgot. Of the empty nodes the one with the smallest address forms the
/// group, so that two nodes never do.
pub fn decide(own: NodeId, peers: &[String], answers: &[Introduction], bugs: Bugs) -> Decision {
    let mut beginnings = answers.iter().filter_map(|answer| match answer {
        Introduction::Member(first) => first.as_ref(),
        _ => None,
    });
    if let Some(first) = beginnings.find(|first| first.contains(own)) {
        return Decision::Adopt(first.clone());
    }
    let is_member = |answer: &Introduction| matches!(answer, Introduction::Member(_));
    if answers.iter().any(is_member) && !bugs.has(Bug::FounderFoundsAgain) {
        return Decision::Join;
    }
    let mut members = Vec::with_capacity(peers.len());
    let mut silent = Vec::new();
    for (peer, answer) in peers.iter().zip(answers) {
        match answer {
            Introduction::Empty(node) => members.push((*node, peer.clone())),
            Introduction::Member(_) => {}
            Introduction::Silent => silent.push(peer.as_str()),
        }
    }
    if !silent.is_empty() && !bugs.has(Bug::FormsWithoutSilent) {
        return Decision::Wait(format!("no answer yet from {}", silent.join(", ")));
    }
    let Some((_, own_address)) = members.iter().find(|(node, _)| *node == own).cloned() else {
        // This node is not an initial peer.
        return Decision::Join;
    };
    let distinct: BTreeSet<NodeId> = members.iter().map(|(node, _)| *node).collect();
    if distinct.len() != members.len() {
        return Decision::Wait("two addresses of --peers lead to the same node".to_owned());
    }
    match members.iter().map(|(_, address)| address).min() {
        Some(smallest) if *smallest == own_address => Decision::Form(members),
        Some(smallest) => Decision::Wait(format!("{smallest} will form the group")),
        None => Decision::Join,
    }
}

#[cfg(test)]
mod tests;
