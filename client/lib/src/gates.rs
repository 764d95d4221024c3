//! Where calls enter: for each group a share of the bytes in flight, and its lanes.
//!
//! Everything that a call can wait for is its group's own, so that a group that stalls holds up no call for another. Gates
//! are opened when the first call comes and dropped when their group leaves the configuration; a lane ends when it
//! has handed over what it still had.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use types::{Gid, ShardConfig};

use crate::call::Call;
use crate::lane::Lane;
use crate::route::{Router, Slot, owner};
use crate::session::Naming;
use crate::{ClientOptions, Error, Mode};

/// How often a call looks for another lane when the one that it was meant for has just ended.
const TRIES: usize = 3;

pub(crate) struct Gates {
    options: Arc<ClientOptions>,
    router: Router,
    runtime: Handle,
    open: RwLock<HashMap<Gid, Arc<Gate>>>,
    /// The configuration by which `open` was last cleared, and one more; 0 for none.
    cleared: AtomicU64,
}

/// A group's way in.
pub(crate) struct Gate {
    /// Bytes of calls in flight.
    budget: Arc<Semaphore>,
    budget_bytes: u32,
    pub(crate) engine: Engine,
}

/// How a group's calls travel.
pub(crate) enum Engine {
    Batch {
        lanes: Vec<Queue>,
        next: AtomicUsize,
    },
    Unary(Arc<Naming>),
}

/// The two entrances of a lane. They close together.
pub(crate) struct Queue {
    /// From callers, who wait when it is full.
    pub(crate) calls: mpsc::Sender<Call>,
    /// From other lanes, which can't wait. What is in it was admitted there.
    moved: mpsc::UnboundedSender<Call>,
}

impl Gates {
    pub(crate) fn new(router: Router, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            options: Arc::clone(router.options()),
            router,
            runtime,
            open: RwLock::default(),
            cleared: AtomicU64::new(0),
        })
    }

    /// The gate of a group of the configuration.
    pub(crate) fn of(self: &Arc<Self>, gid: Gid) -> Arc<Gate> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = open.get(&gid) {
            return Arc::clone(gate);
        }
        drop(open);
        if let Some(config) = self.router.config() {
            self.clear(&config);
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let gate = open.entry(gid).or_insert_with(|| self.make(gid));
        Arc::clone(gate)
    }

    fn make(self: &Arc<Self>, gid: Gid) -> Arc<Gate> {
        let options = &self.options;
        let engine = match options.mode {
            Mode::Unary => Engine::Unary(Naming::new(options.max_unacknowledged)),
            Mode::Batch => Engine::Batch {
                lanes: (0..options.connections)
                    .map(|lane| self.start(gid, Slot::Calls(lane)))
                    .collect(),
                next: AtomicUsize::new(0),
            },
        };
        let most = u32::MAX >> 4;
        let budget_bytes = u32::try_from(options.max_in_flight_bytes).unwrap_or(most);
        let budget_bytes = budget_bytes.min(most);
        Arc::new(Gate {
            budget: Arc::new(Semaphore::new(budget_bytes as usize)),
            budget_bytes,
            engine,
        })
    }

    fn start(self: &Arc<Self>, gid: Gid, slot: Slot) -> Queue {
        let (calls, queue) = mpsc::channel(self.options.max_in_flight);
        let (moved, arriving) = mpsc::unbounded_channel();
        let gates = Arc::downgrade(self);
        let lane = Lane::new(&self.router, gates, gid, slot, queue, arriving);
        self.runtime.spawn(lane.run());
        Queue { calls, moved }
    }

    /// Drops the gates of groups that left, once for each configuration.
    pub(crate) fn clear(&self, config: &ShardConfig) {
        let mark = config.num().0.saturating_add(1);
        if self.cleared.swap(mark, Ordering::Relaxed) == mark {
            return;
        }
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.retain(|gid, _| config.groups().contains_key(gid));
    }

    /// Drops this gate, if it is still the group's: its lanes have ended.
    pub(crate) fn forget(&self, gid: Gid, gate: &Arc<Gate>) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.get(&gid).is_some_and(|it| Arc::ptr_eq(it, gate)) {
            open.remove(&gid);
        }
    }

    /// Brings a call to a lane of the group that owns its shard now.
    pub(crate) fn hand_over(self: &Arc<Self>, mut call: Call) {
        for _ in 0..TRIES {
            let Some(config) = self.router.config() else {
                break;
            };
            let gid = owner(&config, call.hash);
            let gate = self.of(gid);
            let Some(lane) = gate.lane() else { break };
            match lane.moved.send(call) {
                Ok(()) => return,
                Err(mpsc::error::SendError(back)) => call = back,
            }
            self.forget(gid, &gate);
        }
        let maybe_applied = call.trial.doubt;
        let _ = call.answer.send(Err(Error::Closed { maybe_applied }));
    }
}

impl Gate {
    /// The next lane, in turn; `None` in unary mode.
    pub(crate) fn lane(&self) -> Option<&Queue> {
        let Engine::Batch { lanes, next } = &self.engine else {
            return None;
        };
        lanes.get(next.fetch_add(1, Ordering::Relaxed) % lanes.len().max(1))
    }

    /// Waits for a share of the bytes in flight. `None`: the deadline passed.
    pub(crate) async fn permit(
        &self,
        cost: usize,
        deadline: Instant,
    ) -> Option<OwnedSemaphorePermit> {
        let most = self.budget_bytes;
        // What exceeds all of it goes alone.
        let cost = u32::try_from(cost).unwrap_or(most).min(most);
        if let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(cost) {
            return Some(permit);
        }
        let waiting = Arc::clone(&self.budget).acquire_many_owned(cost);
        timeout_at(deadline, waiting).await.ok()?.ok()
    }
}
