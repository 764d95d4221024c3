//! Draws how processes run: by which rule they count ticks, how they stop, what they forward, and the mistakes of a rolling change.

use super::{Scenario, large, small};
use crate::fault::Recurrence;
use crate::queue::{MILLI, SECOND};
use crate::rng::{Concern, SimRng};

impl Scenario {
    /// Draws how processes run.
    pub(super) fn draw_processes(&mut self, rng: &mut SimRng) {
        if rng.chance(600_000) {
            // The server's rule.
            self.catch_up_ticks = self.replica.raft.heartbeat_ticks;
        }
        self.disks.refuses_commits = rng.coin();
        if rng.coin() {
            self.disks.cuts_in_installs = small(rng.between(100_000, 900_000));
        }
        if rng.coin() {
            self.orderly_stops = small(rng.between(100_000, 900_000));
        }
        if rng.coin() {
            self.forwarded = small(rng.between(50_000, 900_000));
        }
        self.pages_wait = rng.magnitude(MILLI, SECOND);
        self.mixed_options = rng.chance(300_000);
        if rng.coin() {
            self.old_answers = small(rng.between(100_000, 900_000));
        }
        if self.replica.raft.lease_reads && self.hosts > 2 && rng.coin() {
            self.strike_transfers(rng);
        }
        let free = self.cluster.is_none() && !self.stormy && !self.load_lasts;
        if free && self.hosts > 2 && rng.chance(300_000) {
            self.grow_tails(rng);
        }
    }

    /// Lets hosts start for the first time, with empty disks, in a part of the worlds.
    pub(super) fn draw_first_starts(&mut self, rng: &mut SimRng) {
        let within = rng.magnitude(10 * MILLI, 2 * SECOND);
        if self.stormy || self.load_lasts || !rng.chance(250_000) {
            return;
        }
        self.first_starts = Some(within);
        // A group has all its hosts from the start, and all of the same version.
        self.faults.membership = None;
        if let Some(cluster) = &mut self.cluster {
            cluster.survives_without = 0;
        }
    }

    /// Lets leaderships move often, and cuts off the leader that told another node to campaign.
    fn strike_transfers(&mut self, rng: &mut SimRng) {
        let every = rng.between(50 * MILLI, 400 * MILLI);
        self.faults.transfers = Some(Recurrence { every, lasts: 1 });
        self.faults.partitions = None;
        self.isolated_transfers = small(rng.between(200_000, 800_000));
        self.client.reads = self.client.reads.max(500_000);
    }

    /// Lets leaders that are cut off collect many entries that nobody else gets, and repairs such logs in tiny appends.
    fn grow_tails(&mut self, rng: &mut SimRng) {
        let raft = &mut self.replica.raft;
        raft.check_quorum = false;
        raft.lease_reads = false;
        if rng.coin() {
            // A leader that is cut off with a companion gets acknowledgements of entries that the others overwrite.
            (self.hosts, self.members) = (5, 5);
            self.old_answers = small(rng.between(500_000, 1_000_000));
        }
        raft.max_append_bytes = 64;
        raft.max_inflight_appends = large(rng.between(1, 3));
        raft.max_inflight_bytes = 128;
        raft.max_uncommitted_bytes = raft.max_uncommitted_bytes.max(16_384);
        if rng.coin() {
            self.replica.compact_after_bytes = 1 << 20;
        } else {
            // Followers that are behind need a snapshot, and some have a longer log, which conflicts with it.
            self.replica.compact_after_bytes = rng.magnitude(256, 2_048);
        }
        self.replica.max_pending_requests = 65_536;
        self.disks.sync = (50, 800);
        self.clients = large(rng.between(3, 6));
        self.client.keys = rng.between(20, 60);
        self.client.pipeline = 8;
        self.client.think = (MILLI, rng.between(5 * MILLI, 20 * MILLI));
        self.client.reads = 100_000;
        self.faults.partitions = None;
        self.faults.pauses = None;
        let every = rng.between(300 * MILLI, SECOND);
        let lasts = rng.between(200 * MILLI, 800 * MILLI);
        self.faults.leader_faults = Some(Recurrence { every, lasts });
        self.isolated_leaders = small(rng.between(50_000, 300_000));
        if rng.coin() {
            // Answers outlive the terms in which they were sent.
            self.links.reordering = true;
            self.links.late = small(rng.between(20_000, 100_000));
            self.links.late_by = rng.between(100 * MILLI, SECOND);
        }
        self.duration = self.duration.min(5 * SECOND);
    }

    /// Returns the options of a host's process.
    pub fn replica_options(&self, host: usize) -> replica::Options {
        let mut options = self.replica.clone();
        if !self.mixed_options {
            return options;
        }
        let rng = &mut SimRng::new(self.seed, Concern::Options(small(host as u64)));
        let raft = &mut options.raft;
        if rng.coin() {
            raft.max_append_bytes = large(rng.magnitude(64, 65_536));
            raft.max_inflight_appends = large(rng.between(1, 64));
            raft.max_inflight_bytes = raft.max_append_bytes * large(rng.between(1, 8));
        }
        if rng.coin() {
            raft.max_cached_bytes = large(rng.magnitude(128, 65_536));
        }
        if !raft.lease_reads {
            // A lease relies on the election timeouts of all members.
            raft.election_ticks += small(rng.between(0, u64::from(raft.election_ticks)));
            raft.check_quorum = !rng.chance(300_000);
        } else if host.is_multiple_of(3) {
            // The leader must count the shortest election timeout, and what each voter promises.
            raft.election_ticks *= small(rng.between(1, 3));
            raft.lease_reads = !rng.coin();
        }
        if rng.coin() {
            options.compact_after_bytes = rng.magnitude(256, 65_536);
        }
        options.snapshot_window = large(rng.between(1, 8));
        options.max_snapshots = large(rng.between(1, 2));
        options
    }
}
