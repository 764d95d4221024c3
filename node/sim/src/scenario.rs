//! What a seed means: the cluster, its options, its clients, and which faults it meets.
//!
//! Swarm testing: each class of faults is on in half of the seeds, with an intensity of its own. A world in
//! which everything happens at once never gets far enough to have something to lose; one in which only
//! crashes and slow disks happen gets far.

use shardctrler::HistoryLimits;
use shardkv::{Genesis, MoverOptions};

use crate::bug::Bug;
use crate::client::ClientOptions;
use crate::disk::DiskOptions;
use crate::network::LinkOptions;
use crate::queue::{MILLI, Micros, SECOND};
use crate::rng::{Concern, SimRng};

/// How often something happens, and how long it lasts. Both are drawn around these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recurrence {
    /// The mean time between two.
    pub every: Micros,
    /// The most time that one lasts.
    pub lasts: Micros,
}

/// Which faults a world meets; `None` is never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Partitions of all shapes.
    pub partitions: Option<Recurrence>,
    /// Hints that a connection broke when none did.
    pub false_hints: Option<Recurrence>,
    /// Nodes killed between two steps, or inside one, and down for a while.
    pub crashes: Option<Recurrence>,
    /// All nodes of one group killed at once, and down for a while.
    pub outages: Option<Recurrence>,
    /// All nodes killed at once.
    pub blackouts: Option<Recurrence>,
    /// Processes that stand still.
    pub pauses: Option<Recurrence>,
    /// Disks that take long.
    pub slow_disks: Option<Recurrence>,
    /// Disks without space.
    pub full_disks: Option<Recurrence>,
    /// Disks that come back empty.
    pub wipes: Option<Recurrence>,
    /// Records that become unreadable.
    pub damage: Option<Recurrence>,
    /// Wall clocks that jump.
    pub clock_jumps: Option<Recurrence>,
    /// Members added, promoted, removed.
    pub membership: Option<Recurrence>,
    /// Leadership handed over.
    pub transfers: Option<Recurrence>,
    /// The leader cut off, killed, or made to stand still: what makes terms pass quickly.
    pub leader_faults: Option<Recurrence>,
}

/// A world's setting.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What everything is drawn from.
    pub seed: u64,
    /// How many addresses there are.
    pub hosts: usize,
    /// How many of them are members at first; the others are empty.
    pub members: usize,
    /// How long faults happen.
    pub duration: Micros,
    /// The replicas' settings; addresses are filled in.
    pub replica: replica::Options,
    /// The group's genesis.
    pub genesis: Genesis,
    /// How links behave while faults happen.
    pub links: LinkOptions,
    /// How disks behave.
    pub disks: DiskOptions,
    /// Which faults happen.
    pub faults: Faults,
    /// How many clients there are.
    pub clients: usize,
    /// How they behave.
    pub client: ClientOptions,
    /// How far wall clocks are apart, in milliseconds, at most.
    pub skew_ms: u64,
    /// By how many of a million clocks run fast or slow, at most.
    pub drift: u32,
    /// The most ticks that a process makes up for after it stood still.
    pub catch_up_ticks: u32,
    /// How many messages and requests wait for a process that stands still.
    pub inbox: usize,
    /// The administrator asks for changes without waiting for earlier ones.
    pub pushy_admin: bool,
    /// Reigns are short, and clients busy.
    pub stormy: bool,
    /// How many of a million new leaders are cut off with one companion before their first word is out. Figure 8
    /// of the Raft paper is a few of those in a row.
    pub ambushes: u32,
    /// Several groups among which shards move; `None`: one group that has all.
    pub cluster: Option<Cluster>,
    /// A bug put back.
    pub bug: Option<Bug>,
}

/// Groups among which shards move. `hosts` and `members` of the scenario are those of each replica group.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// How many replica groups there are; their gids count from 1.
    pub groups: usize,
    /// How many of them join as the world begins.
    pub joined: usize,
    /// How many controllers there are.
    pub controllers: usize,
    /// How shards are moved.
    pub mover: MoverOptions,
    /// How many config clients change the configuration, each by itself.
    pub config_clients: usize,
    /// The mean time between two changes of a config client; `None`: they only do what they are told.
    pub changes: Option<Micros>,
    /// Which configurations the controllers keep.
    pub history: HistoryLimits,
    /// How many of a million steps enter a log a second time, later.
    pub echoes: u32,
    /// How many of a million requests that come late are forwarded to whom they concern by then.
    pub forwards: u32,
    /// At the end one group stays down until all that doesn't need it is well.
    pub survives_without: bool,
}

impl Scenario {
    /// A quiet world: no faults, one client.
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
            pushy_admin: false,
            stormy: false,
            ambushes: 0,
            cluster: None,
            bug: None,
        }
    }

    /// A quiet world of several groups: no faults, one client, one config client who does what it is told. The first group has
    /// joined.
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
            history: HistoryLimits::default(),
            echoes: 0,
            forwards: 0,
            survives_without: false,
        });
        scenario
    }

    /// What `seed` draws.
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
        scenario.settle(&mut rng);
        scenario
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

    /// Half of the worlds have several groups.
    fn draw_cluster(&mut self, rng: &mut SimRng) {
        if rng.coin() {
            return;
        }
        self.hosts = *rng.pick(&[1, 2, 3, 3, 3, 3]).unwrap_or(&3);
        self.members = self.hosts;
        self.genesis.shards = small(rng.between(1, 10));
        self.duration = self.duration.min(8 * SECOND);
        // So that a shard takes many parts, mostly.
        let chunk_bytes = small(rng.magnitude(1, 4_096));
        let mover = MoverOptions {
            max_concurrent_pulls: small(rng.between(1, 4)),
            max_bytes_per_second: if rng.chance(200_000) && self.client.padding == 0 {
                // A hundred parts a second at least: a shard may have dozens of moves to catch up with.
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
                max: rng.between(8, 64),
                ..HistoryLimits::default()
            }
        } else {
            HistoryLimits::default()
        };
        let groups = large(rng.between(2, 4));
        self.cluster = Some(Cluster {
            groups,
            joined: large(rng.between(1, groups as u64)),
            controllers: *rng.pick(&[1, 3, 3, 3]).unwrap_or(&3),
            mover,
            config_clients: large(rng.between(1, 2)),
            changes: Some(rng.magnitude(50 * MILLI, 2 * SECOND)),
            history,
            echoes: if rng.coin() {
                small(rng.magnitude(10_000, 300_000))
            } else {
                0
            },
            forwards: 500_000,
            survives_without: rng.chance(300_000),
        });
        let lasts = rng.magnitude(100 * MILLI, 4 * SECOND);
        let every = rng.magnitude(500 * MILLI, 5 * SECOND);
        self.faults.outages = rng.coin().then_some(Recurrence { every, lasts });
        // What few requests fill leaves no room for steps: clients' repeats would keep shards from arriving.
        self.replica.max_pending_requests = self.replica.max_pending_requests.max(64);
        self.client.keys = rng.between(2, 12);
        match rng.below(10) {
            0 | 1 => self.set_clocks_apart(rng),
            2..6 => self.skew_ms = self.skew_ms.min(self.genesis.session_ttl_ms / 8),
            _ => {}
        }
    }

    /// Clocks that are as far apart as sessions live, and writes that come again: sessions are forgotten early, then their
    /// shards move to where it is earlier.
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
            cluster.changes = Some(rng.between(80 * MILLI, 300 * MILLI));
        }
        self.clients = large(rng.between(2, 5));
        let client = &mut self.client;
        client.keys = rng.between(2, 4);
        client.think = (MILLI, 40 * MILLI);
        client.copies = 400_000;
        client.copies_late_by = SECOND;
        // Only a young session, once forgotten, could be taken for new.
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
                links.echo_by = rng.magnitude(MILLI, 2 * SECOND);
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
            false_hints: maybe(300_000, (100 * MILLI, 3 * SECOND), (1, 1)),
            crashes: maybe(500_000, long, shorter),
            outages: None,
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

    /// Many short reigns, entries one by one, and messages that outlive their senders' terms.
    fn storm(&mut self, rng: &mut SimRng) {
        let replica = &mut self.replica;
        replica.tick_ms = small(rng.between(8, 20));
        replica.raft.heartbeat_ticks = 1;
        replica.raft.election_ticks = small(rng.between(4, 8));
        if rng.coin() {
            replica.raft.max_append_bytes = 64;
            replica.raft.max_inflight_appends = 1;
            replica.raft.max_inflight_bytes = 64;
            // Entries go one by one: a slow disk would never let a follower catch up.
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
            self.links.echo_by = rng.between(100 * MILLI, SECOND);
        }
        if rng.coin() {
            self.replica.compact_after_bytes = rng.magnitude(128, 512);
        }
        if self.hosts >= 4 && rng.chance(700_000) {
            // Other partitions would mend the cuts too early, and long pauses let nobody be elected.
            self.faults.partitions = None;
            self.faults.leader_faults = None;
            self.faults.pauses = None;
            self.links.duplication = 300_000;
            self.links.echo_by = rng.between(100 * MILLI, SECOND);
            self.ambushes = small(rng.between(300_000, 900_000));
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
        // All clients together do about so many operations.
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

    /// Takes back what can't be had together.
    fn settle(&mut self, rng: &mut SimRng) {
        if self.replica.raft.lease_reads {
            // A lease trusts the clocks: it makes up for every tick missed, and no clock runs twice as fast
            // as another.
            self.catch_up_ticks = 1_000;
            self.drift = self.drift.min(50_000);
        }
        if self.hosts < 3 {
            // A lost disk would be a lost quorum.
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
            self.pushy_admin = rng.coin();
        }
        if self.genesis.max_sessions_per_shard < 100 {
            // Room comes back when sessions expire: soon, or the end would wait for it.
            self.genesis.session_ttl_ms = self.genesis.session_ttl_ms.min(2_000);
            let least = small(3 * self.clients as u64 + 1);
            self.genesis.max_sessions_per_shard = self.genesis.max_sessions_per_shard.max(least);
        }
        if self.client.padding > 0 {
            self.replica.max_value_bytes = 100_000;
            self.replica.max_entry_bytes = 200_000;
        }
    }
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn large(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
