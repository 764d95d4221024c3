//! Checks the invariants of one group at every step.
//!
//! The checker sees what no node can see: every disk, every message as it leaves, and the status of each node. Each
//! check is incremental, so a step costs only as much as it changed.
//!
//! | invariant | check |
//! |---|---|
//! | election safety | by term: only one node reports that it leads, or sends a message that only a leader sends |
//! | one vote a term | by node and term: granted votes on the wire and candidacies name one candidate |
//! | hard state | on disk the term never goes back, and a vote never changes within its term |
//! | terms | the terms that a node id sends never go back, restarts included |
//! | log matching | by term and index: each entry ever written has the same content and the same predecessor everywhere |
//! | committed is final | by index: the first entry that a node reports as committed is the only one |
//! | durable quorum | when a leader's commit index advances, a quorum of voters' disks holds the entry |
//! | own term | while a node leads, its commit index moves only to entries of its term |
//! | leader completeness | a new leader's log holds every entry that was reported as committed before |
//! | state machine safety | by index: the applied operations, their order, log time and answers are equal everywhere |
//! | the leader's view | the entry at a follower's `match_index` is on that follower's disk, unless it follows a later term |
//! | state in log | a node's log holds the last applied entry, or is compacted beyond it |
//! | membership in force | after a truncation it is the last membership in the log |
//! | one change at a time | a leader that has committed in its term has at most one uncommitted change |
//! | fresh reads | a read is answered from a state that holds every entry that was committed when the request arrived |
//! | equal state | by applied index: a digest of the whole state is equal everywhere |
//! | exactly once | by client and sequence, over all groups ([`crate::write_checker`]): a write always gets the same answer |
//! | monotony | the commit index and the applied index of a running node never go back |

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
use crate::violation::{Checked, Violation};

/// An entry as first written: a digest of its content, and its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    content: u64,
    prev: Option<EntryId>,
}

/// Everything that the nodes of one group wrote, sent, committed and applied so far.
#[derive(Debug, Default)]
pub struct InvariantChecker {
    leaders: BTreeMap<Term, NodeId>,
    votes: BTreeMap<(NodeId, Term), NodeId>,
    wire_terms: BTreeMap<NodeId, Term>,
    written: BTreeMap<EntryId, Written>,
    /// The committed entry at each index, from 1.
    committed: BTreeMap<Index, EntryId>,
    applied: BTreeMap<Index, Vec<u64>>,
    states: BTreeMap<Index, (EntryId, u64)>,
    /// The terms whose leader was checked for completeness.
    complete: BTreeSet<Term>,
}

/// The checker's memory of a running node, which a crash resets.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    commit: Index,
    applied: Index,
    /// The term in which the node led at the last check.
    led: Option<Term>,
    /// The leader's view of its followers at the last check.
    matched: Vec<(NodeId, Index, ProgressState)>,
    /// The entry that is being applied; `operations` counts its operations so far.
    entry: EntryId,
    operations: usize,
}

impl InvariantChecker {
    /// Checks a message that leaves a node.
    pub fn sent(&mut self, envelope: &Envelope) -> Checked {
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

    fn voted(&mut self, voter: NodeId, term: Term, candidate: NodeId) -> Checked {
        let first = *self.votes.entry((voter, term)).or_insert(candidate);
        if first == candidate {
            return Ok(());
        }
        Err(Violation::new(
            "one vote a term",
            format!("{voter} voted in {term} for {first}, then for {candidate}"),
        ))
    }

    fn leads(&mut self, term: Term, node: NodeId) -> Checked {
        let first = *self.leaders.entry(term).or_insert(node);
        if first == node {
            return Ok(());
        }
        Err(Violation::new(
            "one leader a term",
            format!("in {term} both {first} and {node} lead"),
        ))
    }

    /// Checks a change that a node made to its disk.
    pub fn wrote(&mut self, node: NodeId, event: DiskEvent) -> Checked {
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

    fn appended(&mut self, node: NodeId, prev: Option<EntryId>, entry: &Entry) -> Checked {
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

    fn state(&mut self, node: NodeId, last: EntryId, digest: u64) -> Checked {
        let first = *self.states.entry(last.index).or_insert((last, digest));
        if first == (last, digest) {
            return Ok(());
        }
        Err(Violation::new(
            "equal state at equal index",
            format!("{node} is at {last} with digest {digest:x}, first it was {first:x?}"),
        ))
    }

    /// Checks an operation that a node applied. Returns true if the node was the first to apply it.
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

    /// Checks a node's status after a step against its earlier status and those of the other nodes.
    pub fn worked(
        &mut self,
        status: &Status,
        progress: &mut Progress,
        disk: &Disk,
        disk_of: impl Fn(NodeId) -> Option<Disk>,
    ) -> Checked {
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

    fn committed(&mut self, status: &Status, before: Index, disk: &Disk) -> Checked {
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

    /// Checks that a quorum of voters has the leader's last committed entry on disk.
    fn check_durable(
        &self,
        status: &Status,
        disk: &Disk,
        disk_of: impl Fn(NodeId) -> Option<Disk>,
    ) -> Checked {
        let Some(id) = self.committed.get(&status.commit_index) else {
            return Ok(());
        };
        // A disk that was wiped since then may have held the entry.
        let holds = |voter| disk_of(voter).is_none_or(|disk| disk.holds(*id));
        if status.membership.has_quorum(holds) {
            return Ok(());
        }
        // One poll can commit under one membership and append the next.
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

    /// Checks, after a truncation or an appended membership, that the last membership is in force and is the only
    /// uncommitted change.
    pub fn membership_changed(&self, status: &Status, disk: &Disk) -> Checked {
        if status.last_index != disk.last_index() || disk.is_damaged() {
            return Ok(());
        }
        let end = disk.last_membership();
        if status.membership != end {
            return Err(Violation::new(
                "the log's last membership is in force",
                format!(
                    "{} uses {}, but its log ends with {end}",
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

    /// Checks that a leader counts replicas only for entries of its own term (Raft §5.4.2).
    fn check_own_term(&self, status: &Status) -> Checked {
        match self.committed.get(&status.commit_index) {
            Some(id) if id.term != status.term => Err(Violation::new(
                "only entries of the leader's term are committed by counting",
                format!("{} committed {id} in {}", status.node, status.term),
            )),
            _ => Ok(()),
        }
    }

    /// Checks that the entries of membership changes that were answered are the committed ones at their indexes.
    pub(crate) fn check_changed(&self, changed: &[EntryId]) -> Checked {
        let lost = |id: &&EntryId| self.committed.get(&id.index) != Some(*id);
        match changed.iter().find(lost) {
            None => Ok(()),
            Some(id) => Err(Violation::new(
                "an answered membership change is committed",
                format!(
                    "{id} was answered, and {:?} is committed",
                    self.committed.get(&id.index)
                ),
            )),
        }
    }

    fn check_complete(&self, status: &Status, disk: &Disk) -> Checked {
        let Some((_, last)) = self.committed.last_key_value() else {
            return Ok(());
        };
        // By log matching, a log that holds the last committed entry holds all of them.
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

    /// Returns true if a node led in some term.
    pub(crate) fn has_led(&self, node: NodeId) -> bool {
        self.leaders.values().any(|leader| *leader == node)
    }

    /// Returns the last entry that a node reported as committed.
    pub fn last_committed(&self) -> EntryId {
        let last = self.committed.last_key_value();
        last.map(|(_, id)| *id).unwrap_or_default()
    }

    /// Returns the number of terms that had a leader.
    pub fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }
}

/// Checks that the entry at each follower's `match_index` is on that follower's disk.
fn check_view(
    status: &Status,
    progress: &mut Progress,
    disk: &Disk,
    disk_of: impl Fn(NodeId) -> Option<Disk>,
) -> Checked {
    for (node, matched, _) in &status.progress {
        let (Some(id), Some(other)) = (disk.entry_id(*matched), disk_of(*node)) else {
            continue;
        };
        // A follower of a later leader may have truncated an entry that it once acknowledged to this leader.
        if other.hard_state().term <= status.term && !other.holds(id) {
            return Err(Violation::new(
                "the leader's view is true",
                format!("{} assumes that {node} has {id}", status.node),
            ));
        }
    }
    progress.matched.clone_from(&status.progress);
    Ok(())
}

fn check_position(status: &Status, disk: &Disk) -> Checked {
    let (applied, _) = disk.position();
    if status.membership.is_empty() || disk.holds(applied) {
        return Ok(());
    }
    Err(Violation::new(
        "the state's position lies in the log",
        format!("{} has applied {applied}, which its log lacks", status.node),
    ))
}

fn check_hard_state(node: NodeId, before: HardState, after: HardState) -> Checked {
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
