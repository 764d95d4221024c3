//! Shows progress on standard error at a terminal, and a summary at the end.

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::output::{Format, grouped, json_line, size};

/// A bar (or, when the size isn't known, a spinner) on a terminal; nothing elsewhere.
pub(super) struct Progress {
    bar: ProgressBar,
    started: Instant,
    records: u64,
    bytes: u64,
}

impl Progress {
    /// Starts a bar. `total_bytes` is the size of the input, if it is known.
    pub(super) fn start(total_bytes: Option<u64>) -> Self {
        let bar = match total_bytes {
            _ if !io::stderr().is_terminal() => ProgressBar::hidden(),
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        let template = if total_bytes.is_some() {
            "{bar:30} {percent:>3} %  {bytes}, {bytes_per_sec}, {eta} left  {msg}"
        } else {
            "{spinner} {bytes}, {bytes_per_sec}  {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            started: Instant::now(),
            records: 0,
            bytes: 0,
        }
    }

    /// Counts one more record. `position` is the position in the input, in bytes.
    pub(super) fn record(&mut self, bytes: u64, position: u64) {
        self.records(1, bytes, position);
    }

    /// Counts more records. `position` is the position in the input or output, in bytes.
    pub(super) fn records(&mut self, records: u64, bytes: u64, position: u64) {
        let before = self.records / 1_024;
        self.records += records;
        self.bytes += bytes;
        self.bar.set_position(position);
        if self.records / 1_024 > before {
            self.bar
                .set_message(format!("{} records", grouped(self.records)));
        }
    }

    /// Writes a line above the bar on standard error.
    pub(super) fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Removes the bar and returns the figures.
    pub(super) fn finish(self, skipped: u64, longest_gap: Duration) -> Summary {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "a rate to show")]
        let rate = self.records as f64 / seconds.max(1e-9);
        Summary {
            records: self.records,
            bytes: self.bytes,
            skipped,
            seconds,
            records_per_second: rate,
            longest_gap_ms: longest_gap.as_secs_f64() * 1e3,
            cuts: None,
        }
    }
}

/// The figures of a finished transfer.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    records: u64,
    /// Bytes of keys and values.
    bytes: u64,
    skipped: u64,
    seconds: f64,
    records_per_second: f64,
    /// The longest time between two acknowledgements (import) or two pages of a shard (export).
    longest_gap_ms: f64,
    /// Only for an export.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    cuts: Option<Cuts>,
}

impl Summary {
    /// Adds the snapshots of an export to the summary.
    pub(super) fn of(mut self, cuts: Cuts) -> Self {
        self.cuts = Some(cuts);
        self
    }

    /// Writes the summary; `done` is the verb, as in "imported".
    pub(super) fn write(&self, done: &str, format: Format, out: &mut dyn Write) -> io::Result<()> {
        match format {
            Format::Json => json_line(out, self),
            Format::Raw => writeln!(out, "{}", self.records),
            Format::Table => {
                let skipped = match self.skipped {
                    0 => String::new(),
                    n => format!(", {} bad lines skipped", grouped(n)),
                };
                let cuts = self.cuts.map(Cuts::line).unwrap_or_default();
                writeln!(
                    out,
                    "{done} {} records ({}) in {:.2} s, {:.0}/s, longest pause {:.0} ms{skipped}{cuts}",
                    grouped(self.records),
                    size(self.bytes),
                    self.seconds,
                    self.records_per_second,
                    self.longest_gap_ms,
                )
            }
        }
    }
}

/// The consistent snapshots that an export consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Cuts {
    /// Number of shards, each exported as of one moment.
    pub(super) shards: u32,
    /// Number of times that the export of a shard restarted.
    pub(super) restarts: u64,
}

impl Cuts {
    /// Describes the snapshots for a terminal, after the summary.
    pub(super) fn line(self) -> String {
        let anew = match self.restarts {
            0 => String::new(),
            1 => "; 1 was begun anew".to_owned(),
            n => format!("; {n} times one was begun anew"),
        };
        let shards = grouped(self.shards.into());
        format!("\n    each of {shards} shards as it was at one moment{anew}")
    }
}
