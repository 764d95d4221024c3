//! The record of one load: latencies before and during the moves, and the write gaps of the moving shard.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shardkv_client::Error;
use tokio::time::Instant;

use super::super::latencies::{Latencies, Row};

/// The destination of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shards {
    /// The shard that moves.
    Moving,
    /// Any other shard.
    Others,
}

/// Counts the writes of one load. A write belongs to the time for which it was scheduled: the baseline, a move, or neither.
pub(super) struct Record(Mutex<Inner>);

struct Inner {
    begin: Instant,
    baseline_end: Option<Instant>,
    moves: Vec<Window>,
    moving: Tally,
    others: Tally,
    /// The latest acknowledgement of the moving shard.
    last_acknowledged: Instant,
    gap_before: Duration,
    failed: u64,
    first_error: Option<Error>,
}

/// The time of a move, and the longest write gap of the moving shard that overlaps it.
struct Window {
    from: Instant,
    until: Option<Instant>,
    gap: Duration,
}

/// Latencies of writes that were scheduled in the baseline, and in a move.
struct Tally {
    before: Latencies,
    during: Latencies,
}

impl Tally {
    fn new() -> Self {
        Self {
            before: Latencies::new(),
            during: Latencies::new(),
        }
    }
}

impl Record {
    /// Begins the baseline.
    pub(super) fn new(begin: Instant) -> Self {
        Self(Mutex::new(Inner {
            begin,
            baseline_end: None,
            moves: Vec::new(),
            moving: Tally::new(),
            others: Tally::new(),
            last_acknowledged: begin,
            gap_before: Duration::ZERO,
            failed: 0,
            first_error: None,
        }))
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the baseline.
    pub(super) fn end_baseline(&self, now: Instant) {
        self.locked().baseline_end = Some(now);
    }

    /// Begins a move.
    pub(super) fn begin_move(&self, now: Instant) {
        self.locked().moves.push(Window {
            from: now,
            until: None,
            gap: Duration::ZERO,
        });
    }

    /// Ends the latest move.
    pub(super) fn end_move(&self, now: Instant) {
        if let Some(window) = self.locked().moves.last_mut() {
            window.until = Some(now);
        }
    }

    /// Counts a write that was scheduled for `due` and is acknowledged now.
    pub(super) fn acknowledged(&self, shards: Shards, due: Instant, now: Instant) {
        let mut inner = self.locked();
        let before = inner.baseline_end.is_none_or(|end| due < end);
        let during = inner.moves.iter().rev().any(|window| window.contains(due));
        let tally = match shards {
            Shards::Moving => &mut inner.moving,
            Shards::Others => &mut inner.others,
        };
        // After a pause a writer is late for what was scheduled in it, so the latency counts from the schedule.
        if before {
            tally.before.add(now - due);
        } else if during {
            tally.during.add(now - due);
        }
        if shards == Shards::Moving {
            inner.close_gap(now);
        }
    }

    /// Counts a failed write.
    pub(super) fn failed(&self, error: Error) {
        let mut inner = self.locked();
        inner.failed += 1;
        inner.first_error.get_or_insert(error);
    }

    /// Ends the load, and returns its figures.
    pub(super) fn finish(&self, now: Instant) -> Figures {
        let mut inner = self.locked();
        // A gap that still lasts counts too, if it began before the end of the last move.
        let last = inner.last_acknowledged;
        let lasts = |window: &&mut Window| window.until.is_none_or(|until| last < until);
        if let Some(window) = inner.moves.last_mut().filter(lasts) {
            window.gap = window.gap.max(now - last);
        }
        let baseline = inner.baseline_end.unwrap_or(now) - inner.begin;
        let moves = inner.moves.iter();
        let moving: Duration = moves.map(|it| it.until.unwrap_or(now) - it.from).sum();
        let [baseline, moving] = [baseline, moving].map(|it| it.as_secs_f64());
        Figures {
            gap_before: inner.gap_before,
            gaps: inner.moves.iter().map(|window| window.gap).collect(),
            moving_before: inner.moving.before.row(baseline),
            moving_during: inner.moving.during.row(moving),
            others_before: inner.others.before.row(baseline),
            others_during: inner.others.during.row(moving),
            failed: inner.failed,
            first_error: inner.first_error.as_ref().map(ToString::to_string),
        }
    }
}

impl Window {
    fn contains(&self, at: Instant) -> bool {
        self.from <= at && self.until.is_none_or(|until| at < until)
    }
}

impl Inner {
    /// Ends the gap of the moving shard that the latest acknowledgement began.
    fn close_gap(&mut self, now: Instant) {
        let began = std::mem::replace(&mut self.last_acknowledged, now);
        let gap = now.saturating_duration_since(began);
        match self.moves.last_mut() {
            None if self.baseline_end.is_none() => self.gap_before = self.gap_before.max(gap),
            // The gap ended after the begin of this move. It overlaps the move if it began before its end.
            Some(window) if window.until.is_none_or(|until| began < until) => {
                window.gap = window.gap.max(gap);
            }
            _ => {}
        }
    }
}

/// The figures of one load.
pub(super) struct Figures {
    /// The longest time without an acknowledged write of the moving shard in the baseline, and in each move.
    pub(super) gap_before: Duration,
    pub(super) gaps: Vec<Duration>,
    pub(super) moving_before: Row,
    pub(super) moving_during: Row,
    pub(super) others_before: Row,
    pub(super) others_during: Row,
    pub(super) failed: u64,
    pub(super) first_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_count_where_they_were_scheduled_and_gaps_where_they_overlap() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let record = Record::new(begin);
        let write = |shards, due, end| record.acknowledged(shards, at(due), at(end));
        write(Shards::Moving, 0, 5);
        write(Shards::Others, 0, 6);
        write(Shards::Moving, 20, 25);
        record.end_baseline(at(100));
        record.begin_move(at(100));
        // Scheduled in the baseline, answered in the move.
        write(Shards::Moving, 90, 110);
        write(Shards::Others, 120, 121);
        record.end_move(at(200));
        // Scheduled in the move, answered after it: the gap overlaps the move.
        write(Shards::Moving, 120, 230);
        // Neither.
        write(Shards::Moving, 240, 900);
        record.begin_move(at(1_000));
        write(Shards::Moving, 1_000, 1_010);
        record.end_move(at(1_100));
        let figures = record.finish(at(1_500));
        assert_eq!(figures.gap_before, ms(20));
        assert_eq!(figures.gaps, [ms(120), ms(490)], "the last gap still lasts");
        let counts = [
            figures.moving_before.count,
            figures.moving_during.count,
            figures.others_before.count,
            figures.others_during.count,
        ];
        assert_eq!(counts, [3, 2, 1, 1]);
        assert!((figures.moving_during.max_us / 110_000.0 - 1.0).abs() < 0.01);
        assert!((figures.others_during.per_second - 5.0).abs() < 0.01);
    }
}
