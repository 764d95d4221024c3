//! Carries out the mover's actions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::v1::handoff_client::HandoffClient;
use api::v1::{
    DeleteShardRequest, ErrorDetail, PullRequest, QueryRequest, QueryResponse, ReportRequest,
};
use replica::{Answer, Refusal};
use shardkv::{Action, ActionId, ActionOutcome, Chunk, Cursor, Response};
use tokio::task::JoinSet;
use tokio::time::timeout;
use types::{ClusterId, ConfigNum, Gid, ShardId};

use super::feed::{FetchError, Fetcher, Group};
use crate::convert::kv;
use crate::forward::{self, ChannelError, Destination, Forwarder, Leaders, Repeat, once};
use crate::machine;
use crate::metrics::Metrics;
use crate::replica_handle::{PendingAnswer, ReplicaHandle};
use crate::routing::Routing;

/// The maximum wait for the outcome of a proposal. It is shorter than the mover's own timeout.
const PROPOSE_PATIENCE: Duration = Duration::from_secs(25);

/// Carries out the mover's actions for one group.
pub(crate) struct Actions {
    replica: Arc<ReplicaHandle>,
    routing: Arc<Routing>,
    forwarder: Arc<Forwarder>,
    metrics: Arc<Metrics>,
    group: Group,
    fetcher: Fetcher,
    /// The node of each source that gave the last chunk.
    sources: Leaders,
    /// The number of failed pulls. It selects the next node of a source.
    turn: AtomicUsize,
}

impl Actions {
    pub(crate) fn new(
        replica: Arc<ReplicaHandle>,
        routing: Arc<Routing>,
        forwarder: Arc<Forwarder>,
        metrics: Arc<Metrics>,
        group: Group,
    ) -> Self {
        Self {
            fetcher: Fetcher::new(Arc::clone(&forwarder), &group),
            replica,
            routing,
            forwarder,
            metrics,
            group,
            sources: Leaders::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Drops the watch of the controllers, because this node doesn't lead any more.
    pub(crate) fn forget(&self) {
        self.fetcher.forget();
    }

    /// Starts an action. A proposal is in the replica's queue when this returns, so that proposals enter the log in order.
    pub(crate) fn start(
        self: Arc<Self>,
        id: ActionId,
        action: Action,
        running: &mut JoinSet<(ActionId, ActionOutcome)>,
    ) {
        if let Action::Propose(step) = action {
            let submitted = self.replica.submit_step(kv::step(&step));
            running.spawn(async move {
                let outcome = async { applied(&self.replica, submitted?).await };
                (id, outcome_of(outcome.await.map(|()| ActionOutcome::Done)))
            });
            return;
        }
        running.spawn(async move { (id, outcome_of(self.carry_out(action).await)) });
    }

    async fn carry_out(&self, action: Action) -> Result<ActionOutcome, ActionError> {
        let patience = self.group.timeout;
        let action = match action {
            // This action waits for the next message without a timeout here.
            Action::FetchConfigs { after } => return Ok(self.fetcher.fetch(after).await?),
            action => action,
        };
        let work = async {
            match action {
                Action::FetchConfigs { .. } | Action::Propose(_) => Err(ActionError::Misplaced),
                Action::Pull {
                    shard,
                    config,
                    source,
                    addresses,
                    after,
                    max_bytes,
                } => {
                    let chunk = ChunkRequest {
                        shard,
                        config,
                        after,
                        max_bytes,
                    };
                    self.pull(source, &addresses, chunk).await
                }
                Action::Delete {
                    shard,
                    config,
                    source,
                    addresses,
                } => {
                    let at = Destination {
                        gid: source,
                        addresses,
                    };
                    self.delete(at, shard, config).await
                }
                Action::Report { settled } => self.report(settled).await,
            }
        };
        match timeout(patience, work).await {
            Ok(result) => result,
            Err(_) => Err(ActionError::Timeout(patience)),
        }
    }

    /// Returns the controllers' cluster id, which this group's requests carry.
    fn controller(&self) -> Result<ClusterId, ActionError> {
        let controller = self.routing.ownership().controller;
        controller.ok_or(ActionError::NoController)
    }

    async fn pull(
        &self,
        source: Gid,
        addresses: &[String],
        chunk: ChunkRequest,
    ) -> Result<ActionOutcome, ActionError> {
        let turn = self.turn.load(Ordering::Relaxed);
        let Some(node) = self.sources.next(source, addresses, turn) else {
            return Err(ActionError::NoAddress(source));
        };
        match self.pull_from(&node.address, source, chunk).await {
            Ok(chunk) => {
                self.sources.found(source, &node.address);
                Ok(ActionOutcome::Pulled(chunk))
            }
            Err(why) => {
                self.sources.failed(&node, None);
                self.turn.fetch_add(1, Ordering::Relaxed);
                Err(why)
            }
        }
    }

    async fn pull_from(
        &self,
        address: &str,
        source: Gid,
        chunk: ChunkRequest,
    ) -> Result<Chunk, ActionError> {
        let channels = &self.forwarder.channels;
        let channel = channels.get(address).await?;
        let request = PullRequest {
            cluster_id: self.controller()?.0,
            gid: source.0,
            shard: chunk.shard.0,
            config_num: chunk.config.0,
            after: chunk.after.encode(),
            max_bytes: chunk.max_bytes,
        };
        let mut client = HandoffClient::new(channel).max_decoding_message_size(usize::MAX);
        match client.pull(once(request)).await {
            Ok(response) => {
                let chunk = response.into_inner().chunk;
                let received = &self.metrics.handoff.received_bytes;
                received.inc_by(chunk.len() as u64);
                Chunk::decode(chunk).map_err(|error| ActionError::InvalidChunk {
                    address: address.to_owned(),
                    error,
                })
            }
            Err(status) => {
                if api::error_detail(&status).is_none() {
                    channels.discard(address);
                }
                Err(ActionError::Refused(format!(
                    "{address}: {}",
                    status.message()
                )))
            }
        }
    }

    async fn delete(
        &self,
        at: Destination,
        shard: ShardId,
        config: ConfigNum,
    ) -> Result<ActionOutcome, ActionError> {
        let (controller, source) = (self.controller()?, at.gid);
        let request = DeleteShardRequest {
            cluster_id: controller.0,
            gid: source.0,
            shard: shard.0,
            config_num: config.0,
        };
        let route = || Ok(at.clone());
        let deleted = forward::reach(&self.forwarder, route, Repeat::Freely, |channel, _| {
            let mut client = HandoffClient::new(channel);
            async move { client.delete(once(request)).await }
        });
        // Half of the time is for the query below.
        let patience = self.group.timeout / 2;
        let why = match timeout(patience, deleted).await {
            Ok(Ok(_)) => return Ok(ActionOutcome::Done),
            Ok(Err(error)) => error.into(),
            Err(_) => ActionError::Timeout(patience),
        };
        // A group that left and was drained may be gone for good, and with it the answer that was lost.
        let has_left = self.routing.ownership().left.contains(&source);
        if has_left && self.is_drained(controller, source).await {
            return Ok(ActionOutcome::Done);
        }
        Err(why)
    }

    /// Returns true if the controllers know that a group which left owns nothing any more.
    async fn is_drained(&self, controller: ClusterId, gid: Gid) -> bool {
        let latest = forward::controllers_at_once(&self.forwarder, QueryRequest { num: -1 });
        latest
            .await
            .is_ok_and(|answer| tells_drained(&answer, controller, gid))
    }

    async fn report(&self, settled: ConfigNum) -> Result<ActionOutcome, ActionError> {
        let request = ReportRequest {
            gid: self.group.gid.0,
            settled: settled.0,
            cluster_id: self.controller()?.0,
        };
        let reported = forward::controllers_at_once(&self.forwarder, request);
        reported.await?;
        Ok(ActionOutcome::Done)
    }
}

/// The position of the chunk to pull.
struct ChunkRequest {
    shard: ShardId,
    config: ConfigNum,
    after: Cursor,
    max_bytes: u32,
}

/// Waits until a step was applied here.
async fn applied(replica: &ReplicaHandle, pending: PendingAnswer) -> Result<(), ActionError> {
    let answer = timeout(PROPOSE_PATIENCE, pending).await;
    let Ok(Ok(answer)) = answer else {
        return Err(ActionError::OutcomeUnknown);
    };
    match answer {
        Ok(Answer::Machine(machine::Response::Shards(Response::Stepped))) => Ok(()),
        Ok(Answer::Machine(machine::Response::Shards(Response::Refused(error)))) => {
            Err(ActionError::Step(error))
        }
        Ok(_) => Err(kv::mismatch().into()),
        Err(Refusal::NotLeader { leader }) => Err(ActionError::NotLeader(
            leader.map(|leader| replica.address_or_empty(leader)),
        )),
        Err(refusal) => Err(ActionError::Refused(refusal.to_string())),
    }
}

/// Returns true if the controllers no longer list the group. They list a group that gave shards away until it has reported,
/// through its log, that all of them are deleted.
fn tells_drained(answer: &QueryResponse, controller: ClusterId, gid: Gid) -> bool {
    answer.cluster_id == controller.0 && answer.progress.iter().all(|it| it.gid != gid.0)
}

fn outcome_of(result: Result<ActionOutcome, ActionError>) -> ActionOutcome {
    result.unwrap_or_else(|error| ActionOutcome::Failed(error.to_string()))
}

/// The reason why an action failed. The mover repeats every failed action after a pause; all actions are idempotent.
#[derive(Debug, thiserror::Error)]
enum ActionError {
    #[error("the action is of another kind: a bug in this version")]
    Misplaced,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the group follows no controllers yet")]
    NoController,
    #[error("no address of {0} is known")]
    NoAddress(Gid),
    #[error("{address}: {error}")]
    InvalidChunk {
        address: String,
        error: types::DecodeError,
    },
    /// Another node refused the request, or the replica refused the step.
    #[error("{0}")]
    Refused(String),
    /// The step was proposed, and may still be applied.
    #[error("the outcome of the step is unknown")]
    OutcomeUnknown,
    /// The step was applied and refused.
    #[error(transparent)]
    Step(shardkv::KvError),
    /// Another node leads; its address, if it is known.
    #[error("{}", .0.as_ref().map_or_else(|| "this node is not the leader any more".to_owned(), |leader| format!("the leader is {leader}")))]
    NotLeader(Option<String>),
    #[error(transparent)]
    Connect(#[from] ChannelError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl From<ErrorDetail> for ActionError {
    fn from(error: ErrorDetail) -> Self {
        Self::Refused(error.message)
    }
}

#[cfg(test)]
mod tests {
    use api::v1::GroupProgress;

    use super::*;

    #[test]
    fn only_the_own_controllers_tell_that_a_group_is_drained() {
        let group = |gid| GroupProgress {
            gid,
            settled: 4,
            left_in: 5,
        };
        let answer = |gids: &[u64]| QueryResponse {
            cluster_id: 7,
            progress: gids.iter().map(|gid| group(*gid)).collect(),
            ..QueryResponse::default()
        };
        let (own, other) = (ClusterId(7), ClusterId(8));
        assert!(tells_drained(&answer(&[1, 3]), own, Gid(2)));
        assert!(!tells_drained(&answer(&[1, 2]), own, Gid(2)));
        assert!(!tells_drained(&answer(&[1, 3]), other, Gid(2)));
    }
}
