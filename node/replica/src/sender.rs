//! The sender of one snapshot: flow control by acknowledgement, and the resending of what is lost.
//!
//! Each sending of a chunk has a *serial*, which the receiver's answer repeats. Links keep the order of what they carry. So an
//! answer to a serial shows that every chunk that was sent up to it, and that the answer still asks for, is lost. Only
//! these are sent again. If no answer comes at all, for longer than a slow link takes for everything in flight, the sender
//! sends the oldest chunk again, and waits twice as long for the next answer. So a slow link carries few chunks twice.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::{SnapshotChunk, StoreError};

use crate::bug::Bug;
use crate::{Options, SnapshotSource};

/// The time that an answer may take besides the transfer, in heartbeat intervals.
const ANSWER_WITHIN_HEARTBEATS: u32 = 10;
/// The bandwidth of the slowest link on which no chunk is sent twice. Links of half of it still work.
const SLOWEST_BYTES_PER_SECOND: u64 = 32 << 10;
/// The number of unanswered repetitions after which a sender gives up. Each waits twice as long as the one before.
const MOST_REPETITIONS: u32 = 4;
/// The most chunks that are read in one turn to skip them.
const MOST_SKIPPED: u32 = 64;
/// The number of heartbeat intervals after which a sender gives up on a follower that answers nothing at all.
const GIVE_UP_AFTER_HEARTBEATS: u32 = 100;

pub(crate) struct Sender {
    pub(crate) source: Box<dyn SnapshotSource>,
    /// The feature level of the snapshot.
    feature_level: u32,
    /// The unanswered chunks, oldest first.
    window: VecDeque<Sent>,
    next_number: u64,
    next_serial: u64,
    exhausted: bool,
    /// The receiver has the chunks before this number. After an earlier transfer of the same snapshot it may have more than
    /// this sender has read.
    acknowledged: u64,
    /// Serials from this one on were sent after the receiver had acknowledged that many.
    first_serial_after_progress: u64,
    /// The number of chunks that may be unanswered.
    allowed: usize,
    /// Ticks since the last acknowledgement of a chunk, or since the last repetition.
    waited_ticks: u32,
    /// Repetitions since the last acknowledgement.
    repetitions: u32,
    /// Ticks for which the follower has answered nothing, counted once it is silent for an election timeout.
    silent_ticks: u32,
}

struct Sent {
    chunk: SnapshotChunk,
    lost: bool,
}

/// The result of a tick or of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    GoesOn,
    /// The follower can't be reached, or needs the snapshot from its start.
    GivenUp,
}

impl Sender {
    pub(crate) fn new(source: Box<dyn SnapshotSource>, feature_level: u32) -> Self {
        Self {
            source,
            feature_level,
            window: VecDeque::new(),
            next_number: 0,
            next_serial: 0,
            exhausted: false,
            acknowledged: 0,
            first_serial_after_progress: 0,
            allowed: 1,
            waited_ticks: 0,
            repetitions: 0,
            silent_ticks: 0,
        }
    }

    /// Returns the chunks to send: those that were lost, and new ones until the window is full.
    pub(crate) fn fill(&mut self, window: usize) -> Result<Vec<SnapshotChunk>, StoreError> {
        let mut out: Vec<SnapshotChunk> = Vec::new();
        for sent in self.window.iter_mut().filter(|sent| sent.lost) {
            sent.lost = false;
            sent.chunk.serial = self.next_serial;
            self.next_serial += 1;
            out.push(sent.chunk.clone());
        }
        for _ in 0..MOST_SKIPPED {
            if !self.skips() {
                break;
            }
            self.exhausted = self.source.next_chunk()?.is_none();
            self.next_number += 1;
        }
        let window = self.allowed.min(window);
        while self.window.len() < window && !self.exhausted && !self.skips() {
            if self.window.is_empty() {
                self.waited_ticks = 0;
            }
            let data = self.source.next_chunk()?;
            self.exhausted = data.is_none();
            let data = data.unwrap_or_else(Bytes::new);
            let chunk = SnapshotChunk {
                meta: self.source.meta().clone(),
                number: self.next_number,
                serial: self.next_serial,
                done: self.exhausted,
                checksum: crc32fast::hash(&data),
                feature_level: self.feature_level,
                data,
            };
            self.next_number += 1;
            self.next_serial += 1;
            out.push(chunk.clone());
            self.window.push_back(Sent { chunk, lost: false });
        }
        Ok(out)
    }

    /// Returns true if the next chunk is one that the receiver has.
    fn skips(&self) -> bool {
        self.next_number < self.acknowledged && !self.exhausted
    }

    /// Records an answer to `serial`: the receiver has all chunks before `next`.
    pub(crate) fn answered(&mut self, serial: u64, next: u64, options: &Options) -> Verdict {
        if serial >= self.next_serial {
            // It answers an earlier sender of the same snapshot.
            return Verdict::GoesOn;
        }
        if next < self.acknowledged {
            // The receiver lost its chunks, unless the answer is older than those that acknowledged more.
            return if serial >= self.first_serial_after_progress {
                Verdict::GivenUp
            } else {
                Verdict::GoesOn
            };
        }
        if next > self.acknowledged {
            self.advance(next, options);
        }
        for sent in &mut self.window {
            sent.lost |= sent.chunk.serial <= serial;
        }
        Verdict::GoesOn
    }

    fn advance(&mut self, next: u64, options: &Options) {
        let soon = self.waited_ticks <= options.raft.heartbeat_ticks * ANSWER_WITHIN_HEARTBEATS;
        self.allowed = if soon && self.repetitions == 0 {
            (self.allowed + 1).min(options.snapshot_window)
        } else {
            (self.allowed / 2).max(1)
        };
        self.acknowledged = next;
        self.first_serial_after_progress = self.next_serial;
        self.waited_ticks = 0;
        self.repetitions = 0;
        while self
            .window
            .pop_front_if(|sent| sent.chunk.number < next)
            .is_some()
        {}
    }

    /// Treats everything in flight as lost, because the connection that carried it broke.
    pub(crate) fn lose_all(&mut self) {
        for sent in &mut self.window {
            sent.lost = true;
        }
        self.waited_ticks = 0;
    }

    /// Advances time by one tick. `active` is true if the follower answered the leader lately.
    pub(crate) fn tick(&mut self, active: bool, options: &Options) -> Verdict {
        let heartbeat = options.raft.heartbeat_ticks;
        if active {
            if self.silent_ticks > 0 {
                self.repeat_oldest();
                self.repetitions = 0;
            }
            self.silent_ticks = 0;
        } else {
            self.silent_ticks += 1;
            return if self.silent_ticks > heartbeat * GIVE_UP_AFTER_HEARTBEATS {
                Verdict::GivenUp
            } else {
                Verdict::GoesOn
            };
        }
        if self.skips() {
            // No answer is due: this sender reads chunks that the receiver has.
            self.waited_ticks = 0;
            return Verdict::GoesOn;
        }
        self.waited_ticks += 1;
        if options.bugs.has(Bug::WindowResentByClock) {
            if self.waited_ticks.is_multiple_of(2 * heartbeat) {
                for sent in &mut self.window {
                    sent.lost = true;
                }
            }
            return Verdict::GoesOn;
        }
        let patience = self.answer_ticks(options) << self.repetitions;
        if u64::from(self.waited_ticks) < patience {
            return Verdict::GoesOn;
        }
        self.repetitions += 1;
        self.repeat_oldest();
        if self.repetitions > MOST_REPETITIONS {
            return Verdict::GivenUp;
        }
        Verdict::GoesOn
    }

    fn repeat_oldest(&mut self) {
        self.waited_ticks = 0;
        if let Some(oldest) = self.window.front_mut() {
            oldest.lost = true;
        }
    }

    /// Returns the time in ticks in which a slow link carries everything in flight and the answer comes.
    fn answer_ticks(&self, options: &Options) -> u64 {
        let bytes = self.window.iter().map(|sent| sent.chunk.data.len() as u64);
        let transfer_ms = bytes.sum::<u64>() * 1_000 / SLOWEST_BYTES_PER_SECOND;
        u64::from(options.raft.heartbeat_ticks * ANSWER_WITHIN_HEARTBEATS)
            + transfer_ms / u64::from(options.tick_ms)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test should panic")]
mod tests {
    use raft::SnapshotMeta;

    use super::*;

    struct Numbers {
        meta: SnapshotMeta,
        left: u64,
    }

    impl SnapshotSource for Numbers {
        fn meta(&self) -> &SnapshotMeta {
            &self.meta
        }
        fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
            let more = self.left > 0;
            self.left = self.left.saturating_sub(1);
            Ok(more.then(|| Bytes::from_static(b"x")))
        }
    }

    fn sender(chunks: u64) -> Sender {
        let meta = SnapshotMeta::default();
        Sender::new(Box::new(Numbers { meta, left: chunks }), 0)
    }

    #[test]
    fn reading_what_the_receiver_has_is_no_waiting() {
        let options = Options::default();
        let has = 4_000 * u64::from(MOST_SKIPPED);
        let mut sender = sender(has + 10);
        let first = sender.fill(4).unwrap();
        assert_eq!(first.len(), 1);
        // An earlier transfer of the same snapshot was cut off near its end.
        assert_eq!(sender.answered(0, has, &options), Verdict::GoesOn);
        let mut ticks = 0;
        let next = loop {
            let sent = sender.fill(4).unwrap();
            if let Some(chunk) = sent.into_iter().next() {
                break chunk;
            }
            assert_eq!(sender.tick(true, &options), Verdict::GoesOn);
            ticks += 1;
        };
        assert_eq!(next.number, has);
        assert!(ticks > 3_900, "{ticks} ticks: longer than the patience");
    }

    #[test]
    fn a_receiver_that_claims_more_than_there_is_is_given_up() {
        let options = Options::default();
        let mut sender = sender(3);
        sender.fill(4).unwrap();
        assert_eq!(sender.answered(0, 1_000, &options), Verdict::GoesOn);
        let gives_up = (0..10_000).any(|_| {
            assert!(sender.fill(4).unwrap().is_empty());
            sender.tick(true, &options) == Verdict::GivenUp
        });
        assert!(gives_up);
    }
}
