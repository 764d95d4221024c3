//! `shardkv.v1.Handoff`: the source's side of moving shards to another group.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::v1::handoff_server::Handoff;
use api::v1::{self, ErrorDetail};
use raft::Index;
use replica::StateReader;
use shardkv::{
    CopyCursor, CopyId, CopyRequest, Cursor, GroupKind, JournalStep, KvError, Response as Outcome,
    Step, estimate_shard, read_chunk, read_part,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use types::{ClusterId, ConfigNum, ShardId};

use crate::convert::kv;
use crate::limiter::Limiter;
use crate::metrics::Metrics;
use crate::reads::{ReadKind, Readers};
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The maximum number of deletes at the same time, for all groups.
const MAX_DELETES: usize = 1_024;

/// The maximum number of steps of journals at the same time, for all groups.
const MAX_JOURNAL_STEPS: usize = 1_024;

/// The time that copies may be ahead of the limit of bytes a second.
const MAX_OWED: Duration = Duration::from_millis(100);

/// The bounds of reads of moving shards.
pub(crate) const READ_KIND: ReadKind = ReadKind {
    what: "reads of moving shards",
    max_running: 4,
    max_admitted: 64,
};

/// The service.
pub(crate) struct HandoffService {
    replica: Arc<ReplicaHandle>,
    routing: Arc<Routing>,
    metrics: Arc<Metrics>,
    readers: Readers,
    /// The limit of what copies of served shards get together.
    limiter: Limiter,
    deletes: Semaphore,
    journal_steps: Semaphore,
}

impl HandoffService {
    pub(crate) fn new(
        replica: Arc<ReplicaHandle>,
        routing: Arc<Routing>,
        metrics: Arc<Metrics>,
        readers: Readers,
        bytes_per_second: u64,
    ) -> Self {
        Self {
            limiter: Limiter::new(bytes_per_second),
            replica,
            routing,
            metrics,
            readers,
            deletes: Semaphore::new(MAX_DELETES),
            journal_steps: Semaphore::new(MAX_JOURNAL_STEPS),
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

/// The answers to the destinations of copies.
impl HandoffService {
    /// Refuses a part of a served shard while this node has sent more than its limit. A fenced shard has clients that wait, so it is
    /// never refused.
    fn check_rate(&self, request: &v1::CopyRequest) -> Result<(), ErrorDetail> {
        let owed = self.limiter.owed();
        if request.fence.is_some() || owed <= MAX_OWED {
            return Ok(());
        }
        let wait = u32::try_from(owed.as_millis()).unwrap_or(u32::MAX);
        let limit = self.limiter.bytes_per_second();
        Err(errors::overloaded(
            "bytes a second of copies that this node sends",
            limit,
            wait,
        ))
    }

    async fn send_part(&self, request: v1::CopyRequest) -> Result<v1::CopyResponse, ErrorDetail> {
        self.check(request.cluster_id, request.gid)?;
        self.replica.check_running()?;
        self.check_rate(&request)?;
        let after = CopyCursor::decode(request.after);
        let request = CopyRequest {
            shard: ShardId(request.shard),
            copy: CopyId {
                since: ConfigNum(request.target_since),
                journal: Index(request.journal),
            },
            fence: request.fence.map(ConfigNum),
            after: after.map_err(|error| errors::bad_request("after", error))?,
            max_bytes: request.max_bytes,
        };
        let read = move |state: &dyn StateReader| {
            let part = read_part(state, &request)?;
            Ok(part.map(|part| part.encode()))
        };
        let answer = match self.readers.read(read).await? {
            Ok(part) => {
                self.metrics.handoff.sent_bytes.inc_by(part.len() as u64);
                // What was sent too early is made up for by later refusals.
                let _ = self.limiter.charge(part.len());
                v1::copy_response::Answer::Part(part)
            }
            Err(KvError::Journal { error, .. }) => {
                v1::copy_response::Answer::Refused(error.encode())
            }
            Err(error) => return Err(kv::kv_error(&error)),
        };
        let answer = Some(answer);
        Ok(v1::CopyResponse { answer })
    }

    async fn step_journal(
        &self,
        request: v1::JournalRequest,
    ) -> Result<v1::JournalResponse, ErrorDetail> {
        self.check(request.cluster_id, request.gid)?;
        let step = JournalStep::decode(request.step);
        let step = step.map_err(|error| errors::bad_request("step", error))?;
        let full = |_| errors::overloaded("steps of journals", MAX_JOURNAL_STEPS as u64, 100);
        let _place = self.journal_steps.try_acquire().map_err(full)?;
        let replica = &self.replica;
        let answer = replica.submit_step(kv::journal_step(step))?;
        let result = replica.answered(answer, true).await?;
        let mut shard_bytes = 0;
        let answer = match kv::journal_outcome(result, |node| replica.address_or_empty(node))? {
            Ok(Outcome::Begun { journal }) => {
                let shard = step.shard();
                let estimate = move |state: &dyn StateReader| estimate_shard(state, shard);
                shard_bytes = self.readers.read(estimate).await?;
                v1::journal_response::Answer::Journal(journal.0)
            }
            Ok(Outcome::Stepped) => v1::journal_response::Answer::Journal(0),
            Ok(_) => return Err(kv::mismatch()),
            Err(error) => v1::journal_response::Answer::Refused(error.encode()),
        };
        Ok(v1::JournalResponse {
            answer: Some(answer),
            shard_bytes,
        })
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

    async fn copy(
        &self,
        request: Request<v1::CopyRequest>,
    ) -> Result<Response<v1::CopyResponse>, Status> {
        match self.send_part(request.into_inner()).await {
            Ok(response) => Ok(Response::new(response)),
            Err(error) => Err(self.metrics.reject(&error)),
        }
    }

    async fn journal(
        &self,
        request: Request<v1::JournalRequest>,
    ) -> Result<Response<v1::JournalResponse>, Status> {
        match self.step_journal(request.into_inner()).await {
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
