//! What a seed means: the cluster, its options, its clients, and which faults it meets.
//!
//! Swarm testing: each class of faults is on in half of the seeds, with an intensity of its own. A world in
//! which everything happens at once never gets far enough to have something to lose; one in which only
//! crashes and slow disks happen gets far.

use shardctrler::HistoryLimits;
use shardkv::{Genesis, MoverOptions};

use crate::bug::Bug;
use crate::client::ClientOptions;
use crate::dice::{Concern, Dice};
use crate::disk::DiskOptions;
use crate::network::LinkOptions;
use crate::queue::{MILLI, Micros, SECOND};

/// How often something happens, and how long it lasts. Both are drawn around these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// The mean time between two.
    pub every: Micros,
    /// The most time that one lasts.
    pub lasts: Micros,
}

/// Which faults a world meets; `None` is never.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Partitions of all shapes.
    pub partitions: Option<Rhythm>,
    /// Hints that a connection broke when none did.
    pub false_hints: Option<Rhythm>,
    /// Nodes killed between two steps, or inside one, and down for a while.
    pub crashes: Option<Rhythm>,
    /// All nodes of one group killed at once, and down for a while.
    pub outages: Option<Rhythm>,
    /// All nodes killed at once.
    pub blackouts: Option<Rhythm>,
    /// Processes that stand still.
    pub pauses: Option<Rhythm>,
    /// Disks that take long.
    pub slow_disks: Option<Rhythm>,
    /// Disks without space.
    pub full_disks: Option<Rhythm>,
    /// Disks that come back empty.
    pub wipes: Option<Rhythm>,
    /// Records that become unreadable.
    pub damage: Option<Rhythm>,
    /// Wall clocks that jump.
    pub clock_jumps: Option<Rhythm>,
    /// Members added, promoted, removed.
    pub membership: Option<Rhythm>,
    /// Leadership handed over.
    pub transfers: Option<Rhythm>,
    /// The leader cut off, killed, or made to stand still: what makes terms pass quickly.
    pub regicides: Option<Rhythm>,
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
    /// How many stewards change the configuration, each by itself.
    pub stewards: usize,
    /// The mean time between two changes of a steward; `None`: they only do what they are told.
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

    /// A quiet world of several groups: no faults, one client, one steward who does what it is told. The first group has
    /// joined.
    pub fn quiet_cluster(seed: u64, groups: usize, hosts: usize) -> Self {
        let mut scenario = Self::quiet(seed, hosts);
        scenario.genesis.shards = 10;
        scenario.cluster = Some(Cluster {
            groups,
            joined: 1,
            controllers: 3,
            mover: MoverOptions::default(),
            stewards: 1,
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
        let mut dice = Dice::new(seed, Concern::Scenario);
        let hosts = match dice.below(100) {
            0..8 => 1,
            8..14 => 2,
            14..62 => 3,
            62..70 => 4,
            70..95 => 5,
            _ => 7,
        };
        let mut scenario = Self::quiet(seed, hosts);
        scenario.duration = dice.magnitude(3 * SECOND, 14 * SECOND);
        scenario.draw_options(&mut dice);
        scenario.draw_links(&mut dice);
        scenario.draw_faults(&mut dice);
        scenario.draw_clients(&mut dice);
        scenario.draw_cluster(&mut Dice::new(seed, Concern::Cluster));
        scenario.settle(&mut dice);
        scenario
    }

    fn draw_options(&mut self, dice: &mut Dice) {
        let replica = &mut self.replica;
        replica.tick_ms = small(dice.between(15, 40));
        let raft = &mut replica.raft;
        raft.heartbeat_ticks = small(dice.between(1, 3));
        raft.election_ticks = raft.heartbeat_ticks * small(dice.between(3, 5)) + 2;
        if dice.coin() {
            raft.max_append_bytes = large(dice.magnitude(64, 4_096));
            raft.max_inflight_appends = large(dice.between(1, 8));
            raft.max_inflight_bytes = raft.max_append_bytes * large(dice.between(1, 8));
            raft.max_apply_bytes = large(dice.magnitude(64, 4_096));
        }
        if dice.coin() {
            raft.max_cached_bytes = large(dice.magnitude(128, 8_192));
        }
        if dice.chance(200_000) {
            raft.max_uncommitted_bytes = large(dice.magnitude(512, 16_384));
        }
        raft.check_quorum = !dice.chance(200_000);
        raft.lease_reads = raft.check_quorum && dice.chance(200_000);
        if dice.chance(700_000) {
            replica.compact_after_bytes = dice.magnitude(256, 16_384);
        }
        if dice.coin() {
            replica.max_entry_bytes = large(dice.magnitude(1_024, 8_192));
            replica.max_value_bytes = small(dice.between(300, 1_000));
        }
        if dice.chance(200_000) {
            replica.max_pending_requests = large(dice.between(1, 16));
        }
        replica.snapshot_window = large(dice.between(1, 4));
        replica.max_snapshots = large(dice.between(1, 2));
        self.genesis.shards = small(dice.between(1, 8));
        if dice.coin() {
            self.genesis.session_ttl_ms = dice.between(1_000, 3_000);
        }
        if dice.chance(150_000) {
            self.genesis.max_sessions_per_shard = small(dice.between(2, 8));
        }
        if dice.chance(150_000) {
            self.genesis.max_results_per_session = small(dice.between(1, 4));
        }
        if dice.coin() {
            self.skew_ms = dice.magnitude(10, 5_000);
            self.drift = small(dice.magnitude(100, 100_000));
        }
        self.catch_up_ticks = if dice.coin() { 1 } else { 1_000 };
        self.inbox = large(dice.magnitude(64, 4_096));
        let slowest = dice.magnitude(200, 20 * MILLI);
        self.disks.sync = (50, slowest.max(100));
        self.disks.flush = (MILLI, dice.magnitude(2 * MILLI, SECOND));
    }

    /// Half of the worlds have several groups.
    fn draw_cluster(&mut self, dice: &mut Dice) {
        if dice.coin() {
            return;
        }
        self.hosts = *dice.pick(&[1, 2, 3, 3, 3, 3]).unwrap_or(&3);
        self.members = self.hosts;
        self.genesis.shards = small(dice.between(1, 10));
        self.duration = self.duration.min(8 * SECOND);
        // So that a shard takes many parts, mostly.
        let chunk_bytes = small(dice.magnitude(1, 4_096));
        let mover = MoverOptions {
            max_concurrent_pulls: small(dice.between(1, 4)),
            max_bytes_per_second: if dice.chance(200_000) && self.client.padding == 0 {
                // A hundred parts a second at least: a shard may have dozens of moves to catch up with.
                dice.magnitude(20_000, 200_000)
                    .max(100 * u64::from(chunk_bytes))
            } else {
                0
            },
            chunk_bytes,
            min_retry_ms: small(dice.magnitude(1, 50)),
            max_retry_ms: small(dice.between(50, 400)),
        };
        let history = if dice.coin() {
            HistoryLimits {
                keep: dice.between(1, 4),
                step: dice.between(1, 4),
                max: dice.between(8, 64),
                ..HistoryLimits::default()
            }
        } else {
            HistoryLimits::default()
        };
        let groups = large(dice.between(2, 4));
        self.cluster = Some(Cluster {
            groups,
            joined: large(dice.between(1, groups as u64)),
            controllers: *dice.pick(&[1, 3, 3, 3]).unwrap_or(&3),
            mover,
            stewards: large(dice.between(1, 2)),
            changes: Some(dice.magnitude(50 * MILLI, 2 * SECOND)),
            history,
            echoes: if dice.coin() {
                small(dice.magnitude(10_000, 300_000))
            } else {
                0
            },
            forwards: 500_000,
            survives_without: dice.chance(300_000),
        });
        let lasts = dice.magnitude(100 * MILLI, 4 * SECOND);
        let every = dice.magnitude(500 * MILLI, 5 * SECOND);
        self.faults.outages = dice.coin().then_some(Rhythm { every, lasts });
        // What few requests fill leaves no room for steps: clients' repeats would keep shards from arriving.
        self.replica.max_pending_requests = self.replica.max_pending_requests.max(64);
        self.client.keys = dice.between(2, 12);
        match dice.below(10) {
            0 | 1 => self.set_clocks_apart(dice),
            2..6 => self.skew_ms = self.skew_ms.min(self.genesis.session_ttl_ms / 8),
            _ => {}
        }
    }

    /// Clocks that are as far apart as sessions live, and writes that come again: sessions are forgotten early, then their
    /// shards move to where it is earlier.
    fn set_clocks_apart(&mut self, dice: &mut Dice) {
        self.hosts = 1;
        self.members = 1;
        self.duration = self.duration.min(5 * SECOND);
        self.genesis.shards = small(dice.between(1, 3));
        self.genesis.session_ttl_ms = 1_000;
        self.skew_ms = dice.between(100, 1_000);
        let every = dice.between(200 * MILLI, SECOND);
        self.faults.clock_jumps = Some(Rhythm { every, lasts: 1 });
        if let Some(cluster) = &mut self.cluster {
            cluster.groups = 2;
            cluster.joined = 2;
            cluster.changes = Some(dice.between(80 * MILLI, 300 * MILLI));
        }
        self.clients = large(dice.between(2, 5));
        let client = &mut self.client;
        client.keys = dice.between(2, 4);
        client.think = (MILLI, 40 * MILLI);
        client.copies = 400_000;
        client.copies_late_by = SECOND;
        // Only a young session, once forgotten, could be taken for new.
        client.renew_after = Some(300 * MILLI);
    }

    fn draw_links(&mut self, dice: &mut Dice) {
        let links = &mut self.links;
        links.delay = (50, dice.magnitude(200, 20 * MILLI));
        if dice.coin() {
            links.loss = small(dice.magnitude(1_000, 250_000));
        }
        if dice.coin() {
            links.duplication = small(dice.magnitude(1_000, 200_000));
            if dice.coin() {
                links.echo_by = dice.magnitude(MILLI, 2 * SECOND);
            }
        }
        links.reordering = dice.coin();
        if dice.coin() {
            links.late = small(dice.magnitude(1_000, 150_000));
            links.late_by = dice.magnitude(20 * MILLI, 2 * SECOND);
        }
    }

    fn draw_faults(&mut self, dice: &mut Dice) {
        let mut maybe = |share: u32, every: (Micros, Micros), lasts: (Micros, Micros)| {
            let rhythm = Rhythm {
                every: dice.magnitude(every.0, every.1),
                lasts: dice.magnitude(lasts.0, lasts.1),
            };
            dice.chance(share).then_some(rhythm)
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
            regicides: maybe(400_000, (150 * MILLI, 2 * SECOND), (50 * MILLI, SECOND)),
        };
        if dice.chance(300_000) {
            self.storm(dice);
        }
    }

    /// Many short reigns, entries one by one, and messages that outlive their senders' terms.
    fn storm(&mut self, dice: &mut Dice) {
        let replica = &mut self.replica;
        replica.tick_ms = small(dice.between(8, 20));
        replica.raft.heartbeat_ticks = 1;
        replica.raft.election_ticks = small(dice.between(4, 8));
        if dice.coin() {
            replica.raft.max_append_bytes = 64;
            replica.raft.max_inflight_appends = 1;
            replica.raft.max_inflight_bytes = 64;
            // Entries go one by one: a slow disk would never let a follower catch up.
            self.disks.sync = (50, 800);
        }
        let every = dice.between(100 * MILLI, 600 * MILLI);
        let lasts = dice.between(40 * MILLI, 400 * MILLI);
        self.faults.regicides = Some(Rhythm { every, lasts });
        self.links.reordering = true;
        self.links.late = small(dice.between(20_000, 200_000));
        self.links.late_by = dice.between(100 * MILLI, SECOND);
        if dice.coin() {
            self.links.duplication = 300_000;
            self.links.echo_by = dice.between(100 * MILLI, SECOND);
        }
        if dice.coin() {
            self.replica.compact_after_bytes = dice.magnitude(128, 512);
        }
        if self.hosts >= 4 && dice.chance(700_000) {
            // Other partitions would mend the cuts too early, and long pauses let nobody be elected.
            self.faults.partitions = None;
            self.faults.regicides = None;
            self.faults.pauses = None;
            self.links.duplication = 300_000;
            self.links.echo_by = dice.between(100 * MILLI, SECOND);
            self.ambushes = small(dice.between(300_000, 900_000));
            self.replica.raft.check_quorum = dice.coin();
            self.replica.raft.lease_reads &= self.replica.raft.check_quorum;
        }
        self.duration = self.duration.min(6 * SECOND);
        self.stormy = true;
    }

    fn draw_clients(&mut self, dice: &mut Dice) {
        self.clients = large(dice.between(1, 6));
        let client = &mut self.client;
        client.keys = dice.between(1, 6);
        client.pipeline = large(dice.magnitude(1, 8));
        // All clients together do about so many operations.
        let least = if self.stormy { 500 } else { 60 };
        let operations = dice.magnitude(least, 1_500);
        let pause = 2 * self.duration * self.clients as u64 / operations;
        client.think = (MILLI, pause.max(2 * MILLI));
        client.patience = dice.between(50 * MILLI, 600 * MILLI);
        client.deadline = dice.between(500 * MILLI, 6 * SECOND);
        client.reads = small(dice.between(100_000, 700_000));
        client.scans = small(dice.between(0, 150_000));
        if dice.coin() {
            client.copies = small(dice.magnitude(10_000, 400_000));
            client.copies_late_by = dice.magnitude(MILLI, 5 * SECOND);
        }
        if dice.chance(400_000) {
            client.silences = small(dice.magnitude(2_000, 50_000));
            client.silence = self.genesis.session_ttl_ms.min(4_000) * MILLI + 500 * MILLI;
        }
        if dice.chance(300_000) {
            client.sessionless = small(dice.between(10_000, 300_000));
        }
        if dice.coin() {
            client.renew_after = Some(self.genesis.session_ttl_ms * MILLI / 2);
        }
        if dice.chance(20_000) {
            client.padding = 20_000;
        }
    }

    /// Takes back what can't be had together.
    fn settle(&mut self, dice: &mut Dice) {
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
        if self.faults.membership.is_some() && self.hosts > 1 && dice.coin() {
            self.members = large(dice.between(1, self.hosts as u64));
        }
        if self.faults.wipes.is_some() || self.faults.damage.is_some() {
            self.members = self.hosts;
        }
        if self.faults.wipes.is_none() && self.faults.damage.is_none() {
            self.pushy_admin = dice.coin();
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
