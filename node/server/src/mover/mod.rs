//! Moves shards while this node leads its group: passes the state machine's ownership to the mover's [`Driver`], and
//! carries out its effects.
//!
//! The driver decides what to do, which node to ask, and when to give up. This module holds only the clock, the
//! connections and the tasks.

mod calls;
mod feed;
mod lag;
mod room;

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use raft::Role;
use shardkv::mover::{Answer, CallId, Driver, DriverOptions, Effect};
use shardkv::{MoverOptions, Ownership};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use types::{Gid, NodeId};

use crate::configs::follow::first_turn;
use crate::exit::{ExitCode, Fatal};
use crate::forward::Forwarder;
use crate::lifecycle::{Lifecycle, View};
use crate::metrics::{Metrics, raise, set};
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;
use calls::Calls;
use lag::Lag;
pub(crate) use room::RoomWatch;

/// The maximum wait for the outcome of a proposal. It is shorter than the mover's own timeout.
const PROPOSE_TIMEOUT_MS: u64 = 25_000;
/// The maximum time that a fetch waits for a new configuration.
const NEWS_WAIT_MS: u64 = 20_000;

/// The mover of a node's group, shared with the service that shows why a shard waits.
#[derive(Debug)]
pub(crate) struct SharedMover {
    /// `None` before the node knows its group.
    driver: std::sync::Mutex<Option<Driver>>,
    since: Instant,
}

impl Default for SharedMover {
    fn default() -> Self {
        Self {
            driver: std::sync::Mutex::new(None),
            since: Instant::now(),
        }
    }
}

impl SharedMover {
    /// Locks the mover's driver. Returns it with the time by its clock.
    pub(crate) fn lock(&self) -> (MutexGuard<'_, Option<Driver>>, u64) {
        // A mover that panicked may be inconsistent, but it holds nothing that must survive.
        let driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        (driver, self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The handles that the mover uses.
pub(crate) struct Handles {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) mover: Arc<SharedMover>,
}

/// The group that the mover works for.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) node: NodeId,
    pub(crate) gid: Gid,
    pub(crate) controllers: Vec<String>,
    /// The maximum time that one step waits for another group.
    pub(crate) timeout: Duration,
}

/// Moves shards for as long as the future is polled.
pub(crate) async fn drive(handles: Handles, group: Group, options: MoverOptions) {
    let mut view = handles.lifecycle.watch();
    let known = view.wait_for(|view| view.genesis.is_some()).await;
    let Some(genesis) = known.ok().and_then(|view| view.genesis) else {
        return;
    };
    let driver_options = DriverOptions {
        first_node: first_turn(group.node, &group.controllers),
        controllers: group.controllers,
        call_timeout_ms: u64::try_from(group.timeout.as_millis()).unwrap_or(u64::MAX),
        propose_timeout_ms: PROPOSE_TIMEOUT_MS,
        news_wait_ms: NEWS_WAIT_MS,
    };
    let driver = Driver::new(group.gid, genesis.shards, options, driver_options);
    *handles.mover.lock().0 = Some(driver);
    let runner = Runner {
        ownership: handles.routing.watch_ownership(),
        calls: Arc::new(Calls::new(
            handles.replica,
            handles.forwarder,
            Arc::clone(&handles.metrics),
            group.timeout,
        )),
        running: JoinSet::new(),
        lag: Lag::default(),
        lifecycle: handles.lifecycle,
        metrics: handles.metrics,
        mover: handles.mover,
        view,
    };
    runner.run().await;
}

/// The result of a task: an answer, unless the driver no longer waits for it.
type Answered = Option<(CallId, Result<Answer, request::Refused>)>;

struct Runner {
    lifecycle: Arc<Lifecycle>,
    metrics: Arc<Metrics>,
    mover: Arc<SharedMover>,
    view: watch::Receiver<View>,
    ownership: watch::Receiver<Arc<Ownership>>,
    calls: Arc<Calls>,
    running: JoinSet<Answered>,
    lag: Lag,
}

/// The result of one poll of the driver.
struct Polled {
    effects: Vec<Effect>,
    now_ms: u64,
    /// The time until the driver has work without new input.
    idle: Option<Duration>,
    fatal: Option<String>,
}

impl Runner {
    async fn run(mut self) {
        loop {
            let leads = leads(&self.view.borrow_and_update());
            let ownership = leads.then(|| Arc::clone(&self.ownership.borrow_and_update()));
            if !leads {
                self.lag.forget();
                self.running.abort_all();
                self.calls.forget();
            }
            let Some(polled) = self.poll(ownership.as_ref()) else {
                return;
            };
            if let Some(fatal) = polled.fatal {
                let fatal = Fatal::message(ExitCode::WrongIdentity, fatal);
                return self.lifecycle.fail(fatal);
            }
            for effect in polled.effects {
                self.carry_out(effect, polled.now_ms);
            }
            if !self.wait(polled.idle).await {
                return;
            }
        }
    }

    fn poll(&mut self, ownership: Option<&Arc<Ownership>>) -> Option<Polled> {
        let (mut driver, now_ms) = self.mover.lock();
        let driver = driver.as_mut()?;
        if ownership.is_some()
            && let Some(status) = &self.view.borrow().status
        {
            let lag = self
                .lag
                .measure(now_ms, status.last_index, &status.progress);
            driver.set_lag(lag);
        }
        let effects = driver.poll(now_ms, ownership);
        let metrics = &self.metrics.handoff;
        let rate = ownership.map_or(0, |_| driver.mover().base_rate());
        set(&metrics.rate_bytes, rate);
        raise(&metrics.hurried, driver.mover().hurried_copies());
        let due = driver.next_due();
        Some(Polled {
            effects,
            now_ms,
            idle: due.map(|due| Duration::from_millis(due.saturating_sub(now_ms))),
            fatal: driver.mover().fatal().map(str::to_owned),
        })
    }

    /// Starts an effect. A proposal is in the replica's queue when this returns, so that proposals enter the log in order.
    fn carry_out(&mut self, effect: Effect, now_ms: u64) {
        let calls = Arc::clone(&self.calls);
        let left = |until_ms: u64| Duration::from_millis(until_ms.saturating_sub(now_ms));
        match effect {
            Effect::Propose { id, step, until_ms } => {
                let pending = self.calls.submit(&step);
                let applied = async move { (id, calls.applied(pending).await) };
                let applied = tokio::time::timeout(left(until_ms), applied);
                self.running.spawn(async { applied.await.ok() });
            }
            Effect::Call {
                id,
                address,
                request,
                until_ms,
            } => {
                let answered = async move { (id, calls.send(&address, request).await) };
                let answered = tokio::time::timeout(left(until_ms), answered);
                self.running.spawn(async { answered.await.ok() });
            }
            Effect::Failed(why) => {
                self.metrics.handoff.failures.inc();
                tracing::debug!("a step of a hand-off failed: {why}");
            }
        }
    }

    /// Waits for work. Returns false when the node ends.
    async fn wait(&mut self, idle: Option<Duration>) -> bool {
        let due = async {
            match idle {
                Some(idle) => sleep(idle).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = self.running.join_next() => {
                // An aborted task has no answer, and the driver expects none.
                self.pass_answers(ended.ok().flatten());
            }
            changed = self.view.changed() => return changed.is_ok(),
            changed = self.ownership.changed() => return changed.is_ok(),
            () = due => {}
        }
        true
    }

    /// Passes an answer to the driver, and all others that are there by now.
    fn pass_answers(&mut self, first: Answered) {
        let (mut driver, _) = self.mover.lock();
        let mut next = Some(first);
        while let Some(answered) = next {
            if let (Some((id, answer)), Some(driver)) = (answered, driver.as_mut()) {
                driver.handle_answer(id, answer);
            }
            next = self.running.try_join_next().map(|it| it.ok().flatten());
        }
    }
}

fn leads(view: &View) -> bool {
    let status = view.status.as_ref();
    status.is_some_and(|status| status.role == Role::Leader)
}
