//! What must hold at every step, checked as it happens.
//!
//! The checker sees what no node can: every disk, every message as it leaves, and what each node says of
//! itself. Each check is incremental, so a step costs what changed in it.
//!
//! | invariant | how it is judged |
//! |---|---|
//! | election safety | by term: whoever says that it leads, and whoever sends what only a leader sends |
//! | one vote a term | by node and term: granted votes on the wire, and candidacies |
//! | hard state | on disk it never goes back, and a vote never changes within its term |
//! | terms | what a node id puts on the wire never goes back, restarts included |
//! | log matching | each entry ever written, by term and index: same content, same predecessor, everywhere |
//! | committed is final | by index: the first entry that anyone calls committed is the only one |
//! | durable quorum | when a leader's commit index advances, a quorum of voters' disks holds the entry |
//! | own term | while a node leads, its commit index moves only to entries of its term |
//! | leader completeness | a new leader's log holds everything that was called committed before |
//! | state machine safety | by index: operations applied, their order, log time and answers are equal everywhere |
//! | the leader's view | what a leader believes to match at a follower of its term is on that follower's disk |
//! | state in log | a node's applied position lies in its log |
//! | membership in force | after a truncation it is the one that the log ends with |
//! | one change at a time | a leader that has committed in its term has at most one uncommitted change |
//! | fresh reads | a read is answered from a state that holds all that was committed when it was asked |
//! | equal state | by applied index: a digest of the whole state is equal everywhere |
//! | exactly once | by client and sequence, over all groups ([`crate::write_checker`]): a write is answered with one outcome for ever |
//! | monotony | commit and applied index of a running node never go back |

use std::collections::{BTreeMap, BTreeSet};

use raft::{
    Entry, EntryId, Envelope, HardState, Index, Membership, Message, Payload, ProgressState, Role,
    Term,
};
use replica::Status;
use types::NodeId;

use crate::disk::{Disk, DiskEvent};
use crate::recorder::AppliedOperation;
use crate::rng::digest;

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

impl Violation {
    /// A broken promise.
    pub fn new(invariant: &'static str, detail: impl Into<String>) -> Self {
        Self {
            invariant,
            detail: detail.into(),
        }
    }
}

type Check = Result<(), Violation>;

/// An entry as first written: what it says, and what precedes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    content: u64,
    prev: Option<EntryId>,
}

/// What one group has promised so far.
#[derive(Debug, Default)]
pub struct InvariantChecker {
    leaders: BTreeMap<Term, NodeId>,
    votes: BTreeMap<(NodeId, Term), NodeId>,
    wire_terms: BTreeMap<NodeId, Term>,
    written: BTreeMap<EntryId, Written>,
    /// By index, from 1: the entry that is committed there.
    committed: BTreeMap<Index, EntryId>,
    applied: BTreeMap<Index, Vec<u64>>,
    states: BTreeMap<Index, (EntryId, u64)>,
    /// Terms whose leader was found to be complete.
    complete: BTreeSet<Term>,
}

/// What the checker remembers of a running node; forgotten by a crash.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    commit: Index,
    applied: Index,
    /// The term in which it led at the last look.
    led: Option<Term>,
    /// What the leader believed to match at the last look.
    matched: Vec<(NodeId, Index, ProgressState)>,
    /// The operations of this entry seen so far.
    entry: EntryId,
    operations: usize,
}

impl InvariantChecker {
    /// A message leaves a node.
    pub fn sent(&mut self, envelope: &Envelope) -> Check {
        let Envelope { from, term, to, .. } = envelope;
        let known = self.wire_terms.entry(*from).or_default();
        if *term < *known {
            return Err(Violation::new(
                "terms never go back",
                format!("{from} sent at {term} after {known}: {envelope:?}"),
            ));
        }
        *known = *term;
        match &envelope.message {
            Message::VoteReply { granted: true } => self.voted(*from, *term, *to),
            Message::Vote { .. } => self.voted(*from, *term, *from),
            Message::Append { .. }
            | Message::Heartbeat { .. }
            | Message::SnapshotChunk(_)
            | Message::TimeoutNow => self.leads(*term, *from),
            _ => Ok(()),
        }
    }

    fn voted(&mut self, voter: NodeId, term: Term, candidate: NodeId) -> Check {
        let first = *self.votes.entry((voter, term)).or_insert(candidate);
        if first == candidate {
            return Ok(());
        }
        Err(Violation::new(
            "one vote a term",
            format!("{voter} voted in {term} for {first}, then for {candidate}"),
        ))
    }

    fn leads(&mut self, term: Term, node: NodeId) -> Check {
        let first = *self.leaders.entry(term).or_insert(node);
        if first == node {
            return Ok(());
        }
        Err(Violation::new(
            "one leader a term",
            format!("in {term} both {first} and {node} lead"),
        ))
    }

    /// A node wrote to its disk.
    pub fn wrote(&mut self, node: NodeId, event: DiskEvent) -> Check {
        match event {
            DiskEvent::HardState { before, after } => check_hard_state(node, before, after),
            DiskEvent::Appended {
                mut prev, entries, ..
            } => {
                for entry in &entries {
                    self.appended(node, prev, entry)?;
                    prev = Some(entry.id);
                }
                Ok(())
            }
            DiskEvent::Committed { last, digest } => self.state(node, last, digest),
            DiskEvent::Compacted { base, durable } if base.index > durable.index => {
                Err(Violation::new(
                    "the log is kept above the durable state",
                    format!("{node} compacted to {base} with {durable} durable"),
                ))
            }
            DiskEvent::Compacted { .. } | DiskEvent::Reset(_) => Ok(()),
        }
    }

    fn appended(&mut self, node: NodeId, prev: Option<EntryId>, entry: &Entry) -> Check {
        let found = Written {
            content: content(entry),
            prev,
        };
        let first = self.written.entry(entry.id).or_insert(found);
        let prev_fits = match (first.prev, prev) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        if first.content == found.content && prev_fits {
            return Ok(());
        }
        Err(Violation::new(
            "log matching",
            format!(
                "{node} wrote {} as {found:?}, first it was {first:?}",
                entry.id
            ),
        ))
    }

    fn state(&mut self, node: NodeId, last: EntryId, digest: u64) -> Check {
        let first = *self.states.entry(last.index).or_insert((last, digest));
        if first == (last, digest) {
            return Ok(());
        }
        Err(Violation::new(
            "equal state at equal index",
            format!("{node} is at {last} with digest {digest:x}, first it was {first:x?}"),
        ))
    }

    /// A node applied an operation. Whether it was the first to do so.
    pub fn applied(
        &mut self,
        node: NodeId,
        progress: &mut Progress,
        operation: &AppliedOperation,
    ) -> Result<bool, Violation> {
        if progress.entry != operation.entry {
            progress.entry = operation.entry;
            progress.operations = 0;
        }
        let place = progress.operations;
        progress.operations += 1;
        let seen = operation.digest ^ digest(format!("{:?}", operation.response).as_bytes());
        let known = self.applied.entry(operation.entry.index).or_default();
        match known.get(place) {
            None => {
                known.push(seen);
                Ok(true)
            }
            Some(first) if *first == seen => Ok(false),
            Some(_) => Err(Violation::new(
                "state machine safety",
                format!(
                    "{node} applied operation {place} of {} unlike another: {:?}",
                    operation.entry, operation.response
                ),
            )),
        }
    }

    /// A node worked: what it says of itself now, against what it said before and what others said.
    pub fn worked(
        &mut self,
        status: &Status,
        progress: &mut Progress,
        disk: &Disk,
        disk_of: impl Fn(NodeId) -> Option<Disk>,
    ) -> Check {
        let node = status.node;
        if status.commit_index < progress.commit || status.last_applied < progress.applied {
            return Err(Violation::new(
                "monotony",
                format!(
                    "{node} went from commit {} applied {} back to {} and {}",
                    progress.commit, progress.applied, status.commit_index, status.last_applied
                ),
            ));
        }
        if status.last_applied > status.commit_index {
            return Err(Violation::new(
                "only committed entries are applied",
                format!(
                    "{node} applied {} and committed {}",
                    status.last_applied, status.commit_index
                ),
            ));
        }
        if status.role == Role::Leader {
            self.leads(status.term, node)?;
            if self.complete.insert(status.term) {
                self.check_complete(status, disk)?;
            }
        }
        if status.commit_index > progress.commit {
            self.committed(status, progress.commit, disk)?;
            if status.role == Role::Leader {
                self.check_durable(status, disk, &disk_of)?;
            }
            if progress.led == Some(status.term) && status.role == Role::Leader {
                self.check_own_term(status)?;
            }
        }
        if status.role == Role::Leader && status.progress != progress.matched {
            check_view(status, progress, disk, &disk_of)?;
        }
        check_position(status, disk)?;
        progress.led = (status.role == Role::Leader).then_some(status.term);
        progress.commit = status.commit_index;
        progress.applied = status.last_applied;
        Ok(())
    }

    fn committed(&mut self, status: &Status, before: Index, disk: &Disk) -> Check {
        let node = status.node;
        for entry in disk.entries(before.next()..=status.commit_index) {
            let index = entry.id.index;
            let first = *self.committed.entry(index).or_insert(entry.id);
            if first != entry.id {
                return Err(Violation::new(
                    "committed is final",
                    format!("{node} committed {} where {first} was committed", entry.id),
                ));
            }
        }
        Ok(())
    }

    /// A leader calls an entry committed only when a quorum of voters has it on disk.
    fn check_durable(
        &self,
        status: &Status,
        disk: &Disk,
        disk_of: impl Fn(NodeId) -> Option<Disk>,
    ) -> Check {
        let Some(id) = self.committed.get(&status.commit_index) else {
            return Ok(());
        };
        // A disk that was wiped since may have had it.
        let holds = |voter| disk_of(voter).is_none_or(|disk| disk.holds(*id));
        if status.membership.has_quorum(holds) {
            return Ok(());
        }
        // The same poll may have committed under one membership and appended the next.
        let before = disk.memberships();
        let before = before.len().checked_sub(2).and_then(|at| before.get(at));
        if before.is_some_and(|before| before.has_quorum(holds)) {
            return Ok(());
        }
        Err(Violation::new(
            "committed is on a quorum's disks",
            format!("{} committed {id} among {}", status.node, status.membership),
        ))
    }

    /// The log was truncated or got a membership: is the right one in force, and is it the only open change?
    pub fn membership_changed(&self, status: &Status, disk: &Disk) -> Check {
        if status.last_index != disk.last_index() || disk.is_damaged() {
            return Ok(());
        }
        let end = disk.last_membership();
        if status.membership != end {
            return Err(Violation::new(
                "the log's last membership is in force",
                format!(
                    "{} goes by {}, its log ends with {end}",
                    status.node, status.membership
                ),
            ));
        }
        let own = self.committed.get(&status.commit_index);
        let own = own.is_some_and(|id| id.term == status.term);
        let open = disk.memberships_above(status.commit_index);
        if status.role == Role::Leader && own && open > 1 {
            return Err(Violation::new(
                "one membership change at a time",
                format!("{} has {open} changes above its commit index", status.node),
            ));
        }
        Ok(())
    }

    /// A leader counts replicas only for entries of its own term (Raft §5.4.2).
    fn check_own_term(&self, status: &Status) -> Check {
        match self.committed.get(&status.commit_index) {
            Some(id) if id.term != status.term => Err(Violation::new(
                "only entries of the leader's term are committed by counting",
                format!("{} committed {id} in {}", status.node, status.term),
            )),
            _ => Ok(()),
        }
    }

    fn check_complete(&self, status: &Status, disk: &Disk) -> Check {
        let Some((_, last)) = self.committed.last_key_value() else {
            return Ok(());
        };
        // By log matching the last one stands for all.
        if last.term >= status.term || disk.holds(*last) {
            return Ok(());
        }
        Err(Violation::new(
            "leader completeness",
            format!(
                "{} leads in {} without the committed {last}",
                status.node, status.term
            ),
        ))
    }

    /// The last entry that anyone called committed.
    pub fn last_committed(&self) -> EntryId {
        let last = self.committed.last_key_value();
        last.map(|(_, id)| *id).unwrap_or_default()
    }

    /// How many terms had a leader.
    pub fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }
}

/// A leader believes of a follower only what is on that follower's disk.
fn check_view(
    status: &Status,
    progress: &mut Progress,
    disk: &Disk,
    disk_of: impl Fn(NodeId) -> Option<Disk>,
) -> Check {
    for (node, matched, _) in &status.progress {
        let (Some(id), Some(other)) = (disk.entry_id(*matched), disk_of(*node)) else {
            continue;
        };
        // A follower of a later leader may have lost what it once told this one.
        if other.hard_state().term <= status.term && !other.holds(id) {
            return Err(Violation::new(
                "a leader believes what is true",
                format!("{} believes that {node} has {id}", status.node),
            ));
        }
    }
    progress.matched.clone_from(&status.progress);
    Ok(())
}

fn check_position(status: &Status, disk: &Disk) -> Check {
    let (applied, _) = disk.position();
    if status.membership.is_empty() || disk.holds(applied) {
        return Ok(());
    }
    Err(Violation::new(
        "the state's position lies in the log",
        format!("{} has applied {applied}, which its log lacks", status.node),
    ))
}

fn check_hard_state(node: NodeId, before: HardState, after: HardState) -> Check {
    let changed = before.vote.is_some() && before.vote != after.vote;
    if after.term > before.term || (after.term == before.term && !changed) {
        return Ok(());
    }
    Err(Violation::new(
        "the hard state never goes back",
        format!("{node} wrote {after} over {before}"),
    ))
}

fn content(entry: &Entry) -> u64 {
    match &entry.payload {
        Payload::Noop => 1,
        Payload::Command(data) => digest(data),
        Payload::Membership(membership) => {
            let described: &Membership = membership;
            digest(format!("{described:?}").as_bytes())
        }
    }
}
