//! One member of a group: its inputs, and [`Replica::poll`], which does all work that is due.

use std::collections::VecDeque;

use raft::{
    Entry, Envelope, LogStore, MemberKind, ProposeError, Raft, ReadError, Role, Stepped,
    StoreError, Term,
};
use types::{LogTime, NodeId};

use crate::admin::Admin;
use crate::bug::Bug;
use crate::compaction::Compaction;
use crate::comparison::Comparing;
use crate::entry::OperationBatch;
use crate::follower_reads::FollowerReads;
use crate::genesis::MAX_BIRTH_AHEAD_MS;
use crate::kept_log::KeptLog;
use crate::pending::{PendingReads, PendingWrites, by_index_only};
use crate::snapshots::Snapshots;
use crate::upkeep::Upkeep;
use crate::work::{LOOKUP_WORK, work_of_bytes};
use crate::{
    Answer, Applied, Options, Outlet, Refusal, Request, RequestId, StateMachine, StateStore, Status,
};

/// The most milliseconds that one tick adds to log time. More only passes if ticks are late, or if the wall clock jumps.
const MAX_TICK_MS: u64 = 1_000;

/// The most rounds of work in one `poll`, so that the driver of a busy replica handles its inbox in between.
const MAX_ROUNDS: usize = 8;
/// The interval in ticks at which a replica that is no member asks to be added.
const JOIN_REQUEST_TICKS: u32 = 50;

/// A request with its answer or refusal.
type Finished<R> = (RequestId, Result<Answer<R>, Refusal>);

/// One member of a group: a log, a state machine, and the requests that wait for them.
///
/// It is synchronous, and its stores do its only I/O. A driver passes messages, requests and ticks in, and calls
/// [`poll`](Self::poll), which handles all of them with one write.
pub struct Replica<M: StateMachine> {
    pub(crate) options: Options,
    pub(crate) raft: Raft,
    pub(crate) log: Box<dyn LogStore + Send>,
    pub(crate) state: Box<dyn StateStore>,
    pub(crate) machine: M,
    pub(crate) applied: Applied,
    /// Committed entries that wait until polls before have done their work, in order. Raft hands out no more meanwhile.
    pub(crate) unapplied: VecDeque<Entry>,
    /// The work that this poll may still do.
    pub(crate) work_left: u64,
    pub(crate) writes: PendingWrites,
    pub(crate) reads: PendingReads<M::Query>,
    pub(crate) follower_reads: FollowerReads<M::Query>,
    pub(crate) admin: Admin,
    pub(crate) snapshots: Snapshots,
    pub(crate) compaction: Compaction,
    pub(crate) kept_log: KeptLog,
    pub(crate) comparing: Comparing,
    /// Queries of this replica's own state.
    local: Vec<(RequestId, M::Query)>,
    /// The answers that are ready, for the next `poll`.
    pub(crate) finished: Vec<Finished<M::Response>>,
    /// A write that a full disk refused; each poll tries it again.
    unwritten: Option<Box<raft::Persist>>,
    /// The greatest log time stamped or applied.
    pub(crate) stamped: LogTime,
    /// This replica's measure of log time: zero until a log time is known, and from then on as long as its process runs.
    measured: LogTime,
    /// The wall clock at the last tick.
    now: LogTime,
    pub(crate) disk_low: bool,
    stopping: bool,
    /// The term in which this replica led at the end of the last poll.
    leading: Option<Term>,
    ticks_to_join_request: u32,
    /// The feature level that this replica proposed last, with its term.
    pub(crate) raised: Option<(Term, u32)>,
    pub(crate) upkeep: Upkeep,
}

impl<M: StateMachine> Replica<M> {
    /// Follows the log time of an applied entry. A leader measures further than the entries that it has proposed.
    pub(crate) fn follow_log_time(&mut self) {
        if self.raft.role() != Role::Leader {
            self.measured = self.applied.time;
        }
    }

    pub(crate) fn from_parts(
        options: Options,
        mut raft: Raft,
        log: Box<dyn LogStore + Send>,
        state: Box<dyn StateStore>,
        mut machine: M,
    ) -> Result<Self, StoreError> {
        machine.reload(&*state)?;
        let applied = state.applied();
        let compaction = Compaction::opened(raft.take_growth(), applied.last.index);
        Ok(Self {
            raft,
            log,
            machine,
            unapplied: VecDeque::new(),
            work_left: 0,
            writes: PendingWrites::default(),
            reads: PendingReads::default(),
            follower_reads: FollowerReads::default(),
            admin: Admin::default(),
            snapshots: Snapshots::default(),
            compaction,
            kept_log: KeptLog::default(),
            comparing: Comparing::default(),
            local: Vec::new(),
            finished: Vec::new(),
            unwritten: None,
            stamped: applied.time,
            measured: applied.time,
            now: LogTime(0),
            disk_low: false,
            stopping: false,
            leading: None,
            ticks_to_join_request: 0,
            raised: None,
            upkeep: Upkeep::default(),
            applied,
            state,
            options,
        })
    }

    /// Accepts a request. The next or a later [`Replica::poll`] answers it through its outlet.
    pub fn submit(&mut self, id: RequestId, request: Request<M::Query>) {
        if let Err(refusal) = self.admit(id, request) {
            self.finished.push((id, Err(refusal)));
        }
    }

    fn admit(&mut self, id: RequestId, request: Request<M::Query>) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        if let Request::ReadLocal(query) = request {
            // A node that waits to be added, or for its first snapshot, has no state.
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
        if let Request::ReadHere(query) = request {
            self.bound_pending()?;
            return self.admit_read_here(id, query);
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
            Request::Write { operation, .. } => {
                if let Some(refusal) = self.machine.refuse_early(&operation) {
                    self.finished.push((id, Ok(Answer::Machine(refusal))));
                    return Ok(());
                }
                let work = self
                    .machine
                    .most_work(&operation, self.options.max_value_bytes);
                self.writes.push(id, operation, work, &self.options)
            }
            Request::Read(query) | Request::ReadHere(query) | Request::ReadLocal(query) => {
                self.reads.push(id, query);
                Ok(())
            }
            Request::Birth { at_least } => {
                self.finished
                    .push((id, Ok(Answer::Birth(self.birth(at_least)))));
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

    /// Returns the number of requests that fail when this replica loses leadership.
    fn leader_requests(&self) -> usize {
        self.writes.len() + self.reads.len() + self.admin.len() + self.finished.len()
    }

    fn pending_requests(&self) -> usize {
        self.leader_requests() + self.local.len() + self.follower_reads.len()
    }

    /// Handles a message of a peer. It refuses a malformed message, which changes nothing.
    pub fn receive(&mut self, envelope: Envelope) -> Result<(), raft::StepError> {
        // While a full disk delays a write, this replica can promise nothing. It ignores messages, so that others take over.
        if self.unwritten.is_some() {
            return Ok(());
        }
        if let Err(error) = self.check_readable(&envelope) {
            self.refuse_snapshot(&envelope);
            return Err(error);
        }
        let comparison = self.answer_comparison(&envelope);
        let from = envelope.from;
        match self.raft.step(envelope)? {
            Stepped::Done => {
                if let Some(comparison) = comparison {
                    self.take_comparison(from, comparison);
                }
            }
            Stepped::Snapshot(envelope) => self.snapshots.receive(envelope),
            Stepped::JoinRequest { node, address } => {
                Admin::handle_join_request(&mut self.raft, node, &address);
            }
        }
        Ok(())
    }

    /// Advances time by one tick. `now` is the wall clock in milliseconds, which measures the time since the tick before, and
    /// is the birth of sessions.
    pub fn tick(&mut self, now: LogTime) {
        self.measure(now);
        self.tick_follower_reads();
        if self.unwritten.is_some() {
            // Ticks that Raft doesn't receive must not extend a lease: others may elect a leader meanwhile.
            self.raft.handle_pause();
            return;
        }
        self.raft.tick();
        Admin::tick(&mut self.raft);
        self.raise_level();
        self.keep_up();
        self.compare_states();
        self.snapshots.tick(&mut self.raft, &self.options);
        self.kept_log.tick(&self.raft);
        self.ask_to_join();
    }

    /// Invalidates leases after time passed without ticks, for example while the process was paused. Call it before any
    /// other input.
    pub fn handle_pause(&mut self) {
        self.raft.handle_pause();
    }

    /// Handles a broken connection to `node`. If `node` leads, this replica asks for pre-votes soon.
    pub fn handle_disconnect(&mut self, node: NodeId) {
        self.raft.handle_disconnect(node);
        self.snapshots.resend_to(node);
    }

    /// Handles a broken connection that carried snapshot chunks to `node`: those that are not acknowledged are sent again.
    pub fn handle_snapshot_disconnect(&mut self, node: NodeId) {
        self.snapshots.resend_to(node);
    }

    /// Records that a disk is nearly full, or no longer is. While it is, the replica refuses writes that free no space.
    pub fn set_disk_low(&mut self, low: bool) {
        if self.disk_low && !low {
            // The log may grow again, so the next snapshot isn't overtaken for this reason.
            self.snapshots.end_pauses();
        }
        self.disk_low = low;
    }

    /// Does all work that is due: sends messages, makes entries durable with one write, sends the messages that waited for
    /// the write, applies entries, and answers requests. An error other than `Full` is final: the replica must not be used
    /// any more, and its node stops. After `Full` nothing of the write happened; a later poll tries it again.
    pub fn poll(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        if let Some(error) = &self.comparing.diverged {
            return Err(error.clone());
        }
        for (id, result) in self.finished.drain(..) {
            outlet.answer(id, result);
        }
        for (id, query) in std::mem::take(&mut self.local) {
            let response = self.machine.query(&query, &*self.state)?;
            outlet.answer(id, Ok(Answer::Machine(response)));
        }
        self.work_left = self.options.max_apply_work;
        if let Err(full) = self.retry_write(outlet) {
            // What is committed needs no room in the log, and its clients wait.
            self.apply_waiting(outlet)?;
            return Err(full);
        }
        self.notice_leadership(outlet);
        for _ in 0..MAX_ROUNDS {
            self.propose();
            self.ask_to_read();
            self.pump_snapshots()?;
            let answerable = self.reads.is_answerable(self.applied.last.index);
            if !self.raft.needs_poll() && self.unapplied.is_empty() && !answerable {
                break;
            }
            self.round(outlet)?;
            self.notice_leadership(outlet);
            if self.work_left == 0 {
                break;
            }
        }
        self.admin.answer_transfers(&self.raft, outlet);
        self.compact()
    }

    /// Carries out one [`raft::Ready`], in the order that Raft demands.
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
            self.reads.grant(grant.ticket, grant.index);
        }
        for grant in ready.follower_reads {
            self.follower_reads.grant(grant);
        }
        for node in ready.snapshots_wanted {
            self.snapshots.want(node);
        }
        self.unapplied.extend(ready.committed);
        self.apply_waiting(outlet)?;
        self.raft.hold_committed(!self.unapplied.is_empty());
        written
    }

    /// Applies entries that wait and answers reads, until this poll's work is done.
    fn apply_waiting(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        if !self.unapplied.is_empty() {
            self.apply(outlet)?;
        }
        self.answer_reads(outlet)?;
        self.answer_follower_reads(outlet)
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

    /// Proposes the queued operations, as many in one entry as fit. They wait while Raft has no room or transfers
    /// leadership.
    fn propose(&mut self) {
        while self.writes.has_queued()
            && self.raft.role() == Role::Leader
            && !self.raft.is_transferring()
        {
            let Some(time) = self.log_time() else {
                return;
            };
            let operations = self.writes.next_batch(&self.options);
            let count = operations.len();
            let batch = OperationBatch {
                time,
                max_value_bytes: self.options.max_value_bytes,
                operations,
            };
            match self.raft.propose(batch.encode()) {
                Ok(id) => {
                    self.stamped = time;
                    self.writes.mark_proposed(id, count);
                }
                Err(
                    ProposeError::NotLeader { .. }
                    | ProposeError::Transferring
                    | ProposeError::Overloaded { .. },
                ) => return,
            }
        }
    }

    /// Adds the time since the last tick to the measure of log time. A wall clock that jumps, by whatever distance, adds at most
    /// [`MAX_TICK_MS`]: so it can't make sessions expire at once, nor keep them from expiring.
    fn measure(&mut self, now: LogTime) {
        let passed = if self.now == LogTime(0) {
            0
        } else {
            now.since(self.now).min(MAX_TICK_MS)
        };
        self.now = now;
        let known = self.measured.max(self.stamped).max(self.applied.time);
        if known > LogTime(0) {
            self.measured = LogTime(known.0.saturating_add(passed));
        }
    }

    /// Returns the present log time. It never goes back, and advances as processes measure time. Only a new log begins with
    /// the wall clock: `None` as long as entries of earlier terms may still bring a time. After a crash the state may have none of them.
    pub(crate) fn log_time(&self) -> Option<LogTime> {
        let known = self.measured.max(self.stamped).max(self.applied.time);
        if known > LogTime(0) {
            return Some(known);
        }
        let all_applied = self.applied.last.term == self.raft.term();
        all_applied.then_some(self.now)
    }

    /// Returns the birth of a new session: the wall clock, unless log time, the machine or the caller is ahead of it. Tables refuse a
    /// birth that is too far ahead of log time, so a wrong wall clock counts only up to half of that, and a caller who asks for more is
    /// ignored. The bound is a distance from log time and not from the machine's least birth, which such births raise.
    fn birth(&self, at_least: LogTime) -> LogTime {
        let wall = match self.log_time() {
            Some(known) => {
                let latest = LogTime(known.0.saturating_add(MAX_BIRTH_AHEAD_MS / 2));
                let asked = if at_least <= latest { at_least } else { known };
                self.now.min(latest).max(known).max(asked)
            }
            None => self.now,
        };
        wall.max(self.machine.min_birth())
    }

    fn ask_to_read(&mut self) {
        if !self.reads.has_queued() {
            return;
        }
        match self.raft.read_index() {
            Ok(ticket) => self.reads.mark_asked(ticket),
            // A new leader is ready after its first commit. If this replica lost leadership, `notice_leadership` answers.
            Err(ReadError::NotReady | ReadError::NotLeader { .. }) => {}
        }
    }

    /// Answers the reads that are confirmed, until this poll's work is done. The rest waits for the next poll.
    fn answer_reads(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        let bounded = !self.options.bugs.has(Bug::ApplyWithoutBudget);
        while self.work_left > 0 || !bounded {
            let Some((id, query)) = self.reads.next_answerable(self.applied.last.index) else {
                break;
            };
            let response = self.machine.query(&query, &*self.state)?;
            let bytes = self.machine.answer_bytes(&response);
            let work = LOOKUP_WORK + work_of_bytes(bytes as u64);
            self.work_left = self.work_left.saturating_sub(work);
            outlet.answer(id, Ok(Answer::Machine(response)));
        }
        Ok(())
    }

    /// Answers the requests that fail because leadership was lost, even if this replica won it again in a later term.
    fn notice_leadership(&mut self, outlet: &mut dyn Outlet<M::Response>) {
        let leading = (self.raft.role() == Role::Leader).then(|| self.raft.term());
        self.adopt_follower_reads();
        // Leadership may begin and end between two polls, with requests accepted meanwhile.
        let stranded = leading.is_none() && self.leader_requests() > 0;
        if leading == self.leading && !stranded {
            return;
        }
        let lost = self.leading.is_some() || stranded;
        self.leading = leading;
        if !lost || by_index_only(&self.options) {
            return;
        }
        let leader = self.raft.leader();
        let (not_proposed, unknown) = self.writes.take_failed(self.raft.commit_index());
        for id in not_proposed.into_iter().chain(self.reads.take_failed()) {
            outlet.answer(id, Err(Refusal::NotLeader { leader }));
        }
        for id in unknown {
            outlet.answer(id, Err(Refusal::Unknown { leader }));
        }
        if !self.options.bugs.has(Bug::ChangeAnsweredByIndex) {
            self.admin.fail_uncommitted(&self.raft, outlet);
        }
        self.snapshots.stop_sending();
    }

    fn ask_to_join(&mut self) {
        // A learner without a leader may be a learner by its own log only: the entry that added it may have been lost with
        // the leader that sent it, and then no other node knows the learner.
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

    /// Returns true if `poll` left work that needs no input. The driver handles its inbox and calls `poll` again.
    pub fn needs_poll(&self) -> bool {
        let blocked = self.unwritten.is_some();
        self.comparing.diverged.is_some()
            || !self.finished.is_empty()
            || !self.local.is_empty()
            || !blocked
                && (self.raft.needs_poll()
                    || self.snapshots.has_work()
                    || !self.unapplied.is_empty()
                    || self.reads.is_answerable(self.applied.last.index))
    }

    /// Makes the state durable for an orderly stop. Refuses all pending and all later requests with `Stopping`. Fails with the error
    /// that the next [`poll`](Self::poll) would return, if it is known that this replica's state is wrong.
    pub fn stop(&mut self, outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        self.stopping = true;
        for (id, result) in self.finished.drain(..) {
            outlet.answer(id, result);
        }
        let (not_proposed, unknown) = self.writes.take_failed(raft::Index(0));
        let pending = not_proposed
            .into_iter()
            .chain(unknown)
            .chain(self.reads.take_all())
            .chain(self.follower_reads.take_all())
            .chain(self.local.drain(..).map(|(id, _)| id))
            .chain(self.admin.take_all());
        for id in pending {
            outlet.answer(id, Err(Refusal::Stopping));
        }
        match &self.comparing.diverged {
            Some(error) => Err(error.clone()),
            None => self.state.flush(),
        }
    }

    /// Returns true if this node leads its group, as far as it knows.
    pub fn leads(&self) -> bool {
        self.raft.role() == Role::Leader
    }

    /// Returns the term in which this node leads its group, as far as it knows.
    pub fn leading_term(&self) -> Option<Term> {
        self.leads().then(|| self.raft.term())
    }

    /// Returns the status of this replica.
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
            kept_log_bytes: self.kept_log.bytes,
            disk_low: self.disk_low,
            log_time: LogTime(self.log_time().unwrap_or_default().0 / 1_000 * 1_000),
            feature_level: self.applied.feature_level,
            comparison: self.comparing.result.clone(),
            lease_disagreement: self.raft.lease_disagreement(),
        }
    }

    /// Returns the state as of the last applied entry, for checks and metrics.
    pub fn state(&self) -> &dyn StateStore {
        &*self.state
    }

    /// Returns the state machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Returns the state machine, for what it collects for its server. Its state changes only by the log.
    pub fn machine_mut(&mut self) -> &mut M {
        &mut self.machine
    }
}
