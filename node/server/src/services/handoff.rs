//! `shardkv.v1.Handoff`: the source's side of moving shards to another group.

use std::sync::Arc;

use api::errors;
use api::v1::handoff_server::Handoff;
use api::v1::{self, ErrorDetail};
use replica::StateReader;
use shardkv::{Cursor, GroupKind, Response as Outcome, Step, estimate_shard, read_chunk};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use types::{ClusterId, ConfigNum, ShardId};

use crate::convert::kv;
use crate::metrics::Metrics;
use crate::reads::Readers;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The maximum number of deletes at the same time, for all groups.
const MAX_DELETES: usize = 1_024;

/// The service.
pub(crate) struct HandoffService {
    replica: Arc<ReplicaHandle>,
    routing: Arc<Routing>,
    metrics: Arc<Metrics>,
    readers: Readers,
    deletes: Semaphore,
}

impl HandoffService {
    pub(crate) fn new(
        replica: Arc<ReplicaHandle>,
        routing: Arc<Routing>,
        metrics: Arc<Metrics>,
        readers: Readers,
    ) -> Self {
        Self {
            replica,
            routing,
            metrics,
            readers,
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

    async fn send(&self, request: v1::PullRequest) -> Result<v1::PullResponse, ErrorDetail> {
        self.check(request.cluster_id, request.gid)?;
        self.replica.check_running()?;
        let after = Cursor::decode(request.after);
        let after = after.map_err(|error| errors::bad_request("after", error))?;
        let hand_off = (ShardId(request.shard), ConfigNum(request.config_num));
        let max_bytes = request.max_bytes;
        let read = move |state: &dyn StateReader| {
            let shard_bytes = estimate_shard(state, hand_off.0)?;
            let chunk = read_chunk(state, hand_off, &after, max_bytes)?;
            Ok(chunk.map(|chunk| (chunk.encode(), shard_bytes)))
        };
        let read = self.readers.read(read).await?;
        let (chunk, shard_bytes) = read.map_err(|error| kv::kv_error(&error))?;
        self.metrics.handoff.sent_bytes.inc_by(chunk.len() as u64);
        Ok(v1::PullResponse { chunk, shard_bytes })
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
        let replica = &self.replica;
        let answer = replica.submit_step(kv::step(&step))?;
        let result = replica.answered(answer, true).await?;
        match kv::outcome(result, |node| replica.address_or_empty(node))? {
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
