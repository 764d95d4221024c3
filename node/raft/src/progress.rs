//! The leader's view of one follower, and how much it may send ahead.
//!
//! # Invariants
//!
//! - `matched < next`. `matched` never goes back within a term.
//! - In `Probe` at most one append is unanswered, in `Replicate` at most the window, unless heartbeats tell that answers
//!   may be lost: then a probe is repeated, and an append without entries asks. In `Snapshot` none is sent.

use std::collections::VecDeque;

use crate::{Index, Options, ProgressState};

#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) matched: Index,
    pub(crate) next: Index,
    pub(crate) state: ProgressState,
    /// Ticks since the follower was last heard.
    pub(crate) silent_ticks: u32,
    /// The latest read round that it answered.
    pub(crate) read_round: u64,
    /// Something changed that it should hear of even if there is no entry to send.
    pub(crate) nudge: bool,
    probe_sent: bool,
    /// A heartbeat left after the unanswered probe: if that is answered first, the probe may be lost.
    probe_old: bool,
    inflight: VecDeque<(Index, usize)>,
    inflight_bytes: usize,
}

impl Progress {
    pub(crate) fn new(next: Index) -> Self {
        Self {
            matched: Index(0),
            next,
            state: ProgressState::Probe,
            silent_ticks: 0,
            read_round: 0,
            nudge: true,
            probe_sent: false,
            probe_old: false,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    /// Whether entries may leave now.
    pub(crate) fn has_room(&self, options: &Options) -> bool {
        match self.state {
            ProgressState::Probe => !self.probe_sent,
            ProgressState::Replicate => {
                self.inflight.len() < options.max_inflight_appends
                    && self.inflight_bytes < options.max_inflight_bytes
            }
            ProgressState::Snapshot => false,
        }
    }

    /// Whether an append is due to a log that ends at `last`. One without entries needs no room in the window: when
    /// the answers to a full one were lost, it is what opens it again.
    pub(crate) fn is_due(&self, options: &Options, last: Index) -> bool {
        let asks = self.nudge && self.state == ProgressState::Replicate;
        asks || self.has_room(options) && (self.next <= last || self.nudge)
    }

    /// An append that ends at `last` left.
    pub(crate) fn sent(&mut self, last: Index, bytes: usize, empty: bool) {
        self.nudge = false;
        match self.state {
            ProgressState::Probe => {
                self.probe_sent = true;
                self.probe_old = false;
            }
            ProgressState::Replicate if !empty => {
                self.next = last.next();
                self.inflight.push_back((last, bytes));
                self.inflight_bytes += bytes;
            }
            ProgressState::Replicate | ProgressState::Snapshot => {}
        }
    }

    /// The follower holds everything up to `matched`.
    pub(crate) fn accepted(&mut self, matched: Index) -> bool {
        let advanced = matched > self.matched;
        self.matched = self.matched.max(matched);
        self.next = self.next.max(self.matched.next());
        while let Some((_, bytes)) = self.inflight.pop_front_if(|(last, _)| *last <= matched) {
            self.inflight_bytes -= bytes;
        }
        if self.state == ProgressState::Probe {
            self.switch_to(ProgressState::Replicate);
            self.next = self.matched.next();
        }
        advanced
    }

    /// The follower refused an append after `refused`; its log may agree up to `candidate`. False if the answer
    /// is stale.
    pub(crate) fn rejected(&mut self, refused: Index, candidate: Index) -> bool {
        let stale = match self.state {
            ProgressState::Replicate => refused <= self.matched,
            ProgressState::Probe => refused != self.next.prev(),
            ProgressState::Snapshot => true,
        };
        if stale {
            return false;
        }
        self.next = candidate.min(refused.prev()).max(self.matched).next();
        self.switch_to(ProgressState::Probe);
        self.nudge = true;
        true
    }

    /// A heartbeat left.
    pub(crate) fn heartbeat_sent(&mut self) {
        self.probe_old = self.probe_sent;
    }

    /// The follower answered a heartbeat: what was sent before may be lost, so ask where it stands.
    pub(crate) fn alive(&mut self, last: Index) {
        self.silent_ticks = 0;
        match self.state {
            ProgressState::Probe if self.probe_old => {
                self.probe_sent = false;
                self.probe_old = false;
                self.nudge = true;
            }
            ProgressState::Replicate => self.nudge |= self.matched < last,
            ProgressState::Probe | ProgressState::Snapshot => {}
        }
    }

    /// Whatever is on its way is lost: probe from what is known to match.
    pub(crate) fn restart(&mut self) {
        if self.state == ProgressState::Replicate {
            self.next = self.matched.next();
            self.switch_to(ProgressState::Probe);
        }
        self.probe_sent = false;
        self.probe_old = false;
        self.nudge = true;
    }

    pub(crate) fn switch_to(&mut self, state: ProgressState) {
        self.state = state;
        self.probe_sent = false;
        self.probe_old = false;
        self.inflight.clear();
        self.inflight_bytes = 0;
    }
}
