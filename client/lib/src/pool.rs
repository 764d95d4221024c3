//! The pool of groups: for each group its share of the bytes in flight, and its batch streams.
//!
//! Everything that a call can wait for belongs to its group, so a group that stalls holds up no call for another group. A group
//! enters the pool with its first call and leaves it when it leaves the configuration; a stream ends when it has passed on the
//! calls that it still had.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use request::{Bugs, SequenceAllocator, Tracked, owner};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use types::{Gid, ShardConfig};

use crate::call::{Call, Share};
use crate::route::{Router, Slot};
use crate::stream::{Passage, StreamTask};
use crate::{ClientOptions, Mode};

/// The number of streams that a call tries. A stream may just have ended when the call is sent to it.
const MAX_TRIES: usize = 3;

pub(crate) struct GroupPool {
    options: Arc<ClientOptions>,
    router: Router,
    runtime: Handle,
    groups: RwLock<HashMap<Gid, Arc<PooledGroup>>>,
    /// The number of the configuration by which `groups` was last cleared, plus one; 0 for none.
    cleared: AtomicU64,
}

/// The resources of one group.
pub(crate) struct PooledGroup {
    /// The bytes of calls that may still be in flight.
    budget: Arc<Semaphore>,
    /// The bytes of calls that may still wait for their shard.
    waiting: Arc<Semaphore>,
    budget_bytes: u32,
    pub(crate) transport: Transport,
}

/// The transport of a group's calls.
pub(crate) enum Transport {
    Batch {
        streams: Vec<StreamSender>,
        next: AtomicUsize,
    },
    Unary(UnarySessions),
}

/// The two inputs of a stream's task. They close together.
pub(crate) struct StreamSender {
    /// Calls from callers. A caller waits when the queue is full.
    pub(crate) calls: mpsc::Sender<Tracked<Call>>,
    /// Calls from other streams, which must not wait. Each of them was admitted by its first stream.
    moved: mpsc::UnboundedSender<Tracked<Call>>,
}

/// The sessions of the unary calls to one group, or of the changes of a client to the configuration.
pub(crate) struct UnarySessions {
    pub(crate) allocator: Arc<SequenceAllocator>,
    /// Notified when a write ends, which may make room in the window.
    pub(crate) finished: Arc<Notify>,
    /// Held while a session is opened, so that concurrent calls open one.
    pub(crate) opening: tokio::sync::Mutex<()>,
}

impl UnarySessions {
    /// Creates the sessions with this window.
    pub(crate) fn new(window: usize) -> Self {
        let finished = Arc::new(Notify::new());
        let notify = Arc::clone(&finished);
        let on_finish = move || notify.notify_waiters();
        Self {
            allocator: SequenceAllocator::with_observer(window, Bugs::default(), on_finish),
            finished,
            opening: tokio::sync::Mutex::default(),
        }
    }
}

impl GroupPool {
    pub(crate) fn new(router: Router, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            options: Arc::clone(router.options()),
            router,
            runtime,
            groups: RwLock::default(),
            cleared: AtomicU64::new(0),
        })
    }

    /// Returns the resources of a group of the configuration, made at the first use.
    pub(crate) fn group(self: &Arc<Self>, gid: Gid) -> Arc<PooledGroup> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(&gid) {
            return Arc::clone(group);
        }
        drop(groups);
        if let Some(config) = self.router.config() {
            self.drop_left(&config);
        }
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        let group = groups.entry(gid).or_insert_with(|| self.make(gid));
        Arc::clone(group)
    }

    fn make(self: &Arc<Self>, gid: Gid) -> Arc<PooledGroup> {
        let options = &self.options;
        let transport = match options.mode {
            Mode::Unary => Transport::Unary(UnarySessions::new(options.max_unacknowledged)),
            Mode::Batch => Transport::Batch {
                streams: (0..options.connections)
                    .map(|stream| self.start(gid, Slot::Calls(stream)))
                    .collect(),
                next: AtomicUsize::new(0),
            },
        };
        let most = u32::MAX >> 4;
        let budget_bytes = u32::try_from(options.max_in_flight_bytes).unwrap_or(most);
        let budget_bytes = budget_bytes.min(most);
        Arc::new(PooledGroup {
            budget: Arc::new(Semaphore::new(budget_bytes as usize)),
            waiting: Arc::new(Semaphore::new(budget_bytes as usize)),
            budget_bytes,
            transport,
        })
    }

    fn start(self: &Arc<Self>, gid: Gid, slot: Slot) -> StreamSender {
        let (calls, queue) = mpsc::channel(self.options.max_in_flight);
        let (moved, arriving) = mpsc::unbounded_channel();
        let pool = Arc::downgrade(self);
        let task = StreamTask::new(&self.router, pool, gid, slot, queue, arriving);
        self.runtime.spawn(task.run());
        StreamSender { calls, moved }
    }

    /// Drops the groups that left the configuration, once for each configuration.
    fn drop_left(&self, config: &ShardConfig) {
        let mark = config.num().0.saturating_add(1);
        if self.cleared.swap(mark, Ordering::Relaxed) == mark {
            return;
        }
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|gid, _| config.groups().contains_key(gid));
    }

    /// Drops this entry, if it is still the group's: its streams have ended.
    fn forget(&self, gid: Gid, ended: &Arc<PooledGroup>) {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        if groups.get(&gid).is_some_and(|it| Arc::ptr_eq(it, ended)) {
            groups.remove(&gid);
        }
    }

    /// Passes a call to a stream of the group that owns its shard now.
    pub(crate) fn pass_on(self: &Arc<Self>, mut it: Tracked<Call>) {
        for _ in 0..MAX_TRIES {
            let Some(config) = self.router.config() else {
                break;
            };
            let gid = owner(&config, it.call.hash);
            let group = self.group(gid);
            let Some(stream) = group.stream() else { break };
            match stream.moved.send(it) {
                Ok(()) => return,
                Err(mpsc::error::SendError(back)) => it = back,
            }
            self.forget(gid, &group);
        }
        it.call.close(it.attempts.doubt);
    }
}

impl Passage for GroupPool {
    fn reconfigure(&self, config: &ShardConfig) {
        self.drop_left(config);
    }

    fn pass_on(self: Arc<Self>, it: Tracked<Call>) {
        GroupPool::pass_on(&self, it);
    }
}

impl PooledGroup {
    /// Returns the next stream, in turn; `None` in unary mode.
    pub(crate) fn stream(&self) -> Option<&StreamSender> {
        let Transport::Batch { streams, next } = &self.transport else {
            return None;
        };
        streams.get(next.fetch_add(1, Ordering::Relaxed) % streams.len().max(1))
    }

    /// Waits for a share of the bytes in flight. Returns `None` if the deadline passed.
    pub(crate) async fn share(&self, cost: usize, deadline: Instant) -> Option<Share> {
        let most = self.budget_bytes;
        // A call that exceeds the whole budget waits until it is alone.
        let cost = u32::try_from(cost).unwrap_or(most).min(most);
        let held = if let Ok(held) = Arc::clone(&self.budget).try_acquire_many_owned(cost) {
            held
        } else {
            let waiting = Arc::clone(&self.budget).acquire_many_owned(cost);
            timeout_at(deadline, waiting).await.ok()?.ok()?
        };
        Some(Share::new(held, &self.waiting))
    }
}
