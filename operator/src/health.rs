//! Readiness and metrics of the operator, for its HTTP endpoint.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use probes::endpoint::{NotReady, Probe};

use crate::metrics::Metrics;

/// Readiness of the process. A replica that stands by for the Lease is ready.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<Metrics>,
    /// Reason why the process isn't ready.
    not_ready: Mutex<Option<String>>,
}

impl Health {
    /// Returns the health of a process that has just started and isn't ready.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            not_ready: Mutex::new(Some("the operator has just started".to_owned())),
        }
    }

    /// Reports the process as not ready, for the given reason.
    pub fn set_not_ready(&self, reason: &str) {
        *self.lock() = Some(reason.to_owned());
    }

    /// Reports the process as ready: it acts, or will act as soon as it holds the Lease.
    pub fn set_ready(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        // Every change under this lock is complete, so a poisoned lock is safe to use.
        self.not_ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for Health {
    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.render()
    }

    fn ready(&self) -> Result<(), NotReady> {
        let reason = self.lock().clone();
        reason.map_or(Ok(()), |reason| Err(NotReady::new(reason)))
    }
}
