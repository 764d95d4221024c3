//! Draws snapshots that take long, and load that lasts as long as they do.

use super::{Scenario, large};
use crate::queue::MILLI;
use crate::rng::SimRng;

impl Scenario {
    /// Draws snapshots of many chunks, and links on which they take long.
    pub(super) fn draw_snapshots(&mut self, rng: &mut SimRng) {
        let chunk_bytes = large(rng.magnitude(200, 4_096));
        let rate = rng.magnitude(10_000, 200_000);
        if self.client.padding > 0 {
            return;
        }
        if rng.coin() {
            self.disks.chunk_bytes = Some(chunk_bytes);
        }
        if rng.chance(300_000) {
            self.links.snapshot_bytes_per_second = Some(rate);
        }
        if self.cluster.is_none() && self.hosts > 2 && !self.stormy && rng.chance(400_000) {
            self.write_during_snapshots(rng);
        }
    }

    /// Sets steady writes that go on after the faults, of more bytes during a snapshot than the log holds.
    fn write_during_snapshots(&mut self, rng: &mut SimRng) {
        self.load_lasts = true;
        self.disks.chunk_bytes = Some(large(rng.between(200, 800)));
        self.disks.sync = (50, 2 * MILLI);
        self.disks.flush = (MILLI, 20 * MILLI);
        self.links.snapshot_bytes_per_second = Some(rng.between(4_000, 20_000));
        self.replica.compact_after_bytes = rng.between(500, 2_000);
        let replica = &mut self.replica;
        if rng.coin() {
            // After its snapshot a follower gets the rest in many small appends, while the log is compacted many times.
            replica.raft.max_append_bytes = large(rng.between(256, 512));
            replica.raft.max_inflight_appends = 2;
            replica.raft.max_inflight_bytes = 1_024;
        } else {
            // A window takes longer than two heartbeats.
            replica.raft.max_append_bytes = 4_096;
            replica.raft.max_inflight_bytes = 16_384;
            replica.raft.heartbeat_ticks = 1;
            replica.raft.election_ticks = 10;
            replica.tick_ms = 15;
            replica.snapshot_window = 4;
            self.disks.chunk_bytes = Some(large(rng.between(300, 500)));
            self.links.snapshot_bytes_per_second = Some(rng.between(6_000, 12_000));
        }
        self.clients = large(rng.between(3, 6));
        self.client.keys = rng.between(30, 100);
        self.client.think = (MILLI, rng.between(10 * MILLI, 40 * MILLI));
        self.client.reads = 200_000;
    }
}
