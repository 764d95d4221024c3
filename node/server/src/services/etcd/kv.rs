//! The service `KV`.

use std::sync::Arc;

use api::etcd::etcdserverpb as pb;
use keyspace::{Access, Answer, Txn, TxnAnswer, Write};
use pb::kv_client::KvClient;
use pb::kv_server::Kv;
use prometheus_client::metrics::histogram::Histogram;
use replica::PairReader;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::maintenance::record;
use super::ranges::{self, RangeStream, Size};
use super::serve::{Answered, Call, EtcdServices, Method};
use super::status::Failure;
use super::store::{Found, Freshness};
use super::{answers, requests};
use crate::convert::kv::mismatch;
use crate::forward::Repeat;
use crate::metrics::Metrics;

/// The service.
pub(crate) struct KvService(pub(crate) Arc<EtcdServices>);

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = RangeStream;

    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        self.0.serve::<RangeMethod>(request).await
    }

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<RangeStream>, Status> {
        ranges::stream(&self.0, request)
    }

    async fn put(
        &self,
        request: Request<pb::PutRequest>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        self.0.serve::<PutMethod>(request).await
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.0.serve::<DeleteRangeMethod>(request).await
    }

    async fn txn(
        &self,
        request: Request<pb::TxnRequest>,
    ) -> Result<Response<pb::TxnResponse>, Status> {
        self.0.serve::<TxnMethod>(request).await
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.0.serve::<CompactMethod>(request).await
    }
}

/// The most bytes of pairs in the answer to one write ([`keyspace::Limits::max_write_bytes`]).
const MAX_WRITE_ANSWER_BYTES: usize = 16 << 20;

/// Returns the most bytes of pairs in the answer to a put.
fn pairs_of_put(request: &pb::PutRequest) -> usize {
    if request.prev_kv {
        ranges::POINT_BYTES
    } else {
        0
    }
}

fn pairs_of_delete(request: &pb::DeleteRangeRequest) -> usize {
    match (request.prev_kv, request.range_end.is_empty()) {
        (false, _) => 0,
        (true, true) => ranges::POINT_BYTES,
        (true, false) => MAX_WRITE_ANSWER_BYTES,
    }
}

/// Only one of the two lists is carried out.
fn pairs_of_txn(request: &pb::TxnRequest) -> usize {
    let of = |ops: &[pb::RequestOp]| ops.iter().map(pairs_of_op).fold(0, usize::saturating_add);
    of(&request.success).max(of(&request.failure))
}

fn pairs_of_op(op: &pb::RequestOp) -> usize {
    use pb::request_op::Request;
    match &op.request {
        Some(Request::RequestRange(range)) if range.count_only => 0,
        Some(Request::RequestRange(range)) if range.range_end.is_empty() => ranges::POINT_BYTES,
        Some(Request::RequestRange(range)) => match usize::try_from(range.limit) {
            Ok(pairs @ 1..) => pairs
                .saturating_mul(ranges::POINT_BYTES)
                .min(MAX_WRITE_ANSWER_BYTES),
            _ => MAX_WRITE_ANSWER_BYTES,
        },
        Some(Request::RequestPut(put)) => pairs_of_put(put),
        Some(Request::RequestDeleteRange(delete)) => pairs_of_delete(delete),
        Some(Request::RequestTxn(txn)) => pairs_of_txn(txn),
        None => 0,
    }
}

pub(super) fn client(channel: Channel) -> KvClient<Channel> {
    // The node that is asked bounds its answers.
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

pub(super) struct RangeMethod;

impl Method for RangeMethod {
    type Request = pb::RangeRequest;
    type Answer = pb::RangeResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Freely
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.read_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let freshness = call.freshness(request.serializable);
        let range = requests::range(request)?;
        keyspace::check_range(&range)?;
        let keyspaces = &services.keyspaces;
        keyspaces.freshen(&call.keyspace, freshness).await?;
        let size = ranges::size(&range);
        let checked = Arc::new((range, call.credentials.clone()));
        let read = ranges::read(services, call, size, move |max_bytes| {
            let checked = Arc::clone(&checked);
            move |reader: &dyn PairReader, found: &Found| {
                let (range, credentials) = &*checked;
                credentials.guard(reader, found, Access::Range(&range.span), || {
                    keyspace::range(reader, found.place, range, max_bytes)
                })
            }
        });
        let (found, answer, share) = read.await?;
        let share = share.of(ranges::bytes_of(&answer.kvs));
        let header = keyspaces.header(found.record.cluster_id(), answer.revision);
        Ok(Answered {
            answer: answers::range(answer, header),
            share,
        })
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        client(channel).range(request).await
    }
}

struct PutMethod;

impl Method for PutMethod {
    type Request = pb::PutRequest;
    type Answer = pb::PutResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Never
    }

    fn most_answer_bytes(request: &Self::Request) -> usize {
        pairs_of_put(request)
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.write_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let put = requests::put(request);
        keyspace::check_put(&put)?;
        let keyspaces = &services.keyspaces;
        match keyspaces.write(call.target(), Write::Put(put)).await? {
            (identity, Answer::Put(answer)) => {
                let header = keyspaces.header(identity.cluster_id, answer.revision);
                Ok(answers::put(answer, header).into())
            }
            _ => Err(mismatch().into()),
        }
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        client(channel).put(request).await
    }
}

pub(super) struct DeleteRangeMethod;

impl Method for DeleteRangeMethod {
    type Request = pb::DeleteRangeRequest;
    type Answer = pb::DeleteRangeResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Never
    }

    fn most_answer_bytes(request: &Self::Request) -> usize {
        pairs_of_delete(request)
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.write_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let delete = requests::delete_range(request);
        keyspace::check_delete_range(&delete)?;
        let keyspaces = &services.keyspaces;
        let write = Write::DeleteRange(delete);
        match keyspaces.write(call.target(), write).await? {
            (identity, Answer::DeleteRange(answer)) => {
                let header = keyspaces.header(identity.cluster_id, answer.revision);
                Ok(answers::delete_range(answer, header).into())
            }
            _ => Err(mismatch().into()),
        }
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        client(channel).delete_range(request).await
    }
}

pub(super) struct TxnMethod;

impl TxnMethod {
    /// Reads a transaction that changes nothing, without the log.
    async fn read(
        services: &EtcdServices,
        call: &Call,
        txn: Txn,
        freshness: Freshness,
    ) -> Result<Answered<pb::TxnResponse>, Failure> {
        let keyspaces = &services.keyspaces;
        keyspaces.freshen(&call.keyspace, freshness).await?;
        let limits = keyspaces.limits;
        let checked = Arc::new((txn, call.credentials.clone()));
        let read = ranges::read(services, call, Size::Any, move |max_bytes| {
            let checked = Arc::clone(&checked);
            move |reader: &dyn PairReader, found: &Found| {
                let (txn, credentials) = &*checked;
                credentials.guard(reader, found, Access::Txn(txn), || {
                    keyspace::read_txn(reader, found.place, txn, &limits, max_bytes)
                })
            }
        });
        let (found, answer, share) = read.await?;
        let share = share.of(bytes_of(&answer));
        let header = keyspaces.header(found.record.cluster_id(), answer.revision);
        Ok(Answered {
            answer: answers::txn(answer, header),
            share,
        })
    }
}

/// Returns the memory of the pairs in the answer to a read-only transaction.
fn bytes_of(answer: &TxnAnswer) -> usize {
    let pairs = answer.responses.iter().map(|answer| match answer {
        keyspace::OpAnswer::Range(answer) => ranges::bytes_of(&answer.kvs),
        _ => 0,
    });
    pairs.sum()
}

/// Returns true for a transaction that only reads. As in etcd, a nested transaction counts as a write.
fn is_read_only(request: &pb::TxnRequest) -> bool {
    ops(request).all(|range| range.is_some())
}

/// Returns true for a transaction all of whose operations are serializable reads.
fn is_serializable(request: &pb::TxnRequest) -> bool {
    ops(request).all(|range| range.is_some_and(|range| range.serializable))
}

/// Returns the operations of both lists, as far as they are reads.
fn ops(request: &pb::TxnRequest) -> impl Iterator<Item = Option<&pb::RangeRequest>> {
    let ops = request.success.iter().chain(&request.failure);
    ops.map(|op| match &op.request {
        Some(pb::request_op::Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}

impl Method for TxnMethod {
    type Request = pb::TxnRequest;
    type Answer = pb::TxnResponse;

    fn repeat(request: &Self::Request) -> Repeat {
        if is_read_only(request) {
            Repeat::Freely
        } else {
            Repeat::Never
        }
    }

    fn most_answer_bytes(request: &Self::Request) -> usize {
        if is_read_only(request) {
            return 0;
        }
        pairs_of_txn(request).min(MAX_WRITE_ANSWER_BYTES)
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.write_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let freshness = call.freshness(is_serializable(&request));
        let keyspaces = &services.keyspaces;
        let txn = requests::txn(request, keyspaces.limits.max_ops as usize)?;
        keyspace::check_txn(&txn, &keyspaces.limits)?;
        if txn.is_read_only() {
            return Self::read(services, call, txn, freshness).await;
        }
        match keyspaces.write(call.target(), Write::Txn(txn)).await? {
            (identity, Answer::Txn(answer)) => {
                let header = keyspaces.header(identity.cluster_id, answer.revision);
                Ok(answers::txn(answer, header).into())
            }
            _ => Err(mismatch().into()),
        }
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        client(channel).txn(request).await
    }
}

struct CompactMethod;

impl Method for CompactMethod {
    type Request = pb::CompactionRequest;
    type Answer = pb::CompactionResponse;

    fn repeat(_: &Self::Request) -> Repeat {
        Repeat::Never
    }

    fn latency(metrics: &Metrics) -> &Histogram {
        &metrics.keyspaces.write_seconds
    }

    async fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> Result<Answered<Self::Answer>, Failure> {
        let keyspaces = &services.keyspaces;
        let revision = request.revision;
        // A compaction without a user is the leader's own, so apply doesn't refuse it.
        record(services, call, Freshness::Linearizable, Access::Root).await?;
        match keyspaces
            .write(call.target(), Write::Compact { revision })
            .await?
        {
            (identity, Answer::Done { revision }) => {
                let header = keyspaces.header(identity.cluster_id, revision);
                let header = Some(header);
                Ok(pb::CompactionResponse { header }.into())
            }
            _ => Err(mismatch().into()),
        }
    }

    async fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<Response<Self::Answer>, Status> {
        client(channel).compact(request).await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pb::request_op::Request as Wire;

    use super::*;

    #[test]
    fn a_write_takes_room_for_the_pairs_that_it_may_return() {
        let op = |request| pb::RequestOp {
            request: Some(request),
        };
        let put = |prev_kv| {
            op(Wire::RequestPut(pb::PutRequest {
                prev_kv,
                ..pb::PutRequest::default()
            }))
        };
        let range = |end: &'static [u8]| {
            op(Wire::RequestRange(pb::RangeRequest {
                range_end: end.into(),
                ..pb::RangeRequest::default()
            }))
        };
        let limited = |limit| {
            op(Wire::RequestRange(pb::RangeRequest {
                range_end: Bytes::from_static(b"x"),
                limit,
                ..pb::RangeRequest::default()
            }))
        };
        let (point, most) = (ranges::POINT_BYTES, MAX_WRITE_ANSWER_BYTES);
        let table = [
            (vec![put(false)], vec![], 0),
            (vec![put(true)], vec![], point),
            // Kubernetes' update: one of the two is carried out.
            (vec![put(false)], vec![range(b"")], point),
            (vec![put(true), range(b"")], vec![range(b"")], 2 * point),
            (vec![put(false)], vec![range(b"x")], most),
            // A lock looks for its first owner.
            (vec![put(false), limited(1)], vec![], point),
            (vec![put(false), limited(i64::MAX)], vec![], most),
            (vec![put(true); 100], vec![], most),
            // It only reads, and takes its share where it reads.
            (vec![range(b"x")], vec![], 0),
        ];
        for (success, failure, expected) in table {
            let request = pb::TxnRequest {
                compare: Vec::new(),
                success,
                failure,
            };
            assert_eq!(
                TxnMethod::most_answer_bytes(&request),
                expected,
                "{request:?}"
            );
        }
        let delete = |prev_kv, range_end: &'static [u8]| pb::DeleteRangeRequest {
            prev_kv,
            range_end: range_end.into(),
            ..pb::DeleteRangeRequest::default()
        };
        assert_eq!(pairs_of_delete(&delete(false, b"x")), 0);
        assert_eq!(pairs_of_delete(&delete(true, b"")), point);
        assert_eq!(pairs_of_delete(&delete(true, b"x")), most);
    }

    #[test]
    fn only_reads_may_be_repeated() {
        let op = |request| pb::RequestOp {
            request: Some(request),
        };
        let range = |serializable| {
            op(Wire::RequestRange(pb::RangeRequest {
                serializable,
                ..pb::RangeRequest::default()
            }))
        };
        let put = op(Wire::RequestPut(pb::PutRequest::default()));
        let nested = op(Wire::RequestTxn(pb::TxnRequest::default()));
        let table = [
            (vec![], vec![], true, true),
            (vec![range(true)], vec![range(true)], true, true),
            (vec![range(true)], vec![range(false)], true, false),
            (vec![range(true)], vec![put], false, false),
            (vec![nested], vec![], false, false),
        ];
        for (success, failure, read_only, serializable) in table {
            let request = pb::TxnRequest {
                compare: Vec::new(),
                success,
                failure,
            };
            assert_eq!(is_read_only(&request), read_only, "{request:?}");
            assert_eq!(is_serializable(&request), serializable, "{request:?}");
            let repeat = if read_only {
                Repeat::Freely
            } else {
                Repeat::Never
            };
            assert_eq!(TxnMethod::repeat(&request), repeat);
        }
        assert_eq!(PutMethod::repeat(&pb::PutRequest::default()), Repeat::Never);
        let compact = pb::CompactionRequest::default();
        assert_eq!(CompactMethod::repeat(&compact), Repeat::Never);
    }
}
