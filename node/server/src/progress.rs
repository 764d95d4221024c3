//! The progress of the replica's thread, as other threads see it.
//!
//! The thread may wait for a disk that never answers: a failing device, a network volume that is gone, a frozen file system. It
//! can't report that by itself, and the network's threads go on as if all were well. So the thread marks each round and each
//! synced write, of which a round may have several, and the endpoints for health look at the time since the last mark.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The time without a mark after which the node is not ready. The thread makes a round at each tick of Raft's clock, which is
/// at most a second.
const READY: Duration = Duration::from_secs(3);

/// The time of the last mark of the replica's thread.
pub(crate) struct Progress {
    origin: Instant,
    /// The time in milliseconds since `origin`, plus one. Zero before the first round.
    marked: AtomicU64,
    /// The time without a mark after which the process counts as dead.
    dead_after: Duration,
}

/// The replica's thread hangs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the replica's thread has waited for the disk for {} s", .0.as_secs())]
pub(crate) struct Stalled(pub(crate) Duration);

impl Progress {
    /// Creates the progress of a thread that has not started.
    pub(crate) fn new(dead_after: Duration) -> Self {
        Self {
            origin: Instant::now(),
            marked: AtomicU64::new(0),
            dead_after,
        }
    }

    /// Marks a round. Called by the replica's thread only.
    pub(crate) fn mark(&self) {
        self.marked.store(self.now() + 1, Ordering::Relaxed);
    }

    /// Marks a step of a round. It does nothing before the first round, because the thread that starts the node writes, too.
    pub(crate) fn mark_step(&self) {
        if self.marked.load(Ordering::Relaxed) != 0 {
            self.mark();
        }
    }

    /// Returns an error if the thread has made no progress for so long that clients must not be sent here.
    pub(crate) fn check_ready(&self) -> Result<(), Stalled> {
        self.check(READY)
    }

    /// Returns an error if the thread has made no progress for so long that only a restart may help.
    pub(crate) fn check_alive(&self) -> Result<(), Stalled> {
        self.check(self.dead_after)
    }

    /// Returns the time of the last mark, for tests.
    #[cfg(test)]
    pub(crate) fn marked(&self) -> u64 {
        self.marked.load(Ordering::Relaxed)
    }

    fn check(&self, limit: Duration) -> Result<(), Stalled> {
        let Some(marked) = self.marked.load(Ordering::Relaxed).checked_sub(1) else {
            return Ok(());
        };
        let since = Duration::from_millis(self.now().saturating_sub(marked));
        if since >= limit {
            return Err(Stalled(since));
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}
