//! The node's answers at the endpoint for metrics and health.

use std::fmt;
use std::sync::Arc;

use probes::endpoint::{NotReady, Probe};

use crate::metrics::Metrics;
use crate::readiness::ReadinessProbe;

/// Answers `/metrics` and `/readyz` for the node.
pub(crate) struct NodeProbe {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) readiness: Arc<ReadinessProbe>,
}

impl Probe for NodeProbe {
    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.render()
    }

    fn ready(&self) -> Result<(), NotReady> {
        self.readiness.check().map_err(NotReady::new)
    }
}
