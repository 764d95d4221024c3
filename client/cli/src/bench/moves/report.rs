//! The report of `bench moves`.

use std::io;
use std::time::Duration;

use serde::Serialize;

use super::super::latencies::{Row, table};
use super::cluster::{Chosen, Fill, Moved};
use super::record::Figures;
use crate::output::{Format, Table, grouped, json_line};

/// All sizes and loads.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) value_bytes: u32,
    /// Writes a second to the moving shard.
    pub(super) rate: u32,
    /// Writes a second to the other shards in the open load. Null before the closed load has decided it.
    pub(super) other_rate: Option<u32>,
    /// Writers to the other shards in the closed load.
    pub(super) clients: u32,
    pub(super) moves: Vec<Measured>,
}

/// The moves of one shard under one load. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    /// Size of the keys and values that the shard was filled with.
    pub(super) bytes: u64,
    pub(super) keys: u64,
    pub(super) shard: u32,
    /// `closed` or `open`.
    pub(super) load: &'static str,
    /// Number of measured moves.
    pub(super) moves: usize,
    /// The longest time without an acknowledged write of the moving shard: in all moves, the median of the moves, and in the baseline.
    pub(super) write_gap_ms: f64,
    pub(super) median_write_gap_ms: f64,
    pub(super) gap_before_ms: f64,
    /// The median and the longest time from the request to move until the new owner served the shard.
    pub(super) arrived_ms: f64,
    pub(super) longest_arrived_ms: f64,
    /// The same until the former owner had deleted the shard, and every group had done its part.
    pub(super) settled_ms: f64,
    pub(super) longest_settled_ms: f64,
    /// The throughput of the other shards during the moves, as a share of the baseline's. Of interest in the closed load.
    pub(super) others_throughput_ratio: f64,
    /// Writes that were scheduled in the baseline, and from the request to move until it settled.
    pub(super) moving_before: Row,
    pub(super) moving_during: Row,
    pub(super) others_before: Row,
    pub(super) others_during: Row,
    pub(super) failed_writes: u64,
    pub(super) first_error: Option<String>,
}

impl Measured {
    /// Gathers the figures of one load.
    pub(super) fn new(
        fill: &Fill,
        chosen: &Chosen,
        load: &'static str,
        moves: &[Moved],
        figures: Figures,
    ) -> Self {
        let [arrived_ms, longest_arrived_ms] =
            median_and_longest(moves.iter().map(|it| it.arrived)).map(ms);
        let [settled_ms, longest_settled_ms] =
            median_and_longest(moves.iter().map(|it| it.settled)).map(ms);
        let [median_write_gap_ms, write_gap_ms] =
            median_and_longest(figures.gaps.iter().copied()).map(ms);
        let before = figures.others_before.per_second;
        Self {
            bytes: fill.bytes(),
            keys: fill.keys,
            shard: chosen.shard.0,
            load,
            moves: moves.len(),
            write_gap_ms,
            median_write_gap_ms,
            gap_before_ms: ms(figures.gap_before),
            arrived_ms,
            longest_arrived_ms,
            settled_ms,
            longest_settled_ms,
            others_throughput_ratio: figures.others_during.per_second / before.max(1e-9),
            moving_before: figures.moving_before,
            moving_during: figures.moving_during,
            others_before: figures.others_before,
            others_during: figures.others_during,
            failed_writes: figures.failed,
            first_error: figures.first_error,
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Returns the median and the maximum; zeros for none.
fn median_and_longest(times: impl Iterator<Item = Duration>) -> [Duration; 2] {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    [median, times.last().copied().unwrap_or_default()]
}

impl Report {
    /// Writes the report.
    pub(super) fn write(&self, format: Format, out: &mut dyn io::Write) -> io::Result<()> {
        if format == Format::Json {
            return json_line(out, self);
        }
        writeln!(
            out,
            "values of {} bytes, {} writes/s to the shard that moves\n\
             other shards: closed load of {} writers, open load of {} writes/s\n",
            grouped(self.value_bytes.into()),
            grouped(self.rate.into()),
            grouped(self.clients.into()),
            grouped(self.other_rate.unwrap_or_default().into())
        )?;
        self.moves_table().write(out)?;
        writeln!(out)?;
        let names: Vec<(String, &Row)> = self.moves.iter().flat_map(rows).collect();
        let rows: Vec<(&str, &Row)> = names
            .iter()
            .map(|(name, row)| (name.as_str(), *row))
            .collect();
        table("WRITES", &rows).write(out)?;
        let failed = self.moves.iter().map(|it| it.failed_writes).sum();
        match self.moves.iter().find_map(|it| it.first_error.as_ref()) {
            None => Ok(()),
            Some(first) => writeln!(
                out,
                "\n{} writes failed; the first: {first}",
                grouped(failed)
            ),
        }
    }

    fn moves_table(&self) -> Table {
        let mut moves = Table::new(&[
            "BYTES",
            "LOAD",
            "MOVES",
            "WRITE GAP ms",
            "MEDIAN GAP ms",
            "GAP BEFORE ms",
            "WRITE P99 ms",
            "ARRIVED ms",
            "SETTLED ms",
            "OTHERS' THROUGHPUT",
            "OTHERS' P99 ms",
            "P99 BEFORE ms",
        ]);
        for it in &self.moves {
            let p99 = |row: &Row| format!("{:.1}", row.p99_us / 1e3);
            moves.row(vec![
                grouped(it.bytes),
                it.load.to_owned(),
                it.moves.to_string(),
                format!("{:.1}", it.write_gap_ms),
                format!("{:.1}", it.median_write_gap_ms),
                format!("{:.1}", it.gap_before_ms),
                p99(&it.moving_during),
                format!("{:.1}", it.arrived_ms),
                format!("{:.1}", it.settled_ms),
                format!("{:.0}%", it.others_throughput_ratio * 100.0),
                p99(&it.others_during),
                p99(&it.others_before),
            ]);
        }
        moves
    }
}

fn rows(it: &Measured) -> [(String, &Row); 4] {
    let name = |what: &str| format!("{} bytes, {} load: {what}", grouped(it.bytes), it.load);
    [
        (name("moving shard, before"), &it.moving_before),
        (name("moving shard, in moves"), &it.moving_during),
        (name("other shards, before"), &it.others_before),
        (name("other shards, in moves"), &it.others_during),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::latencies::Latencies;
    use super::*;

    fn row(slowest_ms: u64, seconds: f64) -> Row {
        let mut latencies = Latencies::new();
        for ms in 1..=slowest_ms {
            latencies.add(Duration::from_millis(ms));
        }
        latencies.row(seconds)
    }

    fn measured(load: &'static str, failed_writes: u64) -> Measured {
        Measured {
            bytes: 999_424,
            keys: 243,
            shard: 7,
            load,
            moves: 3,
            write_gap_ms: 130.25,
            median_write_gap_ms: 120.5,
            gap_before_ms: 9.0,
            arrived_ms: 140.0,
            longest_arrived_ms: 150.0,
            settled_ms: 400.0,
            longest_settled_ms: 450.0,
            others_throughput_ratio: 0.875,
            moving_before: row(10, 5.0),
            moving_during: row(100, 1.0),
            others_before: row(10, 5.0),
            others_during: row(20, 1.0),
            failed_writes,
            first_error: (failed_writes > 0).then(|| "no answer".to_owned()),
        }
    }

    #[test]
    fn reports_match_the_golden() {
        let report = Report {
            value_bytes: 4_096,
            rate: 200,
            other_rate: Some(1_234),
            clients: 16,
            moves: vec![measured("closed", 0), measured("open", 2)],
        };
        let mut out = Vec::new();
        report.write(Format::Table, &mut out).unwrap();
        out.push(b'\n');
        report.write(Format::Json, &mut out).unwrap();
        crate::golden::check("bench_moves.txt", std::str::from_utf8(&out).unwrap());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let times = [30, 10, 20].map(Duration::from_millis);
        assert_eq!(
            median_and_longest(times.into_iter()),
            [20, 30].map(Duration::from_millis)
        );
        assert_eq!(median_and_longest(std::iter::empty()), [Duration::ZERO; 2]);
    }
}
