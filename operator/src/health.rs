//! What watches the operator is told: whether it is ready, and its metrics.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use probes::endpoint::{NotReady, Probe};

use crate::metrics::Metrics;

/// How the process is. One that stands by is ready.
#[derive(Debug)]
pub struct Health {
    metrics: Arc<Metrics>,
    /// What it waits for before it can do its part.
    waits: Mutex<Option<String>>,
}

impl Health {
    /// Of a process that has just started, and isn't ready.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            waits: Mutex::new(Some("it has just started".to_owned())),
        }
    }

    /// It waits for something.
    pub fn waits(&self, why: &str) {
        *self.lock() = Some(why.to_owned());
    }

    /// It acts, or can as soon as it is its turn.
    pub fn ready(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing is left half done under this lock.
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for Health {
    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.render()
    }

    fn ready(&self) -> Result<(), NotReady> {
        let waits = self.lock().clone();
        waits.map_or(Ok(()), |why| Err(NotReady::new(why)))
    }
}
