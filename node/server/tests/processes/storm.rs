//! Three groups under a recorded load, while groups join and leave and processes are killed, in an order drawn from a seed.
//! At the end the history is checked, and every key of every shard is counted at every node.

use std::collections::{BTreeMap, BTreeSet};

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{GroupAddresses, JoinRequest, LeaveRequest};
use futures::StreamExt;
use shardkv_client::{Client, ScanOptions, ShardState};
use types::{ShardId, ShardSet, shard_of};

use crate::cluster::Cluster;
use crate::load::Load;
use crate::wait::{holds, until};
use crate::world::{SHARDS, World, channel};

const GROUPS: u64 = 3;
const REPLICAS: u16 = 3;
const EVENTS: u32 = 24;

/// A world with faults drawn from a seed.
struct Storm {
    world: World,
    /// The groups that have joined.
    members: BTreeSet<u64>,
    /// The node that was killed: the position of its cluster (0: the controllers, else the gid), and its number.
    down: Option<(u64, u16)>,
    rng: u64,
}

impl Storm {
    fn draw(&mut self, below: u64) -> u64 {
        // Xorshift: enough to mix.
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 16) % below
    }

    fn cluster(&mut self, place: u64) -> &mut Cluster {
        match place.checked_sub(1) {
            None => &mut self.world.controllers,
            Some(at) => &mut self.world.groups[usize::try_from(at).unwrap()],
        }
    }

    /// Injects one fault or change. Returns its description for the test's output.
    async fn strike(&mut self) -> String {
        let gid = 1 + self.draw(GROUPS);
        match self.draw(8) {
            0..5 if !self.members.contains(&gid) => {
                self.join(gid).await;
                format!("group {gid} joins")
            }
            0..5 if self.members.len() > 1 => {
                self.leave(gid).await;
                format!("group {gid} leaves")
            }
            5 => {
                self.revive();
                for node in 0..REPLICAS {
                    self.cluster(gid).kill(node);
                }
                for node in 0..REPLICAS {
                    self.cluster(gid).start_node(node);
                }
                format!("all of group {gid} dies and comes back")
            }
            _ => {
                self.revive();
                let place = self.draw(GROUPS + 1);
                let node = u16::try_from(self.draw(REPLICAS.into())).unwrap();
                self.cluster(place).kill(node);
                self.down = Some((place, node));
                format!("node {node} of group {place} dies")
            }
        }
    }

    fn revive(&mut self) {
        if let Some((place, node)) = self.down.take() {
            self.cluster(place).start_node(node);
        }
    }

    async fn join(&mut self, gid: u64) {
        let request = JoinRequest {
            groups: vec![GroupAddresses {
                gid,
                addresses: self.world.group(gid).addresses(),
                ..GroupAddresses::default()
            }],
            session: None,
            force: false,
        };
        self.change(async |mut client| client.join(request.clone()).await.map(drop))
            .await;
        self.members.insert(gid);
    }

    async fn leave(&mut self, gid: u64) {
        let request = LeaveRequest {
            gids: vec![gid],
            session: None,
        };
        // Repeated after a lost answer, the request names a group that has left already.
        self.change(
            async |mut client| match client.leave(request.clone()).await {
                Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
                other => other.map(drop),
            },
        )
        .await;
        self.members.remove(&gid);
    }

    /// Asks one controller after the other until one of them carries out a change.
    async fn change(
        &self,
        ask: impl AsyncFn(ShardctrlerClient<tonic::transport::Channel>) -> Result<(), tonic::Status>,
    ) {
        let down = self
            .down
            .and_then(|(place, node)| (place == 0).then_some(node));
        let mut node = 0;
        until("the controllers take a change", async || {
            node = (node + 1) % REPLICAS;
            if Some(node) == down {
                node = (node + 1) % REPLICAS;
            }
            let channel = channel(&self.world.controllers, node).await;
            ask(ShardctrlerClient::new(channel)).await
        })
        .await;
    }
}

async fn client(world: &World) -> Client {
    let everywhere: Vec<String> = world.groups.iter().flat_map(Cluster::addresses).collect();
    let connect =
        |options: &mut shardkv_client::ClientOptions| options.addresses.clone_from(&everywhere);
    world.controllers.client_with(connect).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_come_and_go_and_nodes_die_under_load_and_nothing_is_lost_or_left_behind() {
    let mut storm = Storm {
        world: World::start(GROUPS, REPLICAS).await,
        members: BTreeSet::new(),
        down: None,
        rng: 0x5eed_0007,
    };
    storm.join(1).await;
    let writer = client(&storm.world).await;
    for n in 0..500 {
        let value = format!("{n:0>200}");
        writer.put(format!("kept/{n}"), value).await.unwrap();
    }
    let load = Load::start_with(async || client(&storm.world).await, 6).await;
    for event in 0..EVENTS {
        let what = storm.strike().await;
        println!("event {event}: {what}");
        load.answered(100).await;
    }
    storm.revive();
    storm.world.settled().await;
    load.answered(100).await;
    let tally = load.finish().await;
    assert_eq!((tally.failed, tally.unknown), (0, 0), "{tally:?}");
    for n in 0..500 {
        let value = writer.get(format!("kept/{n}")).await.unwrap();
        assert_eq!(value, Some(format!("{n:0>200}").into()), "kept/{n}");
    }
    let keys = account(&storm.world, &writer).await;
    assert!(keys >= 500, "{keys}");
}

/// Checks that every node of every group has its group's shards with all their keys, and no other keys. Returns the number of keys.
pub(crate) async fn account(world: &World, client: &Client) -> u64 {
    let shards: u32 = SHARDS.parse().unwrap();
    let mut keys: BTreeMap<ShardId, u64> = (0..shards).map(|shard| (ShardId(shard), 0)).collect();
    let mut scan = client.scan(ScanOptions::all());
    while let Some(pair) = scan.next().await {
        *keys.get_mut(&shard_of(&pair.unwrap().key, shards)).unwrap() += 1;
    }

    let mut owners = Vec::new();
    for run in &world.settled().await.config.unwrap().owners {
        owners.extend((0..run.count).map(|_| run.gid));
    }
    for (gid, group) in (1..).zip(&world.groups) {
        let of_group = |shard: &ShardId| owners[usize::try_from(shard.0).unwrap()] == gid;
        let due: BTreeMap<ShardId, u64> = keys
            .iter()
            .filter(|(shard, _)| of_group(shard))
            .map(|(shard, keys)| (*shard, *keys))
            .collect();
        for node in 0..REPLICAS {
            let admin = group.admin(node);
            // A follower may be a moment behind.
            until("a node has what is its group's", async || {
                let told = admin.shards(&ShardSet::default(), true).await;
                let told = told.map_err(|error| error.to_string())?;
                let served = told.shards.iter().all(|it| it.state == ShardState::Serving);
                let found = told.shards.iter().map(|it| (it.shard, it.keys)).collect();
                let same = served && due == found;
                holds(
                    same,
                    format!("group {gid} node {node}: {:?} of {due:?}", told.shards),
                )
            })
            .await;
        }
    }
    keys.values().sum()
}
