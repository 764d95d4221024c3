//! A group of replicas in one process. Snapshot chunks go over lanes with a bandwidth and a bounded queue; everything else
//! arrives at once.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use raft::{
    Comparison, Entry, EntryId, Envelope, Index, LogBatch, LogReader, LogState, LogStore,
    Membership, Message, Role, SnapshotMeta, SnapshotStatus, StepError, StoreError,
};
use replica::memory::{MemoryLog, MemoryState};
use replica::{
    Answer, Applying, Options, Outlet, Refusal, Replica, Request, RequestId, StateMachine,
    StateReader, Status, Table, Transaction, WriteBatch, initialise,
};
use types::{LogTime, NodeId};

pub(crate) const MIB: usize = 1 << 20;
/// The product's number of ticks in a second.
pub(crate) const TICKS_PER_SECOND: usize = 100;

/// A state machine that puts a value of the given number of bytes at a key: operations are `key=bytes`. It can be one of
/// an older version that can't read what a newer one wrote at the key `newer`. Operations on keys that begin with `slow` make
/// [`SLOW_LOOKUPS`] lookups. Queries read the key `big`.
#[derive(Default)]
pub(crate) struct Map {
    pub(crate) is_old: bool,
    /// The value that this replica alone puts at the key `own`.
    pub(crate) own: Mutex<Option<&'static str>>,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) failed_reloads: u32,
    pub(crate) applied_after: u32,
    /// The feature level of the last operation.
    pub(crate) feature_level: u32,
    /// The keys of operations whose answers are awaited, and of all others.
    pub(crate) awaited: Vec<Bytes>,
    pub(crate) unawaited: Vec<Bytes>,
    /// The number of operations of each entry, and of those on keys that begin with `slow`.
    pub(crate) operations: BTreeMap<EntryId, usize>,
    pub(crate) slow: BTreeMap<EntryId, usize>,
    /// The counted work of each poll.
    pub(crate) polls: Vec<u64>,
}

pub(crate) const SLOW_LOOKUPS: u64 = 60;

impl StateMachine for Map {
    type Query = ();
    type Response = Bytes;

    fn most_work(&self, operation: &Bytes, _: u32) -> u64 {
        let lookups = u64::from(operation.starts_with(b"slow")) * SLOW_LOOKUPS;
        lookups * replica::LOOKUP_WORK
    }

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        if self.is_old && state.get(Table::Data, b"newer")?.is_some() {
            self.seen.lock().unwrap().failed_reloads += 1;
            return Err(StoreError::Damaged("a record of version 2".to_owned()));
        }
        Ok(())
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Bytes, StoreError> {
        let mut seen = self.seen.lock().unwrap();
        seen.feature_level = at.feature_level;
        *seen.operations.entry(at.entry).or_default() += 1;
        if operation.starts_with(b"slow") {
            *seen.slow.entry(at.entry).or_default() += 1;
            for _ in 0..SLOW_LOOKUPS {
                state.get(Table::Data, b"slow")?;
            }
        }
        if seen.failed_reloads > 0 {
            seen.applied_after += 1;
        }
        let end = operation.iter().position(|byte| *byte == b'=').unwrap();
        let (key, value) = (operation.slice(..end), operation.slice(end + 1..));
        if at.awaited {
            seen.awaited.push(key.clone());
        } else {
            seen.unawaited.push(key.clone());
        }
        let own = self.own.lock().unwrap().filter(|_| key == "own");
        let value = own.map_or(value, |own| Bytes::from_static(own.as_bytes()));
        state.put(Table::Data, key, value);
        Ok(Bytes::new())
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        if let Some(work) = self.seen.lock().unwrap().polls.last_mut() {
            *work += state.work();
        }
        Ok(())
    }

    fn answer_bytes(&self, response: &Bytes) -> usize {
        response.len()
    }

    fn query(&self, (): &(), state: &dyn StateReader) -> Result<Bytes, StoreError> {
        let value = state.get(Table::Data, b"big")?.unwrap_or_default();
        if let Some(work) = self.seen.lock().unwrap().polls.last_mut() {
            *work += replica::LOOKUP_WORK + replica::work_of_bytes(value.len() as u64);
        }
        Ok(value)
    }
}

/// A log that outlives its replica.
#[derive(Clone, Default)]
pub(crate) struct SharedLog(Arc<Mutex<MemoryLog>>);

impl LogReader for SharedLog {
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.0.lock().unwrap().entries(range, max_bytes)
    }
}

impl LogStore for SharedLog {
    fn load(&mut self) -> Result<LogState, StoreError> {
        self.0.lock().unwrap().load()
    }
    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        self.0.lock().unwrap().write(batch)
    }
    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError> {
        self.0.lock().unwrap().compact(base)
    }
    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError> {
        self.0.lock().unwrap().begin_install(last)
    }
}

#[derive(Default)]
pub(crate) struct Outputs {
    messages: VecDeque<Envelope>,
    pub(crate) answers: BTreeMap<RequestId, Result<Answer<Bytes>, Refusal>>,
}

impl Outlet<Bytes> for Outputs {
    fn send(&mut self, envelope: Envelope) {
        self.messages.push_back(envelope);
    }
    fn answer(&mut self, request: RequestId, result: Result<Answer<Bytes>, Refusal>) {
        assert!(self.answers.insert(request, result).is_none());
    }
}

/// The connection of snapshot chunks: it carries a number of bytes in a tick, and its full queue drops the oldest, as that
/// of the product does.
pub(crate) struct Lane {
    waiting: VecDeque<(Envelope, usize)>,
    bytes: usize,
    credit: usize,
    pub(crate) bytes_per_tick: usize,
    pub(crate) carried: usize,
    pub(crate) dropped: usize,
}

const LANE_QUEUE_BYTES: usize = 32 * MIB;

impl Lane {
    fn push(&mut self, envelope: Envelope, bytes: usize) {
        self.bytes += bytes;
        self.waiting.push_back((envelope, bytes));
        while self.waiting.len() > 1 && self.bytes > LANE_QUEUE_BYTES {
            let (_, bytes) = self.waiting.pop_front().unwrap();
            self.bytes -= bytes;
            self.dropped += 1;
        }
    }

    /// Begins a tick. Idle time is not saved up.
    fn begin_tick(&mut self) {
        if self.waiting.is_empty() {
            self.credit = 0;
        }
        self.credit = self.credit.saturating_add(self.bytes_per_tick);
    }

    fn pop(&mut self) -> Option<Envelope> {
        let bytes = self.waiting.front().map(|(_, bytes)| *bytes)?;
        self.credit = self.credit.checked_sub(bytes)?;
        self.carried += bytes;
        self.bytes -= bytes;
        self.waiting.pop_front().map(|(envelope, _)| envelope)
    }

    /// Breaks the connection: what waits is lost.
    pub(crate) fn lose_all(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }
}

pub(crate) struct Cluster {
    pub(crate) replicas: BTreeMap<NodeId, Replica<Map>>,
    /// Nodes to and from which nothing arrives.
    pub(crate) cut: Vec<NodeId>,
    /// A node that can't take snapshots, and the number of those that it refused.
    pub(crate) refuses: Option<(NodeId, u32)>,
    pub(crate) outputs: Outputs,
    pub(crate) lane: Lane,
    pub(crate) time: u64,
    /// The feature levels that nodes support, if not 0.
    pub(crate) levels: BTreeMap<NodeId, u32>,
    /// Refusals of messages, by the node that refused.
    pub(crate) refusals: Vec<(NodeId, StepError)>,
    /// The number of answers that a snapshot can't be taken.
    pub(crate) failed_answers: u32,
    /// The errors that stopped replicas.
    pub(crate) errors: Vec<(NodeId, StoreError)>,
    /// True if heartbeats name a wrong digest in place of the one that a quorum has.
    pub(crate) flips_agreed: bool,
    /// The number of such heartbeats.
    pub(crate) flipped: u32,
    options: Options,
    requests: u64,
}

impl Cluster {
    /// Starts a group of three with these options.
    pub(crate) fn new(change: impl Fn(&mut Options)) -> Self {
        Self::of_levels([0; 3], change)
    }

    /// Starts a group of three that support these feature levels.
    pub(crate) fn of_levels(levels: [u32; 3], change: impl Fn(&mut Options)) -> Self {
        let mut options = Options::default();
        change(&mut options);
        let mut cluster = Self {
            replicas: BTreeMap::new(),
            cut: Vec::new(),
            refuses: None,
            outputs: Outputs::default(),
            lane: Lane {
                waiting: VecDeque::new(),
                bytes: 0,
                credit: 0,
                bytes_per_tick: usize::MAX / 2,
                carried: 0,
                dropped: 0,
            },
            time: 1_000,
            levels: BTreeMap::new(),
            refusals: Vec::new(),
            failed_answers: 0,
            errors: Vec::new(),
            flips_agreed: false,
            flipped: 0,
            options,
            requests: 0,
        };
        for (node, level) in (1..=3).zip(levels) {
            cluster.levels.insert(NodeId(node), level);
            cluster.start_as_founder(NodeId(node), Map::default());
        }
        cluster
    }

    /// Starts a node whose disk has the first membership and nothing else.
    pub(crate) fn start_as_founder(&mut self, node: NodeId, map: Map) {
        let founders = (1..=3).map(|node| (NodeId(node), format!("host-{node}")));
        let membership = Membership::of_voters(founders);
        let mut log = SharedLog::default();
        let mut state = MemoryState::new();
        initialise(&mut log, &mut state, &membership, WriteBatch::default()).unwrap();
        self.start(node, log, state, map);
    }

    /// Starts a node with an empty disk. Its address ends with the last digit of its id.
    pub(crate) fn start_empty(&mut self, node: NodeId) {
        self.start(
            node,
            SharedLog::default(),
            MemoryState::new(),
            Map::default(),
        );
    }

    fn start(&mut self, node: NodeId, log: SharedLog, state: MemoryState, map: Map) {
        let mut options = self.options.clone();
        options.raft.feature_level = self.levels.get(&node).copied().unwrap_or_default();
        options.address = format!("host-{}", node.0 % 10);
        let replica = Replica::recover(options, node, Box::new(log), Box::new(state), map, 7);
        self.replicas.insert(node, replica.unwrap());
    }

    fn poll(&mut self, node: NodeId) {
        let Some(replica) = self.replicas.get_mut(&node) else {
            return;
        };
        let mut due = true;
        while std::mem::take(&mut due) || replica.needs_poll() {
            replica.machine().seen.lock().unwrap().polls.push(0);
            if let Err(error) = replica.poll(&mut self.outputs) {
                self.errors.push((node, error));
                self.replicas.remove(&node);
                return;
            }
        }
    }

    fn deliver(&mut self, envelope: &Envelope) {
        let everyone: Vec<NodeId> = self.replicas.keys().copied().collect();
        let to = match envelope.to {
            NodeId(0) => everyone,
            node => vec![node],
        };
        for node in to.into_iter().filter(|node| *node != envelope.from) {
            if self.cut.contains(&node) || self.cut.contains(&envelope.from) {
                continue;
            }
            if self.refuse(node, envelope) {
                continue;
            }
            if let Some(replica) = self.replicas.get_mut(&node) {
                if let Err(error) = replica.receive(envelope.clone()) {
                    let unreadable = matches!(error, StepError::Unreadable { .. });
                    assert!(unreadable, "{error}");
                    self.refusals.push((node, error));
                }
                self.poll(node);
            }
        }
    }

    /// Answers a chunk as a node does that has no space for it. Returns false if `node` can take it.
    fn refuse(&mut self, node: NodeId, envelope: &Envelope) -> bool {
        let Message::SnapshotChunk(chunk) = &envelope.message else {
            return false;
        };
        let Some((_, count)) = self
            .refuses
            .as_mut()
            .filter(|(refuses, _)| *refuses == node)
        else {
            return false;
        };
        *count += 1;
        self.outputs.messages.push_back(Envelope {
            from: node,
            to: envelope.from,
            term: envelope.term,
            message: Message::SnapshotReply {
                snapshot: chunk.meta.last,
                serial: chunk.serial,
                next_chunk: 0,
                status: SnapshotStatus::Failed,
            },
        });
        true
    }

    fn flip(&mut self, envelope: &mut Envelope) {
        if let Message::Heartbeat {
            comparison:
                Some(Comparison {
                    agreed: Some(agreed),
                    ..
                }),
            ..
        } = &mut envelope.message
            && self.flips_agreed
        {
            *agreed ^= 1;
            self.flipped += 1;
        }
    }

    /// Delivers messages until none but chunks is on the way.
    pub(crate) fn settle(&mut self) {
        loop {
            for node in self.replicas.keys().copied().collect::<Vec<_>>() {
                self.poll(node);
            }
            let Some(mut envelope) = self.outputs.messages.pop_front() else {
                return;
            };
            self.flip(&mut envelope);
            if let Message::SnapshotReply {
                status: SnapshotStatus::Failed,
                ..
            } = &envelope.message
            {
                self.failed_answers += 1;
            }
            if let Message::SnapshotChunk(chunk) = &envelope.message {
                let bytes = chunk.data.len() + 100;
                self.lane.push(envelope, bytes);
            } else {
                self.deliver(&envelope);
            }
        }
    }

    pub(crate) fn tick(&mut self) {
        self.time += 10;
        for replica in self.replicas.values_mut() {
            replica.tick(LogTime(self.time));
        }
        self.settle();
        self.lane.begin_tick();
        while let Some(envelope) = self.lane.pop() {
            self.deliver(&envelope);
            self.settle();
        }
    }

    pub(crate) fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick();
        }
    }

    pub(crate) fn leader(&self) -> NodeId {
        self.try_leader().unwrap()
    }

    pub(crate) fn try_leader(&self) -> Option<NodeId> {
        let leads = |node: &NodeId| self.status(*node).role == Role::Leader;
        self.replicas.keys().copied().find(leads)
    }

    /// Returns the leader, once there is one, and the two others.
    pub(crate) fn elect(&mut self) -> (NodeId, [NodeId; 2]) {
        while self.try_leader().is_none() {
            assert!(self.time < 100_000, "no leader");
            self.tick();
        }
        let leader = self.leader();
        let others: Vec<NodeId> = self.replicas.keys().copied().collect();
        let others: Vec<NodeId> = others.into_iter().filter(|node| *node != leader).collect();
        (leader, others.try_into().unwrap())
    }

    pub(crate) fn status(&self, node: NodeId) -> Status {
        self.replicas[&node].status()
    }

    pub(crate) fn submit(&mut self, node: NodeId, request: Request<()>) -> RequestId {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.replicas.get_mut(&node).unwrap().submit(id, request);
        id
    }

    /// Asks the leader to put a value of this size.
    pub(crate) fn put(&mut self, key: &str, bytes: usize) {
        self.put_at(self.leader(), key, bytes);
    }

    /// Asks a node to put a value of this size.
    pub(crate) fn put_at(&mut self, node: NodeId, key: &str, bytes: usize) {
        let mut operation = format!("{key}=").into_bytes();
        operation.resize(operation.len() + bytes, b'x');
        let request = Request::Write {
            operation: operation.into(),
            frees_space: false,
        };
        self.submit(node, request);
    }

    /// Cuts a node off, and lets the others write `count` values of this size.
    pub(crate) fn write_without(&mut self, node: NodeId, count: usize, bytes: usize) {
        self.cut = vec![node];
        for number in 0..count {
            self.put(&format!("big{number:05}"), bytes);
            self.settle();
        }
        self.ticks(60);
    }

    /// Returns the number of entries that a node's state is behind the leader's.
    pub(crate) fn lag(&self, node: NodeId) -> u64 {
        let leader = self.status(self.leader()).last_applied;
        leader.since(self.status(node).last_applied)
    }
}
