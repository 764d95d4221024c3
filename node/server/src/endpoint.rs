//! The node's answers at the endpoint for metrics and health.

use std::fmt;
use std::sync::Arc;

use probes::endpoint::{NotReady, Probe};

use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::readiness::ReadinessProbe;

/// Answers `/metrics`, `/livez` and `/readyz` for the node.
pub(crate) struct NodeProbe {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Arc<ReadinessProbe>,
    pub(crate) progress: Arc<Progress>,
}

impl Probe for NodeProbe {
    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.render()
    }

    fn alive(&self) -> Result<(), NotReady> {
        self.progress.check_alive().map_err(NotReady::new)
    }

    fn ready(&self) -> Result<(), NotReady> {
        self.readiness.check().map_err(NotReady::new)
    }
}
