//! Metrics of scans.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::seconds;

/// Metrics of scans.
#[derive(Debug)]
pub(crate) struct ScanMetrics {
    pub(crate) open: Gauge,
    pub(crate) page_bytes: Gauge,
    pub(crate) read_seconds: Histogram,
}

impl ScanMetrics {
    pub(super) fn new() -> Self {
        Self {
            open: Gauge::default(),
            page_bytes: Gauge::default(),
            read_seconds: seconds(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("open_scans", "Open streams of scans", self.open.clone());
        registry.register_with_unit(
            "scan_pages",
            "Pages of scans that clients have not fetched yet",
            Unit::Bytes,
            self.page_bytes.clone(),
        );
        registry.register_with_unit(
            "scan_read",
            "Latency of reading a page of a scan from the state",
            Unit::Seconds,
            self.read_seconds.clone(),
        );
    }
}
