//! What the mover asks for, carried out.

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

use super::feed::Fetcher;
use crate::convert::kv;
use crate::forward::{self, Destination, Leaders, Repeat, once};
use crate::hub::{Hub, Waiting};
use crate::machine;

/// How long a proposal's end is waited for: less than the mover waits.
const PROPOSE_PATIENCE: Duration = Duration::from_secs(25);

/// Carries actions out.
pub(crate) struct Actions {
    hub: Arc<Hub>,
    fetcher: Fetcher,
    /// The node of each source that gave the last chunk.
    sources: Leaders,
    /// How many pulls failed: the next node of a source is tried.
    turn: AtomicUsize,
}

impl Actions {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self {
            fetcher: Fetcher::new(Arc::clone(&hub)),
            hub,
            sources: Leaders::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// This node doesn't lead any more.
    pub(crate) fn forget(&self) {
        self.fetcher.forget();
    }

    /// Starts an action. Proposals are on their way to the log when this returns, so that they enter it in order.
    pub(crate) fn start(
        self: Arc<Self>,
        id: ActionId,
        action: Action,
        running: &mut JoinSet<(ActionId, ActionOutcome)>,
    ) {
        if let Action::Propose(step) = action {
            let submitted = self.hub.submit_step(kv::step(&step));
            running.spawn(async move {
                let outcome = async { applied(&self.hub, submitted.map_err(message)?).await };
                (id, said(outcome.await.map(|()| ActionOutcome::Done)))
            });
            return;
        }
        running.spawn(async move { (id, said(self.carry_out(action).await)) });
    }

    async fn carry_out(&self, action: Action) -> Result<ActionOutcome, String> {
        let patience = self.hub.options.handoff.timeout;
        let action = match action {
            // It waits for news, for as long as it likes.
            Action::FetchConfigs { after } => return self.fetcher.fetch(after).await,
            action => action,
        };
        let work = async {
            match action {
                Action::FetchConfigs { .. } | Action::Propose(_) => Err("misplaced".to_owned()),
                Action::Pull {
                    shard,
                    config,
                    source,
                    addresses,
                    after,
                    max_bytes,
                } => {
                    let part = Part {
                        shard,
                        config,
                        after,
                        max_bytes,
                    };
                    self.pull(source, &addresses, part).await
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
            Err(_) => Err(format!("no answer within {patience:?}")),
        }
    }

    /// The incarnation that this group's requests carry.
    fn controller(&self) -> Result<ClusterId, String> {
        let controller = self.hub.ownership().controller;
        controller.ok_or_else(|| "the group follows no controllers yet".to_owned())
    }

    async fn pull(
        &self,
        source: Gid,
        addresses: &[String],
        part: Part,
    ) -> Result<ActionOutcome, String> {
        let turn = self.turn.load(Ordering::Relaxed);
        let Some(node) = self.sources.next(source, addresses, turn) else {
            return Err(format!("no address of {source} is known"));
        };
        match self.pull_from(&node.address, source, part).await {
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

    async fn pull_from(&self, address: &str, source: Gid, part: Part) -> Result<Chunk, String> {
        let channels = &self.hub.forwarding.channels;
        let channel = channels.get(address).await;
        let channel = channel.map_err(|error| error.to_string())?;
        let request = PullRequest {
            cluster_id: self.controller()?.0,
            gid: source.0,
            shard: part.shard.0,
            config_num: part.config.0,
            after: part.after.encode(),
            max_bytes: part.max_bytes,
        };
        let mut client = HandoffClient::new(channel).max_decoding_message_size(usize::MAX);
        match client.pull(once(request)).await {
            Ok(response) => {
                let chunk = response.into_inner().chunk;
                let received = &self.hub.metrics.handoff.received_bytes;
                received.inc_by(chunk.len() as u64);
                Chunk::decode(chunk).map_err(|error| format!("{address}: {error}"))
            }
            Err(status) => {
                if api::error_detail(&status).is_none() {
                    channels.discard(address);
                }
                Err(format!("{address}: {}", status.message()))
            }
        }
    }

    async fn delete(
        &self,
        at: Destination,
        shard: ShardId,
        config: ConfigNum,
    ) -> Result<ActionOutcome, String> {
        let (controller, source) = (self.controller()?, at.gid);
        let request = DeleteShardRequest {
            cluster_id: controller.0,
            gid: source.0,
            shard: shard.0,
            config_num: config.0,
        };
        let route = || Ok(at.clone());
        let deleted = forward::reach(&self.hub, route, Repeat::Freely, |channel, _| {
            let mut client = HandoffClient::new(channel);
            async move { client.delete(once(request)).await }
        });
        // Half of the time is for the question below.
        let patience = self.hub.options.handoff.timeout / 2;
        let why = match timeout(patience, deleted).await {
            Ok(Ok(_)) => return Ok(ActionOutcome::Done),
            Ok(Err(error)) => message(error),
            Err(_) => format!("no answer within {patience:?}"),
        };
        // A group that left and was drained may be gone for good, and with it the answer that got lost.
        let has_left = self.hub.ownership().left.contains(&source);
        if has_left && self.is_drained(controller, source).await {
            return Ok(ActionOutcome::Done);
        }
        Err(why)
    }

    /// Whether the controllers know that a group which left has nothing any more.
    async fn is_drained(&self, controller: ClusterId, gid: Gid) -> bool {
        let latest = forward::controllers_at_once(&self.hub, QueryRequest { num: -1 });
        latest
            .await
            .is_ok_and(|answer| tells_drained(&answer, controller, gid))
    }

    async fn report(&self, settled: ConfigNum) -> Result<ActionOutcome, String> {
        let request = ReportRequest {
            gid: self.hub.identity.gid().0,
            settled: settled.0,
            cluster_id: self.controller()?.0,
        };
        let reported = forward::controllers_at_once(&self.hub, request);
        reported.await.map_err(message)?;
        Ok(ActionOutcome::Done)
    }
}

/// Which part of which shard.
struct Part {
    shard: ShardId,
    config: ConfigNum,
    after: Cursor,
    max_bytes: u32,
}

/// Waits until a step was applied here.
async fn applied(hub: &Hub, waiting: Waiting) -> Result<(), String> {
    let answer = timeout(PROPOSE_PATIENCE, waiting).await;
    let unknown = || "its end is not known".to_owned();
    match answer.map_err(|_| unknown())?.map_err(|_| unknown())? {
        Ok(Answer::Machine(machine::Response::Shards(Response::Stepped))) => Ok(()),
        Ok(Answer::Machine(machine::Response::Shards(Response::Refused(error)))) => {
            Err(error.to_string())
        }
        Ok(_) => Err(kv::mismatch().message),
        Err(Refusal::NotLeader { leader }) => Err(match leader {
            Some(leader) => format!("{} leads now", hub.address_or_empty(leader)),
            None => "this node leads no more".to_owned(),
        }),
        Err(refusal) => Err(refusal.to_string()),
    }
}

/// A group that gave shards away is known to its controllers until it has told, through its log, that it has deleted them
/// all.
fn tells_drained(answer: &QueryResponse, controller: ClusterId, gid: Gid) -> bool {
    answer.cluster_id == controller.0 && answer.progress.iter().all(|it| it.gid != gid.0)
}

fn message(error: ErrorDetail) -> String {
    error.message
}

fn said(result: Result<ActionOutcome, String>) -> ActionOutcome {
    result.unwrap_or_else(ActionOutcome::Failed)
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
