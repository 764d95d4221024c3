//! The scenario of a seed: the cluster, its options, its clients, and its faults.
//!
//! The simulator uses swarm testing: each class of faults is on in a part of the seeds, with a drawn intensity. A world
//! with every fault at once makes too little progress to have something to lose. A world with only crashes and slow
//! disks makes enough.

mod snapshots;

use shardctrler::HistoryLimits;
use shardkv::{Genesis, JournalLimits, MoverOptions};

use crate::bug::Bug;
use crate::client::ClientOptions;
use crate::disk::DiskOptions;
use crate::fault::{Faults, Recurrence};
use crate::network::LinkOptions;
use crate::queue::{MILLI, Micros, SECOND};
use crate::rng::{Concern, SimRng};

/// The settings of a world.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed of all random numbers.
    pub seed: u64,
    /// The number of addresses.
    pub hosts: usize,
    /// The number of hosts that are members at first. The others have empty disks.
    pub members: usize,
    /// The duration of the phase with faults.
    pub duration: Micros,
    /// The options of replicas. The world fills in the addresses.
    pub replica: replica::Options,
    /// The group's genesis.
    pub genesis: Genesis,
    /// The behaviour of links in the phase with faults.
    pub links: LinkOptions,
    /// The latencies of disks.
    pub disks: DiskOptions,
    /// The faults that happen.
    pub faults: Faults,
    /// The number of clients.
    pub clients: usize,
    /// The behaviour of clients.
    pub client: ClientOptions,
    /// The largest error of a wall clock, in milliseconds.
    pub skew_ms: u64,
    /// The largest drift of a clock, in millionths.
    pub drift: u32,
    /// The most missed ticks that a process makes up for after a pause.
    pub catch_up_ticks: u32,
    /// The capacity of an inbox, in messages and requests.
    pub inbox: usize,
    /// True if the administrator doesn't wait for earlier membership changes.
    pub impatient_admin: bool,
    /// True if clients go on until all members have caught up, although the faults have ended.
    pub load_lasts: bool,
    /// True if leaders change often and clients are busy.
    pub stormy: bool,
    /// The share, of a million, of new leaders that are cut off with one companion before their first message leaves. A
    /// few of these in a row are figure 8 of the Raft paper.
    pub isolated_leaders: u32,
    /// The replica groups among which shards move, or `None` for one group that owns all shards.
    pub cluster: Option<Cluster>,
    /// The known bug that is put back.
    pub bug: Option<Bug>,
}

/// The replica groups and the controllers. `hosts` and `members` of the scenario hold for each replica group.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The number of replica groups. Their gids count from 1.
    pub groups: usize,
    /// The number of groups that join when the world begins.
    pub joined: usize,
    /// The number of controllers.
    pub controllers: usize,
    /// The options of movers.
    pub mover: MoverOptions,
    /// The number of config clients, which change the configuration independently.
    pub config_clients: usize,
    /// The mean time between two drawn changes of a config client, or `None` if it only sends queued changes.
    pub changes: Option<Micros>,
    /// The limits of journals.
    pub journals: JournalLimits,
    /// The limits of the controllers' history.
    pub history: HistoryLimits,
    /// The share, of a million, of hand-off steps that enter a log a second time, later.
    pub repeated_steps: u32,
    /// The share, of a million, of hand-off steps that enter a log late only.
    pub late_steps: u32,
    /// The faults at the steps of moves.
    pub at_steps: AtSteps,
    /// The share, of a million, of delayed requests that are forwarded to the shard's owner at that time.
    pub forwards: u32,
    /// The number of groups that stay down in the liveness phase until everything that doesn't need them has recovered.
    pub survives_without: usize,
}

/// The shares, of a million, of the steps of moves at which a fault happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtSteps {
    /// Calls of before that concern the shard come again.
    pub late_calls: u32,
    /// A leader that takes part in the move is struck.
    pub strikes: u32,
    /// The shard gets another target.
    pub targets: u32,
}

impl Scenario {
    /// Returns a scenario with no faults and one client.
    pub fn quiet(seed: u64, hosts: usize) -> Self {
        Self {
            seed,
            hosts,
            members: hosts,
            duration: 5 * SECOND,
            replica: replica::Options {
                raft: raft::Options {
                    election_ticks: 10,
                    heartbeat_ticks: 3,
                    ..raft::Options::default()
                },
                tick_ms: 30,
                ..replica::Options::default()
            },
            genesis: Genesis {
                shards: 4,
                ..Genesis::default()
            },
            links: LinkOptions::default(),
            disks: DiskOptions::default(),
            faults: Faults::default(),
            clients: 1,
            client: ClientOptions::default(),
            skew_ms: 0,
            drift: 0,
            catch_up_ticks: 1,
            inbox: 4_096,
            impatient_admin: false,
            load_lasts: false,
            stormy: false,
            isolated_leaders: 0,
            cluster: None,
            bug: None,
        }
    }

    /// Returns a scenario with several groups, no faults, one client, and one config client that sends only queued
    /// changes. The first group joins when the world begins.
    pub fn quiet_cluster(seed: u64, groups: usize, hosts: usize) -> Self {
        let mut scenario = Self::quiet(seed, hosts);
        scenario.genesis.shards = 10;
        scenario.cluster = Some(Cluster {
            groups,
            joined: 1,
            controllers: 3,
            mover: MoverOptions::default(),
            config_clients: 1,
            changes: None,
            journals: JournalLimits::default(),
            history: HistoryLimits::default(),
            repeated_steps: 0,
            late_steps: 0,
            at_steps: AtSteps::default(),
            forwards: 0,
            survives_without: 0,
        });
        scenario
    }

    /// Draws the scenario of `seed`.
    pub fn draw(seed: u64) -> Self {
        let mut rng = SimRng::new(seed, Concern::Scenario);
        let hosts = match rng.below(100) {
            0..8 => 1,
            8..14 => 2,
            14..62 => 3,
            62..70 => 4,
            70..95 => 5,
            _ => 7,
        };
        let mut scenario = Self::quiet(seed, hosts);
        scenario.duration = rng.magnitude(3 * SECOND, 14 * SECOND);
        scenario.draw_options(&mut rng);
        scenario.draw_links(&mut rng);
        scenario.draw_faults(&mut rng);
        scenario.draw_clients(&mut rng);
        scenario.draw_cluster(&mut SimRng::new(seed, Concern::Cluster));
        scenario.draw_snapshots(&mut SimRng::new(seed, Concern::Snapshots));
        scenario.settle(&mut rng);
        scenario
    }

    /// Puts a known bug back.
    pub fn put_back(&mut self, bug: Bug) {
        self.bug = Some(bug);
        if let Bug::Request(bug) = bug {
            self.client.bugs = request::Bugs::with(bug);
        }
    }

    fn draw_options(&mut self, rng: &mut SimRng) {
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

    /// Gives most worlds several groups.
    fn draw_cluster(&mut self, rng: &mut SimRng) {
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

    fn draw_links(&mut self, rng: &mut SimRng) {
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

    fn draw_faults(&mut self, rng: &mut SimRng) {
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

    fn draw_clients(&mut self, rng: &mut SimRng) {
        self.clients = large(rng.between(1, 6));
        let client = &mut self.client;
        client.keys = rng.between(1, 6);
        client.pipeline = large(rng.magnitude(1, 8));
        // The approximate number of operations of all clients together.
        let least = if self.stormy { 500 } else { 60 };
        let operations = rng.magnitude(least, 1_500);
        let pause = 2 * self.duration * self.clients as u64 / operations;
        client.think = (MILLI, pause.max(2 * MILLI));
        client.unary = 250_000;
        client.patience = rng.between(50 * MILLI, 600 * MILLI);
        client.deadline = rng.between(500 * MILLI, 6 * SECOND);
        client.reads = small(rng.between(100_000, 700_000));
        client.scans = small(rng.between(0, 150_000));
        if rng.coin() {
            client.copies = small(rng.magnitude(10_000, 400_000));
            client.copies_late_by = rng.magnitude(MILLI, 5 * SECOND);
        }
        if rng.chance(400_000) {
            client.silences = small(rng.magnitude(2_000, 50_000));
            client.silence = self.genesis.session_ttl_ms.min(4_000) * MILLI + 500 * MILLI;
        }
        if rng.chance(300_000) {
            client.sessionless = small(rng.between(10_000, 300_000));
        }
        if rng.coin() {
            client.renew_after = Some(self.genesis.session_ttl_ms * MILLI / 2);
        }
        if rng.chance(20_000) {
            client.padding = 20_000;
        }
    }

    /// Removes settings that contradict each other.
    fn settle(&mut self, rng: &mut SimRng) {
        if self.replica.raft.lease_reads {
            // A lease relies on the clocks: a process must make up for every missed tick, and no clock may run twice as
            // fast as another.
            self.catch_up_ticks = 1_000;
            self.drift = self.drift.min(50_000);
        }
        if self.hosts < 3 {
            // The loss of one disk would lose the quorum.
            self.faults.wipes = None;
            self.faults.damage = None;
        }
        if self.faults.membership.is_some() && self.hosts > 1 && rng.coin() {
            self.members = large(rng.between(1, self.hosts as u64));
        }
        if self.faults.wipes.is_some() || self.faults.damage.is_some() {
            self.members = self.hosts;
        }
        if self.faults.wipes.is_none() && self.faults.damage.is_none() {
            self.impatient_admin = rng.coin();
        }
        if self.genesis.max_sessions_per_shard < 100 {
            // The table has room again when sessions expire. A short lifetime keeps the liveness phase from waiting.
            self.genesis.session_ttl_ms = self.genesis.session_ttl_ms.min(2_000);
            let least = small(4 * self.clients as u64 + 1);
            self.genesis.max_sessions_per_shard = self.genesis.max_sessions_per_shard.max(least);
        }
        if self.client.padding > 0 {
            self.replica.max_value_bytes = 100_000;
            self.replica.max_entry_bytes = 200_000;
        }
        if let Some(cluster) = &self.cluster {
            // A part and the row that ends it fit into an entry, as the options of a node demand.
            let part = cluster.mover.chunk_bytes as usize + self.replica.max_value_bytes as usize;
            self.replica.max_entry_bytes = self.replica.max_entry_bytes.max(part + 1_024);
        }
    }
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn large(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
