//! Linearizable reads on followers. A follower asks its leader for a *read index*: the leader's commit index, confirmed by a quorum
//! after the question arrived. Once the follower has applied that index, its state has all that was acknowledged before the
//! question was sent (thesis §6.4).
//!
//! One question serves all reads that wait when it is sent. Reads that come later wait for the next one, because an answer says
//! nothing about what was committed after its question. Questions have numbers, which the answers repeat. They begin at a random
//! number, so that a late answer to an earlier process of this node answers nothing.
//!
//! A leader tells with its heartbeats that it answers such questions. Older versions don't, and would break the
//! connection at a message that they don't know, so they are never asked.

use types::NodeId;

use crate::bug::Bug;
use crate::reads::ReadError;
use crate::ready::{ReadGrant, ReadTicket};
use crate::{Index, Message, Raft, Role};

/// The questions of a follower.
///
/// # Invariants
///
/// - `answered <= asked`.
/// - A read's ticket is the number of the first question that is sent after the read came.
#[derive(Debug, Default)]
pub(crate) struct FollowerReads {
    /// The number of the last question that was sent.
    asked: u64,
    /// The greatest number that was answered.
    answered: u64,
    /// True if reads wait for the next question.
    waiting: bool,
    /// The ticks since the last question was sent, while its answer is awaited from the present leader.
    age: Option<u32>,
    /// True if the present leader answers questions.
    leader_answers: bool,
    grants: Vec<ReadGrant>,
}

impl FollowerReads {
    /// Creates the questions of a process. `random` must differ from that of the node's earlier processes.
    pub(crate) fn new(random: u64) -> Self {
        // Half of the numbers are left, which no process uses up.
        let first = random >> 1;
        Self {
            asked: first,
            answered: first,
            ..Self::default()
        }
    }

    pub(crate) fn tick(&mut self) {
        self.age = self.age.map(|age| age.saturating_add(1));
    }

    /// Records that the leader of before is not, or no longer, the leader. What is not answered is asked again.
    pub(crate) fn forget_leader(&mut self) {
        self.leader_answers = false;
        self.age = None;
    }

    pub(crate) fn note_leader(&mut self, answers: bool) {
        self.leader_answers = answers;
    }

    pub(crate) fn take_grants(&mut self) -> Vec<ReadGrant> {
        std::mem::take(&mut self.grants)
    }

    pub(crate) fn has_grants(&self) -> bool {
        !self.grants.is_empty()
    }

    fn is_due(&self, repeat_after: u32) -> bool {
        let wanted = self.waiting || self.answered < self.asked;
        wanted && self.age.is_none_or(|age| age >= repeat_after)
    }
}

impl Raft {
    /// Returns true if this node follows a leader that answers [`Raft::ask_read_index`].
    pub fn may_ask_read_index(&self) -> bool {
        self.role == Role::Follower && self.leader.is_some() && self.follower_reads.leader_answers
    }

    /// Requests a linearizable read on a follower. A later [`Ready`](crate::Ready) grants the ticket, unless no leader answers. The
    /// question is repeated, also to later leaders, so the caller must give up after a while.
    pub fn ask_read_index(&mut self) -> Result<ReadTicket, ReadError> {
        if !self.may_ask_read_index() {
            return Err(ReadError::NotLeader {
                leader: self.leader,
            });
        }
        self.follower_reads.waiting = true;
        Ok(ReadTicket(self.follower_reads.asked + 1))
    }

    /// Returns true if a question to the leader is due.
    pub(crate) fn question_due(&self) -> bool {
        self.may_ask_read_index() && self.follower_reads.is_due(self.options.heartbeat_ticks)
    }

    pub(crate) fn send_question(&mut self) {
        let Some(leader) = self.leader.filter(|_| self.question_due()) else {
            return;
        };
        let reads = &mut self.follower_reads;
        reads.asked += 1;
        reads.waiting = false;
        reads.age = Some(0);
        let question = reads.asked;
        self.send(leader, Message::ReadIndex { question });
    }

    /// Takes in a follower's question. It is answered with the next read round, as this leader's own reads are, and not before this
    /// leader has committed in its term.
    pub(crate) fn handle_read_index(&mut self, from: NodeId, question: u64) {
        if self.role != Role::Leader || !self.progress.contains_key(&from) {
            return;
        }
        if self.bug(Bug::FollowerReadUnconfirmed) {
            let index = self.log.commit_index();
            self.send(from, Message::ReadIndexReply { question, index });
            return;
        }
        self.reads.ask_for(from, question);
    }

    pub(crate) fn handle_read_index_reply(&mut self, question: u64, index: Index) {
        let reads = &mut self.follower_reads;
        if question <= reads.answered || question > reads.asked {
            return;
        }
        reads.answered = question;
        if question == reads.asked {
            reads.age = None;
        }
        let mut ticket = ReadTicket(question);
        if self.options.bugs.has(Bug::FollowerReadOldAnswer) {
            ticket = ReadTicket(reads.asked + 1);
        }
        reads.grants.push(ReadGrant { ticket, index });
    }
}
