//! The service `v3lockpb.Lock`: a lock is a key of its lease under the lock's name, and the key that was created first owns it.

use std::pin::Pin;
use std::time::Duration;

use api::etcd::etcdserverpb as pb;
use api::etcd::mvccpb::KeyValue;
use api::etcd::v3lockpb as wire;
use bytes::Bytes;
use pb::request_op::Request as Op;
use tokio::time::{sleep, timeout};
use tonic::{Code, Request, Response, Status};
use wire::lock_server::Lock;

use super::concurrency::{
    Caller, Concurrency, created_in, key_of, op, owner, pair_at, prefix_of, put, range_of_key,
    revision_of,
};

/// The time in which a call that gives up must delete its key.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);
/// The pause between attempts to delete it.
const LEAVE_PAUSE: Duration = Duration::from_millis(100);

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
        let queued = Queued {
            caller,
            key: key.clone(),
            revision,
        };
        let header = or_leave(
            Box::pin(queued.wait(&prefix)),
            Box::pin(queued.clone().leave()),
        )
        .await?;
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

/// The key of a lock, as it was created.
#[derive(Clone)]
struct Queued {
    caller: Caller,
    key: Bytes,
    revision: i64,
}

impl Queued {
    /// Waits until it owns the lock, and returns the header of the answer that shows it.
    async fn wait(&self, prefix: &Bytes) -> Result<Option<pb::ResponseHeader>, Status> {
        let Self { caller, key, .. } = self;
        caller.wait_for_deletions(prefix, self.revision - 1).await?;
        let own = caller.range(range_of_key(key)).await?;
        let is_own = |pair: &KeyValue| pair.create_revision == self.revision;
        if !own.kvs.first().is_some_and(is_own) {
            return Err(Status::unknown("mutex: session is expired"));
        }
        Ok(own.header)
    }

    /// Deletes it. If that fails for so long, the key goes with its lease.
    async fn leave(self) {
        let lifecycle = self.caller.lifecycle();
        let attempts = repeated(|| self.delete());
        // A node that drains can't write any more.
        let _ = lifecycle
            .unless_draining(timeout(LEAVE_PATIENCE, attempts))
            .await;
    }

    async fn delete(&self) -> Result<(), Status> {
        // Only this very key, not one that the lease has put since. So an attempt that arrives late does no harm once another has succeeded.
        let delete = Op::RequestDeleteRange(pb::DeleteRangeRequest {
            key: self.key.clone(),
            ..pb::DeleteRangeRequest::default()
        });
        let request = pb::TxnRequest {
            compare: vec![created_in(&self.key, self.revision)],
            success: vec![op(delete)],
            failure: Vec::new(),
        };
        self.caller.txn(request).await.map(drop)
    }
}

/// Makes a call until it succeeds, or is refused for good.
async fn repeated<F>(call: impl Fn() -> F)
where
    F: Future<Output = Result<(), Status>>,
{
    while let Err(status) = call().await {
        let passes = matches!(
            status.code(),
            Code::Unavailable | Code::ResourceExhausted | Code::Internal
        );
        if !passes {
            return;
        }
        sleep(LEAVE_PAUSE).await;
    }
}

/// Returns what `wait` returns. If it fails, `leave` ends before: a client that tries again with the same lease must not find a key that is about to be
/// deleted. If the caller goes, `leave` runs by itself.
async fn or_leave<T>(
    wait: impl Future<Output = Result<T, Status>>,
    leave: Pin<Box<dyn Future<Output = ()> + Send>>,
) -> Result<T, Status> {
    let mut leaving = Leaving(Some(leave));
    let waited = wait.await;
    if waited.is_err()
        && let Some(leave) = &mut leaving.0
    {
        leave.await;
    }
    leaving.0 = None;
    waited
}

/// The work that is left of a waiting call when its client goes.
struct Leaving(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(leave) = self.0.take() {
            tokio::spawn(leave);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;
    use tokio::task::yield_now;

    use super::*;

    /// Counts how often a key was deleted, which takes a moment.
    async fn leave(left: Arc<AtomicUsize>) {
        yield_now().await;
        left.fetch_add(1, Ordering::Relaxed);
    }

    #[tokio::test]
    async fn a_call_that_fails_has_left_the_queue_before_its_answer() {
        let left = Arc::new(AtomicUsize::new(0));
        let count = || left.load(Ordering::Relaxed);
        let failed = async { Err::<(), _>(Status::unavailable("x")) };
        assert!(
            or_leave(failed, Box::pin(leave(Arc::clone(&left))))
                .await
                .is_err()
        );
        assert_eq!(count(), 1);

        assert!(
            or_leave(async { Ok(()) }, Box::pin(leave(Arc::clone(&left))))
                .await
                .is_ok()
        );
        yield_now().await;
        assert_eq!(count(), 1, "an owner stays");

        let gone = or_leave(
            pending::<Result<(), _>>(),
            Box::pin(leave(Arc::clone(&left))),
        );
        assert!(gone.now_or_never().is_none());
        while count() < 2 {
            yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_is_repeated_until_it_succeeds_or_is_refused_for_good() {
        let table = [
            (vec![Code::Unavailable, Code::ResourceExhausted], 3),
            (vec![Code::Unavailable, Code::NotFound], 2),
            (vec![Code::Unknown], 1),
        ];
        for (codes, expected) in table {
            let made = AtomicUsize::new(0);
            repeated(|| {
                let at = made.fetch_add(1, Ordering::Relaxed);
                let code = codes.get(at).copied();
                ready(code.map_or(Ok(()), |code| Err(Status::new(code, "x"))))
            })
            .await;
            assert_eq!(made.load(Ordering::Relaxed), expected, "{codes:?}");
        }
    }
}
