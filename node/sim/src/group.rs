//! The Raft groups of a world, with their hosts and checkers.

use std::collections::BTreeMap;
use std::ops::Range;

use raft::{EntryId, MembershipChange, Term};
use replica::{Genesis, GroupKind, RequestId};
use types::{ClusterId, Gid};

use crate::invariants::InvariantChecker;
use crate::network::HostId;
use crate::scenario::Scenario;

/// The number of a group in its world.
pub(crate) type GroupId = usize;

/// A Raft group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) gid: Gid,
    pub(crate) genesis: Genesis,
    pub(crate) hosts: Range<HostId>,
    /// The number of hosts that are members at first. The others have empty disks.
    pub(crate) members: usize,
    pub(crate) invariants: InvariantChecker,
    /// The cluster of the group's first leader, in worlds with first starts.
    pub(crate) cluster: Option<ClusterId>,
    /// The number of volumes that the group lost.
    pub(crate) lost: u32,
    /// The last term in which the new leader could have been isolated.
    pub(crate) isolated: Term,
    /// The unanswered membership change: its id, the host that it was sent to, and the incarnation of that host.
    pub(crate) changing: Option<(RequestId, HostId, u64)>,
    /// The membership changes that were asked for and are not answered, with the host that was asked.
    pub(crate) asked: BTreeMap<RequestId, (HostId, MembershipChange)>,
    /// The entries of the changes that were answered as committed.
    pub(crate) changed: Vec<EntryId>,
}

impl Group {
    pub(crate) fn new(gid: Gid, genesis: Genesis, hosts: Range<HostId>, members: usize) -> Self {
        Self {
            gid,
            genesis,
            hosts,
            members,
            invariants: InvariantChecker::default(),
            cluster: None,
            lost: 0,
            isolated: Term(0),
            changing: None,
            asked: BTreeMap::new(),
            changed: Vec::new(),
        }
    }
}

/// Returns the groups of a scenario: the replica groups, then the controllers.
pub(crate) fn lay_out(scenario: &Scenario) -> Vec<Group> {
    let hosts = scenario.hosts;
    let Some(cluster) = &scenario.cluster else {
        let group = Group::new(Gid(1), scenario.genesis, 0..hosts, scenario.members);
        return vec![group];
    };
    let genesis = |kind| Genesis {
        kind,
        ..scenario.genesis
    };
    let mut groups = Vec::new();
    for (gid, number) in (1..).map(Gid).zip(0..cluster.groups) {
        let hosts = number * hosts..(number + 1) * hosts;
        let genesis = genesis(GroupKind::Shards);
        groups.push(Group::new(gid, genesis, hosts, scenario.members));
    }
    let first = cluster.groups * hosts;
    groups.push(Group::new(
        Gid::NONE,
        genesis(GroupKind::Controller),
        first..first + cluster.controllers,
        cluster.controllers,
    ));
    groups
}

/// Returns the number of hosts of all replica groups.
pub(crate) fn kv_hosts(groups: &[Group]) -> usize {
    let replicas = groups.iter().filter(|group| group.gid != Gid::NONE);
    replicas.map(|group| group.hosts.len()).sum()
}
