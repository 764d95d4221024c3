//! The members of a group, voters and learners, and the one-at-a-time changes between memberships.
//!
//! # Invariants
//!
//! - A change alters the set of *voters* by at most one, so any majority before it and any majority
//!   after it share a member (thesis §4.1). So one step can't swap two members.
//! - The set of voters is never empty.
//! - A log entry carries the whole membership, so a truncated change needs no inverse: the previous
//!   membership is in force again.

use std::collections::BTreeMap;
use std::fmt;

pub use types::MAX_ADDRESS_BYTES;
use types::{DecodeError, NodeId, Reader, Writer};

/// The most members, learners included, that a group may have.
pub const MAX_MEMBERS: usize = 32;

/// The kind of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberKind {
    /// Counts towards a quorum and may lead.
    Voter,
    /// Receives the log, counts towards no quorum and may not lead.
    Learner,
}

/// A member's address and kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The member's network address; opaque to Raft.
    pub address: String,
    /// Voter or learner.
    pub kind: MemberKind,
    /// The member at the same address whose lost disk this learner replaces. When the learner has caught up, the leader
    /// removes that member and makes the learner a voter.
    pub replaces: Option<NodeId>,
}

/// The members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    members: BTreeMap<NodeId, Member>,
}

/// One step from a membership to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Adds a member that receives the log and does not vote.
    AddLearner {
        /// The new learner's id.
        node: NodeId,
        /// The new learner's address.
        address: String,
    },
    /// Adds a learner at the address of a member whose disk was lost, to replace it. Learners at this address leave in the
    /// same step: their disks were lost, too, and learners count for no quorum.
    AddReplacement {
        /// The new learner's id.
        node: NodeId,
        /// The member that the learner replaces. If that is a learner which replaces a voter, the new one replaces the voter.
        replaces: NodeId,
    },
    /// Makes a learner a voter.
    Promote {
        /// The learner's id.
        node: NodeId,
    },
    /// Removes a voter or a learner.
    Remove {
        /// The member's id.
        node: NodeId,
    },
    /// Removes a voter or a learner, even if the voters that answer the leader are no quorum then, and the group stops until
    /// others return.
    RemoveWithoutLiveQuorum {
        /// The member's id.
        node: NodeId,
    },
    /// Changes a member's address.
    Readdress {
        /// The member's id.
        node: NodeId,
        /// The new address.
        address: String,
    },
}

/// The reason that a membership change contradicts the membership in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The node is a member already.
    #[error("{0} is a member already")]
    AlreadyMember(NodeId),
    /// The node is not a member.
    #[error("{0} is not a member")]
    NotMember(NodeId),
    /// The node is a voter already.
    #[error("{0} is a voter already")]
    AlreadyVoter(NodeId),
    /// The change would remove the last voter.
    #[error("{0} is the last voter and can't be removed")]
    LastVoter(NodeId),
    /// The group has the most members that it may have.
    #[error("a group has at most {MAX_MEMBERS} members")]
    TooMany,
    /// The address is empty or too long.
    #[error("an address has 1 to {MAX_ADDRESS_BYTES} bytes")]
    BadAddress,
    /// The node id is zero.
    #[error("node id 0 is not a node")]
    ZeroId,
}

impl Membership {
    /// Returns the empty membership of a node that has not joined a group.
    pub const fn nobody() -> Self {
        Self {
            members: BTreeMap::new(),
        }
    }

    /// Returns a first membership in which all members are voters.
    pub fn of_voters<A: Into<String>>(voters: impl IntoIterator<Item = (NodeId, A)>) -> Self {
        let member = |address: A| Member {
            address: address.into(),
            kind: MemberKind::Voter,
            replaces: None,
        };
        Self {
            members: voters
                .into_iter()
                .map(|(node, address)| (node, member(address)))
                .collect(),
        }
    }

    /// Returns all members, by id.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().map(|(node, member)| (*node, member))
    }

    /// Returns the voters, by id.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> {
        self.members()
            .filter(|(_, member)| member.kind == MemberKind::Voter)
            .map(|(node, _)| node)
    }

    /// Returns the member `node`.
    pub fn get(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    /// Returns true if `node` is a voter.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.get(node)
            .is_some_and(|member| member.kind == MemberKind::Voter)
    }

    /// Returns the number of voters that make a quorum: more than half.
    pub fn quorum(&self) -> usize {
        self.voters().count() / 2 + 1
    }

    /// Returns true if the voters among `nodes` make a quorum. An empty membership never has one.
    pub fn has_quorum(&self, nodes: impl Fn(NodeId) -> bool) -> bool {
        self.voters().filter(|node| nodes(*node)).count() >= self.quorum()
    }

    /// Returns true if there are no members, as on a node that was not initialised.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns the membership after `change`.
    pub fn apply(&self, change: &MembershipChange) -> Result<Self, MembershipError> {
        let mut next = self.clone();
        match change {
            MembershipChange::AddLearner { node, address } => {
                next.add_learner(*node, address, None)?;
            }
            MembershipChange::AddReplacement { node, replaces } => {
                let old = self
                    .get(*replaces)
                    .ok_or(MembershipError::NotMember(*replaces))?;
                let voter = match old.kind {
                    MemberKind::Voter => Some(*replaces),
                    MemberKind::Learner => old.replaces,
                };
                if self.members.contains_key(node) {
                    return Err(MembershipError::AlreadyMember(*node));
                }
                next.members.retain(|_, member| {
                    member.kind == MemberKind::Voter || member.address != old.address
                });
                next.add_learner(*node, &old.address, voter)?;
            }
            MembershipChange::Promote { node } => next.promote(*node)?,
            MembershipChange::Remove { node }
            | MembershipChange::RemoveWithoutLiveQuorum { node } => next.remove(*node)?,
            MembershipChange::Readdress { node, address } => {
                check_address(address)?;
                let member = next
                    .members
                    .get_mut(node)
                    .ok_or(MembershipError::NotMember(*node))?;
                member.address.clone_from(address);
            }
        }
        Ok(next)
    }

    fn add_learner(
        &mut self,
        node: NodeId,
        address: &str,
        replaces: Option<NodeId>,
    ) -> Result<(), MembershipError> {
        check_address(address)?;
        if node.0 == 0 {
            return Err(MembershipError::ZeroId);
        }
        if self.members.contains_key(&node) {
            return Err(MembershipError::AlreadyMember(node));
        }
        if self.members.len() >= MAX_MEMBERS {
            return Err(MembershipError::TooMany);
        }
        let member = Member {
            address: address.to_owned(),
            kind: MemberKind::Learner,
            replaces,
        };
        self.members.insert(node, member);
        Ok(())
    }

    fn promote(&mut self, node: NodeId) -> Result<(), MembershipError> {
        let member = self
            .members
            .get_mut(&node)
            .ok_or(MembershipError::NotMember(node))?;
        if member.kind == MemberKind::Voter {
            return Err(MembershipError::AlreadyVoter(node));
        }
        member.kind = MemberKind::Voter;
        member.replaces = None;
        Ok(())
    }

    fn remove(&mut self, node: NodeId) -> Result<(), MembershipError> {
        let member = self
            .members
            .get(&node)
            .ok_or(MembershipError::NotMember(node))?;
        if member.kind == MemberKind::Voter && self.voters().count() == 1 {
            return Err(MembershipError::LastVoter(node));
        }
        self.members.remove(&node);
        Ok(())
    }

    pub(crate) fn encoded_size(&self) -> usize {
        self.members
            .values()
            .map(|member| member.address.len() + 16)
            .sum()
    }

    /// Appends the membership to a record.
    pub fn encode(&self, out: &mut Writer) {
        out.number(self.members.len() as u64);
        for (node, member) in &self.members {
            out.number(node.0);
            match (member.kind, member.replaces) {
                (MemberKind::Voter, _) => out.byte(0),
                (MemberKind::Learner, None) => out.byte(1),
                (MemberKind::Learner, Some(old)) => out.byte(2).number(old.0),
            };
            out.bytes(member.address.as_bytes());
        }
    }

    /// Decodes the output of [`Membership::encode`].
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let count = input.count("members")?;
        if count > MAX_MEMBERS {
            return Err(DecodeError::OutOfRange("members"));
        }
        let mut members = BTreeMap::new();
        for _ in 0..count {
            let node = NodeId(input.number("member id")?);
            members.insert(node, Member::decode(input)?);
        }
        Ok(Self { members })
    }
}

impl Member {
    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let (kind, replaces) = match input.byte("member kind")? {
            0 => (MemberKind::Voter, None),
            1 => (MemberKind::Learner, None),
            2 => (
                MemberKind::Learner,
                Some(NodeId(input.number("replaced member")?)),
            ),
            value => {
                return Err(DecodeError::Unknown {
                    what: "member kind",
                    value: value.into(),
                });
            }
        };
        let address = String::from_utf8(input.bytes("member address")?.to_vec())
            .map_err(|_| DecodeError::OutOfRange("member address"))?;
        Ok(Self {
            address,
            kind,
            replaces,
        })
    }
}

fn check_address(address: &str) -> Result<(), MembershipError> {
    if address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
        return Err(MembershipError::BadAddress);
    }
    Ok(())
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (node, member)) in self.members().enumerate() {
            let gap = if position == 0 { "" } else { " " };
            let mark = if member.kind == MemberKind::Learner {
                "?"
            } else {
                ""
            };
            write!(f, "{gap}{node}{mark}")?;
        }
        Ok(())
    }
}
