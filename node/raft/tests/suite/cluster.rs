//! Several cores with their disks and the wire between them. Time passes and messages arrive only when a test says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft::{
    Entry, Envelope, Index, LogStore, Membership, MembershipChange, Options, Payload, Persist,
    Raft, ReadGrant, ReadTicket, Ready, Role, SnapshotMeta, StepError, Stepped, Term,
};
use types::NodeId;

use crate::oracle::Oracle;
use crate::show;
use crate::store::MemoryStore;

/// One member: its core, its disk, and the entries that it applied.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) options: Options,
    /// `None` after a crash.
    pub(crate) raft: Option<Raft>,
    pub(crate) store: MemoryStore,
    /// The state machine: all applied entries, from index 1.
    pub(crate) state: Vec<Entry>,
    /// The number of applied entries that survive a crash.
    pub(crate) flushed: usize,
    /// True for a slow disk: a write stays in `pending` until the test finishes it.
    pub(crate) slow: bool,
    pub(crate) pending: Option<Box<Persist>>,
    pub(crate) grants: Vec<ReadGrant>,
    /// The grants of a follower's reads.
    pub(crate) follower_grants: Vec<ReadGrant>,
    pub(crate) snapshots_wanted: Vec<NodeId>,
    starts: u64,
    shown: String,
}

/// The nodes and the messages between them.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Messages that were sent and have not arrived, oldest first.
    pub(crate) wire: VecDeque<Envelope>,
    /// Pairs of (sender, receiver) whose messages are lost.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    pub(crate) oracle: Oracle,
    /// True if wanted snapshots are sent at once.
    pub(crate) send_snapshots: bool,
    /// A line of text for each event since the script runner last took them.
    pub(crate) story: Vec<String>,
    pub(crate) quiet: bool,
    snapshots: BTreeMap<raft::EntryId, (Membership, Vec<Entry>)>,
    pub(crate) first_members: Membership,
    pub(crate) seed: u64,
}

pub(crate) fn node(id: u64) -> NodeId {
    NodeId(id)
}

pub(crate) fn voters(count: u64) -> Membership {
    Membership::of_voters((1..=count).map(|id| (node(id), format!("a{id}"))))
}

pub(crate) fn command(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Returns a log of commands whose entries have these terms.
pub(crate) fn log_of(terms: &[u64]) -> Vec<Entry> {
    let entry = |(position, term): (usize, &u64)| {
        let index = position as u64 + 1;
        let payload = Payload::Command(Bytes::from(format!("v{index}.{term}")));
        Entry::new(Term(*term), Index(index), payload)
    };
    terms.iter().enumerate().map(entry).collect()
}

macro_rules! tell {
    ($cluster:expr, $($arg:tt)*) => {
        if !$cluster.quiet {
            let line = format!($($arg)*);
            $cluster.story.push(line);
        }
    };
}

mod snapshots;

impl Cluster {
    /// Creates `count` voters, numbered from 1, before any message.
    pub(crate) fn new(count: u64, options: &Options) -> Self {
        Self::of_members(&voters(count), options, 0)
    }

    /// Creates a cluster of these members, before any message. `seed` is for their election timeouts.
    pub(crate) fn of_members(members: &Membership, options: &Options, seed: u64) -> Self {
        let mut cluster = Self {
            send_snapshots: true,
            first_members: members.clone(),
            seed,
            ..Self::default()
        };
        for (id, _) in members.members() {
            cluster.add_node(id, MemoryStore::of_members(members), options.clone());
        }
        cluster
    }

    /// Adds and starts a node with this disk.
    pub(crate) fn add_node(&mut self, id: NodeId, store: MemoryStore, options: Options) {
        let node = Node {
            id,
            options,
            raft: None,
            store,
            state: Vec::new(),
            flushed: 0,
            slow: false,
            pending: None,
            grants: Vec::new(),
            follower_grants: Vec::new(),
            snapshots_wanted: Vec::new(),
            starts: 0,
            shown: String::new(),
        };
        self.nodes.insert(id, node);
        self.start(id);
    }

    /// Writes a term, and a log of these terms, to a node's disk and restarts the node, to build the paper's figures.
    pub(crate) fn boot(&mut self, id: NodeId, term: u64, terms: Option<&[u64]>) {
        let node = self.node_mut(id);
        node.store.hard_state = raft::HardState {
            term: Term(term),
            vote: None,
        };
        if let Some(terms) = terms {
            node.store.entries = log_of(terms);
        }
        node.raft = None;
        node.state.clear();
        self.oracle.look(&self.nodes, id);
        self.start(id);
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(&id).expect("a node of the cluster")
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of the cluster")
    }

    pub(crate) fn raft(&self, id: NodeId) -> &Raft {
        self.node(id).raft.as_ref().expect("a node that runs")
    }

    pub(crate) fn raft_mut(&mut self, id: NodeId) -> &mut Raft {
        self.node_mut(id).raft.as_mut().expect("a node that runs")
    }

    pub(crate) fn runs(&self, id: NodeId) -> bool {
        self.node(id).raft.is_some()
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Returns the leader of the latest term among the running nodes.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.nodes
            .values()
            .filter_map(|node| node.raft.as_ref())
            .filter(|raft| raft.role() == Role::Leader)
            .max_by_key(|raft| raft.term())
            .map(Raft::node)
    }

    // Starts and crashes.

    /// Starts a node from its disk.
    pub(crate) fn start(&mut self, id: NodeId) {
        let seed = self.seed;
        self.finish_install(id);
        let node = self.node_mut(id);
        node.starts += 1;
        let stored = node.store.load().unwrap();
        let applied = Index(node.state.len() as u64);
        let seed = seed.wrapping_mul(1_000_003) ^ (node.starts << 32);
        let raft = Raft::recover(
            node.options.clone(),
            id,
            &stored,
            applied.min(stored.last_index),
            seed,
            &node.store,
        )
        .expect("the disk is well");
        node.raft = Some(raft);
        node.shown = String::new();
        self.note_role(id);
    }

    /// Resets the log after a crash between the replacement of the state by a snapshot and the reset of the log.
    fn finish_install(&mut self, id: NodeId) {
        let Some(last) = self.node(id).state.last().map(|entry| entry.id) else {
            return;
        };
        let store = &self.node(id).store;
        if store.holds(last) || store.installing != Some(last) {
            return;
        }
        let membership = self.snapshots.get(&last).expect("it was sent").0.clone();
        let store = &mut self.node_mut(id).store;
        let before = store.hard_state;
        let term = before.term.max(last.term);
        let batch = raft::LogBatch {
            hard_state: Some(raft::HardState {
                term,
                vote: before.vote.filter(|_| term == before.term),
            }),
            reset: Some(SnapshotMeta { last, membership }),
            entries: Vec::new(),
        };
        store.write(&batch).unwrap();
    }

    /// Cuts the power: the node loses everything that was not written.
    pub(crate) fn crash(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        node.raft = None;
        node.pending = None;
        node.grants.clear();
        node.follower_grants.clear();
        node.snapshots_wanted.clear();
        node.state.truncate(node.flushed);
        self.oracle.look(&self.nodes, id);
        tell!(self, "{id} crashes");
    }

    pub(crate) fn restart(&mut self, id: NodeId) {
        if self.runs(id) {
            self.crash(id);
        }
        self.start(id);
    }

    // The driver.

    /// Carries out all due work of a node, as the driver would.
    pub(crate) fn turn(&mut self, id: NodeId) {
        for _ in 0..10_000 {
            let node = self.node_mut(id);
            let Some(raft) = node.raft.as_mut() else {
                return;
            };
            let announced = raft.needs_poll();
            let ready = raft.poll_ready(&node.store).expect("the disk is well");
            let empty = is_empty(&ready);
            // `needs_poll` may announce work that then waits for the disk, but must not announce it a second time.
            if announced == empty && (!announced || raft.needs_poll()) {
                let wrong = format!("{id}: needs_poll says {announced} before {ready:?}");
                self.oracle.violations.push(wrong);
            }
            self.note_role(id);
            if empty {
                self.node_mut(id)
                    .snapshots_wanted
                    .clone_from(&ready.snapshots_wanted);
                self.oracle.look(&self.nodes, id);
                if !self.serve_snapshots(id) {
                    return;
                }
            } else {
                self.obey(id, ready);
            }
        }
        panic!("{id} is never done");
    }

    fn obey(&mut self, id: NodeId, ready: Ready) {
        for envelope in ready.messages {
            self.post(envelope);
        }
        if let Some(persist) = ready.persist {
            tell!(self, "{id} writes{}", show::batch(persist.batch()));
            self.node_mut(id).pending = Some(persist);
            if !self.node(id).slow {
                self.finish_write(id);
            }
        }
        for grant in ready.reads {
            tell!(
                self,
                "{id} may serve reads of ticket {} at index {}",
                grant.ticket.0,
                grant.index
            );
            self.node_mut(id).grants.push(grant);
        }
        self.node_mut(id)
            .follower_grants
            .extend(ready.follower_reads);
        if !ready.committed.is_empty() {
            tell!(self, "{id} applies [{}]", show::entries(&ready.committed));
        }
        for entry in ready.committed {
            if !self.node(id).store.holds(entry.id) {
                let wrong = format!("{id} was given {} to apply before it is on disk", entry.id);
                self.oracle.violations.push(wrong);
            }
            self.oracle.applied(id, &entry);
            let node = self.node_mut(id);
            assert_eq!(
                node.state.len() as u64 + 1,
                entry.id.index.0,
                "{id} applies in order"
            );
            node.state.push(entry);
        }
        self.oracle.look(&self.nodes, id);
    }

    /// Finishes the pending write. Returns false if there was none.
    pub(crate) fn finish_write(&mut self, id: NodeId) -> bool {
        let node = self.node_mut(id);
        let Some(persist) = node.pending.take() else {
            return false;
        };
        let batch = persist.batch().clone();
        let done = persist
            .write(&mut node.store)
            .expect("the batch fits the log");
        let released = node.raft.as_mut().expect("it runs").handle_persisted(done);
        self.oracle.written(id, &batch);
        for envelope in released {
            self.post(envelope);
        }
        self.note_role(id);
        self.oracle.look(&self.nodes, id);
        true
    }

    fn post(&mut self, envelope: Envelope) {
        let durable = self.node(envelope.from).store.hard_state.term;
        self.oracle.sent(&envelope, durable);
        if envelope.to == NodeId(0) {
            for to in self.ids() {
                if to != envelope.from {
                    self.wire.push_back(Envelope {
                        to,
                        ..envelope.clone()
                    });
                }
            }
        } else if !self.cut.contains(&(envelope.from, envelope.to)) {
            self.wire.push_back(envelope);
        }
    }

    fn note_role(&mut self, id: NodeId) {
        if self.quiet {
            return;
        }
        let raft = self.raft(id);
        let now = match (raft.role(), raft.leader()) {
            (Role::Leader, _) => format!("{id} leads in {}", raft.term()),
            (Role::Follower, Some(leader)) => format!("{id} follows {leader} in {}", raft.term()),
            (Role::Follower, None) => format!("{id} is a follower in {}", raft.term()),
            (Role::PreCandidate, _) => format!("{id} is a pre-candidate in {}", raft.term()),
            (Role::Candidate, _) => format!("{id} is a candidate in {}", raft.term()),
        };
        if self.node(id).shown != now {
            self.node_mut(id).shown.clone_from(&now);
            self.story.push(now);
        }
    }

    // Requests of clients and operators.

    pub(crate) fn tick(&mut self, id: NodeId) {
        if self.runs(id) {
            self.raft_mut(id).tick();
            self.turn(id);
        }
    }

    pub(crate) fn tick_all(&mut self, count: u32) {
        for _ in 0..count {
            for id in self.ids() {
                self.tick(id);
            }
        }
    }

    pub(crate) fn propose(
        &mut self,
        id: NodeId,
        text: &str,
    ) -> Result<raft::EntryId, raft::ProposeError> {
        let proposed = self.raft_mut(id).propose(command(text));
        self.turn(id);
        proposed
    }

    pub(crate) fn read(&mut self, id: NodeId) -> Result<ReadTicket, raft::ReadError> {
        let ticket = self.raft_mut(id).read_index();
        self.turn(id);
        ticket
    }

    /// Asks the leader of a follower for a read index.
    pub(crate) fn ask(&mut self, id: NodeId) -> Result<ReadTicket, raft::ReadError> {
        let ticket = self.raft_mut(id).ask_read_index();
        self.turn(id);
        ticket
    }

    pub(crate) fn change(
        &mut self,
        id: NodeId,
        change: &MembershipChange,
    ) -> Result<raft::EntryId, raft::ChangeError> {
        let changed = self.raft_mut(id).change_membership(change);
        self.turn(id);
        changed
    }

    pub(crate) fn transfer(
        &mut self,
        id: NodeId,
        target: Option<NodeId>,
    ) -> Result<NodeId, raft::TransferError> {
        let transferred = self.raft_mut(id).transfer_leadership(target);
        self.turn(id);
        transferred
    }

    /// Makes the current state durable and compacts the log up to `index`.
    pub(crate) fn compact(&mut self, id: NodeId, index: Index) -> Option<SnapshotMeta> {
        let node = self.node_mut(id);
        node.flushed = node.state.len();
        let base = node.raft.as_mut()?.compact(index)?;
        node.store
            .compact(&base)
            .expect("only what is written is cut");
        self.oracle.look(&self.nodes, id);
        Some(base)
    }

    // Messages.

    /// Delivers a message and carries out its effects at once.
    pub(crate) fn deliver(&mut self, envelope: Envelope) -> Result<(), StepError> {
        let to = envelope.to;
        tell!(self, "{}", show::envelope(&envelope));
        if !self.runs(to) {
            return Ok(());
        }
        let stepped = self.raft_mut(to).step(envelope);
        self.note_role(to);
        match stepped {
            Ok(Stepped::Done) => {}
            Ok(Stepped::Snapshot(envelope)) => self.move_snapshot(to, envelope),
            Ok(Stepped::JoinRequest { node, address }) => {
                tell!(self, "{to} hears that {node} at {address} wants to join");
            }
            Err(error) => {
                tell!(self, "{to} refuses: {error}");
                self.turn(to);
                return Err(error);
            }
        }
        self.turn(to);
        Ok(())
    }

    /// Delivers all messages on the wire and all messages that they cause, in order.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            let Some(envelope) = self.wire.pop_front() else {
                return;
            };
            let said = self.deliver(envelope);
            if let Err(error) = said {
                self.oracle
                    .violations
                    .push(format!("an honest message was refused: {error}"));
            }
        }
        panic!("the conversation never ends");
    }

    /// Makes `id` campaign and delivers all messages, so that it leads if a quorum votes for it.
    pub(crate) fn elect(&mut self, id: NodeId) {
        self.campaign(id);
        self.settle();
    }

    /// Advances time at `id` alone until it campaigns.
    pub(crate) fn campaign(&mut self, id: NodeId) {
        for _ in 0..10 * self.node(id).options.election_ticks {
            self.raft_mut(id).tick();
            if self.raft(id).needs_poll() {
                break;
            }
        }
        self.turn(id);
    }

    pub(crate) fn isolate(&mut self, id: NodeId) {
        for other in self.ids() {
            if other != id {
                self.cut.insert((id, other));
                self.cut.insert((other, id));
            }
        }
        let cut = &self.cut;
        self.wire.retain(|m| !cut.contains(&(m.from, m.to)));
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }
}

fn is_empty(ready: &Ready) -> bool {
    ready.messages.is_empty()
        && ready.persist.is_none()
        && ready.committed.is_empty()
        && ready.reads.is_empty()
        && ready.follower_reads.is_empty()
}
