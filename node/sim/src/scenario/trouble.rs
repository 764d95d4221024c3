//! Draws the behaviour of links, and the faults.

use super::{Scenario, small};
use crate::fault::{Faults, Recurrence};
use crate::queue::{MILLI, Micros, SECOND};
use crate::rng::SimRng;

impl Scenario {
    pub(super) fn draw_links(&mut self, rng: &mut SimRng) {
        let links = &mut self.links;
        links.delay = (50, rng.magnitude(200, 20 * MILLI));
        if rng.coin() {
            links.loss = small(rng.magnitude(1_000, 250_000));
        }
        if rng.coin() {
            links.duplication = small(rng.magnitude(1_000, 200_000));
            if rng.coin() {
                links.duplicate_late_by = rng.magnitude(MILLI, 2 * SECOND);
            }
        }
        links.reordering = rng.coin();
        if rng.coin() {
            links.late = small(rng.magnitude(1_000, 150_000));
            links.late_by = rng.magnitude(20 * MILLI, 2 * SECOND);
        }
    }

    pub(super) fn draw_faults(&mut self, rng: &mut SimRng) {
        let mut maybe = |share: u32, every: (Micros, Micros), lasts: (Micros, Micros)| {
            let recurrence = Recurrence {
                every: rng.magnitude(every.0, every.1),
                lasts: rng.magnitude(lasts.0, lasts.1),
            };
            rng.chance(share).then_some(recurrence)
        };
        let long = (300 * MILLI, 6 * SECOND);
        let rare = (SECOND, 10 * SECOND);
        let shorter = (50 * MILLI, 4 * SECOND);
        self.faults = Faults {
            partitions: maybe(500_000, long, shorter),
            false_disconnects: maybe(300_000, (100 * MILLI, 3 * SECOND), (1, 1)),
            crashes: maybe(500_000, long, shorter),
            outages: None,
            retirements: None,
            late_calls: None,
            slow_groups: None,
            blackouts: maybe(250_000, rare, (10 * MILLI, SECOND)),
            pauses: maybe(400_000, long, shorter),
            slow_disks: maybe(400_000, long, (10 * MILLI, SECOND)),
            full_disks: maybe(300_000, long, shorter),
            wipes: maybe(350_000, rare, shorter),
            damage: maybe(250_000, rare, shorter),
            clock_jumps: maybe(200_000, long, (1, 1)),
            membership: maybe(400_000, (100 * MILLI, 2 * SECOND), (1, 1)),
            transfers: maybe(400_000, (100 * MILLI, 3 * SECOND), (1, 1)),
            leader_faults: maybe(400_000, (150 * MILLI, 2 * SECOND), (50 * MILLI, SECOND)),
        };
        if rng.chance(300_000) {
            self.storm(rng);
        }
    }

    /// Sets short terms, single-entry appends, and messages that outlive their senders' terms.
    fn storm(&mut self, rng: &mut SimRng) {
        let replica = &mut self.replica;
        replica.tick_ms = small(rng.between(8, 20));
        replica.raft.heartbeat_ticks = 1;
        replica.raft.election_ticks = small(rng.between(4, 8));
        if rng.coin() {
            replica.raft.max_append_bytes = 64;
            replica.raft.max_inflight_appends = 1;
            replica.raft.max_inflight_bytes = 64;
            // With one entry per append, a follower with a slow disk would never catch up.
            self.disks.sync = (50, 800);
        }
        let every = rng.between(100 * MILLI, 600 * MILLI);
        let lasts = rng.between(40 * MILLI, 400 * MILLI);
        self.faults.leader_faults = Some(Recurrence { every, lasts });
        self.links.reordering = true;
        self.links.late = small(rng.between(20_000, 200_000));
        self.links.late_by = rng.between(100 * MILLI, SECOND);
        if rng.coin() {
            self.links.duplication = 300_000;
            self.links.duplicate_late_by = rng.between(100 * MILLI, SECOND);
        }
        if rng.coin() {
            self.replica.compact_after_bytes = rng.magnitude(128, 512);
        }
        if self.hosts >= 4 && rng.chance(700_000) {
            // Other partitions would restore the links too early, and long pauses would prevent elections.
            self.faults.partitions = None;
            self.faults.leader_faults = None;
            self.faults.pauses = None;
            self.links.duplication = 300_000;
            self.links.duplicate_late_by = rng.between(100 * MILLI, SECOND);
            self.isolated_leaders = small(rng.between(300_000, 900_000));
            self.replica.raft.check_quorum = rng.coin();
            self.replica.raft.lease_reads &= self.replica.raft.check_quorum;
        }
        self.duration = self.duration.min(6 * SECOND);
        self.stormy = true;
    }
}
