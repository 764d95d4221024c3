//! Controllers and groups whose nodes are killed, or lose their power, in an order drawn from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use powercut::{Disk, Survivors};
use shardkv_client::{Client, ClientOptions};
use tempfile::TempDir;

use crate::cluster::{Cluster, Setup};
use crate::node::Node;
use crate::storm;
use crate::world::{SHARDS, World, channel};

const GROUPS: u64 = 2;
const REPLICAS: u16 = 3;

/// Mounts a disk for each node of a cluster in `data`. Returns `None` with a message where that isn't possible. CI sets `CI`, so
/// there the tests can't be skipped.
pub(crate) fn mount_disks(data: &Path, replicas: u16) -> Option<Vec<Disk>> {
    let mut disks = Vec::new();
    for node in 0..replicas {
        let at = data.join(format!("node-{node}"));
        fs::create_dir_all(&at).unwrap();
        match Disk::mount(&at) {
            Ok(disk) => disks.push(disk),
            Err(error) => {
                let required = std::env::var_os("CI").is_some();
                assert!(!required, "CI must be able to mount: {error}");
                println!("SKIPPED: a power cut needs root and /dev/fuse: {error}");
                return None;
            }
        }
    }
    Some(disks)
}

/// Makes flushes, compactions and snapshots frequent, so that outages meet them.
pub(crate) fn often(setup: Setup) -> Setup {
    setup
        .with("log-write-buffer-bytes", "65536")
        .with("state-write-buffer-bytes", "131072")
        .with("compact-after-bytes", "262144")
}

/// Strikes nodes of a cluster at once: SIGKILL, and if they have disks of their own, a power cut. `draw` draws a number below
/// its argument.
pub(crate) fn strike(
    cluster: &mut Cluster,
    nodes: &[u16],
    disks: &mut [Disk],
    mut draw: impl FnMut(u64) -> u64,
) {
    let mut dying: Vec<Node> = nodes.iter().map(|node| cluster.take(*node)).collect();
    dying.iter().for_each(Node::send_kill);
    // A disk that loses its power before its process has ended drops the syncs that the process waits for.
    for node in nodes {
        if let Some(disk) = disks.get(usize::from(*node)) {
            disk.power_off();
        }
    }
    dying.iter_mut().for_each(Node::kill);
    for node in nodes {
        if let Some(disk) = disks.get_mut(usize::from(*node)) {
            let survivors = match draw(3) {
                0 => Survivors::Synced,
                1 => Survivors::InOrder,
                _ => Survivors::Scattered,
            };
            disk.power_on(survivors, draw(u64::MAX)).unwrap();
        }
    }
}

/// A world of controllers and two groups, and the outages so far.
pub(crate) struct Outages {
    // Declared before the disks, so that processes end before their disks are unmounted.
    world: World,
    /// The disks of the controllers, and of each group; none if processes are only killed.
    disks: Vec<Vec<Disk>>,
    _data: TempDir,
    /// The nodes that are down: the position of their cluster (0: the controllers, else the gid), and their number.
    down: BTreeSet<(u64, u16)>,
    /// True if group 2 has shards.
    spread: bool,
    rng: u64,
    counts: BTreeMap<&'static str, u32>,
}

impl Outages {
    /// Starts nodes with disks that can lose their power. Returns `None` with a message where that isn't possible.
    pub(crate) async fn power_cuts(seed: u64) -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        let mut disks = Vec::new();
        for place in 0..=GROUPS {
            disks.push(mount_disks(&below(&data, place), REPLICAS)?);
        }
        Some(Self::start(seed, data, disks).await)
    }

    /// Starts nodes that can only be killed.
    pub(crate) async fn kills(seed: u64) -> Self {
        let disks = (0..=GROUPS).map(|_| Vec::new()).collect();
        Self::start(seed, tempfile::tempdir().unwrap(), disks).await
    }

    async fn start(seed: u64, data: TempDir, disks: Vec<Vec<Disk>>) -> Self {
        let placed = |place: u64, setup: Setup| {
            let data = Some(below(&data, place));
            often(Setup { data, ..setup })
        };
        let setup = Setup::of(REPLICAS)
            .with("role", "controller")
            .with("shards", SHARDS);
        let mut world = World {
            controllers: Cluster::start(placed(0, setup)).await,
            groups: Vec::new(),
        };
        for gid in 1..=GROUPS {
            let setup = placed(gid, world.group_setup(gid, REPLICAS));
            world.groups.push(Cluster::start(setup).await);
        }
        let leader = world.controllers.leader().await;
        let through = channel(&world.controllers, leader).await;
        world.join(1, through).await;
        Self {
            world,
            disks,
            _data: data,
            down: BTreeSet::new(),
            spread: false,
            // Xorshift needs a seed that isn't 0.
            rng: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            counts: BTreeMap::new(),
        }
    }

    pub(crate) async fn client(&self) -> Client {
        let groups = self.world.groups.iter();
        let addresses: Vec<String> = groups.flat_map(Cluster::addresses).collect();
        let connect = |options: &mut ClientOptions| options.addresses.clone_from(&addresses);
        self.world.controllers.client_with(connect).await
    }

    /// Lets group 2 take its half of the shards, or give them all away. All nodes must run.
    pub(crate) async fn start_move(&mut self) {
        let leader = self.world.controllers.leader().await;
        let through = channel(&self.world.controllers, leader).await;
        if self.spread {
            self.world.leave(2, through).await;
        } else {
            self.world.join(2, through).await;
        }
        self.spread = !self.spread;
    }

    /// Strikes some nodes of one cluster, and starts them again, or leaves a single one down until its cluster's next turn.
    /// Returns a description for the test's output.
    pub(crate) fn strike(&mut self) -> String {
        let place = draw(&mut self.rng, GROUPS + 1);
        self.revive(place);
        let first = draw(&mut self.rng, REPLICAS.into());
        let number = match draw(&mut self.rng, 6) {
            0..3 => 1,
            3 => 2,
            _ => REPLICAS,
        };
        let nodes: Vec<u16> = (0..number)
            .map(|at| (u16::try_from(first).unwrap() + at) % REPLICAS)
            .collect();
        let what = match number {
            1 => "one node",
            2 => "two nodes",
            _ => "all nodes",
        };
        let rng = &mut self.rng;
        let (cluster, disks) = match usize::try_from(place).unwrap() {
            0 => (&mut self.world.controllers, &mut self.disks[0]),
            gid => (&mut self.world.groups[gid - 1], &mut self.disks[gid]),
        };
        strike(cluster, &nodes, disks, |below| draw(rng, below));
        *self.counts.entry(what).or_default() += 1;
        self.down.extend(nodes.iter().map(|node| (place, *node)));
        let stays = number == 1 && draw(&mut self.rng, 2) == 0;
        if !stays {
            self.revive(place);
        }
        format!(
            "{nodes:?} of group {place}{}",
            if stays { ", down" } else { "" }
        )
    }

    fn revive(&mut self, place: u64) {
        let down = self.down.iter().copied();
        let (back, down): (BTreeSet<_>, BTreeSet<_>) = down.partition(|(of, _)| *of == place);
        self.down = down;
        for (place, node) in back {
            match usize::try_from(place).unwrap() {
                0 => self.world.controllers.start_node(node),
                gid => self.world.groups[gid - 1].start_node(node),
            }
        }
    }

    /// Starts all nodes that are down.
    pub(crate) fn revive_all(&mut self) {
        for place in 0..=GROUPS {
            self.revive(place);
        }
    }

    /// Waits until all shards are where they belong.
    pub(crate) async fn settled(&self) {
        self.world.settled().await;
    }

    /// Checks that each node of each group has the group's keys, and no other keys. Returns the number of keys.
    pub(crate) async fn account(&self, client: &Client) -> u64 {
        storm::account(&self.world, client).await
    }

    /// Returns the counts of outages by the number of struck nodes.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} outages: {:?}",
            self.counts.values().sum::<u32>(),
            self.counts
        )
    }
}

fn below(data: &TempDir, place: u64) -> PathBuf {
    data.path().join(format!("group-{place}"))
}

fn draw(rng: &mut u64, below: u64) -> u64 {
    // Xorshift: enough to mix.
    *rng ^= *rng << 13;
    *rng ^= *rng >> 7;
    *rng ^= *rng << 17;
    (*rng >> 16) % below
}
