//! A host: an address, its disk, its clock, and the process that may run there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use raft::{Envelope, Index};
use replica::{NodeRecord, Outlet, Replica, Request, RequestId};
use shardkv::{Ownership, PageRequest};
use types::{Gid, LogTime, NodeId, ShardId};

use crate::disk::Disk;
use crate::first_start::{Looking, Volume};
use crate::group::GroupId;
use crate::invariants::Progress;
use crate::machine::{KeyspaceRead, Outcome, Question, Reply};
use crate::mover::Mover;
use crate::network::{HostId, address};
use crate::queue::Micros;
use crate::recorder::{Journal, Recorder};
use crate::tracker::Tracker;

/// The wall clock's reading when a world begins, in milliseconds.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// A process's replica.
pub(crate) type Process = Replica<Recorder>;

/// A wall clock with an error and a drift.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// Milliseconds ahead.
    pub(crate) skew_ms: i64,
    /// Millionths too fast.
    pub(crate) drift: i64,
}

impl Clock {
    /// Returns the clock's reading.
    pub(crate) fn wall(self, now: Micros) -> LogTime {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let shown = EPOCH_MS + (now + now / 1_000_000 * self.drift) / 1_000 + self.skew_ms;
        LogTime(u64::try_from(shown).unwrap_or(0))
    }

    /// Returns the real time in which this clock measures `duration`.
    pub(crate) fn stretch(self, duration: Micros) -> Micros {
        let duration = i64::try_from(duration).unwrap_or(i64::MAX);
        let real = duration - duration * self.drift / 1_000_000;
        u64::try_from(real).unwrap_or(0).max(1)
    }
}

/// An input that waits in a process's inbox.
#[derive(Debug)]
pub(crate) enum Input {
    /// A peer's message.
    Message(Envelope),
    /// A client's request.
    Request(RequestId, Request<Question>),
    /// The news that the connection to a node broke.
    Disconnect(NodeId),
}

/// A read of shards that has no answer yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenRead {
    pub(crate) shards: Vec<ShardId>,
    /// One of them that another group served already when the read arrived.
    pub(crate) elsewhere: Option<Elsewhere>,
}

/// A shard that another group served when a read of it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub(crate) shard: ShardId,
    /// The group that served it.
    pub(crate) by: Gid,
    /// The number of times until then that a shard began to be served, or ceased to be.
    pub(crate) turns: u64,
}

/// A host, and the state of the process on it.
#[allow(
    clippy::struct_excessive_bools,
    reason = "the flags are independent faults, and any of them may be on"
)]
pub(crate) struct Host {
    pub(crate) number: HostId,
    pub(crate) group: GroupId,
    pub(crate) address: String,
    /// The node whose data the disk holds.
    pub(crate) node: NodeId,
    pub(crate) disk: Disk,
    /// What the disk says of the node, in worlds with first starts.
    pub(crate) record: NodeRecord,
    /// The search for the group, before the replica of a first start.
    pub(crate) looking: Option<Looking>,
    /// The volume that the host had before.
    pub(crate) spare: Option<Volume>,
    pub(crate) clock: Clock,
    pub(crate) process: Option<Box<Process>>,
    /// Counts starts and stops, so that events for an earlier process don't reach a later one.
    pub(crate) incarnation: u64,
    pub(crate) inbox: VecDeque<Input>,
    pub(crate) owed_ticks: u32,
    pub(crate) busy_until: Micros,
    /// True if a `Work` event is scheduled.
    pub(crate) work_due: bool,
    pub(crate) paused: bool,
    pub(crate) disk_low: bool,
    /// True if the log was truncated or got a membership since the last check.
    pub(crate) check_membership: bool,
    /// True if clients can't reach the host.
    pub(crate) unreachable: bool,
    /// The unanswered requests of the process, each with the last committed index at its arrival.
    pub(crate) open_requests: BTreeMap<RequestId, Index>,
    /// The open reads of shards.
    pub(crate) reads: BTreeMap<RequestId, OpenRead>,
    /// The ownership before the present step of the process.
    pub(crate) owned: Option<Arc<Ownership>>,
    /// The pages of scans that are not read yet.
    pub(crate) pages: BTreeMap<RequestId, PageRequest>,
    /// The reads of keyspaces that were not carried out yet.
    pub(crate) keyspace_reads: BTreeMap<RequestId, KeyspaceRead>,
    pub(crate) progress: Progress,
    pub(crate) journal: Journal,
    /// The mover, or `None` where no shards move.
    pub(crate) mover: Option<Mover>,
    /// The changes and timers of keyspaces that the process follows, in worlds that have them.
    pub(crate) tracker: Option<Tracker>,
}

impl Host {
    pub(crate) fn new(
        number: HostId,
        group: GroupId,
        node: NodeId,
        disk: Disk,
        clock: Clock,
    ) -> Self {
        Self {
            number,
            group,
            address: address(number),
            node,
            disk,
            record: NodeRecord::new(node),
            looking: None,
            spare: None,
            clock,
            process: None,
            incarnation: 0,
            inbox: VecDeque::new(),
            owed_ticks: 0,
            busy_until: 0,
            work_due: false,
            paused: false,
            disk_low: false,
            check_membership: false,
            unreachable: false,
            open_requests: BTreeMap::new(),
            reads: BTreeMap::new(),
            owned: None,
            pages: BTreeMap::new(),
            keyspace_reads: BTreeMap::new(),
            progress: Progress::default(),
            journal: Arc::default(),
            mover: None,
            tracker: None,
        }
    }

    /// Returns true if a process runs and isn't paused.
    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some() && !self.paused
    }

    /// Passes the owed ticks to the process, at most `most` of them. Reports a pause if it drops some.
    pub(crate) fn pass_ticks(&mut self, process: &mut Process, now: Micros, most: u32) {
        let owed = std::mem::take(&mut self.owed_ticks);
        let ticks = owed.min(most);
        if owed > ticks {
            process.handle_pause();
        }
        for _ in 0..ticks {
            process.tick(self.clock.wall(now));
        }
    }

    /// Passes the whole inbox to the process. `committed` is the last committed index of the group. Returns the error of
    /// the first message that the process refused.
    pub(crate) fn pass_inbox(
        &mut self,
        process: &mut Process,
        committed: Index,
    ) -> Option<raft::StepError> {
        let mut refused = None;
        while let Some(input) = self.inbox.pop_front() {
            match input {
                Input::Message(envelope) => {
                    if let Err(error) = process.receive(envelope) {
                        refused = refused.or(Some(error));
                    }
                }
                Input::Request(id, request) => {
                    let fresh_from = match request {
                        // A local read may return old data.
                        Request::ReadLocal(_) => Index(0),
                        _ => committed,
                    };
                    self.open_requests.insert(id, fresh_from);
                    process.submit(id, request);
                }
                Input::Disconnect(node) => process.handle_disconnect(node),
            }
        }
        refused
    }

    /// Drops the process and all its state in memory.
    pub(crate) fn stop(&mut self, now: Micros) {
        self.process = None;
        self.tracker = None;
        self.looking = None;
        self.incarnation += 1;
        self.inbox.clear();
        self.owed_ticks = 0;
        self.busy_until = now;
        self.work_due = false;
        self.paused = false;
        self.open_requests.clear();
        self.pages.clear();
        self.keyspace_reads.clear();
        self.reads.clear();
        self.owned = None;
        self.progress = Progress::default();
        self.journal = Arc::default();
        self.disk.crash(now);
    }
}

/// The messages and answers of a process in one step, each with its delay after the start of the step.
pub(crate) struct ProcessOutput<'a> {
    disk: &'a Disk,
    pub(crate) messages: Vec<(Micros, Envelope)>,
    pub(crate) answers: Vec<(Micros, RequestId, Outcome)>,
}

impl<'a> ProcessOutput<'a> {
    pub(crate) fn new(disk: &'a Disk) -> Self {
        Self {
            disk,
            messages: Vec::new(),
            answers: Vec::new(),
        }
    }
}

impl Outlet<Reply> for ProcessOutput<'_> {
    fn send(&mut self, envelope: Envelope) {
        if let Some(after) = self.disk.departure() {
            self.messages.push((after, envelope));
        }
    }

    fn answer(&mut self, request: RequestId, result: Outcome) {
        if let Some(after) = self.disk.departure() {
            self.answers.push((after, request, result));
        }
    }
}
