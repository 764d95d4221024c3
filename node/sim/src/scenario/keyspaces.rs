//! Draws the clients of keyspaces, and the reads that followers serve.

use super::{Scenario, large};
use crate::keyspace_client::KeyspaceOptions;
use crate::queue::MILLI;
use crate::rng::SimRng;

impl Scenario {
    /// Returns the feature level of processes that are not older than others.
    pub(crate) fn feature_level(&self) -> u32 {
        match self.keyspaces {
            Some(_) => replica::FEATURE_LEVEL,
            // Without keyspaces the next level is the same, but worlds of known bugs would change.
            None => replica::DIGEST_LEVEL,
        }
    }

    /// Lets followers serve reads in a part of the worlds, most often of keyspaces.
    pub(super) fn draw_follower_reads(&mut self, rng: &mut SimRng) {
        let share = if self.keyspaces.is_some() {
            750_000
        } else {
            250_000
        };
        if rng.chance(share) {
            self.follower_reads = *rng.pick(&[100_000, 500_000, 1_000_000]).unwrap_or(&0);
        }
        // The others elect another leader, which the two don't hear of.
        if self.follower_reads > 0 && self.hosts > 3 && rng.coin() {
            self.stranded_leaders = 20_000;
            self.replica.raft.check_quorum = false;
            self.replica.raft.lease_reads = false;
        }
    }

    /// Lets clients use keyspaces in a part of the worlds.
    pub(super) fn draw_keyspaces(&mut self, rng: &mut SimRng) {
        if !rng.chance(250_000) {
            return;
        }
        let clients = rng.between(1, 4);
        let requests = rng.magnitude(40, 600);
        let pause = 2 * self.duration * clients / requests;
        self.keyspaces = Some(KeyspaceOptions {
            clients: large(clients),
            names: rng.between(1, 4),
            keys: rng.between(1, 6),
            pipeline: large(rng.between(1, 4)),
            think: (MILLI, pause.max(2 * MILLI)),
            patience: rng.between(50 * MILLI, 600 * MILLI),
            repeats_writes: false,
            watches: 0,
            renewals: 0,
            grants: 0,
            padding: 0,
        });
        if rng.coin() {
            self.replica.max_apply_work = rng.magnitude(200, 20_000);
        }
        // A link that needs a second for each row makes a world slow, and shows nothing else.
        let paced = self
            .cluster
            .as_ref()
            .is_some_and(|it| it.mover.max_bytes_per_second > 0);
        let slow = paced || self.links.snapshot_bytes_per_second.is_some();
        if let Some(keyspaces) = &mut self.keyspaces {
            keyspaces.watches = large(rng.between(0, 4));
            keyspaces.renewals = *rng.pick(&[0, 100_000, 300_000]).unwrap_or(&0);
            keyspaces.grants = *rng.pick(&[0, 50_000, 300_000]).unwrap_or(&0);
            if rng.chance(150_000) && !slow {
                // Longer than the names that a journal keeps, with room for a part that ends with the longest row.
                keyspaces.padding = 17_000;
                self.replica.max_entry_bytes = self.replica.max_entry_bytes.max(1 << 18);
            }
        }
        // The largest row, a record, and the fields around it fit into a part, and a part into an entry.
        self.replica.max_entry_bytes = self.replica.max_entry_bytes.max(8_192);
    }
}
