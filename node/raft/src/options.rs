//! Raft's settings and their validation.

use crate::{Bugs, LeasePromise};

/// Raft's settings. Durations are in ticks; the driver decides how long a tick is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The shortest election timeout: a follower that hears no leader for this long, plus a random time of up to the
    /// same length, asks for pre-votes. A leader that no quorum answers for this long steps down.
    pub election_ticks: u32,
    /// The interval at which the leader sends heartbeats to each follower.
    pub heartbeat_ticks: u32,
    /// The most bytes of entries in one append.
    pub max_append_bytes: usize,
    /// The most unanswered appends to one follower.
    pub max_inflight_appends: usize,
    /// The leader sends no append with entries to a follower while at least this many bytes of them are unanswered. The
    /// last append may exceed the bound, so at most this and one append are in flight, as with etcd's
    /// `MaxInflightBytes`.
    pub max_inflight_bytes: usize,
    /// The most bytes of entries that may be proposed and not yet committed.
    pub max_uncommitted_bytes: usize,
    /// The bytes of entries kept in memory for followers that are slightly behind.
    pub max_cached_bytes: usize,
    /// The most bytes of committed entries in one `Ready`.
    pub max_apply_bytes: usize,
    /// The most bytes of committed entries that may wait to be applied, but for what one leader has on its way. A follower beyond it
    /// takes no new entries, so that it isn't acknowledged what can't be carried out soon. It should be well above what a restart replays.
    pub max_backlog_bytes: u64,
    /// True if a leader that can't reach a quorum for an election timeout steps down. Leases need it.
    pub check_quorum: bool,
    /// True if the leader serves reads from the lease that a quorum's answers grant, without a round trip. Assumes that
    /// no clock runs more than twice as fast as another, so it is off by default.
    pub lease_reads: bool,
    /// True if this member keeps the leases of leaders also without `lease_reads`: it gives no vote for an election timeout
    /// after its start, because its former process may have answered a leader with a lease. A leader uses leases only if all
    /// voters keep them.
    pub keeps_leases: bool,
    /// The length of a tick in milliseconds, by which members compare their election timeouts. Everything else is in ticks.
    pub tick_ms: u32,
    /// The highest feature level that this member supports. Members tell the leader; the level has no meaning to Raft.
    pub feature_level: u32,
    /// The known bug to put back; none outside of tests and the simulator.
    pub bugs: Bugs,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            election_ticks: 40,
            heartbeat_ticks: 10,
            max_append_bytes: 1 << 20,
            max_inflight_appends: 16,
            max_inflight_bytes: 8 << 20,
            max_uncommitted_bytes: 64 << 20,
            max_cached_bytes: 32 << 20,
            max_apply_bytes: 4 << 20,
            max_backlog_bytes: 256 << 20,
            check_quorum: true,
            lease_reads: false,
            keeps_leases: false,
            tick_ms: 10,
            feature_level: 0,
            bugs: Bugs::NONE,
        }
    }
}

/// A setting that can't work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionsError(pub &'static str);

impl Options {
    /// Returns the promise of this member to leaders with leases.
    pub(crate) fn lease_promise(&self) -> LeasePromise {
        let keeps = self.lease_reads || self.keeps_leases;
        LeasePromise {
            lease_reads: self.lease_reads,
            election_ms: if keeps {
                self.election_ticks.saturating_mul(self.tick_ms)
            } else {
                0
            },
        }
    }

    /// Refuses settings that are out of range or contradict each other.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let checks = [
            (
                self.heartbeat_ticks == 0,
                "heartbeat_ticks must be at least 1",
            ),
            (
                self.election_ticks < self.heartbeat_ticks.saturating_mul(3),
                "election_ticks must be at least 3 times heartbeat_ticks",
            ),
            (
                self.max_append_bytes == 0,
                "max_append_bytes must be at least 1",
            ),
            (
                self.max_inflight_appends == 0,
                "max_inflight_appends must be at least 1",
            ),
            (
                self.max_inflight_bytes < self.max_append_bytes,
                "max_inflight_bytes must be at least max_append_bytes",
            ),
            (
                self.max_uncommitted_bytes == 0,
                "max_uncommitted_bytes must be at least 1",
            ),
            (
                self.max_apply_bytes == 0,
                "max_apply_bytes must be at least 1",
            ),
            (
                self.max_backlog_bytes == 0,
                "max_backlog_bytes must be at least 1",
            ),
            (
                self.lease_reads && !self.check_quorum,
                "lease_reads needs check_quorum",
            ),
            (self.tick_ms == 0, "tick_ms must be at least 1"),
        ];
        match checks.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => Err(OptionsError(what)),
            None => Ok(()),
        }
    }
}
