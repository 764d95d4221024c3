//! Latencies and what is written of them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::moves::MovesReport;
use crate::output::{Format, Table, grouped, json_line};

/// The longest latency that is told from longer ones.
const MAX_LATENCY_NS: u64 = 600_000_000_000;

/// Latencies in nanoseconds, to three digits.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(super) fn new() -> Self {
        // The bounds and digits are constants that the histogram accepts; the smallest one is a fallback without panic.
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
        // Equal bounds always add.
        let _ = self.0.add(&other.0);
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures of one row, over `seconds`.
    pub(super) fn row(&self, seconds: f64) -> Row {
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let micros = |nanos: u64| nanos as f64 / 1e3;
        let at = |quantile| micros(self.0.value_at_quantile(quantile));
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
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

/// The result of a load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) mode: &'static str,
    pub(super) clients: u32,
    pub(super) connections: u16,
    pub(super) value_bytes: u32,
    pub(super) key_space: u64,
    pub(super) read_ratio: f64,
    /// The schedule of an open loop, in operations a second.
    pub(super) rate: Option<u32>,
    pub(super) seconds: f64,
    /// Figures of what succeeded.
    pub(super) all: Row,
    pub(super) reads: Option<Row>,
    pub(super) writes: Option<Row>,
    /// How many failed, by kind.
    pub(super) errors: BTreeMap<&'static str, u64>,
    pub(super) error_count: u64,
    pub(super) first_error: Option<String>,
    /// The longest time in which no read (write) was acknowledged, in milliseconds.
    pub(super) longest_read_gap_ms: Option<f64>,
    pub(super) longest_write_gap_ms: Option<f64>,
    /// What an operation cost this process, in microseconds of CPU.
    pub(super) client_cpu_us_per_op: f64,
    /// With --moves: what writes noticed of shards that moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) moves: Option<MovesReport>,
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

impl Report {
    /// Writes the report.
    pub(super) fn write(&self, format: Format, out: &mut dyn Write) -> io::Result<()> {
        if format == Format::Json {
            return json_line(out, self);
        }
        writeln!(
            out,
            "{} mode, {} clients, {} connections, values of {} bytes, {} keys, {:.1} s",
            self.mode,
            grouped(self.clients.into()),
            self.connections,
            grouped(self.value_bytes.into()),
            grouped(self.key_space),
            self.seconds
        )?;
        let mut rows = Vec::new();
        rows.extend(self.reads.as_ref().map(|row| ("read", row)));
        rows.extend(self.writes.as_ref().map(|row| ("write", row)));
        if rows.len() != 1 {
            rows.push(("all", &self.all));
        }
        table("OPERATION", &rows).write(out)?;
        for (what, gap) in [
            ("read", self.longest_read_gap_ms),
            ("write", self.longest_write_gap_ms),
        ] {
            if let Some(gap) = gap {
                writeln!(
                    out,
                    "longest time without an acknowledged {what}: {gap:.1} ms"
                )?;
            }
        }
        writeln!(
            out,
            "CPU of this program: {:.1} us an operation",
            self.client_cpu_us_per_op
        )?;
        let kinds: Vec<String> = self
            .errors
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        match &self.first_error {
            None => writeln!(out, "errors: none")?,
            Some(first) => writeln!(out, "errors: {}; the first: {first}", kinds.join(", "))?,
        }
        self.moves.as_ref().map_or(Ok(()), |moves| moves.write(out))
    }
}

#[cfg(test)]
mod tests {
    use super::super::moves::MovedShard;
    use super::*;

    fn report(errors: bool) -> Report {
        let mut latencies = Latencies::new();
        for micros in 1..=1_000 {
            latencies.add(Duration::from_micros(micros));
        }
        let mut both = latencies.clone();
        both.merge(&latencies);
        Report {
            mode: "batch",
            clients: 1_024,
            connections: 1,
            value_bytes: 256,
            key_space: 10_000,
            read_ratio: 0.5,
            rate: None,
            seconds: 2.0,
            all: both.row(2.0),
            reads: Some(latencies.row(2.0)),
            writes: Some(latencies.row(2.0)),
            errors: errors.then_some(("timeout", 3)).into_iter().collect(),
            error_count: if errors { 3 } else { 0 },
            first_error: errors.then(|| "no answer".to_owned()),
            longest_read_gap_ms: Some(1.5),
            longest_write_gap_ms: None,
            client_cpu_us_per_op: 12.25,
            moves: errors.then(|| moves(&latencies)),
        }
    }

    fn moves(latencies: &Latencies) -> MovesReport {
        let shard = |shard, from, gap| MovedShard {
            shard,
            moves: 1,
            from,
            to: Some(3),
            write_gap_ms: gap,
            slowest_write_ms: gap + 0.5,
        };
        MovesReport {
            config_before: 2,
            config_after: 3,
            seconds: 1.5,
            before: Some(latencies.row(2.0)),
            others: Some(latencies.row(2.0)),
            moved: None,
            moved_shards: vec![shard(4, Some(1), 12.0), shard(17, None, 3.25)],
        }
    }

    #[test]
    fn reports_match_the_golden() {
        let mut out = Vec::new();
        report(false).write(Format::Table, &mut out).unwrap();
        out.push(b'\n');
        report(true).write(Format::Table, &mut out).unwrap();
        out.push(b'\n');
        report(true).write(Format::Json, &mut out).unwrap();
        crate::golden::check("bench.txt", std::str::from_utf8(&out).unwrap());
    }

    #[test]
    fn quantiles_are_right_to_three_digits() {
        let row = report(false).all;
        assert_eq!(row.count, 2_000);
        for (got, expected) in [
            (row.p50_us, 500.0),
            (row.p99_us, 990.0),
            (row.max_us, 1_000.0),
        ] {
            assert!((got / expected - 1.0).abs() < 0.001, "{got} for {expected}");
        }
        let mut long = Latencies::new();
        long.add(Duration::from_secs(100_000));
        assert_eq!(
            long.count(),
            1,
            "a latency beyond the bound is counted at the bound"
        );
    }
}
