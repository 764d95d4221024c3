//! Metrics of calls to keyspaces.

use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::seconds;

/// Metrics of calls to keyspaces.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "all are latencies")]
pub(crate) struct KeyspaceMetrics {
    pub(crate) read_seconds: Histogram,
    pub(crate) write_seconds: Histogram,
    pub(crate) state_read_seconds: Histogram,
}

impl KeyspaceMetrics {
    pub(super) fn new() -> Self {
        Self {
            read_seconds: seconds(),
            write_seconds: seconds(),
            state_read_seconds: seconds(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let histograms = [
            (
                "keyspace_read_request",
                "Latency of calls that read a keyspace, answered here or elsewhere",
                &self.read_seconds,
            ),
            (
                "keyspace_write_request",
                "Latency of calls that write to a keyspace, answered here or elsewhere",
                &self.write_seconds,
            ),
            (
                "keyspace_state_read",
                "Latency of reading a keyspace from the state",
                &self.state_read_seconds,
            ),
        ];
        for (name, help, histogram) in histograms {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
    }
}
