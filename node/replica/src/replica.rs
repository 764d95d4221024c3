//! The replica itself: its doors, and the loop that does what is due.

use raft::{
    Envelope, LogStore, MemberKind, ProposeError, Raft, ReadError, Role, Stepped, StoreError, Term,
};
use types::{LogTime, NodeId};

use crate::admin::Admin;
use crate::compaction::Compaction;
use crate::entry::OperationBatch;
use crate::snapshots::Snapshots;
use crate::waiting::{Reads, Writes, by_index_only};
use crate::{
    Answer, Applied, Options, Outlet, Refusal, Request, RequestId, StateMachine, StateStore, Status,
};

/// Rounds of work in one `poll`, so that a busy replica looks at its inbox now and then.
const MAX_ROUNDS: usize = 8;
/// A replica that is no member asks to be let in this often, in ticks.
const JOIN_REQUEST_TICKS: u32 = 50;

/// A request and its end.
type Finished<R> = (RequestId, Result<Answer<R>, Refusal>);

/// One member of a group: a log, a state machine, and the requests that wait for them.
///
/// Synchronous and without I/O but for the stores it was given: a driver feeds it messages, requests and ticks, and
/// calls [`poll`](Self::poll), which drains all of it with one write.
pub struct Replica<M: StateMachine> {
    pub(crate) options: Options,
    pub(crate) raft: Raft,
    pub(crate) log: Box<dyn LogStore + Send>,
    pub(crate) state: Box<dyn StateStore>,
    pub(crate) machine: M,
    pub(crate) applied: Applied,
    pub(crate) writes: Writes,
    pub(crate) reads: Reads<M::Query>,
    pub(crate) admin: Admin,
    pub(crate) snapshots: Snapshots,
    pub(crate) compaction: Compaction,
    /// Questions about this replica's own state.
    local: Vec<(RequestId, M::Query)>,
    /// Answers that were ready before `poll` was called.
    pub(crate) early: Vec<Finished<M::Response>>,
    /// A write that a full disk refused; tried again with each poll.
    unwritten: Option<Box<raft::Persist>>,
    /// The greatest log time stamped or applied.
    stamped: LogTime,
    now: LogTime,
    disk_low: bool,
    stopping: bool,
    /// The term in which this replica leads, as of the last look.
    leading: Option<Term>,
    ticks_to_join_request: u32,
}

impl<M: StateMachine> Replica<M> {
    pub(crate) fn from_parts(
        options: Options,
        raft: Raft,
        log: Box<dyn LogStore + Send>,
        state: Box<dyn StateStore>,
        mut machine: M,
    ) -> Result<Self, StoreError> {
        machine.reload(&*state)?;
        let applied = state.applied();
        Ok(Self {
            raft,
            log,
            machine,
            writes: Writes::default(),
            reads: Reads::default(),
            admin: Admin::default(),
            snapshots: Snapshots::default(),
            compaction: Compaction::new(applied.last.index),
            local: Vec::new(),
            early: Vec::new(),
            unwritten: None,
            stamped: applied.time,
            now: LogTime(0),
            disk_low: false,
            stopping: false,
            leading: None,
            ticks_to_join_request: 0,
            applied,
            state,
            options,
        })
    }

    /// Takes a request in. It is answered through the outlet of this or a later [`Replica::poll`].
    pub fn submit(&mut self, id: RequestId, request: Request<M::Query>) {
        if let Err(refusal) = self.admit(id, request) {
            self.early.push((id, Err(refusal)));
        }
    }

    fn admit(&mut self, id: RequestId, request: Request<M::Query>) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        if let Request::ReadLocal(query) = request {
            // A node that waits to be let in, or for its first snapshot, has nothing to tell.
            if self.applied == Applied::default() {
                return Err(Refusal::NotLeader {
                    leader: self.raft.leader(),
                });
            }
            self.bound_pending()?;
            self.local.push((id, query));
            return Ok(());
        }
        if self.unwritten.is_some() {
            return Err(Refusal::DiskFull);
        }
        if self.raft.role() != Role::Leader {
            return Err(Refusal::NotLeader {
                leader: self.raft.leader(),
            });
        }
        self.bound_pending()?;
        match request {
            Request::Write { frees_space, .. } if self.disk_low && !frees_space => {
                Err(Refusal::DiskFull)
            }
            Request::Write { operation, .. } => match self.machine.refuse_early(&operation) {
                Some(refusal) => {
                    self.early.push((id, Ok(Answer::Machine(refusal))));
                    Ok(())
                }
                None => self.writes.push(id, operation, &self.options),
            },
            Request::Read(query) | Request::ReadLocal(query) => {
                self.reads.push(id, query);
                Ok(())
            }
            Request::LogTime => {
                let time = self.log_time();
                self.early.push((id, Ok(Answer::LogTime(time))));
                Ok(())
            }
            Request::ChangeMembership(change) => self.admin.change(&mut self.raft, id, &change),
            Request::TransferLeadership(target) => self.admin.transfer(&mut self.raft, id, target),
        }
    }

    fn bound_pending(&self) -> Result<(), Refusal> {
        let limit = self.options.max_pending_requests;
        if self.pending_requests() < limit {
            return Ok(());
        }
        Err(Refusal::Overloaded {
            what: "pending requests",
            limit: limit as u64,
        })
    }

    /// Requests that a leader's loss concerns.
    fn led_requests(&self) -> usize {
        self.writes.len() + self.reads.len() + self.admin.len() + self.early.len()
    }

    fn pending_requests(&self) -> usize {
        self.led_requests() + self.local.len()
    }

    /// Takes a message of a peer in. A message that can't be right is refused and changes nothing.
    pub fn receive(&mut self, envelope: Envelope) -> Result<(), raft::StepError> {
        // While a full disk keeps a write back nothing can be promised, so nothing is listened to: others take over.
        if self.unwritten.is_some() {
            return Ok(());
        }
        match self.raft.step(envelope)? {
            Stepped::Done => {}
            Stepped::Snapshot(envelope) => self.snapshots.receive(envelope),
            Stepped::JoinRequest { node, address } => {
                Admin::asked_to_join(&mut self.raft, node, &address);
            }
        }
        Ok(())
    }

    /// Lets one tick of time pass. `now` is the wall clock in milliseconds, which only a leader uses, and only to
    /// stamp its log.
    pub fn tick(&mut self, now: LogTime) {
        self.now = now;
        if self.unwritten.is_some() {
            // Ticks that Raft doesn't see must not lengthen a lease: others elect a leader meanwhile.
            self.raft.handle_pause();
            return;
        }
        self.raft.tick();
        Admin::tick(&mut self.raft);
        self.snapshots
            .tick(&mut self.raft, self.options.raft.heartbeat_ticks);
        self.ask_to_join();
    }

    /// More time passed than ticks were given, because the process was paused, say: call it before anything else then.
    pub fn handle_pause(&mut self) {
        self.raft.handle_pause();
    }

    /// The connection to `node` broke: if it leads, pre-vote soon.
    pub fn handle_disconnect(&mut self, node: NodeId) {
        self.raft.handle_disconnect(node);
        self.snapshots.resend_to(node);
    }

    /// Whether a disk is nearly full: then writes that don't free space are refused.
    pub fn set_disk_low(&mut self, low: bool) {
        self.disk_low = low;
    }

    /// Does all the work that is due: sends, makes durable with one write, sends what waited for that, applies,
    /// answers. An error other than `Full` is final: the replica must not be used any more, and its node stops.
    /// After `Full` nothing of the write happened; a later poll tries it again.
    pub fn poll(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        for (id, result) in self.early.drain(..) {
            outlet.answer(id, result);
        }
        for (id, query) in std::mem::take(&mut self.local) {
            let response = self.machine.query(&query, &*self.state)?;
            outlet.answer(id, Ok(Answer::Machine(response)));
        }
        self.retry_write(outlet)?;
        self.notice_leadership(outlet);
        for _ in 0..MAX_ROUNDS {
            self.propose();
            self.ask_to_read();
            self.pump_snapshots()?;
            if !self.raft.needs_poll() {
                break;
            }
            self.round(outlet)?;
            self.notice_leadership(outlet);
        }
        self.admin.settle(&self.raft, outlet);
        self.compact()
    }

    /// One turn of Raft: messages leave, one write, messages that waited leave, entries are applied, reads answered.
    fn round(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        let ready = self.raft.poll_ready(&*self.log)?;
        for envelope in ready.messages {
            outlet.send(envelope);
        }
        let written = match ready.persist {
            Some(persist) => self.write(persist, outlet),
            None => Ok(()),
        };
        for grant in ready.reads {
            self.reads.granted(grant.ticket, grant.index);
        }
        for node in ready.snapshots_wanted {
            self.snapshots.wanted(node);
        }
        if !ready.committed.is_empty() {
            self.apply(ready.committed, outlet)?;
        }
        self.answer_reads(outlet)?;
        written
    }

    fn write(
        &mut self,
        persist: Box<raft::Persist>,
        outlet: &mut dyn Outlet<M::Response>,
    ) -> Result<(), StoreError> {
        match persist.write(&mut *self.log) {
            Ok(done) => {
                for envelope in self.raft.handle_persisted(done) {
                    outlet.send(envelope);
                }
                Ok(())
            }
            Err((persist, error)) => {
                self.unwritten = Some(persist);
                Err(error)
            }
        }
    }

    fn retry_write(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        match self.unwritten.take() {
            Some(persist) => self.write(persist, outlet),
            None => Ok(()),
        }
    }

    /// Puts what is queued into the log: one entry for as many operations as fit. Others wait for room, or for the end
    /// of a transfer.
    fn propose(&mut self) {
        while self.writes.has_queued()
            && self.raft.role() == Role::Leader
            && !self.raft.is_transferring()
        {
            let operations = self.writes.next_batch(self.options.max_entry_bytes);
            let count = operations.len();
            let time = self.log_time();
            let batch = OperationBatch {
                time,
                max_value_bytes: self.options.max_value_bytes,
                operations,
            };
            match self.raft.propose(batch.encode()) {
                Ok(id) => {
                    self.stamped = time;
                    self.writes.proposed(id, count);
                }
                Err(
                    ProposeError::NotLeader { .. }
                    | ProposeError::Transferring
                    | ProposeError::Overloaded { .. },
                ) => return,
            }
        }
    }

    /// The leader's log time of now: it never goes back, whatever the clocks of leaders do.
    fn log_time(&self) -> LogTime {
        self.now.max(self.stamped).max(self.applied.time)
    }

    fn ask_to_read(&mut self) {
        if !self.reads.has_queued() {
            return;
        }
        match self.raft.read_index() {
            Ok(ticket) => self.reads.asked(ticket),
            // A new leader knows soon what is committed; `notice_leadership` answers if it isn't one any more.
            Err(ReadError::NotReady | ReadError::NotLeader { .. }) => {}
        }
    }

    fn answer_reads(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        for (id, query) in self.reads.answerable(self.applied.last.index) {
            let response = self.machine.query(&query, &*self.state)?;
            outlet.answer(id, Ok(Answer::Machine(response)));
        }
        Ok(())
    }

    /// Tells the waiting requests when leadership is lost, even if it was won again in a later term at once.
    fn notice_leadership(&mut self, outlet: &mut dyn Outlet<M::Response>) {
        let leading = (self.raft.role() == Role::Leader).then(|| self.raft.term());
        // Leadership may come and go between two polls, with requests taken in meanwhile.
        let left_behind = leading.is_none() && self.led_requests() > 0;
        if leading == self.leading && !left_behind {
            return;
        }
        let lost = self.leading.is_some() || left_behind;
        self.leading = leading;
        if !lost || by_index_only(&self.options) {
            return;
        }
        let leader = self.raft.leader();
        let (untouched, unknown) = self.writes.fail(self.raft.commit_index());
        for id in untouched.into_iter().chain(self.reads.fail()) {
            outlet.answer(id, Err(Refusal::NotLeader { leader }));
        }
        for id in unknown {
            outlet.answer(id, Err(Refusal::Unknown { leader }));
        }
        self.admin.leadership_lost(&self.raft, outlet);
        self.snapshots.stop_sending();
    }

    fn ask_to_join(&mut self) {
        // A learner without a leader may be one by its own log only: the entry that let it in may have been lost with
        // the leader that sent it, and then nobody else knows of it.
        let member = self.raft.membership().get(self.raft.node());
        let leads = self.raft.leader().is_some();
        if member.is_some_and(|member| member.kind == MemberKind::Voter || leads) {
            return;
        }
        if let Some(ticks) = self.ticks_to_join_request.checked_sub(1) {
            self.ticks_to_join_request = ticks;
        } else {
            self.ticks_to_join_request = JOIN_REQUEST_TICKS;
            self.raft.ask_to_join(&self.options.address);
        }
    }

    /// Whether `poll` left work that needs no input: call it again, after looking at the inbox.
    pub fn needs_poll(&self) -> bool {
        let blocked = self.unwritten.is_some();
        !self.early.is_empty()
            || !self.local.is_empty()
            || !blocked && (self.raft.needs_poll() || self.snapshots.has_work())
    }

    /// Refuses new requests from now on with `Stopping`, answers all that wait, and makes the state durable.
    pub fn stop(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        self.stopping = true;
        for (id, result) in self.early.drain(..) {
            outlet.answer(id, result);
        }
        let (untouched, unknown) = self.writes.fail(raft::Index(0));
        let waiting = untouched
            .into_iter()
            .chain(unknown)
            .chain(self.reads.fail_all())
            .chain(self.local.drain(..).map(|(id, _)| id))
            .chain(self.admin.fail_all());
        for id in waiting {
            outlet.answer(id, Err(Refusal::Stopping));
        }
        self.state.flush()
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        Status {
            node: self.raft.node(),
            role: self.raft.role(),
            term: self.raft.term(),
            leader: self.raft.leader(),
            commit_index: self.raft.commit_index(),
            last_applied: self.applied.last.index,
            applied_term: self.applied.last.term,
            group_commit: self.raft.group_commit(),
            compacted: self.raft.compacted(),
            last_index: self.raft.last_id().index,
            membership: self.raft.membership().clone(),
            progress: self.raft.progress().collect(),
            pending_requests: self.pending_requests(),
            elections_started: self.raft.elections_started(),
            snapshots: self.snapshots.counts(),
            disk_low: self.disk_low,
        }
    }

    /// The state as of the last applied entry, for checks and metrics.
    pub fn state(&self) -> &dyn StateStore {
        &*self.state
    }

    /// The state machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }
}
