//! An address: its disk, its clock, and the process that maybe runs there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use raft::{Envelope, Index};
use replica::{Outlet, Replica, Request, RequestId};
use types::{LogTime, NodeId};

use crate::disk::Disk;
use crate::group::GroupId;
use crate::invariants::Progress;
use crate::machine::{Outcome, Question, Reply};
use crate::mover_driver::MoverDriver;
use crate::network::HostId;
use crate::queue::Micros;
use crate::recorder::{Journal, Recorder};

/// The wall clock's reading when a world begins, in milliseconds.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// A process's replica.
pub(crate) type Process = Replica<Recorder>;

/// A wall clock that is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// Milliseconds ahead.
    pub(crate) skew_ms: i64,
    /// Millionths too fast.
    pub(crate) drift: i64,
}

impl Clock {
    /// What it shows.
    pub(crate) fn wall(self, now: Micros) -> LogTime {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let shown = EPOCH_MS + (now + now / 1_000_000 * self.drift) / 1_000 + self.skew_ms;
        LogTime(u64::try_from(shown).unwrap_or(0))
    }

    /// How long `duration` takes, as this clock measures it.
    pub(crate) fn stretch(self, duration: Micros) -> Micros {
        let duration = i64::try_from(duration).unwrap_or(i64::MAX);
        let real = duration - duration * self.drift / 1_000_000;
        u64::try_from(real).unwrap_or(0).max(1)
    }
}

/// What waits for a process.
#[derive(Debug)]
pub(crate) enum Input {
    /// A peer's message.
    Message(Envelope),
    /// A client's request.
    Request(RequestId, Request<Question>),
    /// A connection broke.
    Hint(NodeId),
}

/// An address.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a fault of its own, and any of them may be on"
)]
pub(crate) struct Host {
    pub(crate) number: HostId,
    pub(crate) group: GroupId,
    pub(crate) address: String,
    /// Who lives on the disk.
    pub(crate) node: NodeId,
    pub(crate) disk: Disk,
    pub(crate) clock: Clock,
    pub(crate) process: Option<Box<Process>>,
    /// Counts starts and stops: what was meant for an earlier process does not reach a later one.
    pub(crate) incarnation: u64,
    pub(crate) inbox: VecDeque<Input>,
    pub(crate) owed_ticks: u32,
    pub(crate) busy_until: Micros,
    /// A `Work` event is scheduled.
    pub(crate) work_due: bool,
    pub(crate) paused: bool,
    pub(crate) disk_low: bool,
    /// Its log was truncated or got a membership since the last look.
    pub(crate) look_at_membership: bool,
    /// Clients can't reach it.
    pub(crate) unreachable: bool,
    /// Requests that were handed to the process and not answered, with what anyone had called committed by then.
    pub(crate) asked: BTreeMap<RequestId, Index>,
    pub(crate) progress: Progress,
    pub(crate) journal: Journal,
    /// What carries out what its mover asks for; none where no shards move.
    pub(crate) mover_driver: Option<MoverDriver>,
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
            clock,
            process: None,
            incarnation: 0,
            inbox: VecDeque::new(),
            owed_ticks: 0,
            busy_until: 0,
            work_due: false,
            paused: false,
            disk_low: false,
            look_at_membership: false,
            unreachable: false,
            asked: BTreeMap::new(),
            progress: Progress::default(),
            journal: Arc::default(),
            mover_driver: None,
        }
    }

    /// Whether a process runs and moves.
    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some() && !self.paused
    }

    /// Forgets all that belongs to the process.
    pub(crate) fn take_down(&mut self, now: Micros) {
        self.process = None;
        self.incarnation += 1;
        self.inbox.clear();
        self.owed_ticks = 0;
        self.busy_until = now;
        self.work_due = false;
        self.paused = false;
        self.asked.clear();
        self.progress = Progress::default();
        self.journal = Arc::default();
        self.disk.crash(now);
    }
}

/// The address of a host.
pub(crate) fn address(number: HostId) -> String {
    format!("host-{number}:7000")
}

/// The host of an address.
pub(crate) fn host_at(address: &str) -> Option<HostId> {
    let (host, _) = address.strip_prefix("host-")?.split_once(':')?;
    host.parse().ok()
}

/// Catches what leaves a process, with how long after the start of its work it leaves.
pub(crate) struct Leaving<'a> {
    disk: &'a Disk,
    pub(crate) messages: Vec<(Micros, Envelope)>,
    pub(crate) answers: Vec<(Micros, RequestId, Outcome)>,
}

impl<'a> Leaving<'a> {
    pub(crate) fn new(disk: &'a Disk) -> Self {
        Self {
            disk,
            messages: Vec::new(),
            answers: Vec::new(),
        }
    }
}

impl Outlet<Reply> for Leaving<'_> {
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
