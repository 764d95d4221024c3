//! Reclaims the space of cleared ranges.
//!
//! Clearing a range writes a tombstone. The range's bytes stay on the disk, and reads skip over them, until a compaction
//! meets the tombstone, which may never happen by itself. So a thread collects cleared ranges for a moment, flushes them
//! together with their tombstones, and compacts them one after the other, in `RocksDB`'s pool of low priority, beside
//! `RocksDB`'s own compactions. What a snapshot or a view can still see stays; `RocksDB` drops it after the snapshot is gone.
//!
//! `RocksDB` could delete files that lie wholly within a cleared range. That is not used: a snapshot would lose what it
//! shows, and a range that was filled again meanwhile would lose its new content.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::StoreError;
use replica::Table;
use rocksdb::{CompactOptions, Range};

use crate::error::Latch;
use crate::state_db::StateDb;

/// The most pending ranges of a table. Beyond this number, one range that covers them all replaces them.
const MAX_RANGES: usize = 1_024;
/// Two ranges with no more than this between them are compacted as one: a file has about this size, and a file that both
/// ranges touch would be written twice.
const JOIN_BYTES: u64 = 64 << 20;

type Ranges = Vec<(Bytes, Bytes)>;

/// Compacts in the background. Dropping it stops the thread.
pub(crate) struct Reclaimer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    latch: Arc<Latch>,
    delay: Duration,
}

#[derive(Default)]
struct Inner {
    /// The ranges to compact next.
    waiting: Option<Job>,
    /// The database that is being compacted.
    running: Option<Arc<StateDb>>,
    /// The number of cancellations so far. The outcome of a job that began before the last one is ignored.
    cancellations: u64,
    stop: bool,
}

/// Cleared ranges of one database, and the time at which to compact them.
struct Job {
    db: Arc<StateDb>,
    due: Instant,
    ranges: BTreeMap<Table, Ranges>,
}

impl Reclaimer {
    /// Starts the thread. It collects ranges for `delay` before it compacts them.
    pub(crate) fn start(delay: Duration, latch: Arc<Latch>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            inner: Mutex::default(),
            changed: Condvar::new(),
            latch,
            delay,
        });
        let thread = std::thread::Builder::new()
            .name("state-reclaim".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run()
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Adds a range that a commit cleared in `db`.
    pub(crate) fn add(&self, db: &Arc<StateDb>, table: Table, start: &Bytes, end: &Bytes) {
        let mut inner = self.shared.lock();
        inner.add(db, self.shared.delay, table, (start.clone(), end.clone()));
        self.shared.changed.notify_all();
    }

    /// Waits until no range waits and none is being compacted.
    pub(crate) fn wait(&self) {
        let mut inner = self.shared.lock();
        while inner.waiting.is_some() || inner.running.is_some() {
            let waited = self.shared.changed.wait(inner);
            inner = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Drops all ranges, because a restore replaced the database that they belong to.
    pub(crate) fn cancel(&self) {
        self.shared.lock().cancel();
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.stop = true;
        inner.cancel();
        drop(inner);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic of the thread.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn add(&mut self, db: &Arc<StateDb>, delay: Duration, table: Table, range: (Bytes, Bytes)) {
        let job = self.waiting.get_or_insert_with(|| Job {
            db: Arc::clone(db),
            due: Instant::now() + delay,
            ranges: BTreeMap::new(),
        });
        let ranges = job.ranges.entry(table).or_default();
        ranges.push(range);
        if ranges.len() > MAX_RANGES {
            *ranges = join(mem::take(ranges), |_, _| 0);
        }
    }

    fn cancel(&mut self) {
        self.waiting = None;
        self.cancellations += 1;
        if let Some(db) = self.running.take() {
            // The store no longer writes to this database.
            db.db().cancel_all_background_work(false);
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
            let wait = inner
                .waiting
                .as_ref()
                .map(|job| job.due.saturating_duration_since(Instant::now()));
            inner = match wait {
                None => self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => self.work(inner),
                Some(time) => {
                    let waited = self.changed.wait_timeout(inner, time);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Runs the waiting job, and releases the lock meanwhile.
    fn work<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        let Some(job) = inner.waiting.take() else {
            return inner;
        };
        inner.running = Some(Arc::clone(&job.db));
        let cancellations = inner.cancellations;
        drop(inner);
        let outcome = self.compact(&job, cancellations);
        inner = self.lock();
        self.changed.notify_all();
        if inner.cancellations != cancellations {
            return inner;
        }
        inner.running = None;
        match outcome {
            Ok(()) => {}
            // Try again later: the disk may have space then.
            Err(StoreError::Full(_)) => {
                for (table, ranges) in job.ranges {
                    for range in ranges {
                        inner.add(&job.db, self.delay.max(RETRY), table, range);
                    }
                }
            }
            Err(error) => {
                self.latch.keep(error);
            }
        }
        inner
    }

    fn compact(&self, job: &Job, cancellations: u64) -> Result<(), StoreError> {
        let db = job.db.db();
        // Flush first, so that the tombstones are on the disk, all tables as of one commit.
        job.db.flush()?;
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        for (table, ranges) in &job.ranges {
            for family in job.db.column_families(*table)? {
                let between = |start: &Bytes, end: &Bytes| {
                    let sizes = db.get_approximate_sizes_cf(family, &[Range::new(start, end)]);
                    sizes.first().copied().unwrap_or(0)
                };
                for (start, end) in join(ranges.clone(), between) {
                    if self.lock().cancellations != cancellations {
                        return Ok(());
                    }
                    db.compact_range_cf_opt(family, Some(start), Some(end), &options);
                }
            }
        }
        Ok(())
    }
}

/// The shortest pause before a job that failed on a full disk is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Sorts ranges, and joins those that overlap, touch, or have at most [`JOIN_BYTES`] between them. `between` returns the bytes
/// from the end of one range to the start of the next.
fn join(mut ranges: Ranges, between: impl Fn(&Bytes, &Bytes) -> u64) -> Ranges {
    ranges.sort();
    let mut joined: Ranges = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some((_, last)) if start <= *last || between(last, &start) <= JOIN_BYTES => {
                if end > *last {
                    *last = end;
                }
            }
            _ => joined.push((start, end)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(&'static str, &'static str)]) -> Ranges {
        pairs
            .iter()
            .map(|(start, end)| (Bytes::from(*start), Bytes::from(*end)))
            .collect()
    }

    #[test]
    fn ranges_that_would_write_the_same_file_are_joined() {
        let far = |_: &Bytes, _: &Bytes| JOIN_BYTES + 1;
        let mixed = ranges(&[("p", "q"), ("a", "c"), ("b", "bb"), ("c", "d"), ("x", "z")]);
        assert_eq!(
            join(mixed.clone(), far),
            ranges(&[("a", "d"), ("p", "q"), ("x", "z")])
        );
        let near = |start: &Bytes, _: &Bytes| {
            if *start == "d" {
                JOIN_BYTES
            } else {
                JOIN_BYTES + 1
            }
        };
        assert_eq!(join(mixed, near), ranges(&[("a", "q"), ("x", "z")]));
        assert_eq!(join(Vec::new(), far), ranges(&[]));
    }
}
