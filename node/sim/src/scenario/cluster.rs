//! Draws the groups of a world, how shards move among them, and the faults at the steps of moves.

use shardctrler::HistoryLimits;
use shardkv::{JournalLimits, MoverOptions};

use super::{AtSteps, Cluster, Scenario, large, small};
use crate::fault::Recurrence;
use crate::queue::{MILLI, SECOND};
use crate::rng::SimRng;

impl Scenario {
    /// Gives most worlds several groups.
    pub(super) fn draw_cluster(&mut self, rng: &mut SimRng) {
        if rng.chance(350_000) {
            return;
        }
        self.hosts = *rng.pick(&[1, 2, 3, 3, 3, 3]).unwrap_or(&3);
        self.members = self.hosts;
        self.genesis.shards = small(rng.between(1, 10));
        self.duration = self.duration.min(8 * SECOND);
        // Small chunks, so that most shards take many.
        let chunk_bytes = small(rng.magnitude(1, 4_096));
        let mover = MoverOptions {
            max_concurrent_pulls: small(rng.between(1, 4)),
            max_bytes_per_second: if rng.chance(200_000) && self.client.padding == 0 {
                // At least a hundred chunks per second, because a shard may have dozens of moves to catch up with.
                rng.magnitude(20_000, 200_000)
                    .max(100 * u64::from(chunk_bytes))
            } else {
                0
            },
            chunk_bytes,
            min_retry_ms: small(rng.magnitude(1, 50)),
            max_retry_ms: small(rng.between(50, 400)),
        };
        let history = if rng.coin() {
            HistoryLimits {
                keep: rng.between(1, 4),
                step: rng.between(1, 4),
                keep_cuts: rng.between(1, 8),
                ..HistoryLimits::default()
            }
        } else {
            HistoryLimits::default()
        };
        let survives_without = usize::from(rng.chance(300_000));
        // Journals that end early, also between a report and its cut. While clients write, copies may then never catch up.
        let mut journals = JournalLimits {
            named_bytes: match rng.below(2) {
                0 => rng.magnitude(20, 1_000),
                _ => JournalLimits::default().named_bytes,
            },
            ttl_ms: match rng.below(3) {
                0 => rng.magnitude(50, 5_000),
                _ => JournalLimits::default().ttl_ms,
            },
        };
        if survives_without > 0 {
            journals = JournalLimits::default();
        }
        let groups = large(rng.between(2, 4));
        self.cluster = Some(Cluster {
            groups,
            joined: large(rng.between(1, groups as u64)),
            controllers: *rng.pick(&[1, 3, 3, 3]).unwrap_or(&3),
            mover,
            config_clients: large(rng.between(1, 2)),
            changes: Some(rng.magnitude(80 * MILLI, 2 * SECOND)),
            journals,
            history,
            repeated_steps: if rng.coin() {
                small(rng.magnitude(10_000, 300_000))
            } else {
                0
            },
            late_steps: 0,
            at_steps: AtSteps::default(),
            forwards: 500_000,
            survives_without,
        });
        let lasts = rng.magnitude(100 * MILLI, 4 * SECOND);
        let every = rng.magnitude(500 * MILLI, 5 * SECOND);
        self.faults.outages = rng.coin().then_some(Recurrence { every, lasts });
        // Retries of clients would fill a smaller queue, leave no room for steps, and so keep shards from arriving.
        self.replica.max_pending_requests = self.replica.max_pending_requests.max(64);
        self.client.keys = rng.between(2, 12);
        match rng.below(10) {
            0 | 1 => self.set_clocks_apart(rng),
            2..6 => self.skew_ms = self.skew_ms.min(self.genesis.session_ttl_ms / 8),
            // Wrong by an hour to ten years.
            6 | 7 => self.skew_ms = rng.magnitude(3_600_000, 315_360_000_000),
            _ => {}
        }
        let every = rng.between(5 * MILLI, 50 * MILLI);
        let lasts = rng.magnitude(SECOND, 8 * SECOND);
        self.faults.retirements = rng.coin().then_some(Recurrence { every, lasts });
        let every = rng.magnitude(500 * MILLI, 5 * SECOND);
        let lasts = rng.magnitude(SECOND, 8 * SECOND);
        self.faults.slow_groups = rng.chance(400_000).then_some(Recurrence { every, lasts });
        self.draw_steps(rng);
    }

    /// Draws late calls, and the faults at the steps of moves.
    fn draw_steps(&mut self, rng: &mut SimRng) {
        let every = rng.magnitude(2 * MILLI, 200 * MILLI);
        let has_late_calls = rng.chance(600_000);
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let mut maybe = |share: u32, least: u64, most: u64| {
            let drawn = small(rng.magnitude(least, most));
            if rng.chance(share) { drawn } else { 0 }
        };
        cluster.late_steps = maybe(500_000, 10_000, 300_000);
        cluster.at_steps = AtSteps {
            late_calls: maybe(700_000, 50_000, 800_000),
            strikes: maybe(500_000, 10_000, 200_000),
            targets: maybe(400_000, 10_000, 300_000),
        };
        if self.hosts == 1 && cluster.groups > 2 && rng.chance(150_000) {
            // Most groups are dead, and the few others must not wait for them.
            cluster.groups = 12;
            cluster.joined = large(rng.between(2, 12));
            cluster.survives_without = 10;
            cluster.journals = JournalLimits::default();
            self.genesis.shards = small(rng.between(6, 16));
        }
        if has_late_calls {
            self.faults.late_calls = Some(Recurrence { every, lasts: 1 });
        } else {
            cluster.at_steps.late_calls = 0;
        }
        if rng.chance(250_000) {
            self.copy_busy_shards(rng);
        }
    }

    /// Sets many keys, frequent writes and parts of several rows: much changes while a shard is copied, and some of it not again
    /// before the fence.
    fn copy_busy_shards(&mut self, rng: &mut SimRng) {
        self.genesis.shards = small(rng.between(1, 3));
        self.clients = large(rng.between(3, 6));
        self.client.keys = rng.between(30, 120);
        self.client.think = (MILLI, rng.between(10 * MILLI, 60 * MILLI));
        self.client.reads = 200_000;
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        cluster.journals = JournalLimits::default();
        cluster.mover.chunk_bytes = small(rng.between(200, 1_500));
        cluster.mover.max_bytes_per_second = 0;
        cluster.changes = Some(rng.between(200 * MILLI, SECOND));
        cluster.late_steps = small(rng.magnitude(20_000, 300_000));
        if rng.coin() {
            // Leaders change between the parts of a copy.
            cluster.at_steps.strikes = small(rng.between(100_000, 400_000));
        }
    }

    /// Sets clocks apart by up to a session's lifetime, and repeats writes: a group with a fast clock forgets a
    /// session, then its shard moves to a group with a slow clock.
    fn set_clocks_apart(&mut self, rng: &mut SimRng) {
        self.hosts = 1;
        self.members = 1;
        self.duration = self.duration.min(5 * SECOND);
        self.genesis.shards = small(rng.between(1, 3));
        self.genesis.session_ttl_ms = 1_000;
        self.skew_ms = rng.between(100, 1_000);
        let every = rng.between(200 * MILLI, SECOND);
        self.faults.clock_jumps = Some(Recurrence { every, lasts: 1 });
        if let Some(cluster) = &mut self.cluster {
            cluster.groups = 2;
            cluster.joined = 2;
            cluster.changes = Some(rng.between(200 * MILLI, 600 * MILLI));
        }
        self.clients = large(rng.between(2, 5));
        let client = &mut self.client;
        client.keys = rng.between(2, 4);
        client.think = (MILLI, 40 * MILLI);
        client.copies = 400_000;
        client.copies_late_by = SECOND;
        // Only a young session that was forgotten could be taken for new.
        client.renew_after = Some(300 * MILLI);
    }
}
