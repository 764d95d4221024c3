//! The service `v3electionpb.Election`: a candidate is a key of its lease under the election's name, and the key that was created first
//! leads.

use api::etcd::etcdserverpb as pb;
use api::etcd::v3electionpb as wire;
use bytes::Bytes;
use pb::request_op::Request as Op;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wire::election_server::Election;

use super::concurrency::{
    Caller, Changes, Concurrency, created_in, is_deletion, key_of, op, owner, pair_at, prefix_of,
    put, range_of_key, revision_of,
};
use super::streams::stopped;

/// The service.
pub(crate) struct ElectionService(pub(crate) Concurrency);

#[tonic::async_trait]
impl Election for ElectionService {
    type ObserveStream = ReceiverStream<Result<wire::LeaderResponse, Status>>;

    async fn campaign(
        &self,
        request: Request<wire::CampaignRequest>,
    ) -> Result<Response<wire::CampaignResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let wire::CampaignRequest { name, lease, value } = request.into_inner();
        let lease = caller.lease(lease).await?;
        let prefix = prefix_of(&name);
        let key = key_of(&prefix, lease);
        let answer = caller
            .txn(pb::TxnRequest {
                compare: vec![created_in(&key, 0)],
                success: vec![put(&key, value.clone(), lease)],
                failure: vec![op(Op::RequestRange(range_of_key(&key)))],
            })
            .await?;
        let (rev, differs) = match pair_at(&answer, 0) {
            Some(own) if !answer.succeeded => (own.create_revision, own.value != value),
            _ => (revision_of(answer.header.as_ref()), false),
        };
        let leader = wire::LeaderKey {
            name,
            key,
            rev,
            lease,
        };
        if differs && let Err(status) = proclaim(&caller, &leader, value).await {
            // As in etcd, what can't be proclaimed is given up.
            let _ = resign(&caller, &leader).await;
            return Err(status);
        }
        let mut waiting = Waiting(Some((caller.clone(), leader.clone())));
        let waited = caller.wait_for_deletions(&prefix, rev - 1).await;
        waiting.0 = None;
        waited?;
        Ok(Response::new(wire::CampaignResponse {
            header: answer.header,
            leader: Some(leader),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<wire::ProclaimRequest>,
    ) -> Result<Response<wire::ProclaimResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let wire::ProclaimRequest { leader, value } = request.into_inner();
        let mut leader = leader.ok_or_else(no_leader_key)?;
        leader.lease = caller.lease(leader.lease).await?;
        let header = proclaim(&caller, &leader, value).await?;
        Ok(Response::new(wire::ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<wire::LeaderRequest>,
    ) -> Result<Response<wire::LeaderResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let prefix = prefix_of(&request.into_inner().name);
        let mut found = caller.range(owner(&prefix)).await?;
        if found.kvs.is_empty() {
            return Err(Status::unknown("election: no leader"));
        }
        Ok(Response::new(wire::LeaderResponse {
            header: found.header,
            kv: Some(found.kvs.swap_remove(0)),
        }))
    }

    async fn observe(
        &self,
        request: Request<wire::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let caller = self.0.caller(&request)?;
        let prefix = prefix_of(&request.into_inner().name);
        // It fails before the stream begins, if the keyspace can't be read.
        let first = caller.range(owner(&prefix)).await?;
        let (answers, stream) = mpsc::channel(1);
        let observer = Observer {
            caller,
            prefix,
            answers,
        };
        tokio::spawn(observer.run(first));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn resign(
        &self,
        request: Request<wire::ResignRequest>,
    ) -> Result<Response<wire::ResignResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let leader = request.into_inner().leader.ok_or_else(no_leader_key)?;
        caller.lease(leader.lease).await?;
        let header = resign(&caller, &leader).await?;
        Ok(Response::new(wire::ResignResponse { header }))
    }
}

fn no_leader_key() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

async fn proclaim(
    caller: &Caller,
    leader: &wire::LeaderKey,
    value: Bytes,
) -> Result<Option<pb::ResponseHeader>, Status> {
    let request = pb::TxnRequest {
        compare: vec![created_in(&leader.key, leader.rev)],
        success: vec![put(&leader.key, value, leader.lease)],
        failure: Vec::new(),
    };
    let answer = caller.txn(request).await?;
    if !answer.succeeded {
        return Err(Status::unknown("election: not leader"));
    }
    Ok(answer.header)
}

/// Removes the key of a candidate, unless another has it by now.
async fn resign(
    caller: &Caller,
    leader: &wire::LeaderKey,
) -> Result<Option<pb::ResponseHeader>, Status> {
    let delete = Op::RequestDeleteRange(pb::DeleteRangeRequest {
        key: leader.key.clone(),
        ..pb::DeleteRangeRequest::default()
    });
    let request = pb::TxnRequest {
        compare: vec![created_in(&leader.key, leader.rev)],
        success: vec![op(delete)],
        failure: Vec::new(),
    };
    Ok(caller.txn(request).await?.header)
}

/// A candidate that waits. It resigns if its client is gone.
struct Waiting(Option<(Caller, wire::LeaderKey)>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((caller, leader)) = self.0.take() {
            tokio::spawn(async move {
                // If it fails, the key goes with its lease.
                let _ = resign(&caller, &leader).await;
            });
        }
    }
}

/// A stream of leaders.
struct Observer {
    caller: Caller,
    prefix: Bytes,
    answers: mpsc::Sender<Result<wire::LeaderResponse, Status>>,
}

/// The client is gone, or gets this status.
enum Over {
    Gone,
    Failed(Status),
}

impl From<Status> for Over {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

impl Observer {
    async fn run(self, first: pb::RangeResponse) {
        let lifecycle = self.caller.lifecycle();
        let over = tokio::select! {
            over = self.observe(first) => over,
            () = self.answers.closed() => Over::Gone,
            () = lifecycle.draining() => Over::Failed(stopped()),
        };
        if let Over::Failed(status) = over {
            // The client may be gone.
            let _ = self.answers.send(Err(status)).await;
        }
    }

    async fn observe(&self, first: pb::RangeResponse) -> Over {
        let mut found = first;
        loop {
            if let Err(over) = self.follow(found).await {
                return over;
            }
            found = match self.caller.range(owner(&self.prefix)).await {
                Ok(found) => found,
                Err(status) => return Over::Failed(status),
            };
        }
    }

    /// Tells of a leader until its key is gone.
    async fn follow(&self, found: pb::RangeResponse) -> Result<(), Over> {
        let header = found.header.unwrap_or_default();
        let told = match found.kvs.into_iter().next() {
            Some(kv) => Some((header, kv)),
            None => self.first(header.revision).await?,
        };
        let Some((header, kv)) = told else {
            return Ok(());
        };
        let (key, from) = (kv.key.clone(), header.revision + 1);
        self.tell(Some(header), kv).await?;
        let mut changes = self.caller.changes(key, Bytes::new(), from);
        // After a compaction, the leader is looked up again.
        while let Some(answer) = changes.next().await? {
            for event in answer.events {
                if is_deletion(&event) {
                    return Ok(());
                }
                self.tell(answer.header, event.kv.unwrap_or_default())
                    .await?;
            }
        }
        Ok(())
    }

    /// Waits for the first candidate after a revision in which there was none.
    async fn first(
        &self,
        revision: i64,
    ) -> Result<Option<(pb::ResponseHeader, api::etcd::mvccpb::KeyValue)>, Over> {
        let mut changes: Changes = self.caller.changes_of_all(&self.prefix, revision);
        while let Some(answer) = changes.next().await? {
            let put = answer.events.into_iter().find(|event| !is_deletion(event));
            if let Some(kv) = put.and_then(|event| event.kv) {
                let header = pb::ResponseHeader {
                    revision: kv.mod_revision,
                    ..answer.header.unwrap_or_default()
                };
                return Ok(Some((header, kv)));
            }
        }
        Ok(None)
    }

    async fn tell(
        &self,
        header: Option<pb::ResponseHeader>,
        kv: api::etcd::mvccpb::KeyValue,
    ) -> Result<(), Over> {
        let answer = wire::LeaderResponse {
            header,
            kv: Some(kv),
        };
        let sent = self.answers.send(Ok(answer)).await;
        sent.map_err(|_| Over::Gone)
    }
}
