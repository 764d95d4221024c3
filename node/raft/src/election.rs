//! Leader election: timeouts, pre-votes, votes, and the check that a leader still reaches a quorum
//! (Raft §5.2, §5.4.1; thesis §3.10, §4.2.3, §6.2, §9.6).

use std::collections::BTreeMap;

use types::NodeId;

use crate::bug::Bug;
use crate::leading::Leading;
use crate::progress::Progress;
use crate::{EntryId, HardState, Message, Payload, ProgressState, Raft, Role, StepError, Term};

/// The most pre-votes that a broken connection starts; after them only the election timeout does.
const MAX_HINT_TRIES: u32 = 6;
/// The bound of the random delay before the first such pre-vote, in ticks. The bound doubles with each of the next three
/// tries. The delay is random so that followers don't collide.
const FIRST_HINT_JITTER_TICKS: u32 = 4;

/// The state of elections that a node keeps in every role.
#[derive(Debug, Default)]
pub(crate) struct Election {
    /// Ticks since this follower heard its leader, or since it last campaigned.
    pub(crate) elapsed: u32,
    /// The randomised election timeout that is running, in ticks.
    pub(crate) timeout: u32,
    /// The answers to this candidate or pre-candidate: true for a granted vote.
    pub(crate) votes: BTreeMap<NodeId, bool>,
    /// True if the connection to the leader broke and no message of the leader arrived since.
    pub(crate) leader_lost: bool,
    /// Ticks until a pre-vote that a broken connection causes.
    pub(crate) hint_countdown: Option<u32>,
    /// Pre-votes that broken connections caused since the leader was lost.
    pub(crate) hint_tries: u32,
    /// Ticks since this node started. Below an election timeout, the node may have heard a leader and forgotten it.
    pub(crate) since_start: u32,
    /// True if the last known leader serves reads by lease: this node helps to elect another one only after a whole
    /// election timeout of silence, whatever terms arrive meanwhile.
    pub(crate) leader_has_lease: bool,
    /// Ticks since the last message of a leader.
    pub(crate) leader_silent: u32,
    /// Elections that this node started, for metrics.
    pub(crate) started: u64,
}

impl Raft {
    pub(crate) fn tick_follower(&mut self) {
        self.election.elapsed = self.election.elapsed.saturating_add(1);
        self.election.since_start = self.election.since_start.saturating_add(1);
        self.election.leader_silent = self.election.leader_silent.saturating_add(1);
        self.follower_reads.tick();
        let hinted = match self.election.hint_countdown {
            Some(0) => true,
            Some(ticks) => {
                self.election.hint_countdown = Some(ticks - 1);
                false
            }
            None => false,
        };
        if hinted || self.election.elapsed >= self.election.timeout {
            self.election.hint_countdown = None;
            self.start_pre_vote();
        }
    }

    pub(crate) fn tick_leader(&mut self) {
        self.leading.heartbeat_elapsed += 1;
        if self.leading.heartbeat_elapsed >= self.options.heartbeat_ticks {
            self.leading.heartbeat_elapsed = 0;
            self.leading.heartbeat_due = true;
        }
        self.reads.tick();
        self.tick_transfer();
        for progress in self.progress.values_mut() {
            progress.silent_ticks = progress.silent_ticks.saturating_add(1);
        }
        self.check_quorum();
    }

    /// Steps down if no quorum answered for an election timeout: another leader may exist already (thesis §6.2).
    fn check_quorum(&mut self) {
        let reached = self
            .log
            .membership()
            .has_quorum(|node| node == self.node || self.is_active(node));
        if !reached && self.options.check_quorum {
            self.become_follower(self.term(), None);
        }
    }

    /// Handles a broken connection to `node`. If `node` is the leader, this node asks for pre-votes soon, because
    /// waiting for the election timeout would lengthen the outage. Peers that still hear the leader refuse. On the
    /// leader, it probes `node` again.
    pub fn handle_disconnect(&mut self, node: NodeId) {
        if self.role == Role::Leader {
            if let Some(progress) = self.progress.get_mut(&node) {
                progress.restart();
            }
        } else if self.leader == Some(node) && !self.election.leader_has_lease {
            self.election.leader_lost = true;
            self.election.hint_tries = 0;
            self.schedule_hint();
        }
        self.check_invariants();
    }

    fn schedule_hint(&mut self) {
        if self.election.hint_countdown.is_none() && self.election.hint_tries < MAX_HINT_TRIES {
            let spread = FIRST_HINT_JITTER_TICKS << self.election.hint_tries.min(3);
            self.election.hint_tries += 1;
            self.election.hint_countdown = Some(self.random_below(spread));
        }
    }

    /// Returns true if this node heard a leader within the shortest election timeout, so that it needs no other leader.
    pub(crate) fn hears_leader(&self) -> bool {
        if self.lease_stands() {
            return true;
        }
        match self.role {
            Role::Leader => true,
            Role::Follower => {
                self.leader.is_some()
                    && !self.election.leader_lost
                    && self.election.elapsed < self.options.election_ticks
            }
            Role::PreCandidate | Role::Candidate => false,
        }
    }

    /// Returns true if a leader may still hold a lease that rests on an answer of this node. A node that just restarted
    /// may have forgotten such an answer. If it was given with a longer election timeout, only this
    /// one is kept.
    pub(crate) fn lease_stands(&self) -> bool {
        let keeps = self.options.lease_reads || self.options.keeps_leases;
        let just_started = keeps && self.election.since_start < self.options.election_ticks;
        let granted = self.election.leader_has_lease
            && self.election.leader_silent < self.options.election_ticks;
        self.role != Role::Leader && (just_started || granted)
    }

    /// Returns true if this node may campaign. A node whose removal is not committed may: if only its log has the
    /// removal, no other node can win (thesis §4.2.2).
    fn may_campaign(&self) -> bool {
        self.role != Role::Leader
            && self.log.may_be_voter(self.node)
            && self.term().next().next() < Term(u64::MAX)
    }

    fn start_pre_vote(&mut self) {
        self.reset_election_timer();
        // A node that may not campaign forgets the leader, too: other nodes need its vote.
        self.leader = None;
        if !self.may_campaign() {
            return;
        }
        self.role = Role::PreCandidate;
        self.election.votes.clear();
        self.election.votes.insert(self.node, true);
        let message = Message::PreVote {
            next_term: self.term().next(),
            last: self.log.last_id(),
        };
        self.ask_voters(&message);
        self.count_votes();
    }

    fn start_election(&mut self, transfer: bool) {
        if !self.may_campaign() {
            return;
        }
        self.reset_election_timer();
        self.election.hint_countdown = None;
        self.role = Role::Candidate;
        self.leader = None;
        self.hard_state = HardState {
            term: self.term().next(),
            vote: Some(self.node),
        };
        self.election.started += 1;
        self.election.votes.clear();
        self.election.votes.insert(self.node, true);
        let message = Message::Vote {
            last: self.log.last_id(),
            transfer,
        };
        self.ask_voters(&message);
        self.count_votes();
    }

    fn ask_voters(&mut self, message: &Message) {
        let voters: Vec<NodeId> = self
            .log
            .membership()
            .voters()
            .filter(|node| *node != self.node)
            .collect();
        for voter in voters {
            self.send(voter, message.clone());
        }
    }

    fn up_to_date(&self, last: EntryId) -> bool {
        last >= self.log.last_id() || self.bug(Bug::VoteIgnoresLog)
    }

    /// Answers whether this node would vote for the sender. It answers non-members, too, because its own membership may
    /// be stale. The answer changes no state, so it doesn't wait for the disk.
    pub(crate) fn handle_pre_vote(
        &mut self,
        from: NodeId,
        their_term: Term,
        next_term: Term,
        last: EntryId,
    ) {
        let granted = next_term > self.term()
            && their_term.next() == next_term
            && self.up_to_date(last)
            && !self.hears_leader();
        self.send(from, Message::PreVoteReply { next_term, granted });
    }

    pub(crate) fn handle_pre_vote_reply(&mut self, from: NodeId, next_term: Term, granted: bool) {
        if self.role == Role::PreCandidate && next_term == self.term().next() {
            self.election.votes.insert(from, granted);
            self.count_votes();
            self.retry_if_refused(granted);
        }
    }

    /// Schedules another pre-vote after a refusal if the leader was lost. Two followers that both lost the leader may
    /// refuse each other, and the dead leader never answers; a random retry is sooner than the election timeout.
    fn retry_if_refused(&mut self, granted: bool) {
        if !granted && self.election.leader_lost && self.role != Role::Leader {
            self.schedule_hint();
        }
    }

    pub(crate) fn handle_vote(&mut self, from: NodeId, last: EntryId) {
        let free = self.hard_state.vote.is_none_or(|vote| vote == from)
            && self.leader.is_none_or(|leader| leader == from);
        let granted = free && self.up_to_date(last);
        if granted {
            self.hard_state.vote = Some(from);
            self.become_follower(self.term(), self.leader);
            self.reset_election_timer();
        }
        self.send(from, Message::VoteReply { granted });
    }

    pub(crate) fn handle_vote_reply(&mut self, from: NodeId, granted: bool) {
        if self.role == Role::Candidate {
            self.election.votes.insert(from, granted);
            self.count_votes();
            self.retry_if_refused(granted);
        }
    }

    fn count_votes(&mut self) {
        let membership = self.log.membership();
        let won = membership.has_quorum(|node| self.election.votes.get(&node) == Some(&true));
        let possible = membership.has_quorum(|node| self.election.votes.get(&node) != Some(&false));
        match (self.role, won, possible) {
            (Role::PreCandidate, true, _) => self.start_election(false),
            (Role::Candidate, true, _) => self.become_leader(),
            (Role::PreCandidate | Role::Candidate, false, false) => {
                self.become_follower(self.term(), None);
            }
            _ => {}
        }
    }

    /// Makes this node a follower in `term` and clears the state that only leaders and candidates have.
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        if term > self.term() || self.leader != leader {
            self.follower_reads.forget_leader();
        }
        if term > self.term() {
            self.hard_state = HardState { term, vote: None };
        }
        if self.role != Role::Follower || self.leader != leader {
            self.reset_election_timer();
        }
        self.role = Role::Follower;
        self.leader = leader;
        self.progress.clear();
        self.reads.clear();
        self.leading = Leading::default();
    }

    /// Accepts `from` as the leader of this term and restarts the timers that measure its silence.
    pub(crate) fn follow(&mut self, from: NodeId) -> Result<(), StepError> {
        if let Some(leader) = self.leader.filter(|leader| *leader != from) {
            return Err(StepError::TwoLeaders {
                from,
                term: self.term(),
                leader,
            });
        }
        if self.role != Role::Follower || self.leader.is_none() {
            self.become_follower(self.term(), Some(from));
        }
        self.election.elapsed = 0;
        self.election.leader_silent = 0;
        self.election.leader_lost = false;
        self.election.hint_countdown = None;
        Ok(())
    }

    fn become_leader(&mut self) {
        self.role = Role::Leader;
        self.leader = Some(self.node);
        self.election.leader_lost = false;
        self.reads.clear();
        self.leading = Leading {
            first_index: self.log.last_index().next(),
            heartbeat_due: true,
            ..Leading::default()
        };
        self.progress = self
            .others()
            .into_iter()
            .map(|node| (node, Progress::new(self.log.last_index().next())))
            .collect();
        if self.bug(Bug::NoOwnTermNoop) {
            self.leading.first_index = self.log.commit_index();
            return;
        }
        self.append_own(Payload::Noop);
    }

    pub(crate) fn reset_election_timer(&mut self) {
        self.election.elapsed = 0;
        self.election.timeout =
            self.options.election_ticks + self.random_below(self.options.election_ticks);
    }

    /// Campaigns at the leader's request, without a pre-vote, because the leader wants to step down (thesis §3.10).
    pub(crate) fn handle_timeout_now(&mut self, from: NodeId) {
        if self.leader == Some(from) {
            self.start_election(true);
        }
    }

    /// Transfers leadership to `target`, or else to the voter with the longest log. The leader refuses new proposals
    /// until the transfer ends or an election timeout passed.
    pub fn transfer_leadership(&mut self, target: Option<NodeId>) -> Result<NodeId, TransferError> {
        if self.role != Role::Leader {
            return Err(TransferError::NotLeader);
        }
        let furthest = || {
            let voters = self
                .log
                .membership()
                .voters()
                .filter_map(|node| self.progress.get(&node).map(|progress| (node, progress)));
            voters
                .filter(|(_, p)| {
                    p.silent_ticks < self.options.election_ticks
                        && p.state != ProgressState::Snapshot
                })
                .max_by_key(|(_, p)| p.match_index)
                .map(|(node, _)| node)
        };
        let target = target.or_else(furthest).ok_or(TransferError::NoCandidate)?;
        if target == self.node {
            return Err(TransferError::AlreadyLeader);
        }
        let progress = self
            .progress
            .get(&target)
            .filter(|_| self.log.membership().is_voter(target))
            .ok_or(TransferError::NotVoter)?;
        if progress.state == ProgressState::Snapshot {
            return Err(TransferError::NeedsSnapshot);
        }
        self.leading.transfer = Some((target, 0));
        self.finish_transfer(target);
        self.check_invariants();
        Ok(target)
    }

    /// Sends `TimeoutNow` once the target holds the whole log and all of it is committed. A leader that steps down
    /// sooner can't report the outcome of the uncommitted entries, although they would not be lost.
    pub(crate) fn finish_transfer(&mut self, node: NodeId) {
        let last = self.log.last_index();
        let ready = self.log.commit_index() == last
            && self
                .progress
                .get(&node)
                .is_some_and(|progress| progress.match_index == last);
        if ready
            && self
                .leading
                .transfer
                .is_some_and(|(target, _)| target == node)
        {
            if !self.bug(Bug::LeaseAfterTimeoutNow) {
                self.leading.transferred = true;
                self.reads.forget_lease();
            }
            self.send(node, Message::TimeoutNow);
        }
    }

    /// Repeats `TimeoutNow` with the heartbeats and gives up after an election timeout, so that a lost message doesn't
    /// block the leader.
    fn tick_transfer(&mut self) {
        let Some((target, elapsed)) = &mut self.leading.transfer else {
            return;
        };
        *elapsed += 1;
        let (target, elapsed) = (*target, *elapsed);
        if elapsed >= self.options.election_ticks || !self.log.membership().is_voter(target) {
            self.leading.transfer = None;
        } else if self.leading.heartbeat_due {
            self.finish_transfer(target);
        }
    }
}

/// The reason for refusing a leadership transfer. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This node doesn't lead.
    #[error("this node doesn't lead")]
    NotLeader,
    /// The target leads already.
    #[error("the target leads already")]
    AlreadyLeader,
    /// The target is not a voter of the group.
    #[error("the target is not a voter")]
    NotVoter,
    /// The target needs a snapshot first; a transfer now would stop writes for long.
    #[error("the target needs a snapshot first")]
    NeedsSnapshot,
    /// No other voter answers.
    #[error("no other voter answers")]
    NoCandidate,
}
