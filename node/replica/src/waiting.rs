//! The requests that wait: writes for their turn and for their commit, reads for a quorum's word.
//!
//! # Invariants
//!
//! - A request is in exactly one of the queues here, or was answered.
//! - `proposed` ascends by index. An answer is matched by the whole [`EntryId`]: at the same index another leader's
//!   entry may have been committed, and its outcome is not this request's.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::{EntryId, Index, ReadTicket};

use crate::bug::Bug;
use crate::entry::OPERATION_OVERHEAD_BYTES;
use crate::{Options, Refusal, RequestId};

/// Writes on their way into the log and to their commit.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    queued: VecDeque<(RequestId, Bytes)>,
    proposed: VecDeque<Proposed>,
    count: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Proposed {
    id: EntryId,
    requests: Vec<RequestId>,
    bytes: usize,
}

impl Writes {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn push(
        &mut self,
        request: RequestId,
        operation: Bytes,
        options: &Options,
    ) -> Result<(), Refusal> {
        let (size, most) = (operation.len(), options.max_entry_bytes);
        if size + OPERATION_OVERHEAD_BYTES > most {
            return Err(Refusal::TooLarge {
                size: size as u64,
                limit: (most - OPERATION_OVERHEAD_BYTES) as u64,
            });
        }
        let limit = options.max_pending_bytes;
        if self.bytes > 0 && self.bytes + size > limit {
            return Err(Refusal::Overloaded {
                what: "bytes of pending writes",
                limit: limit as u64,
            });
        }
        self.count += 1;
        self.bytes += size;
        self.queued.push_back((request, operation));
        Ok(())
    }

    /// As many queued operations as one entry may hold, at least one, in order.
    pub(crate) fn next_batch(&self, max_bytes: usize) -> Vec<Bytes> {
        let mut bytes = 0;
        let fits = |(_, operation): &&(RequestId, Bytes)| {
            bytes += operation.len() + OPERATION_OVERHEAD_BYTES;
            bytes <= max_bytes
        };
        self.queued
            .iter()
            .take_while(fits)
            .map(|(_, operation)| operation.clone())
            .collect()
    }

    /// The first `count` queued operations went into the entry `id`.
    pub(crate) fn proposed(&mut self, id: EntryId, count: usize) {
        let taken: Vec<(RequestId, Bytes)> =
            self.queued.drain(..count.min(self.queued.len())).collect();
        let bytes = taken.iter().map(|(_, operation)| operation.len()).sum();
        let requests = taken.into_iter().map(|(request, _)| request).collect();
        self.proposed.push_back(Proposed {
            id,
            requests,
            bytes,
        });
    }

    /// The requests whose operations the entry `id` carries, in its order. Empty if they are not ours.
    pub(crate) fn take(&mut self, id: EntryId, by_index_only: bool) -> Vec<RequestId> {
        let ours = |proposed: &mut Proposed| {
            proposed.id == id || (by_index_only && proposed.id.index == id.index)
        };
        let Some(proposed) = self.proposed.pop_front_if(ours) else {
            return Vec::new();
        };
        self.count -= proposed.requests.len();
        self.bytes -= proposed.bytes;
        proposed.requests
    }

    /// The entry `id` is applied next: gives back the writes whose place in the log it took, or that a snapshot
    /// skipped. Without this they would wait for ever, and everything proposed later behind them.
    pub(crate) fn overtaken(&mut self, id: EntryId, by_index_only: bool) -> Vec<RequestId> {
        let mut unknown = Vec::new();
        let overtaken = |proposed: &mut Proposed| {
            proposed.id.index < id.index
                || (proposed.id.index == id.index && proposed.id != id && !by_index_only)
        };
        while let Some(proposed) = self.proposed.pop_front_if(overtaken) {
            self.count -= proposed.requests.len();
            self.bytes -= proposed.bytes;
            unknown.extend(proposed.requests);
        }
        unknown
    }

    /// Leadership is lost: gives back the writes that were not proposed, and those whose entry is not known to be
    /// committed. Of the others the log has an entry at their index: theirs, or one that overtakes them.
    pub(crate) fn fail(&mut self, commit: Index) -> (Vec<RequestId>, Vec<RequestId>) {
        let mut unknown = Vec::new();
        while let Some(proposed) = self
            .proposed
            .pop_back_if(|proposed| proposed.id.index > commit)
        {
            self.count -= proposed.requests.len();
            self.bytes -= proposed.bytes;
            unknown.extend(proposed.requests);
        }
        (self.fail_queued(), unknown)
    }

    pub(crate) fn fail_queued(&mut self) -> Vec<RequestId> {
        self.count -= self.queued.len();
        self.bytes -= self
            .queued
            .iter()
            .map(|(_, operation)| operation.len())
            .sum::<usize>();
        self.queued.drain(..).map(|(request, _)| request).collect()
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }
}

/// Reads on their way to a quorum's word and to the state that they may be answered from.
#[derive(Debug)]
pub(crate) struct Reads<Q> {
    queued: Vec<(RequestId, Q)>,
    asked: VecDeque<(ReadTicket, Vec<(RequestId, Q)>)>,
    granted: VecDeque<(Index, Vec<(RequestId, Q)>)>,
    count: usize,
}

impl<Q> Default for Reads<Q> {
    fn default() -> Self {
        Self {
            queued: Vec::new(),
            asked: VecDeque::new(),
            granted: VecDeque::new(),
            count: 0,
        }
    }
}

impl<Q> Reads<Q> {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn push(&mut self, request: RequestId, query: Q) {
        self.count += 1;
        self.queued.push((request, query));
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// All queued reads wait for `ticket` from now on.
    pub(crate) fn asked(&mut self, ticket: ReadTicket) {
        let queued = std::mem::take(&mut self.queued);
        match self.asked.back_mut() {
            Some((last, reads)) if *last == ticket => reads.extend(queued),
            _ => self.asked.push_back((ticket, queued)),
        }
    }

    pub(crate) fn granted(&mut self, ticket: ReadTicket, index: Index) {
        while let Some((_, reads)) = self.asked.pop_front_if(|(asked, _)| *asked <= ticket) {
            self.granted.push_back((index, reads));
        }
    }

    /// Reads that may be answered from a state that has applied `index`.
    pub(crate) fn answerable(&mut self, applied: Index) -> Vec<(RequestId, Q)> {
        let mut reads = Vec::new();
        while let Some((_, more)) = self.granted.pop_front_if(|(index, _)| *index <= applied) {
            reads.extend(more);
        }
        self.count -= reads.len();
        reads
    }

    /// Leadership is lost: gives back what no quorum vouched for.
    pub(crate) fn fail(&mut self) -> Vec<RequestId> {
        let asked = self.asked.drain(..).flat_map(|(_, reads)| reads);
        let failed: Vec<RequestId> = self
            .queued
            .drain(..)
            .chain(asked)
            .map(|(request, _)| request)
            .collect();
        self.count -= failed.len();
        failed
    }

    /// All of them.
    pub(crate) fn fail_all(&mut self) -> Vec<RequestId> {
        let mut failed = self.fail();
        failed.extend(
            self.granted
                .drain(..)
                .flat_map(|(_, reads)| reads)
                .map(|(request, _)| request),
        );
        self.count = 0;
        failed
    }
}

/// Whether answers are matched by index alone: a bug that the simulator puts back.
pub(crate) fn by_index_only(options: &Options) -> bool {
    options.bugs.has(Bug::AnswerByIndexOnly)
}
