//! Giving back the space of what was cleared.
//!
//! A cleared range is a tombstone: its bytes stay on the disk, and are read over, until a compaction meets them, which on
//! its own may be never. So cleared ranges are collected for a moment, written out together with their tombstones, and
//! compacted by a thread of their own, one after the other, in `RocksDB`'s pool of low priority, beside its own
//! compactions and never instead of them. What a snapshot or a view can still see stays until it is gone; then `RocksDB`
//! drops it by itself.
//!
//! Files that lie wholly within a cleared range are not simply deleted, though `RocksDB` can do that: a snapshot would lose what
//! it shows, and a range that was filled again meanwhile would lose its new content.

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
use crate::state::Instance;

/// The most pending ranges of a table. A single range that covers them all replaces them beyond this number.
const MAX_RANGES: usize = 1_024;
/// Two ranges with no more than this between them are compacted as one: a file has about this size, and one that both
/// touch would be written twice.
const JOIN_BYTES: u64 = 64 << 20;

type Ranges = Vec<(Bytes, Bytes)>;

/// Compacts in the background; stops with its owner.
pub(crate) struct Reclaimer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    latch: Arc<Latch>,
    linger: Duration,
}

#[derive(Default)]
struct Inner {
    /// The range to compact next.
    waiting: Option<Job>,
    /// The database that is being compacted.
    running: Option<Arc<Instance>>,
    /// Counts what ends a job early: its failure then says nothing.
    epoch: u64,
    stop: bool,
}

struct Job {
    instance: Arc<Instance>,
    due: Instant,
    ranges: BTreeMap<Table, Ranges>,
}

impl Reclaimer {
    /// Starts the thread. Ranges are collected for `linger` before they are compacted.
    pub(crate) fn start(linger: Duration, latch: Arc<Latch>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            inner: Mutex::default(),
            changed: Condvar::new(),
            latch,
            linger,
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

    /// The range was cleared by a commit that was written to `instance`.
    pub(crate) fn cleared(
        &self,
        instance: &Arc<Instance>,
        table: Table,
        start: &Bytes,
        end: &Bytes,
    ) {
        let mut inner = self.shared.lock();
        inner.add(
            instance,
            self.shared.linger,
            table,
            (start.clone(), end.clone()),
        );
        self.shared.changed.notify_all();
    }

    /// Waits until nothing waits or runs.
    pub(crate) fn wait(&self) {
        let mut inner = self.shared.lock();
        while inner.waiting.is_some() || inner.running.is_some() {
            let waited = self.shared.changed.wait(inner);
            inner = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The state was replaced: what was cleared in the old one is gone with it.
    pub(crate) fn replaced(&self) {
        self.shared.lock().end_early();
    }
}

impl Drop for Reclaimer {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.stop = true;
        inner.end_early();
        drop(inner);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn add(
        &mut self,
        instance: &Arc<Instance>,
        linger: Duration,
        table: Table,
        range: (Bytes, Bytes),
    ) {
        let job = self.waiting.get_or_insert_with(|| Job {
            instance: Arc::clone(instance),
            due: Instant::now() + linger,
            ranges: BTreeMap::new(),
        });
        let ranges = job.ranges.entry(table).or_default();
        ranges.push(range);
        if ranges.len() > MAX_RANGES {
            *ranges = join(mem::take(ranges), |_, _| 0);
        }
    }

    fn end_early(&mut self) {
        self.waiting = None;
        self.epoch += 1;
        if let Some(instance) = self.running.take() {
            // Nobody writes to it any more.
            instance.db().cancel_all_background_work(false);
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

    /// Does the job that waits, without the lock.
    fn work<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        let Some(job) = inner.waiting.take() else {
            return inner;
        };
        inner.running = Some(Arc::clone(&job.instance));
        let epoch = inner.epoch;
        drop(inner);
        let outcome = self.compact(&job, epoch);
        inner = self.lock();
        self.changed.notify_all();
        if inner.epoch != epoch {
            return inner;
        }
        inner.running = None;
        match outcome {
            Ok(()) => {}
            // Later, when there is space.
            Err(StoreError::Full(_)) => {
                for (table, ranges) in job.ranges {
                    for range in ranges {
                        inner.add(&job.instance, self.linger.max(RETRY), table, range);
                    }
                }
            }
            Err(error) => {
                self.latch.keep(error);
            }
        }
        inner
    }

    fn compact(&self, job: &Job, epoch: u64) -> Result<(), StoreError> {
        let db = job.instance.db();
        // First the tombstones get to the disk, all tables as of one commit.
        job.instance.flush()?;
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        for (table, ranges) in &job.ranges {
            let family = job.instance.family(*table)?;
            let between = |start: &Bytes, end: &Bytes| {
                let sizes = db.get_approximate_sizes_cf(family, &[Range::new(start, end)]);
                sizes.first().copied().unwrap_or(0)
            };
            for (start, end) in join(ranges.clone(), between) {
                if self.lock().epoch != epoch {
                    return Ok(());
                }
                db.compact_range_cf_opt(family, Some(start), Some(end), &options);
            }
        }
        Ok(())
    }
}

/// The shortest pause before a job that found no space is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The same ranges in order, those that overlap, touch, or have little `between` them (from the end of one to the start of
/// the next) as one.
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
