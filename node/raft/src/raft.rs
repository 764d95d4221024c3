//! The consensus state of one member, and the doors through which the world reaches it.
//!
//! The rooms behind the doors: `election` (who leads), `replication` (what is in the log), `reads` (what may be
//! read), `change` (who belongs), and `output` (what leaves: messages, writes, entries to apply).

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use types::NodeId;

use crate::bug::Bug;
use crate::election::Election;
use crate::log::RaftLog;
use crate::output::Outbox;
use crate::progress::Progress;
use crate::reads::Reads;
use crate::store::{LogReader, LogState, StoreError};
use crate::{
    EntryId, Envelope, HardState, Index, Membership, Message, Options, OptionsError, ProgressState,
    Role, SnapshotMeta, Term,
};

/// True if each input is followed by a check of all invariants: in debug builds and in the simulator's.
pub(crate) const CHECKS_INVARIANTS: bool = cfg!(any(debug_assertions, feature = "bugs"));

/// One member of a group: consensus without I/O.
///
/// Inputs are [`step`](Self::step) (a message), [`tick`](Self::tick) (time), [`propose`](Self::propose),
/// [`read_index`](Self::read_index), [`change_membership`](Self::change_membership),
/// [`transfer_leadership`](Self::transfer_leadership) and [`handle_disconnect`](Self::handle_disconnect). After any
/// number of them the driver takes a [`Ready`](crate::Ready), does what it says, and gives back the token of its write.
///
/// # Invariants
///
/// - The term never goes back; in a term at most one vote is given and never changed.
/// - Only a leader appends entries of its own making, and only at its log's end.
/// - The commit index only advances, and only over entries that a quorum holds durably, the last of them of the
///   leader's own term (Raft §5.4.2).
/// - A leader knows itself as the leader, and tracks exactly the other members of the membership in force, none of them
///   beyond the end of its own log. Any other role tracks nobody, transfers nothing and has no uncommitted proposals.
/// - A candidate voted for itself. Candidates and pre-candidates know no leader.
///
/// Debug builds and the simulator check the state after each input; see `check_invariants`.
#[derive(Debug)]
pub struct Raft {
    pub(crate) node: NodeId,
    pub(crate) options: Options,
    pub(crate) hard_state: HardState,
    /// What the disk holds of `hard_state`.
    pub(crate) durable_hard_state: HardState,
    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,
    pub(crate) log: RaftLog,
    pub(crate) progress: BTreeMap<NodeId, Progress>,
    pub(crate) outbox: Outbox,
    pub(crate) reads: Reads,
    pub(crate) election: Election,
    pub(crate) leading: Leading,
    /// The greatest commit index that a leader told since the start.
    pub(crate) leader_commit: Option<Index>,
    random: ChaCha8Rng,
}

/// The state that a leader keeps for its term.
#[derive(Debug, Default)]
pub(crate) struct Leading {
    /// The index of the no-op that begins the term.
    pub(crate) first_index: Index,
    /// Ticks since the last heartbeat.
    pub(crate) heartbeat_elapsed: u32,
    pub(crate) heartbeat_due: bool,
    /// The target of a leadership transfer, and the ticks since it began.
    pub(crate) transfer: Option<(NodeId, u32)>,
    /// A `TimeoutNow` left in this term. A delayed one could elect another leader during the lease, so leases are off for
    /// the rest of this term.
    pub(crate) transferred: bool,
    /// Index and size of each entry that is proposed and not committed.
    pub(crate) uncommitted: std::collections::VecDeque<(Index, usize)>,
    pub(crate) uncommitted_bytes: usize,
}

/// A message that needs more than Raft's own answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Stepped {
    /// All is done.
    Done,
    /// A snapshot message of the current term, for whoever moves snapshots.
    Snapshot(Envelope),
    /// A node at this address asks the leader to let it in.
    JoinRequest {
        /// Who asks.
        node: NodeId,
        /// Where it is reached.
        address: String,
    },
}

/// Why a message was refused. Nothing changed but, perhaps, the term.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// It is for another node: the sender's address book is stale.
    #[error("message for {to}, but this is {this}")]
    NotForThisNode {
        /// Whom it is for.
        to: NodeId,
        /// Who got it.
        this: NodeId,
    },
    /// Its parts contradict each other or what this node knows for certain.
    #[error("malformed message from {from}: {what}")]
    Malformed {
        /// Who sent it.
        from: NodeId,
        /// What is wrong.
        what: &'static str,
    },
    /// It would overwrite a committed entry: the sender belongs to another history. Check that no disk was
    /// restored from a copy and no node id is used twice.
    #[error("{from} contradicts the committed entry {committed}")]
    ContradictsCommitted {
        /// Who sent it.
        from: NodeId,
        /// The entry.
        committed: EntryId,
    },
}

impl Raft {
    /// Starts from what the log holds. `applied` is the index that the state machine holds durably. `seed` feeds the
    /// election timeouts and must differ between members.
    pub fn recover(
        options: Options,
        node: NodeId,
        state: &LogState,
        applied: Index,
        seed: u64,
        reader: &dyn LogReader,
    ) -> Result<Self, RecoverError> {
        options.validate()?;
        let log = RaftLog::recover(state, applied, options.max_cached_bytes, reader)?;
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
            election: Election::default(),
            leading: Leading::default(),
            leader_commit: None,
            random: ChaCha8Rng::seed_from_u64(seed ^ node.0),
        };
        raft.reset_election_timer();
        Ok(raft)
    }

    /// Takes a message in. What it causes leaves with the next [`Ready`](crate::Ready).
    pub fn step(&mut self, envelope: Envelope) -> Result<Stepped, StepError> {
        let stepped = self.route(envelope);
        self.check_invariants();
        stepped
    }

    /// Applies the rules about terms and leases, then passes the message on to the handler of its kind.
    fn route(&mut self, envelope: Envelope) -> Result<Stepped, StepError> {
        self.check_envelope(&envelope)?;
        if let Message::JoinRequest { address } = envelope.message {
            return Ok(Stepped::JoinRequest {
                node: envelope.from,
                address,
            });
        }
        // Asking for votes must not raise anyone's term while a leader is heard (thesis §4.2.3, §9.6), and a
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
            } => self.handle_heartbeat(from, commit, read_round, lease)?,
            Message::HeartbeatReply { read_round } => self.handle_heartbeat_reply(from, read_round),
            Message::TimeoutNow => self.handle_timeout_now(from),
            Message::SnapshotChunk(_) => {
                self.follow(from)?;
                return Ok(Stepped::Snapshot(envelope));
            }
            Message::SnapshotReply { .. } if self.role == Role::Leader => {
                if let Some(progress) = self.progress.get_mut(&from) {
                    progress.silent_ticks = 0;
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

    /// A sender with an older term learns of this one, whatever it said: a deposed leader steps down, and a
    /// candidate that missed elections catches up. Otherwise both could wait for each other for ever.
    fn answer_stale(&mut self, envelope: &Envelope) {
        let refused = match &envelope.message {
            Message::Vote { .. } => Message::VoteReply { granted: false },
            Message::Append { prev, .. } => Message::AppendRejected {
                refused: prev.index,
                hint: EntryId::default(),
            },
            // Not the round that was asked about: the answer bears this term, and the same node may lead in it,
            // with rounds that began anew when it restarted. It would take this for a quorum's word.
            Message::Heartbeat { .. } => Message::HeartbeatReply { read_round: 0 },
            Message::SnapshotChunk(chunk) => Message::SnapshotReply {
                snapshot: chunk.meta.last,
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

    /// Lets one tick of time pass.
    pub fn tick(&mut self) {
        if self.role == Role::Leader {
            self.tick_leader();
        } else {
            self.tick_follower();
        }
        self.check_invariants();
    }

    /// Invalidates leases, because more time passed than ticks were given: the process was paused, say. The driver calls it
    /// before it hands in any other input.
    pub fn handle_pause(&mut self) {
        self.reads.forget_lease();
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its term.
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// What it does.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Who leads, as far as it knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// The greatest index known to be committed.
    pub fn commit_index(&self) -> Index {
        self.log.commit_index()
    }

    /// The greatest index known to be committed in the group, whether it is here or not: its own if this node leads and knows
    /// it, else what a leader told since the start. `None` as long as no leader did. Heartbeats don't count: they tell of no
    /// more than what is here.
    pub fn group_commit(&self) -> Option<Index> {
        match self.role {
            Role::Leader => self.knows_commit().then(|| self.commit_index()),
            _ => self.leader_commit,
        }
    }

    /// The last index that was handed out for applying.
    pub fn applying_index(&self) -> Index {
        self.log.applying_index()
    }

    /// The last entry of the log.
    pub fn last_id(&self) -> EntryId {
        self.log.last_id()
    }

    /// The log starts after this entry.
    pub fn compacted(&self) -> EntryId {
        self.log.base()
    }

    /// The membership in force: the latest in the log, committed or not.
    pub fn membership(&self) -> &Membership {
        self.log.membership()
    }

    /// Whether `id` is in the log, or is the entry that it starts after.
    pub fn holds(&self, id: EntryId) -> bool {
        self.log.contains(id)
    }

    /// Whether [`holds`](Self::holds) is true of what is on disk, too.
    pub fn holds_durably(&self, id: EntryId) -> bool {
        self.log.contains(id) && id.index <= self.log.persisted_index()
    }

    /// Elections that this node started.
    pub fn elections_started(&self) -> u64 {
        self.election.started
    }

    /// The leader's view of the others; empty elsewhere.
    pub fn progress(&self) -> impl Iterator<Item = (NodeId, Index, ProgressState)> {
        let leads = self.role == Role::Leader;
        self.progress
            .iter()
            .filter(move |_| leads)
            .map(|(node, progress)| (*node, progress.match_index, progress.state))
    }

    /// Forgets entries up to `index`, whose effects are durable in the state machine. Returns what the store must be
    /// told, or `None` if there is nothing to forget.
    pub fn compact(&mut self, index: Index) -> Option<SnapshotMeta> {
        let base = self.log.compact(index);
        self.check_invariants();
        base
    }

    /// As leader: whether `node` was heard within an election timeout.
    pub fn is_active(&self, node: NodeId) -> bool {
        let heard = |progress: &Progress| progress.silent_ticks < self.options.election_ticks;
        self.progress.get(&node).is_some_and(heard)
    }

    /// As leader: whether leadership is being handed over, so that proposals wait.
    pub fn is_transferring(&self) -> bool {
        self.leading.transfer.is_some()
    }

    /// As leader: whether the learner `node` may become a voter.
    pub fn is_caught_up(&self, node: NodeId) -> bool {
        self.is_active(node) && self.check_caught_up(node).is_ok()
    }

    /// Asks whoever is at the configured peers to let this node in at `address`.
    pub fn ask_to_join(&mut self, address: &str) {
        self.send(
            NodeId(0),
            Message::JoinRequest {
                address: address.to_owned(),
            },
        );
    }

    /// Sends a snapshot's chunk or the answer to one, in the current term. The answer "installed" waits until the
    /// log's reset is durable.
    pub fn send_snapshot_message(&mut self, to: NodeId, message: Message) {
        self.send(to, message);
    }

    /// Panics if the state contradicts the invariants of this type. Does nothing in the product's build.
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

/// Why Raft can't start. The node must not vote then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The log is damaged or can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings contradict each other.
    #[error(transparent)]
    Options(#[from] OptionsError),
}
