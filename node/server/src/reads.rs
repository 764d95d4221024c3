//! Reader threads: long reads of the state, beside the replica's thread.
//!
//! The replica's thread applies entries, and must not wait while a chunk of a moving shard is read from the disk. So such
//! reads run on other threads, each on a state as of one commit. Few run at once, a bounded number waits, and more are refused.

use std::sync::Arc;
use std::time::Instant;

use api::errors;
use api::v1::ErrorDetail;
use raft::StoreError;
use replica::StateReader;
use storage::StateReads;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::metrics::Metrics;

/// The most reads that run at the same time.
const MAX_RUNNING: usize = 4;
/// The most reads that run or wait.
const MAX_ADMITTED: usize = 64;
/// The pause after which a refused caller may try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 100;

/// Runs reads on reader threads.
pub(crate) struct Readers {
    state: StateReads,
    metrics: Arc<Metrics>,
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Readers {
    pub(crate) fn new(state: StateReads, metrics: Arc<Metrics>) -> Self {
        Self {
            state,
            metrics,
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
            admitted: Arc::new(Semaphore::new(MAX_ADMITTED)),
        }
    }

    /// Calls `read` with the state as of the last commit, on a reader thread. Refuses it as `Overloaded` if too many wait.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn StateReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ErrorDetail> {
        let full = |_| {
            errors::overloaded(
                "reads of moving shards",
                MAX_ADMITTED as u64,
                RETRY_AFTER_MS,
            )
        };
        let admitted = Arc::clone(&self.admitted)
            .try_acquire_owned()
            .map_err(full)?;
        let running = Arc::clone(&self.running).acquire_owned().await;
        let running = running.map_err(|error| broken(&error))?;
        let (state, metrics) = (self.state.clone(), Arc::clone(&self.metrics));
        // The permits go along, because the thread reads on when the caller is gone.
        let result = spawn_blocking(move || {
            let started = Instant::now();
            let result = state.read(read);
            let took = started.elapsed().as_secs_f64();
            metrics.handoff.read_seconds.observe(took);
            drop((admitted, running));
            result
        });
        match result.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(broken(&error)),
            Err(error) => Err(broken(&error)),
        }
    }
}

fn broken(error: &dyn std::fmt::Display) -> ErrorDetail {
    errors::unavailable(format!("the state can't be read: {error}"), 1_000)
}
