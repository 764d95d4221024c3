//! Ranges: what a read may take of the node's memory, and ranges in parts.

use std::pin::Pin;
use std::sync::Arc;

use api::etcd::etcdserverpb as pb;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{self, Stream};
use keyspace::{KeyValue, Range, Refusal, Span};
use pb::range_request::{SortOrder, SortTarget};
use prost::Message as _;
use tonic::{Code, Request, Response, Status};

use super::kv::RangeMethod;
use super::serve::{Call, EtcdServices, SMALL_ANSWER_BYTES};
use super::status::{self, Failure};
use crate::admission::Admission;
use crate::page_budget::PageShare;

/// The most bytes of a read of single keys. No request could write a larger value.
pub(super) const POINT_BYTES: usize = 2 << 20;
/// The memory that a pair of an answer takes beside its key and value.
const PAIR_BYTES: usize = 128;
/// The pairs of the first part of a range.
const FIRST_PART_PAIRS: i64 = 16;
const MAX_PART_PAIRS: i64 = 10_000;
/// The bytes that a part should have.
const PART_BYTES: usize = 1 << 20;

/// The parts of a range.
pub(crate) type RangeStream =
    Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

/// The memory that a read may take.
pub(super) struct ReadShare {
    share: PageShare,
    /// The most bytes that the read may keep.
    pub(super) max_bytes: u64,
}

impl ReadShare {
    /// Takes the share of a read. One that finds few bytes for sure doesn't wait for those that may find many.
    pub(super) async fn take(admission: &Admission, is_small: bool) -> Result<Self, Failure> {
        let (budget, bytes) = if is_small {
            (&admission.points, POINT_BYTES)
        } else {
            (&admission.ranges, admission.max_range_bytes)
        };
        Ok(Self {
            share: budget.take(bytes).await?,
            max_bytes: bytes as u64,
        })
    }

    /// Gives back what the answer doesn't need. A small answer needs nothing.
    pub(super) fn of(mut self, answer_bytes: usize) -> Option<PageShare> {
        if answer_bytes <= SMALL_ANSWER_BYTES {
            return None;
        }
        self.share.shrink(answer_bytes);
        Some(self.share)
    }
}

/// Returns true for a range whose answer has one pair at most.
pub(super) fn is_small(range: &Range) -> bool {
    range.count_only || matches!(range.span, Span::Key(_))
}

/// Returns the memory of an answer's pairs.
pub(super) fn bytes_of(pairs: &[KeyValue]) -> usize {
    let bytes = |pair: &KeyValue| PAIR_BYTES + pair.key.len() + pair.value.len();
    pairs.iter().map(bytes).sum()
}

/// The rest of a range that is read in parts.
struct Rest {
    services: Arc<EtcdServices>,
    call: Call,
    /// The next part.
    request: pb::RangeRequest,
    /// The most pairs that are still wanted.
    wanted: i64,
    /// The pairs that were sent.
    sent: i64,
    /// The newest revision when the first part was read; 0 before.
    newest: i64,
}

/// Serves a range in parts. All parts are of the revision of the first. A part is read when the client has room for it.
pub(super) fn stream(
    services: &Arc<EtcdServices>,
    request: Request<pb::RangeRequest>,
) -> Result<Response<RangeStream>, Status> {
    let call = services.call(&request)?;
    let request = request.into_inner();
    check(&request, &call)?;
    let wanted = match request.limit {
        0 => i64::MAX,
        limit => limit,
    };
    let mut rest = Rest {
        services: Arc::clone(services),
        call,
        request,
        wanted,
        sent: 0,
        newest: 0,
    };
    rest.request.limit = FIRST_PART_PAIRS.min(wanted);
    let parts = stream::try_unfold(Some(rest), async |rest| match rest {
        Some(rest) => rest.next().await.map(Some),
        None => Ok(None),
    });
    Ok(Response::new(Box::pin(parts)))
}

/// As etcd checks: parts are in the order of keys, and not filtered.
fn check(request: &pb::RangeRequest, call: &Call) -> Result<(), Status> {
    super::requests::range(request.clone())
        .map_err(|refusal| status::refused(refusal, &call.keyspace))?;
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

impl Rest {
    /// Reads the next part, and returns it with what is left after it.
    async fn next(mut self) -> Result<(pb::RangeStreamResponse, Option<Self>), Status> {
        let part = self.read().await?;
        if self.request.count_only {
            let counted = pb::RangeResponse {
                header: part.header,
                count: part.count,
                ..pb::RangeResponse::default()
            };
            return Ok((of(counted), None));
        }
        if self.newest == 0 {
            self.newest = part.header.map_or(0, |header| header.revision);
            if self.request.revision <= 0 {
                self.request.revision = self.newest;
            }
        }
        let pairs = i64::try_from(part.kvs.len()).unwrap_or(i64::MAX);
        self.wanted = self.wanted.saturating_sub(pairs);
        let last = part.kvs.last().map(|pair| pair.key.clone());
        let Some(last) = last.filter(|_| part.more && self.wanted > 0) else {
            let mut header = part.header;
            if let Some(header) = &mut header {
                header.revision = self.newest;
            }
            let end = pb::RangeResponse {
                header,
                kvs: part.kvs,
                more: part.more,
                count: self.sent.saturating_add(part.count),
            };
            return Ok((of(end), None));
        };
        self.sent = self.sent.saturating_add(pairs);
        self.request.key = after(&last);
        self.request.limit = adjust(self.request.limit, part.encoded_len()).min(self.wanted);
        let middle = pb::RangeResponse {
            kvs: part.kvs,
            ..pb::RangeResponse::default()
        };
        Ok((of(middle), Some(self)))
    }

    /// Reads a part, a smaller one if its pairs are too large.
    async fn read(&mut self) -> Result<pb::RangeResponse, Status> {
        loop {
            let mut call = self.call.clone();
            // Each part has the time of a request.
            call.arrived = std::time::Instant::now();
            let answer = self
                .services
                .answer::<RangeMethod>(&call, self.request.clone());
            match answer.await {
                Ok(answered) => return Ok(answered.answer),
                Err(Failure::Refused(Refusal::TooManyRequests)) if self.request.limit > 1 => {
                    self.request.limit /= 2;
                }
                Err(failure) => return Err(self.services.status(&call, failure)),
            }
        }
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

    #[test]
    fn the_next_part_begins_right_after_the_last_key() {
        assert_eq!(after(&Bytes::from_static(b"k")), b"k\0"[..]);
    }

    #[test]
    fn only_single_keys_and_counts_are_small() {
        let key = Range::new(Span::Key("k".into()));
        assert!(is_small(&key));
        let mut all = Range::new(Span::From("k".into()));
        assert!(!is_small(&all));
        all.count_only = true;
        assert!(is_small(&all));
    }
}
