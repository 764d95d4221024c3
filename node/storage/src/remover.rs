//! A thread that removes databases of the state that are of no use any more: unfinished restores, and states that a restore
//! replaced. Closing a large database and removing its files takes long, and the thread that owns the store has votes to write.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::state_db::StateDb;

/// The most databases that wait for their removal, besides one that a restore has just replaced. Each takes space on the disk.
const MAX_WAITING: usize = 2;

/// Removes in the background. Dropping it waits for the removals.
pub(crate) struct Remover {
    /// `None` only while it is being dropped.
    queue: Option<Sender<Arc<StateDb>>>,
    waiting: Arc<Waiting>,
    thread: Option<JoinHandle<()>>,
}

/// The number of databases that aren't removed yet.
#[derive(Default)]
struct Waiting {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Remover {
    /// Starts the thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (queue, databases) = mpsc::channel();
        let waiting = Arc::<Waiting>::default();
        let thread = std::thread::Builder::new()
            .name("state-remove".into())
            .spawn({
                let waiting = Arc::clone(&waiting);
                move || run(&databases, &waiting)
            })?;
        Ok(Self {
            queue: Some(queue),
            waiting,
            thread: Some(thread),
        })
    }

    /// Closes the database, which must be marked as obsolete, and removes its directory, unless a snapshot or a view still
    /// reads it. Then its last user does so.
    pub(crate) fn remove(&self, db: Arc<StateDb>) {
        *self.waiting.lock() += 1;
        let queue = self.queue.as_ref();
        if queue.is_none_or(|queue| queue.send(db).is_err()) {
            // The thread panicked, and the database was dropped here.
            self.waiting.one_removed();
        }
    }

    /// Returns true if no more databases should be made that may have to be removed.
    pub(crate) fn is_busy(&self) -> bool {
        *self.waiting.lock() >= MAX_WAITING
    }

    /// Waits until nothing is left to be removed.
    pub(crate) fn wait(&self) {
        let mut count = self.waiting.lock();
        while *count > 0 {
            let waited = self.waiting.changed.wait(count);
            count = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic of the thread.
            let _ = thread.join();
        }
    }
}

impl Waiting {
    /// Takes the lock. Poison is ignored: no code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_removed(&self) {
        *self.lock() -= 1;
        self.changed.notify_all();
    }
}

fn run(databases: &Receiver<Arc<StateDb>>, waiting: &Waiting) {
    for db in databases {
        drop(db);
        waiting.one_removed();
    }
}
