//! A thread that makes the state durable, and the position up to which it is durable.
//!
//! A flush covers the commits before its start, so the thread takes the position *before* it tells `RocksDB` to
//! flush, and publishes it after the flush returns. `RocksDB` also flushes by itself when its buffers are full. The
//! thread does not see those flushes, so the published position is sometimes too low and never too high.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use raft::{EntryId, StoreError};

use crate::error::Latch;
use crate::state_db::StateDb;

/// Flushes in the background. Dropping it stops the thread.
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
    /// The number of restores so far. A flush that began before the last restore says nothing about the new state.
    restores: u64,
    /// The latest request. It replaces an earlier request that the thread has not begun.
    requested: Option<(Arc<StateDb>, EntryId)>,
    running: bool,
    /// The error of the last flush if the disk was full.
    full: Option<StoreError>,
    stop: bool,
}

impl Flusher {
    /// Starts the thread. `durable` is the position of the state when it was opened.
    pub(crate) fn start(durable: EntryId, latch: Arc<Latch>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                durable,
                restores: 0,
                requested: None,
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

    /// Returns the last entry whose effect is certain to survive a crash now.
    pub(crate) fn durable(&self) -> EntryId {
        self.shared.lock().durable
    }

    /// Requests a flush of all commits up to `last`, without waiting for it.
    pub(crate) fn request(&self, db: &Arc<StateDb>, last: EntryId) {
        let mut inner = self.shared.lock();
        if inner.durable != last {
            inner.requested = Some((Arc::clone(db), last));
            self.shared.changed.notify_all();
        }
    }

    /// Waits until no flush is requested or running. Returns the error of the last flush, if it failed.
    pub(crate) fn wait(&self) -> Result<(), StoreError> {
        let mut inner = self.shared.lock();
        while inner.running || inner.requested.is_some() {
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
        inner.restores += 1;
        inner.requested = None;
        inner.full = None;
        self.shared.changed.notify_all();
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic of the thread.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Takes the lock. Poison is ignored: no code panics while it holds the lock, and each field is valid at each step.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut inner = self.lock();
        while !inner.stop {
            let Some((db, last)) = inner.requested.take() else {
                inner = self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let restores = inner.restores;
            inner.running = true;
            drop(inner);
            let outcome = db.flush();
            drop(db);
            inner = self.lock();
            inner.running = false;
            if restores == inner.restores {
                match outcome {
                    Ok(()) => {
                        inner.durable = last;
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
