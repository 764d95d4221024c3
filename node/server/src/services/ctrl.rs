//! `shardkv.v1.Shardctrler`: the configuration centre, which every node serves so that a client can be pointed at any.
//!
//! Controllers answer themselves, or have their leader answer. Nodes of replica groups pass everything on to the
//! controllers but `Watch`, which they serve from what they know. A store without controllers tells of the one group that it is.

use std::sync::Arc;

use api::v1::shardctrler_server::Shardctrler;
use api::v1::{self, ConfigChanged, ErrorDetail, QueryResponse};
use api::{config_to_wire, errors};
use shardctrler::{GroupKind, Response as Outcome};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{session, watch};
use crate::configs::{Known, synthetic};
use crate::convert::{ctrl, kv};
use crate::forward::{self, ControllerRequest, is_elsewhere, is_forbidden};
use crate::hub::Hub;
use crate::machine::MachineRequest;

/// The service.
pub(crate) struct CtrlService {
    hub: Arc<Hub>,
}

impl CtrlService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// Asks the own machine, or whoever knows.
    async fn answer<A: ControllerRequest>(
        &self,
        request: Request<A>,
        convert: impl FnOnce(A) -> Result<MachineRequest, ErrorDetail>,
        read: impl FnOnce(&Hub, Outcome) -> Option<A::Answer>,
        alone: impl FnOnce(&Hub) -> Result<A::Answer, ErrorDetail>,
    ) -> Result<Response<A::Answer>, Status> {
        let forbidden = is_forbidden(request.metadata());
        let asked = request.into_inner();
        let answer = match self.hub.kind() {
            GroupKind::Standalone => alone(&self.hub),
            GroupKind::Shards if forbidden => Err(no_controller(&self.hub)),
            GroupKind::Shards => forward::controllers(&self.hub, asked).await,
            GroupKind::Controller => {
                let again = (!forbidden).then(|| asked.clone());
                match self.own(convert(asked), read).await {
                    Err(error) if is_elsewhere(&error) => match again {
                        Some(again) => forward::controllers(&self.hub, again).await,
                        None => Err(error),
                    },
                    answer => answer,
                }
            }
        };
        answer
            .map(Response::new)
            .map_err(|error| self.hub.reject(&error))
    }

    async fn own<T>(
        &self,
        request: Result<MachineRequest, ErrorDetail>,
        read: impl FnOnce(&Hub, Outcome) -> Option<T>,
    ) -> Result<T, ErrorDetail> {
        let hub = &self.hub;
        let result = hub.ask(request?).await?;
        let outcome = ctrl::outcome(result, |node| hub.address_or_empty(node))?;
        read(hub, outcome).ok_or_else(kv::mismatch)
    }

    async fn change<A: ControllerRequest<Answer = ConfigChanged>>(
        &self,
        request: Request<A>,
        convert: impl FnOnce(A) -> Result<MachineRequest, ErrorDetail>,
    ) -> Result<Response<ConfigChanged>, Status> {
        let changed = |_: &Hub, outcome| match outcome {
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
        let read = |hub: &Hub, outcome| match outcome {
            Outcome::Config(answer) => Some(ctrl::query_response(&answer, hub.identity.cluster()?)),
            _ => None,
        };
        self.answer(request, ctrl::query, read, |hub| alone(hub, num))
            .await
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<ConfigChanged>, Status> {
        self.change(request, ctrl::join).await
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

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        match watch::open(&self.hub, request.get_ref()).await {
            Ok(stream) => Ok(Response::new(stream)),
            Err(error) => Err(self.hub.reject(&error)),
        }
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        let read = |_: &Hub, outcome| match outcome {
            Outcome::Reported => Some(v1::ReportResponse {}),
            _ => None,
        };
        let own = self.hub.identity.cluster();
        let convert = |wire| ctrl::report(wire, own);
        self.answer(request, convert, read, |_| Err(no_controllers()))
            .await
    }

    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let forbidden = is_forbidden(request.metadata());
        let hub = &self.hub;
        let opened = match hub.kind() {
            GroupKind::Standalone => Err(no_controllers()),
            GroupKind::Shards if forbidden => Err(no_controller(hub)),
            GroupKind::Shards => forward::controllers(hub, request.into_inner()).await,
            GroupKind::Controller => match session::open(hub).await {
                Err(error) if is_elsewhere(&error) && !forbidden => {
                    forward::controllers(hub, request.into_inner()).await
                }
                opened => opened,
            },
        };
        opened
            .map(Response::new)
            .map_err(|error| hub.reject(&error))
    }
}

/// What those are told who don't want to be passed on.
fn no_controller(hub: &Hub) -> ErrorDetail {
    let controllers = hub.options.controllers.join(", ");
    errors::conflict(format!(
        "this node is no controller: ask one of {controllers}"
    ))
}

fn no_controllers() -> ErrorDetail {
    errors::conflict(
        "this is a store of one group without controllers: its shards can't move. Start groups with --role shards, and \
         controllers with --role controller",
    )
}

/// The configuration of a store without controllers.
fn alone(hub: &Hub, num: i64) -> Result<QueryResponse, ErrorDetail> {
    let Some(Known { cluster, config }) = synthetic(hub) else {
        return Err(errors::unavailable("the group isn't known yet", 100));
    };
    if num != -1 && num != i64::try_from(config.num().0).unwrap_or(-1) {
        let what = format!("there is no configuration {num}: a store of one group has the one");
        return Err(errors::not_found(what));
    }
    let (latest, oldest) = (config.num().0, config.num().0);
    let progress = config.groups().keys().map(|gid| v1::GroupProgress {
        gid: gid.0,
        settled: latest,
        left_in: 0,
    });
    Ok(QueryResponse {
        progress: progress.collect(),
        config: Some(config_to_wire(&config)),
        latest,
        oldest,
        cluster_id: cluster.0,
    })
}
