//! `shardkv.v1.Admin`: operators' requests to one node.

use std::sync::Arc;

use api::errors;
use api::v1::admin_server::Admin;
use api::v1::{self, ErrorDetail, MemberStatus};
use raft::{MemberKind, ProgressState, Role};
use replica::{Answer, Request as ReplicaRequest};
use shardkv::{CopyCursor, GroupKind, Ownership, ShardState};
use storage::Disk;
use tonic::{Request, Response, Status};
use types::NodeId;

use crate::bootstrap::genesis::kind_to_wire;
use crate::convert::kv;
use crate::lifecycle::{Phase, View};
use crate::machine::{MachineRequest, Response as MachineResponse};
use crate::metrics::Metrics;
use crate::mover::SharedMover;
use crate::peers::Peers;
use crate::readiness::ReadinessProbe;
use crate::reads::Readers;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;
use crate::services::shards;

/// The service.
pub(crate) struct AdminService {
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) mover: Arc<SharedMover>,
    pub(crate) readiness: Arc<ReadinessProbe>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readers: Arc<Readers>,
    pub(crate) disk: Disk,
}

impl AdminService {
    async fn ask(&self, request: MachineRequest) -> Result<Answer<MachineResponse>, ErrorDetail> {
        self.replica
            .ask(request)
            .await?
            .map_err(|refusal| kv::refused(&refusal, |node| self.replica.address_or_empty(node)))
    }

    async fn transfer(&self, to: u64) -> Result<v1::TransferLeadershipResponse, ErrorDetail> {
        let target = (to != 0).then_some(NodeId(to));
        match self.ask(ReplicaRequest::TransferLeadership(target)).await? {
            Answer::LeadershipTransferred(leader) => Ok(v1::TransferLeadershipResponse {
                leader_id: leader.0,
            }),
            _ => Err(kv::mismatch()),
        }
    }

    async fn change(
        &self,
        request: v1::ChangeMembershipRequest,
    ) -> Result<v1::ChangeMembershipResponse, ErrorDetail> {
        let change = kv::membership_change(request)?;
        match self.ask(ReplicaRequest::ChangeMembership(change)).await? {
            Answer::MembershipChanged(index) => Ok(v1::ChangeMembershipResponse { index: index.0 }),
            _ => Err(kv::mismatch()),
        }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn shards(
        &self,
        request: Request<v1::ShardsRequest>,
    ) -> Result<Response<v1::ShardsResponse>, Status> {
        let sources = shards::Sources {
            replica: &self.replica,
            readers: &self.readers,
            routing: &self.routing,
            mover: &self.mover,
        };
        match shards::shards(&sources, request.get_ref()).await {
            Ok(response) => Ok(Response::new(response)),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let disk = self.disk.clone();
        // The sizes are read from the file system.
        let measured = tokio::task::spawn_blocking(move || (disk.sizes(), disk.space()));
        let (sizes, space) = measured
            .await
            .map_err(|error| self.metrics.reject(&errors::unavailable(error, 100)))?;
        let mut response = self.node_status(&self.replica.view());
        response.incoming_bytes = incoming_bytes(&self.routing.ownership());
        response.log_bytes = sizes.log_bytes;
        response.state_bytes = sizes.state_bytes;
        // A disk that can't be measured is reported as one without space.
        if let Ok(space) = space {
            response.disk_free_bytes = space.free_bytes;
            response.disk_total_bytes = space.total_bytes;
            response.disk_reserve_bytes = space.reserve_bytes;
        }
        Ok(Response::new(response))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        match self.transfer(request.into_inner().node_id).await {
            Ok(response) => Ok(Response::new(response)),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }

    async fn change_membership(
        &self,
        request: Request<v1::ChangeMembershipRequest>,
    ) -> Result<Response<v1::ChangeMembershipResponse>, Status> {
        match self.change(request.into_inner()).await {
            Ok(response) => Ok(Response::new(response)),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }
}

/// Returns the bytes that have arrived of shards on their way to the group. What changed while a shard was copied is left out: a copy that
/// only follows its source makes no progress.
fn incoming_bytes(ownership: &Ownership) -> u64 {
    let planned = ownership.planned.keys();
    let copied = planned.filter_map(|shard| match ownership.state(*shard)? {
        ShardState::Copying { cursor, bytes, .. } => Some((cursor, *bytes)),
        _ => None,
    });
    let copied = copied.filter(|(cursor, _)| matches!(cursor, CopyCursor::Base(_)));
    let owned = ownership.shards.unfinished_shards();
    let owned = owned.filter_map(|(_, shard)| match &shard.state {
        ShardState::Pulling { bytes, .. } | ShardState::Completing { bytes, .. } => Some(*bytes),
        _ => None,
    });
    let all = copied.map(|(_, bytes)| bytes).chain(owned);
    all.fold(0, u64::saturating_add)
}

impl AdminService {
    fn node_status(&self, view: &View) -> v1::StatusResponse {
        let mut response = v1::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id: self
                .peers
                .identity()
                .cluster()
                .map_or_else(String::new, |cluster| cluster.to_string()),
            gid: self.routing.gid().0,
            node_id: self.peers.node().0,
            address: self.peers.address().to_owned(),
            shards: view.genesis.map_or(0, |genesis| genesis.shards),
            trouble: self.trouble(view),
            ..v1::StatusResponse::default()
        };
        self.set_config(&mut response);
        let Some(status) = &view.status else {
            return response;
        };
        let role = match status.role {
            Role::Leader => v1::Role::Leader,
            Role::Candidate => v1::Role::Candidate,
            Role::PreCandidate => v1::Role::PreCandidate,
            Role::Follower if status.membership.is_voter(status.node) => v1::Role::Follower,
            Role::Follower => v1::Role::Learner,
        };
        response.role = role.into();
        response.term = status.term.0;
        if let Some(leader) = status.leader {
            response.leader_id = leader.0;
            response.leader_address = self.peers.address_or_empty(leader);
        }
        response.commit_index = status.commit_index.0;
        response.last_applied = status.last_applied.0;
        response.first_index = status.compacted.index.next().0;
        response.last_index = status.last_index.0;
        response.disk_full = status.disk_low;
        response.members = members(status);
        response
    }

    /// Sets the kind of the group and the number of its configuration.
    fn set_config(&self, response: &mut v1::StatusResponse) {
        let kind = self.routing.kind();
        response.set_kind(kind_to_wire(kind));
        match kind {
            GroupKind::Standalone => {}
            GroupKind::Shards => {
                let ownership = self.routing.ownership();
                response.config_num = ownership.config.0;
                response.settled = ownership.settled().0;
                let controllers = self.routing.controllers();
                response.controllers = controllers.map_or(0, |cluster| cluster.0);
            }
            GroupKind::Controller => {
                let known = self.routing.configs().known();
                response.config_num = known.map_or(0, |known| known.config.num().0);
            }
        }
    }

    /// Returns the reason why the node can't serve, or its group takes no part or refuses the controllers, or an empty string.
    fn trouble(&self, view: &View) -> String {
        let plain = match (view.phase, &view.status) {
            (Phase::Starting, _) | (_, None) => "starting: looking for the group",
            (Phase::Stopping | Phase::Draining | Phase::Stopped, _) => "stopping",
            (Phase::Running, Some(status)) if status.membership.get(status.node).is_none() => {
                "waiting to be added to the group"
            }
            (Phase::Running, Some(status)) if status.leader.is_none() => "no leader is known",
            (Phase::Running, Some(_)) => {
                let unready = self.readiness.check().err();
                let unready = unready.map(|why| why.to_string());
                let outside = || outside(&self.routing.ownership());
                let refused = || self.routing.refused_controllers();
                let refused = || refused().map(|strangers| strangers.to_string());
                return unready
                    .or_else(outside)
                    .or_else(refused)
                    .unwrap_or_default();
            }
        };
        plain.to_owned()
    }
}

/// Returns why the group takes no part although the configuration has its gid: it was drained or forgotten, and the gid joined again
/// with other nodes, or with these nodes under new addresses only, which the group can't tell apart.
fn outside(ownership: &Ownership) -> Option<String> {
    let (former, now) = ownership.replaced()?;
    Some(format!(
        "takes no part: {} was drained or forgotten, and joined again without any of the addresses that these nodes had ({}), as {}. If \
         these nodes are meant, let it leave, and join with one of the former addresses",
        ownership.gid,
        former.addresses.join(", "),
        now.addresses.join(", "),
    ))
}

fn members(status: &replica::Status) -> Vec<MemberStatus> {
    let progress = |node: NodeId| {
        status
            .progress
            .iter()
            .find(|(follower, _, _)| *follower == node)
    };
    status
        .membership
        .members()
        .map(|(node, member)| {
            let (match_index, state) = match progress(node) {
                Some((_, match_index, state)) => (match_index.0, name(*state)),
                None if node == status.node && status.role == Role::Leader => {
                    (status.last_index.0, "leader")
                }
                None => (0, ""),
            };
            MemberStatus {
                node_id: node.0,
                address: member.address.clone(),
                voter: member.kind == MemberKind::Voter,
                match_index,
                progress: state.to_owned(),
            }
        })
        .collect()
}

fn name(state: ProgressState) -> &'static str {
    match state {
        ProgressState::Probe => "probe",
        ProgressState::Replicate => "replicate",
        ProgressState::Snapshot => "snapshot",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::{Gid, Group, Incarnation};

    use super::*;

    #[test]
    fn a_group_that_joined_again_under_new_addresses_says_why_it_takes_no_part() {
        let group = |incarnation: u64, addresses: &[&str]| Group {
            addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
            incarnation: Incarnation(incarnation),
            leaving: false,
        };
        let mut ownership = Ownership {
            gid: Gid(2),
            groups: BTreeMap::from([(Gid(2), group(9, &["c:1", "d:1"]))]).into(),
            ..Ownership::default()
        };
        assert_eq!(outside(&ownership), None, "a member");
        ownership.former = Some(group(5, &["a:1", "b:1"]));
        let told = outside(&ownership).unwrap();
        assert!(told.contains("g2 was drained or forgotten"), "{told}");
        assert!(told.contains("(a:1, b:1), as c:1, d:1"), "{told}");
        ownership.groups = BTreeMap::new().into();
        assert_eq!(outside(&ownership), None, "drained, and nobody has its gid");
    }
}
