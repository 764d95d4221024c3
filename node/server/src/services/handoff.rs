//! `shardkv.v1.Handoff`: the source's side of moving shards to another group.

use std::sync::Arc;

use api::errors;
use api::v1::handoff_server::Handoff;
use api::v1::{self, ErrorDetail};
use shardkv::{Cursor, GroupKind, Query, Response as Outcome, Step};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use types::{ClusterId, ConfigNum, ShardId};

use crate::convert::kv;
use crate::machine::MachineRequest;
use crate::metrics::Metrics;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The maximum number of chunks of shards that are read and sent at the same time.
const MAX_PULLS: usize = 64;
/// The maximum number of deletes at the same time, for all groups.
const MAX_DELETES: usize = 1_024;

/// The service.
pub(crate) struct HandoffService {
    replica: Arc<ReplicaHandle>,
    routing: Arc<Routing>,
    metrics: Arc<Metrics>,
    pulls: Semaphore,
    deletes: Semaphore,
}

impl HandoffService {
    pub(crate) fn new(
        replica: Arc<ReplicaHandle>,
        routing: Arc<Routing>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            replica,
            routing,
            metrics,
            pulls: Semaphore::new(MAX_PULLS),
            deletes: Semaphore::new(MAX_DELETES),
        }
    }

    /// Refuses a caller that follows other controllers, or that asks for another group.
    fn check(&self, cluster: u64, gid: u64) -> Result<(), ErrorDetail> {
        let own = self.routing.gid();
        let name = |cluster: ClusterId, gid: u64| format!("controllers {cluster} group {gid}");
        let theirs = name(ClusterId(cluster), gid);
        if self.routing.kind() != GroupKind::Shards || gid != own.0 {
            let ours = format!("{} group {}", self.routing.kind(), own.0);
            return Err(errors::wrong_cluster(&theirs, &ours));
        }
        match self.routing.ownership().controller {
            Some(controller) if controller.0 == cluster => Ok(()),
            Some(controller) => {
                let ours = name(controller, own.0);
                Err(errors::wrong_cluster(&theirs, &ours))
            }
            // The group hasn't heard from its controllers yet, or this node is behind.
            None => Err(errors::shard_not_ready(100)),
        }
    }

    async fn ask(&self, request: MachineRequest, changes: bool) -> Result<Outcome, ErrorDetail> {
        let replica = &self.replica;
        let answer = replica.submit_step(request)?;
        let result = replica.answered(answer, changes).await?;
        kv::outcome(result, |node| replica.address_or_empty(node))
    }

    async fn send(&self, request: v1::PullRequest) -> Result<v1::PullResponse, ErrorDetail> {
        self.check(request.cluster_id, request.gid)?;
        let full = |_| errors::overloaded("pulls of shards", MAX_PULLS as u64, 100);
        let _place = self.pulls.try_acquire().map_err(full)?;
        let after = Cursor::decode(request.after);
        let after = after.map_err(|error| errors::bad_request("after", error))?;
        let query = Query::Pull {
            shard: ShardId(request.shard),
            config: ConfigNum(request.config_num),
            after,
            max_bytes: request.max_bytes,
        };
        match self.ask(kv::read_local(query), false).await? {
            Outcome::Chunk(chunk) => {
                let chunk = chunk.encode();
                self.metrics.handoff.sent_bytes.inc_by(chunk.len() as u64);
                Ok(v1::PullResponse { chunk })
            }
            _ => Err(kv::mismatch()),
        }
    }

    async fn clear(
        &self,
        request: v1::DeleteShardRequest,
    ) -> Result<v1::DeleteShardResponse, ErrorDetail> {
        self.check(request.cluster_id, request.gid)?;
        let full = |_| errors::overloaded("deletes of shards", MAX_DELETES as u64, 100);
        let _place = self.deletes.try_acquire().map_err(full)?;
        let step = Step::Delete {
            shard: ShardId(request.shard),
            config: ConfigNum(request.config_num),
        };
        match self.ask(kv::step(&step), true).await? {
            Outcome::Stepped => Ok(v1::DeleteShardResponse {}),
            _ => Err(kv::mismatch()),
        }
    }
}

#[tonic::async_trait]
impl Handoff for HandoffService {
    async fn pull(
        &self,
        request: Request<v1::PullRequest>,
    ) -> Result<Response<v1::PullResponse>, Status> {
        match self.send(request.into_inner()).await {
            Ok(response) => Ok(Response::new(response)),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteShardRequest>,
    ) -> Result<Response<v1::DeleteShardResponse>, Status> {
        match self.clear(request.into_inner()).await {
            Ok(response) => Ok(Response::new(response)),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }
}
