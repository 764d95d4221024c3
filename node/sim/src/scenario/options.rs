//! Draws the options of replicas, the settings of groups, and the clocks and disks of hosts.

use super::{Scenario, large, small};
use crate::queue::{MILLI, SECOND};
use crate::rng::SimRng;

impl Scenario {
    pub(super) fn draw_options(&mut self, rng: &mut SimRng) {
        let replica = &mut self.replica;
        replica.tick_ms = small(rng.between(15, 40));
        let raft = &mut replica.raft;
        raft.heartbeat_ticks = small(rng.between(1, 3));
        raft.election_ticks = raft.heartbeat_ticks * small(rng.between(3, 5)) + 2;
        if rng.coin() {
            raft.max_append_bytes = large(rng.magnitude(64, 4_096));
            raft.max_inflight_appends = large(rng.between(1, 8));
            raft.max_inflight_bytes = raft.max_append_bytes * large(rng.between(1, 8));
            raft.max_apply_bytes = large(rng.magnitude(64, 4_096));
        }
        if rng.coin() {
            raft.max_cached_bytes = large(rng.magnitude(128, 8_192));
        }
        if rng.chance(200_000) {
            raft.max_uncommitted_bytes = large(rng.magnitude(512, 16_384));
        }
        raft.check_quorum = !rng.chance(200_000);
        raft.lease_reads = raft.check_quorum && rng.chance(200_000);
        if rng.chance(700_000) {
            replica.compact_after_bytes = rng.magnitude(256, 16_384);
        }
        if rng.coin() {
            replica.max_entry_bytes = large(rng.magnitude(1_024, 8_192));
            replica.max_value_bytes = small(rng.between(300, 1_000));
        }
        if rng.chance(200_000) {
            replica.max_pending_requests = large(rng.between(1, 16));
        }
        if self.seed.is_multiple_of(4) {
            replica.raft.max_backlog_bytes = 256 << (self.seed / 4 % 8);
        }
        replica.checkpoint_every = 1 + self.seed % 16;
        replica.snapshot_window = large(rng.between(1, 4));
        replica.max_snapshots = large(rng.between(1, 2));
        self.genesis.shards = small(rng.between(1, 8));
        if rng.coin() {
            self.genesis.session_ttl_ms = rng.between(1_000, 3_000);
        }
        if rng.chance(150_000) {
            self.genesis.max_sessions_per_shard = small(rng.between(2, 8));
        }
        if rng.chance(150_000) {
            self.genesis.max_results_per_session = small(rng.between(1, 4));
        }
        if rng.coin() {
            self.skew_ms = rng.magnitude(10, 5_000);
            self.drift = small(rng.magnitude(100, 100_000));
        }
        self.catch_up_ticks = if rng.coin() { 1 } else { 1_000 };
        self.inbox = large(rng.magnitude(64, 4_096));
        let slowest = rng.magnitude(200, 20 * MILLI);
        self.disks.sync = (50, slowest.max(100));
        self.disks.flush = (MILLI, rng.magnitude(2 * MILLI, SECOND));
    }
}
