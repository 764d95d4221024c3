//! Linearizable reads. A leader asks a quorum whether it still leads, once for all waiting reads, and then answers from
//! its state machine as of the commit index when it asked (thesis §6.4). No read costs a log entry.
//!
//! With leases (off by default) a quorum's answer serves the reads of half an election timeout: followers elect no
//! other leader for a whole election timeout, and no clock is assumed to run more than twice as fast as another. That rests on each voter
//! of the quorum: it must hold votes back for as long, also after a restart that forgot its answer. Voters tell what they promise
//! with their answers to heartbeats. Options of members may differ, so the leader counts the shortest election timeout, and has no
//! lease until all voters promised. A voter that restarts with a shorter election timeout holds votes back for the shorter time only:
//! operators must not lower it to less than half at once while leases are in use.

use std::collections::{BTreeMap, VecDeque};

use types::NodeId;

use crate::bug::Bug;
use crate::ready::{ReadGrant, ReadTicket};
use crate::{Index, Message, Raft, Role};

/// The most unconfirmed rounds. Few, so that reads gather while they wait.
const MAX_ROUNDS: usize = 4;

/// The reason that this node can't serve a read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This node doesn't lead.
    #[error("this node doesn't lead")]
    NotLeader {
        /// The leader, if this node knows it.
        leader: Option<NodeId>,
    },
    /// This node leads, but has committed no entry of its term, so its commit index may be stale. The caller retries
    /// soon.
    #[error("the leader has not committed in its term yet")]
    NotReady,
}

/// Followers with the numbers of their questions.
type Questions = BTreeMap<NodeId, u64>;

#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// The number of the latest started round.
    round: u64,
    /// True if reads wait for a round to start.
    waiting: bool,
    /// The followers whose questions wait for a round to start, each with the number of its last one.
    questions: Questions,
    rounds: VecDeque<Round>,
    grants: Vec<ReadGrant>,
    clock: u64,
    /// The tick at which the latest confirmed round was started.
    lease_from: Option<u64>,
}

#[derive(Debug)]
struct Round {
    number: u64,
    index: Index,
    started: u64,
    /// True if reads of this leader wait for the round. Without these and without questions it only renews the lease.
    asked: bool,
    questions: Questions,
}

impl Reads {
    pub(crate) fn tick(&mut self) {
        self.clock += 1;
    }

    pub(crate) fn forget_lease(&mut self) {
        self.lease_from = None;
        // Rounds that started before the pause must not renew the lease.
        for round in &mut self.rounds {
            round.started = 0;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.waiting = false;
        self.questions.clear();
        self.rounds.clear();
        self.grants.clear();
        self.lease_from = None;
        // `round` is kept: a late answer to a round of an earlier term as leader must not confirm a round of this term.
    }

    pub(crate) fn take_grants(&mut self) -> Vec<ReadGrant> {
        std::mem::take(&mut self.grants)
    }

    pub(crate) fn has_grants(&self) -> bool {
        !self.grants.is_empty()
    }

    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// Lets a follower's question wait for the next round.
    pub(crate) fn ask_for(&mut self, follower: NodeId, question: u64) {
        let last = self.questions.entry(follower).or_default();
        *last = question.max(*last);
    }
}

impl Raft {
    /// Requests a linearizable read. A later [`Ready`](crate::Ready) grants the ticket, or none does if leadership is
    /// lost.
    pub fn read_index(&mut self) -> Result<ReadTicket, ReadError> {
        if self.role != Role::Leader {
            return Err(ReadError::NotLeader {
                leader: self.leader,
            });
        }
        if !self.knows_commit() && !self.bug(Bug::ReadBeforeOwnTermCommit) {
            return Err(ReadError::NotReady);
        }
        self.reads.waiting = true;
        Ok(ReadTicket(self.reads.round + 1))
    }

    fn has_lease(&self) -> bool {
        let holds = |from: u64| {
            from > 0 && self.reads.clock < from + u64::from(self.shortest_election_ticks() / 2)
        };
        self.options.lease_reads
            && !self.leading.transferred
            && self.reads.lease_from.is_some_and(holds)
    }

    /// Returns the shortest time, in ticks of this leader, for which all voters elect no other leader. Zero if one of them
    /// doesn't promise that, or hasn't told yet.
    fn shortest_election_ticks(&self) -> u32 {
        let own = self.options.election_ticks;
        let followers = self.log.membership().voters().filter(|it| *it != self.node);
        let promises = followers.map(|node| {
            let lease = self.progress.get(&node).and_then(|it| it.lease);
            lease.unwrap_or_default().election_ms / self.options.tick_ms.max(1)
        });
        promises.min().map_or(own, |shortest| shortest.min(own))
    }

    pub(crate) fn serves_by_lease(&self) -> bool {
        self.options.lease_reads && !self.leading.transferred
    }

    /// Returns true if a read round is due to start.
    pub(crate) fn read_round_due(&self) -> bool {
        let knows = || self.knows_commit() || self.bug(Bug::FollowerReadOwnTermMissing);
        let asked = self.reads.waiting || (!self.reads.questions.is_empty() && knows());
        self.role == Role::Leader && asked && self.reads.rounds.len() < MAX_ROUNDS
    }

    /// Starts a round for the waiting reads, or one that only renews the lease. Returns true if its heartbeats must be
    /// sent, and false if the lease serves the reads.
    pub(crate) fn start_read_round(&mut self) -> bool {
        let index = self.log.commit_index();
        self.reads.round += 1;
        let number = self.reads.round;
        let waiting = std::mem::take(&mut self.reads.waiting);
        let mut questions = std::mem::take(&mut self.reads.questions);
        let wanted = waiting || !questions.is_empty();
        let served = wanted && (self.has_lease() || self.bug(Bug::ReadWithoutQuorum));
        if served {
            self.grant_round(number, index, waiting, std::mem::take(&mut questions));
            if !self.leading.heartbeat_due {
                return false;
            }
        }
        // Zero marks a round from before a pause.
        let started = self.reads.clock.max(1);
        self.reads.rounds.push_back(Round {
            number,
            index,
            started,
            asked: waiting && !served,
            questions,
        });
        self.confirm_reads();
        true
    }

    /// Grants the rounds that a quorum answered. An answer to a round counts for all rounds before it.
    pub(crate) fn confirm_reads(&mut self) {
        while let Some(round) = self.reads.rounds.pop_front_if(|round| {
            let answered = |node: NodeId| {
                let progress = self.progress.get(&node);
                node == self.node || progress.is_some_and(|p| p.read_round >= round.number)
            };
            self.log.membership().has_quorum(answered)
        }) {
            self.reads.lease_from = self
                .reads
                .lease_from
                .max(Some(round.started).filter(|started| *started > 0));
            self.grant_round(round.number, round.index, round.asked, round.questions);
        }
    }

    /// Grants the reads of a confirmed round, and answers its questions.
    fn grant_round(&mut self, number: u64, index: Index, asked: bool, questions: Questions) {
        if asked {
            let ticket = ReadTicket(number);
            self.reads.grants.push(ReadGrant { ticket, index });
        }
        for (follower, question) in questions {
            self.send(follower, Message::ReadIndexReply { question, index });
        }
    }
}
