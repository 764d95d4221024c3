//! Checks, from outside of the core, the properties that must hold at all times (Raft figure 3 and §5.2).

use std::collections::BTreeMap;

use raft::{EntryId, Envelope, Index, LogBatch, Message, Payload, Raft, Role, Term};
use types::NodeId;

use crate::cluster::Node;

/// The facts observed so far, and the violations among them.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    leaders: BTreeMap<Term, NodeId>,
    votes: BTreeMap<(NodeId, Term), NodeId>,
    durable_terms: BTreeMap<NodeId, Term>,
    /// The entry at each committed index, from 1.
    pub(crate) committed: Vec<EntryId>,
    applied: Vec<raft::Entry>,
    commits: BTreeMap<NodeId, Index>,
    pub(crate) violations: Vec<String>,
}

impl Oracle {
    fn wrong(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Checks on disk that a node votes at most once in a term and that its term never goes back.
    pub(crate) fn written(&mut self, node: NodeId, batch: &LogBatch) {
        let Some(hard_state) = batch.hard_state else {
            return;
        };
        let before = self.durable_terms.insert(node, hard_state.term);
        if before.is_some_and(|before| before > hard_state.term) {
            self.wrong(format!("{node}'s durable term went back to {hard_state}"));
        }
        if let Some(vote) = hard_state.vote {
            self.voted(node, hard_state.term, vote);
        }
    }

    fn voted(&mut self, node: NodeId, term: Term, candidate: NodeId) {
        let first = *self.votes.entry((node, term)).or_insert(candidate);
        if first != candidate {
            self.wrong(format!(
                "{node} voted for {first} and {candidate} in {term}"
            ));
        }
    }

    /// Checks in messages that a node votes at most once in a term and sends none in a term that is not on its disk.
    pub(crate) fn sent(&mut self, envelope: &Envelope, durable: Term) {
        match &envelope.message {
            Message::VoteReply { granted: true } => {
                self.voted(envelope.from, envelope.term, envelope.to);
            }
            Message::Vote { .. } => self.voted(envelope.from, envelope.term, envelope.from),
            _ => {}
        }
        if envelope.term > durable && !matches!(envelope.message, Message::JoinRequest { .. }) {
            self.wrong(format!(
                "{} spoke in {}, but its disk is at {durable}",
                envelope.from, envelope.term
            ));
        }
    }

    /// Checks state machine safety: every node applies the same entry at an index.
    pub(crate) fn applied(&mut self, node: NodeId, entry: &raft::Entry) {
        let position = usize::try_from(entry.id.index.0 - 1).unwrap();
        match self.applied.get(position) {
            None if position == self.applied.len() => self.applied.push(entry.clone()),
            None => self.wrong(format!("{node} applied {} before its time", entry.id)),
            Some(first) if first != entry => {
                let first = first.clone();
                self.wrong(format!("{node} applied {entry:?}, another {first:?}"));
            }
            Some(_) => {}
        }
    }

    /// Checks a node after an event.
    pub(crate) fn look(&mut self, nodes: &BTreeMap<NodeId, Node>, node: NodeId) {
        let Some(raft) = nodes.get(&node).and_then(|node| node.raft.as_ref()) else {
            self.commits.remove(&node);
            return;
        };
        // A node sends nothing in a term before it is on disk, and a crash undoes the election (of a sole voter, for
        // example).
        let durable = nodes
            .get(&node)
            .is_some_and(|n| n.store.hard_state.term == raft.term());
        if raft.role() == Role::Leader && durable {
            self.one_leader(raft);
            self.leader_is_complete(raft);
        }
        self.commits(nodes, raft);
    }

    fn one_leader(&mut self, raft: &Raft) {
        let first = *self.leaders.entry(raft.term()).or_insert(raft.node());
        if first != raft.node() {
            self.wrong(format!(
                "{first} and {} lead in {}",
                raft.node(),
                raft.term()
            ));
        }
    }

    /// Checks leader completeness: every later leader's log holds all committed entries.
    fn leader_is_complete(&mut self, raft: &Raft) {
        let latest = self.committed.iter().rposition(|id| id.term <= raft.term());
        let Some(id) = latest.and_then(|at| self.committed.get(at)).copied() else {
            return;
        };
        // A deposed leader that doesn't know it yet may lack entries committed since.
        if id.index > raft.compacted().index && !raft.holds(id) && self.is_newest_leader(raft) {
            self.wrong(format!(
                "{} leads in {} without the committed {id}",
                raft.node(),
                raft.term()
            ));
        }
    }

    fn is_newest_leader(&self, raft: &Raft) -> bool {
        self.leaders
            .last_key_value()
            .is_some_and(|(term, _)| *term == raft.term())
    }

    /// Checks that the commit index only advances, over entries that a majority has on disk, and that committed entries
    /// never change.
    fn commits(&mut self, nodes: &BTreeMap<NodeId, Node>, raft: &Raft) {
        let commit = raft.commit_index();
        let before = self.commits.insert(raft.node(), commit);
        if before.is_some_and(|before| commit < before) {
            self.wrong(format!(
                "{}'s commit index went back to {commit}",
                raft.node()
            ));
        }
        // A leader counts replicas only for entries of its own term (Raft §5.4.2).
        let advanced = before.is_some_and(|before| before < commit);
        let own = raft.holds(EntryId::new(raft.term(), commit));
        if advanced && raft.role() == Role::Leader && !own {
            self.wrong(format!(
                "{} leads in {} and committed {commit}, which is of an earlier term",
                raft.node(),
                raft.term()
            ));
        }
        let known = Index(self.committed.len() as u64);
        let new = commit.0.saturating_sub(known.0).min(10_000);
        for index in (known.0 + 1..=known.0 + new).map(Index) {
            let Some(id) = id_at(raft, index) else {
                self.wrong(format!(
                    "{} committed {index} before it was seen",
                    raft.node()
                ));
                return;
            };
            let on_disk = |node: NodeId| nodes.get(&node).is_some_and(|n| n.store.holds(id));
            if raft.role() == Role::Leader && !raft.membership().has_quorum(on_disk) {
                self.wrong(format!(
                    "{} committed {id}, which no quorum has on disk",
                    raft.node()
                ));
            }
            self.committed.push(id);
        }
        let first = raft.compacted().index.0.max(before.unwrap_or_default().0) + 1;
        for index in (first..=commit.0).map(Index) {
            let position = usize::try_from(index.0 - 1).unwrap();
            let agreed = self.committed.get(position).copied();
            if agreed.is_none_or(|id| !raft.holds(id)) {
                self.wrong(format!(
                    "{} committed {:?} at {index}, but {agreed:?} is",
                    raft.node(),
                    id_at(raft, index)
                ));
            }
        }
    }

    /// Checks that the membership in force is the latest in the log, or the base's if the log has none, and that no log
    /// has two uncommitted memberships (thesis §4.1).
    pub(crate) fn match_memberships(&mut self, nodes: &BTreeMap<NodeId, Node>) {
        for node in nodes.values() {
            let uncommitted = node.store.entries.iter().filter(|entry| {
                entry.id.index.0 > self.committed.len() as u64
                    && matches!(entry.payload, Payload::Membership(_))
            });
            if uncommitted.count() > 1 {
                let what = format!("{} has two uncommitted membership changes", node.id);
                self.violations.push(what);
            }
            let written = |raft: &&Raft| raft.last_id().index == node.store.last_index();
            let Some(raft) = node.raft.as_ref().filter(written) else {
                continue;
            };
            if node.pending.is_some() || !node.store.holds(raft.last_id()) {
                continue;
            }
            let in_log = node
                .store
                .entries
                .iter()
                .rev()
                .find_map(|entry| match &entry.payload {
                    Payload::Membership(membership) => Some(membership),
                    _ => None,
                });
            let expected = in_log.unwrap_or(&node.store.base.membership);
            if raft.membership() != expected {
                let (is, id) = (raft.membership(), node.id);
                self.violations.push(format!(
                    "{id} goes by ({is}), but its log says ({expected})"
                ));
            }
        }
    }

    /// Checks log matching: two logs that hold the same entry are equal up to it.
    pub(crate) fn match_logs(&mut self, nodes: &BTreeMap<NodeId, Node>) {
        let mut seen = BTreeMap::new();
        for node in nodes.values() {
            let mut before = None;
            for entry in &node.store.entries {
                let (first, first_before) = seen.entry(entry.id).or_insert((entry, before));
                let same_before =
                    before.is_none() || first_before.is_none() || *first_before == before;
                if *first != entry || !same_before {
                    let what = format!("{} differs on {}", entry.id, node.id);
                    self.violations.push(what);
                }
                before = Some(entry.id);
            }
        }
    }
}

fn id_at(raft: &Raft, index: Index) -> Option<EntryId> {
    (0..=raft.term().0)
        .rev()
        .map(|term| EntryId::new(Term(term), index))
        .find(|id| raft.holds(*id))
}
