//! Reader threads: long reads of the state, beside the replica's thread.
//!
//! The replica's thread applies entries, and must not wait while a chunk of a moving shard or a page of a scan is read from the
//! disk. So such reads run on other threads, each on a state as of one commit. Few run at once, a bounded number waits, and more
//! are refused. Moves and scans have readers of their own, so that neither waits for the other.

use std::sync::Arc;
use std::time::Instant;

use api::errors;
use api::v1::ErrorDetail;
use prometheus_client::metrics::histogram::Histogram;
use raft::StoreError;
use replica::StateReader;
use storage::StateReads;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// The pause after which a refused caller may try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 100;

/// The kind of reads, with its bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadKind {
    /// The name for refusals.
    pub(crate) what: &'static str,
    /// The most reads that run at the same time.
    pub(crate) max_running: usize,
    /// The most reads that run or wait.
    pub(crate) max_admitted: usize,
}

/// Runs reads on reader threads.
pub(crate) struct Readers {
    state: StateReads,
    kind: ReadKind,
    seconds: Histogram,
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Readers {
    /// Creates readers. `seconds` gets the duration of each read.
    pub(crate) fn new(state: StateReads, kind: ReadKind, seconds: Histogram) -> Self {
        Self {
            state,
            kind,
            seconds,
            running: Arc::new(Semaphore::new(kind.max_running)),
            admitted: Arc::new(Semaphore::new(kind.max_admitted)),
        }
    }

    /// Calls `read` with the state as of the last commit, on a reader thread. Refuses it as `Overloaded` if too many wait. A read
    /// whose caller goes away while it waits is dropped.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn StateReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ErrorDetail> {
        let full = |_| {
            let ReadKind {
                what, max_admitted, ..
            } = self.kind;
            errors::overloaded(what, max_admitted as u64, RETRY_AFTER_MS)
        };
        let admitted = Arc::clone(&self.admitted)
            .try_acquire_owned()
            .map_err(full)?;
        let running = Arc::clone(&self.running).acquire_owned().await;
        let running = running.map_err(|error| broken(&error))?;
        let (state, seconds) = (self.state.clone(), self.seconds.clone());
        // The permits go along, because the thread reads on when the caller is gone.
        let result = spawn_blocking(move || {
            let started = Instant::now();
            let result = state.read(read);
            seconds.observe(started.elapsed().as_secs_f64());
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
