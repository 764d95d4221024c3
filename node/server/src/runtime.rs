//! The one thread that owns the replica.
//!
//! One round takes all input, advances the clock, polls the replica (which sends, writes once and applies), and hands the
//! answers over. While the thread waits for the disk, the next round's input gathers: that is how batches form.

mod parking;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use raft::{Envelope, StoreError};
use replica::{Answer, Outlet, Refusal, Replica, RequestId, StateMachine as _};
use tokio::sync::oneshot;
use types::{LogTime, NodeId};

use crate::admission::Admission;
use crate::births::Births;
use crate::divergence::Divergence;
use crate::inbox::{Batch, Inbox, Submission};
use crate::keyspaces::Followers;
use crate::lifecycle::Lifecycle;
use crate::machine::{Machine, MachineResult, Published, Response};
use crate::metrics::{Metrics, raise, set};
use crate::progress::Progress;
use crate::readiness::ReadinessProbe;
use crate::refusals::Refusals;
use crate::replies::{Deliveries, PendingReplies, Reply};
use crate::routing::Routing;
use crate::transport::Transport;
use parking::Parking;

/// The replica with the state of its thread.
pub(crate) struct Runtime {
    replica: Replica<Machine>,
    handles: Handles,
    outlet: ReplicaOutlet,
    batch: Batch,
    clock: Clock,
    /// True if a full disk refused a write. The replica is not polled before the next tick.
    full: bool,
    /// True if the full disk was logged. The write is tried at every tick, and logged once.
    full_logged: bool,
    /// True if the replica was told that the disk is nearly full.
    disk_low: bool,
    leader: Option<NodeId>,
    parking: Parking,
    refusals: Refusals,
    divergence: Divergence,
    /// The state that the machine published last.
    published: Option<Published>,
}

/// The handles that the replica's thread uses.
pub(crate) struct Handles {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) readiness: Arc<ReadinessProbe>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) followers: Arc<Followers>,
    pub(crate) births: Arc<Births>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Receives the messages and answers of the replica.
struct ReplicaOutlet {
    transport: Arc<Transport>,
    pending: PendingReplies,
    answers: Vec<(Reply, MachineResult)>,
}

impl Outlet<Response> for ReplicaOutlet {
    fn send(&mut self, envelope: Envelope) {
        self.transport.send(envelope);
    }

    fn answer(&mut self, request: RequestId, result: Result<Answer<Response>, Refusal>) {
        if let Some(reply) = self.pending.remove(request.0) {
            self.answers.push((reply, result));
        }
    }
}

/// Starts the thread. The receiver gets its result; it is closed without one if the thread panicked.
pub(crate) fn start(
    replica: Replica<Machine>,
    options: &replica::Options,
    handles: Handles,
) -> std::io::Result<oneshot::Receiver<Result<(), StoreError>>> {
    let (ended, receiver) = oneshot::channel();
    let tick = Duration::from_millis(options.tick_ms.into());
    let clock = Clock::new(tick, options.raft.heartbeat_ticks, Instant::now());
    let runtime = Runtime::new(replica, clock, handles);
    std::thread::Builder::new()
        .name("replica".to_owned())
        .spawn(move || {
            let inbox = Arc::clone(&runtime.handles.inbox);
            let result = runtime.run();
            inbox.close();
            // The receiver is gone only if the process ends anyway.
            let _ = ended.send(result);
        })?;
    Ok(receiver)
}

impl Runtime {
    fn new(replica: Replica<Machine>, clock: Clock, handles: Handles) -> Self {
        Self {
            replica,
            outlet: ReplicaOutlet {
                transport: Arc::clone(&handles.transport),
                pending: PendingReplies::default(),
                answers: Vec::new(),
            },
            batch: Batch::default(),
            clock,
            full: false,
            full_logged: false,
            disk_low: false,
            leader: None,
            parking: Parking::default(),
            refusals: Refusals::default(),
            divergence: Divergence::default(),
            published: None,
            handles,
        }
    }

    fn run(mut self) -> Result<(), StoreError> {
        self.publish();
        let moved = self.publish_machine();
        self.publish_keyspaces(moved);
        let mut released = false;
        loop {
            self.handles.progress.mark();
            let idle = self.full || !(released || self.replica.needs_poll());
            let deadline = idle.then(|| self.clock.next());
            self.handles.inbox.take(&mut self.batch, deadline);
            if self.take_in() {
                return self.stop();
            }
            self.poll()?;
            let moved = self.publish_machine();
            self.publish_keyspaces(moved);
            released = moved && self.unpark();
            self.handles.deliveries.hand_over(&mut self.outlet.answers);
        }
    }

    /// Passes the input to the replica. Returns true if the replica must stop.
    fn take_in(&mut self) -> bool {
        set(
            &self.handles.metrics.inbox_messages,
            self.batch.len() as u64,
        );
        if let Some(low) = self.batch.disk_low {
            self.set_disk_low(low);
        }
        // After a pause, invalidate everything that depends on elapsed time before handling any input.
        let passed = self.clock.passed(Instant::now());
        if passed.lost {
            self.replica.handle_pause();
        }
        for envelope in self.batch.envelopes.drain(..) {
            let from = envelope.from;
            if let Err(error) = self.replica.receive(envelope) {
                tracing::debug!(%from, "refused a message: {error}");
                let metrics = &self.handles.metrics.replica;
                self.refusals.note(&error, metrics, Instant::now());
            }
        }
        for node in self.batch.snapshots_disconnected.drain(..) {
            self.replica.handle_snapshot_disconnect(node);
        }
        for node in self.batch.disconnected.drain(..) {
            self.replica.handle_disconnect(node);
        }
        for _ in 0..passed.ticks {
            self.replica.tick(wall_clock());
        }
        if passed.ticks > 0 {
            self.full = false;
            self.publish();
        }
        if !self.batch.requests.is_empty() {
            let count = u32::try_from(self.batch.requests.len()).unwrap_or(u32::MAX);
            self.handles
                .metrics
                .batch_requests
                .observe(f64::from(count));
        }
        // Parked requests came first.
        if passed.ticks > 0 || self.batch.stop {
            self.unpark();
        }
        self.submit();
        self.batch.stop
    }

    /// Submits the requests of the batch, but those that wait for a shard.
    fn submit(&mut self) {
        let leads = self.replica.leads() && !self.batch.stop;
        let now = Instant::now();
        for submission in self.batch.requests.drain(..) {
            let machine = self.replica.machine();
            if let Some(Submission { request, reply }) =
                self.parking.park(machine, leads, now, submission)
            {
                let id = self.outlet.pending.insert(reply);
                self.replica.submit(RequestId(id), request);
            } else {
                self.handles.metrics.handoff.parked_requests.inc();
            }
        }
    }

    /// Submits the parked requests that wait no longer. Returns true if there are any.
    fn unpark(&mut self) -> bool {
        if self.parking.is_empty() {
            return false;
        }
        let leads = self.replica.leads() && !self.batch.stop;
        let released = self
            .parking
            .release(self.replica.machine(), leads, Instant::now());
        let any = !released.is_empty();
        for Submission { request, reply } in released {
            let id = self.outlet.pending.insert(reply);
            self.replica.submit(RequestId(id), request);
        }
        any
    }

    fn poll(&mut self) -> Result<(), StoreError> {
        if self.full {
            return Ok(());
        }
        match self.replica.poll(&mut self.outlet) {
            Ok(()) => {
                self.full_logged = false;
                Ok(())
            }
            Err(StoreError::Full(what)) => {
                if !std::mem::replace(&mut self.full_logged, true) {
                    tracing::warn!(
                        "the disk is full: writes are refused until space is free again: {what}"
                    );
                }
                self.set_disk_low(true);
                self.full = true;
                Ok(())
            }
            Err(error) => {
                self.handles.deliveries.hand_over(&mut self.outlet.answers);
                Err(error)
            }
        }
    }

    /// Tells the replica whether the disk is nearly full. A change is published at once and not at the next tick, so that a
    /// client whose write was refused sees the reason in the status.
    fn set_disk_low(&mut self, low: bool) {
        self.replica.set_disk_low(low);
        if std::mem::replace(&mut self.disk_low, low) != low {
            self.publish();
        }
    }

    /// Publishes the state of the machine when it has changed. It runs before the answers go out, so that a client whose
    /// request was answered sees it. Returns true if it has changed.
    fn publish_machine(&mut self) -> bool {
        let machine = self.replica.machine();
        self.handles.births.set_own(machine.min_birth());
        let latest = machine.published();
        let published = self.published.as_ref();
        if published.is_some_and(|published| published.is_same(&latest)) {
            return false;
        }
        self.parking.note(&latest);
        self.handles.routing.update(latest.clone());
        self.published = Some(latest);
        true
    }

    /// Tells those who follow keyspaces what has changed, after the ownership was published and before the answers go out.
    /// `moved` says that the ownership has changed.
    fn publish_keyspaces(&mut self, moved: bool) {
        let changes = self.replica.machine_mut().take_keyspace_changes();
        if let Some(Published::Ownership(ownership)) = &self.published {
            let term = self.replica.leading_term();
            self.handles
                .followers
                .note(&changes, ownership, moved, term);
        }
    }

    fn publish(&mut self) {
        let status = self.replica.status();
        let metrics = &self.handles.metrics.replica;
        if status.leader != self.leader {
            self.leader = status.leader;
            if let Some(leader) = status.leader {
                metrics.leader_changes.inc();
                tracing::info!(%leader, term = %status.term, role = ?status.role, "a leader is known");
            } else {
                tracing::info!(term = %status.term, "no leader is known");
            }
        }
        metrics
            .is_leader
            .set((status.role == raft::Role::Leader).into());
        metrics.has_leader.set(status.leader.is_some().into());
        set(&metrics.term, status.term.0);
        set(&metrics.commit_index, status.commit_index.0);
        set(&metrics.applied_index, status.last_applied.0);
        let lag = status.commit_index.since(status.last_applied);
        set(&metrics.apply_lag_entries, lag);
        let held = status.last_index.since(status.compacted.index);
        set(&metrics.log_entries, held);
        set(&metrics.pending_requests, status.pending_requests as u64);
        set(
            &metrics.sessions,
            self.replica.machine().session_count() as u64,
        );
        metrics.disk_low.set(status.disk_low.into());
        raise(&metrics.elections, status.elections_started);
        let (sent, installed, overtaken) = status.snapshots;
        raise(&metrics.snapshots_sent, sent);
        raise(&metrics.snapshots_installed, installed);
        if overtaken > metrics.snapshots_overtaken.get() {
            raise(&metrics.snapshots_overtaken, overtaken);
            tracing::warn!(
                "a snapshot to a follower was stopped, because clients wrote more than max_kept_log_bytes before it was \
                 transferred; it is tried again later. If this repeats, raise max_kept_log_bytes or \
                 snapshot_bytes_per_second"
            );
        }
        set(&metrics.kept_log_bytes, status.kept_log_bytes);
        set(&metrics.feature_level, status.feature_level.into());
        self.divergence.note(&status, metrics);
        let (requests, bytes) = self.handles.admission.budget.used();
        set(&self.handles.metrics.inflight_requests, requests as u64);
        set(&self.handles.metrics.inflight_bytes, bytes as u64);
        let admission = &self.handles.admission;
        let scans = &self.handles.metrics.scans;
        set(&scans.open, admission.open_scans() as u64);
        set(&scans.page_bytes, admission.page_bytes() as u64);
        let watchers = self.handles.admission.open_watchers();
        set(&self.handles.metrics.handoff.watchers, watchers as u64);
        let genesis = self.replica.machine().genesis().copied();
        self.handles.lifecycle.publish(Arc::new(status), genesis);
        // Only the readiness probe's memory needs this call: it must see each moment with a leader.
        let _ = self.handles.readiness.check();
    }

    fn stop(mut self) -> Result<(), StoreError> {
        let result = self.replica.stop(&mut self.outlet);
        self.publish();
        self.handles.deliveries.hand_over(&mut self.outlet.answers);
        result
    }
}

/// Returns milliseconds since the Unix epoch. Only a leader uses them, to stamp its log, where time never runs backwards.
fn wall_clock() -> LogTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    LogTime(since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }))
}

/// Converts time to ticks.
///
/// A process that was paused or starved did not hear its peers meanwhile. If it counted all the time that passed, it would
/// believe that the peers were silent, and start elections. So the time that counts at once is bounded by a heartbeat
/// interval; every election timeout is at least three of these. The remaining time is reported as *lost*, because leases
/// must not outlive it.
struct Clock {
    tick: Duration,
    most: u32,
    next: Instant,
}

/// The result of [`Clock::passed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passed {
    ticks: u32,
    lost: bool,
}

impl Clock {
    fn new(tick: Duration, most: u32, now: Instant) -> Self {
        Self {
            tick,
            most: most.max(1),
            next: now + tick,
        }
    }

    /// Returns the time at which the next tick is due.
    fn next(&self) -> Instant {
        self.next
    }

    /// Returns the ticks that are due.
    fn passed(&mut self, now: Instant) -> Passed {
        let mut ticks = 0;
        while self.next <= now && ticks < self.most {
            self.next += self.tick;
            ticks += 1;
        }
        let lost = self.next <= now;
        if lost {
            self.next = now + self.tick;
        }
        Passed { ticks, lost }
    }
}

#[cfg(test)]
mod tests;
