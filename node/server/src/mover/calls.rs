//! Carries out the proposals and calls of the mover's driver.

use std::sync::Arc;
use std::time::Duration;

use api::v1::handoff_client::HandoffClient;
use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{self, CutRequest, DeleteShardRequest, ErrorDetail, PullRequest, ReportRequest};
use bytes::Bytes;
use raft::Index;
use request::{Refusal, Refused};
use shardkv::mover::{Answer, Request};
use shardkv::{Chunk, CopyRequest, JournalError, Part, Response, Step};
use tonic::Status;
use tonic::transport::Channel;

use super::feed::Fetcher;
use crate::convert::kv;
use crate::forward::{ChannelError, ControllerRequest, Forwarder, once, refused_by};
use crate::metrics::Metrics;
use crate::replica_handle::{PendingAnswer, ReplicaHandle};

/// Carries out proposals and calls for one group.
pub(crate) struct Calls {
    replica: Arc<ReplicaHandle>,
    forwarder: Arc<Forwarder>,
    metrics: Arc<Metrics>,
    fetcher: Fetcher,
}

impl Calls {
    /// `patience` is the maximum time that a controller may take to accept a watch.
    pub(crate) fn new(
        replica: Arc<ReplicaHandle>,
        forwarder: Arc<Forwarder>,
        metrics: Arc<Metrics>,
        patience: Duration,
    ) -> Self {
        Self {
            fetcher: Fetcher::new(Arc::clone(&forwarder), patience),
            replica,
            forwarder,
            metrics,
        }
    }

    /// Drops the watch of the controllers, because this node doesn't lead any more.
    pub(crate) fn forget(&self) {
        self.fetcher.forget();
    }

    /// Puts a step into the replica's queue.
    pub(crate) fn submit(&self, step: &Step) -> Result<PendingAnswer, ErrorDetail> {
        self.replica.submit_step(kv::step(step))
    }

    /// Waits until a step was applied here.
    pub(crate) async fn applied(
        &self,
        pending: Result<PendingAnswer, ErrorDetail>,
    ) -> Result<Answer, Refused> {
        let replica = &self.replica;
        let Ok(result) = pending.map_err(api::refused)?.await else {
            return Err(Refused {
                refusal: Refusal::OutcomeUnknown { hint: None },
                message: "the outcome of the step is unknown".to_owned(),
            });
        };
        let response = kv::outcome(result, |node| replica.address_or_empty(node));
        match response.map_err(api::refused)? {
            Response::Stepped => Ok(Answer::Stepped),
            _ => Err(api::refused(kv::mismatch())),
        }
    }

    /// Asks for the next part of a copy.
    async fn copy(
        &self,
        handoff: HandoffClient<Channel>,
        (cluster_id, gid): (u64, u64),
        request: CopyRequest,
    ) -> Result<Result<Answer, Refused>, Status> {
        let request = v1::CopyRequest {
            cluster_id,
            gid,
            shard: request.shard.0,
            target_since: request.copy.since.0,
            journal: request.copy.journal.0,
            fence: request.fence.map(|config| config.0),
            after: request.after.encode(),
            max_bytes: request.max_bytes,
        };
        let mut handoff = handoff.max_decoding_message_size(usize::MAX);
        let answer = handoff.copy(once(request)).await?.into_inner().answer;
        Ok(match answer {
            Some(v1::copy_response::Answer::Part(part)) => {
                let received = &self.metrics.handoff.received_bytes;
                received.inc_by(part.len() as u64);
                let part = Part::decode(part).map(Answer::Part);
                part.map_err(|error| malformed(&error))
            }
            Some(v1::copy_response::Answer::Refused(error)) => refused_by_journal(error),
            None => Err(api::refused(kv::mismatch())),
        })
    }

    /// Sends a request to a node, and waits for the answer.
    pub(crate) async fn send(&self, address: &str, request: Request) -> Result<Answer, Refused> {
        if let Request::Configs {
            gid,
            after,
            begun,
            wait_ms,
        } = request
        {
            let wait = Duration::from_millis(wait_ms);
            let fetched = self.fetcher.fetch(address, (gid, begun), after, wait).await;
            return fetched.map_err(|error| Refused {
                refusal: Refusal::ConnectionLost,
                message: error.to_string(),
            });
        }
        let channels = &self.forwarder.channels;
        let channel = channels
            .get(address)
            .await
            .map_err(|error| unsent(&error))?;
        match self.send_over(channel, request).await {
            Ok(answer) => answer,
            Err(status) => {
                if api::error_detail(&status).is_none() {
                    // The next connection resolves the name again.
                    channels.discard(address);
                }
                Err(refused_by(&status))
            }
        }
    }

    /// Returns an error of the call, or the answer, which may be malformed.
    async fn send_over(
        &self,
        channel: Channel,
        request: Request,
    ) -> Result<Result<Answer, Refused>, Status> {
        let handoff = HandoffClient::new(channel.clone());
        let controllers = ShardctrlerClient::new(channel);
        match request {
            // A watch, which the fetcher keeps.
            Request::Configs { .. } => Err(Status::internal("a fetch is no call")),
            Request::Pull {
                controller,
                source,
                shard,
                config,
                after,
                max_bytes,
            } => {
                let request = PullRequest {
                    cluster_id: controller.0,
                    gid: source.0,
                    shard: shard.0,
                    config_num: config.0,
                    after: after.encode(),
                    max_bytes,
                };
                let mut handoff = handoff.max_decoding_message_size(usize::MAX);
                let v1::PullResponse { chunk, shard_bytes } =
                    handoff.pull(once(request)).await?.into_inner();
                let received = &self.metrics.handoff.received_bytes;
                received.inc_by(chunk.len() as u64);
                let chunk = Chunk::decode(chunk).map_err(|error| malformed(&error));
                Ok(chunk.map(|chunk| Answer::Chunk { chunk, shard_bytes }))
            }
            Request::Delete {
                controller,
                source,
                shard,
                config,
            } => {
                let request = DeleteShardRequest {
                    cluster_id: controller.0,
                    gid: source.0,
                    shard: shard.0,
                    config_num: config.0,
                };
                let mut handoff = handoff;
                handoff.delete(once(request)).await?;
                Ok(Ok(Answer::Stepped))
            }
            Request::Report {
                controller,
                gid,
                settled,
                held,
            } => {
                let request = ReportRequest {
                    gid: gid.0,
                    settled: settled.0,
                    held: held.0,
                    cluster_id: controller.0,
                };
                request.send_to(controllers).await?;
                Ok(Ok(Answer::Reported))
            }
            Request::Copy {
                controller,
                source,
                request,
            } => {
                let (cluster_id, gid) = (controller.0, source.0);
                self.copy(handoff, (cluster_id, gid), request).await
            }
            Request::Journal {
                controller,
                source,
                step,
            } => {
                let request = v1::JournalRequest {
                    cluster_id: controller.0,
                    gid: source.0,
                    step: step.encode(),
                };
                let mut handoff = handoff;
                Ok(stepped(handoff.journal(once(request)).await?.into_inner()))
            }
            Request::ReportCut { controller, cuts } => {
                let cuts = cuts
                    .iter()
                    .map(|(shard, cut)| api::cut_to_wire(*shard, cut));
                let request = CutRequest {
                    cuts: cuts.collect(),
                    cluster_id: controller.0,
                };
                request.send_to(controllers).await?;
                Ok(Ok(Answer::Reported))
            }
        }
    }
}

fn stepped(response: v1::JournalResponse) -> Result<Answer, Refused> {
    let shard_bytes = response.shard_bytes;
    match response.answer {
        Some(v1::journal_response::Answer::Journal(0)) => Ok(Answer::Stepped),
        Some(v1::journal_response::Answer::Journal(journal)) => Ok(Answer::Begun {
            journal: Index(journal),
            shard_bytes,
        }),
        Some(v1::journal_response::Answer::Refused(error)) => refused_by_journal(error),
        None => Err(api::refused(kv::mismatch())),
    }
}

fn refused_by_journal(error: Bytes) -> Result<Answer, Refused> {
    let error = JournalError::decode(error).map(Answer::Refused);
    error.map_err(|error| malformed(&error))
}

fn unsent(error: &ChannelError) -> Refused {
    Refused {
        refusal: Refusal::NotSent,
        message: error.to_string(),
    }
}

fn malformed(error: &types::DecodeError) -> Refused {
    Refused {
        refusal: Refusal::ConnectionLost,
        message: error.to_string(),
    }
}
