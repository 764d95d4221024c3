//! Helpers for gauges, counters and labels.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// A label with one of a few fixed values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    pub(crate) kind: &'static str,
}

/// Sets a gauge from an unsigned number.
pub(crate) fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Raises a counter to `value`, which never falls.
pub(crate) fn raise(counter: &Counter<u64, AtomicU64>, value: u64) {
    counter.inc_by(value.saturating_sub(counter.get()));
}
