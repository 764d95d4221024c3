//! The thread that makes the state durable, and what is known to be durable.
//!
//! A flush covers the commits before its start, so the position is taken *before* `RocksDB` is told to flush
//! and published after it returns. `RocksDB` also flushes by itself when its buffers are full; nobody counts
//! those, which makes the published position too low at times and never too high.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use raft::{EntryId, StoreError};

use crate::error::Latch;
use crate::state::Instance;

/// Flushes in the background; stops with its last owner.
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    latch: Arc<Latch>,
}

struct Inner {
    durable: EntryId,
    /// Counts the restores: a flush of a state that was replaced meanwhile says nothing of the new one.
    generation: u64,
    /// The latest request. It replaces an earlier request that was not begun.
    wanted: Option<(Arc<Instance>, EntryId)>,
    running: bool,
    /// The last flush failed for lack of space.
    full: Option<StoreError>,
    stop: bool,
}

impl Flusher {
    /// Starts the thread; `durable` is what the state held when it was opened.
    pub(crate) fn start(durable: EntryId, latch: Arc<Latch>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                durable,
                generation: 0,
                wanted: None,
                running: false,
                full: None,
                stop: false,
            }),
            changed: Condvar::new(),
            latch,
        });
        let thread = std::thread::Builder::new()
            .name("state-flush".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Returns the last entry that a crash now is sure to leave.
    pub(crate) fn durable(&self) -> EntryId {
        self.shared.lock().durable
    }

    /// Asks for a flush of all up to `upto`, and returns.
    pub(crate) fn want(&self, instance: &Arc<Instance>, upto: EntryId) {
        let mut inner = self.shared.lock();
        if inner.durable != upto {
            inner.wanted = Some((Arc::clone(instance), upto));
            self.shared.changed.notify_all();
        }
    }

    /// Waits until nothing is wanted or running. The error of the last flush, if it failed.
    pub(crate) fn wait(&self) -> Result<(), StoreError> {
        let mut inner = self.shared.lock();
        while inner.running || inner.wanted.is_some() {
            inner = self
                .shared
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.shared.latch.check()?;
        inner.full.clone().map_or(Ok(()), Err)
    }

    /// Records that a restore replaced the state, and that the new state is durable up to `durable`.
    pub(crate) fn replaced(&self, durable: EntryId) {
        let mut inner = self.shared.lock();
        inner.durable = durable;
        inner.generation += 1;
        inner.wanted = None;
        inner.full = None;
        self.shared.changed.notify_all();
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// No code panics while holding the lock, and every field is valid at each step.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut inner = self.lock();
        while !inner.stop {
            let Some((instance, upto)) = inner.wanted.take() else {
                inner = self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let generation = inner.generation;
            inner.running = true;
            drop(inner);
            let outcome = instance.flush();
            drop(instance);
            inner = self.lock();
            inner.running = false;
            if generation == inner.generation {
                match outcome {
                    Ok(()) => {
                        inner.durable = upto;
                        inner.full = None;
                    }
                    Err(error @ StoreError::Full(_)) => inner.full = Some(error),
                    Err(error) => {
                        self.latch.keep(error);
                    }
                }
            }
            self.changed.notify_all();
        }
    }
}
