//! The linearizable reads of a follower: they wait for a read index of the leader, and then until this replica has applied it.
//!
//! A read that waits for an election timeout is refused with the leader's address, so that its caller asks the leader. For as long
//! after that, new reads are refused at once: the leader, the link to it or this replica is slow. So are reads while this replica is far
//! behind.
//!
//! # Invariants
//!
//! - Reads stand in the order of their arrival, in `granted` and then in `asked`. So their tickets and indexes ascend.
//! - A granted read stays right whoever leads: its index was committed by a leader that a quorum confirmed after the read came.

use std::collections::VecDeque;

use raft::{Index, Raft, ReadGrant, ReadTicket, Role};

use crate::bug::Bug;
use crate::{Answer, Outlet, Refusal, Replica, RequestId, StateMachine};

/// The most entries by which a replica that serves reads may be behind.
const MAX_LAG: u64 = 1_024;

/// The reads that wait on a follower.
#[derive(Debug)]
pub(crate) struct FollowerReads<Q> {
    asked: VecDeque<(ReadTicket, Waiting<Q>)>,
    granted: VecDeque<(Index, Waiting<Q>)>,
    /// Ticks since the start.
    now: u64,
    /// The tick until which reads are refused at once.
    refused_until: u64,
}

#[derive(Debug)]
struct Waiting<Q> {
    id: RequestId,
    query: Q,
    /// The tick at which the read is refused.
    until: u64,
}

impl<Q> Default for FollowerReads<Q> {
    fn default() -> Self {
        Self {
            asked: VecDeque::new(),
            granted: VecDeque::new(),
            now: 0,
            refused_until: 0,
        }
    }
}

impl<Q> FollowerReads<Q> {
    pub(crate) fn len(&self) -> usize {
        self.asked.len() + self.granted.len()
    }

    /// Takes a read that is to wait for `patience` ticks at most. Refuses it if this replica can't serve reads now.
    pub(crate) fn push(
        &mut self,
        raft: &mut Raft,
        applied: Index,
        patience: u32,
        (id, query): (RequestId, Q),
    ) -> Result<(), Refusal> {
        let lag = raft.group_commit().unwrap_or_default().since(applied);
        let leader = raft.leader();
        let refuse = |_| Refusal::NotLeader { leader };
        if self.now < self.refused_until || lag > MAX_LAG {
            return Err(Refusal::NotLeader { leader });
        }
        let ticket = raft.ask_read_index().map_err(refuse)?;
        let until = self.now.saturating_add(patience.into());
        self.asked.push_back((ticket, Waiting { id, query, until }));
        Ok(())
    }

    /// Records that the leader was confirmed after all reads up to a ticket came.
    pub(crate) fn grant(&mut self, grant: ReadGrant) {
        let ReadGrant { ticket, index } = grant;
        while let Some((_, read)) = self.asked.pop_front_if(|(asked, _)| *asked <= ticket) {
            self.granted.push_back((index, read));
        }
    }

    /// Advances time. Returns the reads that have waited for too long.
    pub(crate) fn tick(&mut self, patience: u32) -> Vec<RequestId> {
        self.now += 1;
        let now = self.now;
        let mut late = Vec::new();
        while let Some((_, read)) = self.granted.pop_front_if(|(_, read)| read.until <= now) {
            late.push(read.id);
        }
        while let Some((_, read)) = self.asked.pop_front_if(|(_, read)| read.until <= now) {
            late.push(read.id);
        }
        if !late.is_empty() {
            self.refused_until = now.saturating_add(patience.into());
        }
        late
    }

    /// Takes the next read that may be answered from a state that has applied the entries up to `applied`.
    fn pop_answerable(&mut self, applied: Index) -> Option<(RequestId, Q)> {
        let (_, read) = self.granted.pop_front_if(|(index, _)| *index <= applied)?;
        Some((read.id, read.query))
    }

    /// Takes the reads that no leader has confirmed yet.
    pub(crate) fn take_asked(&mut self) -> impl Iterator<Item = (RequestId, Q)> {
        let asked = self.asked.drain(..);
        asked.map(|(_, read)| (read.id, read.query))
    }

    /// Takes all reads.
    pub(crate) fn take_all(&mut self) -> Vec<RequestId> {
        let granted = self.granted.drain(..).map(|(_, read)| read.id);
        granted
            .chain(self.asked.drain(..).map(|(_, read)| read.id))
            .collect()
    }
}

impl<M: StateMachine> Replica<M> {
    /// Accepts a read that any replica may serve.
    pub(crate) fn admit_read_here(
        &mut self,
        id: RequestId,
        query: M::Query,
    ) -> Result<(), Refusal> {
        if self.raft.role() == Role::Leader {
            self.reads.push(id, query);
            return Ok(());
        }
        let patience = self.options.raft.election_ticks;
        let applied = self.applied.last.index;
        self.follower_reads
            .push(&mut self.raft, applied, patience, (id, query))
    }

    /// Refuses the reads of a follower that have waited for too long.
    pub(crate) fn tick_follower_reads(&mut self) {
        let leader = self.raft.leader();
        for id in self.follower_reads.tick(self.options.raft.election_ticks) {
            self.finished.push((id, Err(Refusal::NotLeader { leader })));
        }
    }

    /// Makes the reads that came while this replica followed a leader's own, if it leads now.
    pub(crate) fn adopt_follower_reads(&mut self) {
        if self.raft.role() == Role::Leader {
            for (id, query) in self.follower_reads.take_asked() {
                self.reads.push(id, query);
            }
        }
    }

    pub(crate) fn answer_follower_reads(
        &mut self,
        outlet: &mut dyn Outlet<M::Response>,
    ) -> Result<(), raft::StoreError> {
        let mut applied = self.applied.last.index;
        if self.options.bugs.has(Bug::FollowerReadBeforeApply) {
            applied = Index(u64::MAX);
        }
        while let Some((id, query)) = self.follower_reads.pop_answerable(applied) {
            let response = self.machine.query(&query, &*self.state)?;
            outlet.answer(id, Ok(Answer::Machine(response)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(tickets: &[u64]) -> FollowerReads<()> {
        let mut reads = FollowerReads::default();
        for (at, ticket) in (0..).zip(tickets) {
            let (id, until) = (RequestId(at), 10 + at);
            let waiting = Waiting {
                id,
                query: (),
                until,
            };
            reads.asked.push_back((ReadTicket(*ticket), waiting));
        }
        reads
    }

    fn grant(ticket: u64, index: u64) -> ReadGrant {
        ReadGrant {
            ticket: ReadTicket(ticket),
            index: Index(index),
        }
    }

    #[test]
    fn a_read_waits_for_its_question_and_then_for_its_index() {
        let mut reads = reads(&[5, 5, 6]);
        reads.grant(grant(4, 9));
        assert!(reads.pop_answerable(Index(100)).is_none());
        reads.grant(grant(5, 7));
        assert!(reads.pop_answerable(Index(6)).is_none());
        assert_eq!(reads.pop_answerable(Index(7)), Some((RequestId(0), ())));
        assert_eq!(reads.pop_answerable(Index(8)), Some((RequestId(1), ())));
        assert!(reads.pop_answerable(Index(100)).is_none());
        assert_eq!(reads.take_asked().collect::<Vec<_>>(), [(RequestId(2), ())]);
        assert_eq!(reads.len(), 0);
    }

    #[test]
    fn a_read_ends_also_if_its_index_is_never_applied() {
        let mut reads = reads(&[5, 6]);
        reads.grant(grant(5, 7));
        let late = |reads: &mut FollowerReads<()>| reads.tick(4);
        for _ in 0..9 {
            assert!(late(&mut reads).is_empty());
        }
        assert_eq!(late(&mut reads), [RequestId(0)]);
        assert_eq!(late(&mut reads), [RequestId(1)]);
        assert_eq!((reads.len(), reads.refused_until), (0, 15));
    }
}
