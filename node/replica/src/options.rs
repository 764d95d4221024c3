//! A replica's settings and their validation.

use raft::OptionsError;

use crate::bug::Bugs;

/// A replica's settings. A bound names the refusal that a request gets when the bound is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The settings of Raft, except `tick_ms`, which has the value below.
    pub raft: raft::Options,
    /// The length of a tick in milliseconds: the interval at which the driver calls `tick`.
    pub tick_ms: u32,
    /// The most bytes of operations in one log entry; also the largest operation (`TooLarge`).
    pub max_entry_bytes: usize,
    /// The replica ends a poll once it has done this much work ([`crate::LOOKUP_WORK`] says what counts), so that messages and ticks
    /// are handled in between. Beyond it goes at most the rest of one entry. Operations of one entry may do as much work together,
    /// by [`crate::StateMachine::most_work`]; one operation that may do more has an entry of its own.
    pub max_apply_work: u64,
    /// The most requests that wait for an answer (`Overloaded`).
    pub max_pending_requests: usize,
    /// The most bytes of operations that wait to be committed (`Overloaded`).
    pub max_pending_bytes: usize,
    /// The largest value, in bytes; stamped into the log.
    pub max_value_bytes: u32,
    /// The replica compacts the log when it has grown by this many bytes since the last compaction. It keeps half as many
    /// bytes for followers that are slightly behind.
    pub compact_after_bytes: u64,
    /// The most bytes of the log that a leader keeps for followers that are behind and make progress. It must be more than
    /// clients write while a snapshot is transferred. If it is less than `compact_after_bytes`, or while a disk is nearly
    /// full, that takes its place.
    pub max_kept_log_bytes: u64,
    /// The most unanswered snapshot chunks to one follower.
    pub snapshot_window: usize,
    /// The most snapshots that the leader sends at the same time.
    pub max_snapshots: usize,
    /// The replica remembers the digest of its state after each entry whose index is a multiple of this, and after each
    /// no-op. Replicas compare only what all of them remember, so all should have the same value.
    pub checkpoint_every: u64,
    /// The address at which the other members reach this replica.
    pub address: String,
    /// The known bug to put back; none outside of tests and the simulator.
    pub bugs: Bugs,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            raft: raft::Options::default(),
            tick_ms: 10,
            max_entry_bytes: 8 << 20,
            max_apply_work: 100_000,
            max_pending_requests: 65_536,
            max_pending_bytes: 64 << 20,
            max_value_bytes: 1 << 20,
            compact_after_bytes: 64 << 20,
            max_kept_log_bytes: 1 << 30,
            snapshot_window: 4,
            max_snapshots: 2,
            checkpoint_every: 1_024,
            address: String::new(),
            bugs: Bugs::NONE,
        }
    }
}

impl Options {
    /// Refuses settings that contradict each other.
    pub fn validate(&self) -> Result<(), OptionsError> {
        self.raft.validate()?;
        let checks = [
            (self.tick_ms == 0, "tick_ms must be at least 1"),
            (
                self.max_entry_bytes < 1_024,
                "max_entry_bytes must be at least 1024",
            ),
            (
                self.max_apply_work == 0,
                "max_apply_work must be at least 1",
            ),
            (
                self.max_pending_requests == 0,
                "max_pending_requests must be at least 1",
            ),
            (
                self.max_value_bytes as usize >= self.max_entry_bytes,
                "max_value_bytes must be less than max_entry_bytes",
            ),
            (
                self.snapshot_window == 0,
                "snapshot_window must be at least 1",
            ),
            (self.max_snapshots == 0, "max_snapshots must be at least 1"),
            (
                self.checkpoint_every == 0,
                "checkpoint_every must be at least 1",
            ),
            (self.address.is_empty(), "address must not be empty"),
        ];
        match checks.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(OptionsError(what)),
            None => Ok(()),
        }
    }
}
