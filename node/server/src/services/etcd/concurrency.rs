//! The calls that locks and elections make to their keyspace: the same as etcd's client library makes for them.
//!
//! Each works at any node, because it is passed on as a client's own call is. Waiting needs no polling: a watch tells when a key is gone. Where the
//! shard moves or a leader dies, the watch begins anew after the last revision that it has told.

use std::sync::Arc;
use std::time::Duration;

use api::etcd::etcdserverpb as pb;
use api::etcd::mvccpb::{self, KeyValue};
use bytes::{BufMut as _, Bytes, BytesMut};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request as Op;
use pb::response_op::Response as OpAnswer;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

use super::kv::{DeleteRangeMethod, RangeMethod, TxnMethod};
use super::lease::GrantMethod;
use super::serve::{Call, EtcdServices, Method};
use super::status::is_final;
use super::streams::stopped;
use super::watch::{self, WatchServices};
use crate::lifecycle::Lifecycle;

/// The term of a lease that the server grants because the client names none, in seconds. As in etcd, nobody renews it.
const OWN_TTL_S: i64 = 60;
/// The pause before a watch that ended is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);

/// Makes calls to keyspaces for clients of locks and elections.
#[derive(Clone)]
pub(crate) struct Concurrency {
    pub(crate) etcd: Arc<EtcdServices>,
    pub(crate) watch: Arc<WatchServices>,
}

/// The keyspace that a client's call means.
#[derive(Clone)]
pub(super) struct Caller {
    services: Concurrency,
    call: Call,
}

impl Concurrency {
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        Ok(Caller {
            services: self.clone(),
            call: self.etcd.call(request)?,
        })
    }
}

/// Returns the key of a lease among the keys of a lock or an election.
pub(super) fn key_of(prefix: &Bytes, lease: i64) -> Bytes {
    // As Go writes a number in hexadecimal digits.
    let sign = if lease < 0 { "-" } else { "" };
    let digits = format!("{sign}{:x}", lease.unsigned_abs());
    let mut key = BytesMut::from(&prefix[..]);
    key.put_slice(digits.as_bytes());
    key.freeze()
}

/// Returns the prefix of all keys of a lock or an election.
pub(super) fn prefix_of(name: &Bytes) -> Bytes {
    let mut prefix = BytesMut::from(&name[..]);
    prefix.put_u8(b'/');
    prefix.freeze()
}

/// Returns the end of the range of a prefix that ends with a slash.
fn end_of(prefix: &Bytes) -> Bytes {
    let mut end = BytesMut::from(&prefix[..]);
    if let Some(last) = end.last_mut() {
        *last = b'/' + 1;
    }
    end.freeze()
}

/// The range that finds the first or the last key of a prefix by create revision.
fn by_creation(prefix: &Bytes, order: SortOrder) -> pb::RangeRequest {
    pb::RangeRequest {
        key: prefix.clone(),
        range_end: end_of(prefix),
        limit: 1,
        sort_order: order as i32,
        sort_target: SortTarget::Create as i32,
        ..pb::RangeRequest::default()
    }
}

/// The range that finds the owner of a lock, or the leader of an election.
pub(super) fn owner(prefix: &Bytes) -> pb::RangeRequest {
    by_creation(prefix, SortOrder::Ascend)
}

pub(super) fn range_of_key(key: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.clone(),
        ..pb::RangeRequest::default()
    }
}

/// The condition that a key was created in this revision, or doesn't exist at revision 0.
pub(super) fn created_in(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..pb::Compare::default()
    }
}

pub(super) fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

pub(super) fn put(key: &Bytes, value: Bytes, lease: i64) -> pb::RequestOp {
    op(Op::RequestPut(pb::PutRequest {
        key: key.clone(),
        value,
        lease,
        ..pb::PutRequest::default()
    }))
}

/// Returns the first pair of an answer of a transaction to a range.
pub(super) fn pair_at(answer: &pb::TxnResponse, at: usize) -> Option<&KeyValue> {
    match answer.responses.get(at)?.response.as_ref()? {
        OpAnswer::ResponseRange(range) => range.kvs.first(),
        _ => None,
    }
}

pub(super) fn revision_of(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// Returns the status of a refusal. etcd's own services lose the code of what their client was refused.
fn told(status: Status) -> Status {
    if is_final(&status) && status.message().starts_with("etcdserver: ") {
        return Status::unknown(status.message());
    }
    status
}

impl Caller {
    async fn make<M: Method>(&self, request: M::Request) -> Result<M::Answer, Status> {
        // The client's call may wait long before. Each call has the time of a request.
        let call = Call {
            arrived: std::time::Instant::now(),
            ..self.call.clone()
        };
        let etcd = &self.services.etcd;
        let answer = etcd.within_budget::<M>(&call, request).await;
        let answered = answer.map_err(|failure| told(etcd.status(&call, failure)))?;
        Ok(answered.answer)
    }

    pub(super) async fn range(
        &self,
        request: pb::RangeRequest,
    ) -> Result<pb::RangeResponse, Status> {
        self.make::<RangeMethod>(request).await
    }

    pub(super) async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.make::<TxnMethod>(request).await
    }

    pub(super) async fn delete(&self, key: Bytes) -> Result<pb::DeleteRangeResponse, Status> {
        let request = pb::DeleteRangeRequest {
            key,
            ..pb::DeleteRangeRequest::default()
        };
        self.make::<DeleteRangeMethod>(request).await
    }

    /// Returns the lease that a client names, or a new one.
    pub(super) async fn lease(&self, named: i64) -> Result<i64, Status> {
        if named != 0 {
            return Ok(named);
        }
        let request = pb::LeaseGrantRequest {
            ttl: OWN_TTL_S,
            id: 0,
        };
        Ok(self.make::<GrantMethod>(request).await?.id)
    }

    /// Waits until all keys of a prefix are gone that were created in this revision or before.
    pub(super) async fn wait_for_deletions(
        &self,
        prefix: &Bytes,
        created_by: i64,
    ) -> Result<(), Status> {
        loop {
            let last = self
                .range(pb::RangeRequest {
                    max_create_revision: created_by,
                    ..by_creation(prefix, SortOrder::Descend)
                })
                .await?;
            let Some(pair) = last.kvs.first() else {
                return Ok(());
            };
            let from = revision_of(last.header.as_ref());
            let mut changes = self.changes(pair.key.clone(), Bytes::new(), from);
            while let Some(answer) = changes.next().await? {
                if answer.events.iter().any(is_deletion) {
                    break;
                }
            }
        }
    }

    pub(super) fn lifecycle(&self) -> Arc<Lifecycle> {
        Arc::clone(&self.services.etcd.lifecycle)
    }

    /// Watches all keys of a prefix from a revision on.
    pub(super) fn changes_of_all(&self, prefix: &Bytes, from: i64) -> Changes {
        self.changes(prefix.clone(), end_of(prefix), from)
    }

    /// Watches a range from a revision on.
    pub(super) fn changes(&self, key: Bytes, range_end: Bytes, from: i64) -> Changes {
        Changes {
            caller: self.clone(),
            request: pb::WatchCreateRequest {
                key,
                range_end,
                start_revision: from,
                ..pb::WatchCreateRequest::default()
            },
            open: None,
        }
    }
}

pub(super) fn is_deletion(event: &mvccpb::Event) -> bool {
    event.r#type == mvccpb::event::EventType::Delete as i32
}

/// The changes of a range.
pub(super) struct Changes {
    caller: Caller,
    /// Begins after the last revision that was told.
    request: pb::WatchCreateRequest,
    open: Option<Open>,
}

/// An open watch.
struct Open {
    answers: watch::Answers,
    /// The stream stays while it is held.
    _requests: mpsc::Sender<Result<pb::WatchRequest, Status>>,
}

impl Changes {
    /// Returns the next answer with events; `None` if the next change was compacted.
    pub(super) async fn next(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        loop {
            let Some(open) = &mut self.open else {
                match self.reopen().await {
                    Ok(open) => self.open = Some(open),
                    Err(status) => self.after(status).await?,
                }
                continue;
            };
            let next = open.answers.next().await;
            open.answers.taken();
            match next {
                Some(Ok(answer)) if answer.canceled && answer.compact_revision > 0 => {
                    return Ok(None);
                }
                Some(Ok(answer)) if answer.canceled => {
                    return Err(Status::unknown(answer.cancel_reason));
                }
                Some(Ok(answer)) => {
                    if let Some(last) = answer.events.last().and_then(|event| event.kv.as_ref()) {
                        self.request.start_revision = last.mod_revision + 1;
                        return Ok(Some(answer));
                    }
                }
                Some(Err(status)) => self.after(status).await?,
                None => self.open = None,
            }
        }
    }

    /// Waits before the watch is opened again, unless that can't help.
    async fn after(&mut self, status: Status) -> Result<(), Status> {
        self.open = None;
        // As etcd's client does.
        if !matches!(status.code(), Code::Unavailable | Code::Internal) {
            return Err(told(status));
        }
        let lifecycle = &self.caller.services.etcd.lifecycle;
        match lifecycle.unless_draining(sleep(REOPEN_PAUSE)).await {
            Some(()) => Ok(()),
            None => Err(stopped()),
        }
    }

    async fn reopen(&self) -> Result<Open, Status> {
        let (requests, receiver) = mpsc::channel(1);
        let create = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
                self.request.clone(),
            )),
        };
        // There is room for one.
        let _ = requests.try_send(Ok(create));
        let call = Call {
            arrived: std::time::Instant::now(),
            ..self.caller.call.clone()
        };
        let services = &self.caller.services.watch;
        let answers = watch::open(services, &call, ReceiverStream::new(receiver)).await?;
        Ok(Open {
            answers,
            _requests: requests,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_etcds_client() {
        let prefix = prefix_of(&"lock".into());
        assert_eq!(prefix, "lock/");
        assert_eq!(key_of(&prefix, 0x2d8_257b), "lock/2d8257b");
        assert_eq!(key_of(&prefix, -1), "lock/-1");
        assert_eq!(end_of(&prefix), "lock0");
        assert_eq!(end_of(&prefix_of(&Bytes::new())), "0");
    }

    #[test]
    fn a_refusal_has_etcds_text_and_its_lost_code() {
        let refused = super::super::status::refused(keyspace::Refusal::LeaseNotFound, "x");
        let status = told(refused);
        assert_eq!(status.code(), Code::Unknown);
        assert_eq!(status.message(), "etcdserver: requested lease not found");
        let nobody = super::super::status::refused(keyspace::Refusal::KeyspaceNotFound, "x");
        assert_eq!(told(nobody).code(), Code::NotFound);
        assert_eq!(told(Status::unavailable("x")).code(), Code::Unavailable);
    }
}
