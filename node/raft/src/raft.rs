//! The consensus state of one member, and its public methods.
//!
//! Other modules implement the parts: `election` (leader election and transfer), `replication` (proposals, appends and
//! commit), `reads` (`ReadIndex` and leases), `follower_reads`, `change` (membership), and `output` (messages, writes, entries to apply).

use std::collections::{BTreeMap, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use types::NodeId;

use crate::bug::{Bug, CHECKS_INVARIANTS};
use crate::election::Election;
use crate::follower_reads::FollowerReads;
use crate::leading::Leading;
use crate::log::RaftLog;
use crate::output::Outbox;
use crate::progress::Progress;
use crate::reads::Reads;
use crate::store::{LogReader, LogState, StoreError};
use crate::{
    Comparison, EntryId, Envelope, HardState, Index, Membership, Message, Options, OptionsError,
    ProgressState, Role, SnapshotMeta, StateDigest, StepError, Stepped, Term,
};

/// One member of a group: consensus without I/O.
///
/// Inputs are [`step`](Self::step) (a message), [`tick`](Self::tick) (time), [`propose`](Self::propose),
/// [`read_index`](Self::read_index), [`change_membership`](Self::change_membership),
/// [`transfer_leadership`](Self::transfer_leadership) and [`handle_disconnect`](Self::handle_disconnect). After any
/// number of them the driver takes a [`Ready`](crate::Ready), carries it out, and gives back the token of its write.
///
/// # Invariants
///
/// - The term never goes back; in a term this member votes at most once and never changes the vote.
/// - Only a leader creates entries, and only at its log's end.
/// - The commit index only advances, and only over entries that a quorum holds durably, the last of them of the
///   leader's own term (Raft §5.4.2).
/// - A leader knows itself as the leader, and tracks exactly the other members of the membership in force, with match
///   indexes within its own log. In any other role the member tracks no follower, and has no transfer and no
///   uncommitted proposals.
/// - A candidate voted for itself. Candidates and pre-candidates know no leader.
///
/// Debug builds and the simulator check the state after each input; see `check_invariants`.
#[derive(Debug)]
pub struct Raft {
    pub(crate) node: NodeId,
    pub(crate) options: Options,
    pub(crate) hard_state: HardState,
    /// The durable hard state, which may lag behind `hard_state`.
    pub(crate) durable_hard_state: HardState,
    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,
    pub(crate) log: RaftLog,
    pub(crate) progress: BTreeMap<NodeId, Progress>,
    pub(crate) outbox: Outbox,
    pub(crate) reads: Reads,
    pub(crate) follower_reads: FollowerReads,
    pub(crate) election: Election,
    pub(crate) leading: Leading,
    /// The greatest commit index in the appends of leaders since the start.
    pub(crate) leader_commit: Option<Index>,
    /// The comparison of states in the heartbeats of this leader.
    pub(crate) comparison: Option<Comparison>,
    /// The digest in this member's answers to heartbeats.
    pub(crate) digest: Option<StateDigest>,
    random: ChaCha8Rng,
}

impl Raft {
    /// Starts a member from its stored log. `applied` is the index that the state machine holds durably. `seed` feeds
    /// the election timeouts and the numbers of a follower's questions. It must differ between members, and between starts of a
    /// member: otherwise an answer to an earlier process could confirm a read.
    pub fn recover(
        options: Options,
        node: NodeId,
        state: &LogState,
        applied: Index,
        seed: u64,
        reader: &dyn LogReader,
    ) -> Result<Self, RecoverError> {
        options.validate()?;
        // A generator of its own, so that the election timeouts don't depend on it.
        let questions = ChaCha8Rng::seed_from_u64(!(seed ^ node.0)).next_u64();
        let log = RaftLog::recover(
            state,
            applied,
            (options.max_cached_bytes, options.max_backlog_bytes),
            reader,
        )?;
        let mut raft = Self {
            node,
            options,
            hard_state: state.hard_state,
            durable_hard_state: state.hard_state,
            role: Role::Follower,
            leader: None,
            log,
            progress: BTreeMap::new(),
            outbox: Outbox::default(),
            reads: Reads::default(),
            follower_reads: FollowerReads::new(questions),
            election: Election::default(),
            leading: Leading::default(),
            leader_commit: None,
            comparison: None,
            digest: None,
            random: ChaCha8Rng::seed_from_u64(seed ^ node.0),
        };
        raft.reset_election_timer();
        Ok(raft)
    }

    /// Handles a message. Its effects leave with the next [`Ready`](crate::Ready).
    pub fn step(&mut self, envelope: Envelope) -> Result<Stepped, StepError> {
        let stepped = self.route(envelope);
        self.check_invariants();
        stepped
    }

    /// Applies the rules about terms and leases, then passes the message to the handler of its kind.
    fn route(&mut self, envelope: Envelope) -> Result<Stepped, StepError> {
        self.check_envelope(&envelope)?;
        if let Message::JoinRequest { address } = envelope.message {
            return Ok(Stepped::JoinRequest {
                node: envelope.from,
                address,
            });
        }
        // A request for a vote must not raise this node's term while it hears a leader (thesis §4.2.3, §9.6), and a
        // pre-vote never does.
        match &envelope.message {
            Message::PreVote { next_term, last } => {
                self.handle_pre_vote(envelope.from, envelope.term, *next_term, *last);
                return Ok(Stepped::Done);
            }
            Message::Vote { transfer, .. }
                if envelope.term > self.term() && !transfer && self.hears_leader() =>
            {
                return Ok(Stepped::Done);
            }
            // The candidate's term may have arrived here before its request for a vote did; it must not break a lease.
            Message::Vote { transfer, .. }
                if envelope.term == self.term() && !transfer && self.lease_stands() =>
            {
                return Ok(Stepped::Done);
            }
            // A peer in an earlier term answers in its own term, and its answer counts.
            Message::PreVoteReply { next_term, granted } if envelope.term <= self.term() => {
                self.handle_pre_vote_reply(envelope.from, *next_term, *granted);
                return Ok(Stepped::Done);
            }
            _ => {}
        }
        if envelope.term > self.term() {
            self.become_follower(envelope.term, None);
        } else if envelope.term < self.term() && !self.accepts_stale(&envelope.message) {
            self.answer_stale(&envelope);
            return Ok(Stepped::Done);
        }
        self.dispatch(envelope)
    }

    fn dispatch(&mut self, envelope: Envelope) -> Result<Stepped, StepError> {
        let from = envelope.from;
        match envelope.message {
            Message::Vote { last, .. } => self.handle_vote(from, last),
            Message::VoteReply { granted } => self.handle_vote_reply(from, granted),
            Message::PreVoteReply { next_term, granted } => {
                self.handle_pre_vote_reply(from, next_term, granted);
            }
            Message::Append {
                prev,
                entries,
                commit,
            } => self.handle_append(from, prev, entries, commit)?,
            Message::AppendAccepted { match_index } => self.handle_accepted(from, match_index)?,
            Message::AppendRejected { refused, hint } => self.handle_rejected(from, refused, hint),
            Message::Heartbeat {
                commit,
                read_round,
                lease,
                quiet,
                comparison: _,
                answers_reads,
            } => self.handle_heartbeat(from, commit, read_round, (lease, answers_reads), quiet)?,
            Message::HeartbeatReply {
                read_round,
                feature_level,
                lease,
                digest,
            } => {
                if let Some(progress) = self.progress.get_mut(&from) {
                    progress.feature_level = Some(feature_level);
                    progress.lease = Some(lease);
                    progress.digest = digest.or(progress.digest);
                }
                self.handle_heartbeat_reply(from, read_round);
            }
            Message::ReadIndex { question } => self.handle_read_index(from, question),
            Message::ReadIndexReply { question, index } => {
                self.handle_read_index_reply(question, index);
            }
            Message::TimeoutNow => self.handle_timeout_now(from),
            Message::SnapshotChunk(ref chunk) => {
                self.check_committed(from, chunk.meta.last)?;
                self.follow(from)?;
                return Ok(Stepped::Snapshot(envelope));
            }
            Message::SnapshotReply { .. } if self.role == Role::Leader => {
                if let Some(progress) = self.progress.get_mut(&from) {
                    progress.hear();
                }
                return Ok(Stepped::Snapshot(envelope));
            }
            Message::SnapshotReply { .. }
            | Message::PreVote { .. }
            | Message::JoinRequest { .. } => {}
        }
        Ok(Stepped::Done)
    }

    fn check_envelope(&self, envelope: &Envelope) -> Result<(), StepError> {
        let malformed = |what| {
            Err(StepError::Malformed {
                from: envelope.from,
                what,
            })
        };
        let for_anyone =
            matches!(envelope.message, Message::JoinRequest { .. }) && envelope.to == NodeId(0);
        if envelope.to != self.node && !for_anyone {
            return Err(StepError::NotForThisNode {
                to: envelope.to,
                this: self.node,
            });
        }
        if envelope.from == self.node || envelope.from == NodeId(0) {
            return malformed("the sender is this node or no node");
        }
        if envelope.term == Term(u64::MAX) {
            return malformed("the term is at its maximum");
        }
        match &envelope.message {
            Message::Append { prev, entries, .. } => {
                let mut before = *prev;
                for entry in entries {
                    if entry.id.index != before.index.next()
                        || entry.id.term < before.term
                        || entry.id.term > envelope.term
                    {
                        return malformed("entries are not contiguous, or of a later term");
                    }
                    before = entry.id;
                }
                Ok(())
            }
            Message::SnapshotChunk(chunk) if chunk.meta.last.term > envelope.term => {
                malformed("the snapshot is of a later term")
            }
            _ => Ok(()),
        }
    }

    /// Tells the sender of a message with an older term about this term: a deposed leader steps down, and a candidate
    /// that missed elections catches up. Otherwise both nodes could wait for each other for ever.
    fn answer_stale(&mut self, envelope: &Envelope) {
        let refused = match &envelope.message {
            Message::Vote { .. } => Message::VoteReply { granted: false },
            Message::Append { prev, .. } => Message::AppendRejected {
                refused: prev.index,
                hint: EntryId::default(),
            },
            // Not the round of the heartbeat: the answer has this node's term. If the sender restarted and leads in
            // that term, its rounds began anew, and it would count the answer for its new rounds.
            Message::Heartbeat { .. } => Message::HeartbeatReply {
                read_round: 0,
                feature_level: self.options.feature_level,
                lease: self.options.lease_promise(),
                digest: None,
            },
            Message::SnapshotChunk(chunk) => Message::SnapshotReply {
                snapshot: chunk.meta.last,
                serial: chunk.serial,
                next_chunk: 0,
                status: crate::SnapshotStatus::Failed,
            },
            _ => return,
        };
        self.send(envelope.from, refused);
    }

    fn accepts_stale(&self, message: &Message) -> bool {
        self.bug(Bug::StaleAppendAck) && matches!(message, Message::AppendAccepted { .. })
    }

    /// Advances time by one tick.
    pub fn tick(&mut self) {
        if self.role == Role::Leader {
            self.tick_leader();
        } else {
            self.tick_follower();
        }
        self.check_invariants();
    }

    /// Invalidates leases after time passed without ticks, for example while the process was paused. The driver calls
    /// it before it passes any other input in.
    pub fn handle_pause(&mut self) {
        self.reads.forget_lease();
    }

    /// Returns the id of this node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the current term.
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// Returns the role of this node.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Returns the leader, if this node knows it.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// Returns the greatest index known to be committed in this node's log.
    pub fn commit_index(&self) -> Index {
        self.log.commit_index()
    }

    /// Returns the greatest index known to be committed in the group, even beyond this node's log. On a leader that is
    /// its commit index, or `None` until it has committed in its term. On other nodes it is the greatest commit index
    /// in the appends of leaders since the start, or `None` before the first. Heartbeats don't count: their commit
    /// index is limited to the entries that this node holds.
    pub fn group_commit(&self) -> Option<Index> {
        match self.role {
            Role::Leader => self.knows_commit().then(|| self.commit_index()),
            _ => self.leader_commit,
        }
    }

    /// Returns the last index handed out for applying.
    pub fn applying_index(&self) -> Index {
        self.log.applying_index()
    }

    /// Returns the id of the log's last entry.
    pub fn last_id(&self) -> EntryId {
        self.log.last_id()
    }

    /// Returns the id of the last compacted entry, after which the log starts.
    pub fn compacted(&self) -> EntryId {
        self.log.base()
    }

    /// Returns the membership in force: the latest in the log, committed or not.
    pub fn membership(&self) -> &Membership {
        self.log.membership()
    }

    /// Returns true if `id` is in the log, or is the last compacted entry.
    pub fn holds(&self, id: EntryId) -> bool {
        self.log.contains(id)
    }

    /// Returns true if [`holds`](Self::holds) does and the entry is durable.
    pub fn holds_durably(&self, id: EntryId) -> bool {
        self.log.contains(id) && id.index <= self.log.persisted_index()
    }

    /// Returns the number of elections that this node started.
    pub fn elections_started(&self) -> u64 {
        self.election.started
    }

    /// Returns the id, match index and state of each follower on the leader; nothing on other nodes.
    pub fn progress(&self) -> impl Iterator<Item = (NodeId, Index, ProgressState)> {
        let leads = self.role == Role::Leader;
        self.progress
            .iter()
            .filter(move |_| leads)
            .map(|(node, progress)| (*node, progress.match_index, progress.state))
    }

    /// Returns the growth of the log up to the applied index with which this member started: for some indexes from the
    /// base on, the bytes of the entries up to each. Later calls return nothing.
    pub fn take_growth(&mut self) -> VecDeque<(Index, u64)> {
        self.log.take_growth()
    }

    /// Drops entries up to `index`, whose effects are durable in the state machine. Returns the base to pass to the
    /// store, or `None` if there is nothing to drop.
    pub fn compact(&mut self, index: Index) -> Option<SnapshotMeta> {
        let base = self.log.compact(index);
        self.check_invariants();
        base
    }

    /// Returns true if this node leads and `node` answered within an election timeout.
    pub fn is_active(&self, node: NodeId) -> bool {
        let heard = |progress: &Progress| progress.silent_ticks < self.options.election_ticks;
        self.progress.get(&node).is_some_and(heard)
    }

    /// Returns true if this node leads, and `node` answered in this term and within an election timeout.
    pub fn has_answered_lately(&self, node: NodeId) -> bool {
        self.is_active(node) && self.progress.get(&node).is_some_and(|p| p.answered)
    }

    /// Returns true if this node leads and is transferring leadership, so that it refuses proposals.
    pub fn is_transferring(&self) -> bool {
        self.leading.transfer.is_some()
    }

    /// Returns true if this node leads and the learner `node` may become a voter.
    pub fn is_caught_up(&self, node: NodeId) -> bool {
        self.is_active(node) && self.check_caught_up(node).is_ok()
    }

    /// Sends the configured peers a request to add this node, reachable at `address`, to the group.
    pub fn ask_to_join(&mut self, address: &str) {
        self.send(
            NodeId(0),
            Message::JoinRequest {
                address: address.to_owned(),
            },
        );
    }

    /// Sends a snapshot chunk or the answer to one, in the current term. An answer with status `Installed` waits until
    /// the log is durable up to the snapshot's end.
    pub fn send_snapshot_message(&mut self, to: NodeId, message: Message) {
        self.send(to, message);
    }

    /// Panics if the state violates the invariants of this type. Does nothing in the product's build.
    pub(crate) fn check_invariants(&self) {
        if !CHECKS_INVARIANTS {
            return;
        }
        self.log.check_invariants();
        assert!(
            self.durable_hard_state.term <= self.hard_state.term,
            "the term went back"
        );
        if self.role == Role::Leader {
            assert!(self.leader == Some(self.node), "a leader knows itself");
            let mut others = 0;
            for (node, _) in self.log.membership().members() {
                if node != self.node {
                    others += 1;
                    assert!(self.progress.contains_key(&node), "{node} isn't tracked");
                }
            }
            assert!(self.progress.len() == others, "only members are tracked");
            for progress in self.progress.values() {
                progress.check_invariants(self.log.last_index());
            }
            return;
        }
        assert!(self.progress.is_empty(), "only a leader tracks followers");
        assert!(
            self.leading.transfer.is_none() && self.leading.uncommitted.is_empty(),
            "only a leader transfers and proposes"
        );
        if matches!(self.role, Role::PreCandidate | Role::Candidate) {
            assert!(self.leader.is_none(), "a candidate knows no leader");
        }
        if self.role == Role::Candidate {
            assert!(
                self.hard_state.vote == Some(self.node),
                "a candidate votes for itself"
            );
        }
    }

    pub(crate) fn bug(&self, bug: Bug) -> bool {
        self.options.bugs.has(bug)
    }

    pub(crate) fn random_below(&mut self, bound: u32) -> u32 {
        if bound == 0 {
            0
        } else {
            self.random.next_u32() % bound
        }
    }

    pub(crate) fn others(&self) -> Vec<NodeId> {
        self.log
            .membership()
            .members()
            .map(|(node, _)| node)
            .filter(|node| *node != self.node)
            .collect()
    }
}

/// The reason that Raft can't start. The node must not vote then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The log is damaged or can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings contradict each other.
    #[error(transparent)]
    Options(#[from] OptionsError),
}
