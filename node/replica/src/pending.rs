//! The pending requests: writes that wait to be proposed and committed, and reads that wait for the confirmation of a
//! quorum.
//!
//! # Invariants
//!
//! - Every request that is not answered is in exactly one of the queues here.
//! - `proposed` ascends by index. An answer is matched by the whole [`EntryId`]: at the same index another leader's
//!   entry may have been committed, and its outcome is not this request's.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::{EntryId, Index, ReadTicket};

use crate::bug::Bug;
use crate::entry::OPERATION_OVERHEAD_BYTES;
use crate::{Options, Refusal, RequestId};

/// The writes that are queued for the log, or proposed and not applied.
#[derive(Debug, Default)]
pub(crate) struct PendingWrites {
    queued: VecDeque<Queued>,
    proposed: VecDeque<Proposed>,
    count: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Queued {
    request: RequestId,
    operation: Bytes,
    /// The most work of applying it.
    work: u64,
}

#[derive(Debug)]
struct Proposed {
    id: EntryId,
    requests: Vec<RequestId>,
    bytes: usize,
}

impl PendingWrites {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn push(
        &mut self,
        request: RequestId,
        operation: Bytes,
        work: u64,
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
        self.queued.push_back(Queued {
            request,
            operation,
            work,
        });
        Ok(())
    }

    /// Returns as many queued operations as fit an entry by their bytes and their work, in order, and at least one.
    pub(crate) fn next_batch(&self, options: &Options) -> Vec<Bytes> {
        let (mut bytes, mut work) = (0, 0_u64);
        let bounded = !options.bugs.has(Bug::ApplyWithoutBudget);
        let fits = |queued: &&Queued| {
            let first = bytes == 0;
            bytes += queued.operation.len() + OPERATION_OVERHEAD_BYTES;
            work = work.saturating_add(queued.work);
            bytes <= options.max_entry_bytes
                && (first || !bounded || work <= options.max_apply_work)
        };
        self.queued
            .iter()
            .take_while(fits)
            .map(|queued| queued.operation.clone())
            .collect()
    }

    /// Records that the entry `id` carries the first `count` queued operations.
    pub(crate) fn mark_proposed(&mut self, id: EntryId, count: usize) {
        let taken: Vec<Queued> = self.queued.drain(..count.min(self.queued.len())).collect();
        let bytes = taken.iter().map(|queued| queued.operation.len()).sum();
        let requests = taken.into_iter().map(|queued| queued.request).collect();
        self.proposed.push_back(Proposed {
            id,
            requests,
            bytes,
        });
    }

    /// Takes the requests whose operations the entry `id` carries, in its order. Empty if another replica proposed it.
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

    /// Takes the writes that can no longer be answered, because the entry `id` is applied next. Another entry is committed at
    /// their index, or a snapshot skipped it. Otherwise they and all later writes would wait for ever.
    pub(crate) fn take_overtaken(&mut self, id: EntryId, by_index_only: bool) -> Vec<RequestId> {
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

    /// Takes the writes that the loss of leadership ends: those that were not proposed, and those whose entry is not known to
    /// be committed. The others wait for the entry at their index, which is theirs or overtakes them.
    pub(crate) fn take_failed(&mut self, commit: Index) -> (Vec<RequestId>, Vec<RequestId>) {
        let mut unknown = Vec::new();
        while let Some(proposed) = self
            .proposed
            .pop_back_if(|proposed| proposed.id.index > commit)
        {
            self.count -= proposed.requests.len();
            self.bytes -= proposed.bytes;
            unknown.extend(proposed.requests);
        }
        (self.take_queued(), unknown)
    }

    fn take_queued(&mut self) -> Vec<RequestId> {
        self.count -= self.queued.len();
        self.bytes -= self
            .queued
            .iter()
            .map(|queued| queued.operation.len())
            .sum::<usize>();
        self.queued.drain(..).map(|queued| queued.request).collect()
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }
}

/// The reads that wait for the confirmation of a quorum, or for the state to apply their index.
#[derive(Debug)]
pub(crate) struct PendingReads<Q> {
    queued: Vec<(RequestId, Q)>,
    asked: VecDeque<(ReadTicket, Vec<(RequestId, Q)>)>,
    granted: VecDeque<(Index, (RequestId, Q))>,
    count: usize,
}

impl<Q> Default for PendingReads<Q> {
    fn default() -> Self {
        Self {
            queued: Vec::new(),
            asked: VecDeque::new(),
            granted: VecDeque::new(),
            count: 0,
        }
    }
}

impl<Q> PendingReads<Q> {
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

    /// Records that all queued reads wait for `ticket`.
    pub(crate) fn mark_asked(&mut self, ticket: ReadTicket) {
        let queued = std::mem::take(&mut self.queued);
        match self.asked.back_mut() {
            Some((last, reads)) if *last == ticket => reads.extend(queued),
            _ => self.asked.push_back((ticket, queued)),
        }
    }

    /// Records that a quorum confirmed all reads up to `ticket`, which may be answered once `index` is applied.
    pub(crate) fn grant(&mut self, ticket: ReadTicket, index: Index) {
        while let Some((_, reads)) = self.asked.pop_front_if(|(asked, _)| *asked <= ticket) {
            self.granted
                .extend(reads.into_iter().map(|read| (index, read)));
        }
    }

    /// Takes the next read that may be answered from a state that has applied the entries up to `applied`.
    pub(crate) fn next_answerable(&mut self, applied: Index) -> Option<(RequestId, Q)> {
        let (_, read) = self.granted.pop_front_if(|(index, _)| *index <= applied)?;
        self.count -= 1;
        Some(read)
    }

    /// Returns true if a read may be answered from a state that has applied the entries up to `applied`.
    pub(crate) fn is_answerable(&self, applied: Index) -> bool {
        let next = self.granted.front();
        next.is_some_and(|(index, _)| *index <= applied)
    }

    /// Takes the reads that no quorum confirmed, because leadership was lost.
    pub(crate) fn take_failed(&mut self) -> Vec<RequestId> {
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

    /// Takes all reads.
    pub(crate) fn take_all(&mut self) -> Vec<RequestId> {
        let mut failed = self.take_failed();
        failed.extend(self.granted.drain(..).map(|(_, (request, _))| request));
        self.count = 0;
        failed
    }
}

/// Returns true if answers are matched by index alone, a bug that the simulator puts back.
pub(crate) fn by_index_only(options: &Options) -> bool {
    options.bugs.has(Bug::AnswerByIndexOnly)
}
