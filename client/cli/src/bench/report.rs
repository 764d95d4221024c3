//! The report of a load.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::latencies::{Row, table};
use super::move_watch::MovesReport;
use crate::output::{Format, grouped, json_line};

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
    /// Number of failed operations, by kind.
    pub(super) errors: BTreeMap<&'static str, u64>,
    pub(super) error_count: u64,
    pub(super) first_error: Option<String>,
    /// The longest time in which no read (write) was acknowledged, in milliseconds.
    pub(super) longest_read_gap_ms: Option<f64>,
    pub(super) longest_write_gap_ms: Option<f64>,
    /// CPU time of this process for each operation, in microseconds.
    pub(super) client_cpu_us_per_op: f64,
    /// With --moves: what writes noticed of shards that moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) moves: Option<MovesReport>,
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
    use std::time::Duration;

    use super::super::latencies::Latencies;
    use super::super::move_watch::{MovedShard, Pause};
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
            longest_moved: Some(Pause { shard: 4, ms: 12.0 }),
            longest_stayed: None,
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
