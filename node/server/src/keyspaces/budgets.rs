//! The budgets of a node that keyspaces share.

use std::sync::Arc;
use std::time::Duration;

use api::v1::ErrorDetail;

use super::shares::{Bounds, FairBudget, Share};
use crate::options::Limits;

/// The most watch streams of a node.
pub(crate) const MAX_WATCH_STREAMS: usize = 20_000;
/// The most watches of a node.
pub(crate) const MAX_WATCHES: usize = 200_000;
/// The most streams of renewals of a node.
const MAX_RENEWAL_STREAMS: usize = 20_000;
/// The most reads of single keys and records of one keyspace that are at the reader threads.
const MAX_READS: usize = 16;
/// The most ranges of one keyspace that are at their reader threads.
const MAX_RANGE_READS: usize = 4;
/// The most calls of one keyspace that a node forwards at the same time. It is a quarter of what it forwards to one group by default, so that the
/// other keyspaces of the group find room.
const MAX_RELAYS: usize = 64;
/// The part of the time of a request for which a call waits. It waits twice at most.
const PATIENCE_PART: u32 = 4;
/// The most answers of one keyspace that wait for bytes of their budget.
const MAX_WAITING: usize = 1_024;

/// The least bytes of the most that a range may find. No request could write a larger pair.
const MIN_RANGE_BYTES: usize = 2 << 20;

/// The budgets that keyspaces share.
pub(crate) struct KeyspaceShares {
    pub(crate) requests: Arc<FairBudget>,
    request_bytes: Arc<FairBudget>,
    /// Calls that other nodes answer.
    pub(crate) relays: Arc<FairBudget>,
    /// Writes in the log's queue.
    pub(crate) proposals: Arc<FairBudget>,
    /// Reads of single keys and records at the reader threads.
    pub(crate) reads: Arc<FairBudget>,
    /// Ranges at their reader threads.
    pub(crate) range_reads: Arc<FairBudget>,
    /// Bytes of answers to reads of single keys.
    pub(crate) points: Arc<FairBudget>,
    /// Bytes of answers to ranges.
    pub(crate) ranges: Arc<FairBudget>,
    /// Bytes of pairs in the answers to writes.
    pub(crate) write_answers: Arc<FairBudget>,
    /// Bytes of answers of other nodes.
    pub(crate) relayed_ranges: Arc<FairBudget>,
    pub(crate) watch_streams: Arc<FairBudget>,
    pub(crate) watches: Arc<FairBudget>,
    pub(crate) renewal_streams: Arc<FairBudget>,
    /// Bytes of pages of the past that watches have read.
    pub(crate) watch_pages: Arc<FairBudget>,
    /// Bytes of large answers of streams that clients have not fetched.
    pub(crate) stream_answers: Arc<FairBudget>,
    /// The most bytes of the answer to one range.
    pub(crate) max_range_bytes: usize,
}

/// The shares of an unanswered call.
#[derive(Debug)]
pub(crate) struct CallShare {
    _request: Share,
    _bytes: Share,
}

/// The shares of a call. Work for it that goes on when the caller is gone keeps them to its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) call: Option<Arc<CallShare>>,
    /// The bytes of the answer to a write.
    pub(crate) answer: Option<Arc<Share>>,
}

/// The shares of a write in the log's queue, which it keeps until it is answered.
#[derive(Debug)]
pub(crate) struct ProposalShare {
    _turn: Share,
    _held: Held,
}

impl KeyspaceShares {
    /// Creates the budgets. A call waits for a part of the time of a request, so that it is refused, and doesn't end as one whose outcome is unknown.
    pub(crate) fn new(limits: &Limits, request_timeout: Duration) -> Self {
        let patience = request_timeout / PATIENCE_PART;
        let percent = limits.max_keyspace_share_percent;
        let bounds = |what, total| Bounds {
            what,
            total,
            max_each: usize::MAX,
            percent,
            max_waiting: 0,
            patience,
        };
        let budget = |what, total| FairBudget::new(bounds(what, total));
        let each = |what, total, max_each: usize, max_waiting| {
            FairBudget::new(Bounds {
                max_each: max_each.max(1),
                max_waiting,
                ..bounds(what, total)
            })
        };
        let answers = |total| {
            each(
                "bytes of answers of a keyspace",
                total,
                usize::MAX,
                MAX_WAITING,
            )
        };
        let of_streams = |what| {
            FairBudget::new(Bounds {
                // Each stream waits for one share at most, and long, because it ends if there is none.
                max_waiting: MAX_WATCH_STREAMS + MAX_RENEWAL_STREAMS,
                patience: request_timeout,
                ..bounds(what, limits.max_keyspace_read_bytes)
            })
        };
        let (pending, queued) = (limits.max_pending_requests, limits.max_keyspace_requests);
        let read_bytes = limits.max_keyspace_read_bytes;
        let ranges = answers(read_bytes);
        Self {
            requests: each("unanswered calls of a keyspace", pending, queued, 0),
            request_bytes: budget(
                "bytes of unanswered calls of a keyspace",
                limits.max_inflight_bytes,
            ),
            relays: each("forwarded calls of a keyspace", pending, MAX_RELAYS, queued),
            proposals: each(
                "proposals of a keyspace",
                pending,
                limits.max_keyspace_proposals,
                queued,
            ),
            reads: each("reads of a keyspace", usize::MAX, MAX_READS, queued),
            range_reads: each("ranges of a keyspace", usize::MAX, MAX_RANGE_READS, queued),
            points: answers(read_bytes / 4),
            max_range_bytes: max_range_bytes(ranges.bounds()),
            ranges,
            write_answers: answers(read_bytes),
            relayed_ranges: answers(read_bytes),
            watch_streams: budget("watch streams of a keyspace", MAX_WATCH_STREAMS),
            watches: budget("watches of a keyspace", MAX_WATCHES),
            renewal_streams: budget("streams of renewals of a keyspace", MAX_RENEWAL_STREAMS),
            watch_pages: of_streams("bytes of pages for watches of a keyspace"),
            stream_answers: of_streams("bytes of answers of a keyspace's streams"),
        }
    }

    /// Takes the share of a call of `bytes`, or refuses it at once.
    pub(crate) fn call(&self, keyspace: &str, bytes: usize) -> Result<CallShare, ErrorDetail> {
        Ok(CallShare {
            _request: self.requests.try_take(keyspace, 1)?,
            _bytes: self.request_bytes.try_take(keyspace, bytes)?,
        })
    }

    /// Takes the share of a write in the log's queue, for a call that holds shares already.
    pub(crate) async fn proposal(
        &self,
        keyspace: &str,
        held: Held,
    ) -> Result<ProposalShare, ErrorDetail> {
        Ok(ProposalShare {
            _turn: self.proposals.take(keyspace, 1).await?,
            _held: held,
        })
    }
}

/// Returns the most bytes of the answer to one range: so few that the largest finds room beside another keyspace that holds all it may. Where one
/// keyspace may hold nearly everything, it is an eighth.
fn max_range_bytes(bounds: &Bounds) -> usize {
    let least = (bounds.total / 8).max(MIN_RANGE_BYTES);
    bounds.most_beside_another().max(least).min(bounds.most())
}
