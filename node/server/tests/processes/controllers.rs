//! Tests of groups whose controllers are gone, or are others.

use std::fs;

use api::v1::kv_client::KvClient;
use api::v1::{ScanRequest, ScanResponse};
use bytes::Bytes;
use futures::TryStreamExt as _;
use tonic::Status;
use types::ShardConfig;

use crate::bad_input::http_get;
use crate::wait::{holds, until};
use crate::world::{Plain, World, channel};

/// Returns true if a node says in its metrics that it refuses the controllers.
async fn refuses(world: &World, gid: u64, node: u16) -> bool {
    let text = http_get(world.group(gid).metrics(node), "/metrics").await;
    text.lines()
        .any(|line| line == "shardkv_foreign_controllers 1")
}

/// Returns the number of the configuration that a node keeps on its disk.
fn kept(world: &World, gid: u64, node: u16) -> Option<u64> {
    let file = world.group(gid).data(node).join("CONFIGURATION");
    let content = Bytes::from(fs::read(file).ok()?);
    // The file's version and the cluster come before the configuration, and a checksum after it.
    let config = content.get(9..content.len().checked_sub(4)?)?;
    let config = ShardConfig::decode(content.slice_ref(config)).ok()?;
    Some(config.num().0)
}

/// Waits until a node keeps a configuration on its disk. It writes the latest one within a second.
async fn keeps(world: &World, gid: u64, node: u16, num: u64) {
    until("the node keeps the configuration", async || {
        let kept = kept(world, gid, node);
        holds(kept == Some(num), format!("{kept:?} of {num}"))
    })
    .await;
}

/// Returns all keys that a scan through a node finds.
async fn scanned(world: &World, gid: u64, node: u16) -> Result<Vec<String>, Status> {
    let mut kv = KvClient::new(channel(world.group(gid), node).await);
    let request = ScanRequest {
        keys_only: true,
        ..ScanRequest::default()
    };
    let pages: Vec<ScanResponse> = kv.scan(request).await?.into_inner().try_collect().await?;
    let pairs = pages.into_iter().flat_map(|page| page.pairs);
    Ok(pairs
        .map(|pair| String::from_utf8(pair.key.to_vec()).unwrap())
        .collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_show_the_groups_own_cluster_whatever_controllers_answer() {
    let mut world = World::start(1, 3).await;
    let other = World::start(1, 1).await;
    for (world, key) in [(&world, "ours"), (&other, "theirs")] {
        world.join(1, channel(&world.controllers, 0).await).await;
        world.settled().await;
        let mut plain = Plain::new(channel(world.group(1), 0).await).await;
        plain.put(key, "value").await;
    }
    let right = world.controllers.addresses().join(",");
    let wrong = other.controllers.addresses().join(",");
    let refusal = async |world: &World, node| {
        world.group(1).status(node).await;
        until("the node refuses the strangers", async || {
            let ready = world.group(1).readyz(node).await;
            holds(refuses(world, 1, node).await, ready)
        })
        .await;
    };

    // A node that knows its group's configurations goes on with them.
    let latest = world.query().await.latest;
    keeps(&world, 1, 0, latest).await;
    let group = &mut world.groups[0];
    group.set("controllers", &wrong);
    group.kill(0);
    group.start_node(0);
    refusal(&world, 0).await;
    let found = until("the node scans", async || scanned(&world, 1, 0).await).await;
    assert_eq!(found, ["ours"]);

    // A node that begins anew hears from the strangers before it knows its group. It forgets what they said.
    let group = &mut world.groups[0];
    let before = group.status(1).await.node_id;
    group.kill(1);
    fs::remove_dir_all(group.data(1)).unwrap();
    group.start_node(1);
    let status = group.status_when(1, "the node is a member again", |status| {
        let is_own = |member: &shardkv_client::MemberStatus| member.node_id == status.node_id;
        status.node_id != before && status.members.iter().any(|it| is_own(it) && it.voter)
    });
    status.await;
    refusal(&world, 1).await;
    let refused = scanned(&world, 1, 1).await.unwrap_err();
    assert!(refused.message().contains("not heard from"), "{refused:?}");

    let group = &mut world.groups[0];
    group.set("controllers", &right);
    group.kill(1);
    group.start_node(1);
    let found = until("the node scans", async || scanned(&world, 1, 1).await).await;
    assert_eq!(found, ["ours"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_refuse_other_controllers_and_serve_on_without_any() {
    const KEYS: usize = 40;
    let mut world = World::start(2, 3).await;
    let through = channel(&world.controllers, 0).await;
    for gid in [1, 2] {
        world.join(gid, through.clone()).await;
    }
    let settled = world.settled().await;
    let mut plain = Plain::new(channel(world.group(1), 0).await).await;
    for n in 0..KEYS {
        plain.put(&format!("k{n}"), "before").await;
    }

    // Nobody else can tell a node the latest configuration when it starts again.
    let latest = world.query().await.latest;
    for gid in [1, 2] {
        for node in 0..3 {
            keeps(&world, gid, node, latest).await;
        }
    }

    // The controllers lose their volumes, and form another cluster at the same addresses.
    for node in 0..3 {
        world.controllers.kill(node);
        fs::remove_dir_all(world.controllers.data(node)).unwrap();
    }
    for node in 0..3 {
        world.controllers.start_node(node);
    }
    world.controllers.leader().await;
    for gid in [1, 2] {
        for node in 0..3 {
            until("each node refuses the new controllers", async || {
                let refuses = refuses(&world, gid, node).await;
                holds(refuses, world.groups[0].readyz(0).await)
            })
            .await;
            let status = world.group(gid).status(node).await;
            let why = status.trouble.clone().unwrap_or_default();
            assert!(why.contains("refuses the controllers"), "{status:?}");
        }
    }
    for n in 0..KEYS {
        let key = format!("k{n}");
        assert_eq!(plain.get(&key).await.as_deref(), Some("before"));
        plain.put(&key, "refused").await;
    }

    // Without any controllers, nodes that start know where the keys of other groups are.
    for node in 0..3 {
        world.controllers.kill(node);
    }
    for group in &mut world.groups {
        for node in 0..3 {
            group.kill(node);
            group.start_node(node);
        }
    }
    for gid in [1, 2] {
        world.group(gid).leader().await;
        for node in 0..3 {
            let mut plain = Plain::new(channel(world.group(gid), node).await).await;
            for n in 0..KEYS {
                let key = format!("k{n}");
                let before = if (gid, node) == (1, 0) {
                    "refused"
                } else {
                    "after"
                };
                assert_eq!(plain.get(&key).await.as_deref(), Some(before));
                plain.put(&key, "after").await;
            }
            let found = until("a node scans", async || scanned(&world, gid, node).await).await;
            assert_eq!(found.len(), KEYS);
        }
    }
    for group in &mut world.groups {
        for node in 0..3 {
            let printed = group.node(node).printed();
            assert!(printed.contains("refuses the controllers of cluster"));
            assert!(group.node(node).is_running(), "{printed}");
        }
    }
    let owners = settled.config.unwrap().owners;
    assert!(owners.iter().any(|run| run.gid == 1) && owners.iter().any(|run| run.gid == 2));
}
