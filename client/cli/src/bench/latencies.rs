//! Latencies, and the rows of figures that reports show of them.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::output::{Table, grouped};

/// The longest latency that is recorded exactly; longer ones count as this one.
const MAX_LATENCY_NS: u64 = 600_000_000_000;

/// Latencies in nanoseconds, to three digits.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    /// Makes an empty set.
    pub(super) fn new() -> Self {
        // The histogram accepts these constants. The fallback avoids a panic.
        let histogram = Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3)
            .or_else(|_| Histogram::new(3))
            .unwrap_or_else(|_| unreachable!("three digits are allowed"));
        Self(histogram)
    }

    /// Adds one.
    pub(super) fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(MAX_LATENCY_NS);
        self.0.saturating_record(nanos);
    }

    /// Adds all of another.
    pub(super) fn merge(&mut self, other: &Self) {
        // Adding histograms with equal bounds never fails.
        let _ = self.0.add(&other.0);
    }

    /// Number of latencies.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures of one row, over `seconds`.
    pub(super) fn row(&self, seconds: f64) -> Row {
        #[allow(clippy::cast_precision_loss, reason = "figures to show")]
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile| micros(self.0.value_at_quantile(quantile));
        #[allow(clippy::cast_precision_loss, reason = "figures to show")]
        let per_second = self.count() as f64 / seconds.max(1e-9);
        Row {
            count: self.count(),
            per_second,
            mean_us: self.0.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(self.0.max()),
        }
    }
}

/// Figures of one kind of operation. Latencies in microseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) count: u64,
    pub(super) per_second: f64,
    pub(super) mean_us: f64,
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

/// Named rows as a table.
pub(super) fn table(name: &str, rows: &[(&str, &Row)]) -> Table {
    let mut table = Table::new(&[
        name,
        "COUNT",
        "PER SECOND",
        "MEAN ms",
        "P50 ms",
        "P90 ms",
        "P99 ms",
        "P99.9 ms",
        "MAX ms",
    ]);
    for (name, row) in rows {
        let ms = |micros: f64| format!("{:.3}", micros / 1e3);
        table.row(vec![
            (*name).to_owned(),
            grouped(row.count),
            format!("{:.1}", row.per_second),
            ms(row.mean_us),
            ms(row.p50_us),
            ms(row.p90_us),
            ms(row.p99_us),
            ms(row.p999_us),
            ms(row.max_us),
        ]);
    }
    table
}
