//! Ranges: what a read may take of the node's memory, and ranges in parts.

use std::sync::Arc;

use api::etcd::etcdserverpb as pb;
use bytes::{BufMut, Bytes, BytesMut};
use keyspace::{Access, KeyValue, Range, Refusal, Span};
use pb::range_request::{SortOrder, SortTarget};
use prometheus_client::metrics::histogram::Histogram;
use prost::Message as _;
use raft::StoreError;
use replica::PairReader;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::serve::{Answered, Call, EtcdServices, Method, SMALL_ANSWER_BYTES};
use super::status::{self, Failure};
use super::store::{Extent, Found, Freshness};
use super::{answers, kv, requests};
use crate::forward::Repeat;
use crate::keyspaces::budgets::KeyspaceShares;
use crate::keyspaces::shares::{FairBudget, Share};
use crate::metrics::Metrics;
use crate::page_budget::PageShare;
use crate::services::pages::{PageSender, Pages, pages_of};

/// The most bytes of a read of single keys. No request could write a larger value.
pub(super) const POINT_BYTES: usize = 2 << 20;
/// The memory that a pair of an answer takes beside its key and value.
const PAIR_BYTES: usize = 128;
/// The pairs of the first part of a range.
const FIRST_PART_PAIRS: i64 = 16;
const MAX_PART_PAIRS: i64 = 10_000;
/// The bytes that a part should have.
const PART_BYTES: usize = 1 << 20;
/// The most bytes of a part. A pair that a request could write fits.
const MAX_PART_BYTES: usize = 4 << 20;
const GO_ON: &str = "begin again after the last key that arrived";
/// The parts of a range.
pub(crate) type RangeStream = Pages<pb::RangeStreamResponse>;

/// The parts of the most bytes of a range that are tried, one after the other.
const STEPS: [usize; 3] = [32, 4, 1];

/// The size of the answer to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// One pair at most.
    Single,
    /// No pair, but all keys of a range are visited.
    Count,
    /// A part of a range.
    Part,
    Any,
}

/// The memory that a read may take.
pub(super) struct ReadShare {
    share: Arc<Share>,
    /// The most bytes that the read may keep.
    max_bytes: u64,
}

impl ReadShare {
    /// Takes the share of a read. One that finds few bytes for sure doesn't wait for those that may find many.
    async fn take(
        shares: &KeyspaceShares,
        keyspace: &str,
        (size, max_bytes): (Size, usize),
    ) -> Result<Self, Failure> {
        let share = size.budget(shares).take(keyspace, max_bytes).await?;
        Ok(Self {
            share: Arc::new(share),
            max_bytes: max_bytes as u64,
        })
    }

    /// Gives back what the answer doesn't need. A small answer needs nothing.
    pub(super) fn of(self, answer_bytes: usize) -> Option<PageShare> {
        if answer_bytes <= SMALL_ANSWER_BYTES {
            return None;
        }
        self.share.shrink(answer_bytes);
        Some(PageShare::Keyspace(self.share))
    }
}

impl Size {
    fn extent(self) -> Extent {
        match self {
            Self::Single => Extent::Single,
            Self::Count | Self::Part | Self::Any => Extent::Many,
        }
    }

    fn budget(self, shares: &KeyspaceShares) -> &Arc<FairBudget> {
        match self {
            Self::Single | Self::Count => &shares.points,
            Self::Part | Self::Any => &shares.ranges,
        }
    }
}

/// Returns the size of the answer to a range.
pub(super) fn size(range: &Range) -> Size {
    match range.span {
        Span::Key(_) => Size::Single,
        _ if range.count_only => Size::Count,
        _ => Size::Any,
    }
}

/// Returns the bytes that a read tries to keep within, one after the other.
fn steps(size: Size, max_range_bytes: usize) -> Vec<usize> {
    match size {
        Size::Single | Size::Count => vec![POINT_BYTES],
        Size::Part => vec![MAX_PART_BYTES.min(max_range_bytes)],
        Size::Any => STEPS.map(|part| max_range_bytes / part).to_vec(),
    }
}

/// Reads a keyspace from the state here, and returns what was read with its share of the budget. `read` makes a read that keeps within so many bytes.
/// It begins with few, so that one that finds little doesn't hold the room of others.
pub(super) async fn read<T, F>(
    services: &EtcdServices,
    call: &Call,
    size: Size,
    read: impl Fn(u64) -> F + Send,
) -> Result<(Found, T, ReadShare), Failure>
where
    T: Send + 'static,
    F: FnOnce(&dyn PairReader, &Found) -> Result<Result<T, Refusal>, StoreError>
        + Clone
        + Send
        + 'static,
{
    let (shares, name) = (&services.admission.keyspaces, &call.keyspace);
    let mut too_large = Failure::Refused(Refusal::TooManyRequests);
    for max_bytes in steps(size, shares.max_range_bytes) {
        let share = ReadShare::take(shares, name, (size, max_bytes)).await?;
        let read = read(share.max_bytes);
        // The thread reads on when the caller is gone.
        let held = (Arc::clone(&share.share), call.held.clone());
        let read = move |reader: &dyn PairReader, found: &Found| {
            let answer = read(reader, found);
            drop(held);
            answer
        };
        let (keyspaces, here) = (&services.keyspaces, Freshness::Serializable);
        match keyspaces.read_extent(size.extent(), name, here, read).await {
            Ok((found, answer)) => return Ok((found, answer, share)),
            Err(failure @ Failure::Refused(Refusal::TooManyRequests)) => too_large = failure,
            Err(failure) => return Err(failure),
        }
    }
    Err(too_large)
}

/// Returns the memory of an answer's pairs.
pub(super) fn bytes_of(pairs: &[KeyValue]) -> usize {
    let bytes = |pair: &KeyValue| PAIR_BYTES + pair.key.len() + pair.value.len();
    pairs.iter().map(bytes).sum()
}

/// A range that is read in parts, and where it has come to.
struct Parts {
    /// The next part.
    request: pb::RangeRequest,
    /// The most pairs that are still wanted.
    wanted: i64,
    /// The pairs that were sent.
    sent: i64,
    /// The header of the first part. All parts are of its keyspace and its revision.
    first: Option<pb::ResponseHeader>,
}

/// A range in parts that is being served.
struct RangeParts {
    services: Arc<EtcdServices>,
    call: Call,
    parts: Parts,
}

/// Serves a range in parts. All parts are of the revision of the first. A part is read when the client has fetched the part before, and
/// keeps its share of the budget until it is fetched itself.
pub(super) fn stream(
    services: &Arc<EtcdServices>,
    request: Request<pb::RangeRequest>,
) -> Result<Response<RangeStream>, Status> {
    let call = services.call(&request)?;
    let request = request.into_inner();
    check(&request, &call)?;
    let range = RangeParts {
        services: Arc::clone(services),
        call,
        parts: Parts::new(request),
    };
    let (sender, parts) = pages_of(GO_ON);
    tokio::spawn(range.send(sender));
    Ok(parts.into_response())
}

/// As etcd checks: parts are in the order of keys, and not filtered.
fn check(request: &pb::RangeRequest, call: &Call) -> Result<(), Status> {
    requests::range(request.clone()).map_err(|refusal| status::refused(refusal, &call.keyspace))?;
    let by_key = request.sort_target == SortTarget::Key as i32;
    let in_order = request.sort_order == SortOrder::None as i32
        || (by_key && request.sort_order == SortOrder::Ascend as i32);
    let unimplemented = |text| Err(status::finally(Code::Unimplemented, text));
    if !in_order {
        return unimplemented("RangeStream does not support custom sort orders");
    }
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filters != [0; 4] {
        return unimplemented("RangeStream does not support revision filters");
    }
    Ok(())
}

impl RangeParts {
    async fn send(mut self, mut pages: PageSender<pb::RangeStreamResponse>) {
        loop {
            let Some(room) = pages.room().await else {
                return;
            };
            let Some(next) = room.unless_gone(self.next()).await else {
                return;
            };
            match next {
                Ok((part, share, more)) => {
                    room.send(part, share);
                    if !more {
                        return pages.end().await;
                    }
                }
                Err(status) => return pages.fail(status).await,
            }
        }
    }

    /// Reads the next part, and returns it with its share of the budget. True if there are more.
    async fn next(&mut self) -> Result<(pb::RangeStreamResponse, Option<PageShare>, bool), Status> {
        let Answered { answer, share } = self.read().await?;
        let told = self.parts.add(answer);
        let (part, more) = told.map_err(|it| status::refused(it, &self.call.keyspace))?;
        Ok((of(part), share, more))
    }

    /// Reads a part, a smaller one if its pairs are too large.
    async fn read(&mut self) -> Result<Answered<pb::RangeResponse>, Status> {
        loop {
            let mut call = self.call.clone();
            // Each part has the time of a request.
            call.arrived = std::time::Instant::now();
            let request = &mut self.parts.request;
            let answer = self.services.answer::<PartMethod>(&call, request.clone());
            match answer.await {
                Ok(answered) => return Ok(answered),
                Err(failure) if request.limit > 1 && is_too_large(&failure) => request.limit /= 2,
                Err(failure) => return Err(self.services.status(&call, failure)),
            }
        }
    }
}

/// Returns true if a part was refused for the bytes of its pairs, here or by another node.
fn is_too_large(failure: &Failure) -> bool {
    match failure {
        Failure::Refused(refusal) => *refusal == Refusal::TooManyRequests,
        Failure::Status(status) => status.code() == Code::ResourceExhausted,
        Failure::Node(_) => false,
    }
}

impl Parts {
    fn new(mut request: pb::RangeRequest) -> Self {
        let wanted = match request.limit {
            0 => i64::MAX,
            limit => limit,
        };
        request.limit = FIRST_PART_PAIRS.min(wanted);
        Self {
            request,
            wanted,
            sent: 0,
            first: None,
        }
    }

    /// Adds a part that was read, and returns it as the client gets it. True if there are more.
    fn add(&mut self, part: pb::RangeResponse) -> Result<(pb::RangeResponse, bool), Refusal> {
        let header = part.header.unwrap_or_default();
        let first = *self.first.get_or_insert(header);
        if header.cluster_id != first.cluster_id {
            // The keyspace was deleted and created anew. Its revisions are others.
            return Err(Refusal::KeyspaceNotFound);
        }
        if self.request.count_only {
            let counted = pb::RangeResponse {
                header: part.header,
                count: part.count,
                ..pb::RangeResponse::default()
            };
            return Ok((counted, false));
        }
        if self.request.revision <= 0 {
            self.request.revision = first.revision;
        }
        let pairs = i64::try_from(part.kvs.len()).unwrap_or(i64::MAX);
        self.wanted = self.wanted.saturating_sub(pairs);
        let last = part.kvs.last().map(|pair| pair.key.clone());
        let Some(last) = last.filter(|_| part.more && self.wanted > 0) else {
            let revision = first.revision;
            let end = pb::RangeResponse {
                header: Some(pb::ResponseHeader { revision, ..header }),
                kvs: part.kvs,
                more: part.more,
                count: self.sent.saturating_add(part.count),
            };
            return Ok((end, false));
        };
        self.sent = self.sent.saturating_add(pairs);
        self.request.key = after(&last);
        self.request.limit = adjust(self.request.limit, part.encoded_len()).min(self.wanted);
        let middle = pb::RangeResponse {
            kvs: part.kvs,
            ..pb::RangeResponse::default()
        };
        Ok((middle, true))
    }
}

/// Reads a part of a range, whose memory is small.
struct PartMethod;

impl Method for PartMethod {
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
        let keyspaces = &services.keyspaces;
        let freshness = call.freshness(request.serializable);
        keyspaces.freshen(&call.keyspace, freshness).await?;
        let range = requests::range(request)?;
        keyspace::check_range(&range)?;
        let size = match size(&range) {
            Size::Any => Size::Part,
            size => size,
        };
        let checked = Arc::new((range, call.credentials.clone()));
        let read = read(services, call, size, move |max_bytes| {
            let checked = Arc::clone(&checked);
            move |reader: &dyn PairReader, found: &Found| {
                let (range, credentials) = &*checked;
                credentials.guard(reader, found, Access::Range(&range.span), || {
                    keyspace::range(reader, found.place, range, max_bytes)
                })
            }
        });
        let (found, answer, share) = read.await?;
        let share = share.of(bytes_of(&answer.kvs));
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
        kv::client(channel).range(request).await
    }
}

fn of(part: pb::RangeResponse) -> pb::RangeStreamResponse {
    pb::RangeStreamResponse {
        range_response: Some(part),
    }
}

/// Returns the first key after a key.
fn after(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// Returns the number of pairs of the next part: so many that it has some [`PART_BYTES`].
fn adjust(pairs: i64, bytes: usize) -> i64 {
    let fits = PART_BYTES / bytes.max(1);
    let next = match fits {
        0 => pairs / 2,
        // It grows step by step, because the next pairs may be larger.
        fits => pairs.saturating_mul(i64::try_from(fits.min(4)).unwrap_or(1)),
    };
    next.clamp(1, MAX_PART_PAIRS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_step_by_step_and_shrink_when_they_are_large() {
        assert_eq!(adjust(16, 100), 64);
        assert_eq!(adjust(9_000, 100), MAX_PART_PAIRS);
        assert_eq!(adjust(16, PART_BYTES / 2), 32);
        assert_eq!(adjust(16, PART_BYTES), 16);
        assert_eq!(adjust(16, 3 * PART_BYTES), 8);
        assert_eq!(adjust(1, 3 * PART_BYTES), 1);
    }

    fn part(cluster_id: u64, revision: i64, keys: &[&'static str]) -> pb::RangeResponse {
        let pair = |key: &&'static str| api::etcd::mvccpb::KeyValue {
            key: Bytes::from_static(key.as_bytes()),
            ..api::etcd::mvccpb::KeyValue::default()
        };
        pb::RangeResponse {
            header: Some(pb::ResponseHeader {
                cluster_id,
                revision,
                ..pb::ResponseHeader::default()
            }),
            kvs: keys.iter().map(pair).collect(),
            more: true,
            count: 5,
        }
    }

    #[test]
    fn all_parts_are_of_one_incarnation_and_one_revision() {
        let all = pb::RangeRequest {
            key: "a".into(),
            range_end: "z".into(),
            ..pb::RangeRequest::default()
        };
        let mut parts = Parts::new(all);
        assert_eq!(parts.request.limit, FIRST_PART_PAIRS);
        let (first, more) = parts.add(part(1, 9, &["a", "b"])).unwrap();
        assert_eq!((first.header, first.kvs.len(), more), (None, 2, true));
        assert_eq!(parts.request.key, b"b\0"[..]);
        assert_eq!(parts.request.revision, 9);
        let anew = parts.add(part(2, 9, &["c"]));
        assert_eq!(anew, Err(Refusal::KeyspaceNotFound));
        let mut rest = part(1, 12, &["c"]);
        (rest.more, rest.count) = (false, 1);
        let (last, more) = parts.add(rest).unwrap();
        assert_eq!(
            (last.header.unwrap().revision, last.count, more),
            (9, 3, false)
        );
    }

    #[test]
    fn a_part_that_is_too_large_here_or_elsewhere_is_read_smaller() {
        assert!(is_too_large(&Failure::Refused(Refusal::TooManyRequests)));
        let elsewhere = status::refused(Refusal::TooManyRequests, "x");
        assert!(is_too_large(&Failure::Status(Box::new(elsewhere))));
        let compacted = Refusal::Compacted { compacted: 3 };
        assert!(!is_too_large(&Failure::Refused(compacted)));
    }

    #[tokio::test]
    async fn a_read_begins_with_few_bytes_and_a_part_takes_no_more() {
        let mut limits = crate::admission::limits();
        limits.max_keyspace_read_bytes = 256 << 20;
        let shares = KeyspaceShares::new(&limits, std::time::Duration::ZERO);
        let most = shares.max_range_bytes;
        assert_eq!(most >> 20, 57, "66 percent of what 66 percent leave free");
        assert_eq!(steps(Size::Any, most), [most / 32, most / 4, most]);
        assert_eq!(steps(Size::Part, most), [MAX_PART_BYTES]);
        let all = shares.ranges.bounds().most();
        let share = ReadShare::take(&shares, "a", (Size::Any, all));
        let share = share.await.unwrap();
        let neighbours = ReadShare::take(&shares, "b", (Size::Any, most)).await;
        assert!(neighbours.is_ok(), "the largest range has room");
        assert_eq!(shares.ranges.used(), all + most);
        drop((share, neighbours));
        assert_eq!(shares.ranges.used(), 0);
    }

    #[test]
    fn the_next_part_begins_right_after_the_last_key() {
        assert_eq!(after(&Bytes::from_static(b"k")), b"k\0"[..]);
    }

    #[test]
    fn a_count_needs_few_bytes_and_weighs_as_much_as_a_range() {
        let mut key = Range::new(Span::Key("k".into()));
        assert_eq!(
            (size(&key), size(&key).extent()),
            (Size::Single, Extent::Single)
        );
        key.count_only = true;
        assert_eq!(size(&key), Size::Single);
        let mut all = Range::new(Span::From("k".into()));
        assert_eq!((size(&all), size(&all).extent()), (Size::Any, Extent::Many));
        all.count_only = true;
        assert_eq!(size(&all).extent(), Extent::Many);
        assert_eq!(steps(size(&all), 1 << 30), [POINT_BYTES]);
    }
}
