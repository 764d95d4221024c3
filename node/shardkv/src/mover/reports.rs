//! Progress reports to the controllers.

use super::backoff::Backoff;
use super::outbox::{Purpose, ReportNumbers, Turn};
use super::{ASK_PATIENCE_MS, Action, Outcome};

/// The shortest interval between reports, in milliseconds.
const GAP_MS: u64 = 100;
/// The longest interval between reports, in milliseconds: the controllers may have lost a report.
const INTERVAL_MS: u64 = 30_000;

#[derive(Debug, Default)]
pub(super) struct Reports {
    reporting: bool,
    /// The last report that the controllers accepted, and its time.
    reported: Option<(ReportNumbers, u64)>,
    /// The earliest time of the next report.
    next_at: u64,
    /// True if the ownership has changed since it was last read.
    stale: bool,
    backoff: Backoff,
}

impl Reports {
    pub(super) fn poll(&mut self, turn: &mut Turn<'_>) {
        self.stale |= turn.news;
        // A group whose gid may be another's has no progress.
        let is_part = turn.ownership.controller.is_some() && turn.ownership.former.is_none();
        if self.reporting || !is_part {
            return;
        }
        let repeat_at = self
            .reported
            .map_or(0, |(_, at)| at.saturating_add(INTERVAL_MS));
        let at = if self.stale { self.next_at } else { repeat_at };
        if !turn.reached(at.max(self.backoff.until())) {
            return;
        }
        self.stale = false;
        self.next_at = turn.now.saturating_add(GAP_MS);
        let (settled, held) = (turn.ownership.settled(), turn.ownership.held);
        let progress = ReportNumbers { settled, held };
        let known = self.reported.is_some_and(|(known, _)| known == progress);
        if known && !turn.reached(repeat_at) {
            return;
        }
        self.reporting = true;
        let purpose = Purpose::Report(progress);
        turn.ask(purpose, ASK_PATIENCE_MS, Action::Report { settled, held });
    }

    /// Handles the outcome of [`Purpose::Report`].
    pub(super) fn ended(&mut self, turn: &Turn<'_>, progress: ReportNumbers, outcome: &Outcome) {
        self.reporting = false;
        match outcome {
            Outcome::Done => {
                self.reported = Some((progress, turn.now));
                self.backoff.succeed();
            }
            Outcome::Failed(why) => {
                self.stale = true;
                self.backoff.fail(turn.now, why, turn.options);
            }
            _ => {
                self.stale = true;
                let why = "not an answer to Report";
                self.backoff.fail(turn.now, why, turn.options);
            }
        }
    }
}
