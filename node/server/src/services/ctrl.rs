//! `shardkv.v1.Shardctrler`: the configuration service. Every node serves it, so that a client can use any node.
//!
//! A controller answers by itself, or forwards to its leader. Nodes of replica groups forward everything to the controllers
//! except `Watch`, which they serve from their own copy. A store without controllers returns its one group.

use std::sync::Arc;

use api::v1::shardctrler_server::Shardctrler;
use api::v1::{self, ConfigChanged, ErrorDetail, QueryResponse};
use api::{config_to_wire, errors};
use raft::Role;
use shardctrler::{CtrlError, GroupKind, Response as Outcome};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::header::USER_AGENT;
use tonic::{Request, Response, Status};
use types::{Gid, ShardId};

pub(crate) use super::cuts::Cuts;
pub(crate) use super::proof::Proofs;
use super::session;
use super::watch::Watches;
use crate::configs::{Known, standalone};
use crate::convert::{ctrl, kv};
use crate::forward::{self, ControllerRequest, Forwarder, is_elsewhere, is_forbidden};
use crate::lifecycle::Lifecycle;
use crate::machine::MachineRequest;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::replica_handle::ReplicaHandle;
use crate::reserve::calls::is_nodes;
use crate::routing::Routing;

/// The service.
pub(crate) struct CtrlService {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) watches: Watches,
    pub(crate) cuts: Cuts,
    pub(crate) proofs: Proofs,
    /// The addresses of the controllers, for error texts.
    pub(crate) controllers: Vec<String>,
}

impl CtrlService {
    /// Answers from the own state machine, or forwards the request.
    async fn answer<A: ControllerRequest>(
        &self,
        request: Request<A>,
        convert: impl FnOnce(A) -> Result<MachineRequest, ErrorDetail>,
        read: impl FnOnce(&Self, Outcome) -> Option<A::Answer>,
        alone: impl FnOnce(&Self) -> Result<A::Answer, ErrorDetail>,
    ) -> Result<Response<A::Answer>, Status> {
        let forbidden = is_forbidden(request.metadata());
        let asked = request.into_inner();
        let answer = match self.routing.kind() {
            GroupKind::Standalone => alone(self),
            GroupKind::Shards if forbidden => Err(self.not_a_controller()),
            GroupKind::Shards => forward::controllers(&self.forwarder, asked).await,
            GroupKind::Controller => {
                let forwardable = (!forbidden).then(|| asked.clone());
                match self.own(convert(asked), read).await {
                    Err(error) if is_elsewhere(&error) => match forwardable {
                        Some(forwardable) => {
                            forward::controllers(&self.forwarder, forwardable).await
                        }
                        None => Err(error),
                    },
                    answer => answer,
                }
            }
        };
        answer
            .map(Response::new)
            .map_err(|error| self.metrics.reject(&error))
    }

    async fn own<T>(
        &self,
        request: Result<MachineRequest, ErrorDetail>,
        read: impl FnOnce(&Self, Outcome) -> Option<T>,
    ) -> Result<T, ErrorDetail> {
        let replica = &self.replica;
        let result = replica.ask(request?).await?;
        let outcome = ctrl::outcome(result, |node| replica.address_or_empty(node));
        let outcome = outcome.map_err(|error| self.forwarder.births.complete(error))?;
        read(self, outcome).ok_or_else(kv::mismatch)
    }

    async fn change<A: ControllerRequest<Answer = ConfigChanged>>(
        &self,
        request: Request<A>,
        convert: impl FnOnce(A) -> Result<MachineRequest, ErrorDetail>,
    ) -> Result<Response<ConfigChanged>, Status> {
        let changed = |_: &Self, outcome| match outcome {
            Outcome::Changed {
                num,
                changed,
                moved_shards,
            } => Some(ConfigChanged {
                num: num.0,
                changed,
                moved_shards,
            }),
            _ => None,
        };
        self.answer(request, convert, changed, |_| Err(no_controllers()))
            .await
    }
}

#[tonic::async_trait]
impl Shardctrler for CtrlService {
    type WatchStream = ReceiverStream<Result<v1::WatchResponse, Status>>;

    async fn query(
        &self,
        request: Request<v1::QueryRequest>,
    ) -> Result<Response<QueryResponse>, Status> {
        let num = request.get_ref().num;
        let read = |service: &Self, outcome| match outcome {
            Outcome::Config(answer) => {
                let cluster = service.peers.identity().cluster()?;
                Some(ctrl::query_response(&answer, cluster))
            }
            _ => None,
        };
        self.answer(request, ctrl::query, read, |service| {
            service.standalone(num)
        })
        .await
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<ConfigChanged>, Status> {
        let proven = match self.routing.kind() {
            GroupKind::Controller => self.prove(request.get_ref()).await,
            // These forward or refuse the request.
            GroupKind::Shards | GroupKind::Standalone => Ok(()),
        };
        let convert = |wire| proven.and_then(|()| ctrl::join(wire));
        self.change(request, convert).await
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<ConfigChanged>, Status> {
        self.change(request, |wire| ctrl::leave(&wire)).await
    }

    async fn r#move(
        &self,
        request: Request<v1::MoveRequest>,
    ) -> Result<Response<ConfigChanged>, Status> {
        self.change(request, |wire| ctrl::move_shard(&wire)).await
    }

    async fn forget(
        &self,
        request: Request<v1::ForgetRequest>,
    ) -> Result<Response<v1::ForgetResponse>, Status> {
        let read = |_: &Self, outcome| match outcome {
            Outcome::Forgotten { num, loss } => Some(ctrl::forget_response(num, &loss)),
            _ => None,
        };
        let convert = |wire| ctrl::forget(&wire);
        self.answer(request, convert, read, |_| Err(no_controllers()))
            .await
    }

    async fn retire(
        &self,
        request: Request<v1::RetireRequest>,
    ) -> Result<Response<v1::RetireResponse>, Status> {
        let read = |_: &Self, outcome| match outcome {
            Outcome::Retired => Some(v1::RetireResponse {}),
            _ => None,
        };
        let convert = |wire| ctrl::retire(&wire);
        self.answer(request, convert, read, |_| Err(no_controllers()))
            .await
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let agent = request.metadata().get(USER_AGENT.as_str());
        let of_node = agent.is_some_and(|agent| is_nodes(agent.as_bytes()));
        match self.watches.open(request.get_ref(), of_node).await {
            Ok(stream) => Ok(Response::new(stream)),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        let read = |_: &Self, outcome| match outcome {
            Outcome::Reported => Some(v1::ReportResponse {}),
            _ => None,
        };
        let own = self.peers.identity().cluster();
        let convert = |wire| ctrl::report(wire, own);
        self.answer(request, convert, read, |_| Err(no_controllers()))
            .await
    }

    async fn cut(
        &self,
        mut request: Request<v1::CutRequest>,
    ) -> Result<Response<v1::CutResponse>, Status> {
        let read = |_: &Self, outcome| match outcome {
            Outcome::Cut { num, cut } => Some(v1::CutResponse { num: num.0, cut }),
            _ => None,
        };
        let own = self.peers.identity().cluster();
        let convert = |wire| ctrl::cut(&wire, own);
        if self.leads_controllers() {
            let checked = convert(request.get_ref().clone()).and_then(|_| {
                // The state machine refuses all or nothing, and other groups' reports join this one.
                self.check_shards(&request.get_ref().cuts)
            });
            checked.map_err(|error| self.metrics.reject(&error))?;
            let cuts = std::mem::take(&mut request.get_mut().cuts);
            let next = self.cuts.next(cuts).await;
            request.get_mut().cuts = next.map_err(|error| self.metrics.reject(&error))?;
            if request.get_ref().cuts.is_empty() {
                let known = self.routing.configs().known();
                let num = known.map_or(0, |known| known.config.num().0);
                return Ok(Response::new(v1::CutResponse { num, cut: 0 }));
            }
        }
        self.answer(request, convert, read, |_| Err(no_controllers()))
            .await
    }

    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let forbidden = is_forbidden(request.metadata());
        let forwarder = &self.forwarder;
        let asked = request.into_inner();
        let opened = match self.routing.kind() {
            GroupKind::Standalone => Err(no_controllers()),
            GroupKind::Shards if forbidden => Err(self.not_a_controller()),
            GroupKind::Shards => forward::controllers(forwarder, asked).await,
            GroupKind::Controller => {
                match session::open(&self.replica, &forwarder.births, asked).await {
                    Err(error) if is_elsewhere(&error) && !forbidden => {
                        forward::controllers(forwarder, asked).await
                    }
                    opened => opened,
                }
            }
        };
        opened
            .map(Response::new)
            .map_err(|error| self.metrics.reject(&error))
    }
}

impl CtrlService {
    /// Returns true if this node leads the controllers.
    fn leads_controllers(&self) -> bool {
        let view = self.lifecycle.view();
        let status = view.status.as_ref();
        self.routing.kind() == GroupKind::Controller
            && status.is_some_and(|status| status.role == Role::Leader)
    }

    /// Refuses groups that don't exist, unless the caller takes care of that. A node that doesn't lead leaves it to the leader.
    async fn prove(&self, join: &v1::JoinRequest) -> Result<(), ErrorDetail> {
        if join.force {
            return Ok(());
        }
        let latest = ctrl::query(v1::QueryRequest { num: -1 });
        let read = |_: &Self, outcome| match outcome {
            Outcome::Config(answer) => Some(answer),
            _ => None,
        };
        let answer = self.own(latest, read).await?;
        let cluster = self.peers.identity().cluster().ok_or_else(kv::mismatch)?;
        let retired = |gid| answer.drained.get(&gid).is_some_and(|it| it.retired);
        if join.groups.iter().any(|group| retired(Gid(group.gid))) {
            // The state machine refuses it, whether or not it exists.
            return Ok(());
        }
        let proof = self.proofs.prove(&join.groups, cluster, &answer.config);
        proof.await
    }

    /// Refuses a report of a shard that doesn't exist.
    fn check_shards(&self, cuts: &[v1::ShardCut]) -> Result<(), ErrorDetail> {
        let genesis = self.lifecycle.view().genesis;
        let shards = genesis.map_or(0, |genesis| genesis.shards);
        match cuts.iter().find(|cut| cut.shard >= shards) {
            None => Ok(()),
            Some(cut) => {
                let shard = ShardId(cut.shard);
                Err(errors::not_found(CtrlError::NoShard { shard, shards }))
            }
        }
    }

    /// Returns the error for a call that must not be forwarded to the controllers.
    fn not_a_controller(&self) -> ErrorDetail {
        let controllers = self.controllers.join(", ");
        errors::conflict(format!(
            "this node is not a controller: send the request to one of {controllers}"
        ))
    }

    /// Returns the configuration of a store without controllers.
    fn standalone(&self, num: i64) -> Result<QueryResponse, ErrorDetail> {
        let Some(Known { cluster, config }) = standalone::config(&self.lifecycle, &self.peers)
        else {
            return Err(errors::unavailable(
                "this node does not know its group yet",
                100,
            ));
        };
        if num != -1 && num != i64::try_from(config.num().0).unwrap_or(-1) {
            let what = format!(
                "configuration {num} does not exist: a store without controllers has only configuration 1"
            );
            return Err(errors::not_found(what));
        }
        let (latest, oldest) = (config.num().0, config.num().0);
        let progress = config.groups().keys().map(|gid| v1::GroupProgress {
            gid: gid.0,
            settled: latest,
            due: latest,
        });
        Ok(QueryResponse {
            progress: progress.collect(),
            config: Some(config_to_wire(&config)),
            latest,
            oldest,
            cluster_id: cluster.0,
            drained: Vec::new(),
        })
    }
}

fn no_controllers() -> ErrorDetail {
    errors::conflict(
        "this is a store of one group without controllers: its shards can't move. Start groups with --role shards, and \
         controllers with --role controller",
    )
}
