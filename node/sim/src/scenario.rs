//! The scenario of a seed: the cluster, its options, its clients, and its faults.
//!
//! The simulator uses swarm testing: each class of faults is on in a part of the seeds, with a drawn intensity. A world
//! with every fault at once makes too little progress to have something to lose. A world with only crashes and slow
//! disks makes enough.

mod cluster;
mod keyspaces;
mod load;
mod options;
mod processes;
mod snapshots;
mod trouble;

use shardctrler::HistoryLimits;
use shardkv::{Genesis, JournalLimits, MoverOptions};

use crate::bug::{Bug, ProcessBug};
use crate::client::ClientOptions;
use crate::disk::DiskOptions;
use crate::fault::Faults;
use crate::keyspace_client::KeyspaceOptions;
use crate::network::LinkOptions;
use crate::queue::{Micros, SECOND};
use crate::rng::{Concern, SimRng};

/// The settings of a world.
#[derive(Clone, Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "the flags are independent, and any of them may be on"
)]
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
    /// The share, of a million, of the last answers of followers that a new leader gets a second time, if they are of earlier terms.
    pub old_answers: u32,
    /// The share, of a million, of leaders that are cut off right after they told another node to campaign.
    pub isolated_transfers: u32,
    /// The share, of a million, of kills that are orderly stops.
    pub orderly_stops: u32,
    /// The share, of a million, of the clients' requests that a node forwards if it doesn't lead the owner of the key.
    pub forwarded: u32,
    /// The longest time for which a page of a scan waits for a free thread.
    pub pages_wait: Micros,
    /// True if the members of a group have different options, as during a rolling change.
    pub mixed_options: bool,
    /// The time within which the hosts start for the first time, with empty disks, or `None` if the groups exist from the start.
    pub first_starts: Option<Micros>,
    /// The replica groups among which shards move, or `None` for one group that owns all shards.
    pub cluster: Option<Cluster>,
    /// The share, of a million, of reads that are taken to any member of the group instead of its leader. Members that follow serve them.
    pub follower_reads: u32,
    /// The share, of a million, of such reads at which the leader and the follower are cut off together.
    pub stranded_leaders: u32,
    /// The behaviour of clients of keyspaces, or `None` if there are none.
    pub keyspaces: Option<KeyspaceOptions>,
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
            old_answers: 0,
            isolated_transfers: 0,
            orderly_stops: 0,
            forwarded: 0,
            pages_wait: 0,
            mixed_options: false,
            first_starts: None,
            cluster: None,
            follower_reads: 0,
            stranded_leaders: 0,
            keyspaces: None,
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
        scenario.draw_processes(&mut SimRng::new(seed, Concern::Processes));
        scenario.draw_first_starts(&mut SimRng::new(seed, Concern::FirstStarts));
        scenario.draw_keyspaces(&mut SimRng::new(seed, Concern::Keyspaces));
        scenario.draw_follower_reads(&mut SimRng::new(seed, Concern::FollowerReads));
        scenario.settle(&mut rng);
        scenario
    }

    /// Puts a known bug back.
    pub fn put_back(&mut self, bug: Bug) {
        self.bug = Some(bug);
        if let Bug::Request(bug) = bug {
            self.client.bugs = request::Bugs::with(bug);
        }
        if let Some(keyspaces) = &mut self.keyspaces {
            keyspaces.repeats_writes = bug == Bug::Process(ProcessBug::KeyspaceWriteRepeated);
        }
    }

    /// Removes settings that contradict each other.
    fn settle(&mut self, rng: &mut SimRng) {
        if self.replica.raft.lease_reads {
            // A lease relies on the clocks: a process must make up for every missed tick or know that it doesn't, and no clock
            // may run twice as fast as another.
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
