//! The service `v3lockpb.Lock`: a lock is a key of its lease under the lock's name, and the key that was created first owns it.

use api::etcd::etcdserverpb as pb;
use api::etcd::v3lockpb as wire;
use bytes::Bytes;
use pb::request_op::Request as Op;
use tonic::{Request, Response, Status};
use wire::lock_server::Lock;

use super::concurrency::{
    Caller, Concurrency, created_in, key_of, op, owner, pair_at, prefix_of, put, range_of_key,
    revision_of,
};

/// The service.
pub(crate) struct LockService(pub(crate) Concurrency);

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(
        &self,
        request: Request<wire::LockRequest>,
    ) -> Result<Response<wire::LockResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let wire::LockRequest { name, lease } = request.into_inner();
        let lease = caller.lease(lease).await?;
        let prefix = prefix_of(&name);
        let key = key_of(&prefix, lease);
        let entered = enter(&caller, &prefix, &key, lease).await?;
        let revision = match entered {
            Entered::Owns(header) => {
                return Ok(Response::new(wire::LockResponse { header, key }));
            }
            Entered::Waits(revision) => revision,
        };
        let mut waiting = Waiting {
            caller: Some(caller.clone()),
            key: key.clone(),
        };
        caller.wait_for_deletions(&prefix, revision - 1).await?;
        let own = caller.range(range_of_key(&key)).await?;
        waiting.caller = None;
        if own.kvs.is_empty() {
            return Err(Status::unknown("mutex: session is expired"));
        }
        let header = own.header;
        Ok(Response::new(wire::LockResponse { header, key }))
    }

    async fn unlock(
        &self,
        request: Request<wire::UnlockRequest>,
    ) -> Result<Response<wire::UnlockResponse>, Status> {
        let caller = self.0.caller(&request)?;
        let header = caller.delete(request.into_inner().key).await?.header;
        Ok(Response::new(wire::UnlockResponse { header }))
    }
}

/// A key in the queue of a lock.
enum Entered {
    Owns(Option<pb::ResponseHeader>),
    /// It waits. The number is its create revision.
    Waits(i64),
}

/// Puts the key of a lease into the queue of a lock, unless it is there.
async fn enter(
    caller: &Caller,
    prefix: &Bytes,
    key: &Bytes,
    lease: i64,
) -> Result<Entered, Status> {
    let first = || op(Op::RequestRange(owner(prefix)));
    let request = pb::TxnRequest {
        compare: vec![created_in(key, 0)],
        success: vec![put(key, Bytes::new(), lease), first()],
        failure: vec![op(Op::RequestRange(range_of_key(key))), first()],
    };
    let answer = caller.txn(request).await?;
    let revision = match pair_at(&answer, 0) {
        Some(own) if !answer.succeeded => own.create_revision,
        _ => revision_of(answer.header.as_ref()),
    };
    Ok(match pair_at(&answer, 1) {
        Some(owner) if owner.create_revision != revision => Entered::Waits(revision),
        _ => Entered::Owns(answer.header),
    })
}

/// A key that waits. Its call ends when the client is gone, too, and then the key must go.
struct Waiting {
    caller: Option<Caller>,
    key: Bytes,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(caller) = self.caller.take() else {
            return;
        };
        let key = std::mem::take(&mut self.key);
        tokio::spawn(async move {
            // If it fails, the key goes with its lease.
            let _ = caller.delete(key).await;
        });
    }
}
